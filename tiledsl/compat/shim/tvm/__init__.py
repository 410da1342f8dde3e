"""Stands for TVM: the few names that portable kernels use, by `tiledsl.compat.tvm`."""

from tiledsl.compat.tvm import build as _build

_build(globals())
