"""Short texts for diagnostics: expressions, shapes and operands."""

from __future__ import annotations

from collections.abc import Iterable

from tiledsl.ir import Binary, Buffer, Call, Cast, Const, Expr, Fma, IfThenElse, Load, Region, Select, Unary, Var
from tiledsl.ir.buffer import place_text

__all__ = ["INFIX", "dims", "expr_text", "operand_text", "place_text"]

INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "floordiv": "//", "floormod": "%", "bitand": "&", "bitor": "|",
    "bitxor": "^", "shl": "<<", "shr": ">>", "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
    "and": "and", "or": "or",
}  # fmt: skip


def expr_text(e: Expr, nested: bool = False) -> str:
    """An expression as an author would write it; only for people, never read back."""
    match e:
        case Const(value=value):
            return str(value)
        case Var(name=name):
            return name
        case Cast(x=x):
            return expr_text(x, nested)
        case Load(buffer=buffer, indices=indices):
            if buffer.scope == "var":
                return buffer.name
            return f"{buffer.name}[{', '.join(expr_text(i) for i in indices)}]"
        case Unary(op=op, x=x):
            sign = {"neg": "-", "not": "not ", "bitnot": "~"}.get(op)
            return f"{sign}{expr_text(x, True)}" if sign else f"{op}({expr_text(x)})"
        case Binary(op=op, a=a, b=b) if op in INFIX:
            text = f"{expr_text(a, True)} {INFIX[op]} {expr_text(b, True)}"
            return f"({text})" if nested else text
        case Binary(op=op, a=a, b=b):
            return f"{op}({expr_text(a)}, {expr_text(b)})"
        case Call(name=name, args=args):
            return f"{name}({', '.join(expr_text(x) for x in args)})"
        case Fma(a=a, b=b, c=c):
            return f"fma({expr_text(a)}, {expr_text(b)}, {expr_text(c)})"
        case IfThenElse(cond=cond, t=t, f=f) | Select(cond=cond, t=t, f=f):
            return f"if_then_else({expr_text(cond)}, {expr_text(t)}, {expr_text(f)})"
        case _:
            return type(e).__name__


def dims(shape: Iterable[Expr]) -> str:
    """64x32 (a scalar's shape prints as "scalar")."""
    return "x".join(expr_text(e, True) for e in shape) or "scalar"


def operand_text(x: Buffer | Region) -> str:
    """A_s 64x32 float16 shared."""
    if isinstance(x, Region) and x.extents == x.buffer.shape:
        x = x.buffer
    if isinstance(x, Buffer):
        return f"{x.name} {dims(x.shape)} {x.dtype} {x.scope}"
    return f"{x.buffer.name}[...] {dims(x.extents)} {x.buffer.dtype} {x.buffer.scope}"
