"""Kernels of single threads: divergent control flow, exchanges within warps and blocks, each thread's own arrays and
tile operations on them, atomics, and operations of the whole block in between.

Each thread writes its own elements, and reads others' behind barriers. Shuffles ask for any lane, also for one that is
not there.
"""

from __future__ import annotations

import math
from typing import Any

from tiledsl.testing.strategies.groups import Groups
from tiledsl.testing.strategies.program import Argument, Program
from tiledsl.testing.strategies.rows import statement_rows
from tiledsl.testing.strategies.scope import FLOATS

__all__ = ["BLOCKS", "Threads"]

# Threads of a block.
BLOCKS: tuple[int | tuple[int, ...], ...] = (
    32,
    7,
    1,
    33,
    40,
    64,
    32,
    8,
    (8, 4),
    (16, 2, 3),
    (3, 2),
    (4, 16),
    (40, 2),
    33,
    96,
    256,
)

_HEAD = """
import tiledsl
import tiledsl.language as T

@T.prim_func
def main(A: T.Tensor(({blocks}, {n}), "int32"), O: T.Tensor(({blocks}, 5, {n}), "int32"),
         X: T.Tensor(({blocks}, {n}), "int32"), W: T.Tensor(({blocks},), "int32"), C: T.Tensor((2,), "int32"),
         G: T.Tensor(({blocks}, {n}), "{real}"), Q: T.Tensor(({blocks}, 5, {n}), "{other}"),
         H: T.Tensor(({blocks}, 8), "int32")):
    with T.Kernel({blocks}, threads={threads}) as bx:
        tid = {tid}
        S = T.alloc_shared(({n},), "int32")
        R = T.alloc_shared(({n},), "int32")
        hist = T.alloc_shared((8,), "int32")
        own = T.alloc_local((4,), "int32")
        small = T.alloc_local((2, 3), "{other}")
        v = T.alloc_var("int32")
        w = T.alloc_var("int32", 3)
        u = T.alloc_var("int32", 1)
        f = T.alloc_var("{real}", 0.5)
        q = T.alloc_var("{other}", 1)
        T.clear(hist)
        T.clear(small)
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
        for j in T.serial(4):
            Q[bx, j, tid] = small[j // 3, j % 3]
        Q[bx, 4, tid] = q
        T.sync_threads()
        T.copy(hist, H[bx, 0:8])

kernel = tiledsl.compile(main)
"""
_OTHERS = ("int64", "uint8", "uint32", "float16", "int16", "float64", "bfloat16", "float32", "uint64")
_SHUFFLES = ("T.shfl_sync({}, {}{m})", "T.shfl_up({}, {}, width=8{m})", "T.shfl_down({}, {}{m})",
             "T.shfl_xor({}, {}, width=16{m})", "T.shfl_xor({}, {}{m})")  # fmt: skip
_WORDS = ("T.ballot({c})", "T.ballot_sync({c}{m})", "T.match_any_sync(({e}) % 3{m})", "T.match_all_sync(({e}) % 2{m})",
          "T.match_any_sync(f)", "T.match_all_sync(q)", "T.activemask()")  # fmt: skip
_MASKS = ("T.ballot(v > 3)", "0x0F0F0F0F", "0xFFFFFFFF", "T.cast(w, 'uint32')")
_LOOKS = ("T.assume(tid >= 0)", "T.assume(bx >= 0)", "T.device_assert(tid >= 0, 'never')",
          "assert f == f or v < 0 or v >= 0", "T.print(v)",
          "T.print(own[1])", "T.print(own)", "T.print(bx, 'block')")  # fmt: skip
_REDUCED = ("sum", "max", "min", "bitand", "bitor", "bitxor")
_COMBINED = ("x + y", "T.max(x, y)", "T.min(x, y)")
_NUMBERS = ("T.get_warp_idx() * 32 + T.get_lane_idx()", "T.get_warp_idx_sync() * 32 + T.get_lane_idx()")
_BINDINGS = ("T.get_thread_binding(0)", "T.get_thread_bindings()[0]", 'T.launch_thread("threadIdx.x", {n})')


class Threads(Groups):
    """Draws one. threads: of a block; real: the dtype of its float variable."""

    def __init__(self, draw: Any, threads: int | tuple[int, ...] | None = None, real: str = "") -> None:
        super().__init__(draw)
        self.threads = self.pick(BLOCKS) if threads is None else threads
        self.real = real or self.pick(("float32", "float32", "float16", "float64"))
        self.other = self.pick(_OTHERS)
        self.n = math.prod(self.threads) if isinstance(self.threads, tuple) else self.threads
        self.blocks = self.pick((2, 3, 1))

    def program(self) -> Program:
        numbers = _NUMBERS if isinstance(self.threads, tuple) else (*_NUMBERS, *_BINDINGS)
        tid = self.pick(numbers).format(n=self.n)
        self.block(3 + self.below(6))
        known = {"n": self.n, "threads": self.threads, "blocks": self.blocks, "real": self.real, "other": self.other}
        self.saw("threads")
        b, n = self.blocks, self.n
        values = {"A": "index", "W": "zero", "C": "index"}
        arguments = tuple(
            Argument(x, dtype, shape, values.get(x, "small"))
            for x, dtype, shape in (
                ("A", "int32", (b, n)),
                ("O", "int32", (b, 5, n)),
                ("X", "int32", (b, n)),
                ("W", "int32", (b,)),
                ("C", "int32", (2,)),
                ("G", self.real, (b, n)),
                ("Q", self.other, (b, 5, n)),
                ("H", "int32", (b, 8)),
            )  # fmt: skip
        )
        source = _HEAD.format(tid=tid, **known).lstrip() + "\n".join(self.lines) + _TAIL
        return Program(source, arguments, frozenset(self.features))

    # -- statements ------------------------------------------------------------------------------------------------

    def statement(self) -> None:
        kinds = [self.assign, self.assign, self.let, self.exchange, self.reduction, self.shared, self.count]
        kinds += [self.array, self.look, self.temporary]
        if self.depth < 5:
            kinds += [self.branch, self.branch, self.loop, self.loop, self.rounds]
        if self.depth == 2:
            kinds += [self.tile, self.allreduce, self.grid, self.grid, self.reducer, self.shares, self.chain]
            kinds += [self.meet, *([] if self.n < 2 or self.returned else [self.roles, self.roles])]
        self.pick(kinds)()

    def assign(self) -> None:
        e = self.value()
        options = [f"v = {e}", f"v += {e}", f"w = {e}", f"own[({self.value(1)}) % 4] = {e}", f"u = {self.uniform()}"]
        options += [f'f = f * 0.5 + T.cast({e}, "{self.real}")', f"R[tid] = R[tid] + {e}"]
        options += [f'q = q + T.cast({e}, "{self.other}")', f'q = T.cast(f, "{self.other}")']
        options += [f'small[({e}) % 2, {self.below(3)}] = q - T.cast(v, "{self.other}")']
        self.put(self.pick(options))

    def let(self) -> None:
        name, value = self.fresh("x"), self.value()
        if self.chance(20):  # the old value of an element that no other thread touches
            place = self.pick(("R[tid]", "O[bx, 4, tid]"))
            value = self.much()
            value = f"T.atomic_{self.pick(('add', 'max', 'xor'))}({place}, {value}, return_prev=True)"
        self.put(f"{name} = {value}")
        self.values.append(name)

    def much(self) -> str:
        """A value, at times one beside which an atomic is cheap."""
        return " + ".join(self.value() for _ in range(self.pick((1, 1, 12))))

    def plain(self) -> None:
        self.pick((self.assign, self.exchange, self.reduction, self.array, self.unset))()

    def unset(self) -> None:
        name = self.fresh("x")
        self.put(f"{name} = T.alloc_var('int32')")
        self.put(f"{name} = {self.value()}")
        self.put(f"w += {name}")

    def temporary(self) -> None:
        """Shared memory of which each thread touches its own element."""
        name = self.fresh("x")
        self.put(f'{name} = T.alloc_shared(({self.n},), "int32")')
        at = self.pick(("tid", "T.cast(tid, 'int64')"))
        self.put(f"{name}[{at}] = {self.value()}")
        self.put(f"w = w - {name}[{at}]")

    def look(self) -> None:
        """Promises, assertions and prints; a print of what threads share comes once."""
        kind = self.pick(_LOOKS)
        if kind.startswith("T.print") and not self.chance(20):
            kind = _LOOKS[0]
        self.saw("thread debug")
        self.put(kind)

    def exchange(self) -> None:
        """A value of another lane, or bits of all lanes."""
        self.saw("exchange")
        e, c, lane = (
            self.value(),
            self.condition(),
            self.pick(("16", "1", str(self.below(18)), self.value(1), self.uniform())),
        )
        m = ""
        if self.chance(25):
            m = f", mask={self.pick(_MASKS)}"
        if self.chance(10):
            self.put("T.sync_warp()")
        kind = self.below(9)
        if kind > 6:
            x = self.pick(("f", "q"))
            self.put(f"{x} = {self.pick(_SHUFFLES).format(x, lane, m=m)}")
            return
        text = f"T.{self.pick(('any_sync', 'all_sync'))}({c}{m})"
        if kind > 3:
            text = self.pick(_SHUFFLES).format(f"v + {e}", lane, m=m)  # a constant in front may be a mask
        elif kind > 0:
            text = f'T.cast({self.pick(_WORDS).format(c=c, e=e, m=m)}, "int32")'
        self.put(f"{self.pick(('v', 'w'))} {self.pick(('=', '+='))} {text}")

    def reduction(self) -> None:
        how = self.below(3)
        if how:
            x = ("f", "q")[how - 1]
            ops = _REDUCED[: 3 if x == "f" or self.other in FLOATS else 6]
            self.put(f"{x} = T.warp_reduce_{self.pick(ops)}({x} + {self.below(4)})")
        else:
            self.put(f"w = T.warp_reduce_{self.pick(_REDUCED)}({self.value()})")

    def allreduce(self) -> None:
        """A reduction over threads of the block, along some of its axes."""
        self.saw("allreduce")
        total, of = self.fresh("total"), self.pick(("int32", self.real))
        axes = len(self.threads) if isinstance(self.threads, tuple) else 1
        along = ", ".join(f"T.get_thread_binding({a})" for a in range(min(3, axes + 1)) if self.chance(60)) or "0"
        op = self.pick(_COMBINED)
        value, where = (self.value(), "w") if of == "int32" else ("f", "f")
        self.put(f'{total} = T.alloc_local((1,), "{of}")')
        self.put(f'with T.attr(T.comm_reducer(lambda x, y: {op}, [T.cast(0, "{of}")]), "reduce_scope", 0):')
        holds = self.pick(("True", "True", self.condition()))
        self.put(f"    T.tvm_thread_allreduce(T.uint32(1), {value}, {holds}, {total}[0], {along})")
        self.put(f"{where} = {where} + {total}[0]")

    def shared(self) -> None:
        if self.chance(30):
            self.put(f"T.atomic_add(hist[({self.value()} + tid) % 8], {self.much()})")
            return
        e = self.value()
        self.put("T.sync_threads()")
        self.put(f"S[tid] = {e}")
        self.put("T.sync_threads()")
        place = self.pick((f"(tid + {self.below(41)}) % {self.n}", f"tid * (({self.value(1)}) % 1)"))
        if isinstance(self.threads, tuple) and self.chance(30):
            place = "T.get_thread_binding(0) + T.get_thread_binding(1)"
        self.put(f"v = S[{place}]")
        self.put("T.sync_threads()")

    def count(self) -> None:
        op = self.pick(("count", "or", "and"))
        self.put(f"{self.pick(('v', 'w'))} += T.syncthreads_{op}({self.condition()})")

    def array(self) -> None:
        """Tile operations on what each thread has for itself."""
        self.saw("array of a thread")
        a, along = self.fresh("x"), self.below(2)
        kind = self.pick(("copy", "copy out", "fill", "reduce", "reduce", "scan", "view", "bytes", "nest", "product"))
        if kind == "copy":
            self.put(f"T.copy(A[bx, {self.pick(('tid', 'tid * 4', self.value(1)))}], own)")
        elif kind == "copy out":
            self.put(f"{a} = T.alloc_local((3, 2), '{self.pick(('int32', 'float32', self.other))}')")
            self.put(f"T.fill({a}, {self.value(1)})")
            self.put(f"T.copy({a}[{along}:{along + 2}, 0:2], small[0:2, {along}:{along + 2}])")
        elif kind == "fill":
            self.put(self.pick((f"T.fill(own, {self.value()})", "T.clear(small)", f"T.fill(own[1:3], {self.value()})")))
        elif kind == "reduce":
            wide = self.other in FLOATS
            row = self.pick([r for r in statement_rows("reduce_") if ("float" if wide else "int") in r.takes])
            extra = (
                self.pick(("", f", clear={self.pick(('False', self.condition()))}")) if "clear" in row.params else ""
            )
            extra += ", nan_propagate=True" if "nan_propagate" in row.params and wide and self.chance(40) else ""
            kept, along = (2, 1) if along else (3, 0)
            keep = self.pick((f"({kept},)", f"({kept}, 1)" if along else f"(1, {kept})"))
            self.put(f"{a} = T.alloc_local({keep}, '{self.pick((self.other, 'float32' if wide else 'int32'))}')")
            self.put(f"T.fill({a}, {self.pick(('v', 'tid', '1'))})")
            self.put(f"T.{row.name}(small, {a}, dim={along}{extra})")
            first = "0" if keep.endswith(",)") else "0, 0"
            self.put(f'q = q + T.cast({a}[{first}], "{self.other}")')
        elif kind == "scan":
            target = self.pick(("own", "small"))
            at = 0 if target == "own" else along
            name, back = self.pick(statement_rows("cum")).name, self.pick(("", ", reverse=True"))
            self.put(f"T.{name}({target}, dim={at}{back})")
        elif kind == "view":
            self.put(f"{a} = T.reshape(small, (3, 2))")
            self.put(f'{a}[{along}, ({self.value(1)}) % 2] = T.cast({self.value()}, "{self.other}")')
        elif kind == "bytes":
            self.put(f"{a} = T.view(own, (8,), 'int16')")
            self.put(f'{a}[({self.value(1)}) % 8] = T.cast({self.value()}, "int16")')
        elif kind == "product":
            of = self.other if self.other in ("uint8", *FLOATS) else "float32"
            into = {"uint8": "int32", "float64": "float64"}.get(of, "float32")
            c, clear = self.fresh("x"), self.pick(("", ", clear_accum=True", f", clear_accum={self.condition(0)}"))
            self.put(f"{a} = T.alloc_local((3, 2), '{of}')")
            self.put(f"{c} = T.alloc_local((2, 2), '{into}')")
            self.put(f"T.fill({a}, {self.value(1)})")
            self.put(f"T.fill({c}, {self.value(1)})")
            self.put(f'{a}[{along}, 1] = T.cast({self.value(1)}, "{of}")')
            self.put(f"T.gemm({a}, {a}, {c}, transpose_A=True{clear})")
            self.put(f'q = q + T.cast({c}[{along}, 0], "{self.other}")')
        else:
            i = self.fresh("x")
            self.put(f"for {i} in T.Parallel(4):")
            self.put(f"    own[{i}] = own[{i}] + v * {i}")

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
            self.returned = self.gone = True

    def loop(self) -> None:
        i = self.fresh("x")
        a, b = self.value(1), self.value(1)
        uneven = (f"({a}) % 5", f"({a}) % 3, ({b}) % 7, 2", f"3, ({a}) % 4, -1")
        often = self.pick(("3", "2", f"({self.uniform()}) % 4", "20", "4, -1, -1", *uneven))
        outer = self.long
        often = "3" if often == "20" and outer else often
        self.long |= often == "20"
        self.put(f"for {i} in T.{self.pick(('serial', 'serial', 'unroll'))}({often}):")
        self.loops.append(i)
        self.body()
        self.loops.pop()
        self.long = outer

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
        if self.chance(40):  # nothing that threads have to meet for: the loop stays one thread's own
            known, before = len(self.values), len(self.lines)
            for _ in range(1 + self.below(3)):
                self.pick((self.assign, self.array, self.let, self.look, self.temporary))()
            del self.values[known:]
            if len(self.lines) == before:
                self.put("v += 1")
        else:
            self.block(1 + self.below(3))
        self.depth -= 1

    # -- the block together ----------------------------------------------------------------------------------------

    def tile(self) -> None:
        i, name = self.fresh("x"), self.fresh("x")
        self.put("T.sync_threads()")
        self.put(f'{name} = T.alloc_fragment(({self.n},), "int32")')
        few = self.chance(30)
        if few:
            self.saw("copy by some threads")
            self.put(f"if tid < {1 + self.below(self.n)}:")
        self.put(f"{'    ' * few}T.copy(S, {name})")
        if self.chance(20):
            self.put("T.print(hist)")
            self.put("T.sync_threads()")
        self.put(f"for {i} in T.Parallel({self.n}):")
        self.put(f"    S[{i}] = {name}[{self.n - 1} - {i}] + {self.pick(('v', 'u', '1', 'tid'))}")

    def reducer(self) -> None:
        """Contributions of single threads, and of a nest."""
        self.saw("reducer of threads")
        r, i = self.fresh("x"), self.fresh("x")
        op = self.pick(("sum", "max", "min", "bitxor"))
        self.put(f"{r} = T.alloc_reducer((4,), 'int32', op='{op}')")
        self.put(f"T.reducer_init({r})")
        if self.chance(50):
            self.put(f"for {i} in T.Parallel({self.n}):")
            self.put(f"    T.reducer_update({r}[{i} % 4], S[{i}])")
        else:
            self.put(f"T.reducer_update({r}[(tid + {self.value(1)}) % 4], {self.value()} + tid)")
        self.put(f"T.finalize_reducer({r})")
        self.put(f"w += {r}[tid % 4]")

    def shares(self) -> None:
        """A nest whose iterations know the thread that they belong to; at times only some threads are there."""
        self.saw("nest of threads")
        name, i, j = self.fresh("x"), self.fresh("x"), self.fresh("x")
        m, k = self.pick((5, 40, 33)), self.pick((1, 3))
        self.put(f'{name} = T.alloc_shared(({m}, {k}), "int32")')
        self.put(f"T.fill({name}, {self.uniform()})")
        outer = self.depth
        if self.chance(40):
            self.put(f"if tid < {self.pick((1 + self.below(self.n), self.n))}:")
            self.depth += 1
        self.put(f"for {i}, {j} in T.Parallel({m}, {k}):")
        self.depth += 1
        if self.chance(30):
            self.put(f"if ({i} + v) % 3 == 0:")
            self.put("    continue")
        more = self.pick(("w", "v", "T.any_sync(v > 2)", "own[0]", f"T.atomic_add(hist[{i} % 8], 0, return_prev=True)"))
        if "atomic" in more:
            a = self.fresh("x")
            self.put(f"{a} = T.alloc_var('int32', {i} + v)")
            more = a
        self.put(f"{name}[{i}, {j}] = {i} * 3 + {j} + {more}")
        self.depth = outer
        self.put("T.sync_threads()")
        self.put(f"w += {name}[tid % {m}, {k - 1}]")
