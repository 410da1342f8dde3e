"""A mixture-of-experts layer: route tokens to their two best experts, one grouped product, combine.

Run it: python examples/03_grouped_gemm.py
"""

import numpy as np

import tiledsl
from tiledsl.kernels import grouped_gemm, matmul, softmax

rng = np.random.default_rng(0)
tokens, width, hidden, experts, top = 300, 128, 192, 8, 2
x = rng.standard_normal((tokens, width), dtype=np.float32)
router = rng.standard_normal((width, experts), dtype=np.float32) * width**-0.5
weights = rng.standard_normal((experts, width, hidden), dtype=np.float32) * width**-0.5

# Each token goes to its two best experts; sorting by expert makes each expert's rows consecutive.
gates = softmax(matmul(x, router))
chosen = np.argsort(-gates, axis=1)[:, :top]
order = np.argsort(chosen, axis=None, kind="stable")
group_sizes = np.bincount(chosen.ravel(), minlength=experts).astype(np.int32)
rows = x[order // top]

y = grouped_gemm(rows, weights, group_sizes)
print(f"rows per expert {group_sizes.tolist()}: {rows.shape} @ {weights.shape} -> {y.shape}")

# Back to the tokens' order, weighted by the gates.
scale = np.take_along_axis(gates, chosen, axis=1)
combined = np.zeros((tokens, hidden), np.float32)
np.add.at(combined, order // top, y * scale.ravel()[order, None])

exact = sum(
    scale[:, [e]].astype(np.float64) * np.einsum("tk,tkn->tn", x.astype(np.float64), weights[chosen[:, e]])
    for e in range(top)
)
error = np.abs(combined - exact).max()
assert error < 1e-5
print(f"against float64: largest error {error:.1e}")

# Empty experts are fine, and a group's rows have the same bits whatever the other groups hold. (The reference target
# promises bits in its exact mode; otherwise it multiplies with BLAS, whose order is its own.)
target = "numpy:exact" if tiledsl.resolve(None).name == "numpy" else None
y = grouped_gemm(rows, weights, group_sizes, target=target)
alone = np.zeros_like(group_sizes)
alone[3] = group_sizes[3]
start = group_sizes[:3].sum()
own = slice(start, start + alone[3])
assert np.array_equal(grouped_gemm(rows[own], weights, alone, target=target), y[own])
print("expert 3 alone: the same bits as among the others")
