"""The oracles: relations between two ways to run one program that must give equal bits, each under a name.

An oracle gets a `Case` (the program, and what the exact interpreter made of it) and raises Mismatch.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from tiledsl import config, ir
from tiledsl.errors import TileNotImplementedError, TileRuntimeError
from tiledsl.interp import Options, run
from tiledsl.ir import Function
from tiledsl.ir.walk import Rewriter
from tiledsl.passes.instruments import CheckSemantics, PrintIR, TimePasses, Verify
from tiledsl.passes.pipeline import run as run_passes
from tiledsl.runtime import JITKernel
from tiledsl.testing.strategies import Program

__all__ = ["COMPILING", "EXACT", "ORACLES", "Case", "Mismatch", "applies", "same_bits"]

EXACT = Options(exact=True)
Arrays = list[Any]


class Mismatch(AssertionError):
    """Two ways to run one program differ; `oracle` says which check found it."""

    def __init__(self, oracle: str, message: str) -> None:
        super().__init__(f"{oracle}: {message}")
        self.oracle = oracle


@dataclass
class Case:
    """A program and the seed of its arguments; `want` and `printed` are the exact interpreter's outcome."""

    program: Program
    seed: int = 0

    @cached_property
    def kernel(self) -> JITKernel:
        return self.program.kernel()

    @property
    def function(self) -> Function:
        return self.kernel.function

    def args(self) -> Arrays:
        """Fresh arguments."""
        return self.program.make_args(self.seed)

    @cached_property
    def _outcome(self) -> tuple[Arrays, Counter[str]]:
        args = self.args()
        return args, printed_by(lambda: run(self.function, args, EXACT))

    @property
    def want(self) -> Arrays:
        return self._outcome[0]

    @property
    def printed(self) -> Counter[str]:
        return self._outcome[1]

    @cached_property
    def lowered(self) -> Function:
        return lower(self.function)

    def same(self, oracle: str, got: Arrays, want: Arrays | None = None) -> None:
        for p, a, b in zip(self.function.params, self.want if want is None else want, got, strict=True):
            if not isinstance(a, np.ndarray):
                continue
            wrong = np.argwhere(~same_bits(a, b))
            if len(wrong):
                at = tuple(int(i) for i in wrong[0])
                raise Mismatch(oracle, f"{len(wrong)} of {a.size} elements of {p.name} differ, first at {list(at)}: "
                               f"{b[at]!r}, the exact interpreter gives {a[at]!r}")  # fmt: skip

    def gives_same(self, oracle: str, function: Function, args: Arrays | None = None) -> None:
        """The exact interpreter on this other function gives the same bits."""
        args = self.args() if args is None else args
        quietly(lambda: run(function, args, EXACT))
        self.same(oracle, args)


def same_bits(a: Any, b: Any) -> Any:
    """Where the bits are equal; a NaN equals a NaN."""
    width = np.dtype(f"u{a.dtype.itemsize}")
    equal = np.ascontiguousarray(a).view(width) == np.ascontiguousarray(b).view(width)
    if a.dtype.kind not in "iub":
        with np.errstate(all="ignore"):
            equal |= np.isnan(a) & np.isnan(b)
    return equal.reshape(a.shape)


def printed_by(work: Callable[[], Any]) -> Counter[str]:
    """The lines that it prints; lanes and blocks print in any order."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        work()
    return Counter(out.getvalue().splitlines())


def quietly(work: Callable[[], Any]) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        return work()


def lower(function: Function) -> Function:
    """The loop stage, as the CPU targets get it."""
    from tiledsl.backends.cpu.pipeline import cpu_pipeline

    return run_passes(function, cpu_pipeline(), ())


# -- one function, run by the interpreter in other ways ----------------------------------------------------------------


def _checked(case: Case) -> None:
    """The checked mode finds neither races nor poison. Programs of single threads may ask for threads that are not
    there: what happens then is defined, but a checked run ends."""
    args = case.args()
    try:
        quietly(lambda: run(case.function, args, Options.checked(overflow=False)))
    except TileRuntimeError as e:
        if "which does not take part" in str(e) or "threads, but waits for" in str(e):
            return
        raise
    case.same("checked", args)


def _order(case: Case) -> None:
    """The order of the blocks does not matter, before the lowering and after it."""
    for function in (case.function, case.lowered):
        args = case.args()
        quietly(partial(run, function, args, replace(EXACT, block_order=case.seed + 1)))
        case.same(f"order of blocks, {function.stage} stage", args)


def _bounded(case: Case) -> None:
    """The default mode (gemm by BLAS) stays within the bound that the float64 shadow computes."""
    shadow = quietly(lambda: run(case.function, case.args(), Options(exact=True, shadow=True)))
    args = case.args()
    quietly(lambda: run(case.function, args))
    if shadow.doubtful:
        return  # a branch may have gone either way
    for p, a, b in zip(case.function.params, case.want, args, strict=True):
        report = shadow.shadow.get(p.name) if isinstance(a, np.ndarray) else None
        if report is None or p.buffer is None or p.buffer.dtype.is_packed:
            continue
        with np.errstate(all="ignore"):
            for what, x in (("exact", a), ("default", b)):
                wide = x.astype(np.float64)
                near = np.abs(wide - report.value) <= report.bound
                fine = near | ~np.isfinite(report.value) | ~np.isfinite(report.bound) | ~np.isfinite(wide)
                if not fine.all():
                    at = tuple(int(i) for i in np.argwhere(~fine)[0])
                    raise Mismatch("bounded", f"{p.name}{list(at)} of the {what} mode is {x[at]!r}; the shadow says "
                                   f"{report.value[at]!r} +- {report.bound[at]!r}")  # fmt: skip


def _padding(case: Case) -> None:
    """Arrays inside larger memory full of NaN give the same, and what is around them stays as it is."""
    for function in (case.function, case.lowered):
        args, memory = padded(case.args())
        case.gives_same(f"padding, {function.stage} stage", function, args)
        untouched(f"padding, {function.stage} stage", memory)


# -- other forms of the function -------------------------------------------------------------------------------------


def _text(case: Case) -> None:
    """Print, read, compare, print again, run: of the author's stage and of the loop stage."""
    from tiledsl.frontend.reader import from_text
    from tiledsl.ir.equal import equal
    from tiledsl.ir.printer import to_text

    for function in (case.function, case.lowered):
        what = f"text of the {function.stage} stage"
        printed = to_text(function)
        again = from_text(printed)
        if not equal(function, again, hints=True):
            raise Mismatch(what, "the printed function reads as another one")
        if to_text(again) != printed:
            raise Mismatch(what, "the function that was read prints differently")
        case.gives_same(what, again)


def _passes(case: Case) -> None:
    """Every pass of the CPU pipeline, lowering included, gives a legal tree and keeps the meaning."""
    from tiledsl.backends.cpu.pipeline import cpu_pipeline

    watched = io.StringIO()
    instruments = [TimePasses(watched), PrintIR("all", watched), Verify(), CheckSemantics(lambda seed: case.args())]
    quietly(lambda: run_passes(case.function, cpu_pipeline(), instruments))


def _without(case: Case) -> None:
    """The passes that the others can do without, left out one at a time."""
    from tiledsl.backends.cpu.pipeline import cpu_pipeline

    pipeline, function = cpu_pipeline(), case.function
    for k, p in enumerate(pipeline):
        before, function = function, p(function)
        if getattr(p, "optional", False) and function is not before:
            rest = run_passes(before, pipeline[k + 1 :], [Verify()])
            case.gives_same(f"without pass {k} ({p.name})", rest)


class _Stages(Rewriter):
    """Every pipelined loop gets this number of stages; None: an ordinary serial loop."""

    def __init__(self, count: int | None) -> None:
        self.count, self.changed = count, False

    def stmt(self, s: ir.Stmt) -> ir.Stmt:
        if not isinstance(s, ir.For) or s.kind != "pipelined":
            return s
        self.changed = True
        if self.count is None:
            return s.replace(kind="serial", annotations=())
        return s.replace(annotations=(("num_stages", self.count),))


def _stages(case: Case) -> None:
    """num_stages is a hint: 0, 3 and none at all mean the same."""
    for count in (0, 3, None):
        change = _Stages(count)
        function = change.visit(case.function)
        if change.changed:
            case.gives_same(f"num_stages = {count}", lower(function))


# -- other programs that have to give the same -------------------------------------------------------------------------


def _tiles(case: Case) -> None:
    """Other tile sizes along axes that are not reduced."""
    for variant in case.program.retiled(case.seed):
        case.gives_same("other tile sizes", variant.function)
        case.gives_same("other tile sizes, lowered", lower(variant.function))


def _batch(case: Case) -> None:
    """The entries of a batch in another order give their results in that order."""
    if not case.program.batched:
        return
    args = case.args()
    turned = [np.roll(x, 1, axis=0) if isinstance(x, np.ndarray) else x for x in args]
    for function in (case.function, case.lowered):
        got = [x.copy() if isinstance(x, np.ndarray) else x for x in turned]
        quietly(partial(run, function, got, EXACT))
        back = [np.roll(x, -1, axis=0) if isinstance(x, np.ndarray) else x for x in got]
        case.same(f"batch position, {function.stage} stage", back)


# -- compiled targets --------------------------------------------------------------------------------------------------


_PAD = 64  # elements of canary on both sides of every array


def padded(args: Arrays) -> tuple[Arrays, list[tuple[Any, Any]]]:
    """The arguments inside larger memory that is full of NaN (or the largest integer), and that memory with a copy."""
    moved: dict[int, Any] = {}
    memory: list[tuple[Any, Any]] = []
    for x in args:
        if not isinstance(x, np.ndarray) or id(x) in moved:
            continue
        span = 1 + sum(max(n - 1, 0) * s for n, s in zip(x.shape, x.strides, strict=True)) // x.itemsize
        whole = np.frombuffer(b"\xff" * ((span + 2 * _PAD) * x.itemsize), np.uint8).copy().view(x.dtype)
        if x.dtype == np.bool_:
            whole = np.ones(span + 2 * _PAD, np.bool_)
        inside: Any = np.ndarray(x.shape, x.dtype, whole, _PAD * x.itemsize, x.strides)
        inside[...] = x
        moved[id(x)] = inside
        memory.append((whole, whole.copy()))
    return [moved.get(id(x), x) for x in args], memory


def untouched(what: str, memory: list[tuple[Any, Any]]) -> None:
    for whole, before in memory:
        ends = [x.view(np.uint8) for half in (whole, before) for x in (half[:_PAD], half[-_PAD:])]
        if not (np.array_equal(ends[0], ends[2]) and np.array_equal(ends[1], ends[3])):
            raise Mismatch(what, "memory around an array was written")


def _targets(case: Case) -> None:
    """Every target that is here gives the exact interpreter's bits and lines, with canaries around every array."""
    from tiledsl.testing import available_targets

    for target in available_targets():
        args, memory = padded(case.args())
        with config.NUM_THREADS.override(1):
            lines = printed_by(partial(case.kernel, *args, target=target))
        case.same(f"target {target}", args)
        untouched(f"target {target}", memory)
        if lines != case.printed and not any("did not fit" in line for line in lines):
            more, fewer = list((lines - case.printed).elements()), list((case.printed - lines).elements())
            raise Mismatch(f"prints of target {target}", f"{more[:3]} instead of {fewer[:3]}")


def _workers(case: Case) -> None:
    """Any number of workers gives the same bits; again with the same number, too."""
    from tiledsl.testing import available_targets

    for target in available_targets():
        for count in (1, 2, 3):
            args = case.args()
            with config.NUM_THREADS.override(count):
                quietly(partial(case.kernel, *args, target=target))
            case.same(f"target {target}, {count} workers", args)


def _variants(case: Case) -> None:
    """Compiled: other tile sizes, and another order of the batch."""
    from tiledsl.testing import available_targets

    for target in available_targets():
        for variant in case.program.retiled(case.seed)[:1]:
            args = case.args()
            quietly(partial(variant.kernel(), *args, target=target))
            case.same(f"other tile sizes, target {target}", args)
        if case.program.batched:
            args = [np.roll(x, 1, axis=0) if isinstance(x, np.ndarray) else x for x in case.args()]
            quietly(partial(case.kernel, *args, target=target))
            back = [np.roll(x, -1, axis=0) if isinstance(x, np.ndarray) else x for x in args]
            case.same(f"batch position, target {target}", back)


def _threads(case: Case) -> None:
    """The thread stage that a GPU gets, of a generation that the seed chooses, run by the interpreter."""
    from tiledsl.backends.simt.pipeline import simt_pipeline

    arch = ("sm_90a", "sm_80", "")[case.seed % 3]
    try:
        function = run_passes(case.function, simt_pipeline(arch), [Verify()])
    except TileNotImplementedError:  # GPUs cannot do it, or not yet
        return
    case.gives_same(f"threads of {arch or 'a GPU'}", function)


ORACLES: dict[str, Callable[[Case], None]] = {
    "checked": _checked,
    "order": _order,
    "text": _text,
    "passes": _passes,
    "without": _without,
    "stages": _stages,
    "padding": _padding,
    "tiles": _tiles,
    "batch": _batch,
    "bounded": _bounded,
    "targets": _targets,
    "workers": _workers,
    "variants": _variants,
    "threads": _threads,
}
COMPILING = frozenset(["targets", "workers", "variants", "threads"])  # those that take long


def applies(name: str, program: Program) -> bool:
    """Whether the oracle has anything to compare in this program."""
    need = {"tiles": bool(program.tiles), "batch": program.batched, "stages": "Pipelined" in program.source}
    need["variants"] = need["tiles"] or need["batch"]
    return need.get(name, True)
