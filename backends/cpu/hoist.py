"""Grid packing: read-only right operands of gemm are packed once per launch instead of once per block, or not at all.

A kernel whose blocks copy the same tiles of an argument into shared memory for T.gemm repeats the packing in every
block. This pass puts a kernel before it that copies all tiles of the argument into a workspace, tile by tile
(which the lowering keeps packed), and lets the blocks multiply with the workspace's tiles. It pays when tiles are
used more than once, which the grid tells at run time: otherwise the workspace is empty and the blocks copy as the
author wrote. Nothing of a value changes: the workspace holds exactly what the copy would have written.

A product of few rows that would be the only one to use what the copy packs reads the argument itself, where the tile
lies inside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from tiledsl import ir
from tiledsl.analysis.remarks import remark
from tiledsl.dtypes import INT32, INT64
from tiledsl.ir import build
from tiledsl.ir.walk import free_vars, walk, writes

from .printing import row_major_strides
from .storage import FEW_ROWS, can_pack, gemm_operands

__all__ = ["HoistPacks"]

_WORTH = 2  # a tile must be used at least so often: packing twice costs more than a trip through memory


@dataclass(frozen=True)
class HoistPacks:
    """The pass, on folded tile-stage functions."""

    name: ClassVar[str] = "hoist_packs"
    optional: ClassVar[bool] = True

    def __call__(self, function: ir.Function) -> ir.Function:
        if dict(function.attrs).get("aliased"):
            return function
        kernels: list[ir.Kernel] = []
        workspaces = list(function.workspaces)
        for k in function.kernels:
            hoist = _Hoist(function, k)
            kernels += hoist.run()
            workspaces += [p.workspace for p in hoist.packs]
        if all(a is b for a, b in zip(kernels, function.kernels, strict=False)):
            return function
        return function.replace(kernels=tuple(kernels), workspaces=tuple(workspaces))


@dataclass(frozen=True)
class _Pack:
    """One packed argument: workspace [fixed dims ..., row tiles, column tiles, tile rows, tile columns]."""

    copy: ir.Copy
    workspace: ir.Buffer
    counts: tuple[ir.Expr, ...]
    worth: ir.Var


_Way = tuple[ir.Var, ir.Region]  # what tells whether it is open, and the tile there
_Ways = list[_Way]


@dataclass
class _Hoist:
    function: ir.Function
    kernel: ir.Kernel
    packs: list[_Pack] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lets = {n.var: n.value for n in walk(self.kernel.body) if isinstance(n, ir.Let)}
        self.loops = {n.var for n in walk(self.kernel.body) if isinstance(n, ir.For)}
        self.params = set(self.function.buffers)
        self.written = {b.root for n in walk(self.kernel.body) if isinstance(n, ir.Stmt) for b in writes(n)}
        self.bad: set[ir.Buffer] = set()
        self.good: set[ir.Buffer] = set()
        self.gemms: dict[ir.Buffer, list[ir.Gemm]] = {}
        for n in walk(self.kernel.body):
            if isinstance(n, ir.Gemm):
                self.gemms.setdefault(n.b.buffer, []).append(n)
        self.prologue: list[ir.Stmt] = []

    def run(self) -> list[ir.Kernel]:
        """The kernels that replace this one: packing kernels first."""
        self.tiles = gemm_operands(self.kernel)
        if not self.tiles:
            return [self.kernel]
        self._pair(self.kernel.body, {})
        if not self.good - self.bad:
            return [self.kernel]
        body = self._rewrite(self.kernel.body, {})
        main = self.kernel.replace(body=(*self.prologue, *body))
        return [*(_packing_kernel(p, k, self.kernel) for k, p in enumerate(self.packs)), main]

    # -- which gemms see which copy --------------------------------------------------------------------------

    def _pair(self, body: tuple[ir.Stmt, ...], seen: dict[ir.Buffer, ir.Copy]) -> None:
        """Marks tiles that some gemm reads without a hoistable copy before it in its own or an outer block."""
        for s in body:
            if isinstance(s, ir.Copy) and s.dst.buffer in self.tiles:
                seen.pop(s.dst.buffer, None)
                if self._hoistable(s, body):
                    seen[s.dst.buffer] = s
                    self.good.add(s.dst.buffer)
            elif isinstance(s, ir.Gemm):
                if s.b.buffer in self.tiles and s.b.buffer not in seen:
                    self.bad.add(s.b.buffer)
            else:
                self._pair_blocks(s, seen)

    def _pair_blocks(self, s: ir.Stmt, seen: dict[ir.Buffer, ir.Copy]) -> None:
        blocks = _blocks(s)
        if not blocks:
            for b in writes(s):
                seen.pop(b, None)
            return
        touched = {b for block in blocks for n in walk(block) if isinstance(n, ir.Stmt) for b in writes(n)}
        repeats = isinstance(s, (ir.For, ir.While, ir.Parallel))
        for block in blocks:
            inside = {b: c for b, c in seen.items() if not (repeats and b in touched)}
            self._pair(block, inside)
        for b in touched:
            seen.pop(b, None)

    def _hoistable(self, s: ir.Copy, body: tuple[ir.Stmt, ...]) -> bool:
        why, there = self._against(s), self._in_place(s, body)
        shared = "packed once per launch where blocks share tiles" if not why else "packed by each block"
        remark(s.loc, "read in place by products, packed only at a boundary" if there else shared, "" if there else why)
        return not why or there

    def _in_place(self, s: ir.Copy, body: tuple[ir.Stmt, ...]) -> bool:
        """Whether products of few rows may read the copy's source instead of the tile. What has to be turned is better
        packed, unless the only product comes once for each copy in `body`."""
        gemms, t = self.gemms[s.dst.buffer], s.src.buffer.dtype
        if self._unfit(s) or t is not s.dst.buffer.dtype or t.name not in ("float32", "bfloat16", "float16"):
            return False
        if gemms[0].transpose_b and (len(gemms) > 1 or all(n is not gemms[0] for n in body)):
            return False
        few = FEW_ROWS if gemms[0].transpose_b else 2 * FEW_ROWS
        return all(isinstance(m, ir.Const) and m.value <= few for g in gemms for m in g.c.extents[-2:-1])

    def _unfit(self, s: ir.Copy) -> str:
        """Why something else than the tile cannot stand for it."""
        src = s.src.buffer
        if src not in self.params:
            return f"{src.name} is no argument"
        if src in self.written:
            return f"the kernel writes {src.name}"
        if not can_pack(s):
            return f"rows of {src.name} are not side by side, are converted or have a safe value"
        return ""

    def _against(self, s: ir.Copy) -> str:
        """Why blocks cannot share what this copy packs."""
        if why := self._unfit(s):
            return why
        starts = zip(s.src_axes, _tile(s), strict=True)
        aligned = all(self._multiple(s.src.starts[axis], n) for axis, n in starts)
        return "" if aligned else "its start is not known to be a multiple of the tile"

    def _multiple(self, e: ir.Expr, n: int) -> bool:
        """Whether e is certainly a multiple of n."""
        if n == 1:
            return True
        if isinstance(e, ir.Const):
            return bool(e.value % n == 0)
        if isinstance(e, ir.Var):
            return e in self.lets and self._multiple(self.lets[e], n)
        if isinstance(e, ir.Cast):
            return e.x.dtype.is_int and e.type.bits >= e.x.dtype.bits and self._multiple(e.x, n)
        if isinstance(e, ir.Binary) and e.op in ("add", "sub"):
            return self._multiple(e.a, n) and self._multiple(e.b, n)
        return isinstance(e, ir.Binary) and e.op == "mul" and (self._multiple(e.a, n) or self._multiple(e.b, n))

    # -- rewriting ------------------------------------------------------------------------------------------

    def _rewrite(self, body: tuple[ir.Stmt, ...], seen: dict[ir.Buffer, _Ways]) -> tuple[ir.Stmt, ...]:
        out: list[ir.Stmt] = []
        for s in body:
            if isinstance(s, ir.Copy) and s.dst.buffer in self.good - self.bad:
                out += self._replace_copy(s, body, seen)
            elif isinstance(s, ir.Gemm) and s.b.buffer in seen:
                product: tuple[ir.Stmt, ...] = (s,)
                for use, region in reversed(seen[s.b.buffer]):
                    product = (ir.If(use, (s.replace(b=region),), product, loc=s.loc),)
                out += product
            else:
                blocks = {f.name: getattr(s, f.name) for f in ir.fields_of(type(s)) if f.role == "block"}
                out.append(s.replace(**{k: self._rewrite(b, dict(seen)) for k, b in blocks.items()}) if blocks else s)
        return tuple(out)

    def _replace_copy(self, s: ir.Copy, body: tuple[ir.Stmt, ...], seen: dict[ir.Buffer, _Ways]) -> list[ir.Stmt]:
        """The copy, done where no product has another way to its tile; before it what the ways need."""
        lets: list[ir.Stmt] = []
        ways = seen[s.dst.buffer] = []
        there = self._in_place(s, body)
        if not self._against(s) and not (there and not self.gemms[s.dst.buffer][0].transpose_b):
            ways.append(self._packed(s, lets))
        if there:
            ways.append(self._there(s, lets))
        kept: ir.Stmt = s
        for use, _ in ways:
            kept = ir.If(build.not_(use), (kept,), loc=s.loc)
        return [*lets, kept]

    def _named(self, name: str, e: ir.Expr, lets: list[ir.Stmt]) -> ir.Expr:
        """The value of e at the copy."""
        if isinstance(e, (ir.Const, ir.Var)):
            return e
        v = ir.Var(name, e.dtype)
        lets.append(ir.Let(v, e, loc=self.kernel.loc))
        return v

    def _packed(self, s: ir.Copy, lets: list[ir.Stmt]) -> _Way:
        pack = self._pack(s)
        inside: ir.Expr = pack.worth
        named = [self._named("tile", _index(s, d), lets) for d in _dims(s)]
        for v, count in zip(named, pack.counts, strict=True):
            for test in (build.ge(v, 0), build.lt(v, count)):
                inside = build.and_(inside, test)
        use = ir.Var("packed", ir.BOOL)
        lets.append(ir.Let(use, inside, loc=s.loc))
        zero = ir.Const(0, INT32)
        h, w = (ir.Const(n, INT32) for n in _tile(s))
        ones = tuple(ir.Const(1, INT32) for _ in named)
        return use, ir.Region(pack.workspace, (*named, zero, zero), (*ones, h, w))

    def _there(self, s: ir.Copy, lets: list[ir.Stmt]) -> _Way:
        """The tile in the argument; where its axes are not the last ones, in a view that has them there."""
        src, order = s.src.buffer, _dims(s)
        starts = [self._named("start", s.src.starts[d], lets) for d in order]
        extents = tuple(s.src.extents[d] for d in order)
        inside: ir.Expr = build.TRUE
        for start, n, d in zip(starts, extents, order, strict=True):
            for test in (build.ge(start, 0), build.le(start, build.sub(src.shape[d], n))):
                inside = build.and_(inside, test)
        use = ir.Var("in_place", ir.BOOL)
        lets.append(ir.Let(use, inside, loc=s.loc))
        if order != tuple(range(src.rank)):
            strides = row_major_strides(src)
            shape, moved = (tuple(x[d] for d in order) for x in (src.shape, strides))
            src = ir.Buffer(src.name, src.dtype, shape, "global", moved, alias_of=src, loc=src.loc)
        return use, ir.Region(src, tuple(starts), extents)

    def _pack(self, s: ir.Copy) -> _Pack:
        """The pack of this copy's source in this tile form; shared by copies that differ only in their starts."""
        for p in self.packs:
            same = p.copy.src.buffer is s.src.buffer and p.copy.src_axes == s.src_axes and _tile(p.copy) == _tile(s)
            forms = self.tiles[p.copy.dst.buffer], self.tiles[s.dst.buffer]
            if same and forms[0] == forms[1] and p.copy.dst.buffer.dtype is s.dst.buffer.dtype:
                return p
        shape = s.src.buffer.shape
        tile = dict(zip(s.src_axes, _tile(s), strict=True))
        counts = tuple(build.ceildiv(shape[d], tile[d]) if d in tile else shape[d] for d in _dims(s))
        worth = ir.Var(f"pack_{s.src.buffer.name}", ir.BOOL)
        self.prologue.append(ir.Let(worth, self._worth(s, counts), loc=s.loc))
        first = build.if_then_else(self._worth(s, counts), counts[0], ir.Const(0, counts[0].dtype))
        extents = (first, *counts[1:], *(ir.Const(n, INT32) for n in _tile(s)))
        name = f"{s.src.buffer.name}_packed"
        pack = _Pack(s, ir.Buffer(name, s.dst.buffer.dtype, extents, "global", loc=s.loc), counts, worth)
        self.packs.append(pack)
        return pack

    def _worth(self, s: ir.Copy, counts: tuple[ir.Expr, ...]) -> ir.Expr:
        """Uses per tile, as far as the grid tells: blocks / tiles in the dimensions that loops do not run over."""
        blocks: ir.Expr = ir.Const(1, INT64)
        for g in self.kernel.grid:
            blocks = build.mul(blocks, build.cast(g, INT64))
        tiles: ir.Expr = ir.Const(_WORTH, INT64)
        for d, n in zip(_dims(s), counts, strict=True):
            if not self._looped(s.src.starts[d]):
                tiles = build.mul(tiles, build.cast(n, INT64))
        return build.ge(blocks, tiles)

    def _looped(self, e: ir.Expr) -> bool:
        """Whether loops alone run over what starts at e: not where they begin elsewhere in every block."""
        e = self.lets[e] if isinstance(e, ir.Var) and e in self.lets else e
        if isinstance(e, ir.Cast):
            return self._looped(e.x)
        if isinstance(e, ir.Binary) and e.op == "add":
            sides = [(self._looped(x), self._mentions(x, set(self.kernel.block_vars))) for x in (e.a, e.b)]
            if (False, True) in sides:
                return False
        return self._mentions(e, self.loops)

    def _mentions(self, e: ir.Expr, variables: set[ir.Var]) -> bool:
        return any(v in variables or (v in self.lets and self._mentions(self.lets[v], variables)) for v in free_vars(e))


def _packing_kernel(p: _Pack, number: int, kernel: ir.Kernel) -> ir.Kernel:
    """One block per tile: the author's copy with the tile's own origin."""
    s, src = p.copy, p.copy.src.buffer
    dims = _dims(s)
    block = ir.Var("tile", INT32)
    grid: ir.Expr = ir.Const(1, INT32)
    for n in (p.workspace.shape[0], *p.counts[1:]):
        grid = build.mul(grid, build.cast(n, INT32))
    rest: ir.Expr = block
    index: list[ir.Expr] = []
    for k in reversed(range(len(dims))):
        n = build.cast(p.counts[k], INT32)
        index.insert(0, rest if k == 0 else build.floormod(rest, n))
        rest = build.floordiv(rest, n)
    at = dict(zip(dims, index, strict=True))
    tile = dict(zip(s.src_axes, _tile(s), strict=True))
    starts = tuple(build.mul(at[d], tile[d]) if d in tile else at[d] for d in range(src.rank))
    zero = ir.Const(0, INT32)
    h, w = (ir.Const(n, INT32) for n in _tile(s))
    ones = tuple(ir.Const(1, INT32) for _ in dims)
    region = ir.Region(p.workspace, (*index, zero, zero), (*ones, h, w))
    source = ir.Region(src, starts, s.src.extents)
    copy = ir.Copy(source, region, s.domain, s.src_axes, (len(dims), len(dims) + 1), loc=s.loc)
    return kernel.replace(
        name=f"{kernel.name}_pack_{src.name}" if number == 0 else f"{kernel.name}_pack_{src.name}_{number}",
        grid=(grid,),
        block_vars=(block,),
        thread_vars=tuple(ir.Var(v.name, v.type) for v in kernel.thread_vars),  # a binding belongs to one kernel
        body=(copy,),
        attrs=(),
    )


def _blocks(s: ir.Stmt) -> list[tuple[ir.Stmt, ...]]:
    return [getattr(s, f.name) for f in ir.fields_of(type(s)) if f.role == "block"]


def _tile(s: ir.Copy) -> tuple[int, int]:
    h, w = s.dst.buffer.const_shape or (0, 0)
    return h, w


def _dims(s: ir.Copy) -> tuple[int, ...]:
    """Source dimensions in the workspace's order: the fixed ones, then the tile's rows and columns."""
    return (*(d for d in range(s.src.buffer.rank) if d not in s.src_axes), *s.src_axes)


def _index(s: ir.Copy, d: int) -> ir.Expr:
    """Which tile along source dimension d the copy takes."""
    start = s.src.starts[d]
    return build.floordiv(start, _tile(s)[s.src_axes.index(d)]) if d in s.src_axes else start
