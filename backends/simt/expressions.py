"""Expressions and places of the thread stage as C text; `printer.py` adds the statements."""

from __future__ import annotations

from tiledsl import ir
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import InternalError, TileNotImplementedError
from tiledsl.ir.intrinsics import INTRINSICS
from tiledsl.ir.math import expansion

from .names import c_type, constant, natural, suffix, unique

__all__ = ["ExpressionPrinter", "Functions"]

_I32, _I64, _F32 = as_dtype("int32"), as_dtype("int64"), as_dtype("float32")

# C's binary operators: text and precedence (higher binds tighter).
_OPERATORS = {
    "or": ("||", 1), "and": ("&&", 2), "bitor": ("|", 3), "bitxor": ("^", 4), "bitand": ("&", 5), "eq": ("==", 6),
    "ne": ("!=", 6), "lt": ("<", 7), "le": ("<=", 7), "gt": (">", 7), "ge": (">=", 7), "add": ("+", 9), "sub": ("-", 9),
    "mul": ("*", 10), "div": ("/", 10),
}  # fmt: skip
_TERNARY, _UNARY, _ATOM = 0, 11, 20
_DIVISIONS = {"floordiv", "floormod", "truncdiv", "truncmod", "div"}
_EXACT = ("max", "min")


def bracketed(text: str, own: int, precedence: int) -> str:
    """An operand's text, in brackets where it binds less tightly than what is around it."""
    return f"({text})" if own < precedence else text


class Functions:
    """Definitions that the text of a kernel uses and the prelude does not have, in order: the math functions, which are
    the language's own expansions."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def math(self, name: str, d: DType) -> str:
        """The name of the function that a math intrinsic is; float or double."""
        plain = name.removeprefix("fast_")
        own = f"{plain}_{suffix(d)}"
        if own not in self.texts:
            self.texts[own] = ""  # its place among the definitions
            found = expansion(plain, d)
            printer = ExpressionPrinter(self)
            parameters = []
            for p in found.params:
                printer.names[p] = unique(p.name, printer.taken)
                parameters.append(f"{c_type(p.type)} {printer.names[p]}")
            lines = [f"TL_FN {c_type(d)} {own}({', '.join(parameters)}) {{"]
            for v, value in found.lets:
                text = printer.expr(value)
                printer.names[v] = unique(v.name, printer.taken)
                lines.append(f"  const {c_type(v.type)} {printer.names[v]} = {text};")
            lines += [f"  return {printer.expr(found.result)};", "}"]
            del self.texts[own]  # behind what it calls
            self.texts[own] = "\n".join(lines)
        return own

    def extremum(self, op: str, d: DType) -> str:
        """max or min of floats of 8 bits and less: one of the two, as it is."""
        n = suffix(d)
        own = f"{op}_{n}"
        self.texts.setdefault(
            own,
            f"TL_FN {c_type(d)} {own}({c_type(d)} a, {c_type(d)} b) {{\n"
            f"  const float x = tl_cvt_f32_{n}(a), y = tl_cvt_f32_{n}(b);\n"
            f"  return tl_bits_f32(tl_{op}_f32(x, y)) == tl_bits_f32(x) ? a : b;\n}}",
        )
        return own


class ExpressionPrinter:
    """Names, pointers and expressions of one kernel (or of one function of a kernel)."""

    def __init__(self, functions: Functions) -> None:
        self.functions = functions
        self.names: dict[object, str] = {}
        self.taken: set[str] = set()
        self.bytewise: set[ir.Buffer] = set()  # roots of 4-bit elements with two of them in a byte
        self.swizzled: dict[ir.Buffer, tuple[int, int, int]] = {}  # see `shared.swizzles`
        self.words: set[ir.Buffer] = set()  # arrays of a thread that are declared as 32-bit words
        self.plain: set[int] = set()  # see `wrapping.plain_arithmetic`
        self.address = False  # inside an index, whose arithmetic stays in its type
        self.waiting = False  # inside the condition of a wait: memory that others change

    def name(self, key: object, wanted: str) -> str:
        found = self.names.get(key)
        if found is None:
            found = self.names[key] = unique(wanted, self.taken)
        return found

    # -- places ------------------------------------------------------------------------------------------------------

    def pointer(self, b: ir.Buffer) -> str:
        """The address of a buffer's first element."""
        t = self.pointed(b)
        if b in self.words:
            return f"(({t}*){self.names[b]})"
        if b in self.names:
            return self.names[b]
        if b.alias_of is not None:
            base = f"({t}*){self.pointer(b.alias_of)}"
            if b.offset is None or (isinstance(b.offset, ir.Const) and b.offset.value == 0):
                return f"({base})"
            shift = self.index(b.offset)
            return f"({base} + {shift})" if not self.halved(b) else f"({base} + ({shift}) / 2)"
        if b.base is not None:
            return f"(({t}*)({self.expr(b.base)}))"
        raise InternalError(f"buffer {b.name} ({b.scope}) has no address")

    def pointed(self, b: ir.Buffer) -> str:
        return "tl_u8" if self.halved(b) else c_type(b.dtype)

    def halved(self, b: ir.Buffer) -> bool:
        """Two elements lie in a byte."""
        return b.dtype.is_packed and (b.root.scope == "global" or b.root in self.bytewise)

    def strides(self, b: ir.Buffer) -> list[ir.Expr]:
        if b.strides is not None:
            return list(b.strides)
        running: ir.Expr = ir.Const(1, _I64)
        found: list[ir.Expr] = []
        for axis, extent in reversed(list(enumerate(b.shape))):
            found.append(running)
            wide = ir.Const(int(extent.value), _I64) if isinstance(extent, ir.Const) else extent
            if axis == b.rank - 1 and self.halved(b) and b.root.scope == "global":  # rows of the caller begin at bytes
                if isinstance(wide, ir.Const):
                    wide = ir.Const(int(wide.value) + int(wide.value) % 2, _I64)
                else:
                    wide = ir.Binary("add", wide, ir.Binary("bitand", wide, ir.Const(1, wide.dtype)))
            if isinstance(running, ir.Const) and isinstance(wide, ir.Const):
                running = ir.Const(running.value * wide.value, _I64)
            elif isinstance(running, ir.Const) and running.value == 1:
                running = wide if wide.dtype is _I64 else ir.Cast(wide, _I64)
            else:
                running = ir.Binary("mul", running, wide if wide.dtype is _I64 else ir.Cast(wide, _I64))
        return found[::-1]

    def place(self, b: ir.Buffer, indices: tuple[ir.Expr, ...]) -> str:
        """The linear index of an element: in 64 bits for memory of the caller's, in 32 for the block's own."""
        wide = b.root.scope == "global"
        constant_part, parts = 0, []
        for axis, (index, stride) in enumerate(zip(indices, self.strides(b), strict=True)):
            if b in self.swizzled and axis == len(indices) - 1:
                shift, mask, unit = self.swizzled[b]
                row = f"{self.index(indices[-2], 10)} / {1 << shift}" if shift else self.index(indices[-2], 9)
                parts.append(f"({self.index(index, 5)} ^ ({row} & {mask}) * {unit})")
            elif isinstance(index, ir.Const) and isinstance(stride, ir.Const):
                constant_part += int(index.value) * int(stride.value)
            elif isinstance(stride, ir.Const) and stride.value == 1:
                parts.append(self.index(index, 9, wide))
            else:
                parts.append(f"{self.index(index, 10, wide)} * {self.index(stride, 11, wide)}")
        if constant_part or not parts:
            parts.append(str(constant_part))
        return " + ".join(parts).replace("+ -", "- ")

    def index(self, e: ir.Expr, precedence: int = 0, wide: bool = False) -> str:
        """An integer as part of an address."""
        if isinstance(e, ir.Const):
            return str(int(e.value)) if e.value >= 0 or not precedence else f"({int(e.value)})"
        outer, self.address = self.address, True
        try:
            if wide and e.dtype is not _I64 and e.dtype.name != "uint64":
                return f"(tl_i64){self.expr(e, _UNARY)}"
            return self.expr(e, precedence)
        finally:
            self.address = outer

    def place_of(self, b: ir.Buffer, indices: tuple[ir.Expr, ...]) -> str:
        """The address of an element."""
        return f"&{self.pointer(b)}[{self.place(b, indices)}]"

    # -- expressions -----------------------------------------------------------------------------------------------

    def expr(self, e: ir.Expr, precedence: int = 0) -> str:
        """The text of e, in brackets where it binds less tightly than what is around it."""
        return bracketed(*self.parts(e), precedence)

    def parts(self, e: ir.Expr) -> tuple[str, int]:
        """The text of e and how tightly it binds; asked for once per operand: the tree below is gone through."""
        if isinstance(e, ir.Const):
            text = constant(e.value, e.type)
            return text, _TERNARY if text.startswith("-") else _ATOM
        found: tuple[str, int] = getattr(self, f"on_{type(e).__name__}")(e)
        return found

    def on_Var(self, e: ir.Var) -> tuple[str, int]:
        if e not in self.names:
            raise InternalError(f"{e.name} is used before it is defined")
        return self.names[e], _ATOM

    def on_Load(self, e: ir.Load) -> tuple[str, int]:
        b = e.buffer
        if b.dtype.is_vector or e.lanes > 1:
            raise TileNotImplementedError(f"vectors ({e.dtype}) are not supported on GPUs yet", e.loc)
        if b.scope == "var" and b in self.names:
            return self.names[b], _ATOM
        if self.halved(b):
            beside = "_beside" if b.root.scope == "shared" else ""  # another thread may store the other half
            element = f"tl_nibble{beside}({self.pointer(b)}, {self.place(b, e.indices)})"
            signed = f"(tl_i8)(({element} ^ 8) - 8)"
            return (signed, _UNARY) if b.dtype.name == "int4" else (element, _ATOM)
        if self.waiting and b.root.scope in ("shared", "global") and b.dtype.is_int and b.dtype.bits >= 32:
            at = self.place_of(b, e.indices)
            return f"tl_atomic_load_{suffix(b.dtype)}({at}, TL_ACQUIRE)", _ATOM
        return f"{self.pointer(b)}[{self.place(b, e.indices)}]", _ATOM

    # -- operators ---------------------------------------------------------------------------------------------------

    def widened(self, e: ir.Expr) -> str:
        """A narrow float as float."""
        return f"tl_cvt_f32_{suffix(e.dtype)}({self.expr(e)})"

    def narrowed(self, text: str, d: DType) -> tuple[str, int]:
        return f"tl_cvt_{suffix(d)}_f32({text})", _ATOM

    def on_Unary(self, e: ir.Unary) -> tuple[str, int]:
        d, op = e.dtype, e.op
        if d.is_narrow and op in ("neg", "abs") and d.name != "float8_e8m0fnu":
            top = 1 << (d.bits - 1)
            x = self.expr(e.x, 6)
            return (f"({c_type(d)})({x} ^ {top})" if op == "neg" else f"({c_type(d)})({x} & {top - 1})"), _UNARY
        if d.is_narrow:
            inner = self.float_unary(op, self.widened(e.x), _F32)
            return self.narrowed(inner, d)
        if d.is_float:
            return self.float_unary(op, self.expr(e.x, _ATOM if op == "neg" else 0), d), _UNARY
        parts = self.parts(e.x)
        x = bracketed(*parts, _UNARY)
        if op == "not" or (d.is_bool and op == "bitnot"):
            return f"!{x}", _UNARY
        if d.is_bool:
            return x, _UNARY
        if op in ("floor", "ceil", "trunc", "rint"):
            return x, _UNARY
        if op == "bitnot":
            return self.wrapped(f"~{x}", d), _UNARY
        wide = natural(d)
        return self.wrapped(f"tl_{op}_{suffix(wide)}({parts[0]})", d, cast_only_if_narrow=True), _UNARY

    def float_unary(self, op: str, x: str, d: DType) -> str:
        return f"-{x}" if op == "neg" else f"tl_{op}_{suffix(d)}({x})"

    def wrapped(self, text: str, d: DType, cast_only_if_narrow: bool = False) -> str:
        """What C computed in int, as the narrower type again."""
        if d.is_packed:
            return self.to_nibble(text, d, saturate=False)[0]
        return text if d.bits >= 32 and cast_only_if_narrow or natural(d) is d else f"({c_type(d)})({text})"

    def on_Binary(self, e: ir.Binary) -> tuple[str, int]:
        op, d = e.op, e.a.dtype
        if op in ir.COMPARISONS:
            return self.comparison(e)
        if op in ("and", "or"):
            return self.infix(op, self.expr(e.a, _OPERATORS[op][1]), self.expr(e.b, _OPERATORS[op][1] + 1))
        if d.is_narrow:
            if op in _EXACT and d.bits <= 8 and d.name != "float8_e8m0fnu":
                return f"{self.functions.extremum(op, d)}({self.expr(e.a)}, {self.expr(e.b)})", _ATOM
            text, _ = self.float_binary(op, self.widened(e.a), self.widened(e.b), _F32)
            return self.narrowed(text, d)
        if d.is_float:
            own = _OPERATORS.get(op, ("", 0))[1]
            return self.float_binary(op, self.expr(e.a, own), self.expr(e.b, own + 1 if own else 0), d)
        return self.integer_binary(e)

    def infix(self, op: str, a: str, b: str) -> tuple[str, int]:
        sign, own = _OPERATORS[op]
        return f"{a} {sign} {b}", own

    def float_binary(self, op: str, a: str, b: str, d: DType) -> tuple[str, int]:
        if op in _EXACT:
            return f"tl_{op}_{suffix(d)}({a}, {b})", _ATOM
        if op == "floordiv":
            return f"tl_floor_{suffix(d)}({a} / {b})", _ATOM
        return self.infix(op, a, b)

    def comparison(self, e: ir.Binary) -> tuple[str, int]:
        own = _OPERATORS[e.op][1]
        if e.a.dtype.is_narrow:
            return self.infix(e.op, self.widened(e.a), self.widened(e.b))
        return self.infix(e.op, self.expr(e.a, own), self.expr(e.b, own + 1))

    def integer_binary(self, e: ir.Binary) -> tuple[str, int]:
        op, d = e.op, e.dtype
        if d.is_bool:
            same = {"max": "bitor", "min": "bitand"}.get(op, op)
            own = _OPERATORS[same][1]
            return self.infix(same, self.expr(e.a, own), self.expr(e.b, own + 1))
        value = e.b.value if isinstance(e.b, ir.Const) else None
        if value == 0 and op in ("add", "sub"):
            return self.expr(e.a, _UNARY), _UNARY
        if op in _DIVISIONS and value is not None and value > 0:
            return self.division(e, int(value))
        counts = op in ("add", "sub", "mul") and d.bits >= 32 and (self.address or id(e) in self.plain)
        if counts or op in ("bitand", "bitor", "bitxor"):
            own = _OPERATORS[op][1]
            return self.infix(op, self.expr(e.a, own), self.expr(e.b, own + 1))
        wide = natural(d)
        left, b = self.parts(e.a), self.expr(e.b)
        a = left[0]
        if op in ("shl", "shr"):
            b = b if e.b.dtype.bits <= 32 else f"(tl_i32)tl_min_u64({b}, 64)"
            a = f"(tl_u32){bracketed(*left, _UNARY)}" if d.name in ("uint8", "uint16") else a
        name = {"div": "truncdiv"}.get(op, op)
        unsigned = d.kind == "uint" and d.bits < 32
        own_suffix = "u32" if unsigned else suffix(wide)
        return self.wrapped(f"tl_{name}_{own_suffix}({a}, {b})", d, cast_only_if_narrow=True), _UNARY

    def division(self, e: ir.Binary, value: int) -> tuple[str, int]:
        """Division by a positive constant, by operators."""
        d, op = e.dtype, {"div": "truncdiv"}.get(e.op, e.op)
        power = value & (value - 1) == 0
        if op == "floormod" and power:
            return f"{self.expr(e.a, 5)} & {value - 1}", 5
        if op == "floordiv" and power:
            return f"{self.expr(e.a, 8)} >> {value.bit_length() - 1}", 8
        if op in ("truncdiv", "truncmod") or d.kind == "uint":
            sign = "/" if op.endswith("div") else "%"
            return f"{self.expr(e.a, 10)} {sign} {self.expr(e.b, 11)}", 10
        wide = natural(d)
        call = f"tl_{op}_{suffix(wide)}({self.expr(e.a)}, {self.expr(e.b)})"
        return self.wrapped(call, d, cast_only_if_narrow=True), _UNARY

    def on_Fma(self, e: ir.Fma) -> tuple[str, int]:
        return f"tl_fma_{suffix(e.dtype)}({self.expr(e.a)}, {self.expr(e.b)}, {self.expr(e.c)})", _ATOM

    def on_Select(self, e: ir.Select) -> tuple[str, int]:
        return f"{self.expr(e.cond, 1)} ? {self.expr(e.t, 1)} : {self.expr(e.f, _TERNARY)}", _TERNARY

    on_IfThenElse = on_Select

    def on_Cast(self, e: ir.Cast) -> tuple[str, int]:
        x = self.parts(e.x)
        return self.cast(x[0], bracketed(*x, _UNARY), e.x.dtype, e.type)

    def cast(self, x: str, tight: str, src: DType, dst: DType) -> tuple[str, int]:
        """A conversion; tight: the operand's text where it is an operand of a C cast."""
        if src is dst:
            return x, _TERNARY
        if src.is_narrow:
            wide = f"tl_cvt_f32_{suffix(src)}({x})"
            return (wide, _ATOM) if dst is _F32 else self.cast(wide, wide, _F32, dst)
        if dst.is_bool:
            return f"{tight} != 0", 6
        if dst.is_narrow:
            if src.is_float:
                return f"tl_cvt_{suffix(dst)}_{suffix(src)}({x})", _ATOM
            if src.bits < 64:
                return f"tl_cvt_{suffix(dst)}_f64((double){tight})", _ATOM
            return f"tl_cvt_{suffix(dst)}_{suffix(src)}({x})", _ATOM
        if src.is_float and dst.is_int:
            if dst.is_packed:
                return self.to_nibble(f"tl_cvt_i32_{suffix(src)}({x})", dst, saturate=True)
            return f"tl_cvt_{suffix(dst)}_{suffix(src)}({x})", _ATOM
        if dst.is_packed:
            return self.to_nibble(x, dst, saturate=False)
        return f"({c_type(dst)}){tight}", _UNARY

    def to_nibble(self, x: str, d: DType, saturate: bool) -> tuple[str, int]:
        low, high = (-8, 7) if d.name == "int4" else (0, 15)
        if saturate:
            return f"({c_type(d)})tl_max_i32({low}, tl_min_i32({high}, {x}))", _UNARY
        return (f"(tl_i8)((({x}) & 15 ^ 8) - 8)" if low else f"(tl_u8)(({x}) & 15)"), _UNARY

    def on_Call(self, e: ir.Call) -> tuple[str, int]:
        info = INTRINSICS[e.name]
        d = e.args[0].dtype
        if info.kind == "math":
            if d.is_narrow:
                texts = [self.widened(a) for a in e.args]
                return self.narrowed(f"{self.functions.math(e.name, _F32)}({', '.join(texts)})", e.type)
            return f"{self.functions.math(e.name, d)}({', '.join(self.expr(a) for a in e.args)})", _ATOM
        if e.name == "reinterpret":
            return self.reinterpret(e.args[0], e.type)
        if e.name in ("isnan", "isinf", "isfinite"):
            return self.predicate(e.name, e.args[0])
        if e.name in ("popcount", "clz", "brev"):
            u = f"u{d.bits}"
            return f"({c_type(e.type)})tl_{e.name}_{u}((tl_{u}){self.expr(e.args[0], _UNARY)})", _UNARY
        raise InternalError(f"{e.name} is no function of the thread stage")

    def reinterpret(self, x: ir.Expr, dst: DType) -> tuple[str, int]:
        src, text = x.dtype, self.expr(x)
        if src.name in ("float32", "float64"):
            text = f"tl_bits_{suffix(src)}({text})"
        if dst.name in ("float32", "float64"):
            return f"tl_{suffix(dst)}_bits((tl_u{dst.bits})({text}))", _ATOM
        if dst.is_packed and dst.is_int:
            return self.to_nibble(text, dst, saturate=False)
        return f"({c_type(dst)})({text}{' & 15' if src.is_packed else ''})", _UNARY

    def predicate(self, name: str, x: ir.Expr) -> tuple[str, int]:
        wide = self.widened(x) if x.dtype.is_narrow else self.expr(x)
        d = _F32 if x.dtype.is_narrow else x.dtype
        size = f"tl_abs_{suffix(d)}({wide})"
        infinity = constant(float("inf"), d)
        if name == "isnan":
            return f"{size} != {size}", 6
        return (f"{size} == {infinity}", 6) if name == "isinf" else (f"{size} < {infinity}", 7)
