"""Jobs that go through memory: functions of rows on a gibibyte."""

from __future__ import annotations

from typing import Any

import numpy as np

from tiledsl.bench.job import Job, Maker, Thunk, array, large, tensor, torch_module

__all__ = ["ROWS"]

_NAMES = ("softmax", "rms_norm", "layer_norm", "swiglu", "transpose", "cumsum")
_N = 2048


def _rows(name: str) -> Maker:
    """512 MiB in and as much out (swiglu: half); written where they read nothing again."""

    def make(target: str | None, small: bool) -> dict[str, Thunk]:
        from tiledsl import kernels

        m = 48 if small else 1 << 16
        x, w = large((m, _N), np.float32, 0), array(np.random.default_rng(1), (_N,), np.float32)
        shapes = {"swiglu": (m, _N // 2), "transpose": (_N, m)}
        out = np.empty(shapes.get(name, (m, _N)), np.float32)
        extra = {"rms_norm": (w,), "layer_norm": (w, w)}.get(name, ())
        ours = getattr(kernels, name)
        jobs: dict[str, Thunk] = {"tiledsl": lambda: ours(x, *extra, out=out, target=target)}
        peer = np.empty_like(out) if small else out
        if name == "cumsum":
            jobs["numpy"] = lambda: np.cumsum(x, axis=1, out=peer)
        if torch := torch_module():
            tx, tw, to = (tensor(torch, t) for t in (x, w, peer))
            f = torch.nn.functional

            def gated() -> Any:
                return torch.mul(f.silu(tx[:, : _N // 2]), tx[:, _N // 2 :], out=to)

            jobs["torch"] = {
                "softmax": lambda: torch.softmax(tx, -1, out=to),
                "rms_norm": lambda: f.rms_norm(tx, (_N,), tw, 1e-6),
                "layer_norm": lambda: f.layer_norm(tx, (_N,), tw, tw),
                "swiglu": gated,
                "transpose": lambda: to.copy_(tx.T),
                "cumsum": lambda: torch.cumsum(tx, 1, out=to),
            }[name]
        return jobs

    return make


ROWS = tuple(
    Job(name.replace("_", "-"), _rows(name), moved=4.0 * (1 << 16) * _N * (1.5 if name == "swiglu" else 2.0))
    for name in _NAMES
)
