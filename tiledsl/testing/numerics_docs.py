"""docs/numerics.md by measuring the math functions: `python -m tiledsl.testing.numerics_docs`.

Arguments are float32 numbers in the order of their bits; the exact values are NumPy's in float64 (float64: longdouble).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import tiledsl
import tiledsl.language as T
from tiledsl.ir.math import EXPANSIONS
from tiledsl.ir.operations import OPERATIONS, Operation
from tiledsl.ir.walk import walk

__all__ = ["EVERY", "function_of", "functions", "largest_error", "numerics_text", "stretches", "ulps"]

Array = np.ndarray[Any, Any]

EVERY = ("exp2", "exp")  # measured over every float32, others over every STEP-th
STEP, SAMPLE, STRETCH = 1021, 1 << 20, 1 << 16
_HEAD = """# Numerics

Made by `python -m tiledsl.testing.numerics_docs`, which measures; do not edit.

`+ - * /`, `T.sqrt`, `T.fma`, casts, comparisons and choices round at most once, to nearest even, and have the same
bits on every target. Functions have no library behind them: each is written once in those operations
(`tiledsl/ir/math.py`), and interpreter, vector code and scalar code take the same steps. So their bits are equal
everywhere, too, and an error below is that of every target.

Largest errors in units in the last place: "promised" is what tests hold functions to, "found" what was measured, over
every float32 (exp2, exp) or every 1,021st of them (4.2 million arguments in all binades), and over 2^20 drawn float64
numbers. float16 and bfloat16 go through float32 and are rounded once more. "steps": operations of the expansion in
float32; so many of them are fused multiply-adds.

| | promised | float32, found | at | float64, found | steps | fma |
|---|---|---|---|---|---|---|
"""
_TAIL = """
Infinities, NaN, signed zeros and numbers below the smallest normal one are arguments and results like others.
`T.__exp` and its like may be the approximations of a GPU; on CPUs they are the functions above.
"""


@cache
def function_of(name: str, dtype: str = "float32") -> tiledsl.JITKernel:
    """Y = T.<name>(X) over arrays of any length."""
    n, function = T.dynamic("n"), getattr(T, name)

    @T.prim_func
    def apply(X: T.Tensor((n,), dtype), Y: T.Tensor((n,), dtype)):  # type: ignore[no-untyped-def,valid-type]
        with T.Kernel(T.ceildiv(n, 4096)) as b:
            for i in T.Parallel(4096):
                Y[b * 4096 + i] = function(X[b * 4096 + i])

    return tiledsl.compile(apply)


def stretches(step: int = 1) -> Iterator[Array]:
    """Every step-th float32, in the order of their bits, in arrays of one sign."""
    line = np.arange(STRETCH, dtype=np.uint32) * np.uint32(step)
    for sign in (0, 1 << 31):
        for first in range(sign, sign + (1 << 31), STRETCH * step):
            yield (line + np.uint32(first))[: -(-(sign + (1 << 31) - first) // step)].view(np.float32)


def ulps(got: Array, exact: Array) -> Array:
    """Distances of float32 results from exact values, in units in the last place of the exact one; 0 where both are
    NaN, infinite where one is. 2**128 and beyond are infinity."""
    top = 2.0**128
    unit = np.maximum((exact.view(np.uint64) & np.uint64(0x7FF << 52)).view(np.float64) * 2.0**-23, 2.0**-149)
    with np.errstate(invalid="ignore"):
        error = np.abs(np.clip(got.astype(np.float64), -top, top) - np.clip(exact, -top, top)) / np.minimum(
            unit, 2.0**104
        )
    missing = np.isnan(got), np.isnan(exact)
    return np.where(missing[0] | missing[1], np.where(missing[0] & missing[1], 0.0, np.inf), error)


def largest_error(row: Operation, got: Array, x: Array) -> tuple[float, float]:
    """(ulps, the argument) of results for arguments in the order of their bits.

    A function that never turns between the ends and gives one value all along is as far from it as at an end.
    """
    assert row.real is not None
    if row.name in EVERY and (got == got[0]).all():
        got, x = got[[0, -1]], x[[0, -1]]
    with np.errstate(all="ignore"):
        error = ulps(got, row.real(x.astype(np.float64)))
    worst = int(error.argmax())
    return float(error[worst]), float(x[worst])


def functions() -> Mapping[str, Operation]:
    """Rows of the functions of one float that have a name of their own."""
    return {n: r for n, r in OPERATIONS.items() if r.ulps is not None and r.arity == 1 and n in EXPANSIONS}


def _float32(name: str) -> tuple[float, float]:
    row, kernel, found = OPERATIONS[name], function_of(name), []
    for x in stretches(1 if name in EVERY else STEP):
        kernel(x, y := np.empty_like(x))
        found.append(largest_error(row, y, x))
    return max(found)


def _float64(name: str) -> float:
    """Over numbers of all sizes and over those between -20 and 20, where they have values."""
    row, rng = OPERATIONS[name], np.random.default_rng(0)
    bits = rng.integers(0, 1 << 64, SAMPLE // 2, np.uint64, endpoint=False).view(np.float64)
    x = np.concatenate([bits[np.isfinite(bits)], rng.uniform(-20, 20, SAMPLE // 4), rng.uniform(-1, 1, SAMPLE // 4)])
    function_of(name, "float64")(x, y := np.empty_like(x))
    assert row.real is not None
    with np.errstate(all="ignore"):
        exact = row.real(x.astype(np.longdouble))
        held = np.isfinite(exact.astype(np.float64)) & np.isfinite(y)
        unit = np.spacing(np.abs(exact[held].astype(np.float64)))
        return float((np.abs(y[held] - exact[held]) / unit).max())


def numerics_text(measured: Mapping[str, tuple[float, float, float]]) -> str:
    """The page. measured: per function the largest error in float32, its argument, the largest error in float64."""
    lines = []
    for name, row in functions().items():
        body = EXPANSIONS[name]
        nodes = [n for e in (*(v for _, v in body.lets), body.result) for n in walk(e)]
        steps = [type(n).__name__ for n in nodes if type(n).__name__ not in ("Const", "Var")]
        single, at, double = measured[name]
        lines.append(
            f"| `{row.spelling}` | {row.ulps:g} | {single:.3f} | {at:.9g} | {double:.2f} | {len(steps)} | "
            f"{steps.count('Fma')} |"
        )
    return _HEAD + "\n".join(lines) + "\n" + _TAIL


def main() -> None:
    measured = {name: (*_float32(name), _float64(name)) for name in functions()}
    path = Path(__file__).parents[2] / "docs" / "numerics.md"
    path.write_text(numerics_text(measured), encoding="utf-8")
    print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
