"""Linear forms over atoms, in unbounded integers, and proofs of inequalities: what `bounds.py` reasons with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tiledsl.ir.expr import Var

__all__ = ["Atom", "Atoms", "Linear", "System"]

_STEPS = 400  # of one proof; typical ones need fewer than 20
_DEPTH = 10
_SPLITS = 3  # choices told apart within one another: what is assumed of one may lead to the next, and back


class Linear:
    """sum(coefficient * atom) + const; atoms are numbers given out by `Atoms`. Immutable."""

    __slots__ = ("const", "terms")

    def __init__(self, terms: Mapping[int, int] | None = None, const: int = 0) -> None:
        self.terms: dict[int, int] = {a: c for a, c in (terms or {}).items() if c}
        self.const = const

    @property
    def key(self) -> tuple[tuple[tuple[int, int], ...], int]:
        return tuple(sorted(self.terms.items())), self.const

    @property
    def is_const(self) -> bool:
        return not self.terms

    def plus(self, other: Linear, factor: int = 1) -> Linear:
        terms = dict(self.terms)
        for a, c in other.terms.items():
            terms[a] = terms.get(a, 0) + c * factor
        return Linear(terms, self.const + other.const * factor)

    def shift(self, amount: int) -> Linear:
        return Linear(self.terms, self.const + amount)

    def scale(self, factor: int) -> Linear:
        return Linear({a: c * factor for a, c in self.terms.items()}, self.const * factor)

    def divisible(self, n: int) -> bool:
        return self.const % n == 0 and all(c % n == 0 for c in self.terms.values())

    def tightened(self) -> Linear:
        """The same statement `self >= 0` about integers, with coprime coefficients."""
        g = math.gcd(*self.terms.values()) if self.terms else 1
        if g <= 1:
            return self
        return Linear({a: c // g for a, c in self.terms.items()}, self.const // g)


@dataclass(slots=True)
class Atom:
    """What a linear form is made of.

    kind   "var" | "opaque" | "div" (floor(a / c)) | "mul" (x * y) | "min" | "max" | "select"
    low, high  hold for every value that the atom can take
    parts  div: (Linear a, int c); mul: (atom, atom); min, max: (Linear, Linear);
           select: (condition, Linear, Linear)
    vars   the variables that it depends on
    """

    kind: str
    low: int
    high: int
    parts: tuple[Any, ...] = ()
    vars: frozenset[Var] = frozenset()


@dataclass
class Atoms:
    """The atoms of one analysis; equal ones get one number. Later atoms depend only on earlier ones."""

    table: list[Atom] = field(default_factory=list)
    numbers: dict[Any, int] = field(default_factory=dict)

    def __getitem__(self, number: int) -> Atom:
        return self.table[number]

    def fresh(self, atom: Atom) -> int:
        """A new atom that equals no other (what a load gives)."""
        self.table.append(atom)
        return len(self.table) - 1

    def intern(self, key: Any, atom: Atom) -> int:
        found = self.numbers.get(key)
        if found is None:
            found = self.numbers[key] = self.fresh(atom)
        return found

    def vars_of(self, form: Linear) -> frozenset[Var]:
        return frozenset[Var]().union(*(self.table[a].vars for a in form.terms))


class System:
    """Inequalities over atoms, and proofs from them. A scope inherits what its parent knows."""

    def __init__(self, parent: System | None = None) -> None:
        self._atoms: Atoms = parent._atoms if parent else Atoms()
        self._known: list[Linear] = list(parent._known) if parent else []  # these are >= 0
        self._bounds: dict[int, tuple[int, int]] = dict(parent._bounds) if parent else {}
        self._steps = 0
        self._splits: int = parent._splits if parent else 0

    def _learnt(self) -> None:
        """Called when something new is known."""

    def _cases(self, atom: Atom) -> Iterator[tuple[System, Linear]]:
        """The values of a "select" atom, each with what is known where it is chosen."""
        raise NotImplementedError

    def _assume(self, form: Linear) -> None:
        """form >= 0."""
        form = form.tightened()
        if form.is_const:
            return
        if len(form.terms) > 1:
            self._known.append(form)
        self._learnt()
        low, high = self._range(form)
        for atom, c in form.terms.items():  # what the inequality says about each atom alone
            a_low, a_high = self._atom_range(atom)
            rest = high - c * (a_high if c > 0 else a_low)
            if c > 0:
                self._narrow(atom, -(rest // c), a_high)
            else:
                self._narrow(atom, a_low, rest // -c)

    def _narrow(self, number: int, low: int, high: int) -> None:
        """The atom lies in low .. high, and what it is made of accordingly."""
        old_low, old_high = self._atom_range(number)
        low, high = max(low, old_low), min(high, old_high)
        self._bounds[number] = (low, high)
        atom = self._atoms[number]
        if atom.kind == "div":
            form, c = atom.parts
            if low > old_low:
                self._assume(form.shift(-c * low))
            if high < old_high:
                self._assume(form.scale(-1).shift(c * high + c - 1))
        elif atom.kind == "min" and low > old_low:
            for part in atom.parts:
                self._assume(part.shift(-low))
        elif atom.kind == "max" and high < old_high:
            for part in atom.parts:
                self._assume(part.scale(-1).shift(high))

    def _limits(self, atom: int) -> tuple[int, int]:
        """The range that holds everywhere, not only in this scope: atoms outlive scopes."""
        return self._atoms[atom].low, self._atoms[atom].high

    def _wide(self, form: Linear) -> tuple[int, int]:
        """The range of a form that holds everywhere."""
        ends = [sorted(c * bound for bound in self._limits(a)) for a, c in form.terms.items()]
        return form.const + sum(e[0] for e in ends), form.const + sum(e[1] for e in ends)

    def _range(self, form: Linear) -> tuple[int, int]:
        low = high = form.const
        for atom, c in form.terms.items():
            a_low, a_high = self._atom_range(atom)
            low += c * (a_low if c > 0 else a_high)
            high += c * (a_high if c > 0 else a_low)
        return low, high

    def _atom_range(self, number: int) -> tuple[int, int]:
        atom = self._atoms[number]
        low, high = self._bounds.get(number, (atom.low, atom.high))
        if atom.kind == "div":
            form, c = atom.parts
            a_low, a_high = self._range(form)
            return max(low, a_low // c), min(high, a_high // c)
        if atom.kind == "mul":
            x, y = (self._atom_range(part) for part in atom.parts)
            corners = [p * q for p in x for q in y]
            return max(low, min(corners)), min(high, max(corners))
        if atom.kind in ("min", "max", "select"):
            (a_low, a_high), (b_low, b_high) = (self._range(part) for part in atom.parts[-2:])
            if atom.kind == "select":
                return max(low, min(a_low, b_low)), min(high, max(a_high, b_high))
            pick = min if atom.kind == "min" else max
            return max(low, pick(a_low, b_low)), min(high, pick(a_high, b_high))
        return low, high

    def contradictory(self) -> bool:
        """True when nothing fulfils what is known, so that nobody gets here; False means unknown."""
        empty = any(low > high for low, high in map(self._atom_range, self._bounds))
        return empty or any(self._nonneg(known.scale(-1).shift(-1)) for known in self._known)

    def _nonneg(self, form: Linear) -> bool:
        """Proves form >= 0."""
        self._steps = _STEPS
        return self._search(form.tightened(), _DEPTH, set())

    def _search(self, form: Linear, depth: int, seen: set[object]) -> bool:
        low, high = self._range(form)
        if low >= 0:
            return True
        self._steps -= 1
        if high < 0 or depth == 0 or self._steps < 0 or form.key in seen:
            return False
        seen.add(form.key)
        number = max(form.terms)  # the latest atom: the others do not depend on it
        atom, c = self._atoms[number], form.terms[number]
        rest = form.plus(Linear({number: c}), -1)
        if atom.kind in ("min", "max"):
            split = (rest.plus(part, c).tightened() for part in atom.parts)
            if (all if (atom.kind == "min") == (c > 0) else any)(self._search(f, depth - 1, seen) for f in split):
                return True
        elif atom.kind == "select" and self._splits < _SPLITS:
            if all(inner._nonneg(rest.plus(part, c)) for inner, part in self._cases(atom)):
                return True
        elif atom.kind == "div" and self._eliminate(form, number, atom, depth, seen):
            return True
        a_low, a_high = self._atom_range(number)
        if rest.terms and self._search(rest.shift(c * (a_low if c > 0 else a_high)).tightened(), depth - 1, seen):
            return True
        return any(self._combine(form, known, number, depth, seen) for known in self._known)

    def _eliminate(self, form: Linear, number: int, atom: Atom, depth: int, seen: set[object]) -> bool:
        """By what a floor division is: c q <= a < c q + c."""
        a, c = atom.parts
        below = a.plus(Linear({number: c}), -1)
        return any(self._combine(form, known, number, depth, seen) for known in (below, below.scale(-1).shift(c - 1)))

    def _combine(self, form: Linear, known: Linear, number: int, depth: int, seen: set[object]) -> bool:
        """Removes one atom with the help of `known >= 0`."""
        c, d = form.terms[number], known.terms.get(number, 0)
        if c * d <= 0:
            return False
        g = math.gcd(c, d)
        return self._search(form.scale(abs(d) // g).plus(known, -(abs(c) // g)).tightened(), depth - 1, seen)
