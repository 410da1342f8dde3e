"""Everything that printed text may import, by name."""

from math import inf, nan

from tiledsl.backends.numba_cpu.dialect import dialect_names
from tiledsl.backends.numba_cpu.effects import effect_names

NAMES = {**dialect_names(), **effect_names(), "inf": inf, "nan": nan}
globals().update(NAMES)
