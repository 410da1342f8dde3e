"""tiledsl: a tile-kernel language embedded in Python; one kernel, the same numbers on every target."""

__version__ = "0.1.0"
