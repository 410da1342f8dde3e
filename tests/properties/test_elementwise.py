"""Every elementwise operation x dtype x odd size: interpreter against the table's arithmetic, targets against it."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from properties import support
from properties.support import DTYPES, SIZES, Array

import tiledsl
from tiledsl.dtypes import as_dtype
from tiledsl.errors import TileError
from tiledsl.interp import checked
from tiledsl.ir.operations import OPERATIONS, Operation, elementwise


@functools.cache
def kernel(dtype: str, loop: str) -> tuple[tiledsl.JITKernel, list[Operation], list[Operation]]:
    rows = elementwise(as_dtype(dtype))
    return (support.elementwise_kernel(rows, dtype, loop), *support.split(rows))


def outputs(dtype: str, n: int) -> tuple[Array, Array]:
    _, numbers, flags = kernel(dtype, "Parallel")
    return np.zeros((len(numbers), n), as_dtype(dtype).numpy), np.zeros((len(flags), n), bool)


@functools.cache
def interpreted(dtype: str) -> tuple[Array, Array]:
    x, y, z, s = support.operands(dtype)
    out, flag = outputs(dtype, len(x))
    support.run_reference(kernel(dtype, "Parallel")[0], x, y, z, s, out, flag)
    return out, flag


@pytest.mark.parametrize("dtype", DTYPES)
def test_interpreter_means_what_the_table_says(dtype: str) -> None:
    """Special values in all pairs, and random bit patterns: exact, or within the row's ulps."""
    _, numbers, flags = kernel(dtype, "Parallel")
    x, y, z, s = support.operands(dtype)
    for rows, got in zip((numbers, flags), interpreted(dtype), strict=True):
        for row, values in zip(rows, got, strict=True):
            inputs = (x, s if "count" in row.draws else y, z)
            wanted = support.expected(row, as_dtype(dtype), inputs)
            if row.ulps is None:
                support.assert_same(values, wanted, f"{row.spelling} {dtype}", inputs[: row.arity])
            else:
                support.assert_within_ulps(values, wanted, as_dtype(dtype), row, inputs[: row.arity])


@pytest.mark.parametrize("dtype", DTYPES)
def test_scalar_and_lane_code_of_the_interpreter_agree(dtype: str) -> None:
    """A loop of T.serial computes with Python numbers what T.Parallel computes with arrays."""
    some = [np.ascontiguousarray(a[::7]) for a in support.operands(dtype)]  # one value after the other is slow
    serial = outputs(dtype, len(some[0]))
    support.run_reference(kernel(dtype, "serial")[0], *some, *serial)
    for a, b in zip(serial, interpreted(dtype), strict=True):
        support.assert_same(a, np.ascontiguousarray(b[:, ::7]), f"serial against parallel, {dtype}")


@pytest.mark.parametrize("loop", ["Parallel", "serial"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_targets_agree_at_every_size(dtype: str, loop: str) -> None:
    """One compiled kernel serves all sizes, bit for bit."""
    made, numbers, flags = kernel(dtype, loop)
    inputs = support.operands(dtype)
    wanted = interpreted(dtype)
    for n in (len(inputs[0]), *SIZES):
        args = [*(a[-n:].copy() for a in inputs), *outputs(dtype, n)]
        tail = [np.ascontiguousarray(w[:, -n:]) for w in wanted]
        support.check_targets(made, args, [*args[:4], *tail], f"n={n}")


@pytest.mark.parametrize("row", [r for r in OPERATIONS.values() if "zero" in r.checked], ids=lambda r: r.spelling)
def test_checked_mode_reports_division_by_zero(row: Operation) -> None:
    """What gives 0 in an ordinary run is an error with the author's line in a checked one; other divisors are not."""
    made = support.elementwise_kernel([row], "uint32", "Parallel")
    x, y = np.arange(1, 65, dtype=np.uint32), np.arange(64, dtype=np.uint32)
    out, flag = np.zeros((1, 64), np.uint32), np.zeros((0, 64), bool)
    with pytest.raises(TileError, match="zero") as caught:
        support.run_reference(made, x, y, y, y, out, flag, options=checked(poison=False))
    assert caught.value.loc is not None
    support.run_reference(made, x, y + 1, y, y, out, flag, options=checked(poison=False))
    assert (out == support.expected(row, as_dtype("uint32"), (x, y + 1))).all()
