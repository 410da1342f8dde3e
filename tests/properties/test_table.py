"""The operation table is complete: the surface, the IR's operators and the reference docs agree with it."""

from __future__ import annotations

import enum
import inspect
from pathlib import Path
from typing import Any

import pytest
from properties import support
from properties.support import DTYPES

import tiledsl.language as T
from tiledsl import ir
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import TileError
from tiledsl.ir.expr import BINARY_OPS, UNARY_OPS
from tiledsl.ir.intrinsics import INTRINSICS
from tiledsl.ir.operations import OPERATIONS, elementwise
from tiledsl.ir.walk import walk
from tiledsl.testing.numerics_docs import functions, numerics_text
from tiledsl.testing.reference_docs import reference_text

SURFACE = {name: getattr(T, name) for name in T.__all__ if not isinstance(getattr(T, name), DType)}


def parameters(function: Any) -> tuple[str, ...]:
    """Parameter names; values that are no functions (annotations, enumerations) have none."""
    if isinstance(function, enum.EnumMeta) or not callable(function):
        return ()
    try:
        return tuple(inspect.signature(function).parameters)
    except ValueError:
        return ()


@pytest.mark.parametrize("name", SURFACE)
def test_every_public_name_has_a_row(name: str) -> None:
    """Aliases (T.Serial) share the row of the function they are."""
    row = OPERATIONS.get(name)
    if row is None:
        assert any(SURFACE[other] is SURFACE[name] for other in OPERATIONS if other in SURFACE), f"T.{name} has no row"
        return
    if inspect.isclass(SURFACE[name]) and not row.params:
        return
    assert row.params == parameters(SURFACE[name])


def test_every_row_is_on_the_surface_and_documented() -> None:
    for name, row in OPERATIONS.items():
        assert row.doc and row.family and row.spelling, name
        if row.spelling != name:
            assert name in SURFACE, f"the table has {name}, the language does not"
            assert inspect.getdoc(SURFACE[name]), f"T.{name} has no docstring"


def test_the_rows_reach_every_operator_of_the_ir() -> None:
    """An operator or intrinsic that no generated kernel contains would go untested."""
    found: set[str] = set()
    for dtype in DTYPES:
        function = support.elementwise_kernel(elementwise(as_dtype(dtype)), dtype, "Parallel").function
        for n in walk(function.kernels[0].body):
            if isinstance(n, (ir.Binary, ir.Unary)):
                found.add(n.op)
            elif isinstance(n, ir.Call):
                found.add(n.name)
    elsewhere = {"reinterpret", "popcount", "clz", "brev", "round_away"}  # tests/test_functions.py
    elsewhere |= {"ldexp", "scalb"}  # tests/test_math_inverse.py; a part of exp
    vectors_only = {i.name for i in INTRINSICS.values() if i.takes == "vector"}
    assert (BINARY_OPS | UNARY_OPS | set(INTRINSICS)) - found - vectors_only - elsewhere == set()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_refuse_dtypes_that_they_do_not_take(dtype: str) -> None:
    """What the table leaves out is an author's error with a place and a remedy, or promotes to another dtype."""
    d = as_dtype(dtype)
    outside = [r for r in OPERATIONS.values() if r.arity and r.family != "Tiles" and not r.accepts(d)]
    for row in outside:
        source = f"""
import tiledsl.language as T

@T.prim_func
def main(X: T.Tensor((8,), "{dtype}"), O: T.Tensor((8,), "float64")):
    with T.Kernel(1):
        for i in T.Parallel(8):
            x = y = z = X[i]
            O[i] = {row.spelling}
"""
        promotes = d.is_bool or row.spelling in ("x and y", "x or y", "not x")
        if promotes:
            continue
        with pytest.raises(TileError) as caught:
            support.kernel_from(source)
        assert caught.value.loc is not None and caught.value.help, f"{row.spelling} of {dtype}: {caught.value}"


def test_the_reference_is_the_one_that_the_table_makes() -> None:
    path = Path(__file__).parents[2] / "docs" / "reference.md"
    assert path.read_text(encoding="utf-8") == reference_text(), "run python -m tiledsl.testing.reference_docs"


def test_the_page_of_numerics_is_up_to_date() -> None:
    """Its functions, promises and steps; what was measured is taken from the page, and keeps the promises."""
    path = Path(__file__).parents[2] / "docs" / "numerics.md"
    page, measured = path.read_text(encoding="utf-8"), {}
    for line in page.splitlines():
        if line.startswith("| `"):
            spelling, promised, single, at, double, *_ = line.strip("| ").split(" | ")
            measured[spelling[3 : spelling.index("(")]] = found = float(single), float(at), float(double)
            assert max(found[0], found[2]) <= float(promised), spelling
    assert set(measured) == set(functions())
    assert page == numerics_text(measured), "run python -m tiledsl.testing.numerics_docs"
