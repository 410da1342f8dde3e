"""Launching: a Plan is everything about a call that follows from the shapes of its arguments; a Launch is one call."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tiledsl import ir
from tiledsl.analysis.evaluate import evaluate
from tiledsl.backend import host_vars
from tiledsl.errors import InternalError, TileRuntimeError, TileValueError
from tiledsl.ir.buffer import describe
from tiledsl.ir.walk import walk
from tiledsl.runtime import pool, resident
from tiledsl.runtime.arguments import Bound, Signature, Slot, convert_scalar, word_maker
from tiledsl.runtime.program import Program
from tiledsl.runtime.ring import Ring, prints, room
from tiledsl.runtime.views import View, address_of, allocator, as_numpy, device_of, view

__all__ = ["Launch", "Plan"]


ADDRESS: dict[str, Callable[[Any], int]] = {
    "numpy": address_of,
    "torch": lambda x: int(x.data_ptr()),
    "cuda": lambda x: int(x.__cuda_array_interface__["data"][0] or 0),
    "dlpack": lambda x: view(x, "argument", device_of(x)).address,
}


class Plan:
    """One way of calling: the kinds, types, shapes and strides of all arguments, and the values of those scalars
    that shapes and grids depend on, are fixed. Only addresses and other scalars change from call to call."""

    def __init__(
        self,
        signature: Signature,
        bound: Bound,
        facts: frozenset[str],
        find: Callable[[Mapping[str, Any]], Program],
    ) -> None:
        self.function = signature.function
        self.find = find
        self.slots = signature.slots
        scalars = {s.param.var: v for s, v in zip(self.slots, bound.values, strict=True) if s.param.var is not None}
        self.env: dict[ir.Var, int] = {**{v: x for v, x in scalars.items() if isinstance(x, int)}, **bound.env}
        # Callers pass inputs, then outputs; None when that is the order of the parameters already.
        passed = sorted(range(len(self.slots)), key=lambda i: self.slots[i].output)
        self.order = None if passed == sorted(passed) else [passed.index(i) for i in range(len(passed))]
        inputs = [v for s, v in zip(self.slots, bound.values, strict=True) if not s.output]
        self.first = next((i for i, v in enumerate(inputs) if isinstance(v, View)), None)
        kind = "numpy" if self.first is None else inputs[self.first].kind
        self.outputs: list[Callable[[Any], Any]] = []
        self.made: list[str] = []  # outputs that have elements, and are allocated
        self.words: list[Callable[[Any], int]] = []  # per parameter: argument -> word
        self.spans: list[int] = []  # bytes from the first to behind the last element; 0 where nothing can overlap
        for slot, value in zip(self.slots, bound.values, strict=True):
            span = 0
            if isinstance(value, View):
                self.words.append(ADDRESS[value.kind])
                if 0 not in value.shape:
                    reach = sum((n - 1) * s for n, s in zip(value.shape, value.strides, strict=True)) + 1
                    span = -(-reach * slot.dtype.bits * slot.dtype.lanes // 8)
            elif slot.output and slot.buffer is not None:
                shape = tuple(int(evaluate(e, self.env)) for e in slot.buffer.shape)
                self.made += [slot.name] if 0 not in shape else []
                self.outputs.append(allocator(shape, slot.dtype, kind))
                self.words.append(ADDRESS[kind])
            elif slot.buffer is None:
                self.words.append(word_maker(slot.dtype, slot.name))
            else:
                self.words.append(lambda x: 0)
            self.spans.append(span)
        # Pairs of arguments of which one is written.
        given = [i for i, s in enumerate(self.slots) if self.spans[i]]
        self.pairs = [
            (i, j) for i in given for j in given if i < j and (self.slots[i].written or self.slots[j].written)
        ]
        if "aliased" not in facts:
            self.pairs = []
        arrays = [i for i, make in enumerate(self.words) if make in ADDRESS.values()]
        self.aligned = arrays if "aligned16" in facts else []
        self.divisible = tuple(v.name for v in self.function.symbols if self.env[v] % 16 == 0)
        self.facts = facts
        self.symbol_words = [self.env[v] for v in self.function.symbols]
        self.ready: dict[Any, Ready] = {}

    def values(self, args: Sequence[Any], outs: Sequence[Any] | None) -> list[Any]:
        """Inputs and outputs (allocated unless given) in parameter order, as they came."""
        if outs is None and self.outputs:
            like = args[self.first] if self.first is not None else None
            outs = [make(like) for make in self.outputs]
        values = [*args, *(outs or ())]
        return values if self.order is None else [values[i] for i in self.order]

    def prepare(self, values: Sequence[Any]) -> tuple[Ready, list[int]]:
        """The program for these addresses, and the argument words."""
        words = [make(value) for make, value in zip(self.words, values, strict=True)]
        spans = self.spans
        aliased = False
        for i, j in self.pairs:  # a generator would take as long as the comparisons
            aliased |= words[i] < words[j] + spans[j] and words[j] < words[i] + spans[i]
        state: Any = aliased
        if self.aligned:
            state = (aliased, *(words[i] % 16 == 0 for i in self.aligned))
        ready = self.ready.get(state)
        if ready is None:
            ready = self.ready[state] = Ready(self, self._program(aliased, words))
        return ready, words

    def _program(self, aliased: bool, words: Sequence[int]) -> Program:
        facts: dict[str, Any] = {"aliased": True} if aliased else {}
        if self.aligned:
            facts["aligned16"] = tuple(self.slots[i].name for i in self.aligned if words[i] % 16 == 0)
        if "divisible16" in self.facts:
            facts["divisible16"] = self.divisible
        return self.find(facts)


class Ready:
    """A plan together with a program: the number of blocks of each kernel and the workspaces, evaluated."""

    def __init__(self, plan: Plan, program: Program) -> None:
        self.program = program
        artifact = program.artifact
        known = [plan.env.get(v, 0) for v in host_vars(plan.function)]
        env = dict(zip(artifact.host_vars, known, strict=True))
        grids = [tuple(int(evaluate(g, env)) for g in e.grid) for e in artifact.entries]
        for grid in grids:
            if min(grid, default=0) < 0:
                raise TileValueError(f"{plan.function.name}: the grid {grid} has a negative extent", plan.function.loc)
        self.blocks = list(map(math.prod, grids))
        if plan.made and not any(self.blocks):
            raise TileValueError(
                f"{plan.function.name}: the grid {grids[0] if grids else ()} has no blocks: "
                f"nobody writes {', '.join(plan.made)}",
                plan.function.loc,
                help="let the grid cover the output (T.ceildiv, not //), or treat the empty case before the call",
            )
        self.workspaces = [(tuple(int(evaluate(n, env)) for n in w.shape), w.dtype.numpy) for w in artifact.workspaces]
        self.symbol_words = plan.symbol_words
        count = len(plan.slots) + len(plan.symbol_words) + len(self.workspaces)
        self.pack = struct.Struct(f"{count}q").pack
        self.sites = artifact.sites
        self.prints = prints(artifact.sites)
        self.room = 0 if self.prints else room(artifact.sites)  # 0: as the knob says at the call
        self.paces = [pool.Pace() for _ in artifact.entries]
        self.quick: Any = None  # of quick.py: a Quick, or False where there can be none


class Launch:
    """One call of a program (the `Call` that a Launchable receives)."""

    __slots__ = ("_slots", "args", "fresh", "function", "keep", "ready", "ring", "values")

    def __init__(
        self, slots: Sequence[Slot], ready: Ready, values: Sequence[Any], words: list[int], fresh: bool = True
    ) -> None:
        self._slots, self.ready, self.values, self.fresh = slots, ready, values, fresh
        self.function = ready.program.function
        self.keep = [np.empty(shape, dtype) for shape, dtype in ready.workspaces]
        if self.keep:
            words = [*words, *ready.symbol_words, *map(address_of, self.keep)]
        else:
            words = words + ready.symbol_words
        self.args: bytes = ready.pack(*words)
        self.ring = Ring(ready.sites, ready.room) if ready.sites else None

    @property
    def arrays(self) -> list[Any]:
        """Every parameter as a NumPy array that shares memory, or as a Python scalar; absent ones are None."""
        return [
            convert_scalar(v, s.dtype, s.name) if s.buffer is None else None if v is None else as_numpy(v, s.dtype)
            for s, v in zip(self._slots, self.values, strict=True)
        ]

    def run_grid(self, entry: int, function: Any) -> None:
        """Run all blocks of a kernel through its C function; print and raise what its debug ring says."""
        ready, ring = self.ready, self.ring
        scratch, pace = ready.program.artifact.entries[entry].scratch_bytes, ready.paces[entry]
        blocks = ready.blocks[entry]
        address = 0 if ring is None else ring.address
        printing = ready.prints
        if ready.program.artifact.entries[entry].waits:
            threads = 1 if printing else 0
            code = resident.run_resident(
                function, blocks, self.args, scratch_bytes=scratch, ring=address, threads=threads
            )
            if printing and ring is not None:
                ring.flush()
        elif ring is not None and printing:  # in block order, like the interpreter
            code = pool.run_serial(
                function, blocks, self.args, scratch_bytes=scratch, ring=ring.address, after_block=ring.flush
            )
        else:
            code = pool.run_grid(function, blocks, self.args, scratch_bytes=scratch, ring=address, pace=pace)
        if code == pool.DONE:
            return
        name = ready.program.artifact.entries[entry].symbol
        if code == pool.FAILED:
            if ring is not None:
                ring.flush()
            raise TileRuntimeError(f"a device_assert of {self.function.name} failed", self.function.loc)
        if code == pool.STUCK:
            raise TileRuntimeError(
                f"{self.function.name}: more than {resident.MOST} of {blocks} blocks wait for each other",
                self.function.loc,
                help=f"launch at most {resident.MOST} blocks, or let blocks wait only for those before them",
            )
        raise InternalError(f"{name} ended with code {code}", self.function.loc)

    def run(self, stream: Any = None) -> None:
        try:
            self.ready.program.launchable(self, stream=stream)
        except MemoryError as e:
            raise self._too_large(e) from None

    def _too_large(self, e: MemoryError) -> TileRuntimeError:
        """What to say of a launch that found no memory: it names the largest tile, the likely reason."""
        tiles = [node.buffer for node in walk(self.function) if isinstance(node, ir.Alloc)]
        sizes = {tile: math.prod(tile.const_shape or (0,)) * tile.dtype.bytes for tile in tiles}
        largest = max(tiles, key=sizes.__getitem__, default=None)
        return TileRuntimeError(
            f"{self.function.name}: there is not enough memory: {e}",
            largest and largest.loc or self.function.loc,
            (f"the largest tile is {describe(largest)}, {sizes[largest]:,} bytes",) if largest else (),
            help="make tiles smaller, or use fewer threads (TILEDSL_NUM_THREADS)",
        )
