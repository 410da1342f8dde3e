"""Maxima and minima of long rows: found in several registers at once, which must not show in any bit."""

from __future__ import annotations

import numpy as np
import pytest
from properties import support

from tiledsl.dtypes import as_dtype


@pytest.mark.parametrize("op", ["max", "min", "absmax"])
@pytest.mark.parametrize("n", [64, 133, 261])
def test_zeros_nans_and_ties_of_long_rows(op: str, n: int) -> None:
    """Rows of special values, among them signed zeros and NaN alone; the order of zeros is part of the meaning."""
    made = support.kernel_from(f"""
import tiledsl.language as T

@T.prim_func
def main(X: T.Tensor((40, {n}), "float32"), Y: T.Tensor((40,), "float32")):
    with T.Kernel(1) as bx:
        x = T.alloc_fragment((40, {n}), "float32")
        y = T.alloc_fragment((40,), "float32")
        T.copy(X, x)
        T.reduce_{op}(x, y, dim=1)
        T.copy(y, Y)
""")
    rng = np.random.default_rng(n)
    x = rng.choice(support.specials(as_dtype("float32")), (40, n)).astype(np.float32)
    x[:8] = rng.choice(np.array([0.0, -0.0], np.float32), (8, n))
    x[8:12] = np.where(rng.random((4, n)) < 0.5, np.nan, -0.0)
    x[12], x[13], x[14] = np.nan, -0.0, -np.inf
    x[15], x[15, n - 1] = -0.0, 0.0
    x[16], x[16, 17] = 0.0, -0.0
    got = support.agree(made, x, np.zeros(40, np.float32), what=f"{op} {n}")[1]
    if op != "absmax":
        assert np.signbit(got[15]) == (op == "min") == np.signbit(got[16])
        with np.errstate(all="ignore"):
            wanted = np.fmax.reduce(x[17:], axis=1) if op == "max" else np.fmin.reduce(x[17:], axis=1)
        assert ((got[17:] == wanted) | (np.isnan(wanted) & ~np.isfinite(got[17:]))).all()
