"""The inverse functions, hypot and ldexp: special values, errors against wider arithmetic, the same bits compiled."""

import math
from typing import Any

import numpy as np
import pytest
from kernels_support import close

import tiledsl
import tiledsl.language as T
from tiledsl.errors import TileError

Array = np.ndarray[Any, Any]
TWO = ("atan2", "hypot")
BOUNDS = {  # units in the last place, of float32 (computed in float64) and float64
    "atan": (0.6, 1.0), "asin": (0.6, 1.0), "acos": (0.6, 1.0), "atan2": (0.6, 1.5), "hypot": (0.51, 1.0),
    "asinh": (0.51, 2.0), "acosh": (0.51, 3.0), "atanh": (0.51, 2.0),
}  # fmt: skip
TARGETS = ["numpy:exact", "numba", "llvm"]


@tiledsl.jit(out_idx=[-1])
def two_floats(n, dtype, name):
    @T.prim_func
    def main(X: T.Tensor((n,), dtype), Y: T.Tensor((n,), dtype), R: T.Tensor((n,), dtype)):
        with T.Kernel(1):
            for i in T.Parallel(n):
                R[i] = getattr(T, name)(X[i], Y[i]) if name in TWO else getattr(T, name)(X[i])

    return main


@tiledsl.jit(out_idx=[-1])
def scaled(n, dtype, integer):
    @T.prim_func
    def main(X: T.Tensor((n,), dtype), N: T.Tensor((n,), integer), R: T.Tensor((n,), dtype)):
        with T.Kernel(1):
            for i in T.Parallel(n):
                R[i] = T.ldexp(X[i], N[i])

    return main


def arguments(name: str, dtype: Any) -> tuple[Array, Array]:
    rng = np.random.default_rng(len(name))
    low, high = (-149, 127) if dtype is np.float32 else (-1074, 1022)
    near = np.exp2(rng.uniform(-8, 6, 700)) * rng.choice([-1, 1], 700)
    far = np.exp2(rng.uniform(low, high, 700)) * rng.choice([-1, 1], 700)
    unit = rng.choice([-1, 1], 700) * (1 - np.exp2(rng.uniform(-20, 0, 700)))
    special = np.array([0.0, -0.0, math.inf, -math.inf, math.nan, 1, -1, 0.5, 2])
    x = np.concatenate([near, far, unit, np.repeat(special, special.size)])
    y = np.concatenate(
        [rng.permutation(near), far * np.exp2(rng.uniform(-70, 0, 700)), unit[::-1], np.tile(special, 9)]
    )
    return x.astype(dtype), y.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", BOUNDS)
def test_errors_special_values_and_targets(name: str, dtype: Any) -> None:
    x, y = arguments(name, dtype)
    if name == "acosh":
        x = np.abs(x) + (x < 0)
    kernel = two_floats(x.size, np.dtype(dtype).name, name)
    got = kernel(x, y, target="numpy:exact")
    numpy = getattr(np, {"atan2": "arctan2", "hypot": "hypot"}.get(name, f"arc{name[1:]}"))
    wide = [v.astype(np.longdouble) for v in ((x, y) if name in TWO else (x,))]
    with np.errstate(all="ignore"):
        exact = numpy(*wide)
        rounded = exact.astype(dtype)
        finite = np.isfinite(rounded)
        np.testing.assert_array_equal(got[~finite], rounded[~finite])
        assert (np.signbit(got) == np.signbit(rounded))[~np.isnan(rounded)].all()
        error = np.abs(got.astype(np.longdouble) - exact)[finite] / np.spacing(np.abs(rounded[finite]))
    assert error.max() < BOUNDS[name][dtype is np.float64], (name, float(error.max()), x[finite][error.argmax()])
    for target in TARGETS[1:]:
        other = kernel(x, y, target=target)
        assert ((other.view(f"u{got.itemsize}") == got.view(f"u{got.itemsize}")) | np.isnan(got)).all(), target


@pytest.mark.parametrize("integer", ["int32", "int64", "int8"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_ldexp_rounds_once(dtype: Any, integer: str) -> None:
    """Also into and out of the denormals; exponents beyond any float, of any integer type."""
    rng = np.random.default_rng(3)
    limits = np.iinfo(integer)
    x = np.ldexp(rng.uniform(0.5, 1, 900), rng.integers(-1074, 1024, 900)) * rng.choice([-1, 1], 900)
    if dtype is not np.float64:
        x = np.ldexp(rng.uniform(0.5, 1, 900), rng.integers(-149 if dtype is np.float32 else -24, 16, 900))
    x = np.concatenate([x, [0.0, -0.0, math.inf, -math.inf, math.nan, 1, 1, 1]]).astype(dtype)
    n = np.concatenate([np.clip(rng.integers(-2200, 2200, 905), limits.min, limits.max), [0, limits.min, limits.max]])
    n[::5] = np.clip(n[::5], -40, 40)
    kernel = scaled(x.size, np.dtype(dtype).name, integer)
    with np.errstate(all="ignore"):
        inner = np.float64 if dtype is np.float64 else np.float32
        want = np.ldexp(x.astype(inner), np.clip(n, -5000, 5000).astype(np.int32)).astype(dtype)
    for target in TARGETS:
        np.testing.assert_array_equal(kernel(x, n.astype(integer), target=target), want, err_msg=target)


def test_ldexp_wants_an_integer() -> None:
    with pytest.raises(TileError, match="n is an integer"):
        scaled(4, "float32", "float32")


def test_names_of_c() -> None:
    @tiledsl.jit(out_idx=[-1])
    def made():
        @T.prim_func
        def main(X: T.Tensor((4,), "float32"), R: T.Tensor((3, 4), "float32")):
            with T.Kernel(1):
                for i in T.Parallel(4):
                    R[0, i] = T.call_extern("float32", "atan2f", X[i], 2.0)
                    R[1, i] = T.call_extern("float32", "ldexpf", X[i], 3)
                    R[2, i] = T.call_extern("float32", "acosf", X[i] / 8)

        return main

    x = np.array([-3, 0, 0.5, 7], np.float32)
    wide = x.astype(np.float64)
    want = np.stack([np.arctan2(wide, 2), wide * 8, np.arccos(wide / 8)])
    for target in TARGETS:
        assert close(made()(x, target=target), want, 4)  # 2 ulp at most
