"""Kernels of an inference server: casts with scales of powers of two, products of FP8, an indexer, packed FP4."""

import tilelang
import tilelang.language as T
import tilelang.testing
import torch

tilelang.set_log_level("WARNING")
pass_configs = {
    tilelang.PassConfigKey.TL_DISABLE_WARP_SPECIALIZED: True,
    tilelang.PassConfigKey.TL_DISABLE_TMA_LOWER: True,
    tilelang.PassConfigKey.TL_DISABLE_FAST_MATH: True,
}
FP8 = "float8_e4m3"
BF16 = "bfloat16"
FP32 = "float32"


def fast_log2_ceil(x):
    bits_x = T.reinterpret("uint32", x)
    exp_x = (bits_x >> 23) & 0xFF
    man_bits = bits_x & ((1 << 23) - 1)
    return T.Cast("int32", exp_x - 127 + T.if_then_else(man_bits != 0, 1, 0))


def fast_pow2(x):
    bits_x = (x + 127) << 23
    return T.reinterpret("float32", bits_x)


def fast_round_scale(amax, fp8_max_inv):
    return fast_pow2(fast_log2_ceil(amax * fp8_max_inv))


@tilelang.jit(pass_configs=pass_configs)
def act_quant_kernel(N, in_dtype=BF16, out_dtype=FP8, scale_dtype=FP32, round_scale=False):
    M = T.symbolic("M")
    fp8_min = -448.0
    fp8_max = 448.0
    fp8_max_inv = 1 / fp8_max
    num_stages = 0 if round_scale else 2
    blk_m = 32
    group_size = 128

    @T.prim_func
    def act_quant_kernel_(
        X: T.Tensor[(M, N), in_dtype],
        Y: T.Tensor[(M, N), out_dtype],
        S: T.Tensor[(M, T.ceildiv(N, group_size)), scale_dtype],
    ):
        with T.Kernel(T.ceildiv(M, blk_m), T.ceildiv(N, group_size), threads=128) as (pid_m, pid_n):
            x_shared = T.alloc_shared((blk_m, group_size), in_dtype)
            x_local = T.alloc_fragment((blk_m, group_size), in_dtype)
            amax_local = T.alloc_fragment((blk_m,), scale_dtype)
            s_local = T.alloc_fragment((blk_m,), scale_dtype)
            y_local = T.alloc_fragment((blk_m, group_size), out_dtype)
            y_shared = T.alloc_shared((blk_m, group_size), out_dtype)
            for _ in T.Pipelined(1, num_stages=num_stages):
                T.copy(X[pid_m * blk_m, pid_n * group_size], x_shared)
                T.copy(x_shared, x_local)
                T.reduce_absmax(x_local, amax_local, dim=1)
                for i in T.Parallel(blk_m):
                    amax_local[i] = T.max(amax_local[i], 1e-4)
                    if round_scale:
                        s_local[i] = fast_round_scale(amax_local[i], fp8_max_inv)
                    else:
                        s_local[i] = amax_local[i] * fp8_max_inv
                for i, j in T.Parallel(blk_m, group_size):
                    y_local[i, j] = T.clamp(x_local[i, j] / s_local[i], fp8_min, fp8_max)
                for i in T.Parallel(blk_m):
                    S[pid_m * blk_m + i, pid_n] = s_local[i]
                T.copy(y_local, y_shared)
                T.copy(y_shared, Y[pid_m * blk_m, pid_n * group_size])

    return act_quant_kernel_


def act_quant(
    x: torch.Tensor, block_size: int = 128, scale_fmt: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    assert x.is_contiguous()
    N = x.size(-1)
    y = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    s = x.new_empty(*x.size()[:-1], N // block_size, dtype=torch.float32)
    kernel = act_quant_kernel(N, round_scale=scale_fmt is not None)
    kernel(x.view(-1, N), y.view(-1, N), s.view(-1, N // block_size))
    return y, s


@tilelang.jit(pass_configs=pass_configs)
def fp8_gemm_kernel(N, K, out_dtype=BF16, accum_dtype="float32"):
    assert out_dtype in [BF16, "float32"]
    M = T.symbolic("M")
    group_size = 128
    block_M = 32
    block_N = 128
    block_K = 128

    @T.prim_func
    def fp8_gemm_kernel_(
        A: T.Tensor[(M, K), FP8],
        B: T.Tensor[(N, K), FP8],
        C: T.Tensor[(M, N), out_dtype],
        scales_a: T.Tensor[(M, T.ceildiv(K, group_size)), FP32],
        scales_b: T.Tensor[(T.ceildiv(N, group_size), T.ceildiv(K, group_size)), FP32],
    ):
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), threads=128) as (bx, by):
            A_shared = T.alloc_shared((block_M, block_K), FP8)
            B_shared = T.alloc_shared((block_N, block_K), FP8)
            C_shared = T.alloc_shared((block_M, block_N), out_dtype)
            Scale_C_shared = T.alloc_shared((block_M), FP32)
            C_local = T.alloc_fragment((block_M, block_N), accum_dtype)
            C_local_accum = T.alloc_fragment((block_M, block_N), accum_dtype)
            T.use_swizzle(panel_size=10)
            T.clear(C_local)
            T.clear(C_local_accum)
            K_iters = T.ceildiv(K, block_K)
            for k in T.Pipelined(K_iters, num_stages=4):
                T.copy(A[by * block_M, k * block_K], A_shared)
                T.copy(B[bx * block_N, k * block_K], B_shared)
                Scale_B = scales_b[bx * block_N // group_size, k]
                for i in T.Parallel(block_M):
                    Scale_C_shared[i] = scales_a[by * block_M + i, k] * Scale_B
                T.gemm(A_shared, B_shared, C_local, transpose_B=True)
                for i, j in T.Parallel(block_M, block_N):
                    C_local_accum[i, j] += C_local[i, j] * Scale_C_shared[i]
                T.clear(C_local)
            T.copy(C_local_accum, C_shared)
            T.copy(C_shared, C[by * block_M, bx * block_N])

    return fp8_gemm_kernel_


@tilelang.jit(out_idx=[4], pass_configs=pass_configs)
def fp8_index_kernel(h: int, d: int):
    b = T.symbolic("b")
    m = T.symbolic("m")
    n = T.symbolic("n")
    blk_n1 = 64
    blk_n2 = 32

    @T.prim_func
    def fp8_index_kernel_(
        q: T.Tensor[(b, m, h, d), FP8],
        q_s: T.Tensor[(b, m, h), FP32],
        k: T.Tensor[(b, n, d), FP8],
        k_s: T.Tensor[(b, n), FP32],
        o: T.Tensor[(b, m, n), FP32],
    ) -> None:
        with T.Kernel(b, m, T.ceildiv(n, blk_n1)) as (i_b, i_m, i1_n):
            q_smem = T.alloc_shared((h, d), FP8)
            T.copy(q[i_b, i_m, 0, 0], q_smem)
            q_s_frag = T.alloc_fragment(h, FP32)
            T.copy(q_s[i_b, i_m, 0], q_s_frag)
            for i2_n in T.Pipelined(blk_n1 // blk_n2, num_stages=2):
                k_smem = T.alloc_shared((blk_n2, d), FP8)
                T.copy(k[i_b, i1_n * blk_n1 + i2_n * blk_n2, 0], k_smem)
                k_s_frag = T.alloc_fragment(blk_n2, FP32)
                T.copy(k_s[i_b, i1_n * blk_n1 + i2_n * blk_n2], k_s_frag)
                logits = T.alloc_fragment((blk_n2, h), FP32)
                T.gemm(k_smem, q_smem, logits, transpose_A=False, transpose_B=True, clear_accum=True)
                for i_h, i3_n in T.Parallel(h, blk_n2):
                    logits[i3_n, i_h] = T.max(logits[i3_n, i_h], 0) * q_s_frag[i_h]
                logits_sum = T.alloc_fragment(blk_n2, FP32)
                T.reduce_sum(logits, logits_sum, dim=1)
                for i3_n in T.Parallel(blk_n2):
                    logits_sum[i3_n] *= k_s_frag[i3_n]
                T.copy(logits_sum, o[i_b, i_m, i1_n * blk_n1 + i2_n * blk_n2])

    return fp8_index_kernel_


def test_v32():
    torch.manual_seed(0)
    x = torch.randn(2, 37, 256, device="cuda", dtype=torch.bfloat16)
    for fmt in (None, "ue8m0"):
        y, s = act_quant(x, scale_fmt=fmt)
        g = x.float().view(2, 37, 2, 128)
        amax = g.abs().amax(-1).clamp(min=1e-4)
        sref = amax * (1 / 448) if fmt is None else torch.exp2(torch.ceil(torch.log2(amax / 448)))
        torch.testing.assert_close(s, sref)
        torch.testing.assert_close(y.float().view(2, 37, 2, 128) * s[..., None], g, rtol=0.07, atol=0.02)
    w = torch.randn(256, 256, device="cuda", dtype=torch.bfloat16)
    wq = (w / 0.01).clamp(-448, 448).to(torch.float8_e4m3fn)
    ws = torch.full((2, 2), 0.01, device="cuda")
    y, s = act_quant(x)
    c = x.new_empty(74, 256)
    fp8_gemm_kernel(256, 256)(y.view(-1, 256), wq, c, s.view(-1, 2), ws)
    a = (y.float().view(74, 2, 128) * s.view(74, 2, 1)).view(74, 256)
    ref = a @ (wq.float() * 0.01).T
    torch.testing.assert_close(c.float(), ref, rtol=2e-2, atol=0.2)
    q = torch.randn(1, 5, 64, 128, device="cuda").to(torch.float8_e4m3fn)
    k = torch.randn(1, 70, 128, device="cuda").to(torch.float8_e4m3fn)
    qs, ks = torch.rand(1, 5, 64, device="cuda"), torch.rand(1, 70, device="cuda")
    o = fp8_index_kernel(64, 128)(q, qs, k, ks)
    ref = (torch.einsum("bmhd,bnd->bmnh", q.float(), k.float()).relu() * qs[:, :, None]).sum(-1) * ks[:, None]
    torch.testing.assert_close(o, ref, rtol=1e-3, atol=1e-2)


# fp4 quantiser, TileKernels style
@tilelang.jit(pass_configs={tilelang.PassConfigKey.TL_DISABLE_WARP_SPECIALIZED: True})
def get_fp4_cast_kernel(hidden: int, num_per_channels: int, in_dtype, packed: bool):
    num_threads = 128
    blk_m, blk_k = 8, 128
    num_tokens = T.dynamic("num_tokens")
    sf_stride = T.dynamic("sf_stride")
    groups = T.ceildiv(hidden, num_per_channels)
    sf_shape = (T.ceildiv(groups, 4), num_tokens) if packed else (num_tokens, groups)
    sf_strides = (sf_stride, 1)
    sf_dtype = T.int32 if packed else T.float32

    @T.macro
    def get_sf(amax, clamp_max):
        bits = T.reinterpret(amax * (1.0 / clamp_max), T.uint32)
        exp = ((bits - 1) >> 23) + 1 - 127
        return T.Cast("int32", exp)

    @T.prim_func
    def fp4_cast(
        x: T.Tensor[(num_tokens, hidden), in_dtype],
        out: T.Tensor[(num_tokens, hidden), T.float4_e2m1fn],
        out_sf: T.StridedTensor[sf_shape, sf_strides, sf_dtype],
    ):
        with T.Kernel(T.ceildiv(num_tokens, blk_m), T.ceildiv(hidden, blk_k), threads=num_threads) as (pid_x, pid_y):
            x_shared = T.alloc_shared((blk_m, blk_k), in_dtype)
            x_frag = T.alloc_fragment((blk_m, blk_k), in_dtype)
            x_groups = T.reshape(x_frag, [blk_m, blk_k // num_per_channels, num_per_channels])
            amax = T.alloc_fragment((blk_m, blk_k // num_per_channels), T.float32)
            sf = T.alloc_fragment((blk_m, blk_k // num_per_channels), T.float32)
            out_frag = T.alloc_fragment((blk_m, blk_k), T.float4_e2m1fn)
            T.copy(x[pid_x * blk_m, pid_y * blk_k], x_shared, disable_tma=True)
            T.copy(x_shared, x_frag)
            T.reduce_absmax(x_groups, amax, dim=2)
            for i, j in T.Parallel(blk_m, blk_k // num_per_channels):
                amax[i, j] = T.max(amax[i, j], 6.0 * 2.0**-126)
                e = get_sf(amax[i, j], 6.0)
                sf[i, j] = T.reinterpret((e + 127) << 23, T.float32)
                if packed:
                    g = pid_y * (blk_k // num_per_channels) + j
                    row = pid_x * blk_m + i
                    if row < num_tokens:
                        T.atomic_or(out_sf[g // 4, row], (e + 127) << ((g % 4) * 8))
                else:
                    out_sf[pid_x * blk_m + i, pid_y * (blk_k // num_per_channels) + j] = sf[i, j]
            for i, j in T.Parallel(blk_m, blk_k):
                out_frag[i, j] = x_frag[i, j] / sf[i, j // num_per_channels]
            T.copy(out_frag, out[pid_x * blk_m, pid_y * blk_k])

    return fp4_cast


def ref_fp4(v):
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float32)
    mag = v.abs().clamp(max=6)
    mids = (table[1:] + table[:-1]) / 2
    code = torch.bucketize(mag.cpu().contiguous(), mids, right=False)
    up = torch.isin(mag, mids)
    code = torch.where(up, torch.where(code % 2 == 0, code, code + 1), code)
    return code


def test_fp4_cast():
    torch.manual_seed(1)
    for packed in (False, True):
        x = torch.randn(21, 256, device="cuda", dtype=torch.bfloat16)
        k = get_fp4_cast_kernel(256, 32, T.bfloat16, packed)
        out = torch.empty(21, 128, dtype=torch.int8, device="cuda")
        if packed:
            sf = torch.zeros(2, 24, dtype=torch.int32, device="cuda")[:, :21]
        else:
            sf = torch.empty(21, 8, device="cuda")
        k(x, out, sf)
        amax = x.float().view(21, 8, 32).abs().amax(-1)
        e = torch.ceil(torch.log2(amax / 6)).to(torch.int32)
        if packed:
            got = torch.stack([(sf >> (8 * i)) & 255 for i in range(4)], -1)  # 2,21,4
            got = got.permute(1, 0, 2).reshape(21, 8) - 127
        else:
            got = torch.log2(sf).to(torch.int32)
        assert torch.equal(got, e)
        lo = out & 15
        hi = (out >> 4) & 15
        codes = torch.stack([lo, hi], -1).view(21, 256)
        vals = x.float().view(21, 8, 32) / torch.exp2(e.float())[..., None]
        assert torch.equal((codes & 7).long(), ref_fp4(vals).view(21, 256).long())


if __name__ == "__main__":
    tilelang.testing.main()
