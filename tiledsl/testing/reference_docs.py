"""docs/reference.md from the operation table and the docstrings: `python -m tiledsl.testing.reference_docs`."""

from __future__ import annotations

import enum
import inspect
from pathlib import Path

import tiledsl.language as T
from tiledsl.ir.operations import OPERATIONS, Operation

__all__ = ["reference_text"]

_KINDS = {"float": "floats", "int": "signed", "uint": "unsigned", "bool": "bool"}
_HEAD = """# Reference

Generated from the operation table (`tiledsl/ir/operations.py`) and the docstrings; do not edit.
`T` is `tiledsl.language`. Floats are float64, float32, float16 and bfloat16. "exact" means bit-identical on every
target; an error in ulp is the largest distance from the mathematical value, and such results are bit-identical on every
target too.
"""


def reference_text() -> str:
    """The whole page."""
    families: dict[str, list[Operation]] = {}
    for row in OPERATIONS.values():
        families.setdefault(row.family, []).append(row)
    parts = [_HEAD]
    for family, rows in families.items():
        parts.append(f"\n## {family}\n")
        operators = [r for r in rows if not _function(r)]
        if operators:
            parts += ["| | meaning | takes | gives | error |", "|---|---|---|---|---|"]
            parts += [
                f"| `{r.spelling.replace('|', chr(92) + '|')}` | {r.doc} | {_takes(r)} | {_gives(r)} | {_error(r)} |"
                for r in operators
            ]
            parts.append("")
        for row in rows:
            if _function(row):
                parts += _entry(row)
    return "\n".join(parts).rstrip() + "\n"


def _function(row: Operation) -> bool:
    return hasattr(T, row.name) if row.name.isidentifier() else False


def _takes(row: Operation) -> str:
    return ", ".join(_KINDS[k] for k in row.takes)


def _gives(row: Operation) -> str:
    return {"promoted": "the common dtype", "dtype": "the dtype named"}.get(row.gives, row.gives)


def _error(row: Operation) -> str:
    if not row.arity:
        return ""
    return "exact" if row.ulps is None else f"{row.ulps:g} ulp"


def _entry(row: Operation) -> list[str]:
    value = getattr(T, row.name)
    facts = [f"takes {_takes(row)}" if row.takes else "", f"gives {_gives(row)}" if row.gives else ""]
    facts += [
        _error(row) if row.family != "Tiles" else "",
        f"checked mode reports {row.checked}" if row.checked else "",
    ]
    lines = [f"### T.{row.name}", "", f"`{row.spelling}`: {row.doc}", ""]
    if any(facts):
        lines += ["; ".join(f for f in facts if f), ""]
    if row.params and not isinstance(value, enum.EnumMeta):
        signature = inspect.signature(value)
        lines += ["```python", f"T.{row.name}({', '.join(map(_parameter, signature.parameters.values()))})", "```", ""]
        doc = inspect.getdoc(value)
        lines += [doc or "", ""]
    return lines


def _parameter(p: inspect.Parameter) -> str:
    star = "*" if p.kind is p.VAR_POSITIONAL else "**" if p.kind is p.VAR_KEYWORD else ""
    default = p.default.name if isinstance(p.default, enum.Enum) else repr(p.default)
    return star + p.name + ("" if p.default is p.empty else f"={default}")


def main() -> None:
    path = Path(__file__).parents[2] / "docs" / "reference.md"
    path.write_text(reference_text(), encoding="utf-8")
    print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
