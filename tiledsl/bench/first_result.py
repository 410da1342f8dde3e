"""Run by path, in a process of its own, by latency.py: what a new process waits for, as JSON.

Arguments: "import", "gemm" or "attention"; a target, or ""; a clock of the module time. NumPy is imported before
anything is timed. Printed: seconds of importing tiledsl, and of the first call of a kernel of the library.
"""

import json
import sys
import time

import numpy as np

what, target = sys.argv[1], sys.argv[2] or None
clock = getattr(time, sys.argv[3])
start = clock()
import tiledsl  # noqa: E402
import tiledsl.language  # noqa: E402
import tiledsl.runtime  # noqa: E402, F401  (what tiledsl.jit would import when it is first used)

seconds = {"import": clock() - start}
if what != "import":
    from tiledsl.kernels import flash_attention, matmul

    ones = np.ones((2, 100, 64), np.float32)
    start = clock()
    if what == "gemm":
        assert (matmul(ones[0], ones[0].T, target=target) == 64).all()
    else:
        assert np.abs(flash_attention(ones[None], ones[None], ones[None], causal=True, target=target) - 1).max() < 1e-6
    seconds[what] = clock() - start
print(json.dumps(seconds))
