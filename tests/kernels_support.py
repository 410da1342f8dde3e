"""What the tests of the library share: dtypes with their roundings, random arrays, errors in units of a bound."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, Any]

# Name: NumPy type, unit roundoff, half of the smallest subnormal (the absolute error of a rounding that underflows).
DTYPES = {
    "float32": (np.dtype(np.float32), 2.0**-24, 2.0**-150),
    "float16": (np.dtype(np.float16), 2.0**-11, 2.0**-25),
    "bfloat16": (np.dtype(ml_dtypes.bfloat16), 2.0**-8, 2.0**-134),
}
U = 2.0**-24


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    return rng.standard_normal(shape, np.float32).astype(DTYPES[dtype][0])


def rounding(value: Array, dtype: str) -> Array:
    """What one rounding of `value` to the dtype can change."""
    _, u, tiny = DTYPES[dtype]
    return u * np.abs(value) + tiny


def product_bound(a: Array, b: Array, out: str) -> tuple[Array, Array]:
    """The float64 product of independent draws of zero mean, and the bound 6 sqrt(k) u sum |a b| of a float32 sum of
    k products, plus the last rounding. Leading dimensions are a batch."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    k = a.shape[-1]
    exact, size = a @ b, np.abs(a) @ np.abs(b)
    factor = min(k, 6 * k**0.5)
    slack = factor * U * (1 + factor * U) * size + k * 2.0**-150
    return exact, slack + rounding(np.abs(exact) + slack, out)


def worst(got: Array, exact: Array, bound: Array) -> float:
    """Largest error in units of its bound; equal infinities count as none, NaN as an infinite one."""
    assert got.shape == exact.shape
    with np.errstate(invalid="ignore"):
        error = np.where(got == exact, 0, np.abs(got.astype(np.float64) - exact))
    return float(np.nan_to_num(error / bound, nan=np.inf).max(initial=0.0))


def same_bits(x: Array, y: Array) -> bool:
    return x.shape == y.shape and x.dtype == y.dtype and x.tobytes() == y.tobytes()


def tensor(torch: Any, x: Array) -> Any:
    """The array as a torch tensor of the same dtype."""
    return torch.from_numpy(x.astype(np.float32)).to(getattr(torch, str(x.dtype)))
