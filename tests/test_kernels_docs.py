"""The signatures in docs/kernels.md are those of the functions."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tiledsl.kernels

TEXT = (Path(__file__).parents[1] / "docs" / "kernels.md").read_text(encoding="utf-8")
MODULES = [
    tiledsl.kernels,
    *(importlib.import_module(f"tiledsl.kernels.{m.name}") for m in pkgutil.iter_modules(tiledsl.kernels.__path__)),
]


def documented() -> Iterator[tuple[str, list[str]]]:
    """Functions in the first columns of tables, with their parameters ("*" before keywords, "..." for others)."""
    for row in re.findall(r"^\| ([^|]*) \|", TEXT, re.MULTILINE):
        for name, parameters in re.findall(r"`(\w+)\(([^`]*)\)`", row):
            yield name, [p.strip() for p in parameters.split(",") if p.strip()]


def parameters(function: Any) -> list[str]:
    found: list[str] = []
    for p in inspect.signature(function).parameters.values():
        if p.kind is p.KEYWORD_ONLY and "*" not in found:
            found.append("*")
        found.append(p.name)
    return found


def test_signatures() -> None:
    seen = 0
    for name, said in documented():
        function = next(getattr(m, name) for m in MODULES if hasattr(m, name))
        real = parameters(function)
        if "..." in said:
            assert set(said) - {"..."} <= set(real) and ("target" in said or "target" not in real), name
        else:
            assert said == real, name
        seen += 1
    assert seen > 60
