"""Padded and ragged groups, int8 products and convolution against float64 or exact integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernels_support import DTYPES, Array, normal, product_bound, same_bits, tensor, worst

from tiledsl import kernels
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.testing import assert_targets_agree


@pytest.fixture(params=list(DTYPES), scope="module")
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


SIZES = st.lists(st.sampled_from([0, 0, 1, 7, 31, 64, 65, 128, 130]), min_size=1, max_size=5)
seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=6)
@given(counts=SIZES, k=st.sampled_from([1, 33, 129]), n=st.sampled_from([1, 31, 70]), spare=st.sampled_from([0, 9]),
       transpose=st.booleans(), seed=seeds)  # fmt: skip
def test_masked_grouped_gemm(
    target: str, dtype: str, counts: list[int], k: int, n: int, spare: int, transpose: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    m = max(*counts, 1) + spare
    a, b = normal(rng, (len(counts), m, k), dtype), normal(rng, (len(counts), k, n), dtype)
    for g, count in enumerate(counts):
        a[g, count:] = np.nan  # padding may hold anything
    out = np.full((len(counts), m, n), 7, a.dtype)
    given_b = np.ascontiguousarray(b.swapaxes(1, 2)) if transpose else b
    kernels.masked_grouped_gemm(a, given_b, np.array(counts), transpose_b=transpose, out=out, target=target)
    for g, count in enumerate(counts):
        assert worst(out[g, :count], *product_bound(a[g, :count], b[g], dtype)) <= 1
        assert (out[g, count:] == 7).all()


@settings(max_examples=6)
@given(sizes=SIZES, m=st.sampled_from([1, 33, 70]), n=st.sampled_from([1, 31, 65]), spare=st.sampled_from([0, 9]),
       wide=st.booleans(), seed=seeds)  # fmt: skip
@example(sizes=[130, 0, 257, 1], m=33, n=31, spare=3, wide=True, seed=0)
def test_k_grouped_gemm(
    target: str, dtype: str, sizes: list[int], m: int, n: int, spare: int, wide: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = sum(sizes) + spare
    a, b = normal(rng, (rows, m), dtype), normal(rng, (rows, n), dtype)
    a[sum(sizes) :], b[sum(sizes) :] = np.nan, np.inf  # rows of no group
    out = "float32" if wide else dtype
    c = kernels.k_grouped_gemm(a, b, np.array(sizes), out_dtype=out, target=target)
    assert c.shape == (len(sizes), m, n) and str(c.dtype) == out
    cuts = np.cumsum([0, *sizes])
    for g in range(len(sizes)):
        part = slice(cuts[g], cuts[g + 1])
        assert worst(c[g], *product_bound(a[part].T, b[part], out)) <= 1


def test_groups_have_the_bits_of_matmul(dtype: str) -> None:
    """Whatever the other groups are."""
    rng = np.random.default_rng(0)
    a, b = normal(rng, (300, 40), dtype), normal(rng, (300, 33), dtype)
    c = kernels.k_grouped_gemm(a, b, np.array([17, 200, 0, 83]), target="llvm")
    assert same_bits(c[1], kernels.matmul(a[17:217].T, b[17:217], target="llvm"))
    assert same_bits(c[3], kernels.matmul(a[217:].T, b[217:], target="llvm")) and not c[2].any()
    p, w = normal(rng, (3, 50, 129), dtype), normal(rng, (3, 129, 33), dtype)
    d = kernels.masked_grouped_gemm(p, w, np.array([5, 50, 1]), target="llvm")
    assert same_bits(d[1], kernels.matmul(p[1], w[1], target="llvm"))
    assert same_bits(d[0, :5], kernels.matmul(p[0, :5], w[0], target="llvm"))


@settings(max_examples=6)
@given(m=st.sampled_from([1, 17, 70]), k=st.sampled_from([0, 1, 127, 128, 300]), n=st.sampled_from([1, 31, 65]),
       rows=st.booleans(), columns=st.booleans(), turned=st.booleans(), seed=seeds)  # fmt: skip
def test_int8_matmul(target: str, m: int, k: int, n: int, rows: bool, columns: bool, turned: bool, seed: int) -> None:
    """Exact integers; with scales the same float32 operations by NumPy, bit for bit."""
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(-128, 128, s).astype(np.int8) for s in ((m, k), (k, n)))
    row = normal(rng, (m,), "float32") if rows else None
    column = normal(rng, (n,), "float32") if columns else None
    left, right = (np.asfortranarray(a), np.asfortranarray(b)) if turned else (a, b)
    got = kernels.int8_matmul(left, right, row_scale=row, column_scale=column, target=target)
    exact = a.astype(np.int64) @ b.astype(np.int64)
    if not (rows or columns):
        assert got.dtype == np.int32 and np.array_equal(got, exact)
        return
    expected = exact.astype(np.float32)
    expected = expected * row[:, None] if row is not None else expected
    expected = expected * column if column is not None else expected
    assert same_bits(got, expected)


def conv_patches(x: Array, rows: int, cols: int, stride: Any, padding: Any, dilation: Any) -> tuple[Array, Array]:
    """[pixels, rows * cols * channels] by plain loops, and the output's height and width."""
    (sy, sx), (py, px), (dy, dx) = stride, padding, dilation
    n, h, w, _ = x.shape
    oh, ow = (h + 2 * py - dy * (rows - 1) - 1) // sy + 1, (w + 2 * px - dx * (cols - 1) - 1) // sx + 1
    wide = np.pad(x, ((0, 0), (py, py), (px, px), (0, 0)))
    taps = [
        wide[:, r * dy : r * dy + (oh - 1) * sy + 1 : sy, s * dx : s * dx + (ow - 1) * sx + 1 : sx]
        for r in range(rows)
        for s in range(cols)
    ]
    return np.stack(taps, axis=3).reshape(n * oh * ow, -1), np.array([n, oh, ow])


@settings(max_examples=8)
@given(
    size=st.sampled_from([(1, 5, 5), (2, 9, 11), (1, 14, 6)]), channels=st.sampled_from([1, 3, 17]),
    filters=st.sampled_from([1, 5, 33]), window=st.sampled_from([(1, 1), (3, 3), (2, 5), (5, 2)]),
    stride=st.sampled_from([(1, 1), (2, 2), (3, 1)]), padding=st.sampled_from([(0, 0), (1, 1), (2, 3)]),
    dilation=st.sampled_from([(1, 1), (2, 1), (1, 2)]), seed=seeds,
)  # fmt: skip
@example(size=(2, 9, 11), channels=17, filters=5, window=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(1, 2), seed=0)
def test_conv2d(
    target: str, dtype: str, size: tuple[int, int, int], channels: int, filters: int, window: tuple[int, int],
    stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int], seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    x, w = normal(rng, (*size, channels), dtype), normal(rng, (*window, channels, filters), dtype)
    fits = all(n + 2 * p > d * (f - 1) for n, p, d, f in zip(size[1:], padding, dilation, window, strict=True))
    call: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "target": target}
    if not fits:
        with pytest.raises(TileValueError, match="the filter does not fit"):
            kernels.conv2d(x, w, **call)
        return
    patches, shape = conv_patches(x, *window, stride, padding, dilation)
    y = kernels.conv2d(x, w, **call)
    assert y.shape == (*shape, filters)
    exact, bound = product_bound(patches, w.reshape(-1, filters), dtype)
    assert worst(y.reshape(-1, filters), exact, bound) <= 1


def test_conv2d_image_does_not_depend_on_the_batch(dtype: str) -> None:
    rng = np.random.default_rng(1)
    x, w = normal(rng, (3, 12, 13, 5), dtype), normal(rng, (3, 3, 5, 9), dtype)
    whole = kernels.conv2d(x, w, padding=1, target="llvm")
    assert same_bits(kernels.conv2d(x[1:2], w, padding=1, target="llvm"), whole[1:2])


# -- all of them ------------------------------------------------------------------------------------------------------


def calls(dtype: str) -> dict[str, tuple[Any, list[Any], dict[str, Any]]]:
    rng = np.random.default_rng(2)
    counts = np.array([5, 0, 20], np.int32)
    groups = [normal(rng, (3, 20, 33), dtype), normal(rng, (3, 33, 17), dtype), counts]
    rows = [normal(rng, (150, 20), dtype), normal(rng, (150, 17), dtype), np.array([140, 0, 10], np.int32)]
    images = [normal(rng, (1, 7, 6, 3), dtype), normal(rng, (3, 3, 3, 5), dtype)]
    return {
        "masked": (kernels.masked_grouped_gemm, groups, {"out": np.zeros((3, 20, 17), groups[0].dtype)}),
        "k_grouped": (kernels.k_grouped_gemm, rows, {}),
        "conv2d": (kernels.conv2d, images, {"padding": 1, "stride": 2}),
    }


@pytest.mark.parametrize("name", ["masked", "k_grouped", "conv2d"])
def test_targets_agree_bit_for_bit(name: str, dtype: str) -> None:
    function, args, options = calls(dtype)[name]
    assert_targets_agree(function, *args, **options)
    function(*args, target="numpy:checked", **options)


def test_int8_targets_agree() -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.integers(-128, 128, s).astype(np.int8) for s in ((20, 150), (150, 33)))
    assert_targets_agree(kernels.int8_matmul, a, b)
    assert_targets_agree(kernels.int8_matmul, a, b, row_scale=normal(rng, (20,), "float32"), out_dtype="bfloat16")


@pytest.mark.parametrize("name", ["masked", "k_grouped", "conv2d"])
def test_torch_in_torch_out(name: str, dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    function, args, options = calls(dtype)[name]
    expected = function(*args, target="llvm", **options)
    given = [tensor(torch, x) if x.dtype != np.int32 else torch.from_numpy(x) for x in args]
    options = {k: tensor(torch, x) if isinstance(x, np.ndarray) else x for k, x in options.items()}
    got = function(*given, target="llvm", **options)
    assert isinstance(got, torch.Tensor) and np.array_equal(got.float().numpy(), expected.astype(np.float32))


F = np.ones((2, 4, 4), np.float32)
B = np.ones((4, 4), np.int8)
I = np.array([4, 0], np.int32)
X, W = np.ones((1, 4, 4, 2), np.float32), np.ones((3, 3, 2, 5), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: kernels.masked_grouped_gemm(F, F[:, :3], I), TileTypeError, "shapes do not fit"),
        (lambda: kernels.masked_grouped_gemm(F, F, I + 1), TileValueError, "counts holds 5, expected 0 to 4"),
        (lambda: kernels.masked_grouped_gemm(F, F, I[:1]), TileTypeError, "one count per group"),
        (lambda: kernels.masked_grouped_gemm(F, F.copy(), I, out=F), TileValueError, "out shares memory with a"),
        (lambda: kernels.k_grouped_gemm(F[0], F[0, :3], I), TileTypeError, "differ in rows"),
        (lambda: kernels.k_grouped_gemm(F[0], F[0], I + 1), TileValueError, "holds 5, expected 0 to 4"),
        (lambda: kernels.k_grouped_gemm(F[0], F[0], I // 2 + 2), TileValueError, "sum to 6, but a has 4 rows"),
        (lambda: kernels.k_grouped_gemm(F[0], F[0], F[0, 0]), TileTypeError, "group_sizes is float32"),
        (lambda: kernels.int8_matmul(B, F[0]), TileTypeError, "b is float32"),
        (lambda: kernels.int8_matmul(B, B[:3]), TileTypeError, "inner sizes differ"),
        (lambda: kernels.int8_matmul(B, B, row_scale=F[0, 0, :3]), TileTypeError, "scales do not fit"),
        (lambda: kernels.int8_matmul(B, B, out_dtype="float32"), TileTypeError, "expected int32"),
        (lambda: kernels.conv2d(X, W[:, :, :1]), TileTypeError, "channels differ"),
        (lambda: kernels.conv2d(X, W, stride=0), TileValueError, "stride is 0"),
        (lambda: kernels.conv2d(X, W, padding=(1, -1)), TileValueError, "padding is \\(1, -1\\)"),
        (lambda: kernels.conv2d(X, W, dilation=4), TileValueError, "the filter does not fit"),
    ],
)
def test_arguments_are_checked(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


def test_transposed_views_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transposed operand is read where it lies; deciding that makes no copy either."""
    from tiledsl.kernels import arrays

    monkeypatch.setattr(arrays.np, "ascontiguousarray", lambda x: pytest.fail("copied"))
    w = np.ones((5, 7), np.float32)
    for x, transposed in ((w, False), (w.T, True), (w[:, 1:4], False), (w[1:4].T, True)):
        read, turned = arrays.matrix(x)
        assert turned is transposed and np.shares_memory(read, w)
        assert (read.T if turned else read).strides == x.strides
