"""tiledsl in PyTorch programs: kernels as custom operators that torch.compile, autograd and opcheck understand."""

from __future__ import annotations

from tiledsl.torch.op import op

__all__ = ["op"]
