"""Checks of one generated program: every way to run it must give the same bits.

`check` runs the exact interpreter first; its result is what all others are compared with.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tiledsl import config
from tiledsl.interp import Options, run
from tiledsl.ir import Function
from tiledsl.runtime import JITKernel
from tiledsl.testing.strategies import Program

__all__ = ["ORACLES", "Mismatch", "check"]

EXACT = Options(exact=True)
Arrays = list[Any]


class Mismatch(AssertionError):
    """Two ways to run one program differ; `oracle` says which check found it."""

    def __init__(self, oracle: str, message: str) -> None:
        super().__init__(f"{oracle}: {message}")
        self.oracle = oracle


def check(program: Program, seed: int = 0, oracles: Sequence[str] | None = None, every: bool = False) -> None:
    """Run the program in all ways named (default: those that need no compiler; every: all). Raises Mismatch, or what
    a way to run it raises."""
    names = list(ORACLES) if every else [n for n in ORACLES if n not in COMPILING] if oracles is None else oracles
    kernel = program.kernel()
    args = program.make_args(seed)
    run(kernel.function, args, EXACT)
    for name in names:
        ORACLES[name](program, kernel, seed, args)


def _same(oracle: str, function: Function, want: Arrays, got: Arrays) -> None:
    for p, a, b in zip(function.params, want, got, strict=True):
        if not isinstance(a, np.ndarray):
            continue
        wrong = np.argwhere(~same_bits(a, b))
        if len(wrong):
            at = tuple(int(i) for i in wrong[0])
            raise Mismatch(oracle, f"{len(wrong)} of {a.size} elements of {p.name} differ, first at {list(at)}: "
                           f"{b[at]!r}, the exact interpreter gives {a[at]!r}")  # fmt: skip


def same_bits(a: Any, b: Any) -> Any:
    """Where the bits are equal; a NaN equals a NaN."""
    width = np.dtype(f"u{a.dtype.itemsize}")
    equal = np.ascontiguousarray(a).view(width) == np.ascontiguousarray(b).view(width)
    if a.dtype.kind not in "iub":
        with np.errstate(all="ignore"):
            equal |= np.isnan(a) & np.isnan(b)
    return equal.reshape(a.shape)


# -- interpreter -------------------------------------------------------------------------------------------------------


def _checked(program: Program, kernel: JITKernel, seed: int, want: Arrays) -> None:
    """The checked mode finds neither races nor poison, and the order of the blocks does not matter."""
    args = program.make_args(seed)
    run(kernel.function, args, Options.checked(overflow=False, block_order=seed + 1))
    _same("checked", kernel.function, want, args)


def _bounded(program: Program, kernel: JITKernel, seed: int, want: Arrays) -> None:
    """The default mode (gemm by BLAS) stays within the bound that the float64 shadow computes."""
    shadow = run(kernel.function, program.make_args(seed), Options(exact=True, shadow=True))
    args = program.make_args(seed)
    run(kernel.function, args)
    if shadow.doubtful:
        return  # a branch may have gone either way
    for p, a, b in zip(kernel.params, want, args, strict=True):
        if not isinstance(a, np.ndarray):
            continue
        report = shadow.shadow.get(p.name)
        if report is None:
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


def _text(program: Program, kernel: JITKernel, seed: int, want: Arrays) -> None:
    """Print, read, compare, print again, run."""
    from tiledsl.frontend.reader import from_text
    from tiledsl.ir.equal import equal
    from tiledsl.ir.printer import to_text

    printed = to_text(kernel.function)
    again = from_text(printed)
    if not equal(kernel.function, again, hints=True):
        raise Mismatch("text", "the printed function reads as another one")
    if to_text(again) != printed:
        raise Mismatch("text", "the function that was read prints differently")
    args = program.make_args(seed)
    run(again, args, EXACT)
    _same("text", kernel.function, want, args)


def _passes(program: Program, kernel: JITKernel, seed: int, want: Arrays) -> None:
    """Every pass of the CPU pipeline, lowering included, keeps the meaning; so does every stage's text."""
    from tiledsl.backends.cpu.pipeline import cpu_pipeline
    from tiledsl.frontend.reader import from_text
    from tiledsl.ir.equal import equal
    from tiledsl.ir.printer import to_text
    from tiledsl.ir.verifier import verify

    function = kernel.function
    changed = []
    for p in cpu_pipeline():
        before, function = function, p(function)
        if function is before:
            continue
        name = str(getattr(p, "name", p))
        changed.append(name)
        verify(function)
        args = program.make_args(seed)
        run(function, args, EXACT)
        _same(f"pass {name}", function, want, args)
    again = from_text(to_text(function))
    if not equal(function, again, hints=True):
        raise Mismatch("text of the loop stage", "it reads as another function")
    for off in SWITCHED_OFF & set(changed):
        function = kernel.function
        for p in cpu_pipeline():
            function = function if getattr(p, "name", "") == off else p(function)
        args = program.make_args(seed)
        run(function, args, EXACT)
        _same(f"without pass {off}", function, want, args)


SWITCHED_OFF = frozenset(["hoist_packs"])  # passes that the others can do without


# -- compiled targets --------------------------------------------------------------------------------------------------


_PAD = 64  # elements of canary on both sides of every array


def _padded(args: Arrays) -> tuple[Arrays, list[tuple[Any, Any]]]:
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
        inside = np.lib.stride_tricks.as_strided(whole[_PAD:], x.shape, x.strides)
        inside[...] = x
        moved[id(x)] = inside
        memory.append((whole, whole.copy()))
    return [moved.get(id(x), x) for x in args], memory


def _targets(program: Program, kernel: JITKernel, seed: int, want: Arrays) -> None:
    """Every target that is here gives the exact interpreter's bits: again, with one worker and with two, and with
    canaries around every array, which it leaves alone."""
    from tiledsl.testing import available_targets

    for target in available_targets():
        for workers in (1, 2):
            args, memory = _padded(program.make_args(seed))
            with contextlib.redirect_stdout(io.StringIO()), config.NUM_THREADS.override(workers):
                kernel(*args, target=target)
            what = f"target {target}, {workers} workers"
            _same(what, kernel.function, want, args)
            for whole, before in memory:
                ends = [x.view(np.uint8) for half in (whole, before) for x in (half[:_PAD], half[-_PAD:])]
                if not (np.array_equal(ends[0], ends[2]) and np.array_equal(ends[1], ends[3])):
                    raise Mismatch(what, "memory around an array was written")


ORACLES: dict[str, Callable[[Program, JITKernel, int, Arrays], None]] = {
    "checked": _checked,
    "text": _text,
    "passes": _passes,
    "bounded": _bounded,
    "targets": _targets,
}
COMPILING = frozenset(["targets"])
