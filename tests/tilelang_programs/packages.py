"""What whole packages of kernels do: scalars named by a text, decoders of packed floats, arrays of each thread."""

import pytest
import tilelang
import tilelang.language as T
import tilelang.testing
import torch
from tilelang.quantize import get_mxfp_intrin_group


def test_scalars_whose_dtype_is_a_text():
    @T.prim_func
    def main(A: T.Tensor((8,), "float32"), n: "int32", x: "float32"):
        with T.Kernel(1, threads=32):
            for i in T.Parallel(8):
                if i < n:
                    A[i] = x

    a = torch.zeros(8, device="cuda")
    tilelang.compile(main)(a, 3, 2.5)
    assert a.tolist() == [2.5] * 3 + [0.0] * 5


def test_dtypes_are_texts_and_of_a_type():
    assert (
        getattr(torch, T.bfloat16) is torch.bfloat16
        and torch.__getattribute__("float8_e4m3fn") is T.float8_e4m3fn.as_torch()
    )
    assert {"float16": 1}[T.float16] == 1 == {T.float16: 1}["float16"] and T.float16 in {"float16"}
    assert T.float8_e4m3fn.startswith("float8") and "float" in T.float16 and f"x_{T.int8}" == "x_" + T.int8
    assert T.float == "float32" and T.float32 != "float16" and T.dtype(torch.int8) != torch.uint8
    assert sorted({T.int8, T.dtype("int8"), "float16"}) == ["float16", "int8"]
    assert isinstance(T.float16, T.dtype) and not isinstance("float16", T.dtype) and T.dtype | None
    assert T.bfloat16x2.lanes == 2 and T.dtype(torch.bfloat16).bits == 16 and repr(T.int32) == "int32"


def test_buffers_and_kernels_have_python_faces():
    seen = {}

    @T.prim_func
    def main(A: T.Tensor((T.dynamic("m"), 16), "float16"), B: T.Tensor((16,), T.float32), n: T.int32):
        with T.Kernel(T.ceildiv(A.shape[0], 4), threads=32) as bx:
            s = T.alloc_shared([4, 16], A.dtype, scope="shared.dyn")
            f = T.alloc_fragment(s.shape, "float")
            seen.update(dtype=A.dtype, scopes=[b.scope() for b in (A, s, f)], name=A.name, rank=len(A.shape))
            T.copy(A[bx * 4 : bx * 4 + 4, :], s)
            for i, j in T.Parallel(*s.shape):
                f[i, j] = s[i, j].astype("float32") + n.astype(T.float32)
                if bx * 4 + i < A.shape[0]:
                    T.atomic_add(B[j], f[i, j])

    a, b = torch.ones(6, 16, device="cuda").half(), torch.zeros(16, device="cuda")
    tilelang.compile(main)(a, b, 2)
    assert b.tolist() == [18.0] * 16 and getattr(torch, seen["dtype"]) is torch.float16
    assert seen["scopes"] == ["global", "shared.dyn", "local.fragment"] and (seen["name"], seen["rank"]) == ("A", 2)
    assert 'T.atomic("add"' in main.script()


def get_configs(args, kwargs):
    (n,) = args
    return [{"block": b} for b in (8, 16) if n % b == 0]


@tilelang.autotune(configs=get_configs, warmup=1, rep=1)
@tilelang.lazy_jit(out_idx=[-1])
def doubled(n, block=None):
    @T.prim_func
    def main(A: T.Tensor((n,), "float32"), B: T.Tensor((n,), "float32")):
        with T.Kernel(n // block, threads=32) as b:
            for i in T.Parallel(block):
                B[b * block + i] = A[b * block + i] * 2

    return main


def test_configurations_follow_from_the_call():
    kernel = doubled(24)
    assert kernel.config == {"block": 8} and kernel(torch.ones(24, device="cuda")).sum() == 48


def test_a_nest_that_fills_an_array_of_each_thread():
    @T.prim_func
    def main(A: T.Tensor((8,), "float32"), O: T.Tensor((8, 4), "float32")):
        with T.Kernel(1, threads=8):
            tx = T.get_thread_binding()
            row = T.alloc_local((4,), "float32")
            scale = T.alloc_local((1,), "float32")
            scale[0] = A[tx]
            for i in T.vectorized(4):
                row[i] = i + 1
            for i in T.Parallel(4):
                row[i] *= scale[0]
            for i in T.vectorized(4):
                O[tx, i] = row[i]

    a, o = torch.arange(8.0, device="cuda"), torch.empty(8, 4, device="cuda")
    tilelang.compile(main)(a, o)
    assert torch.equal(o, torch.outer(a, torch.arange(1.0, 5.0)))


@tilelang.jit(out_idx=[-1])
def mxfp4_gemm(M, N, K, block_M, block_N, block_K, threads=128, num_stages=2, scale_size=32):
    info = get_mxfp_intrin_group(
        out_dtype="bfloat16", source_format="uint", source_bit=4, storage_dtype="uint8", use_twiddling=True
    )
    local_size = 8

    @T.macro
    def dequantize(B_shared, Bd, Scale, bx, k):
        tx = T.get_thread_binding()
        packed = T.alloc_local((local_size // 2,), "uint8")
        out = T.alloc_local((local_size,), "bfloat16")
        scale = T.alloc_local((1,), "bfloat16")
        for i in T.serial(block_N * block_K // threads // local_size):
            base = i * threads * local_size + tx * local_size
            for v in T.vectorized(local_size // 2):
                packed[v] = B_shared[(base // 2 + v) // (block_K // 2), (base // 2 + v) % (block_K // 2)]
            s = Scale[bx * block_N + base // block_K, (k * block_K + base % block_K) // scale_size]
            scale[0] = T.cast(T.exp2(T.cast(s, "float") - 127.0), "bfloat16")
            T.call_extern(
                "handle", info["func_name"], T.address_of(packed[0]), T.address_of(out[0]), 1, dtype="bfloat16"
            )
            for v in T.Parallel(local_size):
                out[v] *= scale[0]
            for v in T.vectorized(local_size):
                Bd[(base + v) // block_K, (base + v) % block_K] = out[v]

    @T.prim_func
    def main(
        A: T.Tensor((M, K), "bfloat16"),
        B: T.Tensor((N, K // 2), "uint8"),
        Scale: T.Tensor((N, K // scale_size), "uint8"),
        C: T.Tensor((M, N), "bfloat16"),
    ):
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), threads=threads) as (bx, by):
            T.import_source(info["c_source"])
            A_shared = T.alloc_shared((block_M, block_K), "bfloat16")
            B_shared = T.alloc_shared((block_N, block_K // 2), "uint8")
            Bd = T.alloc_shared((block_N, block_K), "bfloat16")
            C_local = T.alloc_fragment((block_M, block_N), "float32")
            T.annotate_layout({Bd: tilelang.layout.make_swizzled_layout(Bd)})
            T.clear(C_local)
            for k in T.Pipelined(K // block_K, num_stages=num_stages):
                T.copy(A[by * block_M, k * block_K], A_shared)
                T.copy(B[bx * block_N, k * block_K // 2], B_shared)
                dequantize(B_shared, Bd, Scale, bx, k)
                T.gemm(A_shared, Bd, C_local, transpose_B=True)
            T.copy(C_local, C[by * block_M, bx * block_N])

    return main


def twiddled(codes):
    """Rows of 4-bit codes (sign, exponent, mantissa), eight to a word, where the fast decoder looks for them."""
    c = codes.to(torch.int64).view(*codes.shape[:-1], -1, 2, 4)
    half = torch.zeros_like(c[..., 0])
    for i, places in enumerate([(15, 8, 7, 6), (12, 5, 4, 3), (9, 2, 1, 0), (14, 11, 10, 13)]):
        for bit, place in zip((3, 2, 1, 0), places):
            half |= ((c[..., i] >> bit) & 1) << place
    return torch.stack([half >> 8, half & 255], -1).flatten(-3).to(torch.uint8)


def test_mxfp4_through_the_fast_decoder():
    torch.manual_seed(0)
    M, N, K = 40, 48, 128
    codes = torch.randint(0, 16, (N, K), device="cuda")
    scale = torch.randint(120, 130, (N, K // 32), dtype=torch.uint8, device="cuda")
    a = torch.randn(M, K, device="cuda").bfloat16()
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    w = torch.cat([table, -table])[codes] * torch.exp2(scale.float() - 127).repeat_interleave(32, 1)
    got = mxfp4_gemm(M, N, K, 32, 32, 64)(a, twiddled(codes), scale)
    torch.testing.assert_close(got.float(), a.float() @ w.T, rtol=1e-2, atol=0.1)
    with pytest.raises(NotImplementedError, match="use_twiddling=True"):
        get_mxfp_intrin_group(out_dtype="float16")


@tilelang.jit
def topk_groups(num_groups, per_group, num_topk, num_sum):
    n = T.dynamic("n")

    @T.prim_func
    def main(scores: T.Tensor[(n, num_groups * per_group), T.float32], out: T.Tensor[(n, num_topk), T.int64]):
        with T.Kernel(n, threads=64) as pid:
            tid = T.get_thread_binding()
            s = T.alloc_shared((num_groups * per_group,), T.float32)
            total = T.alloc_local((1,), T.float32)
            best = T.alloc_local((num_sum,), T.float32)
            T.copy(scores[pid, 0], s)
            T.sync_threads()
            if tid < 32:
                total[0] = -T.infinity(T.float32)
                if tid < num_groups:
                    for k in T.unroll(num_sum):
                        best[k] = -T.infinity(T.float32)
                    for j in T.serial(per_group):
                        x = T.alloc_var(T.float32)
                        x = s[tid * per_group + j]
                        for k in T.unroll(num_sum):
                            if x > best[k]:
                                tmp = best[k]
                                best[k] = x
                                x = tmp
                    total[0] = 0
                    for k in T.unroll(num_sum):
                        total[0] += best[k]
                for k in T.unroll(num_topk):
                    v = T.alloc_var(T.float32, init=total[0])
                    i = T.alloc_var(T.int32, init=tid)
                    for b in T.unroll(5):
                        w = T.shfl_xor(v, 16 >> b)
                        at = T.shfl_xor(i, 16 >> b)
                        if w > v or (w == v and at < i):
                            v = w
                            i = at
                    if tid == 0:
                        out[pid, k] = i
                    if tid == i:
                        total[0] = -T.infinity(T.float32)

    return main


@pytest.mark.parametrize("num_sum", [1, 2])
def test_groups_by_the_sum_of_their_greatest(num_sum):
    torch.manual_seed(0)
    s = torch.randn((131, 72), device="cuda")
    out = torch.empty((131, 4), dtype=torch.int64, device="cuda")
    topk_groups(8, 9, 4, num_sum)(s, out)
    sums = s.view(131, 8, 9).topk(num_sum, dim=-1).values.sum(-1)
    assert torch.equal(out, torch.sort(sums, dim=1, descending=True, stable=True).indices[:, :4])


if __name__ == "__main__":
    tilelang.testing.main()
