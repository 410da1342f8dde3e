"""kernel.explain: the form of each operation, why it has no better one, work and bounds; planted near-misses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tiledsl
import tiledsl.language as T
from tiledsl.analysis.work import work
from tiledsl.errors import TileValueError
from tiledsl.runtime.explain import Explanation


def gemm(n: int, *, spoil: str = "") -> Any:
    """spoil: what keeps the right operand from being packed by its copy, or out of the grid."""

    @T.prim_func
    def main(A: T.Tensor((n, n), "float32"), B: T.Tensor((n, n), "float32"), C: T.Tensor((n, n), "float32")):
        with T.Kernel(T.ceildiv(n, 32), T.ceildiv(n, 32)) as (bx, by):
            A_s = T.alloc_shared((32, 16), "float32")
            B_s = T.alloc_shared((16, 32), "float32")
            acc = T.alloc_fragment((32, 32), "float32")
            T.clear(acc)
            for k in T.Pipelined(T.ceildiv(n, 16), num_stages=2):
                T.copy(A[by * 32, k * 16], A_s)
                if spoil == "start":
                    T.copy(B[k * 16 + bx, bx * 32], B_s)
                else:
                    T.copy(B[k * 16, bx * 32], B_s)
                if spoil == "touched":
                    for i, j in T.Parallel(16, 32):
                        B_s[i, j] = B_s[i, j] * 2.0
                T.gemm(A_s, B_s, acc)
            T.copy(acc, C[by * 32, bx * 32])
            if spoil == "written":
                B[by, bx] = 0.0

    return tiledsl.compile(main)


def explained(kernel: Any, *args: Any) -> dict[str, Any]:
    """The lines by the first words of their source."""
    found = kernel.explain(*args, target="llvm")
    assert isinstance(found, Explanation)
    return {"all": found, **{line.source: line for line in found.lines}}


def line(found: dict[str, Any], start: str) -> Any:
    (one,) = (v for k, v in found.items() if k.startswith(start))
    return one


SQUARE = np.ones((64, 64), np.float32)


def test_a_gemm_as_it_should_be() -> None:
    found = explained(gemm(64), SQUARE, SQUARE, SQUARE)
    product = line(found, "T.gemm")
    assert product.chosen == ("micro-kernel of float32, 32x32x16, panels of 32",) and product.reasons == ()
    assert product.runs == 2 * 2 * 4 and product.operations == 2.0 * 64**3
    packed = line(found, "T.copy(B[k * 16, bx")
    assert packed.chosen == ("packed once per launch where blocks share tiles", "packs panels for gemm")
    assert packed.moved == 2 * 2 * 4 * 16 * 32 * 4
    every = found["all"]
    assert every.moved == 3 * 64 * 64 * 4 and every.operations >= 2.0 * 64**3
    assert every.bound is not None and min(every.bound) > 0
    assert "bound: " in str(every) and "<table>" in every._repr_html_()


@pytest.mark.parametrize(
    ("spoil", "start", "reason"),
    [
        ("start", "T.copy(B[k * 16 + bx", "its start is not known to be a multiple of the tile"),
        ("written", "T.copy(B[k * 16, bx", "the kernel writes B"),
        ("touched", "T.gemm", "B_s is packed each time: more than whole copies and gemms touch it"),
    ],
)
def test_near_misses_of_packing(spoil: str, start: str, reason: str) -> None:
    assert line(explained(gemm(64, spoil=spoil), SQUARE, SQUARE, SQUARE), start).reasons == (reason,)


def nests(n: int) -> Any:
    @T.prim_func
    def main(A: T.Tensor((n,), "float32"), I: T.Tensor((n,), "int32"), B: T.Tensor((n,), "float32")):
        with T.Kernel(1):
            total = T.alloc_fragment((1,), "float32")
            some = T.alloc_fragment((8, 4), "float32")
            few = T.alloc_fragment((8,), "float32")
            for a in T.Parallel(n):
                B[a] = A[a] + 1.0
            for b in T.Parallel(n):
                B[b] = A[I[b]]
            for c in T.Parallel(n):
                for k in T.serial(I[c]):
                    B[c] = B[c] + A[k]
            for d in T.Parallel(n):
                T.atomic_add(B[I[d]], 1.0)
            for e in T.Parallel(n):
                T.print(A[e])
            T.clear(total)
            T.clear(some)
            T.reduce_sum(some, few, dim=1)
            T.cumsum(some, dim=1)
            T.cumsum(few)

    return tiledsl.compile(main)


def test_nests_and_reductions() -> None:
    v, i = np.ones(64, np.float32), np.zeros(64, np.int32)
    found = explained(nests(64), v, i, v)
    assert line(found, "for a in").chosen == ("16 iterations of a at a time",) and not line(found, "for a in").reasons
    assert line(found, "for b in").reasons == ("gathers from A",)
    for name, reason in (
        ("c", "neighbours go through an inner loop differently often"),
        ("d", "atomics are done one by one"),
        ("e", "prints, asserts and the like come one by one"),
    ):
        nest = line(found, f"for {name} in")
        assert nest.chosen == ("one iteration after the other",) and nest.reasons == (reason,), name
    assert line(found, "T.reduce_sum").reasons == ("elements of a result are fewer than 16, or apart",)
    assert line(found, "T.cumsum(some").chosen == ("16 scans at a time, turned before and after",)
    assert line(found, "T.cumsum(few").reasons == ("the scanned axis is the contiguous one",)


def test_trips_that_depend_on_the_block_are_counted_one_by_one() -> None:
    """Causal tiles: 1 + 2 + ... + 5 of them; a grid of 100 blocks is sampled evenly."""

    @T.prim_func
    def main(A: T.Tensor((5, 4), "float32")):
        with T.Kernel(5) as b:
            for k in T.serial(b + 1):
                T.copy(A[k, 0:4], A[b, 0:4])

    (one,) = work(main.function, {})
    assert one.runs == 15 and one.moved == 15 * 2 * 16 and not one.at_least

    @T.prim_func
    def large(A: T.Tensor((100, 4), "float32"), n: T.int32):
        with T.Kernel(100) as b:
            for k in T.serial(b + n):
                T.copy(A[k, 0:4], A[b, 0:4])

    (p,) = (p.var for p in large.function.params if p.var is not None)
    (one,) = work(large.function, {p: 1})
    assert one.runs == pytest.approx(5050, rel=0.02)


def test_what_data_decide_is_a_lower_bound() -> None:
    @T.prim_func
    def main(N: T.Tensor((1,), "int32"), A: T.Tensor((4,), "float32")):
        with T.Kernel(1):
            for _ in T.serial(N[0]):
                T.fill(A, 1.0)

    (one,) = work(main.function, {})
    assert one.runs == 1 and one.at_least


def test_mistakes_are_those_of_a_call() -> None:
    with pytest.raises(TileValueError, match="expected 3 inputs"):
        gemm(64).explain(SQUARE)
    on_numpy = gemm(64).explain(SQUARE, SQUARE, SQUARE, target="numpy")
    assert on_numpy.bound is None and "bound" not in str(on_numpy)


@tiledsl.jit
def doubled(A, block=4):
    n = T.const("n")
    A: T.Tensor[(n,), T.float32]
    B = T.empty((n,), T.float32)
    with T.Kernel(T.ceildiv(n, block)) as b:
        for i in T.Parallel(block):
            B[b * block + i] = A[b * block + i] * 2.0
    return B


def test_eager_kernels_are_explained_and_shown() -> None:
    a = np.ones(16, np.float32)
    said = str(doubled.explain(a, block=8, target="llvm"))
    assert said == str(doubled.kernel(a, block=8).explain(a, target="llvm")) and "2 times" in said
    assert doubled.show(n=16, block=8).text == doubled.kernel(a, block=8).text()
    assert doubled.show(a, stage="loop", target="numba").stage == "loop"


@pytest.mark.parametrize("swapped", [False, True])
def test_of_two_sides_that_data_choose_from_one_counts(swapped: bool) -> None:
    """The heavier one, wherever it stands; the other is there, without runs."""

    @T.prim_func
    def main(n: T.Tensor((1,), "int32"), A: T.Tensor((16, 16), "float32"), C: T.Tensor((16, 16), "float32")):
        with T.Kernel(3) as bx:
            a = T.alloc_shared((16, 16), "float32")
            c = T.alloc_fragment((16, 16), "float32")
            T.copy(A, a)
            if (n[0] > bx) == swapped:
                T.fill(c, 0.0)
            else:
                T.gemm(a, a, c, clear_accum=True)
            T.copy(c, C)

    counted = work(tiledsl.compile(main).function, {})
    gemm = [w for w in counted if w.operations]
    assert len(gemm) == 1 and gemm[0].operations == 3 * 2 * 16**3 and gemm[0].runs == 3 and gemm[0].at_least
    (fill,) = (w for w in counted if type(w.statement).__name__ == "Fill")
    assert fill.runs == 0 and fill.at_least and len(counted) == 4
