"""Attention from the library: causal, grouped query heads, a KV cache longer than the queries, and the log-sum-exp.

Run it: python examples/02_attention.py
"""

import numpy as np

import tiledsl
from tiledsl.kernels import flash_attention


def reference(q, k, v, causal):
    """softmax(q k^T / sqrt(d)) v in float64; arrays are [batch, seq, heads, head_dim]."""
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.astype(np.float64).swapaxes(1, 2) for x in (q, k, v))
    k, v = (np.repeat(x, group, axis=1) for x in (k, v))
    s = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1])
    if causal:
        rows, cols = s.shape[-2:]
        s = np.where(np.arange(cols) <= np.arange(rows)[:, None] + cols - rows, s, -np.inf)
    peak = s.max(axis=-1, keepdims=True)
    p = np.exp(s - peak)
    total = p.sum(axis=-1, keepdims=True)
    return (p / total @ v).swapaxes(1, 2), (peak + np.log(total))[..., 0]


rng = np.random.default_rng(0)
batch, seq, heads, kv_heads, head_dim = 2, 150, 8, 2, 64
q = rng.standard_normal((batch, seq, heads, head_dim), dtype=np.float32)
k, v = rng.standard_normal((2, batch, seq, kv_heads, head_dim), dtype=np.float32)

o, lse = flash_attention(q, k, v, causal=True, return_lse=True)
exact, exact_lse = reference(q, k, v, causal=True)
error, lse_error = np.abs(o - exact).max(), np.abs(lse - exact_lse).max()
assert error < 1e-5 and lse_error < 1e-5
print(f"causal attention   {q.shape}: largest error {error:.1e}, of lse {lse_error:.1e}")

# One new token against the cache: causal masking is aligned to the end, so it sees all keys. Its bits are those of
# the same position in the full computation: results do not depend on which other queries are computed along.
# (The reference target promises bits in its exact mode; otherwise it multiplies with BLAS, whose order is its own.)
target = "numpy:exact" if tiledsl.resolve(None).name == "numpy" else None
o = flash_attention(q, k, v, causal=True, target=target)
last = flash_attention(q[:, -1:], k, v, causal=True, target=target)
assert np.array_equal(last, o[:, -1:])
print("one query of a cache: the same bits as the last row of the whole")

# A sequence of the batch does not change when others join it.
assert np.array_equal(flash_attention(q[:1], k[:1], v[:1], causal=True, target=target), o[:1])
print("one sequence alone:   the same bits as in the batch")
