"""Block-scaled products against the formula done in float32 NumPy block by block (bit for bit) and in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_support import U, same_bits, tensor, worst
from v4_reference import BF16, E4M3, E8M0, TARGETS, Array, F, fp4_cast, fp4_values, fp8_cast, loud, nibbles, spread

from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import quant
from tiledsl.testing import assert_targets_agree

SIZES = st.sampled_from([1, 7, 17, 33, 65])


def chain(a: Array, b: Array) -> Array:
    """a @ b.T, each element an ascending chain of fused multiply-adds in float32: products of these types are exact in
    float64 and so is their sum with a float32 up to one rounding, which float64 hides but for ties of ties."""
    total = np.zeros((len(a), len(b)), F)
    for k in range(a.shape[1]):
        exact = np.multiply.outer(a[:, k].astype(np.float64), b[:, k].astype(np.float64))
        total = (total.astype(np.longdouble) + exact).astype(F)
    return total


def promoted(a: Array, sa: Array, b: Array, sb: Array, block: int, a_block: int, b_shape: tuple[int, int]) -> Array:
    """The formula of scaled_gemm: values a [m, k], b [n, k], their scales, the block that is summed by itself."""
    total = np.zeros((len(a), len(b)), F)
    wide = spread(sb.astype(F), *b_shape, b.shape)
    for k in range(0, a.shape[1], block):
        part = chain(a[:, k : k + block], b[:, k : k + block])
        scale = (sa[:, k // a_block].astype(F)[:, None] * wide[:, k][None]).astype(F)
        total = (total + (part * scale).astype(F)).astype(F)
    return total


def operands(rng: np.random.Generator, m: int, n: int, k: int, fp4: bool, a_block: int, e8m0: bool) -> Any:
    a, b = loud(rng, (m, k), spread=4), loud(rng, (n, k), spread=4)
    qa, sa = fp8_cast(a, 1, a_block, e8m0=e8m0)
    qb, sb = fp4_cast(b) if fp4 else fp8_cast(b, 128, 128, e8m0=e8m0)
    return qa, sa, qb, sb


def values(qb: Array, fp4: bool) -> Array:
    return fp4_values(qb, np.full((*qb.shape[:-1], qb.shape[-1] // 16), 127, np.uint8)) if fp4 else qb.astype(F)


@settings(max_examples=10)
@given(
    m=SIZES,
    n=st.sampled_from([1, 31, 64, 130]),
    k=st.sampled_from([32, 96, 128, 288]),
    fp4=st.booleans(),
    fine=st.booleans(),
    e8m0=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_scaled_gemm(m: int, n: int, k: int, fp4: bool, fine: bool, e8m0: bool, seed: int) -> None:
    a_block = 32 if fp4 and fine else 128
    qa, sa, qb, sb = operands(np.random.default_rng(seed), m, n, k, fp4, a_block, e8m0)
    shape = (1, 32) if fp4 else (128, 128)
    wanted = promoted(qa.astype(F), sa, values(qb, fp4), sb, min(a_block, shape[1]), a_block, shape)
    wide_a = qa.astype(np.float64) * spread(sa.astype(np.float64), 1, a_block, qa.shape)
    wide_b = fp4_values(qb, sb) if fp4 else qb.astype(np.float64) * spread(sb.astype(np.float64), *shape, qb.shape)
    exact, size = wide_a @ wide_b.T, np.abs(wide_a) @ np.abs(wide_b).T
    for target in TARGETS:
        c = quant.scaled_gemm(qa, sa, qb, sb, out_dtype="float32", target=target)
        assert same_bits(c, wanted)
        assert worst(c, exact, (k + 3) * U * size + 2.0**-140) <= 1
        short = quant.scaled_gemm(qa, sa, qb, sb, target=target)
        assert same_bits(short, wanted.astype(BF16))


@settings(max_examples=8)
@given(
    sizes=st.lists(st.sampled_from([0, 0, 1, 3, 16, 40]), min_size=1, max_size=4),
    n=st.sampled_from([1, 65]),
    fp4=st.booleans(),
    extra=st.sampled_from([0, 5]),
    seed=st.integers(0, 2**32 - 1),
)
def test_groups_have_the_bits_of_single_products(sizes: list[int], n: int, fp4: bool, extra: int, seed: int) -> None:
    rng, k, groups = np.random.default_rng(seed), 160, len(sizes)
    rows, room = sum(sizes) + extra, max([*sizes, 1]) + 1
    qa, sa, qb, sb = operands(rng, max(rows, 1), groups * 128, k, fp4, 128, False)
    qa, sa = qa[:rows], sa[:rows]
    qb = qb.reshape(groups, 128, -1)[:, :n].copy()
    sb = sb.reshape(groups, 128 if fp4 else 1, -1)[:, :n].copy()
    for target in TARGETS:
        out = np.full((rows, n), 7, F)
        quant.scaled_grouped_gemm(qa, sa, qb, sb, np.array(sizes), out=out, target=target)
        padded = np.zeros((groups, room, k), E4M3), np.full((groups, room, 2), np.nan, F)
        first = 0
        for g, size in enumerate(sizes):
            one = quant.scaled_gemm(
                qa[first : first + size], sa[first : first + size], qb[g], sb[g], out_dtype="float32", target=target
            )
            assert same_bits(out[first : first + size], one)
            padded[0][g, :size], padded[1][g, :size] = qa[first : first + size], sa[first : first + size]
            first += size
        assert (out[first:] == 7).all()
        masked = np.full((groups, room, n), 7, F)
        quant.scaled_masked_gemm(*padded, qb, sb, np.array(sizes, np.int32), out=masked, target=target)
        for g, size in enumerate(sizes):
            assert same_bits(masked[g, :size], out[sum(sizes[:g]) :][:size]) and (masked[g, size:] == 7).all()


@settings(max_examples=5)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 5, 17]), min_size=1, max_size=3),
    n=st.sampled_from([1, 63, 130]),
    k=st.sampled_from([32, 96, 160]),
    dtype=st.sampled_from([BF16, np.dtype(F)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_weight_only(sizes: list[int], n: int, k: int, dtype: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = loud(rng, (sum(sizes), k), dtype, 3)
    qb, sb = fp4_cast(loud(rng, (len(sizes) * n, k), spread=6))
    qb, sb = qb.reshape(len(sizes), n, -1), sb.reshape(len(sizes), n, -1)
    ones = np.ones((len(a), -(-k // 32)), F)
    for target in TARGETS:
        packed = quant.fp4_prepack(qb, sb, target=target)
        c = quant.fp4_grouped_gemm(a, packed, np.array(sizes), out_dtype="float32", target=target)
        first = 0
        for g, size in enumerate(sizes):
            rows = slice(first, first + size)
            wanted = promoted(a[rows].astype(F), ones[rows], values(qb[g], True), sb[g], 32, 32, (1, 32))
            assert same_bits(c[rows], wanted)
            first += size
        assert quant.fp4_grouped_gemm(a, packed, np.array(sizes), target=target).dtype == dtype


@settings(max_examples=6)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 5, 33]), min_size=1, max_size=3),
    n=st.sampled_from([1, 130]),
    fine=st.booleans(),
    e8m0=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_packed_weights_by_fp8_have_the_bits_of_unpacked_ones(
    sizes: list[int], n: int, fine: bool, e8m0: bool, seed: int
) -> None:
    rng, groups, k = np.random.default_rng(seed), len(sizes), 160
    qa, sa = fp8_cast(loud(rng, (sum(sizes) + 2, k), spread=4), 1, 32 if fine else 128, e8m0=e8m0)
    qb, sb = fp4_cast(loud(rng, (groups * n, k), spread=6))
    qb, sb = qb.reshape(groups, n, -1), sb.reshape(groups, n, -1)
    for target in TARGETS:
        packed, out = quant.fp4_prepack(qb, sb, target=target), [np.full((len(qa), n), 7, F) for _ in range(2)]
        quant.fp4_grouped_gemm(qa, packed, np.array(sizes), a_scale=sa, out=out[0], target=target)
        quant.scaled_grouped_gemm(qa, sa, qb, sb, np.array(sizes), out=out[1], target=target)
        assert same_bits(*out)


def test_packed_format_is_what_the_docstring_says() -> None:
    rng = np.random.default_rng(0)
    q = rng.integers(0, 256, (2, 70, 32)).astype(np.uint8)
    s = rng.integers(1, 255, (2, 70, 2)).astype(np.uint8).view(E8M0)
    packed = quant.fp4_prepack(q, s)
    assert packed.shape == (2, 70, 64) and packed.data.shape == (2, 2, 2, 16, 16)
    codes = nibbles(q)
    for g, n, k in ((0, 0, 0), (1, 31, 63), (1, 32, 1), (0, 63, 40), (1, 69, 33)):
        word = packed.data[g, n // 64, k // 32, k % 32 // 2, n % 16]
        assert word >> (16 * (k % 2) + 4 * (n % 64 // 16)) & 15 == codes[g, n, k]
        assert packed.scale[g, n // 64, k // 32, n % 64] == s[g, n, k // 32]
    beyond = packed.data[:, 1].copy()
    beyond[..., :6] &= ~0x000F000F
    assert not beyond.any()


def test_batch_and_targets() -> None:
    rng = np.random.default_rng(1)
    qa, sa, qb, sb = operands(rng, 256, 70, 256, False, 128, True)
    _, _, fb, fs = operands(rng, 1, 70, 256, True, 128, True)
    a = loud(rng, (256, 256), BF16, 3)
    packed = quant.fp4_prepack(fb[None], fs[None])
    whole = quant.scaled_gemm(qa, sa, qb, sb), quant.scaled_gemm(qa, sa, fb, fs)
    light = quant.fp4_grouped_gemm(a, packed, np.array([256]))
    for i in (0, 100, 255):
        row = slice(i, i + 1)
        assert same_bits(quant.scaled_gemm(qa[row], sa[row], qb, sb), whole[0][row])
        assert same_bits(quant.scaled_gemm(qa[row], sa[row], fb, fs), whole[1][row])
        assert same_bits(quant.fp4_grouped_gemm(a[row], packed, np.array([1])), light[row])
    few = slice(0, 5)
    assert_targets_agree(lambda *x, target: quant.scaled_gemm(*x, target=target), qa[few], sa[few], qb, sb)
    assert_targets_agree(lambda *x, target: quant.scaled_gemm(*x, target=target), qa[few], sa[few], fb, fs)

    def light_product(a: Array, q: Array, s: Array, sizes: Array, target: str) -> Any:
        return quant.fp4_grouped_gemm(a, quant.fp4_prepack(q, s, target=target), sizes, target=target)

    assert_targets_agree(light_product, a[few], fb[None], fs[None], np.array([5]))


def test_nan_stays_in_its_row_and_nothing_is_zero() -> None:
    qa, sa, qb, sb = operands(np.random.default_rng(2), 3, 5, 128, False, 128, False)
    sa[1] = np.nan
    for target in TARGETS:
        c = quant.scaled_gemm(qa, sa, qb, sb, out_dtype="float32", target=target)
        assert np.isnan(c[1]).all() and np.isfinite(c[[0, 2]]).all()
        empty = quant.scaled_gemm(qa[:, :0], sa[:, :0], qb[:, :0], sb[:, :0], target=target)
        assert empty.shape == (3, 5) and not empty.astype(F).any()
        assert quant.scaled_gemm(qa[:0], sa[:0], qb, sb, target=target).shape == (0, 5)


def test_torch() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    qa, sa, qb, sb = operands(np.random.default_rng(3), 9, 20, 160, False, 128, False)
    as_torch = [torch.from_numpy(x.view(np.uint8)).view(torch.float8_e4m3fn) for x in (qa, qb)]
    got = quant.scaled_gemm(as_torch[0], torch.from_numpy(sa), as_torch[1], torch.from_numpy(sb), out_dtype="float32")
    np.testing.assert_array_equal(got.numpy(), quant.scaled_gemm(qa, sa, qb, sb, out_dtype="float32"))
    fb, fs = fp4_cast(loud(np.random.default_rng(4), (20, 160)))
    packed = quant.fp4_prepack(
        torch.from_numpy(fb[None]), torch.from_numpy(fs.view(np.uint8)[None]).view(torch.float8_e8m0fnu)
    )
    a = loud(np.random.default_rng(5), (4, 160), BF16, 2)
    got = quant.fp4_grouped_gemm(tensor(torch, a), packed, torch.tensor([4]))
    wanted = quant.fp4_grouped_gemm(a, quant.fp4_prepack(fb[None], fs[None]), np.array([4]))
    np.testing.assert_array_equal(got.float().numpy(), wanted.astype(F))


def test_arguments_are_checked() -> None:
    qa, sa, qb, sb = operands(np.random.default_rng(6), 4, 130, 160, False, 128, False)
    _, _, fb, fs = operands(np.random.default_rng(6), 4, 130, 160, True, 128, False)
    packed, ones = quant.fp4_prepack(fb[None], fs[None]), np.ones((4, 160), F)
    for call, kind, words in (
        (lambda: quant.scaled_gemm(qa, sa[:, :1], qb, sb), TileTypeError, "a has a scale per row and 128 columns"),
        (lambda: quant.scaled_gemm(qa, sa, qb, sb[:1]), TileTypeError, "a scale per 128 x 128"),
        (lambda: quant.scaled_gemm(qa, sa, fb, fs[:, :4]), TileTypeError, "b_scale is float8_e8m0fnu \\(1, 130, 4\\)"),
        (lambda: quant.scaled_gemm(qa, sa, fb, sb), TileTypeError, "b_scale is float32"),
        (lambda: quant.scaled_gemm(qa[:, :128], sa, qb, sb), TileTypeError, "inner sizes differ"),
        (lambda: quant.scaled_gemm(qa, sa, fb[:, :79], fs), TileTypeError, "k is a multiple of 32"),
        (lambda: quant.scaled_gemm(ones, sa, qb, sb), TileTypeError, "a is float32"),
        (lambda: quant.scaled_gemm(qa, sa, qb, sb, out_dtype="int8"), TileTypeError, "out_dtype is 'int8'"),
        (lambda: quant.scaled_grouped_gemm(qa, sa, qb[None], sb[None], np.array([5])), TileValueError, "holds 5"),
        (
            lambda: quant.scaled_grouped_gemm(qa, sa, qb[None], sb[None], np.array([1, 2])),
            TileTypeError,
            "one size per",
        ),
        (
            lambda: quant.scaled_masked_gemm(qa[None], sa[None], qb[None], sb[None], np.array([-1])),
            TileValueError,
            "-1",
        ),
        (
            lambda: quant.fp4_grouped_gemm(qa, packed, np.array([4]), a_scale=ones[:, :3]),
            TileTypeError,
            "32 or 128 col",
        ),
        (lambda: quant.fp4_grouped_gemm(ones, fb, np.array([4])), TileTypeError, "expected what fp4_prepack"),
        (lambda: quant.fp4_grouped_gemm(ones[:, :32], packed, np.array([4])), TileTypeError, "inner sizes differ"),
    ):
        with pytest.raises(kind, match=words):
            call()
