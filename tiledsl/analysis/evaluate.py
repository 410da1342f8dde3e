"""The value of a scalar expression on the host: grids, extents, strides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tiledsl.errors import TileTypeError
from tiledsl.ir import Binary, Cast, Const, Expr, IfThenElse, Select, Unary, Var, arithmetic

__all__ = ["evaluate"]


def evaluate(expr: Expr, env: Mapping[Var, Any]) -> Any:
    """The value of a scalar expression: int, bool, or float (of the expression's precision).

    env: variables to Python or NumPy values. Raises TileTypeError for an expression that needs a running kernel
    (a Load, a Call) or a variable that env lacks.
    """
    with np.errstate(all="ignore"):
        value = _evaluate(expr, env)
    return float(value) if expr.dtype.is_float else value


def _evaluate(e: Expr, env: Mapping[Var, Any]) -> Any:
    if isinstance(e, Const):
        return e.dtype.numpy.type(e.value) if e.dtype.is_float else e.value
    if isinstance(e, Var):
        if e not in env:
            raise _late(e, e.name)
        return e.dtype.numpy.type(env[e]) if e.dtype.is_float else env[e]
    if isinstance(e, Binary) and e.op in ("and", "or"):
        a = _evaluate(e.a, env)
        return bool(a) if (e.op == "or") == bool(a) else bool(_evaluate(e.b, env))
    if isinstance(e, (Binary, Unary)):
        operands = (e.a, e.b) if isinstance(e, Binary) else (e.x,)
        operator: Any = arithmetic.binary if isinstance(e, Binary) else arithmetic.unary
        function = operator(e.op, operands[0].dtype, False)
        assert function is not None, f"{e.op} of {operands[0].dtype}"
        return function(*(_evaluate(x, env) for x in operands))
    if isinstance(e, Cast):
        return arithmetic.cast(e.x.dtype, e.type, False)(_evaluate(e.x, env))
    if isinstance(e, (Select, IfThenElse)):
        return _evaluate(e.t if _evaluate(e.cond, env) else e.f, env)
    raise _late(e, f"a {type(e).__name__}")


def _late(e: Expr, what: str) -> TileTypeError:
    return TileTypeError(
        f"{what} ({e.dtype}) has no value before the kernel runs",
        e.loc,
        help="compute it before the call and pass it as an int32 parameter",
    )
