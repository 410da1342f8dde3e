"""Atomic operations whose outcome does not depend on their order.

A global accumulator has one operation for the whole program and is never read; in a nest, a shared tile has one
operation and is not read there; and an iteration may do what it wants to elements that are its own.
"""

from __future__ import annotations

from tiledsl.testing.strategies.products import Products
from tiledsl.testing.strategies.rows import statement_rows
from tiledsl.testing.strategies.scope import FLOATS, INTS, NO_ATOMICS, Buf, Name, Scope

__all__ = ["Atomics"]

_BITS = ("and", "or", "xor")


class Atomics(Products):
    """Draws them. `accumulators`: global tensors, and the operation that each is for."""

    accumulators: list[tuple[Buf, str]]

    def operation(self, dtype: str, order_free: bool) -> str:
        """An operation that the dtype has. Sums of floats depend on their order."""
        rows = [r for r in statement_rows("atomic_") if "memory_order" in r.params and "return_prev" in r.params]
        names = [r.name.removeprefix("atomic_") for r in rows]
        if dtype in FLOATS:
            names = [n for n in names if n not in _BITS and not (order_free and n == "add")]
        return "add" if "add" in names and self.chance(35) else self.pick(names)

    def order_text(self) -> str:
        order = self.pick(("", "", "", "relaxed", "acq_rel", "seq_cst"))
        return order and f", memory_order='{order}'"

    def histogram(self, scope: Scope) -> None:
        """Some shared tile that the nest of this scope updates and does not read."""
        found = [
            b for b in self.tiles() if b.scope == "shared" and b.dtype not in NO_ATOMICS and b.root not in scope.targets
        ]
        if found and self.chance(20):
            b = self.pick(found)
            scope.shared = ((b, self.operation(b.dtype, True)),)
            scope.forbid |= {b.root}

    def lane_atomic(self, nest: int) -> None:
        own = [
            (b, at)
            for b, at in self.scope.targets.values()
            if b.scope in ("global", "shared") and b.dtype not in NO_ATOMICS[1:] and b in self.scope.readable(b.kind)
        ]
        everyones = [*self.accumulators, *self.scope.shared]
        if own and (not everyones or self.chance(40)):
            return self.own_atomic(*self.pick(own))
        if not everyones:
            return self.lane_store(nest)
        b, op = self.pick(everyones)
        index = [self.within(n) for n in b.extents] if b.scope == "shared" else [self.anywhere(n) for n in b.extents]
        sources = [a for a in self.scope.readable(b.kind) if a.is_input]
        if b.scope == "global" and op == "add" and sources and self.chance(60):
            a = self.pick(sources)
            self.saw("atomic vector")
            place = f"{b.name}[{', '.join(index)}]"
            self.put(f"T.atomic_addx{self.pick((2, 4))}({place}, {a.at([self.anywhere(n, 0) for n in a.extents])})")
            return
        self.saw(f"atomic {b.scope}")
        self.put(f"T.atomic_{op}({b.name}[{', '.join(index)}], {self.value(b.kind, 1)}{self.order_text()})")

    def own_atomic(self, b: Buf, fixed: tuple[str | None, ...]) -> None:
        """On an element that no other iteration touches: the old value is known, too."""
        place = b.at([self.within(n) if i is None else i for i, n in zip(fixed, b.extents, strict=True)])
        how = self.pick(("load", "store") if b.dtype == "bool" else ("update", "previous", "load", "store"))
        self.saw(f"atomic {how}")
        op = "" if b.dtype == "bool" else self.operation(b.dtype, False)
        update = f"T.atomic_{op}({place}, {self.value(b.kind, 1)}{self.order_text()}"
        if how == "update":
            self.put(f"{update})")
        elif how == "store":
            self.put(f"T.atomic_store({place}, {self.value(b.kind, 1)})")
        else:
            x = self.fresh("x")
            self.put(f"{x} = {update}, return_prev=True)" if how == "previous" else f"{x} = T.atomic_load({place})")
            self.scope.names.append(Name(x, b.dtype, 0, frozenset([b.root])))

    def atomic_tile(self, nest: int) -> None:
        """A whole tile into an accumulator, by every block."""
        b, op = self.pick(self.accumulators)
        found = [t for t in self.tiles(writable=False) if t.rank == b.rank and t.kind == b.kind]
        if found:
            self.saw("atomic tile")
            place = ", ".join(self.within(n, 0) for n in b.extents)
            self.put(f"T.atomic_{op}({b.name}[{place}], {self.pick(found).name})")

    def accumulator_dtype(self) -> str:
        return self.pick((*INTS[:5], "float32", "float16"))
