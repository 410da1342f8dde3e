"""The traps of the language's description that its decisions leave as TileLang has them, one test or more for each:
`test_trap_N_...`. (1, 2, 3, 5 and 14 are decided otherwise.)"""

import pytest
import tilelang
import tilelang.language as T
import torch

DEVICE = "cuda"


def ints(*values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype, device=DEVICE)


def run(func, *args, **kw):
    return tilelang.compile(func, **kw)(*args)


def test_trap_4_dtypes_of_mixed_operands():
    @T.prim_func
    def main(
        H: T.Tensor((4,), "float16"),
        B: T.Tensor((4,), "bfloat16"),
        I: T.Tensor((4,), "int32"),
        U: T.Tensor((4,), "uint32"),
        O: T.Tensor((6, 4), "float32"),
    ):
        with T.Kernel(1, threads=32):
            for i in T.Parallel(4):
                O[0, i] = T.cast(H[i] / 3, "float32")  # float16
                O[1, i] = B[i] * 1.5  # float32
                O[2, i] = T.cast(H[i] + B[i], "float32")  # float16
                O[3, i] = T.cast(I[i] + H[i], "float32")  # float16
                O[4, i] = T.cast(I[i] - 5 + U[i], "float32")  # uint32
                O[5, i] = T.max(B[i], 1e-4)  # float32

    h = torch.tensor([1.0, 2.5, 1000, 0.1], dtype=torch.float16, device=DEVICE)
    b = torch.tensor([1.0, 1.0078125, -3, 0.3], dtype=torch.bfloat16, device=DEVICE)
    i, u = ints(1, 2, 2049, 4), torch.tensor([0, 0, 7, 9], dtype=torch.uint32, device=DEVICE)
    o = torch.empty(6, 4, device=DEVICE)
    run(main, h, b, i, u, o)
    assert torch.equal(o[0], (h / 3).float()) and torch.equal(o[1], b.float() * 1.5)
    assert torch.equal(o[2], (h + b.half()).float()) and torch.equal(o[3], (i.half() + h).float())
    assert o[4].tolist() == [2.0**32, 2.0**32, 2051, 8]  # uint32 wraps
    assert torch.equal(o[5], torch.maximum(b.float(), torch.tensor(1e-4)))


def test_trap_4_every_store_rounds():
    @T.prim_func
    def main(A: T.Tensor((8,), "float16"), O: T.Tensor((1,), "float16")):
        with T.Kernel(1, threads=32):
            acc = T.alloc_fragment((1,), "float16")
            T.clear(acc)
            for k in T.serial(8):
                acc[0] = acc[0] + A[k]
            O[0] = acc[0]

    a = torch.tensor([2048, 1, 1, 1, 1, 1, 1, 1], dtype=torch.float16, device=DEVICE)
    o = torch.empty(1, dtype=torch.float16, device=DEVICE)
    run(main, a, o)
    assert o.item() == 2048  # each 1 is lost


def test_trap_6_copies_clip_and_fill():
    @T.prim_func
    def main(A: T.Tensor((10, 10), "float32"), B: T.Tensor((10, 10), "float32"), S: T.Tensor((8, 8), "float32")):
        with T.Kernel(2, 2, threads=64) as (bx, by):
            s = T.alloc_shared((8, 8), "float32")
            T.fill(s, 7)
            T.copy(A[by * 8, bx * 8], s)
            for i, j in T.Parallel(8, 8):
                s[i, j] += 1
            T.copy(s, B[by * 8, bx * 8])
            if bx == 1 and by == 1:
                T.copy(s, S)

    a = torch.randn(10, 10, device=DEVICE)
    b, s = torch.zeros_like(a), torch.empty(8, 8, device=DEVICE)
    run(main, a, b, s)
    want = torch.ones(8, 8, device=DEVICE)
    want[:2, :2] += a[8:, 8:]
    assert torch.equal(b, a + 1) and torch.equal(s, want)


def test_trap_6_a_safe_value_other_than_zero():
    @T.prim_func
    def main(A: T.Tensor((5,), "float32"), M: T.Tensor((1,), "float32")):
        with T.Kernel(1, threads=32):
            T.annotate_safe_value({A: -T.infinity("float32")})
            f, m = T.alloc_fragment((8,), "float32"), T.alloc_fragment((1,), "float32")
            T.copy(A[0], f)
            T.reduce_max(f, m, dim=0)
            M[0] = m[0]

    a, m = -torch.rand(5, device=DEVICE) - 1, torch.empty(1, device=DEVICE)
    run(main, a, m)
    assert m.item() == a.max().item()


def test_trap_7_and_8_a_nest_reads_before_it_writes():
    """x = A[i] is read once, before the store."""

    @T.prim_func
    def main(A: T.Tensor((8,), "int32")):
        with T.Kernel(1, threads=8):
            s = T.alloc_shared((8,), "int32")
            T.copy(A, s)
            for i in T.Parallel(8):
                x = s[i]
                s[i] = 10
                s[i] = s[i] + x
            T.copy(s, A)

    a = torch.arange(8, dtype=torch.int32, device=DEVICE)
    run(main, a)
    assert a.tolist() == list(range(10, 18))


def test_trap_8_fragments_belong_to_the_block_and_locals_to_threads():
    @T.prim_func
    def main(A: T.Tensor((64,), "int32"), O: T.Tensor((3, 64), "int32")):
        with T.Kernel(1, threads=64):
            tx = T.get_thread_binding()
            f = T.alloc_fragment((64,), "int32")
            own = T.alloc_local((2,), "int32")
            v = T.alloc_var("int32")
            total = T.alloc_var("int32")
            T.copy(A, f)
            own[0] = tx
            own[1] = own[0] * 2
            v = tx + 1
            v += own[1]
            total = 0
            for k in T.serial(64):
                total += f[k]  # the logical element, whoever holds it
            O[0, tx] = own[1]
            O[1, tx] = v
            O[2, tx] = total

    a = torch.arange(64, dtype=torch.int32, device=DEVICE)
    o = torch.empty(3, 64, dtype=torch.int32, device=DEVICE)
    run(main, a, o)
    assert torch.equal(o, torch.stack([2 * a, 3 * a + 1, torch.full_like(a, 2016)]))


@pytest.mark.parametrize("stages", [None, 0, 1, 3])
def test_trap_9_pipelined_loops_are_sequential(stages):
    @T.prim_func
    def main(A: T.Tensor((6, 16), "float32"), B: T.Tensor((2, 16), "float32")):
        with T.Kernel(1, threads=32):
            s = T.alloc_shared((16,), "float32")
            f = T.alloc_fragment((16,), "float32")
            T.clear(f)
            for k in T.Pipelined(6, num_stages=stages):
                T.copy(A[k, 0], s)
                for i in T.Parallel(16):
                    f[i] = f[i] * 2 + s[i]
            T.copy(f, B[0, 0])
            T.copy(s, B[1, 0])  # what the last round left

    a, b = torch.randn(6, 16, device=DEVICE), torch.empty(2, 16, device=DEVICE)
    run(main, a, b)
    want = torch.zeros(16, device=DEVICE)
    for row in a:
        want = want * 2 + row
    assert torch.equal(b, torch.stack([want, a[5]]))


def make_dq_layout(dQ):
    """The order in which groups of threads add 8 x 8 tiles."""
    return T.Layout(dQ.shape, lambda b, l, h, d: [b, l // 8, h, d // 8, d % 2, 4 * (l % 8) + (d % 8) // 2])


@pytest.mark.parametrize("kind", ["function", "helper"])
def test_trap_10_the_backward_pass_and_what_follows_agree_on_a_layout(kind):
    from tilelang.layout import make_swizzled_layout

    layout = make_dq_layout if kind == "function" else make_swizzled_layout
    shape = (1, 16, 2, 16) if kind == "function" else (16, 64)

    @tilelang.jit(out_idx=[1])
    def add():
        @T.prim_func
        def main(Q: T.Tensor(shape, "float32"), dQ: T.Tensor(shape, "float32")):
            with T.Kernel(shape[1] // 8 if kind == "function" else 2, threads=32) as b:
                T.annotate_layout({dQ: layout(dQ)})
                for i, j in T.Parallel(8, shape[-1]):
                    if kind == "function":
                        dQ[0, b * 8 + i, 0, j] = Q[0, b * 8 + i, 0, j]
                        dQ[0, b * 8 + i, 1, j] = Q[0, b * 8 + i, 1, j]
                    else:
                        dQ[b * 8 + i, j] = Q[b * 8 + i, j]

        return main

    @tilelang.jit(out_idx=[1])
    def post():
        @T.prim_func
        def main(dQ: T.Tensor(shape, "float32"), O: T.Tensor(shape, "float16")):
            with T.Kernel(1, threads=32):
                T.annotate_layout({dQ: layout(dQ)})
                T.copy(dQ, O)

        return main

    q = torch.randn(*shape, device=DEVICE)
    dq = add()(q)
    assert torch.equal(post()(dq), q.half())
    assert not torch.equal(dq, q) and torch.equal(dq.flatten().sort().values, q.flatten().sort().values)
    if kind == "helper":  # 128 bytes of a row: 8 pieces of 4 elements; piece c of row r lies at c xor r
        assert torch.equal(dq.flatten()[8 * 32 * 0 + 3 * 32 :][:4], q[3, 12:16])


@pytest.mark.parametrize("scope", ["global", "shared"])
def test_trap_11_tickets(scope):
    @T.prim_func
    def main(A: T.Tensor((128,), "int32"), C: T.Tensor((1,), "int32")):
        with T.Kernel(2 if scope == "global" else 1, threads=64) as bx:
            tx = T.get_thread_binding()
            s = T.alloc_shared((1,), "int32")
            if tx == 0:
                s[0] = 0
            T.sync_threads()
            counter = C if scope == "global" else s
            mine = T.atomic_add(counter[0], 1, return_prev=True)
            A[mine] = bx * 64 + tx

    a, c = torch.full((128,), -1, dtype=torch.int32, device=DEVICE), torch.zeros(1, dtype=torch.int32, device=DEVICE)
    run(main, a, c)
    n = 128 if scope == "global" else 64
    assert sorted(a[:n].tolist()) == list(range(n)) and c.item() == (n if scope == "global" else 0)


def test_trap_11_and_12_blocks_wait_for_blocks():
    """The last block to arrive adds up what the others left: atomic_store, atomic_load and a spin."""

    @T.prim_func
    def main(A: T.Tensor((4, 32), "float32"), flags: T.Tensor((4,), "int32"), O: T.Tensor((1,), "float32")):
        with T.Kernel(4, threads=32) as bx:
            tx = T.get_thread_binding()
            part = T.alloc_global((4,), "float32")
            f, m = T.alloc_fragment((32,), "float32"), T.alloc_fragment((1,), "float32")
            T.copy(A[bx, 0], f)
            T.reduce_sum(f, m, dim=0)
            if tx == 0:
                part[bx] = m[0]
                T.atomic_store(flags[bx], 1, memory_order="release")
            if bx == 0 and tx == 0:
                total = T.alloc_var("float32")
                total = 0.0
                for other in T.serial(4):
                    while T.atomic_load(flags[other], memory_order="acquire") == 0:
                        pass
                    total += part[other]
                O[0] = total

    a = torch.randn(4, 32, device=DEVICE)
    flags, o = torch.zeros(4, dtype=torch.int32, device=DEVICE), torch.empty(1, device=DEVICE)
    run(main, a, flags, o)
    torch.testing.assert_close(o[0], a.sum(), rtol=1e-5, atol=1e-5)


def test_trap_12_a_barrier_of_the_grid():
    @T.prim_func
    def main(A: T.Tensor((8, 16), "int32"), O: T.Tensor((8, 16), "int32")):
        with T.Kernel(8, threads=16) as bx:
            tx = T.get_thread_binding()
            sums = T.alloc_global((8,), "int32")
            if tx == 0:
                sums[bx] = 0
                for j in T.serial(16):
                    sums[bx] += A[bx, j]
            T.sync_grid()
            O[bx, tx] = A[bx, tx] + sums[(bx + 1) % 8] * 100

    a = torch.randint(0, 9, (8, 16), dtype=torch.int32, device=DEVICE)
    o = torch.empty_like(a)
    run(main, a, o)
    assert torch.equal(o, a + 100 * a.sum(1).roll(-1).int()[:, None])


def test_trap_12_threads_that_have_ended():
    @T.prim_func
    def main(A: T.Tensor((40,), "int32"), O: T.Tensor((40,), "int32"), n: T.int32):
        with T.Kernel(1, threads=64):
            tx = T.get_thread_binding()
            if tx >= n:
                T.thread_return()
            s = T.alloc_shared((40,), "int32")
            s[tx] = A[tx]
            T.sync_threads()
            O[tx] = s[n - 1 - tx]

    a = torch.arange(40, dtype=torch.int32, device=DEVICE)
    o = torch.full_like(a, -1)
    run(main, a, o, 33)
    assert o.tolist() == [*range(32, -1, -1), *[-1] * 7]


def test_trap_13_conversions_to_eight_bits():
    values = [500.0, 464.0, 448.0, 465.0, -1e9, float("inf"), float("nan"), 61440.0, 0.3]

    @tilelang.jit(out_idx=[1, 2, 3, 4])
    def casts(n):
        @T.prim_func
        def main(
            A: T.Tensor((n,), "float32"),
            E4: T.Tensor((n,), "float8_e4m3fn"),
            E5: T.Tensor((n,), T.float8_e5m2),
            N4: T.Tensor((n,), T.float8_e4m3),
            N5: T.Tensor((n,), "float8_e5m2"),
        ):
            with T.Kernel(1, threads=32):
                for i in T.Parallel(n):
                    E4[i] = A[i]
                    E5[i] = T.cast(A[i], "float8_e5m2")
                    N4[i] = T.cast(A[i], "float8_e4m3", sat=False)
                    N5[i] = T.cast(A[i], T.float8_e5m2, sat=False)

        return main

    found = [x.float() for x in casts(len(values))(torch.tensor(values, device=DEVICE))]
    nan, inf = float("nan"), float("inf")
    want = torch.tensor(
        [
            [448, 448, 448, 448, -448, 448, nan, 448, 0.3125],
            [512, 448, 448, 448, -57344, 57344, nan, 57344, 0.3125],
            [nan, 448, 448, nan, nan, nan, nan, nan, 0.3125],
            [512, 448, 448, 448, -inf, inf, nan, inf, 0.3125],
        ]
    )
    torch.testing.assert_close(torch.stack(found).cpu(), want, rtol=0, atol=0, equal_nan=True)


def test_trap_15_the_low_nibble_comes_first():
    @tilelang.jit(out_idx=[1, 2])
    def unpack(n):
        @T.prim_func
        def main(A: T.Tensor((n,), "float4_e2m1fn"), B: T.Tensor((n,), "float32"), C: T.Tensor((n,), "float4_e2m1fn")):
            with T.Kernel(1, threads=32):
                for i in T.Parallel(n):
                    B[i] = T.cast(A[i], "float32")
                times4 = T.alloc_fragment((n,), "float32")
                for i in T.Parallel(n):
                    times4[i] = B[i] * 4.0
                T.copy(times4, C)  # two to a byte

        return main

    packed = torch.tensor([0x10, 0x32, 0x54, 0x76, -0x70, 0x2A - 256 + 128], dtype=torch.int8, device=DEVICE)
    found, times4 = unpack(12)(packed)
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    codes = torch.stack([packed & 15, packed >> 4 & 15], 1).flatten().long().cpu()
    want = torch.where(codes > 7, -table[codes & 7], table[codes & 7])
    assert torch.equal(found.cpu(), want)
    again = times4.view(torch.uint8).cpu()
    assert again[0] == 0x40 and again[1] == 0x76 and again[2] == 0x77  # 0, 2; 4, 6; saturated


def test_trap_16_narrow_integers():
    """uint16 << 20 keeps its high bits until it is stored; int8 * int8 is computed in int; wrapping at stores."""

    @T.prim_func
    def main(
        A: T.Tensor((4,), "uint16"), B: T.Tensor((4,), "int8"), O: T.Tensor((4, 4), "uint32"), P: T.Tensor((4,), "int8")
    ):
        with T.Kernel(1, threads=32):
            for i in T.Parallel(4):
                O[0, i] = (A[i] << 20) >> 24
                O[1, i] = T.cast(B[i] * B[i], "uint32")
                O[2, i] = T.cast(A[i], "uint32") << 20 | 1 << 31
                P[i] = B[i] * 3
                O[3, i] = T.cast(-B[i] // 3, "uint32")

    a = torch.tensor([0xFFF, 0x123, 1, 0xFFFF], dtype=torch.uint16, device=DEVICE)
    b = torch.tensor([-128, 100, 7, -1], dtype=torch.int8, device=DEVICE)
    o, p = torch.empty(4, 4, dtype=torch.uint32, device=DEVICE), torch.empty_like(b)
    run(main, a, b, o, p)
    wide, small = a.long() << 20 & 0xFFFFFFFF, b.long()
    assert o[0].tolist() == ((wide ^ 2**31) - 2**31 >> 24 & 0xFFFFFFFF).tolist()  # int, as C promotes
    assert o[1].tolist() == (small * small).tolist() and o[2].tolist() == (wide | 1 << 31).tolist()
    assert torch.equal(p, (small * 3).to(torch.int8))
    assert o[3].tolist() == (-small // 3 & 0xFFFFFFFF).tolist()


def test_trap_16_quotients_and_shifts():
    @T.prim_func
    def main(A: T.Tensor((6,), "int32"), O: T.Tensor((6, 6), "int32")):
        with T.Kernel(1, threads=32):
            for i in T.Parallel(6):
                O[0, i] = A[i] // 4
                O[1, i] = A[i] % 4
                O[2, i] = T.truncdiv(A[i], 4)
                O[3, i] = T.truncmod(A[i], 4)
                O[4, i] = A[i] >> 1
                O[5, i] = T.popcount(A[i])

    a = ints(-7, -1, 0, 5, 2**31 - 1, -(2**31))
    o = torch.empty(6, 6, dtype=torch.int32, device=DEVICE)
    run(main, a, o)
    quotient = torch.div(a, 4, rounding_mode="trunc")
    ones = torch.tensor([bin(x & 0xFFFFFFFF).count("1") for x in a.tolist()], dtype=torch.int32, device=DEVICE)
    assert torch.equal(o, torch.stack([a // 4, a % 4, quotient, a - 4 * quotient, a >> 1, ones]))


def test_trap_17_division_and_nan():
    @T.prim_func
    def main(A: T.Tensor((5,), "float32"), O: T.Tensor((5, 5), "float32"), R: T.Tensor((4,), "float32")):
        with T.Kernel(1, threads=32):
            f, r = T.alloc_fragment((5,), "float32"), T.alloc_fragment((1,), "float32")
            for i in T.Parallel(5):
                O[0, i] = 448.0 / A[i]
                O[1, i] = A[i] / 448.0
                O[2, i] = T.max(A[i], 0.5)
                O[3, i] = T.min(A[i], 0.5)
                O[4, i] = T.sigmoid(A[i])
            T.copy(A, f)
            T.reduce_max(f, r, dim=0)
            R[0] = r[0]
            T.reduce_min(f, r, dim=0)
            R[1] = r[0]
            T.reduce_absmax(f, r, dim=0)
            R[2] = r[0]
            T.reduce_max(f, r, dim=0, nan_propagate=True)
            R[3] = r[0]

    a = torch.tensor([3.0, -7.0, float("nan"), 1.1, 0.7], device=DEVICE)
    o, r = torch.empty(5, 5, device=DEVICE), torch.empty(4, device=DEVICE)
    run(main, a, o, r)
    same = {"rtol": 0, "atol": 0, "equal_nan": True}
    torch.testing.assert_close(o[0], torch.full_like(a, 448.0) / a, **same)
    torch.testing.assert_close(o[1], a / torch.full_like(a, 448.0), **same)
    assert o[2].tolist() == pytest.approx([3, 0.5, 0.5, 1.1, 0.7]) and o[3].tolist()[:4] == [0.5, -7, 0.5, 0.5]
    torch.testing.assert_close(o[4], a.sigmoid(), rtol=1e-6, atol=0, equal_nan=True)
    assert r[:3].tolist() == [3, -7, 7] and r[3].isnan()


def test_trap_18_rows_that_are_masked_whole():
    @T.prim_func
    def main(A: T.Tensor((2, 8), "float16"), K: T.Tensor((2,), "int32"), O: T.Tensor((2, 8), "float32")):
        with T.Kernel(2, threads=32) as b:
            s, m = T.alloc_fragment((8,), "float32"), T.alloc_fragment((1,), "float32")
            for j in T.Parallel(8):
                s[j] = T.if_then_else(j < K[b], A[b, j], -T.infinity("float16"))
            T.fill(m, -T.infinity("float32"))
            T.reduce_max(s, m, dim=0, clear=False)
            for j in T.Parallel(8):
                O[b, j] = T.exp2(s[j] - T.max(m[0], -(2**30)))

    a = torch.randn(2, 8, device=DEVICE).half()
    o = torch.empty(2, 8, device=DEVICE)
    run(main, a, ints(0, 5), o)
    want = torch.exp2(a[1].float() - a[1, :5].float().max())
    want[5:] = 0
    assert torch.equal(o[0], torch.zeros(8)) and torch.allclose(o[1], want, rtol=1e-6)


def test_trap_19_conditions_guard_what_they_stand_before():
    @T.prim_func
    def main(I: T.Tensor((6,), "int32"), A: T.Tensor((4,), "int32"), O: T.Tensor((2, 6), "int32")):
        with T.Kernel(1, threads=32):
            s = T.alloc_shared((4,), "int32")
            T.copy(A, s)
            for i in T.Parallel(6):
                O[0, i] = T.if_then_else(I[i] < 4, s[I[i]], -1)
                if I[i] < 4 and s[I[i]] > 10:
                    O[1, i] = 1
                else:
                    O[1, i] = 0

    o = torch.empty(2, 6, dtype=torch.int32, device=DEVICE)
    run(main, ints(0, 1, 2, 3, 4, 1000000), ints(5, 15, 25, 3), o)
    assert o.tolist() == [[5, 15, 25, 3, -1, -1], [0, 1, 1, 0, 0, 0]]


def test_trap_21_what_threads_and_orders_of_blocks_change():
    @tilelang.jit(out_idx=[0])
    def tiles(m, n, threads, workers):
        @T.prim_func
        def main(O: T.Tensor((m, n), "int32")):
            with T.Kernel(workers, threads=threads) as b:
                for i, j in T.Persistent([m, n], workers, b):
                    if T.get_thread_binding() == 0:
                        O[i, j] = i * 100 + j

        return main

    for m, n, workers in ((5, 7, 3), (9, 4, 8)):
        want = torch.arange(m)[:, None] * 100 + torch.arange(n)
        assert torch.equal(torch.as_tensor(tiles(m, n, 64, workers)()).cpu(), want.int())

    @tilelang.jit(out_idx=[0])
    def numbers(threads, blocks):
        @T.prim_func
        def main(O: T.Tensor((blocks, threads), "uint32")):
            with T.Kernel(blocks, threads=threads) as b:
                T.rng_init(2024)
                O[b, T.get_thread_binding()] = T.rng_rand()

        return main

    few, many = (torch.as_tensor(numbers(*how)()).flatten() for how in ((32, 4), (128, 1)))
    assert torch.equal(few, many) and len(set(few.tolist())) > 120  # the sequence is the thread's number in the grid


def test_trap_22_the_contract_with_the_host():
    @tilelang.jit(out_idx=[1, 2])
    def twice(n, dtype="float32"):
        @T.prim_func
        def main(A: T.Tensor((n, 4), dtype), B: T.Tensor((n, 4), dtype), C: T.Tensor((n, 4), dtype)):
            with T.Kernel(n, threads=32) as b:
                for j in T.Parallel(4):
                    B[b, j] = A[b, j] * 2
                    C[b, j] = A[b, j] * 3

        return main

    a = torch.randn(3, 4, device=DEVICE)
    found = twice(3)(a)
    assert isinstance(found, list) and torch.equal(found[0], a * 2) and torch.equal(found[1], a * 3)
    for wrong in (torch.randn(4, 3, device=DEVICE).T, torch.randn(3, 5, device=DEVICE), a.half(), torch.randn(3)):
        with pytest.raises(Exception, match="A"):
            twice(3)(wrong)
    with pytest.raises(ValueError, match="expected 1"):
        twice(3)(a, a)

    m = T.dynamic("m")

    @tilelang.jit
    def rows():
        @T.prim_func
        def main(A: T.Tensor((m, 4), "int8"), B: T.Tensor((m, 4), "int8")):
            with T.Kernel(m, threads=32) as b:
                for j in T.Parallel(4):
                    B[b, j] = -A[b, j]

        return main

    for n in (5, 0):
        x = torch.randint(-9, 9, (n, 4), dtype=torch.int8, device=DEVICE)
        y = torch.empty_like(x)
        rows()(x, y)
        assert torch.equal(y, -x)
