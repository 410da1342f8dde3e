"""Casts to FP8 and MXFP4, dequantisation, the lossless cast between them: bit for bit against NumPy."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_support import same_bits, tensor
from v4_reference import (
    BF16,
    E4M3,
    E5M2,
    E8M0,
    TARGETS,
    Array,
    fp4_cast,
    fp4_values,
    fp8_cast,
    loud,
    nibbles,
    pack_nibbles,
    spread,
    to_fp4,
    to_fp8,
)

from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import quant
from tiledsl.testing import assert_targets_agree

SIZES = st.sampled_from([1, 7, 17, 33, 130])
INPUT = st.sampled_from([np.dtype(np.float32), BF16, np.dtype(np.float16)])


def awkward(x: Array) -> Array:
    """Some zeros, a tiny block, infinities and NaN."""
    flat = x.reshape(-1)
    for value, step in ((0.0, 11), (np.nan, 97), (np.inf, 211), (-np.inf, 307), (1e-6, 13)):
        flat[step // 2 :: step] = value
    return x


@settings(max_examples=12)
@given(
    rows=SIZES,
    k=st.sampled_from([1, 31, 32, 129, 257]),
    dtype=INPUT,
    block=st.sampled_from([128, 64, 32]),
    out=st.sampled_from([E4M3, E5M2]),
    e8m0=st.booleans(),
    form=st.sampled_from(["token", "block", "channel"]),
    odd=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_fp8_casts(
    rows: int, k: int, dtype: Any, block: int, out: Any, e8m0: bool, form: str, odd: bool, seed: int
) -> None:
    x = loud(np.random.default_rng(seed), (rows, k), dtype, 6)
    x = awkward(x) if odd else x
    options = {"dtype": out.name, "scale_dtype": E8M0.name if e8m0 else "float32"}
    for target in TARGETS:
        if form == "block":
            shape, got = (128, 128), quant.per_block_cast(x, target=target, **options)
        elif form == "token":
            shape, got = (1, block), quant.per_token_cast(x, block=block, target=target, **options)
        else:
            shape, got = (block, 1), quant.per_channel_cast(x, block=block, target=target, **options)
        q, s = fp8_cast(x, *shape, out, e8m0)
        assert same_bits(got[1], s)
        np.testing.assert_array_equal(got[0].astype(np.float32), q.astype(np.float32))
        y = quant.dequantize(*got, block=shape, out_dtype="float32", target=target)
        with np.errstate(all="ignore"):
            wanted = q.astype(np.float32) * spread(s.astype(np.float32), *shape, x.shape)
        np.testing.assert_array_equal(y, wanted)


@settings(max_examples=12)
@given(rows=SIZES, k=st.sampled_from([32, 64, 160]), dtype=INPUT, odd=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_mxfp4_cast(rows: int, k: int, dtype: Any, odd: bool, seed: int) -> None:
    x = loud(np.random.default_rng(seed), (rows, k), dtype, 6)
    x = awkward(x) if odd else x
    q, s = fp4_cast(x)
    for target in TARGETS:
        got = quant.mxfp4_cast(x, target=target)
        assert same_bits(got[0], q) and same_bits(got[1], s)
        y = quant.dequantize(*got, block=(1, 32), out_dtype="float32", target=target)
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(y, fp4_values(q, s).astype(np.float32))


def test_ties_and_every_code_of_fp4() -> None:
    """Ties go to even (0.75 -> 1, 1.75 -> 2, 3.5 -> 4, where another tool rounds towards zero), 5 to 4."""
    x = np.zeros((1, 32), np.float32)
    x[0, :16] = [6, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -0.25, -0.75, -1.25, -1.75, -2.5, -3.5, -5, 5.01]
    wide = [6, 0, 1, 1, 2, 2, 4, 4, 0, -1, -1, -2, -2, -4, -4, 6]
    for target in TARGETS:
        q, s = quant.mxfp4_cast(x, target=target)
        assert s.astype(np.float32)[0, 0] == 1
        np.testing.assert_array_equal(fp4_values(q, s)[0, :16], wide)
    codes = np.arange(32, dtype=np.uint8)[None] % 16
    np.testing.assert_array_equal(
        to_fp4(fp4_values(pack_nibbles(codes), np.full((1, 1), 127, np.uint8).view(E8M0))), codes
    )


def test_a_power_of_two_scale_is_the_one_above() -> None:
    """448 fits with scale 1; the next float32 needs 2. 2^-126 * 6 is the smallest block of MXFP4."""
    for value, scale in ((448.0, 1.0), (np.nextafter(np.float32(448), np.float32(500)), 2.0), (1e-9, 2.0**-22)):
        x = np.full((1, 128), value, np.float32)
        assert quant.per_token_cast(x, scale_dtype=E8M0.name)[1].astype(np.float32) == scale
    q, s = quant.mxfp4_cast(np.zeros((1, 32), np.float32))
    assert s.view(np.uint8) == 1 and not q.any()


@settings(max_examples=10)
@given(
    n=st.sampled_from([1, 17, 128, 130]),
    k=st.sampled_from([32, 128, 160]),
    reach=st.integers(0, 14),
    per_token=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_fp4_to_fp8_is_lossless(n: int, k: int, reach: int, per_token: bool, seed: int) -> None:
    """All 16 codes and all scales within a factor of 2^14 of a block's largest keep their values."""
    rng = np.random.default_rng(seed)
    q = rng.integers(0, 256, (n, k // 2)).astype(np.uint8)
    s = (rng.integers(-reach, 1, (n, k // 32)) + rng.integers(20, 250)).astype(np.uint8).view(E8M0)
    for target in TARGETS:
        q8, s8 = quant.fp4_to_fp8(q, s, per_token=per_token, target=target)
        r = 1 if per_token else 128
        codes = s.view(np.uint8).astype(np.int64)
        tops = np.full((-(-n // r) * r, -(-k // 128) * 4), 0)
        tops[:n, : k // 32] = codes
        tops = tops.reshape(-1, r, tops.shape[1] // 4, 4).max((1, 3))
        np.testing.assert_array_equal(s8.view(np.uint8), np.maximum(tops - 6, 0))
        wide = q8.astype(np.float64) * spread(np.exp2(s8.view(np.uint8).astype(np.float64) - 127), r, 128, (n, k))
        np.testing.assert_array_equal(wide, fp4_values(q, s))


def test_fp4_to_fp8_says_what_it_cannot_hold() -> None:
    q = np.full((2, 64), 0x11, np.uint8)  # all 0.5
    s = np.full((2, 4), 127, np.uint8)
    s[1, 2] = 127 - 15
    with pytest.raises(TileValueError, match="32 elements lie too far below"):
        quant.fp4_to_fp8(q, s.view(E8M0))
    quant.fp4_to_fp8(np.where(q, 0x44, 0).astype(np.uint8), s.view(E8M0))  # 2.0 has two binades more
    with pytest.raises(TileValueError, match="32 elements"):
        quant.fp4_to_fp8(q, s.view(E8M0), per_token=True)
    q8, _ = quant.fp4_to_fp8(q, s.view(E8M0), check=False)
    assert (q8.astype(np.float32)[1, 64:96] == 0).all()
    s[0, 0], s[1, 2] = 255, 127
    q8, s8 = quant.fp4_to_fp8(q, s.view(E8M0))
    assert np.isnan(s8.astype(np.float32)).all()


def test_targets_agree_and_rows_stand_alone() -> None:
    rng = np.random.default_rng(3)
    x = awkward(loud(rng, (33, 160), BF16, 6))
    assert_targets_agree(lambda a, target: quant.per_token_cast(a, target=target), x)
    assert_targets_agree(lambda a, target: quant.mxfp4_cast(a, target=target), x)
    whole, scale = quant.per_token_cast(x, block=32)
    for row in (0, 16, 32):
        q, s = quant.per_token_cast(x[row : row + 1].copy(), block=32)
        assert same_bits(q[0], whole[row]) and same_bits(s[0], scale[row])
    view = np.asfortranarray(x)
    assert same_bits(quant.per_token_cast(view, block=32)[0], whole)


def test_nothing() -> None:
    for shape in ((0, 128), (5, 0)):
        x = np.zeros(shape, np.float32)
        q, s = quant.per_token_cast(x)
        assert q.shape == shape and s.shape == (shape[0], shape[1] // 128)
        assert quant.dequantize(q, s, block=(1, 128)).shape == shape
        assert quant.mxfp4_cast(x)[0].shape == (shape[0], shape[1] // 2)


def test_torch() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = loud(np.random.default_rng(5), (17, 128), BF16, 6)
    q, s = quant.per_token_cast(tensor(torch, x), scale_dtype=E8M0.name)
    assert q.dtype == torch.float8_e4m3fn and s.dtype == torch.float8_e8m0fnu
    wanted = quant.per_token_cast(x, scale_dtype=E8M0.name)
    np.testing.assert_array_equal(q.view(torch.uint8).numpy(), wanted[0].view(np.uint8))
    np.testing.assert_array_equal(s.view(torch.uint8).numpy(), wanted[1].view(np.uint8))


def test_arguments_are_checked() -> None:
    x = np.ones((4, 64), np.float32)
    q, s = quant.per_token_cast(x, block=64)
    fp4, s4 = quant.mxfp4_cast(x)
    for call, kind, words in (
        (lambda: quant.per_token_cast(x, block=16), TileValueError, "block is 16, expected 128 or 64 or 32"),
        (lambda: quant.per_token_cast(x, dtype="float16"), TileTypeError, "dtype is 'float16', expected float8_e4m3fn"),
        (lambda: quant.per_token_cast(x, scale_dtype="float64"), TileTypeError, "scale_dtype is 'float64'"),
        (lambda: quant.per_token_cast(x, floor=0.0), TileValueError, "floor is 0.0"),
        (lambda: quant.per_token_cast(x[0]), TileTypeError, "expected 2 dimensions"),
        (lambda: quant.per_token_cast(x.astype(np.float64)), TileTypeError, "x is float64"),
        (lambda: quant.mxfp4_cast(x[:, :33]), TileTypeError, "multiple of 32 columns"),
        (lambda: quant.dequantize(q, s, block=(1, 32)), TileTypeError, "do not fit for blocks of 1 x 32"),
        (lambda: quant.dequantize(q, s, block=(1, 1)), TileValueError, "block is"),
        (lambda: quant.fp4_to_fp8(fp4, s4[:, :1]), TileTypeError, "do not fit"),
        (lambda: quant.fp4_to_fp8(fp4[:, :31], s4), TileTypeError, "k is a multiple of 32"),
    ):
        with pytest.raises(kind, match=words):
            call()
    assert np.isnan(quant.dequantize(to_fp8(x, E4M3), s * np.nan, block=(1, 64)).astype(np.float32)).all()
    assert nibbles(fp4).shape == x.shape and ml_dtypes.finfo(E4M3).max == 448
