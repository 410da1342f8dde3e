"""Lanes that go 2, 4, 8 or 16 elements each: the vectors of threads, rows of pairs. What lies between them is read as
well, whole vectors whose elements are drawn apart; stores wait for their neighbours, and go out together."""

from __future__ import annotations

from tiledsl import ir
from tiledsl.dtypes import DType
from tiledsl.ir.walk import free_vars, loads_of, walk

from .context import Context, Lane, vload
from .storage import Place, is_unit
from .wide import LANES, ZERO, add, divided, factor, i64

__all__ = ["Stride", "coefficient", "load_apart", "pend", "per_lane", "stride_of", "unrolled"]

WAYS = (2, 4, 8, 16)
_ROUNDS = 16
Stride = tuple[tuple[ir.Expr, ...], int, int]  # where the first lane's group of elements is, its size, which of it


def stride_of(cx: Context, place: Place, at: list[Lane]) -> Stride | None:
    """How the lanes go through rows that are whole groups, so that what they pass by is there as well; None where they
    go otherwise, or some do not go."""
    lane, b, last = cx.lane, place.buffer, at[-1] if at else Lane(ZERO)
    if lane is None or lane.mask is not None or last.coef not in WAYS or any(v.coef != 0 for v in at[:-1]):
        return None
    extent, kept = b.shape[-1], b.dtype.is_bool or b.dtype.lanes > 1
    if kept or not is_unit(b) or not isinstance(extent, ir.Const) or extent.value % last.coef:
        return None
    if any(loads_of(v.expr) for v in at):  # of variables, which change
        return None
    rest, number = _split(last.expr)
    if factor(rest, lane.base) % last.coef:
        return None
    which = number % last.coef
    return (*(v.expr for v in at[:-1]), add(rest, i64(number - which))), last.coef, which


def _split(e: ir.Expr) -> tuple[ir.Expr, int]:
    """A sum without its constants, and these."""
    if isinstance(e, ir.Const):
        return ZERO, int(e.value)
    if isinstance(e, ir.Binary) and e.op == "add":
        (a, m), (b, n) = _split(e.a), _split(e.b)
        return add(a, b), m + n
    return e, 0


def load_apart(cx: Context, root: ir.Buffer, b: ir.Buffer, found: Stride, held: DType | None) -> ir.Expr:
    """The lanes' elements; held: the type that values of b's are converted to. What has been read or drawn apart in
    this block is there for others."""
    at, way, which = found
    lane = cx.lane
    assert lane is not None

    def once(key: tuple[object, ...], make: ir.Expr) -> ir.Expr:
        known = lane.drawn.get((b, at, way, *key))
        if known is None or known[0] is not cx.out:
            known = lane.drawn[b, at, way, *key] = (cx.out, cx.let("apart", make), root)
        return known[1]

    vectors = []
    for k in range(way):
        x: ir.Expr = vload(b, *at[:-1], add(at[-1], i64(k * LANES)))
        vectors.append(once((k,), x if held is None else ir.Cast(x, held)))
    taken: tuple[int, ...] = ()
    while len(vectors) > 1:
        which, bit = divmod(which, 2)
        taken += (bit,)
        name = "odds" if bit else "evens"
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [once((k, taken), ir.Call(name, pair, pair[0].dtype)) for k, pair in enumerate(pairs)]
    return vectors[0]


def pend(
    cx: Context, root: ir.Buffer, place: Place, found: Stride, x: ir.Expr
) -> list[tuple[tuple[ir.Expr, ...], ir.Expr]]:
    """Keeps a store until all its neighbours are there; then, the vectors to be stored, and where."""
    lane = cx.lane
    assert lane is not None
    at, way, which = found
    group = lane.pending.setdefault((place.buffer, at, way), (root, place, {}))[2]
    group[which] = cx.let("x", x)
    if len(group) < way:
        return []
    del lane.pending[place.buffer, at, way]
    rows = [[group[k]] for k in range(way)]
    while len(rows) > 1:
        half = len(rows) // 2
        rows = [
            [cx.let("zip", ir.Call(n, p, p[0].dtype)) for p in zip(a, b, strict=True) for n in ("zip_low", "zip_high")]
            for a, b in zip(rows[:half], rows[half:], strict=True)
        ]
    return [((*at[:-1], add(at[-1], i64(k * LANES))), v) for k, v in enumerate(rows[0])]


def unrolled(cx: Context, s: ir.For) -> range | None:
    """The rounds of a short loop through elements that the lanes pass by."""
    ends = (s.start, s.stop, s.step)
    if cx.lane is None or cx.lane.axis is None or not all(isinstance(e, ir.Const) for e in ends):
        return None
    rounds = range(*(int(e.value) for e in ends if isinstance(e, ir.Const)))
    if not 1 < len(rounds) <= _ROUNDS:
        return None
    for n in walk(s.body):
        if isinstance(n, (ir.Load, ir.Store)) and n.indices and n.buffer.scope != "var":
            last = n.indices[-1]
            if coefficient(last, {s.var: 1}) == 1 and coefficient(last, {cx.lane.axis: 1}, True) in WAYS:
                return rounds
    return None


def coefficient(e: ir.Expr, lets: dict[ir.Var, int | None], together: bool = False) -> int | None:
    """How `e` moves with the lane: 0, a constant, or None (not affine). together: among sixteen lanes that begin at a
    multiple of 16, as far as that can be expected."""
    if isinstance(e, ir.Var):
        return lets.get(e, 0)
    if isinstance(e, ir.Cast) and e.dtype.is_int and e.x.dtype.is_int:
        return coefficient(e.x, lets, together)
    form = divided(e) if together else None
    if form is not None and (a := coefficient(form[0], lets, True)) and a > 0 and form[1] % (LANES * a) == 0:
        return 0 if form[2] else a
    if isinstance(e, ir.Binary) and e.op in ("add", "sub", "mul"):
        a, b = coefficient(e.a, lets, together), coefficient(e.b, lets, together)
        if a is None or b is None:
            return None
        if e.op == "mul":
            if a == b == 0:
                return 0
            other = e.b if a else e.a
            return (a or b) * int(other.value) if isinstance(other, ir.Const) and 0 in (a, b) else None
        return a + b if e.op == "add" else a - b
    return 0 if all(lets.get(v, 0) == 0 for v in free_vars(e)) and not per_lane(e) else None


def per_lane(e: ir.Expr) -> bool:
    """Reads what each lane has for itself."""
    return any(ld.buffer.scope in ("var", "local") for ld in loads_of(e))
