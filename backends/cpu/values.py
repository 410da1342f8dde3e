"""Expressions: from the author's types to what a CPU computes with, as scalars or as 16 lanes at once.

Narrow floats become float32 values rounded after every operation (language.md 0.7); scalar integers are held in
int64 and wrapped where they could leave their type; in a vector loop a value is uniform, affine in the lane
number, or a vector.
"""

from __future__ import annotations

from tiledsl import ir
from tiledsl.dtypes import INT32, UINT8, UINT64, DType, as_dtype
from tiledsl.errors import TileNotImplementedError
from tiledsl.ir.build import int_range
from tiledsl.ir.walk import free_vars, loads_of

from .context import Context, Lane, LaneLoop
from .nibbles import byte_at, decoded
from .storage import Place, held
from .strides import load_apart, stride_of
from .tables import coded
from .wide import BOOL, F32, I64, LANES, ZERO, add, and_, divided, factor, i64, mul, narrow, sub, widen

__all__ = [
    "address",
    "as_held",
    "bool_mask",
    "constant",
    "encode",
    "index",
    "lazily",
    "lie_of",
    "nibble_address",
    "place_of",
    "round_to",
    "scalar",
    "store_pending",
    "store_value",
    "value",
    "vector",
]

_WIDE_OPS = {"add": add, "sub": sub, "mul": mul}
_MAY_WRAP = frozenset(["add", "sub", "mul", "truncdiv", "floordiv"])
_ROUNDED = frozenset(["add", "sub", "mul", "div", "sqrt"])


def _scalar_held(t: DType) -> DType:
    return I64 if t.is_int and t is not UINT64 else held(t)


def round_to(x: ir.Expr, t: DType) -> ir.Expr:
    """x, a float of some width (scalar or vector), rounded to half type t but still held as float32."""
    lanes = x.dtype.lanes
    return ir.Cast(ir.Cast(x, t.with_lanes(lanes)), F32.with_lanes(lanes))


def encode(x: ir.Expr, t: DType) -> ir.Expr:
    """x, held as float32 but already a value of narrow type t, as it is in memory."""
    lanes = x.dtype.lanes
    u8, u16, to = UINT8.with_lanes(lanes), as_dtype("uint16").with_lanes(lanes), t.with_lanes(lanes)
    if isinstance(x, ir.Cast) and isinstance(x.x, ir.Cast) and x.x.type is to:
        return x.x  # it has just been rounded
    if t.name != "float8_e5m2":
        return ir.Cast(x, to)
    # A conversion would make infinity the largest number; e5m2 is the upper half of float16.
    word = ir.Call("reinterpret", (ir.Cast(x, as_dtype("float16").with_lanes(lanes)),), u16)
    eight = ir.Const(8, u16.scalar)
    upper = ir.Binary("shr", word, eight if lanes == 1 else ir.Broadcast(eight, lanes))
    return ir.Call("reinterpret", (ir.Cast(upper, u8),), to)


# -- materialising lanes -------------------------------------------------------------------------------------


def scalar(cx: Context, e: ir.Expr) -> ir.Expr:
    """A uniform value as a scalar."""
    v = value(cx, e)
    assert v.coef == 0, "a uniform value was expected"
    return v.expr


def constant(cx: Context, e: ir.Expr, s: ir.Stmt) -> int:
    """An extent of a tile operation, which is known now."""
    n = scalar(cx, e)
    if not isinstance(n, ir.Const):
        name = type(s).__name__.lower()
        raise TileNotImplementedError(
            f"{name}: an extent that is not a compile-time constant is not yet supported", s.loc
        )
    return int(n.value)


def index(cx: Context, e: ir.Expr) -> Lane:
    """An index: int64 scalar (coef 0 or c), or an int64 vector (coef None)."""
    v = value(cx, e)
    if v.coef is None and v.expr.dtype.scalar != I64:
        return Lane(ir.Cast(v.expr, I64.with_lanes(LANES)), None)
    return Lane(widen(v.expr), v.coef) if v.coef is not None else v


def vector(cx: Context, v: Lane, t: DType) -> ir.Expr:
    """The value as 16 lanes of type held(t)."""
    if v.coef is None:
        return v.expr
    x = v.expr
    want = held(t)
    if x.dtype != want:
        x = narrow(x, want)
    if v.coef == 0:
        return ir.Broadcast(x, LANES)
    return ir.Ramp(x, v.coef, LANES)


def bool_mask(cx: Context, v: Lane) -> ir.Expr:
    """A condition as a boolx16."""
    return v.expr if v.coef is None else ir.Broadcast(v.expr, LANES)


# -- expressions ------------------------------------------------------------------------------------------------


def value(cx: Context, e: ir.Expr) -> Lane:
    """Translate one expression of the tile stage."""
    lane = cx.lane
    if lane is not None and not lane.guarded and _worth_hoisting(cx, lane, e):
        if e not in lane.hoisted:
            lane.hoisted[e] = _hoist(cx, lane, e)
        return lane.hoisted[e]
    return _value(cx, e)


def _worth_hoisting(cx: Context, lane: LaneLoop, e: ir.Expr) -> bool:
    if isinstance(e, (ir.Const, ir.Var)) or not (e.dtype.is_float or isinstance(e, ir.Load)):
        return False
    if any(v in lane.inner for v in free_vars(e)):
        return False
    return not any(ld.buffer.root in lane.written for ld in loads_of(e))


def _hoist(cx: Context, lane: LaneLoop, e: ir.Expr) -> Lane:
    outer, cx.out, cx.lane = cx.out, lane.pre, None
    try:
        x = cx.let("inv", _value(cx, e).expr)
    finally:
        cx.out, cx.lane = outer, lane
    return Lane(x, 0)


def _table(cx: Context, lane: LaneLoop, e: ir.Expr, number: ir.Var) -> ir.Expr:
    """e for the numbers 0 to 15, in front of the nest."""
    if e not in lane.hoisted:
        outer, cx.out, cx.lane = cx.out, lane.pre, None
        cx.env[number] = Lane(ir.Ramp(ir.Const(0, number.type), 1, LANES), None)
        lane.hoisted[e] = Lane(cx.let("table", vector(cx, _value(cx, e), F32)), None)
        cx.out, cx.lane = outer, lane
    return lane.hoisted[e].expr


def _value(cx: Context, e: ir.Expr) -> Lane:
    if isinstance(e, ir.Const):
        return Lane(_const(e))
    if isinstance(e, ir.Var):
        return cx.env[e]
    if cx.lane is not None and (found := coded(e, cx.lane.spelt)) is not None:
        source = value(cx, found[0])
        if source.coef is None:
            number = ir.Cast(vector(cx, source, found[0].dtype), INT32.with_lanes(LANES))
            return Lane(ir.Call("permute", (_table(cx, cx.lane, *found[1:]), number), F32.with_lanes(LANES)), None)
    if isinstance(e, ir.Load):
        return _load(cx, e)
    if isinstance(e, ir.Cast):
        return _cast(cx, e)
    if isinstance(e, ir.Binary):
        return _logical(cx, e) if e.op in ("and", "or") else _binary(cx, e)
    if isinstance(e, ir.IfThenElse):
        return _lazy(cx, e)
    if isinstance(e, ir.Call):
        return _call(cx, e)
    if isinstance(e, ir.Select):
        c, t, f = value(cx, e.cond), value(cx, e.t), value(cx, e.f)
        if c.coef == t.coef == f.coef == 0:
            return Lane(ir.Select(c.expr, t.expr, f.expr))
        return Lane(ir.Select(bool_mask(cx, c), vector(cx, t, e.dtype), vector(cx, f, e.dtype)), None)
    if isinstance(e, ir.Unary):
        return _elementwise(cx, e, (e.x,), lambda xs: ir.Unary(e.op, xs[0]))
    assert isinstance(e, ir.Fma)
    return _elementwise(cx, e, (e.a, e.b, e.c), lambda xs: ir.Fma(*xs))


def _const(e: ir.Const) -> ir.Expr:
    t = e.type
    return ir.Const(e.value, _scalar_held(t)) if t is not BOOL else e


def _elementwise(cx: Context, e: ir.Expr, operands: tuple[ir.Expr, ...], make: object) -> Lane:
    """Unary operators, fma and calls: typed operands, one result, rounded if the author's type is a half."""
    lanes = [value(cx, x) for x in operands]
    t = e.dtype
    assert callable(make)
    uniform = all(v.coef == 0 for v in lanes)
    if uniform:
        xs = [_typed(v.expr, x.dtype) for v, x in zip(lanes, operands, strict=True)]
    else:
        xs = [vector(cx, v, x.dtype) for v, x in zip(lanes, operands, strict=True)]
    out = make(xs)
    if t.is_narrow and not (isinstance(e, ir.Unary) and e.op in ("neg", "abs") and t.name != "float8_e8m0fnu"):
        out = round_to(out, t)
    return Lane(widen(out) if uniform and t.is_int and t is not UINT64 else out, 0 if uniform else None)


def _typed(x: ir.Expr, t: DType) -> ir.Expr:
    """A scalar as its author's type (halves stay float32)."""
    return narrow(x, t) if t.is_int and x.dtype != t else x


def _call(cx: Context, e: ir.Call) -> Lane:
    if e.name == "reinterpret":
        return _reinterpret(cx, e)

    def make(xs: list[ir.Expr]) -> ir.Expr:
        t = BOOL if e.type.is_bool else held(e.type)
        return ir.Call(e.name, tuple(xs), t.with_lanes(xs[0].dtype.lanes))

    return _elementwise(cx, e, e.args, make)


def _reinterpret(cx: Context, e: ir.Call) -> Lane:
    x = e.args[0]
    v = value(cx, x)
    uniform = v.coef == 0
    raw = _typed(v.expr, x.dtype) if uniform else vector(cx, v, x.dtype)
    lanes = raw.dtype.lanes
    if x.dtype.is_narrow:
        raw = encode(raw, x.dtype)
    elif x.dtype.is_packed:
        raw = ir.Cast(raw, x.dtype.with_lanes(lanes))
    out: ir.Expr = ir.Call("reinterpret", (raw,), e.type.with_lanes(lanes))
    if e.type.is_narrow:
        out = ir.Cast(out, F32.with_lanes(lanes))
    elif e.type.is_packed and not uniform:
        out = ir.Cast(out, held(e.type).with_lanes(lanes))
    return Lane(widen(out) if uniform and e.type.is_int and e.type is not UINT64 else out, 0 if uniform else None)


def _binary(cx: Context, e: ir.Binary) -> Lane:
    e = _shifted(e)
    a, b = value(cx, e.a), value(cx, e.b)
    t = e.a.dtype
    if t.is_int and t is not UINT64:
        found = _wide_int(cx, e, a, b) or _one_quotient(cx, e, a)
        if found is not None:
            return found
    if a.coef == 0 and b.coef == 0:
        if t.is_int and t is not UINT64 and e.op in ("shl", "shr"):
            return Lane(widen(ir.Binary(e.op, narrow(a.expr, t), narrow(b.expr, t))))
        out: ir.Expr = ir.Binary(e.op, a.expr, b.expr)
        if t.is_int and t is not UINT64 and e.op in _MAY_WRAP and not _fits(cx, e):
            return Lane(widen(ir.Cast(out, t)))
    else:
        out = ir.Binary(e.op, vector(cx, a, t), vector(cx, b, t))
    if t.is_narrow and e.op in _ROUNDED:
        out = round_to(out, t)
    return Lane(out, 0 if a.coef == 0 and b.coef == 0 else None)


def _one_quotient(cx: Context, e: ir.Binary, a: Lane) -> Lane | None:
    """Sixteen lanes that begin at a multiple of the way they go have one quotient by such a multiple (the warp of a
    thread), and their remainders (its lane) go the same way."""
    form = divided(e)
    if form is None or not a.coef or a.coef < 0 or cx.lane is None:
        return None
    way, rest = LANES * a.coef, a.expr
    first = ZERO
    if isinstance(rest, ir.Binary) and rest.op == "add" and isinstance(rest.b, ir.Const):
        first, rest = rest.b, rest.a
    if form[1] % way or factor(rest, cx.lane.base) % way or first.value % way >= a.coef:
        return None
    return Lane(ir.Binary(e.op, a.expr, widen(e.b)), 0 if form[2] else a.coef)


def _shifted(e: ir.Binary) -> ir.Binary:
    """Floor division by a power of two is a shift, and its remainder a mask, for negative numbers as well."""
    if e.op not in ("floordiv", "floormod") or not e.dtype.is_int or not isinstance(e.b, ir.Const):
        return e
    n = int(e.b.value)
    if n < 1 or n & (n - 1):
        return e
    by = n.bit_length() - 1 if e.op == "floordiv" else n - 1
    return ir.Binary("shr" if e.op == "floordiv" else "bitand", e.a, ir.Const(by, e.b.type), loc=e.loc)


def _fits(cx: Context, e: ir.Expr) -> bool:
    """Whether 64-bit arithmetic gives an integer expression the value that its own type would."""
    return e.dtype.bits == 64 or cx.facts.fits(e)  # 64-bit arithmetic wraps by itself


def _wide_int(cx: Context, e: ir.Binary, a: Lane, b: Lane) -> Lane | None:
    """add, sub, mul that stay affine and inside the author's type are plain 64-bit arithmetic."""
    if e.op not in _WIDE_OPS or a.coef is None or b.coef is None:
        return None
    if not _fits(cx, e):
        return None
    if e.op == "mul":
        if a.coef and b.coef:
            return None
        if a.coef or b.coef:
            moving, factor = (a, b.expr) if a.coef else (b, a.expr)
            if not isinstance(factor, ir.Const):
                return None
            assert moving.coef is not None
            return Lane(mul(moving.expr, factor), moving.coef * factor.value)
        return Lane(mul(a.expr, b.expr))
    sign = 1 if e.op == "add" else -1
    return Lane(_WIDE_OPS[e.op](a.expr, b.expr), a.coef + sign * b.coef)


def _logical(cx: Context, e: ir.Binary) -> Lane:
    a = value(cx, e.a)
    if a.coef == 0:
        decided = a.expr if e.op == "and" else ir.Unary("not", a.expr)
        b = _where(cx, None if cx.lane is None else ir.Broadcast(decided, LANES), e.b)
        if b.coef == 0:
            return Lane(ir.Binary(e.op, a.expr, b.expr))
        return Lane(ir.Binary(e.op, bool_mask(cx, a), b.expr), None)
    m = cx.let("m", a.expr)
    b = _where(cx, m if e.op == "and" else ir.Unary("not", m), e.b)
    return Lane(ir.Binary(e.op, m, bool_mask(cx, b)), None)


def _lazy(cx: Context, e: ir.IfThenElse) -> Lane:
    c = value(cx, e.cond)
    if c.coef == 0:
        # Both sides are pure; loads on the side not taken must not happen. Statements that the sides need (masks)
        # are harmless, so the sides are emitted in place and chosen by a lazy scalar or, for vectors, by masks.
        mask = None if cx.lane is None else ir.Broadcast(c.expr, LANES)
        no = None if mask is None else ir.Broadcast(ir.Unary("not", c.expr), LANES)
        t, f = _where(cx, mask, e.t), _where(cx, no, e.f)
        if t.coef == 0 and f.coef == 0:
            return Lane(ir.IfThenElse(c.expr, t.expr, f.expr))
        m: ir.Expr = ir.Broadcast(c.expr, LANES)
    else:
        m = cx.let("m", c.expr)
        t, f = _where(cx, m, e.t), _where(cx, ir.Unary("not", m), e.f)
        if isinstance(t.expr, ir.Load) and t.coef is None and _is_zero(f.expr):
            return t  # a masked load already gives 0 where it is off
    tv, fv = vector(cx, t, e.dtype), vector(cx, f, e.dtype)
    return Lane(ir.Select(m, tv, fv), None)


def _where(cx: Context, mask: ir.Expr | None, e: ir.Expr) -> Lane:
    """An operand that only the lanes of a mask may touch."""
    with lazily(cx, mask):
        return value(cx, e)


def _is_zero(e: ir.Expr) -> bool:
    return isinstance(e, ir.Const) and repr(e.value) in ("0", "0.0", "False")


class lazily:
    """Evaluate an operand that other lanes must not touch: narrows the lane mask, forbids hoisting."""

    def __init__(self, cx: Context, mask: ir.Expr | None) -> None:
        self.cx, self.mask = cx, mask

    def __enter__(self) -> None:
        lane = self.cx.lane
        if lane is None:
            return
        self.saved = lane.mask
        lane.mask = and_(lane.mask, self.mask)
        if isinstance(lane.mask, ir.Binary):
            lane.mask = self.cx.let("m", lane.mask)
        lane.guarded += 1

    def __exit__(self, *exc: object) -> None:
        lane = self.cx.lane
        if lane is not None:
            lane.mask = self.saved
            lane.guarded -= 1


# -- casts ----------------------------------------------------------------------------------------------------


def _cast(cx: Context, e: ir.Cast) -> Lane:
    v = value(cx, e.x)
    src, dst = e.x.dtype, e.type
    if src is dst:
        return v
    if src.is_int and dst.is_int and v.coef is not None and src is not UINT64 and dst is not UINT64:
        lo, hi = cx.facts.interval(e.x)
        tmin, tmax = int_range(dst)
        if lo >= tmin and hi <= tmax:
            return v
    uniform = v.coef == 0
    x = v.expr if uniform else vector(cx, v, src)
    lanes = x.dtype.lanes
    if dst.is_narrow:
        out: ir.Expr = round_to(x, dst)
    elif dst.is_bool:
        zero = ir.Const(0.0 if x.dtype.is_float else 0, x.dtype.scalar)
        out = ir.Binary("ne", x, zero if uniform else ir.Broadcast(zero, LANES))
    elif dst.is_packed:
        out = ir.Cast(ir.Cast(x, dst.with_lanes(lanes)), (I64 if uniform else held(dst)).with_lanes(lanes))
    elif uniform and dst.is_int and dst is not UINT64:
        out = widen(narrow(x, dst)) if x.dtype == I64 else widen(ir.Cast(x, dst))
    elif x.dtype == dst.with_lanes(lanes):
        out = x
    else:
        out = ir.Cast(x, dst.with_lanes(lanes))
    return Lane(out, 0 if uniform else None)


# -- memory -----------------------------------------------------------------------------------------------------


def address(cx: Context, b: ir.Buffer, indices: tuple[ir.Expr, ...]) -> tuple[Place, tuple[ir.Expr, ...], int | None]:
    """Place, loop-stage indices, and how lanes lie: 0 uniform, 1 contiguous, None gather."""
    place, at = place_of(cx, b, indices)
    return place, *lie_of(cx, place.buffer, at)


def place_of(cx: Context, b: ir.Buffer, indices: tuple[ir.Expr, ...]) -> tuple[Place, list[Lane]]:
    """Place, and loop-stage indices of the lanes."""
    place = cx.places[b]
    assert place.kind != "panels", f"{b.name} is packed but accessed element by element"
    return place, [index(cx, i) for i in indices]


def lie_of(cx: Context, b: ir.Buffer, lanes: list[Lane]) -> tuple[tuple[ir.Expr, ...], int | None]:
    """Loop-stage indices, and how the lanes lie in the buffer, as in `address`."""
    if all(v.coef == 0 for v in lanes):
        return tuple(v.expr for v in lanes), 0
    if lanes[-1].coef == 1 and all(v.coef == 0 for v in lanes[:-1]) and _unit_stride(b):
        return tuple(v.expr for v in lanes), 1
    return tuple(v.expr if v.coef == 0 else vector(cx, v, I64) for v in lanes), None


def _unit_stride(b: ir.Buffer) -> bool:
    return b.strides is None or (isinstance(b.strides[-1], ir.Const) and b.strides[-1].value == 1)


def nibble_address(
    cx: Context, b: ir.Buffer, indices: tuple[ir.Expr, ...]
) -> tuple[Place, tuple[ir.Expr, ...], int | None, ir.Expr]:
    """As `address`, of the byte, and whether it is the high half. Lanes that take every second element of a row touch
    neighbouring bytes; others gather."""
    place, lanes = cx.places[b], [index(cx, i) for i in indices]
    uniform = all(v.coef == 0 for v in lanes)
    if lanes[-1].coef == 2 and all(v.coef == 0 for v in lanes[:-1]) and _unit_stride(place.buffer):
        byte, odd = byte_at(lanes[-1].expr)
        return place, (*(v.expr for v in lanes[:-1]), byte), 1, ir.Broadcast(odd, LANES)
    each = [v.expr if v.coef == 0 else vector(cx, v, I64) for v in lanes]
    byte, odd = byte_at(each[-1])
    if not uniform and odd.dtype.lanes == 1:
        odd = ir.Broadcast(odd, LANES)
    return place, (*each[:-1], byte), 0 if uniform else None, odd


def _load(cx: Context, e: ir.Load) -> Lane:
    half: ir.Expr | None = None
    if cx.places[e.buffer].nibbles:
        place, idx, lie, half = nibble_address(cx, e.buffer, e.indices)
    else:
        place, at = place_of(cx, e.buffer, e.indices)
        store_pending(cx, e.buffer.root)
        found = None if place.kind == "var" else stride_of(cx, place, at)
        if found is not None:
            kept = F32.with_lanes(LANES) if place.buffer.dtype.is_narrow else None
            return Lane(load_apart(cx, e.buffer.root, place.buffer, found, kept), None)
        idx, lie = lie_of(cx, place.buffer, at)
    b = place.buffer
    if place.kind == "var":
        return Lane(as_held(ir.Load(b, idx, proved=True), place.logical), None if b.dtype.lanes > 1 else 0)
    mask = cx.lane.mask if cx.lane is not None else None
    if lie == 0:
        x: ir.Expr = ir.Load(b, idx, proved=True)
        x = as_held(x if half is None else decoded(x, half, place.logical), place.logical)  # lazily: nothing is named
        if cx.lane is not None and mask is not None and mask is not cx.lane.tail:  # perhaps no lane may read it
            x = ir.IfThenElse(ir.Call("any", (mask,), BOOL), x, _zero(x.dtype))
        return Lane(x)
    several: ir.Expr = ir.Load(b, idx, mask, LANES if lie == 1 else 1, True)
    if half is not None:
        several = decoded(cx.let("byte", several), half, place.logical)
    return Lane(as_held(several, place.logical), None)


def _zero(t: DType) -> ir.Const:
    return ir.Const(False if t.is_bool else 0.0 if t.is_float else 0, t)


def as_held(x: ir.Expr, logical: DType) -> ir.Expr:
    lanes = x.dtype.lanes
    if x.dtype.scalar.is_narrow:
        return ir.Cast(x, F32.with_lanes(lanes))
    return widen(x) if lanes == 1 and logical.is_int and logical is not UINT64 else x


def store_pending(cx: Context, root: ir.Buffer | None = None) -> None:
    """The stores that have waited in vain for their neighbours (of one buffer)."""
    lane = cx.lane
    if lane is None or not lane.pending:
        return
    for key, (of, place, group) in list(lane.pending.items()):
        if root is None or of is root:
            del lane.pending[key]
            _, at, way = key
            for which, x in group.items():
                idx, _ = lie_of(cx, place.buffer, [*map(Lane, at[:-1]), Lane(add(at[-1], i64(which)), way)])
                x = encode(x, place.buffer.dtype) if place.buffer.dtype.is_narrow else x
                cx.emit(ir.Store(place.buffer, idx, x, None, True))


def store_value(cx: Context, v: Lane, place: Place) -> ir.Expr:
    """A value (already of the author's dtype) as what the place holds: scalar if uniform, else a vector."""
    dtype = place.buffer.dtype.scalar
    x = _typed(v.expr, dtype) if v.coef == 0 and not dtype.is_float else v.expr
    if v.coef != 0:
        x = vector(cx, v, place.logical)
    return encode(x, dtype) if dtype.is_narrow else x
