"""Every oracle can fail: it finds a fault that is planted in a program or in a part of the house."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tiledsl import ir
from tiledsl.backends.cpu.lower import Lower
from tiledsl.backends.simt.lower_threads import LowerThreads
from tiledsl.errors import TileError
from tiledsl.interp import run as interpret
from tiledsl.ir.walk import Rewriter, walk
from tiledsl.passes.fold import Fold
from tiledsl.runtime import JITKernel
from tiledsl.testing import oracles
from tiledsl.testing.fuzz import ORACLES, check
from tiledsl.testing.oracles import Case, Mismatch
from tiledsl.testing.strategies import Argument, Program

HEAD = "import tiledsl\nimport tiledsl.language as T\n\nTM = 16\n\n@T.prim_func\n"
TAIL = "\n\nkernel = tiledsl.compile(main)\n"


def program(parameters: str, body: str, *arguments: Argument, **kw: Any) -> Program:
    lines = "".join(f"    {line}\n" for line in body.strip("\n").splitlines())
    return Program(f"{HEAD}def main({parameters}):\n{lines}{TAIL}", arguments, **kw)


BATCHED = program(
    "A: T.Tensor((3, 40), 'float32'), O: T.Tensor((3, 40), 'float32')",
    """
with T.Kernel(T.ceildiv(40, TM), 3) as (bx, bz):
    s = T.alloc_shared((1, TM), 'float32')
    for k in T.Pipelined(1, num_stages=2):
        T.copy(A[bz, bx * TM], s)
    T.print(s[0, 0])
    for i in T.Parallel(TM):
        O[bz, bx * TM + i] = s[0, i] + 1.0
""",
    Argument("A", "float32", (3, 40)),
    Argument("O", "float32", (3, 40)),
    tiles=("TM",),
    batched=True,
)


class Change(Rewriter):
    """Float literals become twice as large: what a wrong rewrite does."""

    def expr(self, e: ir.Expr) -> ir.Expr:
        if isinstance(e, ir.Const) and e.type.is_float:
            return e.replace(value=2 * e.value)  # type: ignore[no-any-return]
        return e


def wrong(function: ir.Function) -> ir.Function:
    changed: ir.Function = Change().visit(function)
    return changed


Patch = pytest.MonkeyPatch


def in_lowering(m: Patch) -> None:
    right = Lower.__call__
    m.setattr(Lower, "__call__", lambda self, f: wrong(right(self, f)))


def in_threads(m: Patch) -> None:
    right = LowerThreads.__call__
    m.setattr(LowerThreads, "__call__", lambda self, f: wrong(right(self, f)))


def in_fold(m: Patch) -> None:
    """A pass that is optional and wrong."""
    right = Fold.__call__
    m.setattr(Fold, "__call__", lambda self, f: right(self, wrong(f)))


def in_text(m: Patch) -> None:
    from tiledsl.ir import printer

    right = printer.to_text
    m.setattr(printer, "to_text", lambda f: right(f).replace("1.0", "1.5"))


def in_stages(m: Patch) -> None:
    """A compiler that loses what a loop without stages stores."""
    right = Lower.__call__

    def lower(self: Lower, f: ir.Function) -> ir.Function:
        loops = [n for k in f.kernels for n in walk(k.body) if isinstance(n, ir.For)]
        kept = any(dict(n.annotations).get("num_stages") == 2 for n in loops)
        return right(self, f if kept else wrong(f))

    m.setattr(Lower, "__call__", lower)


def in_memory(m: Patch) -> None:
    """Writes one element too many."""

    def beside(function: ir.Function, args: Any, *rest: Any) -> Any:
        result = interpret(function, args, *rest)
        out = args[1]
        memory = np.lib.stride_tricks.as_strided(out.reshape(-1), (out.size + 1,), (out.itemsize,))
        if out.base is not None:
            memory[-1] = 0
        return result

    m.setattr(oracles, "run", beside)


def in_order(m: Patch) -> None:
    def shuffled(function: ir.Function, args: Any, options: Any) -> Any:
        result = interpret(function, args, options)
        if options.block_order is not None:
            args[1][0, 0] = 7
        return result

    m.setattr(oracles, "run", shuffled)


def in_bounds(m: Patch) -> None:
    """The default mode is off by more than rounding."""

    def default(function: ir.Function, args: Any, *options: Any) -> Any:
        result = interpret(function, args, *options)
        if not options:
            args[1][0, 0] += 1e-3
        return result

    m.setattr(oracles, "run", default)


def in_target(workers: int) -> Callable[[Patch], None]:
    """A target that goes wrong with so many workers."""

    def plant(m: Patch) -> None:
        from tiledsl import config

        right = JITKernel.__call__

        def call(self: JITKernel, *args: Any, **kw: Any) -> Any:
            result = right(self, *args, **kw)
            if config.NUM_THREADS.get() == workers:
                args[1][0, 0] += 1
            return result

        m.setattr(JITKernel, "__call__", call)

    return plant


def in_variant(m: Patch) -> None:
    right = JITKernel.__call__

    def call(self: JITKernel, *args: Any, **kw: Any) -> Any:
        result = right(self, *args, **kw)
        args[1][0, 0] += "TM = 16" not in "".join(SOURCES)
        return result

    SOURCES: list[str] = []
    kernel = Program.kernel
    m.setattr(Program, "kernel", lambda self: (SOURCES.clear(), SOURCES.append(self.source), kernel(self))[2])
    m.setattr(JITKernel, "__call__", call)


FAULTS: dict[str, Callable[[Patch], None]] = {
    "order": in_order,
    "text": in_text,
    "passes": in_lowering,
    "without": in_fold,
    "stages": in_stages,
    "padding": in_memory,
    "bounded": in_bounds,
    "targets": in_target(1),
    "workers": in_target(3),
    "variants": in_variant,
    "threads": in_threads,
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(name: str, monkeypatch: Patch) -> None:
    """The program passes; with the fault planted it fails, in this oracle."""
    check(BATCHED, 1, [name])
    FAULTS[name](monkeypatch)
    with pytest.raises((Mismatch, TileError)):
        case = Case(BATCHED, 1)
        ORACLES[name](case)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("tiles", "O[bz, bx * TM + i] = A[bz, bx * TM + i] * i"),  # knows its place in the tile
        ("batch", "O[bz, bx * TM + i] = A[bz, bx * TM + i] * bz"),  # knows its place in the batch
        ("checked", "O[bz, 0] = A[bz, bx * TM + i]"),  # all iterations write one element
    ],
)
def test_a_program_that_breaks_the_relation_is_found(name: str, body: str) -> None:
    text = f"with T.Kernel(T.ceildiv(40, TM), 3) as (bx, bz):\n    for i in T.Parallel(TM):\n        {body}"
    wrong = program(
        "A: T.Tensor((3, 40), 'float32'), O: T.Tensor((3, 40), 'float32')",
        text,
        *BATCHED.arguments,
        tiles=("TM",),
        batched=True,
    )
    check(BATCHED, 1, [name])
    with pytest.raises((Mismatch, TileError)):
        check(wrong, 1, [name])


def test_every_oracle_is_tried_here() -> None:
    assert set(FAULTS) | {"tiles", "batch", "checked"} == set(ORACLES)


def test_prints_are_compared(monkeypatch: Patch) -> None:
    right = JITKernel.__call__

    def chatty(self: JITKernel, *args: Any, **kw: Any) -> Any:
        print("one line more")
        return right(self, *args, **kw)

    monkeypatch.setattr(JITKernel, "__call__", chatty)
    with pytest.raises(Mismatch, match="prints"):
        check(BATCHED, 1, ["targets"])
