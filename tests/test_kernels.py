"""The library's matrix products and row-wise kernels against float64, with bounds that follow from the arithmetic."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernels_support import close

from tiledsl import kernels
from tiledsl.backend import load_backend
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels.tiles import ROW_TILE
from tiledsl.testing import assert_targets_agree

Array = np.ndarray[Any, Any]

# Name, unit roundoff, half of the smallest subnormal (the absolute error of a rounding that underflows).
DTYPES = {
    "float32": (np.dtype(np.float32), 2.0**-24, 2.0**-150),
    "float16": (np.dtype(np.float16), 2.0**-11, 2.0**-25),
    "bfloat16": (np.dtype(ml_dtypes.bfloat16), 2.0**-8, 2.0**-134),
}
U = 2.0**-24
AWKWARD = [1, 2, 3, 7, 16, 31, 33, 48, 64, 127, 128, 229]
K_SIZES = [0, 1, 2, 31, 33, 48, 127, 128, 129, 229, 300]
dims = st.sampled_from(AWKWARD)


@pytest.fixture(params=list(DTYPES), scope="module")
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    return rng.standard_normal(shape, np.float32).astype(DTYPES[dtype][0])


def wild(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    """Values of very different sizes, neither independent nor of zero mean."""
    x = np.abs(rng.standard_normal(shape)) * 2.0 ** rng.integers(-6, 6, shape)
    return x.astype(DTYPES[dtype][0])


def rounding(value: Array, dtype: str) -> Array:
    """What one rounding of `value` to the dtype can change."""
    _, u, tiny = DTYPES[dtype]
    return u * np.abs(value) + tiny


def product_bound(a: Array, b: Array, out: str, independent: bool) -> tuple[Array, Array]:
    """The float64 product and |error| <= n u sum |a b| plus the last rounding; for independent draws of zero mean
    6 sqrt(n) u sum |a b|."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    k = a.shape[1]
    exact, size = a @ b, np.abs(a) @ np.abs(b)
    factor = min(k, 6 * k**0.5) if independent else k
    slack = factor * U * (1 + factor * U) * size + k * 2.0**-150
    return exact, slack + rounding(np.abs(exact) + slack, out)


def worst(got: Array, exact: Array, bound: Array) -> float:
    """Largest error in units of its bound; NaN counts as infinite."""
    assert got.shape == exact.shape
    error = np.abs(got.astype(np.float64) - exact)
    return float(np.nan_to_num(error / bound, nan=np.inf).max(initial=0.0))


def tf32(x: Array) -> Array:
    """float32 rounded to 10 explicit mantissa bits."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & np.uint32(0xFFFFE000)).view(np.float32)


def same_bits(x: Array, y: Array) -> bool:
    return x.shape == y.shape and x.dtype == y.dtype and x.tobytes() == y.tobytes()


# -- matmul -----------------------------------------------------------------------------------------------------


@settings(max_examples=12)
@given(m=dims, n=dims, k=st.sampled_from(K_SIZES), seed=st.integers(0, 2**32 - 1), independent=st.booleans())
@example(m=1, n=1, k=0, seed=0, independent=False)
@example(m=129, n=257, k=257, seed=0, independent=True)  # one past the tiles
def test_matmul_error(target: str, dtype: str, m: int, n: int, k: int, seed: int, independent: bool) -> None:
    rng = np.random.default_rng(seed)
    draw = normal if independent else wild
    a, b = draw(rng, (m, k), dtype), draw(rng, (k, n), dtype)
    got = kernels.matmul(a, b, target=target)
    assert got.dtype == DTYPES[dtype][0]
    assert worst(got, *product_bound(a, b, dtype, independent)) <= 1


@pytest.mark.parametrize("out", list(DTYPES))
def test_matmul_out_dtype(target: str, dtype: str, out: str) -> None:
    rng = np.random.default_rng(1)
    a, b = normal(rng, (33, 127), dtype), normal(rng, (127, 31), dtype)
    got = kernels.matmul(a, b, out_dtype=out, target=target)
    assert got.dtype == DTYPES[out][0]
    assert worst(got, *product_bound(a, b, out, True)) <= 1
    # One accumulation whatever the result's dtype: rounding the float32 result gives the same bits.
    wide = kernels.matmul(a, b, out_dtype="float32", target=target)
    assert same_bits(got, wide.astype(DTYPES[out][0]))


def test_matmul_reads_views_in_place(target: str) -> None:
    rng = np.random.default_rng(2)
    a, b = normal(rng, (48, 33), "float32"), normal(rng, (33, 31), "float32")
    expected = kernels.matmul(a, b, target=target)
    a_t, b_t = a.T.copy().T, b.T.copy().T
    wide = np.zeros((48, 100), np.float32)
    wide[:, 7:40] = a
    backwards = a[::-1].copy()[::-1]
    columns = np.repeat(b, 2, axis=1)[:, ::2]
    out = np.full((48, 60), 5.0, np.float32)
    for x, y in [(a_t, b), (a, b_t), (a_t, b_t), (wide[:, 7:40], b), (backwards, b), (a, columns)]:
        got = kernels.matmul(x, y, out=out[:, 3:34], target=target)
        assert np.shares_memory(got, out)
        assert np.array_equal(got, expected)
        assert (out[:, :3] == 5).all() and (out[:, 34:] == 5).all()


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (5, 3, 0), (0, 0, 0)])
def test_matmul_of_nothing(target: str, shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    got = kernels.matmul(np.ones((m, k), np.float32), np.ones((k, n), np.float32), target=target)
    assert got.shape == (m, n) and not got.any()


def test_matmul_rows_do_not_depend_on_each_other(dtype: str) -> None:
    """Batch invariance, bit for bit: one row, some rows, and all rows; columns likewise."""
    rng = np.random.default_rng(3)
    a, b = normal(rng, (300, 229), dtype), normal(rng, (229, 290), dtype)
    whole = kernels.matmul(a, b, target="numba")
    for rows in (slice(0, 1), slice(17, 18), slice(5, 21), slice(3, 150), slice(299, 300)):
        assert same_bits(kernels.matmul(a[rows], b, target="numba"), whole[rows])
    for cols in (slice(0, 1), slice(60, 123), slice(289, 290)):
        assert same_bits(kernels.matmul(a, b[:, cols], target="numba"), np.ascontiguousarray(whole[:, cols]))


def test_matmul_bound_has_teeth() -> None:
    """The bound accepts float32 and refuses TF32 operands, and a sum that lacks its last term."""
    rng = np.random.default_rng(4)
    for k in (33, 229, 1024):
        a, b = normal(rng, (64, k), "float32"), normal(rng, (k, 48), "float32")
        exact, bound = product_bound(a, b, "float32", True)
        assert worst(a @ b, exact, bound) <= 1
        assert worst(tf32(a).astype(np.float64) @ tf32(b).astype(np.float64), exact, bound) > 1
        short = a[:, :-1].astype(np.float64) @ b[:-1].astype(np.float64)
        omitted = np.abs(exact - short)
        caught = np.abs(short - exact) > bound
        assert caught[omitted > bound].all() and caught.mean() > 0.5


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, 1e-42, -0.0])
def test_matmul_special_values(target: str, special: float) -> None:
    a, b = np.ones((3, 40), np.float32), np.ones((40, 5), np.float32)
    a[1, 39] = special
    got = kernels.matmul(a, b, target=target)
    assert (got[[0, 2]] == 40).all()
    assert np.array_equal(got[1], np.full(5, np.float32(39) + np.float32(special)), equal_nan=True)
    tiny = np.full((2, 1), 1e-42, np.float32)
    assert np.array_equal(kernels.matmul(tiny, np.ones((1, 2), np.float32), target=target), np.repeat(tiny, 2, axis=1))


# -- grouped_gemm -------------------------------------------------------------------------------------------------


def grouped_reference(a: Array, b: Array, sizes: list[int], out: str) -> tuple[Array, Array]:
    """Float64 product and bound of the rows that belong to groups."""
    cuts = np.cumsum([0, *sizes])
    parts = [product_bound(a[cuts[g] : cuts[g + 1]], b[g], out, True) for g in range(len(sizes))]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


@settings(max_examples=10)
@given(
    sizes=st.lists(st.sampled_from([0, 0, 1, 2, 7, 31, 64, 65, 127]), min_size=1, max_size=9),
    k=st.sampled_from([1, 33, 127, 128, 229]),
    n=st.sampled_from([1, 31, 48, 127]),
    spare=st.sampled_from([0, 1, 40]),
    transpose=st.booleans(),
    wide_sizes=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@example(sizes=[13, 200, 64, 0, 301, 129, 7, 310], k=128, n=127, spare=0, transpose=False, wide_sizes=False, seed=0)
@example(sizes=[0, 0, 0], k=33, n=31, spare=5, transpose=True, wide_sizes=True, seed=0)
def test_grouped_gemm_error(
    target: str, dtype: str, sizes: list[int], k: int, n: int, spare: int, transpose: bool, wide_sizes: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    used = sum(sizes)
    a, b = normal(rng, (used + spare, k), dtype), normal(rng, (len(sizes), k, n), dtype)
    counts = np.array(sizes, np.int64 if wide_sizes else np.int32)
    out = np.full((used + spare, n), 3, DTYPES[dtype][0])
    stored = np.ascontiguousarray(b.swapaxes(1, 2)) if transpose else b
    got = kernels.grouped_gemm(a, stored, counts, transpose_b=transpose, out=out, target=target)
    assert got is out
    assert worst(got[:used], *grouped_reference(a, b, sizes, dtype)) <= 1
    assert (got[used:] == 3).all()


def test_grouped_gemm_is_matmul_of_each_group(dtype: str) -> None:
    """Bit for bit, whatever the other groups are, and for transposed storage read in place."""
    rng = np.random.default_rng(5)
    sizes = [5, 0, 70, 1, 33]
    a, b = normal(rng, (sum(sizes), 229), dtype), normal(rng, (5, 229, 48), dtype)
    got = kernels.grouped_gemm(a, b, np.array(sizes, np.int32), target="numba")
    cuts = np.cumsum([0, *sizes])
    for g, (start, stop) in enumerate(zip(cuts[:-1], cuts[1:], strict=True)):
        assert same_bits(kernels.matmul(a[start:stop], b[g], target="numba"), got[start:stop])
    stored = np.ascontiguousarray(b.swapaxes(1, 2))
    for w, transpose in ((stored, True), (stored.swapaxes(1, 2), False), (b.swapaxes(1, 2), True)):
        again = kernels.grouped_gemm(a, w, np.array(sizes, np.int64), transpose_b=transpose, target="numba")
        assert same_bits(again, got)


# -- softmax --------------------------------------------------------------------------------------------------------


def softmax_bound(x: Array, dtype: str) -> tuple[Array, Array]:
    """Float64 softmax and its bound: per element the subtraction (u |x - max|) and exp (2 u), the sum of n terms, one
    rescaling per tile, the division, and the last rounding."""
    x = x.astype(np.float64)
    n = x.shape[-1]
    shifted = x - x.max(axis=-1, keepdims=True, initial=-1e300)
    e = np.exp(shifted)
    y = e / e.sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        each = np.where(e > 0, 3 + np.abs(shifted), 0)
    relative = (each + (each * y).sum(axis=-1, keepdims=True) + n + 6 * -(-n // ROW_TILE) + 4) * U
    slack = y * relative * (1 + relative) + 2.0**-149
    return y, slack + rounding(y + slack, dtype)


@settings(max_examples=10)
@given(
    rows=st.sampled_from([1, 3, 16, 17, 31]),
    n=st.sampled_from([1, 2, 31, 48, 127, 229, 511, 512, 513, 1031]),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 2**32 - 1),
)
@example(rows=1, n=1, scale=1.0, seed=0)
def test_softmax_error(target: str, dtype: str, rows: int, n: int, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((rows, n)) * scale).astype(DTYPES[dtype][0])
    assert worst(kernels.softmax(x, target=target), *softmax_bound(x, dtype)) <= 1


def test_softmax_bound_has_teeth() -> None:
    rng = np.random.default_rng(6)
    x = normal(rng, (8, 229), "float32")
    y, bound = softmax_bound(x, "float32")
    assert worst(softmax_bound(tf32(x), "float32")[0], y, bound) > 1
    short = softmax_bound(x[:, :-1], "float32")[0]
    assert worst(short, y[:, :-1], bound[:, :-1]) > 1


def test_softmax_masks_and_special_values(target: str) -> None:
    x = np.zeros((6, 700), np.float32)
    x[1] = -np.inf  # nothing is visible: 0
    x[2, :600] = -np.inf  # the first tile is all -inf
    x[3, 650] = np.nan
    x[4, 5] = np.inf
    x[5] = 1e30
    y = kernels.softmax(x, target=target)
    assert close(y[[0, 5]], np.full((2, 700), 1 / 700), 3)
    assert not y[1].any()
    assert not y[2, :600].any() and close(y[2, 600:], np.full(100, 0.01), 3)
    assert np.isnan(y[3]).all() and np.isnan(y[4]).any()


def test_softmax_shapes_and_in_place(target: str, dtype: str) -> None:
    rng = np.random.default_rng(7)
    x = normal(rng, (3, 5, 40), dtype)
    y = kernels.softmax(x, target=target)
    assert same_bits(kernels.softmax(x.reshape(15, 40), target=target), y.reshape(15, 40))
    assert same_bits(kernels.softmax(x[1, 2], target=target), y[1, 2])
    assert same_bits(kernels.softmax(x.swapaxes(0, 1), target=target), np.ascontiguousarray(y.swapaxes(0, 1)))
    assert kernels.softmax(x[:0], target=target).shape == (0, 5, 40)
    assert kernels.softmax(x[..., :0], target=target).shape == (3, 5, 0)
    again = x.copy()
    assert kernels.softmax(again, out=again, target=target) is again
    assert same_bits(again, y)


# -- rms_norm ---------------------------------------------------------------------------------------------------------


def rms_bound(x: Array, w: Array, eps: float, dtype: str) -> tuple[Array, Array]:
    """Float64 result and bound: n roundings of the positive sum count half under the root; square, division, eps,
    root, reciprocal and two products are 8 more at most; then the last rounding."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    n = x.shape[-1]
    y = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * w
    slack = np.abs(y) * (n / 2 + 8) * U * (1 + n * U) + 2.0**-149
    return y, slack + rounding(np.abs(y) + slack, dtype)


@settings(max_examples=10)
@given(
    rows=st.sampled_from([1, 3, 16, 17, 31]),
    n=st.sampled_from([1, 2, 31, 48, 127, 229, 511, 512, 513, 1031]),
    eps=st.sampled_from([0.0, 1e-6, 0.5]),
    float_weight=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_rms_norm_error(target: str, dtype: str, rows: int, n: int, eps: float, float_weight: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    eps = float(np.float32(eps))
    x, w = normal(rng, (rows, n), dtype), normal(rng, (n,), "float32" if float_weight else dtype)
    assert worst(kernels.rms_norm(x, w, eps=eps, target=target), *rms_bound(x, w, eps, dtype)) <= 1


def test_rms_norm_bound_has_teeth() -> None:
    rng = np.random.default_rng(8)
    x, w = normal(rng, (8, 229), "float32"), normal(rng, (229,), "float32")
    y, bound = rms_bound(x, w, 1e-6, "float32")
    assert worst(rms_bound(tf32(x), w, 1e-6, "float32")[0], y, bound) > 1
    padded = np.pad(x, ((0, 0), (0, 1)))  # a mean over one element too many
    assert worst(rms_bound(padded, np.pad(w, (0, 1)), 1e-6, "float32")[0][:, :-1], y, bound) > 1


def test_rms_norm_of_zeros_and_of_nothing(target: str) -> None:
    w = np.ones(40, np.float32)
    assert not kernels.rms_norm(np.zeros((2, 40), np.float32), w, target=target).any()
    assert kernels.rms_norm(np.ones((0, 40), np.float32), w, target=target).shape == (0, 40)
    assert kernels.rms_norm(np.ones((3, 0), np.float32), w[:0], target=target).shape == (3, 0)


@pytest.mark.parametrize("function", ["softmax", "rms_norm"])
def test_rows_do_not_depend_on_each_other(function: str, dtype: str, target: str) -> None:
    rng = np.random.default_rng(9)
    x, w = normal(rng, (40, 600), dtype), normal(rng, (600,), dtype)
    extra = (w,) if function == "rms_norm" else ()
    run = getattr(kernels, function)
    whole = run(x, *extra, target=target)
    for rows in (slice(0, 1), slice(13, 14), slice(5, 22)):
        assert same_bits(run(x[rows], *extra, target=target), whole[rows])


# -- both targets, bit for bit ------------------------------------------------------------------------------------


def test_targets_agree_bit_for_bit(dtype: str) -> None:
    """Compiled targets and the reference in exact mode, each with its own tiles along M and N."""
    rng = np.random.default_rng(10)
    a, b = normal(rng, (33, 129), dtype), normal(rng, (129, 70), dtype)
    assert_targets_agree(kernels.matmul, a, b)
    sizes, w = np.array([3, 0, 30], np.int32), normal(rng, (3, 129, 70), dtype)
    assert_targets_agree(kernels.grouped_gemm, a, w, sizes, out_dtype="float32")
    x, weight = normal(rng, (5, 600), dtype), normal(rng, (600,), dtype)
    assert_targets_agree(kernels.softmax, x)
    assert_targets_agree(kernels.rms_norm, x, weight)


def test_threads_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(14)
    a, b = normal(rng, (300, 229), "float32"), normal(rng, (229, 290), "float32")
    q, k, v = (normal(rng, (2, n, h, 32), "float32") for n, h in ((70, 4), (90, 2), (90, 2)))
    found = []
    for threads in ("1", "2", "3", "2"):
        monkeypatch.setenv("TILEDSL_NUM_THREADS", threads)
        o = kernels.flash_attention(q, k, v, causal=True, target="numba")
        found.append((kernels.matmul(a, b, target="numba").tobytes(), o.tobytes()))
    assert len(set(found)) == 1


def test_checked_mode_finds_nothing() -> None:
    """No races, nothing uninitialised, no overflow; rows beyond the groups are written by nobody."""
    rng = np.random.default_rng(12)
    a, b = normal(rng, (33, 129), "bfloat16"), normal(rng, (129, 70), "bfloat16")
    checked = "numpy:checked"
    assert same_bits(kernels.matmul(a, b, target=checked), kernels.matmul(a, b, target="numpy:exact"))
    sizes, w = np.array([3, 0, 25], np.int64), normal(rng, (3, 129, 70), "bfloat16")
    kernels.grouped_gemm(a, w, sizes, target=checked)
    x = normal(rng, (5, 600), "float16")
    kernels.softmax(x, target=checked)
    kernels.rms_norm(x, x[0], target=checked)


def test_one_compile_serves_all_shapes(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = load_backend(target.partition(":")[0])
    emitted = []
    emit = type(backend).emit

    def counting(self: Any, function: Any, at: Any) -> Any:
        emitted.append(function.name)
        return emit(self, function, at)

    monkeypatch.setattr(type(backend), "emit", counting)
    monkeypatch.setenv("TILEDSL_DISABLE_CACHE", "1")
    kernel = kernels.matmul_kernel(32, 32, 24, "float32", "float32")  # tiles that no other test uses
    rng = np.random.default_rng(13)
    for m, k, n in [(1, 1, 1), (33, 24, 31), (64, 96, 32), (127, 229, 48)]:
        a, b, c = normal(rng, (m, k), "float32"), normal(rng, (k, n), "float32"), np.empty((m, n), np.float32)
        kernel(a, b, c, target=target)
        assert worst(c, *product_bound(a, b, "float32", True)) <= 1
    assert emitted == ["matmul"]


# -- torch and arguments --------------------------------------------------------------------------------------------


def test_torch_in_torch_out(target: str, dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    rng = np.random.default_rng(11)
    a, b = normal(rng, (33, 40), dtype), normal(rng, (40, 31), dtype)

    def tensor(x: Array) -> Any:
        return torch.from_numpy(x.astype(np.float32)).to(getattr(torch, dtype))

    got = kernels.matmul(tensor(a), tensor(b).T.contiguous().T, target=target)
    assert isinstance(got, torch.Tensor) and got.dtype == getattr(torch, dtype)
    assert np.array_equal(got.float().numpy(), kernels.matmul(a, b, target=target).astype(np.float32))
    sizes = torch.tensor([3, 30], dtype=torch.int64)
    w = normal(rng, (2, 40, 31), dtype)
    got = kernels.grouped_gemm(tensor(a), tensor(w), sizes, target=target)
    expected = kernels.grouped_gemm(a, w, sizes.numpy(), target=target)
    assert np.array_equal(got.float().numpy(), expected.astype(np.float32))
    out = torch.empty_like(tensor(a))
    assert kernels.softmax(tensor(a), out=out, target=target) is out
    assert np.array_equal(out.float().numpy(), kernels.softmax(a, target=target).astype(np.float32))


F = np.ones((4, 4), np.float32)
I = np.array([4], np.int32)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: kernels.matmul(F, F[:3]), TileTypeError, "inner sizes differ.*a is float32 \\(4, 4\\)"),
        (lambda: kernels.matmul([1.0], F), TileTypeError, "a is list, expected a NumPy array"),
        (lambda: kernels.matmul(F, F.astype(np.float16)), TileTypeError, "a and b differ in dtype"),
        (lambda: kernels.matmul(F.astype(np.int32), F), TileTypeError, "a is int32 \\(4, 4\\), expected float32 or"),
        (lambda: kernels.matmul(F[0], F), TileTypeError, "a has shape \\(4,\\), expected 2 dimensions \\[m, k\\]"),
        (lambda: kernels.matmul(F, F, out_dtype="int8"), TileTypeError, "out_dtype is 'int8'"),
        (lambda: kernels.matmul(F, F, out=F[:2]), TileTypeError, "expected a NumPy array of float32 \\(4, 4\\)"),
        (lambda: kernels.matmul(F, F.copy(), out=F), TileValueError, "out shares memory with a"),
        (lambda: kernels.matmul(F, F, out=np.ones((4, 8), np.float32)[:, ::2]), TileTypeError, "must be contiguous"),
        (lambda: kernels.matmul(F, F, target="nunba"), TileValueError, "unknown target"),
        (lambda: kernels.grouped_gemm(F, F[None], I.astype(np.int8)), TileTypeError, "group_sizes is int8"),
        (lambda: kernels.grouped_gemm(F, F[None, :3], I), TileTypeError, "inner sizes differ"),
        (lambda: kernels.grouped_gemm(F, F[None], np.array([2, 2], np.int32)), TileTypeError, "one size per group"),
        (lambda: kernels.grouped_gemm(F, F[None], -I), TileValueError, "group_sizes\\[0\\] is -4"),
        (lambda: kernels.grouped_gemm(F, F[None], I + 1), TileValueError, "sum to 5, but a has 4 rows"),
        (lambda: kernels.softmax(np.array(1.0, np.float32)), TileTypeError, "scalar array"),
        (lambda: kernels.softmax(F[:2], out=F[1:3]), TileValueError, "out shares memory with x"),
        (lambda: kernels.softmax(F, out=np.ones((4, 8), np.float32)[:, :4]), TileTypeError, "must be contiguous"),
        (lambda: kernels.rms_norm(F, F[0, :3]), TileTypeError, "weight does not fit"),
        (lambda: kernels.rms_norm(F, F[0].copy(), eps=-1.0), TileValueError, "eps is -1.0"),
    ],
)
def test_arguments_are_checked(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
