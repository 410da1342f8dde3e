"""Hypothesis strategies that draw complete kernels: `programs()` gives a `Program` (source text and arguments).

The programs are valid, free of races and read nothing undefined: any difference between two targets is a bug.
"""

from tiledsl.testing.strategies.kernels import programs
from tiledsl.testing.strategies.program import Argument, Program, make_argument

__all__ = ["Argument", "Program", "make_argument", "programs"]
