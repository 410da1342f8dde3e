"""docs/support.md by running the conformance suite: `python -m tiledsl.testing.support_docs`.

What the page says was seen: an operation is supported for a dtype on a target if the suite's case that contains it
passed there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tiledsl.dtypes import SCALARS, as_dtype
from tiledsl.ir.operations import OPERATIONS, Operation
from tiledsl.testing.suite import Report

__all__ = ["support_text"]

_SHORT = {"float8_e4m3fn": "e4m3", "float8_e5m2": "e5m2", "float8_e8m0fnu": "e8m0", "float4_e2m1fn": "e2m1",
          "bfloat16": "bf16"}  # fmt: skip
_HEAD = """# What is supported where

Made by `python -m tiledsl.testing.support_docs`, which runs the conformance suite on every target and compares with the
interpreter in exact mode, bit for bit. {targets} and the interpreter itself (`numpy`) are the targets of this version.

"x": the operation takes this dtype, on all targets; "-": the language refuses it, with an error that says so; a name: a
target on which the case did not pass. Operations without a dtype of their own (kernels, loops, storage, hints) and
those of the thread level are listed in [reference.md](reference.md).
"""


def dtypes() -> list[str]:
    """All scalar dtypes, floats first, wide ones first."""
    order = ("float", "int", "uint", "bool")
    return sorted(SCALARS, key=lambda t: (order.index(as_dtype(t).kind), -as_dtype(t).bits, t))


def case_of(row: Operation, dtype: str) -> str | None:
    """The suite's case that exercises the row on the dtype; None where the language does not take it."""
    if row.arity and row.family != "Tiles":
        return f"elementwise {dtype} in T.Parallel" if row.accepts(as_dtype(dtype)) else None
    if row.name.startswith("reduce_"):
        return f"reductions {dtype}" if row.accepts(as_dtype(dtype)) else None
    if row.name in ("cumsum", "cummax"):
        return f"scans and reducers {dtype}"
    if row.name in ("copy", "fill", "clear"):
        return f"copies {dtype}"
    return f"atomics {dtype}" if row.name in ("atomic_add", "atomic_max", "atomic_min") else None


def support_text(reports: Sequence[Report]) -> str:
    """The page. reports: one per compiled target."""
    passed: Mapping[str, set[str]] = {r.target: set(r.passed) for r in reports}
    names, parts = dtypes(), [_HEAD.format(targets=", ".join(f"`{t}`" for t in passed))]
    families: dict[str, list[Operation]] = {}
    for row in OPERATIONS.values():
        if any(case_of(row, t) for t in names):
            families.setdefault(row.family, []).append(row)
    for family, rows in families.items():
        parts += [
            f"\n## {family}\n",
            f"| | {' | '.join(_SHORT.get(t, t) for t in names)} |",
            "|---" * (len(names) + 1) + "|",
        ]
        for row in rows:
            cells = [_cell(case_of(row, t), passed) for t in names]
            spelling = row.spelling if row.arity and row.family != "Tiles" else f"T.{row.name}"
            parts.append(f"| `{spelling.replace('|', chr(92) + '|')}` | {' | '.join(cells)} |")
    products = [c for r in reports for c in (*r.passed, *(n for n, _ in r.failed)) if c.startswith("gemm ")]
    parts += ["\n## Products\n", "| T.gemm | |", "|---|---|"]
    parts += [f"| {c.removeprefix('gemm ')} | {_cell(c, passed)} |" for c in dict.fromkeys(products)]
    kinds = ("elementwise", "casts", "copies", "reductions", "scans", "atomics", "gemm", "generated", "protocol")
    others = [c for c in reports[0].passed if not c.startswith(kinds)]
    parts += ["\n## Programs of the suite\n", "| | |", "|---|---|", *(f"| {c} | {_cell(c, passed)} |" for c in others)]
    return "\n".join(parts) + "\n"


def _cell(case: str | None, passed: Mapping[str, set[str]]) -> str:
    if case is None or not any(case in found for found in passed.values()):
        return "-"
    missing = [t for t, found in passed.items() if case not in found]
    return "x" if not missing else f"not {', '.join(missing)}"


def main() -> None:
    from tiledsl.testing import available_targets, conformance

    reports = [conformance(t, rounds=0) for t in available_targets()]
    path = Path(__file__).parents[2] / "docs" / "support.md"
    path.write_text(support_text(reports), encoding="utf-8")
    for report in reports:
        print(report)
    print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
