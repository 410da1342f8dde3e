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


def close(got: Array, exact: Array, roundings: float, size: Array | None = None, dtype: str = "float32") -> bool:
    """Whether `got` comes from `exact` by so many roundings of float32 to values of at most `size` (default: the
    result's own) and one to the dtype."""
    slack = roundings * U * (1 + roundings * U) * np.abs(exact if size is None else size)
    return worst(got, exact, slack + rounding(np.abs(exact) + slack, dtype)) <= 1


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


def attention_reference(
    q: Array, k: Array, v: Array, mask: Array, scale: float, dtype: str, sink: Array | None = None
) -> tuple[Array, Array, Array, Array]:
    """Float64 output, lse (without the sink), and the bounds of their errors; q, k, v [batch, heads, seq, dim] are
    independent draws of zero mean; mask [.., seq_q, seq_kv]; v may have other columns than k.

    The exponent of p_ij: the sum over head_dim (6 sqrt(d) u sum |q k|, times the scale), scale and its rounding, and
    the difference from the maximum; exp2 adds 2 u. The maximum itself and the rescalings' exponents cancel between
    numerator and denominator. Sums over n keys and one rescaling per tile or split: (2 n + 4 tiles) u; p is rounded
    to the dtype before it meets v. A sink is one more score, with value 0.
    """
    _, u, tiny = DTYPES[dtype]
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = (np.repeat(x, group, axis=1) for x in (k, v))
    d, n = q.shape[-1], k.shape[2]
    mask = np.broadcast_to(mask, (*q.shape[:3], n))
    s = np.where(mask, q @ k.swapaxes(2, 3) * scale, -np.inf)
    peak = s.max(axis=-1, keepdims=True, initial=-np.inf)
    seen = np.isfinite(peak)
    base = np.where(seen, peak, 0)
    from_peak = np.where(mask, s - base, -np.inf)
    total = np.exp(from_peak).sum(axis=-1, keepdims=True)
    lse = np.where(seen, base + np.log(np.where(seen, total, 1)), -np.inf)
    whole = lse if sink is None else np.where(seen, np.logaddexp(lse, sink[None, :, None, None].astype(np.float64)), 0)
    p = np.exp(np.where(mask, s - np.where(seen, whole, 0), -np.inf))
    o = p @ v
    size = np.abs(q) @ np.abs(k).swapaxes(2, 3) * abs(scale)
    finite_s, finite_d = np.where(mask, np.abs(s), 0), np.where(mask, np.abs(from_peak), 0)
    r = (min(d, 6 * d**0.5) * size + 3 * finite_s + finite_d + 2) * U
    sums = (2 * n + 4 * -(-n // 64) + 10) * U
    if sink is not None:
        sums = sums + 4 * U * (1 + np.abs(np.maximum(sink, -1e4))[None, :, None, None] + np.abs(base))
    each = r + (p * r).sum(axis=-1, keepdims=True) + sums + (0.0 if dtype == "float32" else u)
    o_slack = (p * each * (1 + each)) @ np.abs(v) + n * tiny * np.abs(v).max(initial=0)
    o_bound = o_slack + u * (np.abs(o) + o_slack) + tiny
    chance = np.exp(np.where(mask, s - np.where(seen, lse, 0), -np.inf))
    finite_lse = np.where(seen, np.abs(lse), 0)
    lse_bound = (chance * r).sum(axis=-1, keepdims=True) + (2 * n + 4 * -(-n // 64) + 6) * U
    lse_bound = lse_bound + 6 * U * (1 + finite_lse + np.abs(base))
    return o, lse[..., 0], o_bound, lse_bound[..., 0]


def attention_gradients(
    q: Array, k: Array, v: Array, do: Array, dlse: Array, mask: Array, scale: float, dtype: str, sink: Array | None
) -> tuple[list[Array], list[Array], Array, Array]:
    """Float64 dq, dk, dv (and dsink), the bounds of their errors, and o, lse; arrays [batch, heads, seq, dim].

    P is off by r relative (as in attention_reference, lse given to u |lse|), dP by 6 sqrt(d) u sum |do v|, delta by
    the rounding of o and its own sum; P and dS are rounded to the dtype; then sums over queries or keys.
    """
    _, u, tiny = DTYPES[dtype]
    half = 0.0 if dtype == "float32" else u
    o, lse, _, _ = attention_reference(q, k, v, mask, scale, dtype, sink)
    q, k, v, do, dlse = (x.astype(np.float64) for x in (q, k, v, do, dlse))
    group, d, n = q.shape[1] // k.shape[1], q.shape[-1], k.shape[2]
    kk, vv = (np.repeat(x, group, axis=1) for x in (k, v))
    seen = np.isfinite(lse)[..., None]
    base = np.where(seen, lse[..., None], 0)
    whole = base if sink is None else np.logaddexp(base, sink[None, :, None, None].astype(np.float64))
    s = q @ kk.swapaxes(2, 3) * scale
    p = np.where(mask & seen, np.exp(np.where(mask & seen, s - whole, 0)), 0)
    plain = np.where(mask & seen, np.exp(np.where(mask & seen, s - base, 0)), 0)
    dp = do @ vv.swapaxes(2, 3)
    delta = (do * o).sum(axis=-1, keepdims=True)
    ds = p * (dp - delta) + plain * dlse[..., None]
    size = np.abs(q) @ np.abs(kk).swapaxes(2, 3) * abs(scale)
    r = (min(d, 6 * d**0.5) * size + 6 * np.abs(np.where(mask, s, 0)) + 6 * np.abs(whole) + 12) * U
    off_dp = 6 * d**0.5 * U * (np.abs(do) @ np.abs(vv).swapaxes(2, 3))
    off_delta = (np.abs(do) * (u * np.abs(o) + tiny)).sum(-1, keepdims=True) + d * U * np.abs(do * o).sum(
        -1, keepdims=True
    )
    off_ds = p * ((r + 4 * U) * (np.abs(dp) + np.abs(delta)) + off_dp + off_delta) + plain * np.abs(dlse)[..., None] * (
        2 * r + 8 * U
    )
    off_ds += half * np.abs(ds) + tiny

    def fold(x: Array) -> Array:
        """Sum over the query heads of a group."""
        return x.reshape(x.shape[0], -1, group, *x.shape[2:]).sum(axis=2)

    def sum_bound(a: Array, off: Array, b: Array) -> Array:
        """Error of the sum over the last axis of a times b, where a is off by `off`."""
        m = a.shape[-1] * group
        return (off @ np.abs(b)) + (min(m, 6 * m**0.5) + 2) * U * ((np.abs(a) + off) @ np.abs(b))

    pt, dst = p.swapaxes(2, 3), ds.swapaxes(2, 3)
    off_p = (p * (r + half) + tiny).swapaxes(2, 3)
    exact = [scale * ds @ kk, fold(scale * dst @ q), fold(pt @ do)]
    bounds = [
        abs(scale) * sum_bound(ds, off_ds, kk),
        fold(abs(scale) * sum_bound(dst, off_ds.swapaxes(2, 3), q)),
        fold(sum_bound(pt, off_p, do)),
    ]
    bounds = [b + u * (np.abs(e) + b) + n * tiny for e, b in zip(exact, bounds, strict=True)]
    if sink is not None:
        chance = np.where(seen, np.exp(sink[None, :, None, None] - whole), 0)
        share = -chance * delta
        off = chance * (
            off_delta + np.abs(delta) * (8 * np.abs(whole) + 8 * np.abs(sink[None, :, None, None]) + 20) * U
        )
        m = share.shape[0] * share.shape[2]
        exact.append(share.sum(axis=(0, 2, 3)))
        bounds.append((off + m * U * (np.abs(share) + off)).sum(axis=(0, 2, 3)) + tiny)
    return exact, bounds, o, lse


def window_mask(rows: int, cols: int, causal: bool, window: tuple[int | None, int | None] | None) -> Array:
    """Which keys a query sees; the ends are aligned."""
    at, key = np.arange(rows)[:, None] + cols - rows, np.arange(cols)
    left, right = window or (None, None)
    seen = np.ones((rows, cols), bool)
    seen &= key >= at - (rows + cols if left is None else left)
    seen &= key <= at + (rows + cols if right is None else right)
    return seen & (key <= at) if causal else seen
