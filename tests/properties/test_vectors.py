"""Vectors of a few lanes, casts that round towards zero, reinterpretation between widths: against NumPy."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from properties import support

import tiledsl
import tiledsl.language as T
from tiledsl import ir
from tiledsl.dtypes import as_dtype
from tiledsl.frontend.values import Value

PAIRS = """
import tiledsl.language as T

n = T.dynamic("n")

@T.prim_func
def main(X: T.Tensor((n, 2), "float32"), Y: T.Tensor((n, 2), "bfloat16"), W: T.Tensor((n,), "uint32"),
         Z: T.Tensor((n, 2), "float32"), U: T.Tensor((n,), "uint8"), Q: T.Tensor((n, 2), "float32"),
         V: T.Tensor((n,), "uint16"), S: T.Tensor((n, 4), "int16"), F: T.Tensor((n, 2), "float32")):
    with T.Kernel(1) as b:
        for i in T.Parallel(n):
            v = T.alloc_local((1,), "bfloat16x2")
            flat = T.view(v, (2,), "bfloat16")
            v[0] = T.bfloat16x2(X[i, 0], X[i, 1])
            Y[i, 0] = flat[0]
            Y[i, 1] = flat[1]
            v[0] = T.bfloat16x2(v[0][1], v[0][0])  # both are read before one is written
            W[i] = T.reinterpret(v[0], "uint32")
            before = v[0]
            v[0] = T.bfloat16x2(0)
            w = T.cast(before, "float32x2") * 2.0 + T.float32x2(1.0)
            Z[i, 0] = w[0]
            Z[i, 1] = T.extract_lane(w, 1)
            q = T.vectorized_cast(T.reinterpret(U[i], "float4_e2m1fnx2"), "float32x2")
            Q[i, 0] = q[0]
            Q[i, 1] = q[-1]
            e = T.cast(w, "float8_e4m3fnx2")
            V[i] = T.reinterpret("uint16", e)
            s = T.reinterpret(T.cast(W[i], "uint64") << 16 | T.cast(U[i], "uint64"), "int16x4")
            for k in range(4):
                S[i, k] = s[0] if k == 0 else s[1] if k == 1 else s[2] if k == 2 else s[3]
            m = T.max2(T.abs2(T.fma2(w, w, -1.0)), T.mul2(w, T.float32x2(3.0)))
            a = T.sub2(T.add2(m, 1.0), T.min2(w, m))
            F[i, 0] = a[0]
            F[i, 1] = a[1]
"""


def test_pairs_and_views_and_bits() -> None:
    n = 333
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((n, 2)) * 10.0 ** rng.uniform(-3, 3, (n, 2))).astype(np.float32)
    u = rng.integers(0, 256, n, np.uint8)
    bf16, e4m3 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
    outs = [
        np.zeros((n, 2), bf16),
        np.zeros(n, np.uint32),
        np.zeros((n, 2), np.float32),
        u,
        np.zeros((n, 2), np.float32),
    ]
    args = [x, *outs, np.zeros(n, np.uint16), np.zeros((n, 4), np.int16), np.zeros((n, 2), np.float32)]
    _, y, w, z, _, q, v, s, f = support.agree(support.kernel_from(PAIRS), *args)
    b = x.astype(bf16)
    support.assert_same(y, b, "stored through the vector, read through the view")
    words = b.view(np.uint16).astype(np.uint32)
    np.testing.assert_array_equal(w, words[:, 1] | words[:, 0] << 16)
    twice = b[:, ::-1].astype(np.float32) * np.float32(2) + np.float32(1)
    np.testing.assert_array_equal(z, twice)
    np.testing.assert_array_equal(q, tiledsl.unpack(u[:, None], "float4_e2m1fn").astype(np.float32))
    codes = np.clip(twice, -448, 448).astype(e4m3).view(np.uint8).astype(np.uint16)
    np.testing.assert_array_equal(v, codes[:, 0] | codes[:, 1] << 8)
    whole = w.astype(np.uint64) << 16 | u
    np.testing.assert_array_equal(s.view(np.uint16), np.stack([whole >> 16 * k & 0xFFFF for k in range(4)], -1))
    wide = twice.astype(np.float64)
    m = np.maximum(np.abs((wide * wide - 1).astype(np.float32)), twice * np.float32(3))
    np.testing.assert_array_equal(f, m + np.float32(1) - np.minimum(twice, m))


TOWARDS_ZERO = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


def test_rounding_towards_zero_and_to_nearest_integers() -> None:
    """The largest value of the type that is not larger than x in size, found with rational numbers."""
    outs = "".join(f', O{k}: T.Tensor((n,), "{d}")' for k, d in enumerate(TOWARDS_ZERO))
    lines = "".join(f'\n            O{k}[i] = T.cast(X[i], "{d}", round="rz")' for k, d in enumerate(TOWARDS_ZERO))
    kernel = support.kernel_from(f"""
import tiledsl.language as T

n = T.dynamic("n")

@T.prim_func
def main(X: T.Tensor((n,), "float32"), I: T.Tensor((n,), "int32"), J: T.Tensor((n,), "int32"),
         G: T.Tensor((n,), "float32"), L: T.Tensor((n,), "int32"){outs}):
    with T.Kernel(1) as b:
        for i in T.Parallel(n):{lines}
            I[i] = T.cast(X[i], "int32", round="rz")
            J[i] = T.cast(X[i], "int32", round="rn")
            G[i] = T.cast(L[i], "float32", round="rz")
""")
    rng = np.random.default_rng(1)
    x = support.random_values(as_dtype("float32"), 600, rng)
    x = np.concatenate([x, (rng.standard_normal(400) * 2.0 ** rng.integers(-12, 12, 400)).astype(np.float32)])
    x = np.concatenate([x, np.array([0.5, 1.5, 2.5, -0.5, -2.5, np.inf, -np.inf, np.nan, 0.0, -0.0], np.float32)])
    n = len(x)
    ints = rng.integers(-(2**31), 2**31, n).astype(np.int32)
    args = [x, np.zeros(n, np.int32), np.zeros(n, np.int32), np.zeros(n, np.float32), ints]
    got = support.agree(kernel, *args, *(np.zeros(n, as_dtype(d).numpy) for d in TOWARDS_ZERO))
    with np.errstate(all="ignore"):
        for d, values in zip(TOWARDS_ZERO, got[5:], strict=True):
            dtype = as_dtype(d)
            codes = np.arange(2 ** (dtype.bits - 1)).astype(f"u{dtype.bytes}").view(dtype.numpy).astype(np.float64)
            table = np.sort(codes[np.isfinite(codes)])
            below = table[np.searchsorted(table, np.abs(x.astype(np.float64)), side="right") - 1]
            finite = np.isfinite(x)
            np.testing.assert_array_equal(np.abs(values.astype(np.float64))[finite], below[finite], d)
            np.testing.assert_array_equal(np.signbit(values[finite]), np.signbit(x[finite]))
            assert np.isnan(values[np.isnan(x)].astype(np.float32)).all()
        clipped = np.clip(
            np.nan_to_num(x.astype(np.float64), nan=0, posinf=2**31, neginf=-(2**31)), -(2**31), 2**31 - 1
        )
        np.testing.assert_array_equal(got[1], np.trunc(clipped).astype(np.int64))
        np.testing.assert_array_equal(got[2], np.clip(np.rint(clipped), -(2**31), 2**31 - 1).astype(np.int64))
    for i, g in zip(ints[:200].tolist(), got[3][:200].tolist(), strict=True):
        step = Fraction(max(1, 2 ** (abs(i).bit_length() - 24)))
        assert Fraction(g) == (1 if i >= 0 else -1) * (Fraction(abs(i)) // step) * step


@pytest.mark.parametrize(
    ("name", "bits", "lanes", "bytes_"),
    [("float32x4", 32, 4, 16), ("bfloat16x2", 16, 2, 4), ("float4_e2m1fnx2", 4, 2, 1), ("uint8", 8, 1, 1),
     ("float8_e8m0fnu", 8, 1, 1), ("int4", 4, 1, 1)],
)  # fmt: skip
def test_what_a_dtype_says(name: str, bits: int, lanes: int, bytes_: int) -> None:
    dtype = T.dtype(name)
    assert (dtype.bits, dtype.lanes, dtype.bytes) == (bits, lanes, bytes_)
    assert dtype == name and dtype != "float64" and getattr(T, name) is dtype


def test_aliases_and_torch_dtypes() -> None:
    torch = pytest.importorskip("torch")
    aliases = {"float": "float32", "half": "float16", "int": "int32", "uint": "uint32", "long": "int64",
               "short": "int16", "float8_e4m3": "float8_e4m3fn"}  # fmt: skip
    for alias, name in aliases.items():
        assert T.dtype(alias) == name and getattr(T, alias) == name
    for x in (torch.float8_e5m2, torch.bfloat16, torch.uint16, np.float16, ml_dtypes.float8_e8m0fnu, bool, int, float):
        assert T.dtype(T.dtype(x).name) is T.dtype(x)
    for name in ("float16", "float8_e4m3fn", "int64", "bool"):
        assert T.dtype(name).as_torch() is getattr(torch, name)
    assert T.dtype("int4").as_torch() is torch.int8
    with pytest.raises(TypeError, match="float32x2"):
        T.dtype("float32x2").as_torch()


def test_vectors_while_tracing() -> None:
    a = T.float32x2(Value(ir.Var("x", as_dtype("float32"))), 2.0)
    assert a.dtype == "float32x2" and len(a) == 2 and a[0].dtype == "float32"
    assert (a + 1).dtype == "float32x2" and (a < 1).dtype == "boolx2" and (-a).dtype == "float32x2"
    assert T.max(a, 0.5).dtype == "float32x2" and a.astype("float16x2").dtype == "float16x2"
    assert T.reinterpret(a, "uint8x8").dtype == "uint8x8" and T.reinterpret(a, "int64").dtype == "int64"
