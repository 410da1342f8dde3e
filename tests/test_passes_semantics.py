"""Passes keep the meaning: random programs are interpreted before and after each, bit for bit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_programs import Program, arguments, programs

from tiledsl import ir
from tiledsl.errors import InternalError
from tiledsl.frontend.reader import from_text
from tiledsl.ir.equal import equal
from tiledsl.ir.printer import to_text
from tiledsl.ir.verifier import verify
from tiledsl.passes import ExpandMoves, Fold, GuardBounds
from tiledsl.passes.instruments import CheckSemantics, Verify
from tiledsl.passes.pipeline import run

pytestmark = pytest.mark.usefixtures("repro_folder")


@pytest.fixture(scope="module")
def repro_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where failures save what reproduces them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("repro")))
        yield


PIPELINE = (Fold(), ExpandMoves(), GuardBounds(), Fold())


@settings(max_examples=60)
@given(programs(), st.integers(0, 2**16))
def test_pipeline_keeps_the_meaning(program: Program, seed: int) -> None:
    function = program.function
    verify(function)
    check = CheckSemantics(lambda s: arguments(function, s), seed)
    done = run(function, PIPELINE, [Verify(), check])
    for stage in (function, done):
        text = to_text(stage)
        again = from_text(text)
        assert equal(stage, again, hints=True) and to_text(again) == text
    again = GuardBounds()(done)
    assert equal(again, done)  # nothing is left to guard


@pytest.mark.parametrize("passes", [(ExpandMoves(),), (GuardBounds(),), (Fold(),)], ids=lambda p: p[0].name)
@settings(max_examples=15)
@given(program=programs(), seed=st.integers(0, 2**16))
def test_each_pass_alone(passes: tuple[ExpandMoves], program: Program, seed: int) -> None:
    function = program.function
    run(function, passes, [Verify(), CheckSemantics(lambda s: arguments(function, s), seed)])


class Wrong:
    """A pass that swaps the operands of every subtraction."""

    name = "wrong"

    def __call__(self, function: ir.Function) -> ir.Function:
        class Swap(ir.walk.Rewriter):  # type: ignore[name-defined,misc]
            def expr(self, e: ir.Expr) -> ir.Expr:
                return e.replace(a=e.b, b=e.a) if isinstance(e, ir.Binary) and e.op == "sub" else e

        result: ir.Function = Swap().visit(function)
        return result


def test_a_wrong_pass_is_named() -> None:
    from ir_builder import buf, function, load, op, parallel, store, var

    i, A, B = var("i"), buf("A", (7,)), buf("B", (7,))
    f = function([A, B], [parallel((i,), (7,), store(B, (i,), op("sub", load(A, i), load(B, i))))])
    from tiledsl.passes.instruments import random_args

    check = CheckSemantics(lambda seed: random_args(f, seed))
    run(f, [Fold()], [check])
    with pytest.raises(InternalError, match=r"pass wrong changes what test computes: B\[0\] is"):
        run(f, [Fold(), Wrong()], [check])
