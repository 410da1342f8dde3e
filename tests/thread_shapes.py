"""Random thread-level kernels of all shapes of control flow, as text: races aside, everything the threads can do."""

from __future__ import annotations

import math
from random import Random
from typing import Any

HEAD = """
import tiledsl.language as T

@T.prim_func
def main(A: T.Tensor(({blocks}, {n}), "int32"), O: T.Tensor(({blocks}, 5, {n}), "int32"),
         X: T.Tensor(({blocks}, {n}), "int32"),
         G: T.Tensor(({blocks}, {n}), "{real}"), H: T.Tensor(({blocks}, 8), "int32")):
    with T.Kernel({blocks}, threads={threads}) as bx:
        tid = T.get_warp_idx() * 32 + T.get_lane_idx()
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
TAIL = """
        T.sync_threads()
        O[bx, 0, tid] = v
        O[bx, 1, tid] = w
        O[bx, 2, tid] = u
        O[bx, 3, tid] = own[0] + own[1] * 3 + own[2] * 5 + own[3] * 7
        O[bx, 4, tid] = S[tid] + R[tid]
        G[bx, tid] = f
        T.sync_threads()
        T.copy(hist, H[bx, 0:8])
"""
SHUFFLES = ("T.shfl_sync({}, {})", "T.shfl_up({}, {}, width=8)", "T.shfl_down({}, {})", "T.shfl_xor({}, {}, width=16)")
GATHERED = ("any_sync", "all_sync")
REDUCED = ("sum", "max", "min", "bitand", "bitor", "bitxor")


class Program:
    """One random kernel. r: the source of all choices; threads: of a block."""

    def __init__(self, r: Random, threads: Any, real: str = "float32", blocks: int = 2) -> None:
        self.r, self.threads, self.blocks, self.real = r, threads, blocks, real
        self.n = math.prod(threads) if isinstance(threads, tuple) else threads
        self.lines: list[str] = []
        self.names = 0
        self.loops: list[str] = []
        self.scope: list[str] = []  # values that are known here
        self.budget = 24
        self.returned = False  # some threads may have ended

    def text(self) -> str:
        head = {"n": self.n, "threads": self.threads, "blocks": self.blocks, "real": self.real}
        self.block(2, self.r.randint(3, 7))
        return HEAD.format(**head) + "\n".join(self.lines) + TAIL

    def line(self, depth: int, text: str) -> None:
        self.lines.append("    " * depth + text)

    def name(self) -> str:
        self.names += 1
        return f"x{self.names}"

    # -- expressions ---------------------------------------------------------------------------------------

    def value(self, depth: int = 2) -> str:
        r = self.r
        if depth == 0 or r.random() < 0.3:
            return r.choice(["v", "w", "u", "tid", "bx", f"{r.randint(-3, 9)}", *self.scope, *self.loops])
        a, b = self.value(depth - 1), self.value(depth - 1)
        kinds = [f"({a} + {b})", f"({a} - {b})", f"({a}) * 3", f"T.min({a}, {b})", f"({a}) // {r.randint(2, 4)}"]
        kinds += [f"own[({a}) % 4]", f"A[bx, ({a}) % {self.n}]", f"T.if_then_else({self.condition(0)}, {a}, {b})"]
        return r.choice(kinds)

    def uniform(self) -> str:
        return self.r.choice(["u", "bx", "2", "(u + 1)", "(bx * 3)", *self.loops])

    def condition(self, depth: int = 1) -> str:
        r = self.r
        a = self.value(depth)
        group = r.choice(
            [f"tid < {r.choice([1, 3, 32, 40])}", "tid == 0", "tid // 32 == 1", "tid % 2 == 0", "tid >= 5"]
        )
        return r.choice([f"{a} % {r.randint(2, 4)} == 0", f"{a} > {r.randint(-2, 20)}", group, f"{self.uniform()} < 2"])

    # -- statements ------------------------------------------------------------------------------------------

    def block(self, depth: int, count: int) -> None:
        known = len(self.scope)
        before = len(self.lines)
        for _ in range(count):
            self.budget -= 1
            if self.budget > 0:
                self.statement(depth)
        if len(self.lines) == before:
            self.line(depth, "v += 1")
        del self.scope[known:]

    def statement(self, depth: int) -> None:
        r = self.r
        kinds = [self.assign, self.assign, self.let, self.exchange, self.reduction, self.shared, self.count]
        if depth < 5:
            kinds += [self.branch, self.branch, self.loop, self.loop, self.rounds]
        if depth == 2:
            kinds += [self.tile, self.grid, *([] if self.n < 2 or self.returned else [self.roles])]
        r.choice(kinds)(depth)

    def assign(self, depth: int) -> None:
        r, e = self.r, self.value()
        options = [f"v = {e}", f"v += {e}", f"w = {e}", f"own[({self.value(1)}) % 4] = {e}", f"u = {self.uniform()}"]
        options += [f'f = f * 0.5 + T.cast({e}, "{self.real}")', f"R[tid] = R[tid] + {e}"]
        self.line(depth, r.choice(options))

    def let(self, depth: int) -> None:
        name = self.name()
        self.line(depth, f"{name} = {self.value()}")
        self.scope.append(name)

    def exchange(self, depth: int) -> None:
        r = self.r
        e, c, lane = self.value(), self.condition(), r.choice([str(r.randint(0, 17)), self.value(1), self.uniform()])
        text = r.choice(
            [r.choice(SHUFFLES).format(e, lane)] * 3
            + [f"T.{r.choice(GATHERED)}({c})", f'T.cast(T.ballot({c}), "int32")']
            + [f'T.cast(T.match_any_sync(({e}) % 3), "int32")', f'T.cast(T.match_all_sync(({e}) % 2), "int32")']
            + ['T.cast(T.activemask(), "int32")']
        )
        self.line(depth, f"{r.choice(['v', 'w'])} {r.choice(['=', '+='])} {text}")

    def reduction(self, depth: int) -> None:
        if self.r.random() < 0.3:
            self.line(depth, f"f = T.warp_reduce_{self.r.choice(('sum', 'max', 'min'))}(f + {self.r.randint(0, 3)})")
        else:
            self.line(depth, f"w = T.warp_reduce_{self.r.choice(REDUCED)}({self.value()})")

    def shared(self, depth: int) -> None:
        r = self.r
        if r.random() < 0.3:
            self.line(depth, f"T.atomic_add(hist[({self.value()} + tid) % 8], {self.value(1)})")
            return
        e = self.value()
        self.line(depth, "T.sync_threads()")
        self.line(depth, f"S[tid] = {e}")
        self.line(depth, "T.sync_threads()")
        self.line(depth, f"v = S[(tid + {r.randint(0, 40)}) % {self.n}]")
        self.line(depth, "T.sync_threads()")

    def count(self, depth: int) -> None:
        r, c = self.r, self.condition()
        self.line(depth, f"{r.choice(['v', 'w'])} += T.syncthreads_{r.choice(('count', 'or', 'and'))}({c})")

    def branch(self, depth: int) -> None:
        self.line(depth, f"if {self.condition()}:")
        self.block(depth + 1, self.r.randint(1, 3))
        if self.r.random() < 0.4:
            self.line(depth, "else:")
            self.block(depth + 1, self.r.randint(1, 2))
        elif self.r.random() < 0.1:
            self.line(depth, f"if {self.condition()}:")
            self.line(depth + 1, "T.thread_return()")
            self.returned = True

    def loop(self, depth: int) -> None:
        r, i = self.r, self.name()
        often = r.choice(["3", "2", f"({self.uniform()}) % 4", f"({self.value(1)}) % 5"])
        kind = r.choice(["serial", "serial", "unroll"])
        self.line(depth, f"for {i} in T.{kind}({often}):")
        self.loops.append(i)
        self.inside(depth + 1)
        self.loops.pop()

    def rounds(self, depth: int) -> None:
        n = self.name()
        self.line(depth, f'{n} = T.alloc_var("int32", ({self.r.choice([self.value(1), self.uniform()])}) % 4)')
        self.line(depth, f"while {n} > 0:")
        self.line(depth + 1, f"{n} -= 1")
        self.inside(depth + 1)

    def inside(self, depth: int) -> None:
        """The body of a loop, left early at times."""
        if self.r.random() < 0.4:
            self.line(depth, f"if {self.condition()}:")
            self.block(depth + 1, self.r.randint(0, 1))
            self.line(depth + 1, self.r.choice(["break", "continue"]))
        self.block(depth, self.r.randint(1, 3))

    def tile(self, depth: int) -> None:
        i, name = self.name(), self.name()
        self.line(depth, "T.sync_threads()")
        self.line(depth, f'{name} = T.alloc_fragment(({self.n},), "int32")')
        self.line(depth, f"T.copy(S, {name})")
        self.line(depth, f"for {i} in T.Parallel({self.n}):")
        self.line(depth + 1, f"S[{i}] = {name}[{self.n - 1} - {i}] + {self.r.choice(['v', 'u', '1', 'tid'])}")

    def grid(self, depth: int) -> None:
        """A barrier of the grid, at times in a loop; behind it blocks see what others have put down."""
        n, where = self.name(), self.r.randint(0, self.n - 1)
        self.line(depth, f"{n} = {self.value()}")
        self.scope.append(n)
        if self.r.random() < 0.4:
            i = self.name()
            self.line(depth, f"for {i} in T.serial({self.r.randint(1, 3)}):")
            self.line(depth + 1, f"w += {n} + {i}")
            depth += 1
        self.line(depth, "X[bx, tid] = v")
        self.line(depth, "T.sync_grid()")
        self.line(depth, f"w += X[1 - bx, {where}]")
        self.line(depth, "T.sync_grid()")

    def roles(self, depth: int) -> None:
        """Some threads fill a ring of stages, the others read it; they wait for each other."""
        r, half, stages, rounds = self.r, self.r.randint(1, self.n - 1), self.r.randint(1, 3), self.r.randint(1, 6)
        ring, full, empty, i = (self.name() for _ in range(4))
        self.line(depth, f'{ring} = T.alloc_shared(({stages}, {self.n}), "int32")')
        self.line(depth, f"{full} = T.alloc_barrier([{half}] * {stages})")
        self.line(depth, f"{empty} = T.alloc_barrier([{self.n - half}] * {stages})")
        stage, parity = f"{i} % {stages}", f"({i} // {stages}) & 1"
        for side in (0, 1):
            self.line(depth, "else:" if side else f"if tid < {half}:")
            self.line(depth + 1, f"for {i} in T.serial({rounds}):")
            self.loops.append(i)
            if side:
                self.line(depth + 2, f"T.barrier_wait({full}[{stage}], {parity})")
                self.line(depth + 2, f"w += {ring}[{stage}, (tid + {r.randint(0, 9)}) % {half}]")
                self.line(depth + 2, f"T.barrier_arrive({empty}[{stage}])")
            else:
                self.line(depth + 2, f"T.barrier_wait({empty}[{stage}], ({parity}) ^ 1)")
                self.line(depth + 2, f"{ring}[{stage}, tid] = {self.value()}")
                self.line(depth + 2, f"T.barrier_arrive({full}[{stage}])")
            r.choice([self.assign, self.exchange, self.reduction])(depth + 2)
            self.loops.pop()
