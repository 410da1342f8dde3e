"""The interpreter: it runs the IR of every stage, vectorised in NumPy, and is what the IR means."""

from tiledsl.interp.options import Options, Result, ShadowReport, checked
from tiledsl.interp.run import run

__all__ = ["Options", "Result", "ShadowReport", "checked", "run"]
