"""What integer expressions can be: intervals and affine facts about loop, block and thread variables and symbols.

`Facts` collects what is known at one place of a tree (ranges of variables, conditions of enclosing `If`s, lets,
`T.assume`), `prove` answers yes or don't know. An expression becomes a linear form in unbounded integers only
where its wrapping arithmetic provably does not wrap; else it is an atom that may have any value of its type, so a
proof holds for the expression as it is computed. Proofs eliminate atoms by known inequalities (Fourier-Motzkin
with integer tightening, within a budget of steps); floor divisions, min, max and choices are split by definition.
"""

from __future__ import annotations

from collections.abc import Iterator

from tiledsl.analysis.linear import Atom, Linear, System
from tiledsl.ir import COMPARISONS, Binary, Cast, Const, Expr, Function, IfThenElse, Kernel, Load, Select, Unary, Var
from tiledsl.ir.build import int_range
from tiledsl.ir.walk import free_vars, walk

__all__ = ["Facts", "SYMBOL_MAX", "kernel_facts", "prove"]

# The largest extent of a dimension: what fits an address space, and for 32-bit symbols a tile's width less than
# 2**31, so that rounding an extent up to tiles cannot wrap. Argument binding refuses larger ones.
SYMBOL_MAX = {32: 2**31 - 2**16, 64: 2**48}
_SWAP = {"gt": "lt", "ge": "le"}
_JUNCTIONS = frozenset(["and", "or", "bitand", "bitor"])
_NEGATE = {"lt": "ge", "ge": "lt", "gt": "le", "le": "gt", "eq": "ne", "ne": "eq"}


def prove(cond: Expr, facts: Facts) -> bool:
    """True when the condition holds wherever the facts do; False means unknown."""
    return facts.prove(cond)


def kernel_facts(function: Function, kernel: Kernel) -> Facts:
    """What holds in a kernel's body: extents are not negative, block and thread variables lie in their ranges."""
    facts = Facts()
    for s in function.symbols:
        facts.bound(s, 0, SYMBOL_MAX.get(s.type.bits, int_range(s.type)[1]))
    zero = Const(0, kernel.block_vars[0].type) if kernel.block_vars else None
    for vs, extents in ((kernel.block_vars, kernel.grid), (kernel.thread_vars, kernel.threads)):
        for v, extent in zip(vs, extents, strict=False):
            facts.bind(v, zero or Const(0, v.type), extent)
    return facts


def _reads_memory(e: Expr) -> bool:
    return any(isinstance(n, Load) for n in walk(e))


class Facts(System):
    """What is known at one place. `child()` opens a scope; facts added to it are forgotten with it."""

    def __init__(self, parent: Facts | None = None) -> None:
        super().__init__(parent)
        self._lets: dict[Var, Linear] = dict(parent._lets) if parent else {}
        self._conds: dict[Var, Expr] = dict(parent._conds) if parent else {}
        self._free: dict[Var, frozenset[Var]] = dict(parent._free) if parent else {}  # what a variable depends on
        # Atoms whose definition holds from this scope on only: one per expression, so that facts meet questions.
        self._scoped: dict[Expr, int] = dict(parent._scoped) if parent else {}
        self._told: set[tuple[Expr, bool]] = set(parent._told) if parent else set()  # comparisons, as assumed
        self._memo: dict[int, tuple[Expr, Linear]] = {}
        self._held: dict[int, bool] = {}  # ids of operators and conversions: whether they certainly stay in their type

    def child(self) -> Facts:
        return Facts(self)

    # -- adding facts ------------------------------------------------------------------------------------

    def bound(self, v: Var, low: int, high: int) -> None:
        """low <= v <= high."""
        atom = self._var(v)
        self._narrow(atom, low, high)
        self._learnt()

    def bind(self, v: Var, start: Expr, stop: Expr, step: Expr | None = None) -> None:
        """v is the variable of a loop start, start + step ... below stop (above, for a negative literal step)."""
        self._free[v] = self._vars_of(start)
        low, high = self.linear(start), self.linear(stop)
        by = 1 if step is None else step.value if isinstance(step, Const) else 0
        if by == 0:
            return  # a step known only at run time: nothing is said about v
        if abs(by) == 1:
            form = Linear({self._var(v): 1})
        else:  # v = start + by * t with t = 0, 1, ...
            limit = int_range(v.type)[1]
            t = self._atoms.intern(("trip", v), Atom("var", 0, limit, vars=self._vars_of(v)))
            form = low.plus(Linear({t: by}))
            self._lets[v] = form
        if by < 0:
            low, high = high.shift(1), low.shift(1)
        self._assume(form.plus(low, -1))
        self._assume(high.plus(form, -1).shift(-1))

    def let(self, v: Var, value: Expr) -> None:
        """v equals value from here on, whatever happens to the memory that value reads."""
        self._free[v] = self._vars_of(value)
        if v.type.is_bool and not v.type.is_vector:
            if not _reads_memory(value):
                self._conds[v] = value
        elif _is_integer(v):
            self._lets[v] = self.linear(value)
            self._learnt()

    def assume(self, cond: Expr, holds: bool = True) -> None:
        """The condition holds (or does not). Nothing is learnt about memory, which may change."""
        if isinstance(cond, Unary) and cond.op == "not":
            self.assume(cond.x, not holds)
        elif isinstance(cond, Var) and cond in self._conds:
            self.assume(self._conds[cond], holds)
        elif isinstance(cond, Binary) and cond.op in _JUNCTIONS and cond.a.dtype.is_bool:
            if (cond.op in ("and", "bitand")) == holds:
                self.assume(cond.a, holds)
                self.assume(cond.b, holds)
            elif self.prove(cond.a, not holds):
                self.assume(cond.b, holds)
            elif self.prove(cond.b, not holds):
                self.assume(cond.a, holds)
        elif isinstance(cond, Binary) and cond.op in COMPARISONS and _is_integer(cond.a) and not _reads_memory(cond):
            self._told.add((cond, holds))
            op = cond.op if holds else _NEGATE[cond.op]
            if op == "eq" and self._divides(cond.a, cond.b):
                return
            a, b = self.linear(cond.a), self.linear(cond.b)
            if op in _SWAP:
                op, a, b = _SWAP[op], b, a
            if op == "ne":  # only at an end of the range
                if self._nonneg(b.plus(a, -1)):
                    op = "lt"
                elif self._nonneg(a.plus(b, -1)):
                    op, a, b = "lt", b, a
            if op != "ne":
                self._assume(b.plus(a, -1).shift(-1 if op == "lt" else 0))
            if op == "eq":
                self._assume(a.plus(b, -1))

    def _divides(self, a: Expr, b: Expr) -> bool:
        """Makes `x % n == 0` about a variable known by writing x as n * t everywhere."""
        if not (isinstance(a, Binary) and a.op in ("floormod", "truncmod") and isinstance(b, Const) and b.value == 0):
            return False
        x, n = a.a, a.b
        if not (isinstance(x, Var) and isinstance(n, Const) and n.value > 1) or x in self._lets:
            return False
        number = self._var(x)
        low, high = self._atom_range(number)
        whole = Atom("var", -(-low // n.value), high // n.value, vars=self._vars_of(x))
        self._lets[x] = form = Linear({self._atoms.fresh(whole): n.value})
        known, self._known = self._known, []
        for old in known:
            self._assume(self._with(old, number, form))
        for atom, (low, high) in list(self._bounds.items()):  # what is known of quotients of x, say
            new = self._with(Linear({atom: 1}), number, form)
            if atom != number and atom not in new.terms:
                self._assume(new.shift(-low))
                self._assume(new.scale(-1).shift(high))
        self._learnt()
        return True

    def _with(self, form: Linear, number: int, value: Linear) -> Linear:
        """form with an atom replaced, also inside quotients."""
        result = Linear(const=form.const)
        for a, c in form.terms.items():
            atom, new = self._atoms[a], Linear({a: 1})
            if a == number:
                new = value
            elif atom.kind == "div":
                inner, divisor = atom.parts
                rest = self._with(inner, number, value)
                new = new if rest.key == inner.key else self._floordiv(rest, divisor)
            result = result.plus(new, c)
        return result

    def _learnt(self) -> None:
        self._memo.clear()

    # -- questions ---------------------------------------------------------------------------------------------

    def prove(self, cond: Expr, holds: bool = True) -> bool:
        """True when cond holds (does not hold) wherever these facts do; False means unknown."""
        if isinstance(cond, Const):
            return cond.value is holds
        if isinstance(cond, Var):
            return cond in self._conds and self.prove(self._conds[cond], holds)
        if isinstance(cond, Unary) and cond.op == "not":
            return self.prove(cond.x, not holds)
        if not isinstance(cond, Binary):
            return False
        if (cond, holds) in self._told:
            return True
        if cond.op in _JUNCTIONS and cond.a.dtype.is_bool:
            both, first = cond.op in ("and", "bitand"), self.prove(cond.a, holds)
            if first != (both == holds):
                return first  # it decides
            return self._given(cond.a, both).prove(cond.b, holds)
        if cond.op not in COMPARISONS or not _is_integer(cond.a):
            return False
        a, b, op = self.linear(cond.a), self.linear(cond.b), cond.op if holds else _NEGATE[cond.op]
        if op in _SWAP:
            op, a, b = _SWAP[op], b, a
        up, down = b.plus(a, -1), a.plus(b, -1)
        if op == "ne":
            return self._nonneg(up.shift(-1)) or self._nonneg(down.shift(-1))
        if op == "eq":
            return self._nonneg(up) and self._nonneg(down)
        return self._nonneg(up.shift(-1 if op == "lt" else 0))

    def _cases(self, atom: Atom) -> Iterator[tuple[System, Linear]]:
        cond, t, f = atom.parts
        yield self._given(cond, True, 1), t
        yield self._given(cond, False, 1), f

    def _given(self, cond: Expr, holds: bool, splits: int = 0) -> Facts:
        inner = self.child()
        inner._splits += splits
        inner.assume(cond, holds)
        return inner

    def interval(self, e: Expr) -> tuple[int, int]:
        """Smallest and largest value that an integer (or bool) expression can have."""
        return self._range(self.linear(e))

    def fits(self, e: Expr) -> bool:
        """True when no integer operator in e can leave its type, so that e may be computed in a wider one."""
        return all(self.held(e).values())

    def held(self, e: Expr) -> dict[int, bool]:
        """By the ids of the integer operators and conversions in e whether they certainly stay in their type. What
        indices of loads compute is not looked at."""
        inner = self.child()
        inner.linear(e)
        return inner._held

    def multiple(self, e: Expr, n: int) -> bool:
        """True when e is a multiple of n for sure."""
        return self.linear(e).divisible(n)

    def stride(self, e: Expr, v: Var) -> int | None:
        """The constant by which e grows when v grows by one and nothing else changes; None if there is none."""
        form = self.linear(e)
        own = self._var(v)
        if any(v in self._atoms[a].vars for a in form.terms if a != own):
            return None
        return form.terms.get(own, 0)

    # -- linear forms ----------------------------------------------------------------------------------------

    def linear(self, e: Expr) -> Linear:
        """e as a linear form that equals it as computed."""
        if isinstance(e, Const):
            return Linear(const=int(e.value)) if not e.type.is_float else self._opaque(e)
        if isinstance(e, Var):
            return self._lets.get(e) or Linear({self._var(e): 1})
        found = self._memo.get(id(e))
        if found is not None:
            return found[1]
        form = self._linear(e) if _is_integer(e) else self._opaque(e)
        if not _reads_memory(e):
            self._memo[id(e)] = (e, form)
        return form

    def _var(self, v: Var) -> int:
        low, high = int_range(v.type) if _is_integer(v) else (0, 0)
        return self._atoms.intern(v, Atom("var", low, high, vars=self._vars_of(v)))

    def _vars_of(self, e: Expr) -> frozenset[Var]:
        """The variables that e depends on, also through lets and the starts of loops."""
        own = frozenset(free_vars(e))
        return own.union(*(self._free.get(v, frozenset()) for v in own))

    def _opaque(self, e: Expr, low: int | None = None, high: int | None = None) -> Linear:
        """e as an atom; low and high, when given, hold in this scope."""
        type_low, type_high = int_range(e.dtype) if _is_integer(e) else (0, 0)
        if low is None or high is None:
            atom = Atom("opaque", type_low, type_high, vars=self._vars_of(e))
            return Linear({self._atoms.fresh(atom) if _reads_memory(e) else self._atoms.intern(e, atom): 1})
        return self._here(e, Atom("opaque", max(low, type_low), min(high, type_high), vars=self._vars_of(e)))

    def _here(self, e: Expr, atom: Atom) -> Linear:
        """An atom whose definition holds in this scope; the same one for the same expression."""
        number = None if _reads_memory(e) else self._scoped.get(e)
        if number is None:
            number = self._scoped[e] = self._atoms.fresh(atom)
        return Linear({number: 1})

    def _checked(self, form: Linear, e: Expr) -> Linear:
        """form, when the value that it states is one of e's type."""
        low, high = int_range(e.dtype)
        value_low, value_high = self._range(form)
        held = (value_low >= low or self._nonneg(form.shift(-low))) and (
            value_high <= high or self._nonneg(form.scale(-1).shift(high))
        )
        self._hold(id(e), held)
        return form if held else self._opaque(e)

    def _hold(self, number: int, held: bool) -> None:
        self._held[number] = held and self._held.get(number, True)

    def _linear(self, e: Expr) -> Linear:
        if isinstance(e, Cast):
            return self._checked(self.linear(e.x), e) if _is_integer(e.x) else self._opaque(e)
        if isinstance(e, Unary) and e.op in ("neg", "bitnot"):
            return self._checked(self.linear(e.x).scale(-1).shift(-1 if e.op == "bitnot" else 0), e)
        if isinstance(e, Unary) and e.op == "abs":
            x = self.linear(e.x)
            return self._checked(self._extreme("max", x, x.scale(-1)), e)
        if isinstance(e, (IfThenElse, Select)):
            return self._choice(e)
        if isinstance(e, Binary) and e.op not in COMPARISONS and not e.dtype.is_bool:
            return self._operator(e, self.linear(e.a), self.linear(e.b))
        return self._opaque(e)

    def _operator(self, e: Binary, a: Linear, b: Linear) -> Linear:
        op = e.op
        if op in ("add", "sub"):
            return self._checked(a.plus(b, 1 if op == "add" else -1), e)
        if op == "mul":
            return self._checked(self._product(a, b), e)
        if op in ("min", "max"):
            return self._extreme(op, a, b)
        if op in ("shl", "shr") and b.is_const and 0 <= b.const < e.dtype.bits:
            return self._checked(a.scale(1 << b.const), e) if op == "shl" else self._floordiv(a, 1 << b.const)
        if op == "bitand":
            if a.is_const:
                a, b = b, a
            if b.is_const and b.const >= 0:
                n = b.const + 1
                return self._floormod(a, n) if n & (n - 1) == 0 else self._opaque(e, 0, b.const)
            if b.is_const and b.const & -b.const == -b.const:  # the lowest bits become 0
                return self._floordiv(a, -b.const).scale(-b.const)
        if op in ("bitor", "bitxor") and self._nonneg(a) and self._nonneg(b):
            most = max(_low_bits(n) or self._range(f)[1] for n, f in ((e.a, a), (e.b, b)))
            return self._opaque(e, 0, (1 << most.bit_length()) - 1)
        if op in ("truncdiv", "truncmod") and self._range(a)[0] >= 0:
            op = op.replace("trunc", "floor")
        if op == "floordiv" and b.is_const and b.const > 0:
            return self._floordiv(a, b.const)
        if op == "floormod" and b.is_const and b.const > 0:
            return self._floormod(a, b.const)
        low, high = self._range(b)
        if op in ("floordiv", "floormod") and low >= 0:  # division by zero gives 0
            a_low, a_high = self._range(a)
            if op == "floordiv":
                return self._opaque(e, min(a_low, 0), max(a_high, 0))
            result = self._opaque(e, 0, max(high - 1, 0))
            if low >= 1:
                self._assume(b.plus(result, -1).shift(-1))
            return result
        self._hold(id(e), False)
        return self._opaque(e)

    def _product(self, a: Linear, b: Linear) -> Linear:
        if a.is_const:
            return b.scale(a.const)
        if b.is_const:
            return a.scale(b.const)
        result = a.scale(b.const).plus(b.scale(a.const)).shift(-a.const * b.const)
        for x, cx in a.terms.items():
            for y, cy in b.terms.items():
                pair = (min(x, y), max(x, y))
                corners = [p * q for p in self._limits(pair[0]) for q in self._limits(pair[1])]
                both = self._atoms[x].vars | self._atoms[y].vars
                atom = Atom("mul", min(corners), max(corners), pair, both)
                result = result.plus(Linear({self._atoms.intern(("mul", pair), atom): cx * cy}))
        return result

    def _floordiv(self, a: Linear, c: int) -> Linear:
        """floor(a / c): what c divides goes outside."""
        whole = Linear({x: k // c for x, k in a.terms.items()}, a.const // c)
        rest = a.plus(whole, -c)
        low, high = self._range(rest)
        if low // c == high // c:
            return whole.shift(low // c)
        low, high = self._wide(rest)
        atom = Atom("div", low // c, high // c, (rest, c), self._atoms.vars_of(rest))
        return whole.plus(Linear({self._atoms.intern(("div", rest.key, c), atom): 1}))

    def _floormod(self, a: Linear, c: int) -> Linear:
        return a.plus(self._floordiv(a, c), -c)

    def _extreme(self, op: str, a: Linear, b: Linear) -> Linear:
        (a_low, a_high), (b_low, b_high) = self._range(a), self._range(b)
        if a_high <= b_low:
            return a if op == "min" else b
        if b_high <= a_low:
            return b if op == "min" else a
        if a.key > b.key:
            a, b = b, a
        pick = min if op == "min" else max
        (a_low, a_high), (b_low, b_high) = self._wide(a), self._wide(b)
        both = self._atoms.vars_of(a) | self._atoms.vars_of(b)
        atom = Atom(op, pick(a_low, b_low), pick(a_high, b_high), (a, b), both)
        return Linear({self._atoms.intern((op, a.key, b.key), atom): 1})

    def _choice(self, e: IfThenElse | Select) -> Linear:
        yes, no = self._given(e.cond, True), self._given(e.cond, False)
        t, f = yes.linear(e.t), no.linear(e.f)
        for number, held in (*yes._held.items(), *no._held.items()):
            self._hold(number, held)
        if self.prove(e.cond):
            return t
        low, high = int_range(e.dtype)
        return self._here(e, Atom("select", low, high, (e.cond, t, f), self._vars_of(e)))


def _low_bits(e: Expr) -> int:
    """The mask of `x & mask`, else 0."""
    return max(0, e.b.value) if isinstance(e, Binary) and e.op == "bitand" and isinstance(e.b, Const) else 0


def _is_integer(e: Expr) -> bool:
    """A scalar integer or bool."""
    dtype = e.dtype
    return (dtype.is_int or dtype.is_bool) and not dtype.is_vector
