"""Groups of threads that go their own ways: roles that wait for each other, named barriers, barriers of the grid,
blocks that wait for blocks. Also the expressions of single threads."""

from __future__ import annotations

from typing import Any

from tiledsl.testing.strategies.scope import Source

__all__ = ["Groups"]

_SIZES = ("T.get_thread_extent(0)", "T.get_block_extent(0)", "T.get_warp_group_idx()", "T.get_block_binding(0)",
          "T.get_block_bindings()[0]")  # fmt: skip


class Groups(Source):
    """n: threads of a block. values, loops: names that are known here; returned: some threads may have ended."""

    n: int
    blocks: int
    other: str

    def __init__(self, draw: Any) -> None:
        super().__init__(draw)
        self.loops: list[str] = []
        self.values: list[str] = []
        self.budget = 24
        self.long = False  # inside a loop of many rounds: no other one goes there
        self.returned = False
        self.gone = False  # all threads of a block may have returned: it comes to no barrier of the grid

    # -- expressions -----------------------------------------------------------------------------------------------

    def value(self, depth: int = 2) -> str:
        if depth == 0 or self.chance(30):
            here = ["v", "w", "u", "tid", "bx", f"{self.below(13) - 3}", *self.values, *self.loops]
            return self.pick(_SIZES) if self.chance(5) else self.pick(here)
        a, b = self.value(depth - 1), self.value(depth - 1)
        kinds = [f"({a} + {b})", f"({a} - {b})", f"({a}) * 3", f"T.min({a}, {b})", f"({a}) // {2 + self.below(3)}"]
        kinds += [f"own[({a}) % 4]", f"A[bx, ({a}) % {self.n}]", f"T.if_then_else({self.condition(0)}, {a}, {b})"]
        kinds += [f'T.cast(small[({a}) % 2, {self.below(3)}], "int32")', 'T.cast(q, "int32")', 'T.cast(f, "int32")']
        return self.pick(kinds)

    def uniform(self) -> str:
        return self.pick(["u", "bx", "2", "(u + 1)", "(bx * 3)", *self.loops])

    def condition(self, depth: int = 1) -> str:
        a = self.value(depth)
        some = (f"tid < {self.pick((1, 3, 32, 40))}", f"T.shuffle_elect({self.pick((0, 32, 64))})")
        group = self.pick(("tid == 0", *some, "tid // 32 == 1", "tid % 2 == 0", "tid >= 5", "tid > 900",
                           f"tid < 4 and {a} > 1", "tid >= 32 and tid < 64"))  # fmt: skip
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
        raise NotImplementedError

    def plain(self) -> None:
        """A statement for which no thread has to meet another one of the block."""
        raise NotImplementedError

    # -- the grid ----------------------------------------------------------------------------------------------------

    def grid(self) -> None:
        """A barrier of the grid, at times in a loop or a branch that all blocks take; behind it blocks see what others
        have put down."""
        if self.gone:
            return
        self.saw("grid barrier")
        n, outer, sync = self.fresh("x"), self.depth, f"T.{self.pick(('sync_grid', 'sync_global'))}()"
        self.put(f"{n} = {self.pick((self.value(), self.uniform(), 'C[0]', 'bx * 7'))}")
        self.values.append(n)
        how = self.below(6)
        if self.chance(20):
            self.saw("block return")
            self.put(f"if {self.pick(('C[0] > 50', 'C[1] + bx > 40'))}:")
            self.put("    T.thread_return()")
            self.returned = True
        if how in (0, 1):
            i = self.fresh("x")
            often = str(1 + self.below(3)) if self.returned else self.pick(("2", "C[0] % 4", "40"))
            self.put(f"for {i} in T.serial({often}):")
            self.depth += 1
            self.put(f"w += {n} + {i}")
        elif how == 2 and not self.returned:
            self.put("if C[1] > 20:")
            self.depth += 1
        self.put("X[bx, tid] = v")
        self.put(sync)
        self.put(f"w += X[{self.blocks - 1} - bx, {self.below(self.n)}] + {n}")
        self.put(sync)
        if self.depth > outer:
            self.values.remove(n)
        self.depth = outer

    def chain(self) -> None:
        """Each block waits for the one before it, by one of its threads."""
        if "chain" in self.counts or self.returned:
            return
        self.fresh("chain")
        self.saw("chain of blocks")
        seen = self.fresh("x")
        self.put(f"if tid == {self.pick((0, 0, self.n - 1))}:")
        self.put("    if bx > 0:")
        self.put("        while T.atomic_load(W[bx - 1]) == 0:")
        self.put("            pass")
        self.put(f"        w += {self.pick(('W[bx - 1]', 'T.atomic_load(W[bx - 1])'))}")
        self.put(f"    {seen} = {self.below(9) + 1} + bx")
        self.put(f"    T.atomic_store(W[bx], {seen})")

    # -- roles ---------------------------------------------------------------------------------------------------------

    def meet(self) -> None:
        """Barriers of some of the threads."""
        if self.n < 2 or self.returned:
            return
        self.saw("counted barrier")
        half = 1 + self.below(self.n - 1)
        if self.chance(20):
            self.put(f"T.sync_threads({1 + self.below(3)}, {self.n})")
            return
        if self.chance(30):  # some arrive, in a loop at times; all wait
            bar, rounds = self.fresh("x"), self.pick((1, 2, 20))
            who, often = self.pick((("tid % 2 == 0", -(-self.n // 2)), (f"tid < {half}", half), ("bx >= 0", self.n)))
            self.put(f"{bar} = T.alloc_barrier({often * rounds})")
            self.put(f"for {self.fresh('x')} in T.serial({rounds}):")
            self.put(f"    if {who}:")
            self.put(f"        T.barrier_arrive({bar})")
            self.put(f"T.barrier_wait({bar}, 0)")
            return
        self.put(f"if tid < {half}:")
        self.put(f"    S[tid] = {self.value()}")
        self.put(f"    T.sync_threads(1, {half})")
        self.put(f"    v = S[(tid + 1) % {half}]")
        if self.chance(60):
            self.put("else:")
            self.put(f"    S[tid] = {self.value()}")
            self.put(f"    T.sync_threads(2, {self.n - half})")
            self.put(f"    w += S[{half} + (tid + 3) % {self.n - half}]")
        self.put("T.sync_threads()")

    def roles(self) -> None:
        """Some threads fill a ring of stages, the others read it; they wait for each other. At times a third group
        reads what the second one made of it, or the groups are warp groups, or each has a branch of its own."""
        self.saw("roles")
        count = 3 if self.n > 2 and self.chance(30) else 2
        cuts = sorted(1 + self.below(self.n - 1) for _ in range(count - 1))
        wgs = self.n == 256 and self.chance(70)
        cuts = [128] if wgs else sorted(set(cuts))
        sizes = [b - a for a, b in zip((0, *cuts), (*cuts, self.n), strict=True)]
        stages, rounds = 1 + self.below(3), 1 + self.below(6)
        last = self.below(rounds) if self.chance(30) else rounds - 1
        rings = [self.ring(stages, a, b) for a, b in zip(sizes, sizes[1:], strict=False)]
        apart, start = wgs or self.chance(25), 0
        outer = self.depth
        self.put(f'rounds = T.alloc_shared(({count},), "int32")')
        self.put("T.clear(rounds)")
        turn = self.fresh("x") if self.chance(40) else ""  # each role counts for itself
        if turn:
            self.put(f'{turn} = T.alloc_var("int32", 0)')
        for k, size in enumerate(sizes):
            here = f"tid >= {start} and tid < {start + size}" if start else f"tid < {size}"
            if wgs:
                self.put(f"with T.ws({k}):")
            elif apart:
                self.put(f"if {here}:")
            elif k < len(sizes) - 1:
                self.put(f"{'if' if not k else 'elif'} tid < {start + size}:")
            else:
                self.put("else:")
            self.depth += 1
            after = k == 0 and "chain" not in self.counts and self.chance(20)
            if after:  # one of them waits for the block before this one, too
                self.fresh("chain")
                self.put("if bx > 0:")
                self.put("    while T.atomic_load(W[bx - 1]) == 0:")
                self.put("        pass")
            source, target = rings[k - 1] if k else None, rings[k] if k < len(rings) else None
            self.role(source, target, sizes, k, stages, rounds, last, turn)
            if after:
                self.put("if tid == 0:")
                self.put("    T.atomic_store(W[bx], 1)")
            self.depth = outer
            start += size
            if apart and self.chance(30):
                value = self.pick((f"bx * 2 + {k}", "T.alloc_var('int32', 5)"))
                self.put(f"{self.fresh('x')} = {value}")

    def ring(self, stages: int, filling: int, reading: int) -> dict[str, str]:
        ring, full, empty = (self.fresh("x") for _ in range(3))
        self.put(f'{ring} = T.alloc_shared(({stages}, {self.n}), "int32")')
        if self.chance(25) and "list" not in self.counts:
            self.fresh("list")
            counts = [filling] * stages + [reading] * stages
            self.put(f"T.create_list_of_mbarrier({', '.join(map(str, counts))})")
            return {"ring": ring, "full": "T.get_mbarrier({s})", "empty": f"T.get_mbarrier({stages} + {{s}})"}
        self.put(f"{full} = T.alloc_barrier([{filling}] * {stages})")
        self.put(f"{empty} = T.alloc_barrier([{reading}] * {stages})")
        return {"ring": ring, "full": f"{full}[{{s}}]", "empty": f"{empty}[{{s}}]"}

    def role(
        self, source: dict[str, str] | None, target: dict[str, str] | None, sizes: list[int], k: int, stages: int,
        rounds: int, last: int, turn: str,
    ) -> None:  # fmt: skip
        """The loop of one group: takes from its source, gives to its target. last: the round after which all leave;
        turn: a variable that counts the rounds."""
        arrive = self.pick(("barrier_arrive", "mbarrier_arrive", "ptx_arrive_barrier"))
        wait = self.pick(("barrier_wait", "mbarrier_wait_parity"))
        i, start, counted = self.fresh("x"), sum(sizes[: k - 1]), self.chance(25)
        if counted:  # the rounds are counted in shared memory, by the first of the group
            i = f"rounds[{k}]"
            self.put(f"while {i} <= {last}:")
        else:
            self.put(f"for {i} in T.serial({rounds}):")
        stage, parity = f"{turn or i} % {stages}", f"({turn or i} // {stages}) & 1"
        self.depth += 1
        self.loops.append(i)
        if source:
            self.put(f"T.{wait}({source['full'].format(s=stage)}, {parity})")
            if self.chance(20):  # once more: it is complete already
                self.put(f"if {self.pick(('bx % 2 == 0', f'{i} > 1'))}:")
                self.put(f"    T.{wait}({source['full'].format(s=stage)}, {parity})")
            self.put(f"w += {source['ring']}[{stage}, {start} + (tid + {self.below(10)}) % {sizes[k - 1]}]")
            self.put(f"T.{arrive}({source['empty'].format(s=stage)})")
        if target:
            full = target["full"].format(s=stage)
            self.put(f"T.{wait}({target['empty'].format(s=stage)}, ({parity}) ^ 1)")
            self.put(f"{target['ring']}[{stage}, tid] = {self.pick((self.value(), 'w'))}")
            if self.chance(30):
                self.put(f"T.mbarrier_expect_tx({full}, 4)")
            self.put(f"T.ptx_arrive_barrier_expect_tx({full}, 4)" if self.chance(20) else f"T.{arrive}({full})")
        if turn:
            self.put(f"{turn} += 1")
        if not counted and last < rounds - 1:
            self.put(f"if {i} >= {last}:")
            self.put("    break")
        elif not counted and self.chance(30):
            self.put(f"if {i} % 2 == 1:")
            self.put("    continue")
        self.plain()
        if counted:
            sync = f"T.sync_threads({4 + k}, {sizes[k]})"
            self.put(sync)
            self.put(f"if tid == {sum(sizes[:k])}:")
            self.put(f"    {i} += 1")
            self.put(sync)
        self.loops.pop()
        self.depth -= 1
