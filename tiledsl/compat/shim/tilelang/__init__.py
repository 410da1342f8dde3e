"""Stands for TileLang: the names that programs use, by `tiledsl.compat`."""

from tiledsl.compat.modules import build as _build

from . import language as _language

_build(globals(), _language)
