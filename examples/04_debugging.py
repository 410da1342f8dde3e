"""Two planted bugs, and how the checked mode of the reference target finds them.

Run it: python examples/04_debugging.py. target="numpy:checked" runs any kernel in that mode: memory that nobody has
written, lanes or blocks that race, accesses out of range and overflow in indices are reported where they happen.
"""

import numpy as np

import tiledsl
import tiledsl.language as T
from tiledsl.errors import TileError


@tiledsl.jit(out_idx=[-1])
def smooth(block, bug):
    """y[i] = x[i] + (mean of the block of i); `bug` plants a mistake."""
    n = T.dynamic("n")

    @T.prim_func
    def main(X: T.Tensor((n,), "float32"), Y: T.Tensor((n,), "float32")):
        with T.Kernel(T.ceildiv(n, block), threads=128) as bx:
            x = T.alloc_fragment((block,), "float32")
            total = T.alloc_fragment((1,), "float32")
            T.copy(X[bx * block], x)
            if bug != "never cleared":
                T.clear(total)
            T.reduce_sum(x, total, clear=False)
            for i in T.Parallel(block):
                if bug == "race":
                    x[i] = x[(i + 1) % block] + total[0] / block  # reads what another lane writes
                else:
                    x[i] = x[i] + total[0] / block
            T.copy(x, Y[bx * block])

    return main


x = np.random.default_rng(0).standard_normal(256, dtype=np.float32)

# A sum that starts from memory nobody has set, and lanes that read what others write: either may seem to work, on some
# machine, on some day. The checked mode says what is wrong, and where.
for bug in ("never cleared", "race"):
    try:
        smooth(64, bug)(x, target="numpy:checked")
    except TileError as error:
        print(f"--- planted bug: {bug}\n{error}\n")
        assert "04_debugging.py" in str(error)
    else:
        raise SystemExit(f"the checked mode missed the planted bug {bug!r}")

# The repaired kernel passes the checks, and gives the same bits on the target it is meant for.
y = smooth(64, None)(x)
assert np.array_equal(y, smooth(64, None)(x, target="numpy:checked"))
blocks = x.reshape(4, 64).astype(np.float64)
assert np.allclose(y.reshape(4, 64), blocks + blocks.mean(axis=1, keepdims=True), rtol=0, atol=1e-6)
print("repaired: passes the checks, and agrees with NumPy")
