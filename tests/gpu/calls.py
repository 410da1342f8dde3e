"""Every call of the library once on the GPU, for tools that watch it, such as compute-sanitizer."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from library_calls import CALLS  # noqa: E402

from tiledsl import backend  # noqa: E402

if __name__ == "__main__":
    backend.BUILT_IN["cuda-copied"] = "gpu.copied:backend"
    for name in sys.argv[1:] or CALLS:
        CALLS[name](np.random.default_rng(1), "cuda-copied")
        print(name, flush=True)
