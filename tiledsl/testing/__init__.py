"""Helpers for tests of kernels: every target must give the same numbers."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from tiledsl import config
from tiledsl.backend import backends, load_backend
from tiledsl.dtypes import as_dtype
from tiledsl.runtime import address_of, as_numpy, is_array

if TYPE_CHECKING:
    from tiledsl.testing.suite import Report

__all__ = ["assert_targets_agree", "available_targets", "conformance"]

REFERENCE = "numpy:exact"

Bound = float | Callable[[np.ndarray[Any, Any]], Any]


def available_targets() -> list[str]:
    """The targets that can run here, besides the reference; not the emulator, which takes a C++ compiler half a second
    per kernel and is asked for by name. The environment variable TILEDSL_TEST_TARGETS names others instead."""
    if named := config.TEST_TARGETS.get().split():
        return named
    left_out = ("numpy", "cuda-emulator")
    return [name for name in backends() if name not in left_out and load_backend(name).probe().ok]


def conformance(target: str, *, rounds: int = 2, only: str = "", show: Callable[[str], object] | None = None) -> Report:
    """Run the conformance suite against an installed backend; `print(conformance("name"))` says what failed.

    target  "name[:arch]"
    rounds  rounds of 20 generated programs each, besides the fixed cases
    only    a regular expression: run the cases whose names it matches
    show    is called with the name of each case before it runs
    Cases that need a dtype which the backend's capabilities do not list are skipped. `Report.ok` is true when some
    case ran and none failed. Needs hypothesis. Raises TileError when the target is not available.
    """
    from tiledsl.testing.suite import run_suite

    return run_suite(target, rounds, only, show or (lambda name: None))


def assert_targets_agree(
    kernel: Callable[..., Any],
    *args: Any,
    targets: Iterable[str] | None = None,
    bound: Bound | None = None,
    **options: Any,
) -> Any:
    """Run a kernel with the interpreter in exact mode and with each other target, on copies of the same arguments,
    and compare everything it returns and every array argument afterwards.

    kernel   called as kernel(*args, target=..., **options): a JITKernel, an eager kernel or a library function
    targets  default: all that are available here (and the reference alone, where there is no other)
    bound    None: every bit is equal (a NaN equals a NaN); else the greatest absolute difference, as a number or
             as a function of the reference's array; NaNs and infinities have to be in the same places
    Returns what the reference returned. Raises AssertionError naming the target, the array, how many elements
    differ, and the first of them.
    """
    expected, expected_args = _run(kernel, args, REFERENCE, options)
    for target in available_targets() if targets is None else targets:
        got, got_args = _run(kernel, args, target, options)
        outs, expected_outs = _flat(got), _flat(expected)
        assert len(outs) == len(expected_outs), f"{target} returns {len(outs)} arrays, not {len(expected_outs)}"
        for i, (a, b) in enumerate(zip(outs, expected_outs, strict=True)):
            _compare(f"{target}: output {i}", a, b, bound)
        for i, (a, b) in enumerate(zip(got_args, expected_args, strict=True)):
            if is_array(b):
                _compare(f"{target}: argument {i}", a, b, bound)
    return expected


def _run(
    kernel: Callable[..., Any], args: tuple[Any, ...], target: str, options: dict[str, Any]
) -> tuple[Any, list[Any]]:
    copies = [_copy(a) for a in args]
    return kernel(*copies, target=target, **options), copies


def _copy(x: Any) -> Any:
    """An equal array with the same strides (also where they overlap or leave gaps); others as they are."""
    if not is_array(x):
        return x
    if not isinstance(x, np.ndarray):
        return x.clone() if hasattr(x, "clone") else x
    if x.size == 0 or x.flags.c_contiguous:
        return x.copy()
    # The memory between the first and the last byte, gaps included.
    low, high = np.lib.array_utils.byte_bounds(x)
    memory = bytearray(ctypes.string_at(low, high - low))
    copy: np.ndarray[Any, Any] = np.ndarray(x.shape, x.dtype, memory, address_of(x) - low, x.strides)
    copy.flags.writeable = x.flags.writeable
    return copy


def _flat(result: Any) -> list[Any]:
    if result is None:
        return []
    return list(result) if isinstance(result, (list, tuple)) else [result]


def _numpy(x: Any) -> np.ndarray[Any, Any]:
    if isinstance(x, np.ndarray):
        return x
    return as_numpy(x, as_dtype(x.dtype)) if is_array(x) else np.asarray(x)


def _compare(what: str, a: Any, b: Any, bound: Bound | None) -> None:
    got, expected = _numpy(a), _numpy(b)
    assert got.shape == expected.shape and got.dtype == expected.dtype, (
        f"{what} is {got.dtype}{list(got.shape)}, the reference gives {expected.dtype}{list(expected.shape)}"
    )
    wrong = _differs(got, expected) if bound is None else _exceeds(got, expected, bound)
    if wrong.any():
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        limit = "differ" if bound is None else "differ by more than the bound"
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {wrong.size} elements {limit}; first at {list(first)}: "
            f"{got[first]!r}, the reference gives {expected[first]!r}"
        )


def _differs(got: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Elements whose bits differ; NaNs are equal, zeros of different sign are not."""
    bits = np.dtype(f"u{got.dtype.itemsize}")
    same = np.ascontiguousarray(got).view(bits) == np.ascontiguousarray(expected).view(bits)
    if as_dtype(got.dtype).is_float:
        same |= np.isnan(got) & np.isnan(expected)
    different: np.ndarray[Any, Any] = ~same
    return different


def _exceeds(got: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], bound: Bound) -> np.ndarray[Any, Any]:
    x, y = got.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        near = np.abs(x - y) <= (bound(expected) if callable(bound) else bound)
    result: np.ndarray[Any, Any] = ~(near | (x == y) | (np.isnan(x) & np.isnan(y)))
    return result
