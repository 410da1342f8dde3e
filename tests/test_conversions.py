"""The table of conversions: exhaustive for sources of 16 bits and less, sampled and special values beyond."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tiledsl.conversions import convert
from tiledsl.dtypes import DType, as_dtype


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Signalling NaNs and overflow are among the values; the interpreter runs under the same setting."""
    with np.errstate(all="ignore"):
        yield


NARROW = ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float4_e2m1fn"]
FLOATS = [*NARROW, "float32", "float64"]
INTS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "int4", "uint4"]
EVERY = [*FLOATS, *INTS, "bool"]


def every_value(dtype: DType) -> np.ndarray[Any, Any]:
    """All bit patterns up to 16 bits; else random patterns, and values around every rounding boundary."""
    if dtype.is_bool:
        return np.array([False, True])
    if dtype.bits == 4:
        codes = np.arange(16, dtype=np.uint8)
        if dtype.is_float:
            return codes.view(dtype.numpy)
        return ((codes.astype(np.int8) ^ 8) - 8 if dtype.kind == "int" else codes).astype(dtype.numpy)
    if dtype.bits <= 16:
        return np.arange(2**dtype.bits, dtype=np.uint32).astype(f"u{dtype.bits // 8}").view(dtype.numpy)
    rng = np.random.default_rng(dtype.bits)
    raw = np.frombuffer(rng.bytes(20000 * dtype.bits // 8), dtype.numpy)
    if dtype.is_float:
        with np.errstate(all="ignore"):
            edges = np.concatenate([edge_values(as_dtype(n)) for n in [*NARROW, "float32"]])
            special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 2.0**31, -(2.0**31), 2.0**63, 2.0**64, -1.5, 255.5])
            out = np.concatenate([edges, special]).astype(dtype.numpy)
            return np.concatenate(
                [raw, out, np.nextafter(out, dtype.numpy.type(0)), np.nextafter(out, dtype.numpy.type(np.inf))]
            )
    info = np.iinfo(dtype.numpy)
    powers = [s * (2**k) + d for k in range(dtype.bits) for s in (1, -1) for d in (-1, 0, 1)]
    halves = [(2**53 + 1) << k for k in range(10)] + [((1 << 9) + 1 << 40) + d for d in (-1, 0, 1)]
    whole = [v for v in powers + halves if info.min <= v <= info.max] + [info.min, info.max]
    return np.concatenate([raw, np.array(whole, dtype.numpy)])


def edge_values(dtype: DType) -> np.ndarray[Any, Any]:
    """float64: values of the type and the midpoints between neighbours."""
    if dtype.bits > 16:
        codes = np.random.default_rng(0).integers(0, 2**31, 2000).astype(np.uint32)
        codes = np.sort(
            np.concatenate([codes, codes + 1, [0, 1, 2, 0x7F7FFFFF, 0x7F7FFFFE, 0x800000, 0x7FFFFF]]).astype(np.uint32)
        )
        values = codes.view(np.float32).astype(np.float64)
    else:
        values = every_value(dtype).astype(np.float32).astype(np.float64)
        if len(values) > 4096:
            values = values[::13]
    values = np.unique(values[np.isfinite(values)])
    middle = (values[1:] + values[:-1]) / 2
    return np.concatenate([values, middle, [1.5 * values.max(), 2 * values.max()]])


class Format:
    """A float format by its table of values: an oracle that knows nothing of the implementation."""

    def __init__(self, dtype: DType) -> None:
        self.dtype = dtype
        codes = every_value(dtype)
        wide = codes.astype(np.float32).astype(np.float64)
        positive = np.isfinite(wide) & ~np.signbit(wide)
        order = np.argsort(wide[positive], kind="stable")
        self.values = [Fraction(float(v)) for v in wide[positive][order]]
        self.codes = codes[positive][order]

    def nearest(self, x: Fraction) -> Any:
        """Magnitude x >= 0 to the nearest value, ties to the even code; None beyond the last tie point."""
        import bisect

        i = bisect.bisect_left(self.values, x)
        if i == len(self.values):
            step = self.values[-1] - self.values[-2]
            return self.codes[-1] if x < self.values[-1] + step / 2 else None
        if self.values[i] == x or i == 0:
            return self.codes[i]
        low, high = x - self.values[i - 1], self.values[i] - x
        even = int(self.codes[i].view(f"u{self.codes.itemsize}")) % 2 == 0
        return self.codes[i] if high < low or (high == low and even) else self.codes[i - 1]


def same(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Equal bits, or both NaN."""
    kind = np.dtype(f"u{a.itemsize}")
    return (a.view(kind) == b.view(kind)) | ((a != a) & (b != b))


def test_every_pair_gives_the_storage_type_and_shape() -> None:
    with np.errstate(all="ignore"):
        for src, dst in itertools.product(map(as_dtype, EVERY), repeat=2):
            x = np.array([0, 1, 1, 0]).astype(np.float32).astype(src.numpy)
            for part in (x, x.reshape(2, 2)[:, ::-1], x[:0], x[1:2].reshape(())):
                y = convert(part, src, dst)
                assert y.dtype == dst.numpy and y.shape == part.shape
            assert convert(x, src, src) is x


@pytest.mark.parametrize("dst", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"])
@pytest.mark.parametrize("src", [*FLOATS, "int64", "uint64", "int16"])
def test_to_narrow_floats_rounds_once_to_nearest_even(src: str, dst: str) -> None:
    source, target = as_dtype(src), as_dtype(dst)
    if source is target:
        return  # the value itself, infinities included
    oracle = Format(target)
    saturates = target.bits <= 8
    x = every_value(source)
    step = max(1, len(x) // 5000) if source.bits > 8 else 1
    x = x[::step]
    with np.errstate(all="ignore"):
        got = convert(x, source, target)
        exact = x.astype(np.float32) if source.is_float and source.bits < 64 else x
    sign_bit = target.bits - 1
    for value, code in zip(exact.tolist(), got, strict=True):
        bits = int(code.view(f"u{got.itemsize}"))
        if value != value:
            if target.bits == 4:
                assert bits == 7
            else:
                assert code != code
            continue
        negative = value < 0 or (value == 0 and np.signbit(value))
        assert bits >> sign_bit & 1 == int(negative), (value, bits)
        magnitude = bits & ((1 << sign_bit) - 1)
        want = None if value in (np.inf, -np.inf) else oracle.nearest(abs(Fraction(value)))
        if want is None:
            largest = int(oracle.codes[-1].view(f"u{got.itemsize}"))
            assert magnitude == (largest if saturates else int(np.array(np.inf, target.numpy).view(f"u{got.itemsize}")))
        else:
            assert magnitude == int(want.view(f"u{got.itemsize}")), (value, bits)


def test_all_float16_and_bfloat16_values_to_every_narrow_float() -> None:
    """Against ml_dtypes where it agrees with the rule: everywhere but saturation and e2m1's NaN."""
    with np.errstate(all="ignore"):
        for src, dst in itertools.product(
            ["float16", "bfloat16"], ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]
        ):
            source, target = as_dtype(src), as_dtype(dst)
            x = every_value(source)
            wide = x.astype(np.float32)
            limit = float(ml_dtypes.finfo(target.numpy).max)
            got = convert(x, source, target)
            inside = np.abs(wide) <= limit
            want = wide.astype(target.numpy)
            assert same(got, want)[inside].all()
            if target.bits == 8:
                over = np.abs(wide) > limit
                assert (np.abs(got[over].astype(np.float32)) == limit).all()


def test_e8m0_rounds_up() -> None:
    target = as_dtype("float8_e8m0fnu")
    for name in ("float32", "float64", "bfloat16", "float16"):
        source = as_dtype(name)
        x = every_value(source)[:: 7 if source.bits > 8 else 1]
        with np.errstate(all="ignore"):
            got = convert(x, source, target).view(np.uint8)
            wide = x.astype(np.float64)
        for value, code in zip(wide.tolist(), got.tolist(), strict=True):
            if value != value:
                assert code == 0xFF
            elif value <= 2.0**-127:
                assert code == 0
            elif value > 2.0**127:
                assert code == 0xFE
            else:
                assert 2.0 ** (code - 127) >= value > 2.0 ** (code - 128)
    back = convert(np.arange(256, dtype=np.uint8).view(target.numpy), target, as_dtype("float32"))
    np.testing.assert_array_equal(back, [*np.exp2(np.arange(-127.0, 128)), np.nan])


@pytest.mark.parametrize("dst", ["float32", "float64"])
@pytest.mark.parametrize("src", NARROW)
def test_widening_is_exact(src: str, dst: str) -> None:
    source, target = as_dtype(src), as_dtype(dst)
    x = every_value(source)
    wide = x.astype(np.float32)  # ml_dtypes widens exactly
    if src == "float8_e8m0fnu":
        wide = np.array([*np.exp2(np.arange(-127.0, 128)), np.nan], np.float32)
    assert same(convert(x, source, target), wide.astype(target.numpy)).all()


@pytest.mark.parametrize("dst", INTS)
@pytest.mark.parametrize("src", FLOATS)
def test_float_to_int_truncates_and_saturates(src: str, dst: str) -> None:
    source, target = as_dtype(src), as_dtype(dst)
    x = every_value(source)[:: 1 if source.bits <= 8 else 5]
    with np.errstate(all="ignore"):
        got = convert(x, source, target)
        values = convert(x, source, as_dtype("float64")).tolist()
    low = -(2 ** (target.bits - 1)) if target.kind == "int" else 0
    high = low + 2**target.bits - 1
    for value, result in zip(values, got.tolist(), strict=True):
        if value != value:
            want = 0
        elif value in (np.inf, -np.inf):
            want = high if value > 0 else low
        else:
            want = min(max(int(value), low), high)
        assert int(result) == want, value


@pytest.mark.parametrize("dst", INTS)
@pytest.mark.parametrize("src", [*INTS, "bool"])
def test_int_to_int_wraps(src: str, dst: str) -> None:
    source, target = as_dtype(src), as_dtype(dst)
    x = every_value(source)[::3]
    low = -(2 ** (target.bits - 1)) if target.kind == "int" else 0
    for value, result in zip(x.tolist(), convert(x, source, target).tolist(), strict=True):
        assert int(result) == (int(value) - low) % 2**target.bits + low


@pytest.mark.parametrize("src", INTS)
def test_int_to_wide_floats_rounds_once(src: str) -> None:
    source = as_dtype(src)
    x = every_value(source)
    for value, result in zip(x.tolist(), convert(x, source, as_dtype("float64")).tolist(), strict=True):
        assert result == float(int(value))
    oracle = Format32()
    for value, result in zip(x.tolist(), convert(x, source, as_dtype("float32")).tolist(), strict=True):
        assert result == oracle.round(int(value))


class Format32:
    """Integers to the nearest float32, by integer arithmetic."""

    def round(self, v: int) -> float:
        m = abs(v)
        shift = max(0, m.bit_length() - 24)
        q, rest = divmod(m, 1 << shift)
        half = (1 << shift) >> 1
        if shift and (rest > half or (rest == half and q & 1)):
            q += 1
        return float(q << shift) * (1 if v >= 0 else -1)


@pytest.mark.parametrize("src", EVERY)
def test_to_bool_is_not_zero(src: str) -> None:
    source = as_dtype(src)
    x = every_value(source)
    wide = convert(x, source, as_dtype("float64"))
    np.testing.assert_array_equal(convert(x, source, as_dtype("bool")), wide != 0)


def test_agrees_with_torch_where_the_rules_agree() -> None:
    torch = pytest.importorskip("torch")
    x = every_value(as_dtype("float32"))
    t = torch.from_numpy(x.copy())
    for name, torch_type in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        want = t.to(torch_type).view(torch.int16).numpy().view(as_dtype(name).numpy)
        with np.errstate(all="ignore"):
            assert same(convert(x, as_dtype("float32"), as_dtype(name)), want).all()
