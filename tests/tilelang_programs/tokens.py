"""Tokens of a mixture of experts: casts with scales, gates, mappings over the grid, expansion and reduction."""

import pytest
import tilelang
import tilelang.language as T
import tilelang.testing
import torch

PASS = {
    tilelang.PassConfigKey.TL_DISABLE_WARP_SPECIALIZED: True,
    tilelang.PassConfigKey.TL_DISABLE_TMA_LOWER: True,
    tilelang.PassConfigKey.TL_PTXAS_REGISTER_USAGE_LEVEL: 10,
}


@T.macro
def get_sf_and_inv(amax, max_value: float, use_ue8m0: bool):
    amax_c = T.max(amax, 1e-4)
    sf = T.alloc_var("float32")
    inv = T.alloc_var("float32")
    sf = amax_c / max_value
    if use_ue8m0:
        bits = T.reinterpret(sf, "uint32")
        exp = ((bits - 1) >> 23) + 1
        sf = T.reinterpret(exp << 23, "float32")
        inv = T.reinterpret((254 - exp) << 23, "float32")
    else:
        inv = max_value / amax_c
    return sf, inv


@tilelang.jit(pass_configs=PASS)
def per_token_cast_kernel(hidden, num_per_channels, in_dtype, out_dtype, use_ue8m0, packed):
    m = T.dynamic("num_tokens")
    sf_stride = T.dynamic("sf_stride")
    groups = T.ceildiv(hidden, num_per_channels)
    fp8_max = 448.0 if out_dtype == T.float8_e4m3fn else 6.0
    sf_shape, sf_strides, sf_dtype = (
        ((m, T.ceildiv(groups, 4)), (1, sf_stride), T.int32) if packed else ((m, groups), (1, sf_stride), T.float32)
    )
    blk_m = 4

    @T.prim_func
    def kernel(
        x: T.Tensor[(m, hidden), in_dtype],
        out: T.Tensor[(m, hidden), out_dtype],
        sf: T.StridedTensor[sf_shape, sf_strides, sf_dtype],
    ):
        with T.Kernel(T.ceildiv(m, blk_m), T.ceildiv(groups, 4), threads=128) as (pid_m, pid_g):
            words = T.alloc_fragment((blk_m,), T.uint32) if packed else None
            if packed:
                T.clear(words)
            for g in T.unroll(4):
                if pid_g * 4 + g < groups:
                    frag = T.alloc_fragment((blk_m, num_per_channels), T.float32)
                    amax = T.alloc_fragment((blk_m,), T.float32)
                    invs = T.alloc_fragment((blk_m,), T.float32)
                    T.copy(x[pid_m * blk_m, (pid_g * 4 + g) * num_per_channels], frag)
                    T.reduce_absmax(frag, amax, dim=1)
                    for i in T.Parallel(blk_m):
                        s, inv = get_sf_and_inv(amax[i], fp8_max, use_ue8m0)
                        invs[i] = inv
                        if packed:
                            words[i] = words[i] | ((T.reinterpret(s, T.uint32) >> 23) << (8 * g))
                        else:
                            sf[pid_m * blk_m + i, pid_g * 4 + g] = s
                    o = T.alloc_fragment((blk_m, num_per_channels), out_dtype)
                    for i, j in T.Parallel(blk_m, num_per_channels):
                        o[i, j] = frag[i, j] * invs[i]
                    T.copy(o, out[pid_m * blk_m, (pid_g * 4 + g) * num_per_channels])
            if packed:
                for i in T.Parallel(blk_m):
                    sf[pid_m * blk_m + i, pid_g] = T.reinterpret(words[i], T.int32)

    return kernel


def ref_cast(x, n, fmax, ue8m0):
    m, h = x.shape
    xf = x.float().view(m, -1, n)
    amax = xf.abs().amax(-1).clamp(1e-4)
    sf = amax / fmax
    inv = torch.full_like(amax, fmax) / amax
    if ue8m0:
        sf = torch.exp2(torch.ceil(torch.log2(sf.double()))).float()
        inv = 1 / sf
    return xf * inv[..., None], sf


@pytest.mark.parametrize("ue8m0,packed", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("m,h,n", [(7, 512, 128), (33, 256, 32), (0, 256, 128)])
@pytest.mark.parametrize("in_dtype", [T.bfloat16, T.float32])
def test_per_token_cast(m, h, n, ue8m0, packed, in_dtype):
    x = torch.randn(m, h, device="cuda").to(in_dtype.as_torch())
    out = torch.empty(m, h, dtype=torch.float8_e4m3fn, device="cuda")
    g = h // n
    cols = (g + 3) // 4 if packed else g
    aligned = (m + 3) // 4 * 4
    sf = torch.empty(cols, max(aligned, 1), dtype=torch.int32 if packed else torch.float32, device="cuda")[:, :m].T
    k = per_token_cast_kernel(h, n, in_dtype, T.float8_e4m3fn, ue8m0, packed)
    if m:
        k(x, out, sf)
        y, s = ref_cast(x, n, 448.0, ue8m0)
        assert torch.equal(out.float(), y.view(m, h).to(torch.float8_e4m3fn).float())
        if packed:
            e = (s.view(torch.int32) >> 23).view(m, g)
            w = torch.zeros(m, cols * 4, dtype=torch.int64)
            w[:, :g] = e.cpu()
            w = (w.view(m, cols, 4) << torch.tensor([0, 8, 16, 24])).sum(-1)
            assert torch.equal(sf.cpu().long() & 0xFFFFFFFF, w)
        else:
            assert torch.equal(sf, s)


@tilelang.jit(pass_configs=PASS)
def expand_to_fused(hidden, topk, with_sf):
    nt, ne = T.dynamic("num_tokens"), T.dynamic("num_expanded")

    @T.prim_func
    def k(
        x: T.Tensor[(nt, hidden), T.bfloat16],
        sf: T.Tensor[(nt, 4), T.float32],
        pos: T.Tensor[(nt, topk), T.int32],
        out: T.Tensor[(ne, hidden), T.bfloat16],
        osf: T.Tensor[(ne, 4), T.float32],
    ):
        with T.Kernel(nt, threads=128) as (pid,):
            row = T.alloc_fragment((hidden,), T.bfloat16)
            p = T.alloc_local((topk,), T.int32)
            T.copy(x[pid, 0], row)
            for t in T.vectorized(topk):
                p[t] = pos[pid, t]
            for t in T.unroll(topk):
                T.assume(p[t] < ne)
                if p[t] >= 0:
                    T.copy(row, out[p[t], 0])
                    if with_sf:
                        for q in T.Parallel(4):
                            osf[p[t], q] = sf[pid, q]

    return k


@tilelang.jit(pass_configs=PASS)
def reduce_fused(hidden, topk, has_w):
    nt, ne = T.dynamic("num_tokens, num_expanded")

    @T.prim_func
    def k(
        x: T.Tensor[(ne, hidden), T.bfloat16],
        w: T.Tensor[(nt, topk), T.float32],
        pos: T.Tensor[(nt, topk), T.int32],
        out: T.Tensor[(nt, hidden), T.bfloat16],
    ):
        with T.Kernel(nt, threads=256) as pid:
            acc = T.alloc_fragment((hidden,), T.float32)
            T.clear(acc)
            for t in T.serial(topk):
                p = pos[pid, t]
                if p >= 0:
                    for i in T.Parallel(hidden):
                        acc[i] += x[p, i] * (w[pid, t] if has_w else 1.0)
            T.copy(acc, out[pid, 0])

    return k


def test_expand_reduce():
    nt, h, topk = 19, 64, 3
    pos = torch.randperm(nt * topk, device="cuda").view(nt, topk).int()
    pos[torch.rand(nt, topk) < 0.2] = -1
    x = torch.randn(nt, h, device="cuda", dtype=torch.bfloat16)
    sf = torch.randn(nt, 4, device="cuda")
    out = torch.zeros(nt * topk, h, device="cuda", dtype=torch.bfloat16)
    osf = torch.zeros(nt * topk, 4, device="cuda")
    expand_to_fused(h, topk, True)(x, sf, pos, out, osf)
    want = torch.zeros_like(out)
    for i in range(nt):
        for t in range(topk):
            if pos[i, t] >= 0:
                want[pos[i, t]] = x[i]
    assert torch.equal(out, want)
    out2 = torch.zeros_like(out)
    expand_to_fused(h, topk, False)(x, None, pos, out2, None)
    assert torch.equal(out2, want)
    w = torch.rand(nt, topk, device="cuda")
    y = torch.empty(nt, h, device="cuda", dtype=torch.bfloat16)
    reduce_fused(h, topk, True)(out, w, pos, y)
    ref = x.float() * (w * (pos >= 0)).sum(1, keepdim=True)
    torch.testing.assert_close(y.float(), ref, rtol=2e-2, atol=2e-2)
    reduce_fused(h, topk, False)(out, None, pos, y)
    torch.testing.assert_close(y.float(), x.float() * (pos >= 0).sum(1, keepdim=True), rtol=2e-2, atol=2e-2)


@tilelang.jit(pass_configs=PASS)
def topk_gate_warp(ne, topk):
    nt = T.dynamic("nt")
    per = ne // 32

    @T.prim_func
    def k(
        scores: T.Tensor[(nt, ne), T.float32],
        bias: T.Tensor[(ne,), T.float32],
        idx: T.Tensor[(nt, topk), T.int64],
        w: T.Tensor[(nt, topk), T.float32],
    ):
        with T.Kernel(nt, threads=32) as pid:
            lane = T.get_lane_idx()
            v = T.alloc_local((per,), T.float32)
            raw = T.alloc_local((per,), T.float32)
            best = T.alloc_var(T.float32)
            who = T.alloc_var(T.int32)
            tot = T.alloc_var(T.float32, init=0.0)
            mine = T.alloc_var(T.float32, init=0.0)
            for i in T.unroll(per):
                raw[i] = T.sigmoid(scores[pid, i * 32 + lane])
                v[i] = raw[i] + bias[i * 32 + lane]
            for t in T.unroll(topk):
                best = -T.infinity(T.float32)
                who = 0
                for i in T.unroll(per):
                    if v[i] > best:
                        best = v[i]
                        who = i * 32 + lane
                for s in T.unroll(5):
                    ob = T.shfl_xor(best, 16 >> s)
                    ow = T.shfl_xor(who, 16 >> s)
                    if ob > best or (ob == best and ow < who):
                        best = ob
                        who = ow
                got = T.alloc_var(T.float32, init=0.0)
                if who % 32 == lane:
                    for i in T.unroll(per):
                        if who // 32 == i:
                            got = raw[i]
                            v[i] = -T.infinity(T.float32)
                g = T.warp_reduce_sum(got)
                tot += g
                if lane == t:
                    mine = g
                    idx[pid, t] = who
            if lane < topk:
                w[pid, lane] = mine / tot

    return k


def test_topk_gate():
    nt, ne, topk = 13, 128, 6
    s = torch.randn(nt, ne, device="cuda")
    b = torch.randn(ne, device="cuda") * 0.1
    idx = torch.empty(nt, topk, dtype=torch.int64, device="cuda")
    w = torch.empty(nt, topk, device="cuda")
    topk_gate_warp(ne, topk)(s, b, idx, w)
    p = s.sigmoid()
    ref = (p + b).topk(topk, dim=1).indices
    assert torch.equal(idx, ref)
    g = p.gather(1, ref)
    torch.testing.assert_close(w, g / g.sum(1, keepdim=True))


@tilelang.jit(pass_configs=PASS)
def swiglu_bwd(hidden, clamp_value=None):
    m = T.dynamic("m")

    @T.prim_func
    def k(
        x: T.Tensor[(m, hidden * 2), T.bfloat16],
        dy: T.Tensor[(m, hidden), T.bfloat16],
        w: T.Tensor[(m,), T.float32],
        dx: T.Tensor[(m, hidden * 2), T.bfloat16],
        dw: T.Tensor[(m,), T.float32],
    ):
        with T.Kernel(m, threads=128) as i:
            red = T.alloc_reducer((1,), T.float32)
            T.clear(red)
            for j in T.Parallel(hidden):
                a = T.float32(x[i, j])
                b = T.float32(x[i, hidden + j])
                g = T.float32(dy[i, j])
                if clamp_value is not None:
                    a = T.min(a, clamp_value)
                    b = T.clamp(b, -clamp_value, clamp_value)
                s = T.sigmoid(a)
                act = a * s * b
                red[0] += g * act
                dx[i, j] = g * w[i] * b * (s + a * s * (1 - s))
                dx[i, hidden + j] = g * w[i] * a * s
            T.finalize_reducer(red)
            if T.get_thread_binding() == 0:
                dw[i] = red[0]

    return k


def test_swiglu_bwd():
    m, h = 11, 96
    x = torch.randn(m, 2 * h, device="cuda", dtype=torch.bfloat16)
    dy = torch.randn(m, h, device="cuda", dtype=torch.bfloat16)
    w = torch.rand(m, device="cuda")
    dx = torch.empty_like(x)
    dw = torch.empty(m, device="cuda")
    swiglu_bwd(h)(x, dy, w, dx, dw)
    xr = x.float().detach().requires_grad_()
    wr = w.clone().requires_grad_()
    a, b = xr.chunk(2, 1)
    (torch.nn.functional.silu(a) * b * wr[:, None]).backward(dy.float())
    torch.testing.assert_close(dx.float(), xr.grad, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(dw, wr.grad, rtol=1e-4, atol=1e-4)


@tilelang.jit
def batched_transpose(dtype, blk=32):
    b, m, n = T.dynamic("b, m, n")

    @T.prim_func
    def k(x: T.Tensor((b, m, n), dtype), y: T.Tensor((b, n, m), dtype)):
        with T.Kernel(T.ceildiv(n, blk), T.ceildiv(m, blk), b, threads=(32, 8)) as (bx, by, bz):
            s = T.alloc_shared((blk, blk + 1), dtype)
            tx, ty = T.get_thread_binding(0), T.get_thread_binding(1)
            for r in T.serial(blk // 8):
                s[r * 8 + ty, tx] = x[bz, by * blk + r * 8 + ty, bx * blk + tx]
            T.sync_threads()
            for r in T.serial(blk // 8):
                y[bz, bx * blk + r * 8 + ty, by * blk + tx] = s[tx, r * 8 + ty]

    return k


@pytest.mark.parametrize("dt", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_transpose(dt):
    x = torch.randn(2, 45, 70, device="cuda").to(dt)
    y = torch.empty(2, 70, 45, device="cuda", dtype=dt)
    batched_transpose(T.dtype(dt))(x, y)
    assert torch.equal(y.float(), x.float().transpose(1, 2))


@tilelang.jit(pass_configs=PASS)
def fused_mapping(ne, topk, blocks=4, threads=64):
    nt = T.dynamic("nt")

    @T.prim_func
    def k(
        idx: T.Tensor((nt, topk), T.int64),
        count: T.Tensor((ne,), T.int32),
        start: T.Tensor((ne + 1,), T.int32),
        pos: T.Tensor((nt, topk), T.int32),
    ):
        with T.Kernel(blocks, threads=threads) as b:
            tx = T.get_thread_binding()
            local = T.alloc_shared((ne,), T.int32)
            per_block = T.alloc_global((blocks, ne), T.int32)
            for e in T.serial(T.ceildiv(ne, threads)):
                if e * threads + tx < ne:
                    local[e * threads + tx] = 0
            T.sync_threads()
            total = nt * topk
            per = T.ceildiv(total, blocks)
            lo = b * per
            hi = T.min(lo + per, total)
            i = T.alloc_var("int32")
            i = lo + tx
            while i < hi:
                e = idx[i // topk, i % topk]
                if e >= 0:
                    T.atomic_add(local[e], 1)
                i += threads
            T.sync_threads()
            for e in T.serial(T.ceildiv(ne, threads)):
                if e * threads + tx < ne:
                    per_block[b, e * threads + tx] = local[e * threads + tx]
            T.sync_grid()
            if b == 0 and tx == 0:
                run = T.alloc_var("int32", 0)
                for e in T.serial(ne):
                    start[e] = run
                    for q in T.serial(blocks):
                        t = T.alloc_var("int32")
                        t = per_block[q, e]
                        per_block[q, e] = run
                        run += t
                    count[e] = run - start[e]
                start[ne] = run
            T.sync_grid()
            if tx == 0:
                for f in T.serial(per):
                    if lo + f < hi:
                        e = idx[(lo + f) // topk, (lo + f) % topk]
                        if e >= 0:
                            pos[(lo + f) // topk, (lo + f) % topk] = per_block[b, e]
                            per_block[b, e] += 1
                        else:
                            pos[(lo + f) // topk, (lo + f) % topk] = -1

    return k


def test_mapping():
    nt, ne, topk = 37, 20, 3
    idx = torch.randint(-1, ne, (nt, topk), device="cuda")
    c, s, p = (
        torch.empty(ne, dtype=torch.int32, device="cuda"),
        torch.empty(ne + 1, dtype=torch.int32, device="cuda"),
        torch.empty(nt, topk, dtype=torch.int32, device="cuda"),
    )
    fused_mapping(ne, topk)(idx, c, s, p)
    flat = idx.flatten().cpu()
    want = torch.bincount(flat[flat >= 0], minlength=ne)
    assert torch.equal(c.cpu().long(), want)
    order = torch.argsort(torch.where(flat < 0, ne, flat), stable=True)
    pos = torch.full((nt * topk,), -1, dtype=torch.int32)
    n = int((flat >= 0).sum())
    pos[order[:n]] = torch.arange(n, dtype=torch.int32)
    assert torch.equal(p.cpu().flatten(), pos)


if __name__ == "__main__":
    tilelang.testing.main()
