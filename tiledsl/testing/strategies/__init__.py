"""Complete kernels, drawn: a `Program` has source text and arguments. `programs()` is a Hypothesis strategy, and
`random_program(seed)` needs nothing but the seed.

The programs are valid, free of races and read nothing undefined: any difference between two targets is a bug.
"""

from tiledsl.testing.strategies.kernels import programs, random_program
from tiledsl.testing.strategies.program import Argument, Program, make_argument

__all__ = ["Argument", "Program", "make_argument", "programs", "random_program"]
