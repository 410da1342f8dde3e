"""Three backends with one mistake each, as compilers make them; the conformance suite has to see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tiledsl import ir
from tiledsl.backend import Artifact, Availability, Call, Capabilities, Target
from tiledsl.dtypes import SCALARS, as_dtype
from tiledsl.interp import Options, run
from tiledsl.ir.printer import to_text
from tiledsl.ir.walk import Rewriter


class OffByOne(Rewriter):
    """A tail that is one element too long: `<` against a size becomes `<=`."""

    def expr(self, e: ir.Expr) -> ir.Expr:
        if isinstance(e, ir.Binary) and e.op == "lt" and e.a.dtype.is_int:
            return e.replace(op="le")  # type: ignore[no-any-return]
        return e


class LostMask(Rewriter):
    """A branch inside a nest runs for all iterations."""

    def stmt(self, s: ir.Stmt) -> Any:
        if isinstance(s, ir.If):
            return s.then
        return s


class NoRounding(Rewriter):
    """float16 and bfloat16 results of a nested operator keep float32's digits."""

    def expr(self, e: ir.Expr) -> ir.Expr:
        if isinstance(e, ir.Binary) and e.dtype.is_half and e.op in ("add", "sub", "mul"):
            wide = as_dtype("float32")
            a, b = (x.x if isinstance(x, ir.Cast) and x.x.dtype is wide else ir.Cast(x, wide) for x in (e.a, e.b))
            return ir.Cast(ir.Binary(e.op, a, b), e.dtype)
        return e


class Toy:
    """Runs the interpreter on what `change` makes of the kernel."""

    def __init__(self, name: str, change: Callable[[], Rewriter] | None) -> None:
        self.name, self.change = name, change

    def probe(self) -> Availability:
        return Availability(True)

    def capabilities(self, target: Target) -> Capabilities:
        return Capabilities(SCALARS, cacheable=False)

    def pipeline(self, target: Target) -> Sequence[Callable[[ir.Function], ir.Function]]:
        change = self.change
        return () if change is None else (lambda function: change().visit(function),)

    def emit(self, function: ir.Function, target: Target) -> Artifact:
        return Artifact.of(function, to_text(function), payload=function)

    def load(self, artifact: Artifact) -> Callable[..., None]:
        def launch(call: Call, *, stream: Any = None, device: Any = None) -> None:
            run(artifact.payload, call.arrays, Options(exact=True, bounds=False))

        return launch

    def version(self, target: Target) -> str:
        return "1"


sound = Toy("sound", None)
off_by_one = Toy("off_by_one", OffByOne)
lost_mask = Toy("lost_mask", LostMask)
no_rounding = Toy("no_rounding", NoRounding)
