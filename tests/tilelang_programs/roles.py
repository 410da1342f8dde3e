"""Groups of threads with roles, threads with products and sums of their own, selection by radix, shared work."""

import math

import tilelang
import tilelang.language as T
import tilelang.testing
import torch


def test_ws_gemm():
    @tilelang.jit(out_idx=[2])
    def matmul(M, N, K, block_M, block_N, block_K, dtype=T.float16, accum_dtype=T.float32):
        num_stages = 2
        mbarrier_list = [128, 128] * num_stages

        @T.prim_func
        def main(A: T.Tensor[(M, K), dtype], B: T.Tensor[(K, N), dtype], C: T.Tensor[(M, N), dtype]):
            with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), threads=256) as (bx, by):
                A_shared = T.alloc_shared((num_stages, block_M, block_K), dtype)
                B_shared = T.alloc_shared((num_stages, block_K, block_N), dtype)
                C_local = T.alloc_fragment((block_M, block_N), accum_dtype)
                T.create_list_of_mbarrier(mbarrier_list)
                T.use_swizzle(panel_size=10)
                T.clear(C_local)
                with T.ws(1):
                    T.dec_max_nreg(24)
                    for ko in range(T.ceildiv(K, block_K)):
                        T.mbarrier_wait_parity(
                            mbarrier=ko % num_stages + num_stages, parity=((ko // num_stages) % num_stages) ^ 1
                        )
                        T.copy(
                            A[by * block_M : (by + 1) * block_M, ko * block_K : (ko + 1) * block_K],
                            A_shared[ko % num_stages, :, :],
                        )
                        T.copy(
                            B[ko * block_K : (ko + 1) * block_K, bx * block_N : (bx + 1) * block_N],
                            B_shared[ko % num_stages, :, :],
                        )
                        T.mbarrier_arrive(mbarrier=ko % num_stages)
                with T.ws(0):
                    T.inc_max_nreg(240)
                    for ko in range(T.ceildiv(K, block_K)):
                        T.mbarrier_wait_parity(mbarrier=ko % num_stages, parity=(ko // num_stages) % num_stages)
                        T.gemm(A_shared[ko % num_stages, :, :], B_shared[ko % num_stages, :, :], C_local)
                        T.mbarrier_arrive(mbarrier=ko % num_stages + num_stages)
                    T.copy(C_local, C[by * block_M, bx * block_N])

        return main

    a, b = torch.randn(64, 100, device="cuda").half(), torch.randn(100, 48, device="cuda").half()
    torch.testing.assert_close(
        matmul(64, 48, 100, 32, 32, 16)(a, b), (a.float() @ b.float()).half(), rtol=1e-2, atol=1e-2
    )


def test_ws_gemm_barriers():
    @tilelang.jit(out_idx=[2], pass_configs={"tl.disable_warp_specialized": True})
    def matmul(M, N, K, block_M, block_N, block_K, dtype="bfloat16"):
        @T.prim_func
        def main(A: T.Tensor((M, K), dtype), B: T.Tensor((K, N), dtype), C: T.Tensor((M, N), dtype)):
            with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), threads=384) as (bx, by):
                A0 = T.alloc_shared((block_M, block_K), dtype)
                A1 = T.alloc_shared((block_M, block_K), dtype)
                B_shared = T.alloc_shared((block_K, block_N), dtype)
                C0 = T.alloc_fragment((block_M, block_N), "float")
                C1 = T.alloc_fragment((block_M, block_N), "float")
                data_is_ready = T.alloc_barrier(arrive_count=128)
                compute_is_done = T.alloc_barrier(arrive_count=256)
                tid = T.get_thread_binding()
                T.clear(C0)
                T.clear(C1)
                if tid < 128:
                    for ko in range(T.ceildiv(K, block_K)):
                        T.barrier_wait(compute_is_done, (ko + 1) % 2)
                        T.copy(A[by * 2 * block_M, ko * block_K], A0)
                        T.copy(A[(by * 2 + 1) * block_M, ko * block_K], A1)
                        T.copy(B[ko * block_K, bx * block_N], B_shared)
                        T.barrier_arrive(data_is_ready)
                elif tid < 256:
                    for ko in range(T.ceildiv(K, block_K)):
                        T.barrier_wait(data_is_ready, ko % 2)
                        T.gemm(A0, B_shared, C0)
                        T.barrier_arrive(compute_is_done)
                    T.copy(C0, C[by * 2 * block_M, bx * block_N])
                else:
                    for ko in range(T.ceildiv(K, block_K)):
                        T.barrier_wait(data_is_ready, ko % 2)
                        T.gemm(A1, B_shared, C1)
                        T.barrier_arrive(compute_is_done)
                    T.copy(C1, C[(by * 2 + 1) * block_M, bx * block_N])

        return main

    a, b = torch.randn(64, 50, device="cuda").bfloat16(), torch.randn(50, 40, device="cuda").bfloat16()
    torch.testing.assert_close(
        matmul(64, 40, 50, 16, 16, 16)(a, b), (a.float() @ b.float()).bfloat16(), rtol=2e-2, atol=2e-2
    )


def test_counters_of_each_role():
    @tilelang.jit(out_idx=[2])
    def matmul(M, N, K, BM, BN, BK, stages):
        @T.prim_func
        def main(A: T.Tensor((M, K), "float16"), B: T.Tensor((K, N), "float16"), C: T.Tensor((M, N), "float32")):
            with T.Kernel(T.ceildiv(N, BN), T.ceildiv(M, BM), threads=256) as (bx, by):
                a, b = T.alloc_shared((stages, BM, BK), "float16"), T.alloc_shared((stages, BK, BN), "float16")
                acc = T.alloc_fragment((BM, BN), "float32")
                full, empty = T.alloc_barrier([128] * stages), T.alloc_barrier([128] * stages)
                tid = T.get_thread_binding()
                stage, phase = T.alloc_var("int32", 0), T.alloc_var("int32", 0)
                if tid < 128:
                    for k in T.serial(T.ceildiv(K, BK)):
                        T.barrier_wait(empty[stage], phase ^ 1)
                        T.copy(A[by * BM, k * BK], a[stage, :, :])
                        T.copy(B[k * BK, bx * BN], b[stage, :, :])
                        T.barrier_arrive(full[stage])
                        stage += 1
                        if stage == stages:
                            stage = 0
                            phase = phase ^ 1
                else:
                    T.clear(acc)
                    for _ in T.serial(T.ceildiv(K, BK)):
                        T.barrier_wait(full[stage], phase)
                        T.gemm(a[stage, :, :], b[stage, :, :], acc)
                        T.barrier_arrive(empty[stage])
                        stage += 1
                        if stage == stages:
                            stage = 0
                            phase = phase ^ 1
                    T.copy(acc, C[by * BM, bx * BN])

        return main

    a, b = torch.randn(40, 100, device="cuda").half(), torch.randn(100, 33, device="cuda").half()
    torch.testing.assert_close(matmul(40, 33, 100, 16, 16, 16, 3)(a, b), a.float() @ b.float(), rtol=1e-4, atol=1e-3)


def test_mla_like_ws_decode():
    """Two consumer groups share scores, as MLA decode with warp specialisation does."""

    @tilelang.jit(out_idx=[3])
    def mla(batch, heads, seq, dim, pe_dim, block_N, block_H):
        scale = (1.0 / (dim + pe_dim)) ** 0.5 * 1.44269504

        @T.prim_func
        def main(
            Q: T.Tensor([batch, heads, dim], "float16"),
            Q_pe: T.Tensor([batch, heads, pe_dim], "float16"),
            KV: T.Tensor([batch, seq, dim + pe_dim], "float16"),
            Output: T.Tensor([batch, heads, dim], "float16"),
        ):
            with T.Kernel(heads // block_H, batch, threads=256) as (hid, bid):
                Q_shared = T.alloc_shared([block_H, dim], "float16")
                Q_pe_shared = T.alloc_shared([block_H, pe_dim], "float16")
                KV_shared = T.alloc_shared([2, block_N, dim], "float16")
                K_pe_shared = T.alloc_shared([2, block_N, pe_dim], "float16")
                S_shared = T.alloc_shared([block_H, block_N], "float16")
                acc_o_l = T.alloc_fragment([block_H, dim // 2], "float32")
                acc_o_r = T.alloc_fragment([block_H, dim // 2], "float32")
                acc_s = T.alloc_fragment([block_H, block_N], "float32")
                scores_max = T.alloc_fragment([block_H], "float32")
                scores_max_prev = T.alloc_fragment([block_H], "float32")
                scores_scale = T.alloc_fragment([block_H], "float32")
                scores_scale_shared = T.alloc_shared([block_H], "float32")
                scores_sum = T.alloc_fragment([block_H], "float32")
                logsum = T.alloc_fragment([block_H], "float32")
                logsum_shared = T.alloc_shared([block_H], "float32")
                s_ready = T.alloc_barrier(arrive_count=128)
                s_done = T.alloc_barrier(arrive_count=128)
                T.copy(Q[bid, hid * block_H : (hid + 1) * block_H, :], Q_shared)
                T.copy(Q_pe[bid, hid * block_H : (hid + 1) * block_H, :], Q_pe_shared)
                T.sync_threads()
                tx = T.get_thread_binding()
                nb = T.ceildiv(seq, block_N)
                if tx < 128:
                    T.fill(acc_o_l, 0)
                    T.fill(logsum, 0)
                    T.fill(scores_max, -T.infinity("float32"))
                    for k in T.serial(nb):
                        T.copy(KV[bid, k * block_N : (k + 1) * block_N, 0:dim], KV_shared[0, :, :])
                        T.copy(KV[bid, k * block_N : (k + 1) * block_N, dim : dim + pe_dim], K_pe_shared[0, :, :])
                        T.gemm(Q_shared, KV_shared[0, :, :], acc_s, transpose_B=True, clear_accum=True)
                        T.gemm(Q_pe_shared, K_pe_shared[0, :, :], acc_s, transpose_B=True)
                        for i, j in T.Parallel(block_H, block_N):
                            acc_s[i, j] = T.if_then_else(k * block_N + j < seq, acc_s[i, j], -T.infinity("float32"))
                        T.copy(scores_max, scores_max_prev)
                        T.reduce_max(acc_s, scores_max, dim=1, clear=False)
                        for i in T.Parallel(block_H):
                            scores_scale[i] = T.exp2(scores_max_prev[i] * scale - scores_max[i] * scale)
                        for i, j in T.Parallel(block_H, block_N):
                            acc_s[i, j] = T.exp2(acc_s[i, j] * scale - scores_max[i] * scale)
                        T.reduce_sum(acc_s, scores_sum, dim=1)
                        T.barrier_wait(s_done, (k & 1) ^ 1)
                        T.copy(acc_s, S_shared)
                        T.copy(scores_scale, scores_scale_shared)
                        T.barrier_arrive(s_ready)
                        for i in T.Parallel(block_H):
                            logsum[i] = logsum[i] * scores_scale[i] + scores_sum[i]
                        for i, j in T.Parallel(block_H, dim // 2):
                            acc_o_l[i, j] *= scores_scale[i]
                        T.gemm(S_shared, KV_shared[0, :, 0 : dim // 2], acc_o_l)
                    for i, j in T.Parallel(block_H, dim // 2):
                        acc_o_l[i, j] /= logsum[i]
                    T.barrier_wait(s_done, (nb & 1) ^ 1)
                    T.copy(logsum, logsum_shared)
                    T.barrier_arrive(s_ready)
                    T.copy(acc_o_l, Output[bid, hid * block_H : (hid + 1) * block_H, 0 : dim // 2])
                else:
                    T.fill(acc_o_r, 0)
                    for k in T.serial(nb):
                        T.copy(KV[bid, k * block_N : (k + 1) * block_N, 0:dim], KV_shared[1, :, :])
                        T.barrier_wait(s_ready, k & 1)
                        for i, j in T.Parallel(block_H, dim // 2):
                            acc_o_r[i, j] *= scores_scale_shared[i]
                        T.gemm(S_shared, KV_shared[1, :, dim // 2 : dim], acc_o_r)
                        T.barrier_arrive(s_done)
                    T.barrier_wait(s_ready, nb & 1)
                    for i, j in T.Parallel(block_H, dim // 2):
                        acc_o_r[i, j] /= logsum_shared[i]
                    T.copy(acc_o_r, Output[bid, hid * block_H : (hid + 1) * block_H, dim // 2 : dim])

        return main

    q, qp, kv = (
        torch.randn(2, 16, 32, device="cuda").half(),
        torch.randn(2, 16, 16, device="cuda").half(),
        torch.randn(2, 50, 48, device="cuda").half(),
    )
    got = mla(2, 16, 50, 32, 16, 16, 16)(q, qp, kv)
    s = torch.einsum("bhd,bsd->bhs", torch.cat([q, qp], -1).float(), kv.float()) / math.sqrt(48)
    torch.testing.assert_close(got.float(), s.softmax(-1) @ kv[..., :32].float(), rtol=2e-2, atol=2e-2)


def test_topk_selector():
    RADIX = 256

    def convert_to_uint16(x):
        hval = T.Cast(T.float16, x)
        bits_uint = T.reinterpret(hval, T.uint16)
        bits_uint = T.if_then_else(x < 0, ~bits_uint & (0xFFFF), bits_uint | (0x8000))
        return bits_uint >> 8

    def convert_to_uint32(x):
        bits_uint = T.reinterpret(x, T.uint32)
        bits_uint = T.if_then_else(
            x < 0,
            ~bits_uint & T.Cast(T.uint32, (0xFFFFFFFF)),
            bits_uint | T.Cast(T.uint32, (0x80000000)),
        )
        return bits_uint

    @tilelang.jit(pass_configs={tilelang.PassConfigKey.TL_DISABLE_THREAD_STORAGE_SYNC: True})
    def tl_topk_impl(topk, in_dtype=T.float32, out_dtype=T.int32):
        batch = T.dynamic("batch")
        seq_len = T.dynamic("seq_len")
        BLOCK_SIZE = 128
        SMEM_INPUT_SIZE = 512

        @T.prim_func
        def tl_topk_kernel(
            input: T.Tensor[(batch, seq_len), in_dtype],
            index: T.Tensor[(batch, topk), out_dtype],
            starts: T.Tensor[(batch), out_dtype],
            ends: T.Tensor[(batch), out_dtype],
        ):
            with T.Kernel(batch, threads=BLOCK_SIZE) as (bx):
                tx = T.get_thread_binding()
                s_threshold_bin_id = T.alloc_shared([1], T.int32)
                s_histogram = T.alloc_shared([RADIX + 1], T.int32)
                s_num_input = T.alloc_shared([2], T.int32)
                s_input_idx = T.alloc_shared([2, SMEM_INPUT_SIZE], T.int32)
                l_threshold_bin_id = T.alloc_var(T.int32)
                l_new_topk = T.alloc_var(T.int32)
                l_num_input = T.alloc_var(T.int32)
                l_bin_id32 = T.alloc_var(T.int32)
                l_start_pos = T.alloc_var(T.int32)
                l_start_idx = T.alloc_var(T.int32)
                l_end_idx = T.alloc_var(T.int32)
                l_out_pos = T.alloc_var(T.int32)
                pos = T.alloc_var(T.int32)

                l_new_topk = topk
                l_start_idx = starts[bx]
                l_end_idx = ends[bx]

                T.fill(s_histogram, 0)
                T.fill(s_num_input[0], 0)
                T.sync_threads()
                for s in T.serial(T.ceildiv(seq_len, BLOCK_SIZE)):
                    input_idx = s * BLOCK_SIZE + tx
                    if input_idx < l_end_idx and input_idx >= l_start_idx and input_idx < seq_len:
                        inval_int16 = convert_to_uint16(input[bx, input_idx])
                        T.atomic_add(s_histogram[inval_int16], 1)
                T.sync_threads()

                if tx == 0:
                    total = T.alloc_var(T.int32)
                    total = 0
                    for r in T.serial(RADIX):
                        total = total + s_histogram[RADIX - 1 - r]
                        s_histogram[RADIX - 1 - r] = total
                T.sync_threads()
                for h in T.serial(RADIX // BLOCK_SIZE):
                    if (
                        s_histogram[tx + h * BLOCK_SIZE] > l_new_topk
                        and s_histogram[tx + h * BLOCK_SIZE + 1] <= l_new_topk
                    ):
                        s_threshold_bin_id[0] = tx + h * BLOCK_SIZE
                T.sync_threads()
                l_threshold_bin_id = s_threshold_bin_id[0]
                l_new_topk = l_new_topk - s_histogram[l_threshold_bin_id + 1]
                T.sync_threads()

                for s in T.serial(T.ceildiv(seq_len, BLOCK_SIZE)):
                    T.sync_threads()
                    input_idx = s * BLOCK_SIZE + tx
                    if input_idx < l_end_idx and input_idx >= l_start_idx and input_idx < seq_len:
                        bin_id = convert_to_uint16(input[bx, input_idx])
                        l_bin_id32 = T.Cast(T.int32, bin_id)
                        if l_bin_id32 > l_threshold_bin_id:
                            pos = T.atomic_add(s_histogram[l_bin_id32 + 1], 1, return_prev=True)
                            index[bx, pos] = input_idx
                        elif l_bin_id32 == l_threshold_bin_id and l_new_topk > 0:
                            pos = T.atomic_add(s_num_input[0], 1, return_prev=True)
                            s_input_idx[0, pos] = input_idx

                for round in T.serial(4):
                    if l_new_topk <= 0:
                        T.loop_break()
                    r_idx = round % 2
                    l_start_pos = topk - l_new_topk
                    T.sync_threads()
                    T.fill(s_histogram, 0)
                    if tx == 0:
                        s_num_input[r_idx ^ 1] = 0
                    T.sync_threads()
                    l_num_input = s_num_input[r_idx]
                    for s in T.serial(T.ceildiv(l_num_input, BLOCK_SIZE)):
                        if s * BLOCK_SIZE + tx < l_num_input:
                            l_bin_id32 = T.Cast(
                                T.int32,
                                (
                                    (
                                        convert_to_uint32(input[bx, s_input_idx[r_idx, s * BLOCK_SIZE + tx]])
                                        >> (24 - round * 8)
                                    )
                                    & 0xFF
                                ),
                            )
                            T.atomic_add(s_histogram[l_bin_id32], 1)
                    T.sync_threads()
                    if tx == 0:
                        total2 = T.alloc_var(T.int32, init=0)
                        for r in T.serial(RADIX):
                            total2 += s_histogram[RADIX - 1 - r]
                            s_histogram[RADIX - 1 - r] = total2
                    T.sync_threads()
                    for h in T.serial(RADIX // BLOCK_SIZE):
                        if (
                            s_histogram[tx + h * BLOCK_SIZE] > l_new_topk
                            and s_histogram[tx + h * BLOCK_SIZE + 1] <= l_new_topk
                        ):
                            s_threshold_bin_id[0] = tx + h * BLOCK_SIZE
                    T.sync_threads()
                    l_threshold_bin_id = s_threshold_bin_id[0]
                    l_new_topk = l_new_topk - s_histogram[l_threshold_bin_id + 1]
                    T.sync_threads()
                    for s in T.serial(T.ceildiv(l_num_input, BLOCK_SIZE)):
                        T.sync_threads()
                        if s * BLOCK_SIZE + tx < l_num_input:
                            l_bin_id32 = T.Cast(
                                T.int32,
                                (
                                    (
                                        convert_to_uint32(input[bx, s_input_idx[r_idx, s * BLOCK_SIZE + tx]])
                                        >> (24 - round * 8)
                                    )
                                    & 0xFF
                                ),
                            )
                            if l_bin_id32 > l_threshold_bin_id:
                                pos = T.atomic_add(s_histogram[l_bin_id32 + 1], 1, return_prev=True) + l_start_pos
                                index[bx, pos] = s_input_idx[r_idx, s * BLOCK_SIZE + tx]
                            elif l_bin_id32 == l_threshold_bin_id and l_new_topk > 0:
                                if round == 3:
                                    l_out_pos = (
                                        T.atomic_add(s_histogram[l_bin_id32 + 1], 1, return_prev=True) + l_start_pos
                                    )
                                    if l_out_pos < topk:
                                        index[bx, l_out_pos] = s_input_idx[r_idx, s * BLOCK_SIZE + tx]
                                else:
                                    pos = T.atomic_add(s_num_input[r_idx ^ 1], 1, return_prev=True)
                                    s_input_idx[r_idx ^ 1, pos] = s_input_idx[r_idx, s * BLOCK_SIZE + tx]

        return tl_topk_kernel

    x = torch.randn(3, 500, device="cuda")
    starts, ends = torch.zeros(3, dtype=torch.int32), torch.tensor([500, 300, 450], dtype=torch.int32)
    idx = torch.full((3, 32), -1, dtype=torch.int32)
    tl_topk_impl(32)(x, idx, starts, ends)
    for b in range(3):
        want = set(x[b, : ends[b]].topk(32).indices.tolist())
        assert set(idx[b].tolist()) == want, (b, len(set(idx[b].tolist()) & want))


def test_per_thread_things():
    @tilelang.jit(out_idx=[-1])
    def made(n):
        @T.prim_func
        def main(
            A: T.Tensor((n, 4, 4), "float32"), B: T.Tensor((n, 4, 4), "float32"), C: T.Tensor((n, 4, 4), "float32")
        ):
            with T.Kernel(T.ceildiv(n, 32), threads=32) as b:
                tx = T.get_thread_binding()
                a_l = T.alloc_local((4, 4), "float32")
                b_l = T.alloc_local((4, 4), "float32")
                c_l = T.alloc_local((4, 4), "float32")
                if b * 32 + tx < n:
                    T.copy(A[b * 32 + tx, 0, 0], a_l)
                    T.copy(B[b * 32 + tx, :, :], b_l)
                    T.clear(c_l)
                    T.gemm(a_l, b_l, c_l)
                    T.copy(c_l, C[b * 32 + tx, 0, 0])

        return main

    a, b = torch.randn(50, 4, 4, device="cuda"), torch.randn(50, 4, 4, device="cuda")
    torch.testing.assert_close(made(50)(a, b), a @ b)


def test_expert_mapping_votes():
    @tilelang.jit
    def group_counts(E, threads=64):
        n = T.dynamic("n")

        @T.prim_func
        def main(idx: T.Tensor([n], "int32"), count: T.Tensor([E], "int32"), rank: T.Tensor([n], "int32")):
            with T.Kernel(E, threads=threads) as e:
                tid = T.get_thread_binding(0)
                lane, warp = T.get_lane_idx(), T.get_warp_idx()
                warp_sum = T.alloc_shared((threads // 32,), "int32")
                total = T.alloc_var("int32", init=0)
                for i in T.serial(0, T.ceildiv(n, threads)):
                    p = i * threads + tid
                    hit = T.alloc_var("bool")
                    hit = False
                    if p < n:
                        hit = idx[p] == e
                    ballot = T.ballot_sync(hit)
                    before = T.popcount(ballot & ((T.uint32(1) << T.Cast("uint32", lane)) - T.uint32(1)))
                    if lane == 0:
                        warp_sum[warp] = T.Cast("int32", T.popcount(ballot))
                    T.sync_threads()
                    base = T.alloc_var("int32", init=0)
                    for w in T.unroll(threads // 32):
                        if w < warp:
                            base += warp_sum[w]
                    if hit:
                        rank[p] = total + base + T.Cast("int32", before)
                    for w in T.unroll(threads // 32):
                        total += warp_sum[w]
                    T.sync_threads()
                if tid == 0:
                    count[e] = total

        return main

    idx = torch.randint(0, 5, (150,), dtype=torch.int32)
    cnt, rk = torch.empty(5, dtype=torch.int32), torch.empty(150, dtype=torch.int32)
    group_counts(5)(idx, cnt, rk)
    assert torch.equal(cnt.long(), torch.bincount(idx.long(), minlength=5))
    for e in range(5):
        assert rk[idx == e].tolist() == list(range(int(cnt[e])))


def test_hadamard():
    @tilelang.jit(out_idx=[1])
    def hadamard(b, n, dtype="float32"):
        logN = int(math.log2(n))
        threads = [0, 1, 1, 1, 2, 4, 8, 16, 32, 32, 128][logN]
        elems = n // threads
        bits = int(math.log2(elems))

        def warp_shfl(local, buf, round):
            tx = T.get_thread_binding(0)
            for i in T.serial(elems):
                buf[i] = T.tvm_warp_shuffle(0xFFFFFFFF, local[i], tx ^ (1 << round), 32, 32)

        @T.macro
        def inner(local: T.Tensor((elems,), dtype)):
            for i in T.serial(bits):
                chunksize = 1 << (i + 1)
                chunknum = elems // chunksize
                for j in T.serial(chunknum):
                    chunkbase = j * chunksize
                    for k in T.serial(chunksize // 2):
                        local[chunkbase + k] = local[chunkbase + k] + local[chunkbase + k + chunksize // 2]
                        local[chunkbase + k + chunksize // 2] = (
                            local[chunkbase + k] - 2 * local[chunkbase + k + chunksize // 2]
                        )

        @T.prim_func
        def main(A: T.Tensor((b, n), dtype), B: T.Tensor((b, n), dtype)):
            with T.Kernel(b, threads=threads) as bx:
                local = T.alloc_local((elems,), dtype)
                other = T.alloc_local((elems,), dtype)
                tx = T.get_thread_binding(0)
                for i in T.vectorized(elems):
                    local[i] = A[bx, tx * elems + i]
                inner(local)
                for r in T.serial(logN - bits):
                    for i in T.serial(elems):
                        other[i] = T.tvm_warp_shuffle(0xFFFFFFFF, local[i], tx ^ (1 << r), 32, 32)
                    for i in T.serial(elems):
                        local[i] = T.if_then_else((tx >> r) & 1, other[i] - local[i], other[i] + local[i])
                for i in T.vectorized(elems):
                    B[bx, tx * elems + i] = local[i]

        return main

    x = torch.randn(3, 256, device="cuda")
    h = torch.ones(1, 1)
    for _ in range(8):
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
    torch.testing.assert_close(hadamard(3, 256)(x), x @ h.T, rtol=1e-4, atol=1e-4)


def test_streamk():
    @tilelang.jit
    def streamk(M, N, K, BM, BN, BK, sms):
        m_tiles, n_tiles, iters = T.ceildiv(M, BM), T.ceildiv(N, BN), T.ceildiv(K, BK)
        total = m_tiles * n_tiles
        full_tiles = total % sms
        first = full_tiles * iters
        per, extra = first // sms, first % sms

        @T.macro
        def compute_first_wave(pid, A, B, C, a, b, acc, start_iter, last_iter, end_iter):
            start_iter[0] = pid * per + T.min(pid, extra)
            last_iter[0] = (pid + 1) * per + T.min(pid + 1, extra)
            while start_iter[0] < last_iter[0]:
                end_iter[0] = T.min(start_iter[0] + (iters - (start_iter[0] % iters)), last_iter[0])
                tile_id = start_iter[0] // iters
                remain = start_iter[0] % iters
                pid_m = tile_id // n_tiles
                pid_n = tile_id % n_tiles
                T.clear(acc)
                for k in T.Pipelined(end_iter[0] - start_iter[0], num_stages=2):
                    T.copy(A[pid_m * BM, (k + remain) * BK], a)
                    T.copy(B[pid_n * BN, (k + remain) * BK], b)
                    T.gemm(a, b, acc, transpose_B=True)
                if remain == 0 and (end_iter[0] % iters == 0):
                    T.copy(acc, C[pid_m * BM, pid_n * BN])
                else:
                    for i, j in T.Parallel(BM, BN):
                        T.atomic_add(C[pid_m * BM + i, pid_n * BN + j], acc[i, j])
                start_iter[0] = end_iter[0]

        @T.macro
        def compute_full_tiles(pid, A, B, C, a, b, acc):
            for p in T.serial(T.ceildiv(total - full_tiles, sms)):
                tile_id = pid + full_tiles + p * sms
                pid_m, pid_n = tile_id // n_tiles, tile_id % n_tiles
                T.clear(acc)
                for k in T.Pipelined(iters, num_stages=1):
                    T.copy(A[pid_m * BM, k * BK], a)
                    T.copy(B[pid_n * BN, k * BK], b)
                    T.gemm(a, b, acc, transpose_B=True)
                T.copy(acc, C[pid_m * BM, pid_n * BN])

        @T.prim_func
        def main(A: T.Tensor((M, K), "float16"), B: T.Tensor((N, K), "float16"), C: T.Tensor((M, N), "float32")):
            with T.Kernel(sms, threads=128) as pid:
                a, b = T.alloc_shared((BM, BK), "float16"), T.alloc_shared((BN, BK), "float16")
                acc = T.alloc_fragment((BM, BN), "float32")
                start_iter = T.alloc_local((1,), "int32")
                last_iter = T.alloc_local((1,), "int32")
                end_iter = T.alloc_local((1,), "int32")
                compute_first_wave(pid, A, B, C, a, b, acc, start_iter, last_iter, end_iter)
                if sms < total:
                    compute_full_tiles(pid, A, B, C, a, b, acc)

        return main

    a, b = torch.randn(64, 80, device="cuda").half(), torch.randn(48, 80, device="cuda").half()
    c = torch.zeros(64, 48, device="cuda")
    streamk(64, 48, 80, 16, 16, 16, 5)(a, b, c)
    torch.testing.assert_close(c, a.float() @ b.float().T, rtol=1e-3, atol=1e-3)


if __name__ == "__main__":
    tilelang.testing.main()
