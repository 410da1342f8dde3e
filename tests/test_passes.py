"""The shape of what passes produce, the pipeline around them, and its instruments."""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from ir_builder import buf, const, copy, fill, function, i, load, loop, matmul, mul, op, parallel, region, store, var

from tiledsl import config, ir
from tiledsl.dtypes import as_dtype
from tiledsl.errors import InternalError, TileTypeError
from tiledsl.frontend.reader import from_text
from tiledsl.interp import run as interpret
from tiledsl.ir.equal import equal
from tiledsl.ir.printer import to_text
from tiledsl.ir.walk import walk
from tiledsl.passes import ExpandMoves, Fold, GuardBounds
from tiledsl.passes.instruments import CheckSemantics, Limit, PrintIR, TimePasses, Verify, from_environment, random_args
from tiledsl.passes.pipeline import pass_text, pipeline_text, run

PIPELINE = (Fold(), ExpandMoves(), GuardBounds(), Fold())
ONE = const(1.0, "float32")


def comparisons(f: ir.Function) -> int:
    """How many comparisons the kernel makes."""
    return sum(isinstance(n, ir.Binary) and n.op in ir.COMPARISONS for n in walk(f.kernels[0].body))


def accesses(f: ir.Function) -> list[Any]:
    return [n for n in walk(f.kernels[0].body) if isinstance(n, (ir.Load, ir.Store))]


# -- bounds made explicit --------------------------------------------------------------------------------


def test_tiles_that_fit_have_no_guards() -> None:
    f = run(matmul(128, 64, 96, 32, 32, 16), PIPELINE)
    assert comparisons(f) == 0
    assert accesses(f) and all(n.proved for n in accesses(f))
    assert not any(isinstance(n, (ir.Copy, ir.Fill)) for n in walk(f.kernels[0].body))


def test_only_the_axes_that_do_not_fit_are_tested() -> None:
    f = run(matmul(128, 64, 90, 32, 32, 16), PIPELINE)  # K is not a multiple of 16: one test for A, one for B
    assert comparisons(f) == 2
    f = run(matmul(128, 60, 96, 32, 32, 16), PIPELINE)  # nor is N: one for B, one for C
    assert comparisons(f) == 2
    assert all(n.proved for n in accesses(f))


def test_guards_that_the_author_wrote_are_enough() -> None:
    n, j = var("n"), var("j")
    A = buf("A", (n,))
    inside = op("and", op("ge", j, 0), op("lt", j, n))
    guarded = ir.If(inside, (store(A, (j,), ONE),))
    lazy = store(A, (0,), ir.IfThenElse(inside, load(A, j), ONE))
    early = (ir.If(ir.Unary("not", inside), (ir.Continue(),)), store(A, (j,), load(A, j)))
    f = function([A], [loop(j, 9, guarded, lazy, *early, start=-9)], symbols=(n,))
    assert comparisons(GuardBounds()(f)) == comparisons(f) + 1  # only A[0] of an array that may be empty


def test_gathers_are_read_once_and_stay_lazy() -> None:
    n, p = var("n"), var("p")
    A, I, O = buf("A", (n,)), buf("I", (n,), "int32"), buf("O", (n,))
    f = function([A, I, O], [parallel((p,), (n,), store(O, (p,), load(A, load(I, p))))], symbols=(n,))
    (nest,) = GuardBounds()(f).kernels[0].body
    assert isinstance(nest, ir.Parallel)
    let, last = nest.body
    assert isinstance(let, ir.Let) and isinstance(last, ir.Store)
    assert sum(isinstance(x, ir.Load) and x.buffer is I for x in walk(nest.body)) == 1
    lazy = ir.IfThenElse(op("lt", p, 3), load(A, load(I, p)), ONE)
    f = function([A, I, O], [parallel((p,), (n,), store(O, (p,), lazy))], symbols=(n,))
    (nest,) = GuardBounds()(f).kernels[0].body
    assert isinstance(nest, ir.Parallel) and len(nest.body) == 1


def test_safe_values_and_skipped_atomics() -> None:
    A = buf("A", (4,), safe=const(7.0, "float32"))
    O, C, old = buf("O", (4,)), buf("C", (2,), "int32"), var("old")
    k = var("k")
    body = [
        loop(
            k, 6,
            ir.Atomic("add", C, (op("sub", k, 2),), i(1), old),
            store(O, (k,), op("add", load(A, op("sub", k, 1)), ir.Cast(old, as_dtype("float32")))),
        ),
    ]  # fmt: skip
    f = function([A, O, C], body)
    for stage in (f, run(f, PIPELINE, [Verify()])):
        args = [np.arange(4, dtype="f4"), np.zeros(4, "f4"), np.full(2, 10, "i4")]
        interpret(stage, args)
        assert args[1].tolist() == [7.0, 0.0, 11.0, 12.0] and args[2].tolist() == [11, 11]


def test_copies_evaluate_their_origin_once() -> None:
    """The origin is read from the buffer that the copy overwrites."""
    S, src = buf("S", (4,), "int32", "shared"), buf("A", (8,), "int32")
    O = buf("O", (4,), "int32")
    body = [
        ir.Alloc(S),
        fill(S, 3),
        copy(region(src, (load(S, 0),), (4,)), region(S)),
        ir.Fill(region(S, (3,), (1,)), load(S, 0)),
        copy(region(S), region(O)),
    ]
    f = function([src, O], body)
    for stage in (f, run(f, PIPELINE, [Verify()])):
        args = [np.arange(8, dtype="i4") * 10, np.zeros(4, "i4")]
        interpret(stage, args)
        assert args[1].tolist() == [30, 40, 50, 30]


def test_moves_can_be_kept() -> None:
    f = matmul(128, 64, 96, 32, 32, 16)
    tile = next(s.buffer for s in f.kernels[0].body if isinstance(s, ir.Alloc))
    kept = [s for s in walk(ExpandMoves(keep=frozenset([tile]))(f).kernels[0].body) if isinstance(s, ir.Copy)]
    assert [s.dst.buffer for s in kept] == [tile]


# -- the pipeline ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Broken:
    """Fails as a bug would, or as an author's mistake would."""

    author: bool = False
    depth: int = 3
    name: ClassVar[str] = "broken"

    def __call__(self, function: ir.Function) -> ir.Function:
        if self.author:
            raise TileTypeError("gemm: no")
        raise KeyError("lost")


@dataclass(frozen=True)
class Halve:
    """Optional: renames the function, so that a test sees whether it ran."""

    name: ClassVar[str] = "halve"
    optional: ClassVar[bool] = True

    def __call__(self, function: ir.Function) -> ir.Function:
        return function.replace(name=function.name + "h")


def test_text_of_passes() -> None:
    tile = buf("A_s", (4,))
    assert pass_text(Broken()) == "broken" and pass_text(Broken(depth=4)) == "broken{depth=4}"
    assert pass_text(ExpandMoves(keep=frozenset([tile]))) == "expand_moves{keep={A_s}}"
    assert pipeline_text(PIPELINE) == "fold, expand_moves, guard_bounds, fold"


def test_a_bug_in_a_pass_saves_a_repro(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    f = matmul(100, 70, 50, 32, 32, 16)
    with pytest.raises(InternalError, match=r"pass broken\{depth=4\} failed on test: KeyError: 'lost'") as caught:
        run(f, [Fold(), Broken(depth=4)])
    (path,) = tmp_path.iterdir()
    assert str(path) in str(caught.value)
    text = path.read_text()
    assert "# pipeline: fold, broken{depth=4} (this is number 1)" in text and "KeyError" in text and "NumPy" in text
    assert equal(from_text(text), Fold()(f), hints=True)


def test_what_an_author_did_stays_as_it_is() -> None:
    with pytest.raises(TileTypeError, match="gemm: no"):
        run(matmul(32, 32, 32, 32, 32, 16), [Broken(author=True)])


def test_limit_counts_optional_passes() -> None:
    f = matmul(32, 32, 32, 32, 32, 16)
    passes = [Halve(), GuardBounds(), Halve(), Halve()]
    assert [run(f, passes, [Limit(n)]).name for n in (0, 2, 9)] == ["test", "testhh", "testhhh"]


def test_print_and_time() -> None:
    f = matmul(32, 32, 32, 32, 32, 16)
    out, times = io.StringIO(), TimePasses(out=None)
    run(f, PIPELINE, [PrintIR("expand_moves, guard_bounds", out), times])
    assert out.getvalue().count("# -- ") == 2 and "in T.Parallel(32, 16):" in out.getvalue()
    assert [name for name, _ in times.seconds] == [p.name for p in PIPELINE]
    out = io.StringIO()
    run(f, [Fold(), Fold()], [PrintIR("all", out)])
    assert "# -- 1 fold: test, stage tile, unchanged" in out.getvalue()


def test_the_environment_asks_for_instruments(capsys: pytest.CaptureFixture[str]) -> None:
    f = matmul(33, 32, 32, 32, 32, 16)
    assert from_environment(f) == ()
    with config.PRINT_IR.override("all"), config.TIME_PASSES.override(True), config.CHECK_SEMANTICS.override(True):
        with config.PASS_LIMIT.override(1):
            kinds = [type(x) for x in from_environment(f)]
        run(f, PIPELINE)
    assert kinds == [Limit, PrintIR, TimePasses, Verify, CheckSemantics]
    assert "guard_bounds" in capsys.readouterr().err


def test_a_broken_tree_after_a_pass_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    class Spoil:
        name = "spoil"

        def __call__(self, function: ir.Function) -> ir.Function:
            kernel = function.kernels[0]
            lost = store(function.buffers[0], (0,), ONE)
            return function.replace(kernels=(kernel.replace(body=(*kernel.body, lost)),))

    with pytest.raises(InternalError, match="after pass spoil"):
        run(matmul(32, 32, 32, 32, 32, 16), [Spoil()], [Verify()])


def test_random_arguments_fit() -> None:
    M, N, n = var("M"), var("N", "int64"), var("n", "uint8")
    A = buf("A", (M, N), "float16", strides=(mul(ir.Cast(N, as_dtype("int32")), 2), i(1)))
    B = buf("B", (op("add", M, 1),), "bool")
    f = function([A, B, n], [], symbols=(M, N))
    first, again = random_args(f, 5), random_args(f, 5)
    assert first[0].shape == (37, 39) and first[0].strides == (2 * 2 * 39, 2) and first[1].shape == (38,)
    assert np.array_equal(first[0], again[0]) and first[2] == again[2]
    interpret(f, first)
    assert "T.Tensor" in to_text(f)
