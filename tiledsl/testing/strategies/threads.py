"""Kernels of single threads: divergent control flow, exchanges within warps, barriers of the block and of the grid,
groups of threads that wait for each other, atomics, and tile operations in between.

Each thread writes its own elements, and reads others' behind barriers. Shuffles ask for any lane, also for one that is
not there.
"""

from __future__ import annotations

import math
from typing import Any

from tiledsl.testing.strategies.program import Argument, Program
from tiledsl.testing.strategies.scope import Source

__all__ = ["BLOCKS", "Threads"]

# Threads of a block.
BLOCKS: tuple[int | tuple[int, ...], ...] = (32, 7, 1, 33, 64, 96, 128, (8, 4), (16, 2, 3))

_HEAD = """
import tiledsl
import tiledsl.language as T

@T.prim_func
def main(A: T.Tensor(({blocks}, {n}), "int32"), O: T.Tensor(({blocks}, 5, {n}), "int32"),
         X: T.Tensor(({blocks}, {n}), "int32"),
         G: T.Tensor(({blocks}, {n}), "{real}"), H: T.Tensor(({blocks}, 8), "int32")):
    with T.Kernel({blocks}, threads={threads}) as bx:
        tid = {tid}
        S = T.alloc_shared(({n},), "int32")
        R = T.alloc_shared(({n},), "int32")
        hist = T.alloc_shared((8,), "int32")
        own = T.alloc_local((4,), "int32")
        v = T.alloc_var("int32")
        w = T.alloc_var("int32", 3)
        u = T.alloc_var("int32", 1)
        f = T.alloc_var("{real}", 0.5)
        T.clear(hist)
        v = A[bx, tid]
        for j in T.serial(4):
            own[j] = v + j
        S[tid] = v
        R[tid] = tid
        T.sync_threads()
"""
_TAIL = """
        T.sync_threads()
        O[bx, 0, tid] = v
        O[bx, 1, tid] = w
        O[bx, 2, tid] = u
        O[bx, 3, tid] = own[0] + own[1] * 3 + own[2] * 5 + own[3] * 7
        O[bx, 4, tid] = S[tid] + R[tid]
        G[bx, tid] = f
        T.sync_threads()
        T.copy(hist, H[bx, 0:8])

kernel = tiledsl.compile(main)
"""
_SHUFFLES = ("T.shfl_sync({}, {})", "T.shfl_up({}, {}, width=8)", "T.shfl_down({}, {})", "T.shfl_xor({}, {}, width=16)")
_WORDS = ("T.ballot({c})", "T.ballot_sync({c})", "T.match_any_sync(({e}) % 3)", "T.match_all_sync(({e}) % 2)",
          "T.activemask()")  # fmt: skip
_REDUCED = ("sum", "max", "min", "bitand", "bitor", "bitxor")
_NUMBERS = ("T.get_warp_idx() * 32 + T.get_lane_idx()", "T.get_warp_idx_sync() * 32 + T.get_lane_idx()")
_BINDINGS = ("T.get_thread_binding(0)", "T.get_thread_bindings()[0]", 'T.launch_thread("threadIdx.x", {n})')
_SIZES = ("T.get_thread_extent(0)", "T.get_block_extent(0)", "T.get_warp_group_idx()", "T.get_block_binding(0)",
          "T.get_block_bindings()[0]")  # fmt: skip


class Threads(Source):
    """Draws one. threads: of a block; real: the dtype of its float variable."""

    blocks = 2

    def __init__(self, draw: Any, threads: int | tuple[int, ...] | None = None, real: str = "") -> None:
        super().__init__(draw)
        self.threads = self.pick(BLOCKS) if threads is None else threads
        self.real = real or self.pick(("float32", "float32", "float16", "float64"))
        self.n = math.prod(self.threads) if isinstance(self.threads, tuple) else self.threads
        self.loops: list[str] = []
        self.values: list[str] = []  # names that are known here
        self.budget = 24
        self.returned = False  # some threads may have ended

    def program(self) -> Program:
        numbers = _NUMBERS if isinstance(self.threads, tuple) else (*_NUMBERS, *_BINDINGS)
        tid = self.pick(numbers).format(n=self.n)
        self.block(3 + self.below(5))
        known = {"n": self.n, "threads": self.threads, "blocks": self.blocks, "real": self.real, "tid": tid}
        self.saw("threads")
        shapes = {"A": (self.n,), "O": (5, self.n), "X": (self.n,), "G": (self.n,), "H": (8,)}
        dtypes, values = {"G": self.real}, {"A": "index"}
        arguments = tuple(
            Argument(x, dtypes.get(x, "int32"), (self.blocks, *shape), values.get(x, "small"))
            for x, shape in shapes.items()
        )
        source = _HEAD.format(**known).lstrip() + "\n".join(self.lines) + _TAIL
        return Program(source, arguments, frozenset(self.features))

    # -- expressions -----------------------------------------------------------------------------------------------

    def value(self, depth: int = 2) -> str:
        if depth == 0 or self.chance(30):
            here = ["v", "w", "u", "tid", "bx", f"{self.below(13) - 3}", *self.values, *self.loops]
            return self.pick(_SIZES) if self.chance(5) else self.pick(here)
        a, b = self.value(depth - 1), self.value(depth - 1)
        kinds = [f"({a} + {b})", f"({a} - {b})", f"({a}) * 3", f"T.min({a}, {b})", f"({a}) // {2 + self.below(3)}"]
        kinds += [f"own[({a}) % 4]", f"A[bx, ({a}) % {self.n}]", f"T.if_then_else({self.condition(0)}, {a}, {b})"]
        return self.pick(kinds)

    def uniform(self) -> str:
        return self.pick(["u", "bx", "2", "(u + 1)", "(bx * 3)", *self.loops])

    def condition(self, depth: int = 1) -> str:
        a = self.value(depth)
        some = (f"tid < {self.pick((1, 3, 32, 40))}", f"T.shuffle_elect({self.pick((0, 32, 64))})")
        group = self.pick(("tid == 0", *some, "tid // 32 == 1", "tid % 2 == 0", "tid >= 5"))
        each = (f"{a} % {2 + self.below(3)} == 0", f"{a} > {self.below(23) - 2}")
        return self.pick((*each, group, f"{self.uniform()} < 2"))

    # -- statements ------------------------------------------------------------------------------------------------

    def block(self, count: int) -> None:
        """Statements one level deeper, at least one."""
        known, before = len(self.values), len(self.lines)
        for _ in range(count):
            self.budget -= 1
            if self.budget > 0:
                self.statement()
        if len(self.lines) == before:
            self.put("v += 1")
        del self.values[known:]

    def inner(self, count: int) -> None:
        self.depth += 1
        self.block(count)
        self.depth -= 1

    def statement(self) -> None:
        kinds = [self.assign, self.assign, self.let, self.exchange, self.reduction, self.shared, self.count]
        if self.depth < 5:
            kinds += [self.branch, self.branch, self.loop, self.loop, self.rounds]
        if self.depth == 2:
            kinds += [self.tile, self.allreduce, self.grid, *([] if self.n < 2 or self.returned else [self.roles])]
        self.pick(kinds)()

    def assign(self) -> None:
        e = self.value()
        options = [f"v = {e}", f"v += {e}", f"w = {e}", f"own[({self.value(1)}) % 4] = {e}", f"u = {self.uniform()}"]
        options += [f'f = f * 0.5 + T.cast({e}, "{self.real}")', f"R[tid] = R[tid] + {e}"]
        self.put(self.pick(options))

    def let(self) -> None:
        name = self.fresh("x")
        self.put(f"{name} = {self.value()}")
        self.values.append(name)

    def exchange(self) -> None:
        """A value of another lane, or bits of all lanes."""
        self.saw("exchange")
        e, c, lane = self.value(), self.condition(), self.pick((str(self.below(18)), self.value(1), self.uniform()))
        kind = self.below(7)
        text = f"T.{self.pick(('any_sync', 'all_sync'))}({c})"
        if kind > 3:
            text = self.pick(_SHUFFLES).format(e, lane)
        elif kind > 0:
            text = f'T.cast({self.pick(_WORDS).format(c=c, e=e)}, "int32")'
        if self.chance(10):
            self.put("T.sync_warp()")
        self.put(f"{self.pick(('v', 'w'))} {self.pick(('=', '+='))} {text}")

    def reduction(self) -> None:
        if self.chance(30):
            self.put(f"f = T.warp_reduce_{self.pick(_REDUCED[:3])}(f + {self.below(4)})")
        else:
            self.put(f"w = T.warp_reduce_{self.pick(_REDUCED)}({self.value()})")

    def allreduce(self) -> None:
        """A reduction over all threads of the block along x."""
        self.saw("allreduce")
        total = self.fresh("total")
        self.put(f'{total} = T.alloc_local((1,), "int32")')
        self.put('with T.attr(T.comm_reducer(lambda x, y: x + y, [T.int32(0)]), "reduce_scope", 0):')
        self.put(f"    T.tvm_thread_allreduce(T.uint32(1), {self.value()}, True, {total}[0], T.get_thread_binding(0))")
        self.put(f"w += {total}[0]")

    def shared(self) -> None:
        if self.chance(30):
            self.put(f"T.atomic_add(hist[({self.value()} + tid) % 8], {self.value(1)})")
            return
        e = self.value()
        self.put("T.sync_threads()")
        self.put(f"S[tid] = {e}")
        self.put("T.sync_threads()")
        self.put(f"v = S[(tid + {self.below(41)}) % {self.n}]")
        self.put("T.sync_threads()")

    def count(self) -> None:
        op = self.pick(("count", "or", "and"))
        self.put(f"{self.pick(('v', 'w'))} += T.syncthreads_{op}({self.condition()})")

    def branch(self) -> None:
        self.saw("thread branch")
        self.put(f"if {self.condition()}:")
        self.inner(1 + self.below(3))
        if self.chance(40):
            self.put("else:")
            self.inner(1 + self.below(2))
        elif self.chance(30):
            self.saw("thread return")
            self.put(f"if {self.condition()}:")
            self.put("    T.thread_return()")
            self.returned = True

    def loop(self) -> None:
        i = self.fresh("x")
        often = self.pick(("3", "2", f"({self.uniform()}) % 4", f"({self.value(1)}) % 5"))
        self.put(f"for {i} in T.{self.pick(('serial', 'serial', 'unroll'))}({often}):")
        self.loops.append(i)
        self.body()
        self.loops.pop()

    def rounds(self) -> None:
        n = self.fresh("x")
        self.put(f'{n} = T.alloc_var("int32", ({self.pick((self.value(1), self.uniform()))}) % 4)')
        self.put(f"while {n} > 0:")
        self.put(f"    {n} -= 1")
        self.body()

    def body(self) -> None:
        """The body of a loop, left early at times."""
        self.depth += 1
        if self.chance(40):
            self.saw("thread exit")
            self.put(f"if {self.condition()}:")
            if self.chance(50):
                self.inner(1)
            self.put(f"    {self.pick(('break', 'continue'))}")
        self.block(1 + self.below(3))
        self.depth -= 1

    # -- the block and the grid together ---------------------------------------------------------------------------

    def tile(self) -> None:
        i, name = self.fresh("x"), self.fresh("x")
        self.put("T.sync_threads()")
        self.put(f'{name} = T.alloc_fragment(({self.n},), "int32")')
        self.put(f"T.copy(S, {name})")
        self.put(f"for {i} in T.Parallel({self.n}):")
        self.put(f"    S[{i}] = {name}[{self.n - 1} - {i}] + {self.pick(('v', 'u', '1', 'tid'))}")

    def grid(self) -> None:
        """A barrier of the grid, at times in a loop; behind it blocks see what others have put down."""
        self.saw("grid barrier")
        n, outer, sync = self.fresh("x"), self.depth, f"T.{self.pick(('sync_grid', 'sync_global'))}()"
        self.put(f"{n} = {self.value()}")
        self.values.append(n)
        if self.chance(40):
            i = self.fresh("x")
            self.put(f"for {i} in T.serial({1 + self.below(3)}):")
            self.put(f"    w += {n} + {i}")
            self.depth += 1
        self.put("X[bx, tid] = v")
        self.put(sync)
        self.put(f"w += X[{self.blocks - 1} - bx, {self.below(self.n)}]")
        self.put(sync)
        self.depth = outer

    def roles(self) -> None:
        """Some threads fill a ring of stages, the others read it; they wait for each other."""
        self.saw("roles")
        half, stages, rounds = 1 + self.below(self.n - 1), 1 + self.below(3), 1 + self.below(6)
        ring, full, empty, i = (self.fresh("x") for _ in range(4))
        arrive = self.pick(("barrier_arrive", "mbarrier_arrive", "ptx_arrive_barrier"))
        wait = self.pick(("barrier_wait", "mbarrier_wait_parity"))
        self.put(f'{ring} = T.alloc_shared(({stages}, {self.n}), "int32")')
        stage, parity = f"{i} % {stages}", f"({i} // {stages}) & 1"
        here = {"full": f"{full}[{stage}]", "empty": f"{empty}[{stage}]"}
        if self.chance(25) and "list" not in self.counts:
            self.fresh("list")
            here = {"full": f"T.get_mbarrier({stage})", "empty": f"T.get_mbarrier({stages} + {stage})"}
            counts = [half] * stages + [self.n - half] * stages
            self.put(f"T.create_list_of_mbarrier({', '.join(map(str, counts))})")
        else:
            self.put(f"{full} = T.alloc_barrier([{half}] * {stages})")
            self.put(f"{empty} = T.alloc_barrier([{self.n - half}] * {stages})")
        for side in (0, 1):
            self.put("else:" if side else f"if tid < {half}:")
            self.put(f"    for {i} in T.serial({rounds}):")
            self.depth += 2
            self.loops.append(i)
            if side:
                self.put(f"T.{wait}({here['full']}, {parity})")
                self.put(f"w += {ring}[{stage}, (tid + {self.below(10)}) % {half}]")
                self.put(f"T.{arrive}({here['empty']})")
            else:
                self.put(f"T.{wait}({here['empty']}, ({parity}) ^ 1)")
                self.put(f"{ring}[{stage}, tid] = {self.value()}")
                if self.chance(30):
                    self.put(f"T.mbarrier_expect_tx({here['full']}, 4)")
                if self.chance(20):
                    self.put(f"T.ptx_arrive_barrier_expect_tx({here['full']}, 4)")
                else:
                    self.put(f"T.{arrive}({here['full']})")
            self.pick((self.assign, self.exchange, self.reduction))()
            self.loops.pop()
            self.depth -= 2
