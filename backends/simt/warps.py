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

    def masks(self) -> dict[int, int]:
        """The lanes that are here, per warp; empty where that is not known."""
        masks: dict[int, int] = {}
        for first, end in self.group or ():
            for t in range(first, end):
                masks[t // WARP] = masks.get(t // WARP, 0) | 1 << t % WARP
        return masks

    def here(self) -> str:
        """The mask of the lanes that are here: a constant per warp where the group is known."""
        masks = self.masks()
        if not masks:
            return "tl_activemask()"
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
            self.lanes(s)

    def lanes(self, s: ir.Collective) -> None:
        """A shuffle or a vote. Hardware wants the lanes that are here and in one mask; whom an author's mask names does
        not have to be the asking lane, and lanes that it leaves out give their neighbours nothing."""
        p, op = self.p, s.op
        own = p.expr(s.args[0]) if s.args else ""
        here = self.named("here", "tl_u32", self.here())
        mask = here if s.mask is None else f"({p.expr(s.mask, 5)} & {here})"
        if op == "activemask":
            p.declare(s.result, mask)
        elif op.startswith("shfl"):
            p.declare(s.result, self.shuffle(s, own, here, mask))
        elif s.mask is None:
            p.declare(s.result, self.match(s, here) if op.startswith("match") else f"tl_{op}({here}, {own})")
        else:
            mask = self.named("mask", "tl_u32", mask)
            vote = self.match(s, here, "match_any") if op.startswith("match") else f"tl_ballot({here}, {own})"
            vote = f"{vote} & {mask}"
            texts = {
                "any": f"({vote}) != 0",
                "all": f"({vote}) == {mask}",
                "match_all": f"({vote}) == {mask} ? {mask} : 0",
            }
            p.declare(s.result, texts.get(op, vote))

    def named(self, name: str, kind: str, value: str) -> str:
        """A value that is asked for several times: a constant, or the name that it gets."""
        if value == "TL_FULL" or value.startswith("0x"):
            return value
        name = unique(name, self.p.taken)
        self.p.line(f"const {kind} {name} = {value};")
        return name

    def shuffle(self, s: ir.Collective, own: str, here: str, mask: str) -> str:
        """A shuffle; where the lane that is read may be none of those that count, the asking lane reads itself."""
        by = self.p.expr(s.args[1])
        if s.mask is None and self._all_there(s):
            if not (isinstance(s.args[1], ir.Const) and 0 <= s.args[1].value < WARP):  # hardware looks at five bits
                near = f"(int)tl_min_u32((tl_u32)({by}), {WARP}u)"
                by = (
                    f"({by}) & {s.width - 1}"
                    if s.op == "shfl"
                    else f"({near} & {WARP - 1})"
                    if s.op == "shfl_xor"
                    else near
                )
            return self.moved(s.op, here, own, s.args[0].dtype, by, s.width)
        lane = self.named("lane", "int", "tl_lane()")
        by = self.named("by", "int", by)
        segment, end = f"({lane} & {-s.width})", f"({lane} & {-s.width}) + {s.width}"
        places = {
            "shfl": (f"{segment} + ({by} & {s.width - 1})", ""),
            "shfl_up": (f"{lane} - {by}", f"{by} >= 0 && {{0}} >= {segment} && "),
            "shfl_down": (f"{lane} + {by}", f"{by} >= 0 && {by} < {WARP} && {{0}} < {end} && "),
            "shfl_xor": (f"{lane} ^ {by}", f"{by} >= 0 && {{0}} < {end} && "),
        }
        place, inside = places[s.op]
        source = self.named("source", "int", place)
        there = f"{inside.format(source)}{mask} >> ({source} & {WARP - 1}) & 1"
        return self.moved("shfl", here, own, s.args[0].dtype, f"{there} ? {source} : {lane}", WARP)

    def _all_there(self, s: ir.Collective) -> bool:
        """Each lane that is here reads one that is here, or beyond its segment."""
        masks = set(self.masks().values())
        if masks == {(1 << WARP) - 1}:
            return True
        if not masks or not isinstance(s.args[1], ir.Const):
            return False
        by, width = int(s.args[1].value), s.width
        for mask in masks:
            for lane in (i for i in range(WARP) if mask >> i & 1):
                base = lane & -width
                at = {"shfl": base + by % width, "shfl_up": lane - by, "shfl_down": lane + by, "shfl_xor": lane ^ by}[
                    s.op
                ]
                inside = at >= base if s.op == "shfl_up" else at < base + width
                if by < 0 or (inside and not mask >> at & 1):
                    return False
        return True

    def moved(self, op: str, mask: str, value: str, d: DType, by: str, width: int) -> str:
        kind = "u32" if d.is_bool or d.is_narrow else suffix(d)
        if kind in _SHUFFLED and not d.is_narrow and not d.is_bool:
            return f"tl_{op}_{kind}({mask}, {value}, {by}, {width})"
        return f"({c_type(d)})tl_{op}_{'i32' if d.kind == 'int' else 'u32'}({mask}, {value}, {by}, {width})"

    def match(self, s: ir.Collective, mask: str, op: str = "") -> str:
        d = s.args[0].dtype
        value = self.p.expr(s.args[0])
        if d.name in ("float32", "float64"):
            value = f"tl_bits_{suffix(d)}({value})"
        bits = 64 if d.bits == 64 else 32
        narrow = f"(tl_u{bits})" + (f"(tl_u{d.bits})" if d.is_int and d.bits < 32 else "")
        return f"tl_{op or s.op}_u{bits}({mask}, {narrow}({value}))"

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
