"""Layouts of fragments: which thread and register holds an element, against the figures of the PTX ISA and NumPy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiledsl import ir
from tiledsl.analysis.evaluate import evaluate
from tiledsl.backends.simt.fragment import Axis, Digit, ThreadGrid, replicas
from tiledsl.backends.simt.rows import partial_bits
from tiledsl.backends.simt.shared import row_swizzle
from tiledsl.dtypes import as_dtype
from tiledsl.ir.micro_warp import a_element, b_element, c_element

I32 = as_dtype("int32")
T, R = ir.Var("t", I32), ir.Var("r", I32)
GRIDS = [ThreadGrid.fma(n) for n in (1, 2, 8, 32, 40, 48, 96, 128, 256)]
GRIDS += [ThreadGrid.mma(32 * a * b, a, b) for a, b in ((1, 1), (4, 1), (2, 2), (1, 3), (2, 4))]


def held(axes: list[Axis], threads: int) -> dict[tuple[int, ...], set[int]]:
    """Per element of a tile the threads that hold it, by the formula that kernels compute."""
    found: dict[tuple[int, ...], set[int]] = {}
    for t in range(threads):
        own = [[int(evaluate(a.index(T, R), {T: t, R: r})) for r in range(a.registers)] for a in axes]
        for i in own[0]:
            for j in own[1]:
                if i < axes[0].extent and j < axes[1].extent:
                    found.setdefault((i, j), set()).add(t)
    return found


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g.threads}{g.warps or ''}")
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (8, 229), (17, 33), (64, 48)])
def test_every_element_has_one_owner(grid: ThreadGrid, rows: int, cols: int) -> None:
    axes = [Axis.of(rows, grid.row), Axis.of(cols, grid.col)]
    owners = held(axes, grid.threads)
    assert set(owners) == {(i, j) for i in range(rows) for j in range(cols)}
    assert all(len(t) == 1 for t in owners.values())
    assert replicas(axes, T, grid.threads) is None


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g.threads}{g.warps or ''}")
@pytest.mark.parametrize("side", ["row", "col", "whole"])
def test_one_of_the_replicas_is_picked(grid: ThreadGrid, side: str) -> None:
    axis = Axis.of(37, grid.pattern(side))
    guard = replicas([axis], T, grid.threads)
    picked = [t for t in range(grid.threads) if guard is None or evaluate(guard, {T: t})]
    seen = [int(evaluate(axis.index(T, R), {T: t, R: r})) for t in picked for r in range(axis.registers)]
    assert sorted(i for i in seen if i < 37) == list(range(37))


@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=4), st.integers(1, 200))
def test_place_is_the_inverse_of_index(parts: list[tuple[int, bool]], extent: int) -> None:
    stride, pattern = 1, []
    for n, in_thread in parts:
        pattern.append(Digit(n, stride if in_thread else 0))
        stride *= n if in_thread else 1
    axis = Axis.of(extent, tuple(pattern))
    assert axis.span >= extent
    for i in range(extent):
        t, r = axis.place(i)
        assert 0 <= r < axis.registers and 0 <= t < stride
        assert evaluate(axis.index(T, R), {T: t, R: r}) == i


# The figures of m16n8k16 (16 bits) and m16n8k32 (8 bits): (row, column) of every element of every lane.
FIGURE_A16 = {
    (lane, i): (lane // 4 + 8 * (i // 2 % 2), lane % 4 * 2 + i % 2 + 8 * (i // 4))
    for lane in range(32)
    for i in range(8)
}
FIGURE_B16 = {(lane, i): (lane % 4 * 2 + i % 2 + 8 * (i // 2), lane // 4) for lane in range(32) for i in range(4)}
FIGURE_A8 = {
    (lane, i): (lane // 4 + 8 * (i // 4 % 2), lane % 4 * 4 + i % 4 + 16 * (i // 8))
    for lane in range(32)
    for i in range(16)
}
FIGURE_B8 = {(lane, i): (lane % 4 * 4 + i % 4 + 16 * (i // 4), lane // 4) for lane in range(32) for i in range(8)}


@pytest.mark.parametrize(
    ("figure", "element", "width"),
    [(FIGURE_A16, a_element, 2), (FIGURE_B16, b_element, 2), (FIGURE_A8, a_element, 1), (FIGURE_B8, b_element, 1)],
)
def test_operands_lie_as_the_figures_say(figure: dict, element: object, width: int) -> None:
    for (lane, i), place in figure.items():
        first, second = element(i, width)  # type: ignore[operator]
        assert (first[lane], second[lane]) == place
    assert len(set(figure.values())) == len(figure)


def test_accumulators_are_the_grid_of_warps() -> None:
    grid = ThreadGrid.mma(32, 1, 1)
    rows, cols = Axis.of(16, grid.row), Axis.of(8, grid.col)
    for e in range(4):
        row, col = c_element(e)
        for lane in range(32):
            (t, i), (u, j) = rows.place(int(row[lane])), cols.place(int(col[lane]))
            assert t + u == lane and (i, j) == (e // 2, e % 2)


def test_two_accumulators_are_one_operand() -> None:
    """What attention uses: C of two n8 tiles holds the elements of A of one k16 step, lane by lane."""
    for i in range(8):
        row, col = c_element(i % 4)
        first, second = a_element(i, 2)
        assert (first == row).all() and (second == col + 8 * (i // 4)).all()


@pytest.mark.parametrize("bytes_per_row", [32, 64, 128, 256, 384])
def test_swizzled_rows_of_matrices_meet_no_bank_twice(bytes_per_row: int) -> None:
    found = row_swizzle(bytes_per_row)
    assert found is not None
    shift, mask = found
    chunks = bytes_per_row // 16
    for first in range(0, 64, 8):
        for chunk in range(chunks):
            places = [r * chunks + (chunk ^ (r >> shift & mask)) for r in range(first, first + 8)]
            assert len({p % 8 for p in places}) == 8
    everywhere = {r * chunks + (c ^ (r >> shift & mask)) for r in range(64) for c in range(chunks)}
    assert everywhere == set(range(64 * chunks))


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g.threads}{g.warps or ''}")
def test_partial_sums_stay_in_one_thread(grid: ThreadGrid) -> None:
    """The lowest four bits of a column tell the partial sum; where bits are said to lie, they lie."""
    axis = Axis.of(100, grid.col)
    bits = partial_bits(axis)
    if bits is None:
        assert grid.warps is not None and grid.warps[1] > 1
        return
    for j in range(100):
        t, r = axis.place(j)
        for k, bit in enumerate(bits):
            value = t // bit.lane % 2 if bit.lane else r // bit.register % 2 if bit.register else 0
            assert value == j >> k & 1
    threads = {p: {axis.place(j)[0] for j in range(p, 100, 16)} for p in range(16)}
    assert all(len(t) == 1 for t in threads.values())
    own = [sorted(j for j in range(100) if axis.place(j)[0] == t) for t in {axis.place(j)[0] for j in range(100)}]
    assert all([axis.place(j)[1] for j in js] == sorted(axis.place(j)[1] for j in js) for js in own)
