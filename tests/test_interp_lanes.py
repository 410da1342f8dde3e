"""T.Parallel: masked lockstep over lane axes must mean what iterations one after the other mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ir_builder import (
    add,
    buf,
    const,
    copy,
    fill,
    function,
    gemm,
    load,
    loop,
    mul,
    op,
    parallel,
    reduce,
    region,
    store,
    var,
)

from tiledsl import ir
from tiledsl.dtypes import as_dtype
from tiledsl.errors import InternalError, TileIndexError, TileRuntimeError
from tiledsl.interp import Options, run
from tiledsl.passes.expand_threads import ExpandThreads

RNG = np.random.default_rng(11)
F32, I32, BOOL = as_dtype("float32"), as_dtype("int32"), as_dtype("bool")
i, j, k = var("i"), var("j"), var("k")
X, Y, N = buf("X", (9, 7)), buf("Y", (9, 7)), buf("N", (9, 7), "int32")


def f32(v: float) -> ir.Const:
    return const(v, "float32")


def fadd(a: Any, b: Any) -> ir.Expr:
    return ir.Binary("add", a, b)


def serial(s: ir.Parallel) -> ir.Stmt:
    body = s.body
    for v, n in reversed(list(zip(s.vars, s.extents, strict=True))):
        body = (ir.For(v, const(0, "int32"), n, const(1, "int32"), body),)
    return body[0]


def both_ways(
    *body: ir.Stmt, extents: tuple[int, int] = (9, 7), before: tuple[ir.Stmt, ...] = ()
) -> np.ndarray[Any, Any]:
    """Runs the nest in lockstep and one iteration after the other; returns Y (equal in both)."""
    x = RNG.standard_normal((9, 7)).astype(np.float32)
    n = RNG.integers(-3, 12, (9, 7)).astype(np.int32)
    nest = parallel((i, j), extents, *body)
    out = []
    for s in (nest, serial(nest)):
        y, m = np.zeros((9, 7), np.float32), n.copy()
        run(function([X, Y, N], [*before, s]), [x, y, m])
        out.append((y, m))
    np.testing.assert_array_equal(out[0][0], out[1][0])
    np.testing.assert_array_equal(out[0][1], out[1][1])
    return out[0][0]


n_ij = load(N, i, j)
x_ij = load(X, i, j)
positive = op("gt", n_ij, 0)


def test_boxes_gathers_and_offsets() -> None:
    t = var("t", "float32")
    both_ways(ir.Let(t, x_ij), store(Y, (i, j), fadd(t, t)))
    both_ways(store(Y, (i, j), load(X, op("sub", 8, i), j)))
    both_ways(store(Y, (op("floormod", add(mul(i, 2), 1), 9), j), x_ij))
    both_ways(store(Y, (i, j), load(X, 3, j)))
    both_ways(store(Y, (i, j), load(X, i, 2)))
    both_ways(store(Y, (add(i, 2), add(-3, j)), load(X, add(i, -1), op("sub", j, 1))))
    both_ways(store(Y, (i, j), load(X, n_ij, add(j, n_ij))))
    both_ways(store(Y, (i, j), load(X, op("sub", i, 1), op("sub", j, -100))))
    both_ways(store(Y, (j, i), load(X, j, i)), extents=(7, 9))


def test_values_are_captured_before_later_stores() -> None:
    t, u = var("t", "float32"), var("u", "bool")
    B = buf("B", (9, 7), "bool", "shared")
    both_ways(ir.Let(t, load(Y, i, j)), store(Y, (i, j), x_ij), store(Y, (i, j), fadd(load(Y, i, j), t)))
    both_ways(
        store(B, (i, j), positive),
        ir.If(
            load(B, i, j),
            (store(B, (i, j), const(False, "bool")), store(Y, (i, j), x_ij)),
            (store(Y, (i, j), f32(2.0)),),
        ),
        ir.Let(u, load(B, i, j)),
        store(B, (i, j), const(True, "bool")),
        ir.If(u, (store(Y, (i, j), f32(5.0)),)),
        before=(ir.Alloc(B),),
    )


def test_branches_and_lazy_operators() -> None:
    both_ways(ir.If(positive, (store(Y, (i, j), x_ij),), (store(Y, (i, j), f32(-1.0)), store(N, (i, j), i))))
    both_ways(ir.If(op("gt", i, 20), (store(Y, (i, j), x_ij),), (store(Y, (i, j), f32(-1.0)),)))
    S = buf("S", (9,), "float32", "shared")
    inside = ir.Binary("and", op("ge", n_ij, 0), op("lt", n_ij, 9))
    guarded = ir.IfThenElse(inside, load(S, n_ij), f32(-7.0))
    setup = (ir.Alloc(S), loop(k, 9, store(S, (k,), ir.Cast(k, F32))))
    both_ways(store(Y, (i, j), guarded), before=setup)
    lazy_and = ir.Binary("and", inside, ir.Binary("gt", load(S, n_ij), f32(2.0)))
    outside = ir.Binary("or", op("lt", n_ij, 0), op("ge", n_ij, 9))
    lazy_or = ir.Binary("or", outside, ir.Binary("gt", load(S, n_ij), f32(2.0)))
    both_ways(ir.If(lazy_and, (store(Y, (i, j), f32(1.0)),)), before=setup)
    both_ways(ir.If(lazy_or, (store(Y, (i, j), f32(1.0)),), (store(Y, (i, j), x_ij),)), before=setup)
    both_ways(store(Y, (i, j), ir.Select(positive, x_ij, f32(0.5))))
    both_ways(store(Y, (i, j), ir.Cast(ir.IfThenElse(positive, const(3, "int32"), i), F32)))
    both_ways(store(Y, (i, j), ir.IfThenElse(op("gt", load(N, 0, 0), 0), x_ij, f32(0.5))))
    both_ways(store(Y, (i, j), ir.Select(op("gt", load(N, 0, 0), 0), f32(0.5), x_ij)))
    with pytest.raises(TileIndexError, match=r"S\[-?\d+\] is out of range"):
        both_ways(store(Y, (i, j), load(S, n_ij)), before=setup)


def test_loops_with_lane_dependent_bounds_breaks_and_continues() -> None:
    bump = store(Y, (i, j), fadd(load(Y, i, j), f32(1.0)))
    both_ways(loop(k, n_ij, bump))
    both_ways(loop(k, n_ij, store(Y, (i, j), fadd(load(Y, i, j), ir.Cast(k, F32))), start=j, step=2))
    both_ways(ir.For(k, n_ij, const(-2, "int32"), const(-1, "int32"), (bump,)))
    both_ways(loop(k, 6, ir.If(op("gt", add(k, n_ij), 7), (ir.Break(),)), bump))
    both_ways(loop(k, 6, ir.If(op("eq", op("floormod", add(k, j), 3), 1), (ir.Continue(),), (bump,)), bump))
    both_ways(loop(k, 6, ir.If(positive, (ir.If(op("gt", k, j), (ir.Break(),), (ir.Continue(),)),)), bump))
    down = store(N, (i, j), op("sub", n_ij, 2))
    both_ways(ir.While(positive, (down, bump)))
    both_ways(ir.While(positive, (down, ir.If(op("eq", n_ij, 3), (ir.Break(),)), bump)), bump)
    m = var("m")
    both_ways(
        loop(k, 4, loop(m, n_ij, ir.If(op("gt", m, k), (ir.Break(),)), bump), ir.If(op("eq", k, i), (ir.Break(),)))
    )


def test_private_storage_of_an_iteration() -> None:
    v, a = buf("v", (1,), "float32", "var"), buf("a", (4,), "float32", "local")
    both_ways(
        ir.Alloc(v, x_ij), ir.Alloc(a), loop(k, 4, store(a, (k,), fadd(load(v, 0), ir.Cast(k, F32)))),
        store(v, (0,), load(a, op("floormod", add(i, j), 4))), ir.If(positive, (store(v, (0,), f32(9.0)),)),
        store(Y, (i, j), fadd(load(v, 0), load(a, 3))),
    )  # fmt: skip
    with pytest.raises(TileIndexError, match=r"a\[4\].*") as e:
        both_ways(ir.Alloc(a), store(a, (add(op("floormod", i, 4), op("floordiv", j, 6)),), f32(1.0)))
    assert "i = 3, j = 6" in str(e.value)


def test_per_thread_storage_from_outside_belongs_to_each_lane() -> None:
    v = buf("v", (1,), "float32", "var")
    y = np.zeros((9, 7), np.float32)
    x = RNG.standard_normal((9, 7)).astype(np.float32)
    Z = buf("Z", (1,))
    z = np.zeros(1, np.float32)
    body = [
        ir.Alloc(v, f32(10.0)),
        parallel(
            (i, j), (9, 7),
            ir.If(ir.Binary("gt", x_ij, f32(0.0)), (store(v, (0,), fadd(load(v, 0), x_ij)),)),
            store(Y, (i, j), load(v, 0)),
        ),
        store(Z, (0,), load(v, 0)),
    ]  # fmt: skip
    run(function([X, Y, Z], body), [x, y, z])
    want = np.where(x > 0, np.float32(10) + x, np.float32(10))
    np.testing.assert_array_equal(y, want)
    assert z[0] == want[-1, -1]


def test_views_of_private_storage() -> None:
    a = buf("a", (4,), "float32", "local")
    bits = buf("bits", (4,), "int32", "local", alias_of=a)
    both_ways(
        ir.Alloc(a), loop(k, 4, store(a, (k,), fadd(x_ij, ir.Cast(k, F32)))),
        store(N, (i, j), load(bits, 2)), store(bits, (1,), i), store(Y, (i, j), load(a, 1)),
    )  # fmt: skip
    y, n, x = np.zeros((9, 7), np.float32), np.zeros((9, 7), np.int32), RNG.standard_normal((9, 7)).astype(np.float32)
    body = parallel((i, j), (9, 7), store(a, (0,), x_ij), store(N, (i, j), load(bits, 0)))
    run(function([X, Y, N], [ir.Alloc(a), body]), [x, y, n])
    np.testing.assert_array_equal(n, x.view(np.int32))


def test_of_lanes_that_write_one_element_the_last_stays() -> None:
    both_ways(store(Y, (i, 0), ir.Cast(j, F32)))
    both_ways(ir.If(positive, (store(Y, (0, j), x_ij),)))
    both_ways(store(Y, (op("floordiv", i, 2), op("floordiv", j, 3)), x_ij))


def test_thread_indices_inside_a_nest() -> None:
    tx, ty = var("tx"), var("ty")
    T = buf("T", (9, 7), "int32")
    kernel_body = parallel((i, j), (9, 7), store(T, (i, j), add(mul(ty, 100), tx)))
    f = function([T], [kernel_body], thread_vars=(tx,), threads=8)
    kernel = f.kernels[0].replace(threads=(const(4, "int32"), const(5, "int32")), thread_vars=(tx, ty))
    t = np.zeros((9, 7), np.int32)
    whole = f.replace(kernels=(kernel,))
    run(ExpandThreads()(whole), [t])
    flat = np.arange(63)
    np.testing.assert_array_equal(t.ravel(), flat % 4 + 100 * (flat // 4 % 5))
    with pytest.raises(InternalError, match="has not been written out"):
        run(whole, [t])


@pytest.mark.parametrize("name", ["add", "max", "min", "xor", "exchange"])
@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_atomics(name: str, dtype: str) -> None:
    if name == "xor" and dtype == "float32":
        return
    t = as_dtype(dtype)
    C, R, V, D = buf("C", (5,), dtype), buf("R", (40,), dtype), buf("V", (40,), dtype), buf("D", (40,), "int32")
    old = var("old", dtype)
    value = RNG.integers(-50, 50, 40).astype(t.numpy) * t.numpy.type(3)
    where = RNG.integers(-1, 7, 40).astype(np.int32)
    start = np.arange(5).astype(t.numpy)
    atomic = ir.Atomic(name, C, (load(D, i),), load(V, i), old)
    out = []
    for in_lanes in (True, False):
        nest = parallel((i,), (40,), ir.If(op("lt", i, 35), (atomic, store(R, (i,), old))))
        c, r = start.copy(), np.zeros(40, t.numpy)
        run(function([C, R, V, D], [nest if in_lanes else serial(nest)]), [c, r, value, where])
        plain = start.copy()
        without = parallel((i,), (40,), ir.If(op("lt", i, 35), (atomic.replace(result=None),)))
        run(function([C, R, V, D], [without]), [plain, r.copy(), value, where])
        np.testing.assert_array_equal(plain, c)
        out.append((c, r))
    np.testing.assert_array_equal(out[0][0], out[1][0])
    np.testing.assert_array_equal(out[0][1], out[1][1])


def test_half_atomics_round_at_every_step() -> None:
    for dtype in ("float16", "bfloat16"):
        t = as_dtype(dtype)
        C, V = buf("C", (1,), dtype), buf("V", (200,), dtype)
        value = RNG.standard_normal(200).astype(t.numpy)
        c = np.zeros(1, t.numpy)
        run(
            function([C, V], [parallel((i,), (200,), ir.Atomic("add", C, (const(0, "int32"),), load(V, i)))]),
            [c, value],
        )
        want = t.numpy.type(0)
        for v in value:
            want = t.numpy.type(np.float32(want) + np.float32(v))
        assert c[0] == want


def test_print_and_assert(capsys: pytest.CaptureFixture[str]) -> None:
    A = buf("A", (3,), "int32")
    body = [
        ir.Debug("print", (A,), "A:"),
        parallel((i,), (3,), ir.If(op("gt", i, 0), (ir.Debug("print", (load(A, i),), "lane"),))),
        ir.Debug("assert", (op("eq", load(A, 0), 5),), "first is five"),
        parallel((i,), (3,), ir.Debug("assert", (op("lt", load(A, i), 7),), "small")),
    ]
    with pytest.raises(TileRuntimeError, match="small") as e:
        run(function([A], body), [np.array([5, 6, 7], np.int32)])
    assert "i = 2" in str(e.value)
    assert capsys.readouterr().out == "A: [5 6 7]\nlane 6\nlane 7\n"
    with pytest.raises(TileRuntimeError, match="first is five"):
        run(function([A], body[2:3]), [np.array([4, 6, 7], np.int32)])


def kernel_of_tiles(bm: int, bn: int, bk: int) -> ir.Function:
    """A bit of everything that works on tiles; the serial trip counts do not depend on the tile sizes."""
    A, B, C = buf("A", (4 * bm, 3 * bk)), buf("B", (3 * bk, 2 * bn)), buf("C", (4 * bm, 2 * bn))
    A_s, B_s = buf("A_s", (bm, bk), scope="shared"), buf("B_s", (bk, bn), scope="shared")
    acc, top = buf("acc", (bm, bn), scope="fragment"), buf("top", (bm,), scope="fragment")
    bx, by = var("bx"), var("by")
    e = ir.Call("exp2", (ir.Binary("sub", load(acc, i, j), load(top, i)),), F32)
    body = [
        ir.Alloc(A_s), ir.Alloc(B_s), ir.Alloc(acc), ir.Alloc(top), fill(acc, 0.0),
        loop(
            k, 3,
            copy(region(A, (mul(by, bm), mul(k, bk)), (bm, bk)), region(A_s)),
            copy(region(B, (mul(k, bk), mul(bx, bn)), (bk, bn)), region(B_s)),
            gemm(A_s, B_s, acc),
        ),
        reduce("max", acc, top, 1),
        parallel((i, j), (bm, bn), ir.If(op("le", j, i), (store(acc, (i, j), e),), (store(acc, (i, j), f32(0.0)),))),
        ir.Scan("sum", region(acc), region(acc), 1),
        copy(region(acc), region(C, (mul(by, bm), mul(bx, bn)), (bm, bn))),
    ]  # fmt: skip
    return function([A, B, C], body, (2, 4), (bx, by))


def test_steps_do_not_depend_on_tile_extents() -> None:
    steps = []
    for m, n, q in ((16, 16, 8), (32, 16, 8), (16, 32, 8), (16, 16, 16), (128, 64, 32)):
        f = kernel_of_tiles(m, n, q)
        args = [np.ones(b.const_shape or (), np.float32) for b in f.buffers]
        result = run(f, args, Options(count_steps=True))
        assert result.steps is not None and result.blocks == 8
        steps.append(result.steps)
    assert len(set(steps)) == 1 and steps[0] > 8 * 20
    assert run(f, args).steps is None


# -- the loop stage -----------------------------------------------------------------------------------------------


def test_vectors_of_the_loop_stage() -> None:
    P, Q, out = buf("P", (40,)), buf("Q", (40,)), buf("out", (4,))
    n = var("n")
    lane = ir.Ramp(n, 1, 16)
    mask = ir.Binary("lt", lane, ir.Broadcast(const(37, "int32"), 16))
    v = var("v", "float32x16")
    acc = buf("acc", (2,), "float32x16", "var")
    zero = const(0, "int32")
    total = ir.Call("hreduce_add", (load(acc, 0),), F32)
    body = [
        ir.Alloc(acc),
        store(acc, (0,), ir.Broadcast(f32(0.0), 16), proved=True),
        loop(
            n, 40,
            ir.Let(v, load(P, n, lanes=16, mask=mask, proved=True)),
            store(Q, (n,), ir.Binary("mul", v, ir.Broadcast(f32(2.0), 16)), mask=mask, proved=True),
            store(acc, (0,), ir.Binary("add", load(acc, 0), v), proved=True),
            step=16,
        ),
        store(out, (0,), total),
        store(out, (1,), ir.Call("hreduce_max", (load(acc, 0),), F32)),
        store(out, (2,), ir.Cast(ir.Cast(ir.Call("any", (mask_of(load(acc, 0)),), BOOL), I32), F32)),
        store(out, (3,), ir.Call("hreduce_add", (load(P, ir.Ramp(zero, 2, 16)),), F32)),
    ]  # fmt: skip
    p, q, o = RNG.standard_normal(40).astype(np.float32), np.zeros(40, np.float32), np.zeros(4, np.float32)
    run(function([P, Q, out], body, stage="loop"), [p, q, o])
    np.testing.assert_array_equal(q[:37], 2 * p[:37])
    assert not q[37:].any()
    lanes = np.zeros(16, np.float32)
    for start in (0, 16, 32):
        part = np.zeros(16, np.float32)
        part[: max(0, min(16, 37 - start))] = p[start : min(37, start + 16)]
        lanes = lanes + part
    by_tree = lanes.copy()
    for half in (8, 4, 2, 1):
        by_tree = by_tree[:half] + by_tree[half : 2 * half]
    assert o[0] == by_tree[0] and o[1] == lanes.max() and o[2] == 1
    tree = p[:32:2].copy()
    for half in (8, 4, 2, 1):
        tree = tree[:half] + tree[half : 2 * half]
    assert o[3] == tree[0]


def mask_of(v: ir.Expr) -> ir.Expr:
    return ir.Binary("gt", v, ir.Broadcast(f32(-1e30), 16))


def test_micro_kernels_and_scratch() -> None:
    A, B, C, D = buf("A", (5, 7)), buf("B", (7, 20)), buf("C", (5, 20)), buf("D", (7, 5))
    packed = ir.Buffer("packed", F32, tuple(const(n, "int32") for n in (2, 7, 16)), "scratch", base=const(64, "int64"))
    p, q, r = var("p"), var("q"), var("r")
    column = add(mul(p, 16), r)
    value = ir.IfThenElse(op("lt", column, 20), load(B, q, column), f32(0.0))
    whole = [const(n, "int64") for n in (5, 20, 7)]
    body = [
        ir.Alloc(packed),
        loop(p, 2, loop(q, 7, loop(r, 16, store(packed, (p, q, r), value)))),
        ir.MicroCall("gemm", (region(C),), (region(A), region(packed)), tuple(whole), (("NR", 16),)),
        ir.MicroCall("transpose", (region(D),), (region(A),), (const(5, "int64"), const(7, "int64"))),
    ]
    a, b, c, d = (RNG.standard_normal(s).astype(np.float32) for s in ((5, 7), (7, 20), (5, 20), (7, 5)))
    before = c.copy()
    f = function([A, B, C, D], body, stage="loop", attrs=(("scratch_bytes", 64 + 4 * 2 * 7 * 16),))
    run(f, [a, b, c, d], Options(exact=True))
    from tiledsl.ir.exact import gemm_chain

    np.testing.assert_array_equal(c, gemm_chain(a, b, before))
    np.testing.assert_array_equal(d, a.T)


def test_arrays_from_outside_of_a_nest_are_each_iterations_own() -> None:
    """No iteration sees what another one wrote; what the last one wrote stays. Every target agrees."""
    import tiledsl
    import tiledsl.language as T
    from tiledsl.testing import assert_targets_agree

    @T.prim_func
    def main(A: T.Tensor((6, 5), "float32"), B: T.Tensor((6, 5), "float32"), C: T.Tensor((2,), "float32")):
        with T.Kernel(1, threads=8):
            v = T.alloc_local((2,), "float32")
            v[0] = 0.0
            v[1] = 7.0
            for i, j in T.Parallel(6, 5):
                v[0] += A[i, j]
                B[i, j] = v[0] * v[1]
            C[0] = v[0]
            C[1] = v[1]

    a = np.arange(30, dtype=np.float32).reshape(6, 5)
    b, c = np.zeros_like(a), np.zeros(2, np.float32)
    kernel = tiledsl.compile(main)
    assert_targets_agree(kernel, a, b, c)
    kernel(a, b, c)
    assert np.array_equal(b, a * 7.0) and c.tolist() == [29.0, 7.0]
