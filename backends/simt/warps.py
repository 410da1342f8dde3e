"""The text of exchanges among threads (`tiledsl.ir.collectives`): shuffles, votes, reductions of warps and blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiledsl import ir
from tiledsl.analysis.groups import Ranges, ThreadGroups, rank, size
from tiledsl.dtypes import DType
from tiledsl.errors import TileNotImplementedError
from tiledsl.ir import build
from tiledsl.ir.build import INT32
from tiledsl.ir.collectives import COLLECTIVE_REDUCTIONS, WARP

from .names import c_type, suffix, unique

if TYPE_CHECKING:
    from .printer import _Printer

__all__ = ["WarpText"]

_SHUFFLED = ("i32", "u32", "i64", "u64", "f32", "f64")


class WarpText:
    """Prints collectives for one kernel's printer."""

    def __init__(self, printer: _Printer) -> None:
        self.p = printer
        self.groups = ThreadGroups(printer.kernel)
        self.group: Ranges | None = self.groups.everyone  # the threads that come to what is being printed

    def here(self) -> str:
        """The mask of the lanes that are here: a constant per warp where the group is known."""
        if not self.group:
            return "tl_activemask()"
        masks: dict[int, int] = {}
        for first, end in self.group:
            for t in range(first, end):
                masks[t // WARP] = masks.get(t // WARP, 0) | 1 << t % WARP
        odd = {w: f"0x{m:x}u" for w, m in masks.items() if m != (1 << WARP) - 1}
        if len(masks) == len(odd) == 1:
            return next(iter(odd.values()))
        if len(odd) > 2:
            return "tl_activemask()"
        text = "TL_FULL"
        for w, m in odd.items():
            text = f"(tl_warp() == {w} ? {m} : {text})"
        return text

    def whole(self) -> bool:
        """All lanes of the warps that are here are."""
        return self.here() == "TL_FULL"

    def collective(self, s: ir.Collective) -> None:
        """Declares the result of one collective."""
        op = s.op
        if s.scope == "block":
            self.block(s)
        elif op in COLLECTIVE_REDUCTIONS:
            self.reduction(s)
        else:
            here = self.here()
            mask = here if s.mask is None else f"{self.p.expr(s.mask, 5)} & {here}"
            if op == "activemask":
                self.p.declare(s.result, mask)
            elif op.startswith("shfl"):
                self.p.declare(s.result, self.shuffle(op, mask, self.p.expr(s.args[0]), s))
            elif op.startswith("match"):
                self.p.declare(s.result, self.match(s, mask))
            else:
                self.p.declare(s.result, f"tl_{op}({mask}, {self.p.expr(s.args[0])})")

    def shuffle(self, op: str, mask: str, value: str, s: ir.Collective) -> str:
        """A shuffle; types that hardware does not move travel in 32 bits."""
        by = self.p.expr(s.args[1])
        if not (isinstance(s.args[1], ir.Const) and 0 <= s.args[1].value < WARP):  # hardware looks at five bits
            near = f"(int)tl_min_u32((tl_u32)({by}), {WARP}u)"
            by = f"({by}) & {s.width - 1}" if op == "shfl" else f"({near} & {WARP - 1})" if op == "shfl_xor" else near
        return self.moved(op, mask, value, s.args[0].dtype, by, s.width)

    def moved(self, op: str, mask: str, value: str, d: DType, by: str, width: int) -> str:
        kind = "u32" if d.is_bool or d.is_narrow else suffix(d)
        if kind in _SHUFFLED and not d.is_narrow and not d.is_bool:
            return f"tl_{op}_{kind}({mask}, {value}, {by}, {width})"
        return f"({c_type(d)})tl_{op}_{'i32' if d.kind == 'int' else 'u32'}({mask}, {value}, {by}, {width})"

    def match(self, s: ir.Collective, mask: str) -> str:
        d = s.args[0].dtype
        value = self.p.expr(s.args[0])
        if d.name in ("float32", "float64"):
            value = f"tl_bits_{suffix(d)}({value})"
        bits = 64 if d.bits == 64 else 32
        narrow = f"(tl_u{bits})" + (f"(tl_u{d.bits})" if d.is_int and d.bits < 32 else "")
        return f"tl_{s.op}_u{bits}({mask}, {narrow}({value}))"

    # -- reductions ------------------------------------------------------------------------------------------------

    def combined(self, s: ir.Collective, a: str, b: str) -> str:
        """a op b of two named values of the collective's type."""
        d = s.args[0].dtype
        x, y = ir.Var(a, d), ir.Var(b, d)
        self.p.names[x], self.p.names[y] = a, b
        return self.p.expr(build.binary(COLLECTIVE_REDUCTIONS[s.op], x, y))

    def reduction(self, s: ir.Collective) -> None:
        """The xor butterfly over the lanes; where not all lanes of the warp count, all values are gathered and the
        tree is gone through with the absent ones left out."""
        p, d = self.p, s.args[0].dtype
        t = c_type(d)
        value = unique("v", p.taken)
        if s.mask is None and self.whole():
            p.line(f"{t} {value} = {p.expr(s.args[0])};")
            other = unique("other", p.taken)
            step = unique("step", p.taken)
            p.line(f"for (int {step} = 16; {step}; {step} /= 2) {{")
            p.line(f"  const {t} {other} = {self.moved('shfl_xor', 'TL_FULL', value, d, step, WARP)};")
            p.line(f"  {value} = {self.combined(s, value, other)};")
            p.line("}")
            p.declare(s.result, value)
            return
        here, mask, own = (unique(n, p.taken) for n in ("here", "mask", "own"))
        p.line(f"const tl_u32 {here} = {self.here()};")
        p.line(f"const tl_u32 {mask} = {here if s.mask is None else f'{p.expr(s.mask, 5)} & {here}'};")
        p.line(f"const {t} {own} = {p.expr(s.args[0])};")
        p.line(f"{t} {value}[{WARP}];")
        lane = unique("lane", p.taken)
        moved = self.moved("shfl", here, own, d, lane, WARP)
        p.line(f"for (int {lane} = 0; {lane} < {WARP}; ++{lane}) {value}[{lane}] = {moved};")
        self.tree(s, value, mask)
        p.declare(s.result, f"{value}[0]")

    def tree(self, s: ir.Collective, value: str, mask: str) -> None:
        """value[0] = the 32 values whose bits are set in mask, combined 16-8-4-2-1."""
        p, t = self.p, c_type(s.args[0].dtype)
        m, half, k, a, b = (unique(n, p.taken) for n in ("m", "half", "k", "a", "b"))
        p.line(f"tl_u32 {m} = {mask};")
        p.line(f"for (int {half} = 16; {half}; {half} /= 2) {{")
        p.line(f"  for (int {k} = 0; {k} < {half}; ++{k}) {{")
        p.line(f"    const {t} {a} = {value}[{k}], {b} = {value}[{k} + {half}];")
        p.line(f"    if ({m} >> ({k} + {half}) & 1) {value}[{k}] = {m} >> {k} & 1 ? {self.combined(s, a, b)} : {b};")
        p.line("  }")
        p.line(f"  {m} |= {m} >> {half};")
        p.line("}")

    # -- the block -----------------------------------------------------------------------------------------------

    def block(self, s: ir.Collective) -> None:
        p = self.p
        if s.op in ("count", "any", "all") and not s.axes:
            name = {"count": "count", "any": "or", "all": "and"}[s.op]
            p.declare(s.result, f"tl_sync_{name}({p.expr(s.args[0])})", cast=True)
            return
        if self.group is None or (self.group != self.groups.everyone and s.op not in ("rank", "size")):
            raise TileNotImplementedError(
                f"{s.op} of a part of the block's threads is not supported on GPUs yet",
                s.loc,
                help="move it out of the branch, so that all threads of the block come to it",
            )
        if s.op in ("rank", "size"):
            thread = ir.Var("thread", INT32)
            p.names[thread] = "(int)(tl_warp() * 32 + tl_lane())"
            p.declare(s.result, p.expr(rank(self.group, thread)) if s.op == "rank" else str(size(self.group)))
            return
        raise TileNotImplementedError(f"a block-wide {s.op} has not been lowered", s.loc)
