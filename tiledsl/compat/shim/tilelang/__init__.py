"""Stands for TileLang: the names that programs use, by `tiledsl.compat`."""

import tvm  # noqa: F401  (programs say `from tilelang import tvm`)

from tiledsl.compat.modules import build as _build

from . import language as _language

_build(globals(), _language)
