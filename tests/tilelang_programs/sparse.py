"""Products with an operand of which half is zeros, packed on the host."""

import pytest
import tilelang
import tilelang.language as T
import tilelang.testing
import torch
from tilelang.layout import make_cutlass_metadata_layout
from tilelang.utils.sparse import compress, randint_semi_sparse, randn_semi_sparse


def matmul_sp(M, N, K, block_M, block_N, block_K, in_dtype, accum_dtype, arch, trans_A, trans_B, v2=False):
    e_factor, e_dtype = {
        ("float16", "8.0"): (16, "int16"),
        ("float16", "9.0"): (8, "uint8"),
        ("float32", "9.0"): (4, "uint8"),
        ("int8", "8.0"): (32, "int32"),
        ("int8", "9.0"): (8, "uint8"),
    }[in_dtype, arch]
    A_shape = (M, K // 2) if not trans_A else (K // 2, M)
    B_shape = (K, N) if not trans_B else (N, K)
    As = (block_M, block_K // 2) if not trans_A else (block_K // 2, block_M)
    Bs = (block_K, block_N) if not trans_B else (block_N, block_K)

    @T.prim_func
    def main(
        A_sparse: T.Tensor(A_shape, in_dtype),
        E: T.Tensor((M, K // e_factor), e_dtype),
        B: T.Tensor(B_shape, in_dtype),
        C: T.Tensor((M, N), accum_dtype),
    ):
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), threads=128) as (bx, by):
            A_shared = T.alloc_shared(As, in_dtype)
            B_shared = T.alloc_shared(Bs, in_dtype)
            E_shared = T.alloc_shared((block_M, block_K // e_factor), e_dtype)
            C_frag = T.alloc_fragment((block_M, block_N), accum_dtype)
            T.annotate_layout(
                {
                    E: make_cutlass_metadata_layout(E, mma_dtype=in_dtype, arch=arch, block_k=block_K),
                    E_shared: make_cutlass_metadata_layout(E_shared, mma_dtype=in_dtype, arch=arch, block_k=block_K),
                }
            )
            T.disable_warp_group_reg_alloc()
            T.clear(C_frag)
            for k in T.Pipelined(T.ceildiv(K, block_K), num_stages=2):
                T.copy(E[by * block_M, k * block_K // e_factor], E_shared)
                if trans_A:
                    T.copy(A_sparse[k * block_K // 2, by * block_M], A_shared)
                else:
                    T.copy(A_sparse[by * block_M, k * block_K // 2], A_shared)
                if trans_B:
                    T.copy(B[bx * block_N, k * block_K], B_shared)
                else:
                    T.copy(B[k * block_K, bx * block_N], B_shared)
                if v2:
                    T.gemm_sp_v2(A_shared, E_shared, B_shared, C_frag, trans_A, trans_B)
                else:
                    T.gemm_sp(A_shared, E_shared, B_shared, C_frag, trans_A, trans_B, policy=T.GemmWarpPolicy.Square)
            T.copy(C_frag, C[by * block_M, bx * block_N])

    return main


@pytest.mark.parametrize(
    "dt,acc,arch,ta,tb",
    [
        ("float16", "float32", "9.0", False, False),
        ("float16", "float32", "8.0", False, True),
        ("float16", "float32", "9.0", True, True),
        ("float32", "float32", "9.0", False, False),
        ("int8", "int32", "8.0", False, True),
        ("int8", "int32", "9.0", False, True),
    ],
)
def test_sp(dt, acc, arch, ta, tb):
    torch.manual_seed(0)
    M, N, K = 64, 40, 128
    k = tilelang.compile(matmul_sp(M, N, K, 32, 32, 64, dt, acc, arch, ta, tb, v2=tb), out_idx=[-1])
    td = getattr(torch, dt)
    A = (
        randint_semi_sparse(M, K, -9, 9, dtype=td, device="cuda", transposed=ta)
        if dt == "int8"
        else randn_semi_sparse(M, K, dtype=td, device="cuda", transposed=ta)
    )
    B = torch.randint(-9, 9, (K, N), device="cuda").to(td)
    a_sp, e = compress(A, transposed=ta, block_k=64, arch=arch)
    C = k(a_sp, e, B.T.contiguous() if tb else B)
    ref = (A.T if ta else A).double() @ B.double()
    assert (A == 0).float().mean() >= 0.5
    torch.testing.assert_close(C.double(), ref, rtol=1e-3, atol=1e-3)
