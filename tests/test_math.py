"""The math expansions: error in units in the last place against float64 (float32) and 50 digits (float64)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ir_builder import buf, function, load, parallel, store, var

from tiledsl import ir
from tiledsl.backend import load_backend
from tiledsl.dtypes import as_dtype
from tiledsl.interp import run
from tiledsl.ir.math import EXPANSIONS, EXPANSIONS64, expansion
from tiledsl.ir.operations import OPERATIONS
from tiledsl.ir.walk import walk
from tiledsl.testing.numerics_docs import EVERY, function_of, largest_error, stretches

NAMES = ["exp2", "exp", "log2", "log", "rsqrt"]
REFERENCE = {
    "exp2": np.exp2, "exp": np.exp, "log2": np.log2, "log": np.log, "rsqrt": lambda x: 1 / np.sqrt(x),
}  # fmt: skip


def evaluate(name: str, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    dtype = as_dtype(x.dtype).name
    X, Y, n = buf("X", (x.size,), dtype), buf("Y", (x.size,), dtype), var("n")
    call = ir.Call(name, (load(X, n),), as_dtype(dtype))
    f = function([X, Y], [parallel((n,), (x.size,), store(Y, (n,), call))])
    y = np.empty_like(x)
    run(f, [x, y])
    return y


def ulps(got: np.ndarray[Any, Any], exact: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Distance of float32 results from float64 values, in units of the last place of the exact value's binade."""
    with np.errstate(all="ignore"):
        spacing = np.maximum(np.ldexp(1.0, np.frexp(np.abs(exact))[1] - 24), 2.0**-149)
        return np.abs(got.astype(np.float64) - exact) / spacing


@pytest.mark.parametrize("name", NAMES)
def test_float32_error_is_below_one_ulp(name: str) -> None:
    worst = 0.0
    step = 2039  # a prime: all exponents, many mantissas
    x = np.arange(0, 2**32, step, dtype=np.uint64).astype(np.uint32).view(np.float32)
    near_one = (np.float32(1).view(np.uint32) + np.arange(-40000, 40000)).astype(np.uint32).view(np.float32)
    near_sqrt_two = np.arange(0x3FB20000, 0x3FB504F4, dtype=np.uint32).view(np.float32)  # log2 is at its worst here
    for part in (*np.array_split(x, 8), near_one, near_sqrt_two):
        part = np.ascontiguousarray(part)
        with np.errstate(all="ignore"):
            exact = REFERENCE[name](part.astype(np.float64))
            rounded = exact.astype(np.float32)
        got = evaluate(name, part)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(rounded))
        finite = np.isfinite(exact) & (np.abs(exact) < np.finfo(np.float32).max)
        assert np.isinf(got[np.isinf(exact)]).all()
        beyond = np.isfinite(exact) & (np.abs(exact) >= 2.0**128)
        assert np.isinf(got[beyond]).all()
        worst = max(worst, float(ulps(got[finite], exact[finite]).max(initial=0)))
    limit = 1.5 if name == "rsqrt" else 1.0  # rsqrt: two correctly rounded operations
    assert worst < limit
    print(name, worst)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["log2", "log"])
def test_float32_error_where_it_is_largest(name: str) -> None:
    """Every float32 of the reduced range, where a sample may miss the worst argument by a tenth of a unit."""
    worst = 0.0
    for start in range(0x3F3504F3, 0x3FB504F3, 2**20):
        x = np.arange(start, min(start + 2**20, 0x3FB504F3), dtype=np.uint32).view(np.float32)
        worst = max(worst, float(ulps(evaluate(name, x), REFERENCE[name](x.astype(np.float64))).max()))
    assert worst < 1.0


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_every_float32(name: str) -> None:
    """Less than a unit in the last place; the same bits from all targets (the interpreter: every 16th stretch)."""
    first, *others = [t for t in ("llvm", "numba", "numpy:exact") if load_backend(t.split(":")[0]).probe().ok]
    kernel, worst, seen = function_of(name), 0.0, 0
    for number, x in enumerate(stretches()):
        kernel(x, y := np.empty_like(x), target=first)
        for other in others if number % 16 == 0 else others[:-1]:
            kernel(x, again := np.empty_like(x), target=other)
            assert np.array_equal(y.view(np.uint32), again.view(np.uint32)) or np.array_equal(y, again, equal_nan=True)
        worst, seen = max(worst, largest_error(OPERATIONS[name], y, x)[0]), seen + len(x)
    assert seen == 2**32 and worst < 1.0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_special_values(dtype: str) -> None:
    storage = as_dtype(dtype).numpy
    tiny = np.finfo(storage).smallest_subnormal
    emin = int(np.log2(float(tiny)))
    nan, inf = np.nan, np.inf
    x = np.array([0.0, -0.0, 1, inf, -inf, nan, emin, emin - 1, -1e5, 1e5, 10, -1], storage)
    np.testing.assert_array_equal(
        evaluate("exp2", x), np.array([1, 1, 2, inf, 0, nan, tiny, 0, 0, inf, 1024, 0.5], storage)
    )
    x = np.array([0.0, -0.0, inf, -inf, nan, -1e5, 1e5], storage)
    np.testing.assert_array_equal(evaluate("exp", x), np.array([1, 1, inf, 0, nan, 0, inf], storage))
    x = np.array([0.0, -0.0, 1, inf, -inf, nan, -1, tiny, 8, 0.5], storage)
    np.testing.assert_array_equal(
        evaluate("log2", x), np.array([-inf, -inf, 0, inf, nan, nan, nan, emin, 3, -1], storage)
    )
    x = np.array([0.0, -0.0, 1, inf, -inf, nan, -1], storage)
    np.testing.assert_array_equal(evaluate("log", x), np.array([-inf, -inf, 0, inf, nan, nan, nan], storage))
    assert not np.signbit(evaluate("log", np.ones(1, storage)))[0]


def test_denormal_results_round_correctly() -> None:
    x = np.linspace(-150.5, -125, 4001).astype(np.float32)
    exact = np.exp2(x.astype(np.float64))
    # half a unit of the denormals for the final rounding, one unit of a normal float32 for what precedes it
    assert (np.abs(evaluate("exp2", x) - exact) <= 0.5 * 2.0**-149 + exact * 2.0**-23).all()


def _exact64(name: str, x: float) -> Any:
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(50):
        v = mpmath.mpf(x)
        return {
            "exp2": lambda: mpmath.power(2, v), "exp": lambda: mpmath.exp(v), "log2": lambda: mpmath.log(v, 2),
            "log": lambda: mpmath.log(v), "rsqrt": lambda: 1 / mpmath.sqrt(v),
        }[name]()  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_float64_error(name: str) -> None:
    mpmath = pytest.importorskip("mpmath")
    rng = np.random.default_rng(1)
    if name.startswith("exp"):
        x = np.concatenate([rng.uniform(-700, 700, 700), rng.uniform(-1, 1, 700)])
    else:
        x = np.concatenate([np.exp2(rng.uniform(-1000, 1000, 700)), 1 + rng.uniform(-0.4, 0.5, 700)])
    got = evaluate(name, x)
    worst = 0.0
    with mpmath.workdps(50):
        for xi, yi in zip(x, got, strict=True):
            exact = _exact64(name, float(xi))
            worst = max(worst, float(abs(mpmath.mpf(float(yi)) - exact) / float(np.spacing(np.abs(float(exact))))))
    assert worst < (1.5 if name == "rsqrt" else 1.0)


def test_narrow_floats_go_through_float32() -> None:
    x = np.arange(2**16, dtype=np.uint16).view(np.float16)
    x = x[np.isfinite(x)]
    with np.errstate(over="ignore"):
        want = evaluate("exp2", x.astype(np.float32)).astype(np.float16)
    np.testing.assert_array_equal(evaluate("exp2", x), want)


def test_expansions_use_no_function_but_exactly_rounded_operations() -> None:
    allowed = (ir.Const, ir.Var, ir.Unary, ir.Binary, ir.Fma, ir.Select, ir.Cast, ir.Call)
    for table, dtype in ((EXPANSIONS, "float32"), (EXPANSIONS64, "float64")):
        for name, fn in table.items():
            assert expansion(name, dtype) is fn
            for e in (*(v for _, v in fn.lets), fn.result):
                for n in walk(e):
                    assert isinstance(n, allowed)
                    if isinstance(n, ir.Call):
                        assert n.name == "reinterpret" or n.name in table  # another expansion
    with pytest.raises(TypeError, match="cast the argument"):
        expansion("exp", "float16")
