"""Helpers of the host side that portable programs import: roller templates, marks, converters, scopes, environments."""

import itertools

import pytest
import tilelang
import tilelang.language as T
import tilelang.testing
import torch
from tilelang import carver
from tilelang.carver.arch import CUDA, auto_infer_current_arch, is_hopper_arch
from tilelang.carver.roller.rasterization import NoRasterization
from tilelang.carver.template import MatmulTemplate
from tilelang.env import env
from tilelang.intrinsics import get_swizzle_layout
from tilelang.primitives.gemm import gemm
from tilelang.quantize import _tir_packed_int_to_int_convert, _tir_packed_to_unsigned_convert, general_compress
from tilelang.quantize.quantization import _tir_u8_to_f4_to_bf16
from tilelang.transform.simplify import simplify_prim_func
from tilelang.utils.deprecated import deprecated
from tilelang.utils.language import is_fragment, is_global, is_shared
from tilelang.utils.target import target_is_cuda, target_is_hip, target_is_hopper


def get_configs(M, N, K, with_roller=False, topk=4):
    if not with_roller:
        return [
            dict(block_M=m, block_N=32, block_K=32, num_stages=s, thread_num=128, policy=T.GemmWarpPolicy.Square)
            for m, s in itertools.product([32, 64], [0, 2])
        ]
    template = MatmulTemplate(M=M, N=N, K=K, in_dtype=T.float16, out_dtype=T.float16, accum_dtype=T.float32)
    template = template.with_arch(CUDA("cuda"))
    assert template.equivalent_function() is not None
    configs = []
    for hint in template.recommend_hints(topk=topk):
        block_m, block_n = hint.block
        warp_m, warp_n = hint.warp
        block_rows, block_cols = block_m // warp_m, block_n // warp_n
        configs.append(
            dict(
                block_M=block_m,
                block_N=block_n,
                block_K=hint.rstep[0],
                num_stages=hint.pipeline_stage if hint.pipeline_stage > 1 else 0,
                thread_num=block_rows * block_cols * 32,
                policy=T.GemmWarpPolicy.from_warp_partition(block_rows, block_cols),
            )
        )
        assert hint.rasterization_plan is not NoRasterization and hint.threads == block_rows * block_cols * 32
    return configs


@pytest.mark.parametrize("with_roller", [False, True])
def test_a_product_tuned_over_the_rollers_configurations(with_roller):
    M, N, K = 100, 96, 64

    @tilelang.autotune(configs=get_configs(M, N, K, with_roller), warmup=1, rep=1)
    @tilelang.jit(out_idx=[-1])
    def kernel(block_M=None, block_N=None, block_K=None, num_stages=None, thread_num=None, policy=None):
        @T.prim_func
        def main(A: T.Tensor((M, K), "float16"), B: T.Tensor((N, K), "float16"), C: T.Tensor((M, N), "float16")):
            with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), threads=thread_num) as (bx, by):
                a = T.alloc_shared((block_M, block_K), "float16")
                b = T.alloc_shared((block_N, block_K), "float16")
                c = T.alloc_fragment((block_M, block_N), "float32")
                assert is_global(A) and is_shared(a) and is_fragment(c) and not is_shared(c)
                T.clear(c)
                for ko in T.Pipelined(T.ceildiv(K, block_K), num_stages=num_stages):
                    T.copy(A[by * block_M, ko * block_K], a)
                    T.copy(B[bx * block_N, ko * block_K], b)
                    gemm(a, b, c, transpose_B=True, policy=policy)
                T.copy(c, C[by * block_M, bx * block_N])

        return main

    best = kernel()
    a, b = torch.randn(M, K, device="cuda").half(), torch.randn(N, K, device="cuda").half()
    torch.testing.assert_close(best(a, b), a @ b.T, rtol=1e-2, atol=1e-2)
    assert best.latency > 0 and best.config in get_configs(M, N, K, with_roller)
    assert len(best.get_tuner_result().trials) == 4 and not [t for t in best.get_tuner_result().trials if t.error]


def test_every_template_recommends():
    arch = auto_infer_current_arch()
    templates = [
        carver.MatmulTemplate(M=1024, N=1024, K=1024),
        carver.GEMVTemplate(N=1000, K=1024, in_dtype="int8", out_dtype="int32"),
        carver.ElementwiseTemplate(shape=[1024, 1000], dtype="float16"),
        carver.GeneralReductionTemplate(structure="SSR", shape=[64, 100, 1024], dtype="float16"),
        carver.FlashAttentionTemplate(batch_size=4, num_heads=8, head_dim=64, seq_length=500, seq_kv_length=500),
        carver.ConvTemplate(N=2, C=16, H=14, W=14, F=32, K=3, S=1, D=1, P=1),
    ]
    for template in templates:
        template.with_arch(arch)
        assert template.equivalent_function() is not None and template.arch is arch
        hints = template.recommend_hints(topk=7)
        assert 0 < len(hints) <= 7 and len({str(h) for h in hints}) == len(hints)
        assert all(h.threads >= 1 and min(h.block) >= 1 for h in hints)
    best = templates[0].recommend_hints(1)[0]
    assert (
        best.block[0] * best.block[1] >= 64 * 64
        and best.rstep[0] * (best.block[0] + best.block[1]) * 2 <= arch.smem_cap
    )
    small = carver.MatmulTemplate(M=16, N=16, K=16).with_arch(arch).recommend_hints(20)
    assert all(h.block == [16, 16] for h in small)


def test_the_device_and_its_helpers():
    assert is_hopper_arch(auto_infer_current_arch()) and CUDA().sm_version == 90
    assert isinstance(auto_infer_current_arch(), CUDA) and not isinstance(carver.CPU(), CUDA)
    assert target_is_cuda("cuda") and target_is_hopper("cuda") and not target_is_hip("cuda")
    assert env.NO_SUCH_VARIABLE_EVER == "" and env.is_cache_enabled()
    assert get_swizzle_layout(3, 5, 64) == (3, 5) and simplify_prim_func(len) is len
    assert deprecated("old", "new")(len) is len


@pytest.mark.parametrize("signed", [False, True])
def test_packed_values(signed):
    convert = (_tir_packed_int_to_int_convert if signed else _tir_packed_to_unsigned_convert)("uint", 8)

    @tilelang.jit(out_idx=[1])
    def unpacked(n):
        @T.prim_func
        def main(A: T.Tensor((n // 2,), "uint8"), B: T.Tensor((n,), "float16")):
            with T.Kernel(1, threads=32):
                for i in T.Parallel(n):
                    B[i] = convert(4, A[i // 2], i % 2, dtype="float16")

        return main

    values = torch.arange(-8, 8) if signed else torch.arange(16)
    packed = torch.from_numpy(general_compress(values.numpy()[None], 4)[0].view("uint8"))
    assert packed[0] == ((int(values[1]) & 15) << 4 | (int(values[0]) & 15))
    assert torch.equal(unpacked(16)(packed.cuda()), values.half())


def test_floats_of_four_bits():
    @tilelang.jit(out_idx=[1])
    def unpacked(n):
        @T.prim_func
        def main(A: T.Tensor((n,), "uint8"), B: T.Tensor((n,), "bfloat16")):
            with T.Kernel(1, threads=32):
                for i in T.Parallel(n):
                    B[i] = _tir_u8_to_f4_to_bf16(4, A[i], 0, T.uint16(0), dtype="bfloat16")

        return main

    found = unpacked(16)(torch.arange(16, dtype=torch.uint8, device="cuda"))
    normal = torch.tensor([1, 1.5, 2, 3, 4, 6], dtype=torch.bfloat16)
    assert torch.equal(found[2:8], normal) and torch.equal(found[10:], -normal)


@tilelang.testing.requires_cuda
@tilelang.testing.requires_cuda_compute_version(8, 0)
@tilelang.testing.requires_cuda_compute_version_le(9, 0)
@tilelang.testing.requires_package("torch")
def test_marks_that_hold():
    pass


@tilelang.testing.requires_cuda_compute_version_ge(10, 0)
def test_of_a_newer_device():
    raise AssertionError


@tilelang.testing.requires_cuda_compute_version_eq(8, 9)
def test_of_another_device():
    raise AssertionError


@tilelang.testing.requires_package("no_such_package_ever")
def test_of_a_package_that_is_not_here():
    raise AssertionError


@tilelang.testing.requires_rocm
def test_of_another_maker():
    raise AssertionError


if __name__ == "__main__":
    tilelang.testing.main()
