"""Effects and uniformity."""

from __future__ import annotations

from ir_builder import buf, const, copy, fill, function, gemm, i, load, loop, op, parallel, reduce, region, store, var

from tiledsl import ir
from tiledsl.analysis.effects import conflict, effects
from tiledsl.analysis.uniformity import varying
from tiledsl.dtypes import as_dtype

ONE = const(1.0, "float32")
A, B, I = buf("A", (8,)), buf("B", (8,)), buf("I", (8,), "int32")
S, R = buf("S", (8, 8), scope="shared"), buf("R", (8,), scope="fragment")


def test_reads_and_writes_count_on_the_root() -> None:
    view = ir.Buffer("V", as_dtype("int32"), (i(64),), "shared", alias_of=S, offset=i(0))
    e = effects(store(view, (load(I, 0),), load(view, 1)))
    assert e.reads == {S, I} and e.writes == {S} and not e.ordered
    assert conflict(store(view, (0,), i(1)), store(S, (7, 7), ONE))
    assert effects(gemm(S, S, R)).reads == {S, R} and effects(gemm(S, S, R)).writes == {R}
    assert effects(reduce("sum", S, R, 1)).writes == {R}
    assert effects(copy(region(A), region(R))).reads == {A}


def test_storage_inside_a_block_is_nobody_elses() -> None:
    t = buf("t", (1,), scope="local")
    body = loop(var("k"), 3, ir.Alloc(t), store(t, (0,), ONE), store(R, (0,), load(t, 0)))
    assert effects(body).writes == {R} and effects(body).reads == frozenset()
    assert effects((body, fill(A, 0.0))).writes == {R, A}


def test_what_may_change_places() -> None:
    a, b = store(R, (0,), load(A, 0)), store(S, (0, 0), load(A, 1))
    assert not conflict(a, b)
    assert conflict(a, store(A, (0,), ONE)) and conflict(store(A, (0,), ONE), a)
    assert not conflict(fill(A, 0.0), fill(B, 0.0))
    assert conflict(fill(A, 0.0), fill(B, 0.0), arguments_alias=True)
    pointer = ir.Buffer("P", as_dtype("float32"), (i(4),), "global", base=const(0, "uint64"))
    assert conflict(fill(A, 0.0), fill(pointer, 0.0)) and not conflict(fill(R, 0.0), fill(pointer, 0.0))


def test_ordered_statements() -> None:
    say, sync = ir.Debug("print", (load(A, 0),)), ir.Sync("block")
    assert conflict(say, sync) and not conflict(say, fill(R, 0.0)) and conflict(say, fill(A, 0.0))
    assert not effects(ir.Debug("assume", (op("lt", i(0), 1),))).ordered
    assert effects(loop(var("k"), 3, ir.If(op("lt", i(0), 1), (ir.Break(),)))).ordered
    ticket = ir.Atomic("add", I, (i(0),), i(1))
    local = ir.Atomic("add", buf("c", (1,), "int32", "shared"), (i(0),), i(1))
    assert effects(ticket).ordered and not effects(local).ordered


def test_values_of_lanes() -> None:
    tx, n, x, y, z = (var(s) for s in ("tx", "n", "x", "y", "z"))
    v, w, u = (buf(s, (1,), "int32", "var") for s in "vwu")
    body = (
        ir.Let(x, op("add", tx, 1)),
        ir.Let(y, load(I, n)),
        ir.Let(z, load(I, x)),
        ir.Alloc(v, i(0)),
        ir.Alloc(w, i(0)),
        ir.Alloc(u, x),
        store(v, (0,), y),
        ir.If(op("lt", z, 3), (store(w, (0,), i(1)),)),
    )
    found = varying(body, [tx])
    assert found.vars == {tx, x, z} and found.buffers == {w, u}
    assert not found.expr(load(v, 0)) and found.expr(op("add", load(w, 0), 1))
    assert not varying(body, []).vars


def test_storage_carries_variation_around_a_loop() -> None:
    tx, k = var("tx"), var("k")
    v, w = buf("v", (1,), "int32", "var"), buf("w", (1,), "int32", "var")
    body = (ir.Alloc(v, i(0)), ir.Alloc(w, i(0)), loop(k, 3, store(v, (0,), load(w, 0)), store(w, (0,), tx)))
    found = varying(body, [tx])
    assert found.buffers == {v, w} and k not in found.vars


def test_divergent_control() -> None:
    tx, k, j = var("tx"), var("k"), var("j")
    v, w, s = (buf(n, (1,), "int32", "var") for n in "vws")
    uneven = loop(j, tx, store(v, (0,), i(1)))
    leaving = loop(k, 3, ir.If(op("lt", tx, k), (ir.Break(),)), store(w, (0,), i(2)))
    shared = store(buf("c", (1,), "int32", "shared"), (0,), i(1))
    found = varying((ir.Alloc(v), ir.Alloc(w), ir.Alloc(s), store(s, (0,), i(1)), uneven, leaving, shared), [tx])
    assert found.buffers == {v, w} and found.vars == {tx, j}


def test_a_uniform_exit_under_a_divergent_condition() -> None:
    tx, k, n = var("tx"), var("k"), var("n")
    v = buf("v", (1,), "int32", "var")
    for outer, inner, found in ((tx, n, True), (n, tx, True), (n, n, False)):
        exit = ir.If(op("lt", outer, 3), (ir.If(op("lt", inner, 2), (ir.Break(),)),))
        body = (ir.Alloc(v), loop(k, 3, exit, store(v, (0,), i(2))))
        assert varying(body, [tx]).buffers == ({v} if found else set())


def test_lanes_of_a_parallel_nest() -> None:
    p, q, t, old = var("p"), var("q"), buf("t", (1,), scope="local"), var("old")
    nest = parallel(
        (p,), (8,), ir.Alloc(t), store(t, (0,), load(A, p)), ir.Atomic("add", I, (i(0),), i(1), old), ir.Let(q, i(3))
    )
    f = function([A, I], [nest])
    found = varying(f.kernels[0].body, [p])
    assert found.vars == {p, old} and found.buffers == {t}
