"""Choosing a kernel's configuration by measuring: `tune(factory, configs, inputs=...)`.

    result = tune(matmul, [{"block_M": 64}, {"block_M": 128}], args=(1024, 1024, 1024), inputs=lambda kernel: [a, b])
    c = result.kernel(a, b)         # result.config, result.latency (ms), result.trials

Configurations that fail to compile or to run, or whose results the check refuses, are kept with their diagnostics.
"""

from __future__ import annotations

from tiledsl.tune.measure import milliseconds, times
from tiledsl.tune.tuner import Result, Trial, tune

__all__ = ["Result", "Trial", "milliseconds", "times", "tune"]
