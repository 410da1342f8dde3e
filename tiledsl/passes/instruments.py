"""Instruments for pipelines: verify, print, time, limit, and the check that a pass keeps the meaning."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

import numpy as np

from tiledsl import config
from tiledsl.errors import InternalError, TileError
from tiledsl.ir.stmt import Function
from tiledsl.passes.pipeline import Instrument, Pass, pass_text

__all__ = ["CheckSemantics", "Limit", "PrintIR", "TimePasses", "Verify", "from_environment"]

Args = Sequence[Any]


@dataclass
class Verify(Instrument):
    """Checks the tree rules of the stage after each pass."""

    def after(self, p: Pass, index: int, before: Function, result: Function, seconds: float) -> None:
        from tiledsl.ir.verifier import verify

        if result is before:
            return
        try:
            verify(result)
        except TileError as e:  # no longer the author's mistake, whatever the rule
            raise InternalError(f"after pass {pass_text(p)}: {e.message}", e.loc or before.loc, e.notes) from e


@dataclass
class PrintIR(Instrument):
    """Prints the IR after passes that changed it. names: "all" or names of passes, comma-separated."""

    names: str = "all"
    out: TextIO = field(default_factory=lambda: sys.stderr)

    def after(self, p: Pass, index: int, before: Function, result: Function, seconds: float) -> None:
        from tiledsl.ir.printer import to_text

        if self.names.strip() not in ("all", "1") and p.name not in [n.strip() for n in self.names.split(",")]:
            return
        title = f"# -- {index} {pass_text(p)}: {result.name}, stage {result.stage}"
        print(f"{title}, unchanged" if result is before else f"{title}\n{to_text(result)}", file=self.out)


@dataclass
class TimePasses(Instrument):
    """Prints the time of each pass and keeps them in `seconds`."""

    out: TextIO | None = field(default_factory=lambda: sys.stderr)
    seconds: list[tuple[str, float]] = field(default_factory=list)

    def after(self, p: Pass, index: int, before: Function, result: Function, seconds: float) -> None:
        self.seconds.append((p.name, seconds))
        if self.out is not None:
            print(f"{seconds * 1e3:9.2f} ms  {pass_text(p)}", file=self.out)


@dataclass
class Limit(Instrument):
    """Runs only the first `count` optional passes: bisection of a miscompilation."""

    count: int
    ran: int = 0

    def wants(self, p: Pass, index: int) -> bool:
        if not getattr(p, "optional", False):
            return True
        self.ran += 1
        return self.ran <= self.count


@dataclass
class CheckSemantics(Instrument):
    """Interprets before and after each pass on the same inputs, bit for bit, in exact mode.

    make_args: a seed -> fresh arguments in parameter order (arrays are written in place). A difference raises an
    InternalError that names the pass, the buffer and the first differing index.
    """

    make_args: Callable[[int], Args]
    seed: int = 0
    _last: tuple[Function, list[Any]] | None = field(default=None, init=False, repr=False, compare=False)

    def after(self, p: Pass, index: int, before: Function, result: Function, seconds: float) -> None:
        if result is before:
            return
        known = self._last  # what one pass gives is what the next one gets
        want = known[1] if known and known[0] is before else self._outcome(before)
        got = self._outcome(result)
        self._last = result, got
        for parameter, a, b in zip(before.params, want, got, strict=True):
            where = None if a is None else _first_difference(a, b)
            if where is not None:
                raise InternalError(
                    f"pass {pass_text(p)} changes what {before.name} computes: {parameter.name}{list(where)} is "
                    f"{a[where]} before it and {b[where]} after it",
                    before.loc,
                    (f"arguments made from seed {self.seed}",),
                )

    def _outcome(self, function: Function) -> list[Any]:
        from tiledsl.interp import Options, run

        args = self.make_args(self.seed)
        run(function, args, Options(exact=True))
        return [a if a is None or isinstance(a, np.ndarray) else np.asarray(a) for a in args]


def _first_difference(a: Any, b: Any) -> tuple[int, ...] | None:
    """Index of the first element with other bits (any NaN equals any NaN), or None."""
    if a.dtype.kind == "f" or a.dtype.name.startswith(("bfloat", "float")):
        same = np.isnan(a) & np.isnan(b)
    else:
        same = np.zeros(a.shape, bool)
    bits = np.dtype(f"u{a.dtype.itemsize}")
    same |= np.ascontiguousarray(a).view(bits).reshape(a.shape) == np.ascontiguousarray(b).view(bits).reshape(b.shape)
    return None if same.all() else tuple(int(i) for i in np.argwhere(~same)[0])


def from_environment(function: Function) -> tuple[Instrument, ...]:
    """The instruments that the knobs ask for."""
    found: list[Instrument] = []
    if config.PASS_LIMIT.get() >= 0:
        found.append(Limit(config.PASS_LIMIT.get()))
    if config.PRINT_IR.get():
        found.append(PrintIR(config.PRINT_IR.get()))
    if config.TIME_PASSES.get():
        found.append(TimePasses())
    if config.CHECK_SEMANTICS.get():
        found += [Verify(), CheckSemantics(lambda seed: random_args(function, seed))]
    return tuple(found)


def random_args(function: Function, seed: int, extent: int = 37) -> list[Any]:
    """Arguments that fit the function: every symbol gets an odd extent near `extent`, floats are normal, integers
    small (also negative), bools random. Shapes and strides are those that the function states.

    Raises TileValueError from `analysis.evaluate` when a shape cannot be computed."""
    from tiledsl.analysis.evaluate import evaluate

    rng = np.random.default_rng(seed)
    env: dict[Any, Any] = {s: extent + 2 * k for k, s in enumerate(function.symbols)}
    for p in function.params:
        if p.var is not None:
            env[p.var] = _random(rng, p.var.type, ())[()].item()
    args: list[Any] = []
    for p in function.params:
        if p.buffer is None:
            args.append(env[p.var])
            continue
        shape = tuple(int(evaluate(e, env)) for e in p.buffer.shape)
        if p.buffer.strides is None:
            args.append(_random(rng, p.buffer.dtype, shape))
            continue
        strides = tuple(int(evaluate(e, env)) for e in p.buffer.strides)
        span = 1 + sum(max(n - 1, 0) * s for n, s in zip(shape, strides, strict=True))
        flat = _random(rng, p.buffer.dtype, (span,))
        steps = tuple(s * flat.itemsize for s in strides)
        args.append(np.lib.stride_tricks.as_strided(flat, shape, steps))
    return args


def _random(rng: np.random.Generator, dtype: Any, shape: tuple[int, ...]) -> Any:
    if dtype.is_bool:
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.is_int:
        low = -8 if dtype.kind == "int" else 0
        return np.asarray(rng.integers(low, 8, shape)).astype(dtype.numpy)
    return np.asarray(rng.standard_normal(shape)).astype(np.float32).astype(dtype.numpy)
