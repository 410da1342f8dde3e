"""T.print and T.device_assert carry all that their text needs: a template, and the loop values of the place.

Compiled code leaves numbers behind, and the runtime makes the text of them. After this pass the message of a
print or assert is a template (str.format) with one `{}` for each value in order (an assert's condition aside), so
that the text is the interpreter's. The last line of an assert's template is its note.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tiledsl.ir import Debug, For, Function, Kernel, Parallel, Stmt, Var
from tiledsl.ir.walk import map_kernels, walk

__all__ = ["ExplainDebug", "escaped", "where"]


@dataclass(frozen=True)
class ExplainDebug:
    """See the module. Functions without Debug statements stay as they are."""

    name: ClassVar[str] = "explain_debug"

    def __call__(self, function: Function) -> Function:
        return map_kernels(_explain, function)


def _explain(kernel: Kernel) -> Kernel:
    if not any(isinstance(n, Debug) for n in walk(kernel.body)):
        return kernel
    return kernel.replace(body=_block(kernel.body, kernel.block_vars))


def _block(body: tuple[Stmt, ...], loops: tuple[Var, ...]) -> tuple[Stmt, ...]:
    """loops: block variables and variables of the enclosing loops, outermost first."""
    return tuple(_debug(s, loops) if isinstance(s, Debug) else _inside(s, loops) for s in body)


def _inside(s: Stmt, loops: tuple[Var, ...]) -> Stmt:
    own = s.vars if isinstance(s, Parallel) else (s.var,) if isinstance(s, For) else ()
    blocks = {name: getattr(s, name) for name in ("body", "then", "orelse") if hasattr(s, name)}
    changed = {name: new for name, old in blocks.items() if (new := _block(old, loops + own)) != old}
    return s.replace(**changed) if changed else s


def escaped(text: str) -> str:
    """A template that shows the text as it is."""
    return text.replace("{", "{{").replace("}", "}}")


def where(loops: tuple[Var, ...]) -> str:
    """The template's line for the values of loop and block variables, which are shown last."""
    return "\nwhere " + ", ".join(f"{escaped(v.name)} = {{}}" for v in loops) if loops else ""


def _debug(s: Debug, loops: tuple[Var, ...]) -> Debug:
    message = escaped(s.message)
    changed = s
    if s.kind == "print":
        changed = s.replace(message=" ".join([message] * bool(message) + ["{}"] * len(s.values)))
    elif s.kind == "assert":
        changed = s.replace(values=(*s.values[:1], *loops), message=message + where(loops))
    return changed
