"""What this machine can do at most, measured in the minute of the bench: products per second, bytes per second.

Four loops in machine code: chains of fused multiply-adds in vector registers, chains of sums of byte products, a pass
that reads memory, and one that copies it past the caches. A job's bound is the longer of its work at the first (or
second) and its bytes at the third (or fourth) rate.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from llvmlite import ir

from .emit.bytes import Bytes, four_products
from .emit.values import I8, I32, I64, PTR, VOID, counted, intrinsic, suffix
from .native import compile_module, host_cpu, load_object

__all__ = ["Ceilings", "measure_ceilings"]

CHAINS = 12  # independent sums: more than latency times units of any CPU we know
FOOTPRINT = 1 << 30  # bytes: the caches of this size are not sold for CPUs yet
_ROUNDS, _REPEATS = 1 << 21, 5


@dataclass(frozen=True)
class Ceilings:
    """fma: float32 operations per second (a fused multiply-add counts two); bytes: the same for products of bytes
    summed in int32; read, copy: bytes per second from memory, and from and to memory together."""

    fma: float
    bytes: float
    read: float
    copy: float

    def seconds(self, work: float, moved: float, integer: bool = False, written: bool = True) -> float:
        """The least time for so many operations, or to move so many bytes."""
        return max(work / (self.bytes if integer else self.fma), moved / (self.copy if written else self.read))


@cache
def measure_ceilings(threads: int = 1, footprint: int = FOOTPRINT) -> Ceilings:
    """All four, once per process, with this many threads: about a second. Raises ImportError without llvmlite."""
    functions = _functions()
    lanes = functions.lanes
    total = footprint // threads // 4096 * 4096
    source = [np.ones(total, np.uint8) for _ in range(threads)]
    sink = [np.empty(total + 64, np.uint8) for _ in range(threads)]
    out = [np.zeros(64 * CHAINS, np.uint8) for _ in range(threads)]
    aligned = [x[-x.ctypes.data % 64 :] for x in sink]
    with ThreadPoolExecutor(threads) as pool:

        def best(f: Callable[[int, int, int], None], n: int, first: Sequence[Any], second: Sequence[Any]) -> float:
            jobs = [partial(f, n, a.ctypes.data, b.ctypes.data) for a, b in zip(first, second, strict=True)]
            times = []
            for _ in range(_REPEATS):
                if threads == 1:  # CPU time, as the contestants are timed: other work on the machine does not count
                    start = time.thread_time()
                    jobs[0]()
                    times.append(time.thread_time() - start)
                    continue
                start = time.perf_counter()
                list(pool.map(lambda job: job(), jobs))
                times.append(time.perf_counter() - start)
            return min(times)

        products = 2.0 * CHAINS * lanes * _ROUNDS * threads
        return Ceilings(
            products / best(functions.fma, _ROUNDS, source, out),
            4 * products / best(functions.bytes, _ROUNDS, source, out),
            total * threads / best(functions.read, total, source, out),
            2.0 * total * threads / best(functions.copy, total, source, aligned),
        )


@dataclass(frozen=True)
class _Functions:
    lanes: int
    fma: Callable[[int, int, int], None]
    bytes: Callable[[int, int, int], None]
    read: Callable[[int, int, int], None]
    copy: Callable[[int, int, int], None]
    keep: Any


def _functions() -> _Functions:
    cpu = host_cpu()
    lanes = cpu.register_bytes // 4
    floats, ints = ir.VectorType(ir.FloatType(), lanes), ir.VectorType(I32, lanes)
    step = CHAINS * cpu.register_bytes
    how = Bytes(False, False, cpu.byte_products)
    module = ir.Module("ceilings")
    past = module.add_metadata([ir.Constant(I32, 1)])  # LLVM's mark of a store that goes past the caches

    def at(b: Any, p: Any, n: int | Any) -> Any:
        return b.gep(p, [ir.Constant(I64, n) if isinstance(n, int) else n], source_etype=I8)

    def define(name: str, body: Callable[[Any, Any, Any, Any], None]) -> None:
        f = ir.Function(module, ir.FunctionType(VOID, [I64, PTR, PTR]), name)
        b = ir.IRBuilder(f.append_basic_block())
        body(b, *f.args)
        b.ret_void()

    def chains(t: Any, each: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any, Any, Any], None]:
        def body(b: Any, n: Any, source: Any, sink: Any) -> None:
            x = b.load(source, align=1, typ=t)
            start = [b.load(at(b, sink, i * cpu.register_bytes), align=1, typ=t) for i in range(CHAINS)]
            zero = ir.Constant(I64, 0)
            _, *sums = counted(b, zero, n, 1, lambda _, *now: [each(b, x, v) for v in now], *start)
            for i, v in enumerate(sums):
                b.store(v, at(b, sink, i * cpu.register_bytes), align=1)

        return body

    def read(b: Any, n: Any, source: Any, sink: Any) -> None:
        def more(i: Any, *now: Any) -> list[Any]:
            places = [at(b, at(b, source, i), k * cpu.register_bytes) for k in range(CHAINS)]
            return [b.xor(v, b.load(p, align=1, typ=ints)) for v, p in zip(now, places, strict=True)]

        last = b.sub(n, ir.Constant(I64, step - 1))
        _, *found = counted(b, ir.Constant(I64, 0), last, step, more, *[ir.Constant(ints, None)] * CHAINS)
        for v in found[1:]:
            found[0] = b.xor(found[0], v)
        b.store(found[0], sink, align=1)

    def copy(b: Any, n: Any, source: Any, sink: Any) -> None:
        def more(i: Any, *_: Any) -> list[Any]:
            for k in range(CHAINS):
                x = b.load(at(b, at(b, source, i), k * cpu.register_bytes), align=1, typ=ints)
                b.store(x, at(b, at(b, sink, i), k * cpu.register_bytes), align=cpu.register_bytes).set_metadata(
                    "nontemporal", past
                )
            return []

        counted(b, ir.Constant(I64, 0), b.sub(n, ir.Constant(I64, step - 1)), step, more)

    define("fma", chains(floats, lambda b, x, v: intrinsic(b, f"llvm.fma.{suffix(floats)}", floats, [x, x, v])))
    define("bytes", chains(ints, lambda b, x, v: four_products(b, how, x, x, v)))
    define("read", read)
    define("copy", copy)
    loaded = load_object(compile_module([module], cpu), ("fma", "bytes", "read", "copy"))
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)

    def function(name: str) -> Callable[[int, int, int], None]:
        return kind(loaded.addresses[name])

    return _Functions(lanes, function("fma"), function("bytes"), function("read"), function("copy"), loaded)
