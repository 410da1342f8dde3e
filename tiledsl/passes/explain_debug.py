"""T.print and T.device_assert say where they are: block and loop values join what a Debug statement shows.

Compiled code leaves numbers behind, and the runtime makes the text of them. After this pass the message of a
print or assert is a template (str.format) with one `{}` for each value in order (an assert's condition aside), so
that the text is the interpreter's. A second line of an assert's template is its note.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tiledsl.ir.buffer import Buffer
from tiledsl.ir.expr import Expr, Load, Var
from tiledsl.ir.stmt import Alloc, Atomic, Debug, For, Function, Kernel, Let, Parallel, Stmt
from tiledsl.ir.walk import map_kernels, walk

__all__ = ["ExplainDebug"]


@dataclass(frozen=True)
class ExplainDebug:
    """See the module. Functions without Debug statements stay as they are."""

    name: ClassVar[str] = "explain_debug"

    def __call__(self, function: Function) -> Function:
        found: Function = map_kernels(lambda k: _Explain(k).kernel_explained(), function)
        return found


class _Explain:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.loops: list[Var] = list(kernel.block_vars)  # outermost first
        self.lanes: list[Var] = []  # of the enclosing T.Parallel
        self.varying: set[Var | Buffer] = set()  # what differs between lanes

    def kernel_explained(self) -> Kernel:
        if not any(isinstance(n, Debug) for n in walk(self.kernel.body)):
            return self.kernel
        return self.kernel.replace(body=self.block(self.kernel.body))  # type: ignore[no-any-return]

    def block(self, body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        return tuple(self.stmt(s) for s in body)

    def stmt(self, s: Stmt) -> Stmt:
        if isinstance(s, Debug):
            return self.debug(s)
        if isinstance(s, Let) and self.varies(s.value):
            self.varying.add(s.var)
        elif isinstance(s, Atomic) and s.result is not None and self.lanes:
            self.varying.add(s.result)
        elif isinstance(s, Alloc) and self.lanes:
            self.varying.add(s.buffer)
        inside: tuple[Var, ...] = ()
        if isinstance(s, Parallel):
            inside = s.vars
            self.lanes += inside
            self.varying.update(inside)
        elif isinstance(s, For):
            inside = (s.var,)
        self.loops += inside
        blocks = {name: getattr(s, name) for name in ("body", "then", "orelse") if hasattr(s, name)}
        changed = {name: new for name, old in blocks.items() if (new := self.block(old)) != old}
        del self.loops[len(self.loops) - len(inside) :]
        if isinstance(s, Parallel):
            del self.lanes[len(self.lanes) - len(inside) :]
        return s.replace(**changed) if changed else s

    def varies(self, x: Expr | Buffer) -> bool:
        return any(
            n in self.varying or (isinstance(n, Load) and n.buffer.root in self.varying)
            for n in walk(x)
            if isinstance(n, (Var, Buffer, Load))
        )

    def debug(self, s: Debug) -> Debug:
        if s.kind == "print":
            place = "[" + " ".join(f"{v.name}={{}}" for v in self.kernel.block_vars) + "]"
            parts, shown = [place, _plain(s.message)], list[Expr | Buffer](self.kernel.block_vars)
            if any(map(self.varies, s.values)):
                parts.append("lane (" + ", ".join(["{}"] * len(self.lanes)) + (",)" if len(self.lanes) == 1 else ")"))
                shown += self.lanes
            parts += [f"{x.name} = {{}}" if isinstance(x, (Var, Buffer)) else "{}" for x in s.values]
            return s.replace(values=(*shown, *s.values), message=" ".join(parts))  # type: ignore[no-any-return]
        if s.kind == "assert":
            text = f"assertion failed: {_plain(s.message)}" if s.message else "assertion failed"
            if self.loops:
                text += "\nwhere " + ", ".join(f"{v.name} = {{}}" for v in self.loops)
            return s.replace(values=(*s.values[:1], *self.loops), message=text)  # type: ignore[no-any-return]
        return s


def _plain(message: str) -> str:
    return message.replace("{", "{{").replace("}", "}}")
