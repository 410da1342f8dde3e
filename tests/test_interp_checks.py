"""The checked mode: poison, races of lanes and of blocks, bounds, overflow; nothing is reported without a cause."""

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
    load,
    loop,
    matmul,
    mul,
    op,
    parallel,
    reduce,
    region,
    store,
    var,
)

from tiledsl import ir
from tiledsl.errors import Loc, TileIndexError, TileRuntimeError
from tiledsl.interp import Options, checked, run

i, j, k, b = var("i"), var("j"), var("k"), var("b")
HERE = Loc("kernel.py", 12, 5, 9, "f")


def f32(v: float) -> ir.Const:
    return const(v, "float32")


def floats(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def test_a_correct_kernel_is_silent() -> None:
    f = matmul(70, 50, 33, 32, 16, 8)
    x, y, z = floats(70, 33), floats(33, 50), np.empty((70, 50), np.float32)
    exact = np.empty_like(z)
    run(f, [x, y, z], checked())
    run(f, [x, y, exact], Options(exact=True))
    np.testing.assert_array_equal(z, exact)


# -- poison ------------------------------------------------------------------------------------------------------


def poison(f: ir.Function, *args: Any) -> str:
    run(f, args)  # the default does not look
    with pytest.raises(TileRuntimeError) as e:
        run(f, args, Options(poison=True))
    return str(e.value)


def test_poison_names_element_and_allocation() -> None:
    Y, S = buf("Y", (8,)), buf("S", (8,), scope="shared", loc=HERE)
    partly = [ir.Alloc(S), copy(region(S, (0,), (8,)), region(Y))]
    text = poison(function([Y], partly), floats(8))
    assert "S[0] is read before anything has written it" in text and "S was allocated at kernel.py:12" in text
    some = [ir.Alloc(S, loc=HERE), loop(k, 5, store(S, (k,), f32(1.0))), store(Y, (0,), load(S, 3))]
    run(function([Y], some), [floats(8)], Options(poison=True))
    text = poison(function([Y], [*some, loop(k, 8, store(Y, (k,), load(S, k)))]), floats(8))
    assert "S[5] is read" in text and "where b0 = 0, k = 5" in text


def test_poison_in_tile_operations_and_lanes() -> None:
    Y, S, D = buf("Y", (4, 4)), buf("S", (4, 4), scope="shared"), buf("D", (4,), scope="fragment")
    assert "S[0, 0]" in poison(function([Y], [ir.Alloc(S), ir.Alloc(D), reduce("sum", S, D, 1)]), floats(4, 4))
    accumulate = [ir.Alloc(D), reduce("max", Y, D, 1, clear=False)]
    assert "D[0]" in poison(function([Y], accumulate), floats(4, 4))
    run(function([Y], [ir.Alloc(D), reduce("max", Y, D, 1)]), [floats(4, 4)], Options(poison=True))
    lanes = parallel((i, j), (4, 4), ir.If(op("gt", i, 1), (store(Y, (i, j), load(S, i, j)),)))
    text = poison(function([Y], [ir.Alloc(S), fill_rows(S, 3), lanes]), floats(4, 4))
    assert "S[3, 0] is read" in text and "i = 3, j = 0" in text
    run(function([Y], [ir.Alloc(S), fill_rows(S, 4), lanes]), [floats(4, 4)], Options(poison=True))


def fill_rows(S: ir.Buffer, n: int) -> ir.Stmt:
    return ir.Fill(region(S, (0, 0), (n, 4)), f32(0.0))


def test_poison_of_private_storage_and_of_per_thread_storage() -> None:
    Y = buf("Y", (6,))
    a = buf("a", (2,), scope="local")
    inside = parallel((i,), (6,), ir.Alloc(a), store(a, (0,), f32(1.0)), store(Y, (i,), load(a, op("floormod", i, 2))))
    assert "a[1] is read" in poison(function([Y], [inside]), floats(6))
    write = parallel((i,), (6,), ir.If(op("ge", i, 3), (store(a, (0,), f32(1.0)),)), store(Y, (i,), load(a, 0)))
    assert "a[0] is read" in poison(function([Y], [ir.Alloc(a), write]), floats(6))
    later = [ir.Alloc(a), parallel((i,), (6,), store(a, (0,), f32(1.0))), store(Y, (0,), load(a, 0))]
    run(function([Y], later), [floats(6)], Options(poison=True))


def test_outputs_that_the_runtime_allocates_are_poison() -> None:
    X, Y = buf("X", (4,)), buf("Y", (4,))
    f = function([X, Y], [parallel((i,), (4,), store(X, (i,), load(Y, i)))], outputs=(1,))
    assert "Y[0]" in poison(f, floats(4), floats(4))
    run(f.replace(outputs=()), [floats(4), floats(4)], Options(poison=True))


def test_poison_through_views() -> None:
    S, Y = buf("S", (4,), scope="shared"), buf("Y", (8,), "int16")
    halves = buf("halves", (8,), "int16", "shared", alias_of=S)
    body = [ir.Alloc(S), store(S, (1,), f32(1.0)), store(Y, (0,), load(halves, 3))]
    run(function([Y], body), [np.zeros(8, np.int16)], Options(poison=True))
    assert "halves[4]" in poison(function([Y], [*body, store(Y, (0,), load(halves, 4))]), np.zeros(8, np.int16))


# -- races ----------------------------------------------------------------------------------------------------------


def race(*body: ir.Stmt, grid: tuple[int, ...] = (1,), before: tuple[ir.Stmt, ...] = (), dtype: str = "float32") -> str:
    """The message of the race on Y, or "" when there is none."""
    Y, X = buf_y(dtype), X_
    y, x = np.zeros(16, Y.dtype.numpy), floats(16)
    f = function([Y, X], [*before, *body], grid, (b,))
    run(f, [y, x])
    try:
        run(f, [y, x], Options(conflicts="report"))
    except TileRuntimeError as e:
        return str(e)
    return ""


_Y: dict[str, ir.Buffer] = {}
X_ = buf("X", (16,))


def buf_y(dtype: str = "float32") -> ir.Buffer:
    return _Y.setdefault(dtype, buf("Y", (16,), dtype))


Y = buf_y()


def test_lanes_that_write_one_element() -> None:
    text = race(parallel((i, j), (4, 4), store(Y, (j,), ir.Cast(i, Y.dtype))))
    assert "is written by two iterations with different values" in text and "i = 1" in text
    assert race(parallel((i, j), (4, 4), store(Y, (j,), f32(3.0)))) == ""
    assert race(parallel((i, j), (4, 4), store(Y, (j,), load(X_, j)))) == ""
    assert race(parallel((i, j), (4, 4), ir.If(op("eq", i, j), (store(Y, (j,), ir.Cast(i, Y.dtype)),)))) == ""
    two = (store(Y, (i,), f32(1.0)), store(Y, (op("floormod", add(i, 1), 8),), f32(2.0)))
    assert "two iterations" in race(parallel((i,), (8,), *two))
    assert race(parallel((i,), (8,), store(Y, (i,), f32(1.0)), store(Y, (i,), f32(2.0)))) == ""


def test_lanes_that_read_what_another_writes() -> None:
    text = race(parallel((i,), (8,), store(Y, (i,), load(Y, add(i, 1)))))
    assert "is read by one iteration and written by another" in text
    assert race(parallel((i,), (8,), store(Y, (i,), load(Y, i)))) == ""
    assert race(parallel((i,), (8,), store(Y, (i,), load(Y, add(i, 8))))) == ""
    after = (store(Y, (i,), f32(1.0)), store(Y, (add(i, 8),), load(Y, op("sub", 7, i))))
    assert "is read by one iteration" in race(parallel((i,), (8,), *after))
    assert "is read by one iteration" in race(parallel((i,), (8,), store(Y, (i,), load(Y, 3))))
    S = buf("S", (8,), scope="shared")
    shared = parallel((i,), (8,), store(S, (i,), load(S, op("sub", 7, i))))
    assert "S[0] is read by one iteration" in race(shared, before=(ir.Alloc(S), fill(S, 0.0)))
    apart = (
        parallel((i,), (8,), store(S, (i,), f32(1.0))),
        parallel((i,), (8,), store(Y, (i,), load(S, op("sub", 7, i)))),
    )
    assert race(*apart, before=(ir.Alloc(S),)) == ""


def test_private_storage_and_atomics_do_not_race() -> None:
    a = buf("a", (1,), scope="local")
    assert (
        race(parallel((i,), (8,), ir.Alloc(a), store(a, (0,), ir.Cast(i, Y.dtype)), store(Y, (i,), load(a, 0)))) == ""
    )
    assert (
        race(
            parallel((i,), (8,), store(a, (0,), ir.Cast(i, Y.dtype)), store(Y, (i,), load(a, 0))), before=(ir.Alloc(a),)
        )
        == ""
    )
    assert race(parallel((i,), (8,), ir.Atomic("add", Y, (const(0, "int32"),), f32(1.0)))) == ""


def test_blocks_that_race() -> None:
    own = parallel((i,), (4,), store(Y, (add(mul(b, 4), i),), ir.Cast(b, Y.dtype)))
    assert race(own, grid=(4,)) == ""
    shared = parallel((i,), (4,), store(Y, (add(mul(b, 2), i),), ir.Cast(b, Y.dtype)))
    assert "is written by two blocks with different values" in race(shared, grid=(4,))
    same = parallel((i,), (4,), store(Y, (i,), f32(1.0)))
    assert race(same, grid=(4,)) == ""
    neighbour = store(Y, (b,), load(Y, add(b, 1)))
    assert "is read by one block and written by another" in race(neighbour, grid=(4,))
    tile = (ir.Copy(region(Y, (mul(b, 3),), (4,)), region(Y, (mul(b, 4),), (4,)), (const(4, "int32"),), (0,), (0,)),)
    assert "block" in race(*tile, grid=(4,))
    assert race(ir.Atomic("add", Y, (const(0, "int32"),), f32(1.0)), grid=(4,)) == ""


def test_signed_zeros_differ_and_nans_do_not() -> None:
    zero = ir.Select(op("lt", i, 4), f32(0.0), f32(-0.0))
    assert "two iterations" in race(parallel((i,), (8,), store(Y, (0,), zero)))
    assert race(parallel((i,), (8,), store(Y, (0,), f32(float("nan"))))) == ""


# -- bounds, overflow, assumptions -----------------------------------------------------------------------------------


def test_out_of_range_names_buffer_index_loops_and_line() -> None:
    S = buf("S", (4, 6), scope="shared", loc=HERE)
    s = parallel((i, j), (4, 6), store(S, (i, add(j, k)), f32(0.0), loc=Loc("kernel.py", 20, 9)))
    with pytest.raises(TileIndexError) as e:
        run(function([Y], [ir.Alloc(S), loop(k, 3, s)], (2,), (b,)), [floats(16)])
    text = str(e.value)
    assert "S[0, 6] is out of range: S is float32 of shape (4, 6)" in text
    assert "kernel.py:20:9" in text and "b = 0, k = 1, i = 0, j = 5" in text and "allocated at kernel.py:12" in text


def test_global_accesses_out_of_range_can_be_reported() -> None:
    S = buf("S", (8,), scope="shared")
    elements = [parallel((i,), (17,), store(Y, (i,), f32(1.0)))]
    tile = [ir.Alloc(S), copy(region(Y, (12,), (8,)), region(S))]
    for body in (elements, tile):
        f = function([Y], body)
        run(f, [floats(16)])
        run(f, [floats(16)], checked())
        run(f, [floats(16)], Options(global_oob="report", oob_allowed=frozenset(["Y"])))
        with pytest.raises(TileIndexError, match="Y"):
            run(f, [floats(16)], Options(global_oob="report"))


def test_proved_accesses_out_of_range_are_internal_errors() -> None:
    from tiledsl.errors import InternalError

    for body in (store(Y, (16,), f32(1.0), proved=True), parallel((i,), (17,), store(Y, (i,), f32(1.0), proved=True))):
        with pytest.raises(InternalError, match=r"Y\[16\] is out of range"):
            run(function([Y], [body]), [floats(16)])


def test_overflow_inside_an_index_and_division_by_zero() -> None:
    big = const(2**30, "int32")
    N = buf("N", (16,), "int32")
    n = np.arange(16, dtype=np.int32)
    uniform = store(N, (0,), load(N, op("sub", mul(big, 4), 1)))
    lanes = parallel((i,), (16,), store(N, (i,), load(N, mul(i, big))))
    for body in (uniform, lanes):
        run(function([N], [body]), [n.copy()])
        with pytest.raises(TileRuntimeError, match="int32 overflow inside an index"):
            run(function([N], [body]), [n.copy()], Options(overflow=True))
    divide = parallel((i,), (16,), ir.If(op("gt", i, 2), (store(N, (i,), op("floordiv", 100, op("sub", i, 7))),)))
    with pytest.raises(TileRuntimeError, match="division by zero") as e:
        run(function([N], [divide]), [n.copy()], Options(overflow=True))
    assert "i = 7" in str(e.value)
    guarded = parallel((i,), (16,), ir.If(op("ne", i, 7), (store(N, (i,), op("floordiv", 100, op("sub", i, 7))),)))
    run(function([N], [guarded]), [n.copy()], Options(overflow=True))


def test_assumptions_are_verified_in_checked_mode() -> None:
    N = buf("N", (16,), "int32")
    body = [ir.Debug("assume", (op("gt", load(N, 0), 3),))]
    run(function([N], body), [np.zeros(16, np.int32)])
    with pytest.raises(TileRuntimeError, match="T.assume does not hold"):
        run(function([N], body), [np.zeros(16, np.int32)], checked())


def test_options_refuse_unknown_words() -> None:
    with pytest.raises(ValueError, match="conflicts"):
        Options(conflicts="yes")
    with pytest.raises(ValueError, match="global_oob"):
        Options(global_oob="yes")
    assert checked(exact=False) != checked() and hash(checked()) == hash(Options.checked())


# -- overlap -----------------------------------------------------------------------------------------------------


def test_copies_that_overlap_themselves() -> None:
    Y, S = buf("Y", (8,)), buf("S", (8,), scope="shared")

    def shifted(src: int, dst: int) -> ir.Function:
        body = [
            ir.Alloc(S, loc=HERE),
            copy(region(Y), region(S)),
            copy(region(S, (src,), (4,)), region(S, (dst,), (4,))),
            copy(region(S), region(Y)),
        ]
        return function([Y], body)

    for src, dst in [(0, 1), (3, 0)]:
        with pytest.raises(TileRuntimeError, match="copy: S .* is written where S .* is read"):
            run(shifted(src, dst), [floats(8)], checked())
    for src, dst in [(0, 4), (2, 2)]:  # disjoint; in place
        run(shifted(src, dst), [floats(8)], checked())


def test_arguments_that_overlap() -> None:
    X, Y = buf("X", (4,)), buf("Y", (4,))
    f = function([X, Y], [copy(region(X), region(Y))])
    memory = floats(12)
    for x, y in [(memory[:4], memory[2:6]), (memory[:4], memory[:4])]:
        run(f, [x, y])
        with pytest.raises(TileRuntimeError, match="arguments Y and X share memory, and the kernel writes Y"):
            run(f, [x, y], checked())
    run(f, [memory[::2][:4], memory[1::2][:4]], checked())  # interleaved: no element is shared
    reads = function([X, Y, buf("Z", (4,))], [copy(region(X), region(Y))])
    run(reads, [memory[:4], memory[4:8], memory[:4]], checked())  # two arguments that are only read may be one array
