"""The CPU printers on whole loop-stage functions: control flow, memory, debug records, atomics, object code."""

from __future__ import annotations

import ctypes
import operator
import struct
import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from loop_driver import Compiled
from loop_driver import compile_function as compile_with
from loop_driver import run_loop_function as run_with

from tiledsl import interp, ir
from tiledsl.backend import Target
from tiledsl.backends.cpu.native import LEVELS, Cpu, assembly, compile_module, host_cpu, load_object
from tiledsl.backends.cpu.target import CpuBackend
from tiledsl.backends.llvm_cpu import backend as llvm
from tiledsl.backends.numba_cpu import backend as numba
from tiledsl.backends.numba_cpu.printer import print_function
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import InternalError, Loc

I64, I32, F32, BOOL = (as_dtype(n) for n in ("int64", "int32", "float32", "bool"))
BF16 = as_dtype("bfloat16")
Array = np.ndarray[Any, Any]

backend: CpuBackend = numba


@pytest.fixture(params=[numba, llvm], ids=lambda b: b.name, autouse=True)
def printer(request: Any) -> None:
    """Every test of this file runs with each printer."""
    global backend
    backend = request.param


@pytest.fixture
def numba_only() -> None:
    """For tests of the text that Numba gets."""
    if backend is not numba:
        pytest.skip("about the other printer's text")


def run_loop_function(f: ir.Function, *args: Any, **more: Any) -> int:
    return run_with(f, *args, backend=backend, **more)


def compile_function(f: ir.Function) -> Compiled:
    return compile_with(f, backend)


def c(x: Any, d: DType = I64) -> ir.Const:
    return ir.Const(x, d)


def v(name: str, d: DType = I64) -> ir.Var:
    return ir.Var(name, d)


def op(name: str, a: Any, b: Any) -> ir.Binary:
    return ir.Binary(name, *(c(x) if isinstance(x, int) else x for x in (a, b)))


def load(b: ir.Buffer, *at: Any, lanes: int = 1, mask: ir.Expr | None = None) -> ir.Load:
    return ir.Load(b, tuple(c(x) if isinstance(x, int) else x for x in at), mask, lanes, True)


def store(b: ir.Buffer, at: tuple[Any, ...], value: ir.Expr, mask: ir.Expr | None = None) -> ir.Store:
    return ir.Store(b, tuple(c(x) if isinstance(x, int) else x for x in at), value, mask, True)


def loop(var: ir.Var, n: Any, *body: ir.Stmt, start: Any = 0, step: int = 1) -> ir.For:
    ends = [c(x, var.type) if isinstance(x, int) else x for x in (start, n, step)]
    return ir.For(var, *ends, tuple(body))


def tensor(name: str, shape: tuple[Any, ...], d: DType = F32, **kw: Any) -> ir.Buffer:
    return ir.Buffer(name, d, tuple(c(x) if isinstance(x, int) else x for x in shape), "global", **kw)


def variable(name: str, d: DType = F32, n: int = 1) -> ir.Buffer:
    return ir.Buffer(name, d, (c(n),), "var")


BX = v("bx", I32)


def function(
    body: tuple[ir.Stmt, ...], params: list[Any], grid: tuple[Any, ...] = (1,), symbols: tuple[ir.Var, ...] = (),
    block_vars: tuple[ir.Var, ...] = (BX,), scratch: int = 0, **kw: Any,
) -> ir.Function:  # fmt: skip
    kernel = ir.Kernel("kernel", tuple(c(g) if isinstance(g, int) else g for g in grid), (c(1),), block_vars, (), body,
                       (("scratch_bytes", scratch),))  # fmt: skip
    ps = tuple(ir.Param(p.name, **({"buffer": p} if isinstance(p, ir.Buffer) else {"var": p})) for p in params)
    return ir.Function("f", ps, (kernel,), symbols, stage="loop", **kw)


def copied(a: Array) -> Array:
    """A copy with the same strides."""
    room = np.zeros(sum((n - 1) * s for n, s in zip(a.shape, a.strides, strict=True)) // a.itemsize + 1, a.dtype)
    out = np.lib.stride_tricks.as_strided(room, a.shape, a.strides)
    out[...] = a
    return out


def check(f: ir.Function, args: list[Any], symbols: dict[ir.Var, int] | None = None) -> list[Any]:
    """Runs both ways on copies; all arrays must end up with the same bits. Returns the arrays."""
    got, wanted = ([copied(a) if isinstance(a, np.ndarray) else a for a in args] for _ in range(2))
    assert run_loop_function(f, got, symbols) == 0
    interp.run(f, wanted, interp.Options(exact=True))
    for p, x, y in zip(f.params, got, wanted, strict=True):
        if isinstance(x, np.ndarray):
            assert x.tobytes() == y.tobytes(), f"{p.name}:\n{x}\n{y}\n{backend.modules(f, host_cpu()).source}"
    return got


def values(*shape: int, d: str = "float32") -> Array:
    return (np.random.default_rng(3).standard_normal(shape) * 9).astype(d)


def test_control_flow() -> None:
    """Nested loops with break, continue, while, if/else and early returns inside loops."""
    x, y = tensor("x", (8, 40)), tensor("y", (8, 40))
    i, j, k = v("i"), v("j"), v("k")
    total, count = variable("total"), variable("count", I64)
    e = load(x, ir.Cast(BX, I64), i)
    body: tuple[ir.Stmt, ...] = (
        ir.Alloc(total, c(0.0, F32)),
        ir.Alloc(count, c(0)),
        loop(
            i, 40,
            ir.If(op("lt", e, c(-20.0, F32)), (ir.Return(),)),
            ir.If(op("gt", e, c(15.0, F32)), (ir.Break(),)),
            ir.If(op("and", op("gt", e, c(2.0, F32)), op("lt", e, c(3.0, F32))), (ir.Continue(),), (
                store(total, (0,), op("add", load(total, 0), e)),
            )),
            store(y, (ir.Cast(BX, I64), i), load(total, 0)),
        ),
        ir.While(op("lt", load(count, 0), 5), (
            store(count, (0,), op("add", load(count, 0), 1)),
            loop(j, 3, loop(k, 4, ir.If(op("eq", op("mul", j, load(count, 0)), 8), (ir.Return(),)))),
            ir.If(op("eq", ir.Cast(BX, I64), load(count, 0)), (ir.Break(),)),
        )),
        store(y, (ir.Cast(BX, I64), 39), ir.Cast(load(count, 0), F32)),
        ir.If(op("eq", ir.Cast(BX, I64), 5), (ir.Return(),)),
        store(y, (ir.Cast(BX, I64), 38), c(7.0, F32)),
    )  # fmt: skip
    check(function(body, [x, y], (8,)), [values(8, 40), np.zeros((8, 40), np.float32)])


@pytest.mark.parametrize("d", [I64, I32, as_dtype("uint8"), as_dtype("int16")])
def test_loops_of_all_directions_and_types(d: DType) -> None:
    y, n = tensor("y", (100,), I64), variable("n", I64)
    i = v("i", d)
    loops = []
    for start, stop, step in ((0, 7, 1), (3, 20, 4), (5, 5, 1), (9, 2, 1), (20, 3, -3), (0, 100, 50)):
        if step < 0 and d.kind == "uint":
            continue
        loops.append(
            loop(
                i, stop,
                store(y, (load(n, 0),), ir.Cast(i, I64)),
                store(n, (0,), op("add", load(n, 0), 1)),
                start=start, step=step,
            )
        )  # fmt: skip
    f = function((ir.Alloc(n, c(0)), *loops), [y])
    check(f, [np.full(100, -1, np.int64)])


def test_grid_symbols_strides_and_masks() -> None:
    """Three grid axes over symbols, a strided argument, masked vector loads and stores, views of other types."""
    m, n, s = v("m", I32), v("n", I32), v("s")
    bx, by, bz = (v(x, I32) for x in ("bx", "by", "bz"))
    x = tensor("x", (2, m, n), strides=(s, op("mul", ir.Cast(n, I64), 2), c(2)))
    y = tensor("y", (2, m, n))
    t = ir.Buffer("t", F32, (c(4), c(16)), "scratch", base=c(128))
    bits = ir.Buffer("bits", I32, (c(16),), "scratch", alias_of=t, offset=c(32))
    at = op("mul", ir.Cast(bx, I64), 16)
    mask = op("lt", ir.Ramp(at, 1, 16), ir.Broadcast(ir.Cast(n, I64), 16))
    row = (ir.Cast(bz, I64), ir.Cast(by, I64))
    vec = v("vec", F32.with_lanes(16))
    index = op("mul", ir.Ramp(at, 1, 16), ir.Broadcast(c(1), 16))
    body = (
        ir.Alloc(t),
        ir.Let(vec, load(x, *row, index, mask=mask)),
        store(t, (2, 0), vec),
        store(bits, (0,), op("bitxor", load(bits, 0, lanes=16), ir.Broadcast(c(-(1 << 31), I32), 16))),
        store(y, (*row, at), load(t, 2, 0, lanes=16), mask),
    )
    blocks = ir.Binary("floordiv", ir.Binary("add", n, c(15, I32)), c(16, I32))
    f = function(body, [x, y], (blocks, m, 2), (m, n, s), (bx, by, bz), scratch=384)
    wide = values(2, 9, 62)
    check(f, [wide[:, :5, ::2], np.zeros((2, 5, 31), np.float32)], {m: 5, n: 31, s: 9 * 62})


def test_strided_rows_bind() -> None:
    x = values(3, 50)
    y = np.zeros((3, 50), np.float32)
    n = v("n")
    a, b, i = tensor("a", (3, n)), tensor("b", (3, n)), v("i")
    check(function((loop(i, n, store(b, (1, i), load(a, 2, i))),), [a, b], (1,), (n,)), [x, y], {n: 50})


def test_gather_scatter_and_horizontal() -> None:
    x, y, idx = tensor("x", (64,)), tensor("y", (64,)), tensor("idx", (16,), I32)
    w, flags = tensor("w", (8,)), tensor("flags", (16,), BOOL)
    i, m, g = v("i", I32.with_lanes(16)), v("m", BOOL.with_lanes(16)), v("g", F32.with_lanes(16))

    def call(name: str, e: ir.Expr, d: DType) -> ir.Call:
        return ir.Call(name, (e,), d)

    body = (
        ir.Let(i, load(idx, 0, lanes=16)),
        ir.Let(m, load(flags, 0, lanes=16)),
        ir.Let(g, load(x, i, mask=m)),
        store(y, (i,), ir.Unary("neg", g), m),
        store(w, (0,), call("hreduce_add", load(x, 0, lanes=16), F32)),
        store(w, (1,), call("hreduce_max", load(x, 16, lanes=16), F32)),
        store(w, (2,), call("hreduce_min", g, F32)),
        ir.If(call("any", m, BOOL), (store(w, (3,), c(1.0, F32)),)),
        ir.If(call("any", ir.Unary("not", m), BOOL), (store(w, (4,), c(1.0, F32)),)),
        store(w, (5,), ir.IfThenElse(op("lt", c(3), 2), load(x, 1000), c(2.5, F32))),
        store(w, (6,), ir.Select(load(flags, 0), load(x, 0), load(x, 1))),
        store(w, (7,), load(x, 5, mask=load(flags, 2))),
    )
    f = function(body, [x, y, idx, w, flags])
    rng = np.random.default_rng(0)
    order = rng.permutation(64)[:16].astype(np.int32)
    check(f, [values(64), np.zeros(64, np.float32), order, np.zeros(8, np.float32), rng.random(16) < 0.6])


@pytest.mark.parametrize("name", ["bool", "int8", "int64", "uint16", "uint64", "float32", "float64", "bfloat16"])
def test_scalar_parameters(name: str) -> None:
    d = as_dtype(name)
    s, y = v("s", d), tensor("y", (2,), d)
    known: dict[str, Any] = {"bool": True, "int8": -5, "int64": -(1 << 40), "uint16": 65535, "uint64": (1 << 64) - 3}
    value = known.get(name, -1.5)
    f = function((store(y, (1,), s),), [s, y])
    out = np.zeros(2, d.numpy)
    assert run_loop_function(f, [d.numpy.type(value), out]) == 0
    assert out[1] == d.numpy.type(value)


def test_half_memory_and_math() -> None:
    x, y = tensor("x", (64,), BF16), tensor("y", (64,), BF16)
    i, lanes = v("i"), F32.with_lanes(16)
    e = ir.Cast(load(x, i, lanes=16), lanes)
    for name in ("exp2", "exp", "log2", "log", "rsqrt"):
        value = ir.Cast(ir.Call(name, (e,), lanes), BF16.with_lanes(16))
        rounded = ir.Cast(ir.Cast(ir.Cast(value, lanes), BF16.with_lanes(16)), lanes)
        scalar = ir.Cast(ir.Call(name, (ir.Cast(load(x, 3), F32),), F32), BF16)
        body = (loop(i, 64, store(y, (i,), ir.Cast(rounded, BF16.with_lanes(16))), step=16), store(y, (3,), scalar))
        check(function(body, [x, y]), [values(64).astype(ml_dtypes.bfloat16), np.zeros(64, ml_dtypes.bfloat16)])


def test_two_kernels_and_a_workspace() -> None:
    x, y, n = tensor("x", (32,)), tensor("y", (32,)), v("n")
    w = tensor("w", (32,))
    i = v("i")
    one = ir.Kernel("k", (c(2),), (c(1),), (BX,), (), (
        loop(i, 16, store(w, (op("add", op("mul", ir.Cast(BX, I64), 16), i),), load(x, i))),
    ))  # fmt: skip
    two = ir.Kernel("k", (c(1),), (c(1),), (BX,), (), (loop(i, 32, store(y, (i,), load(w, i))),))
    params = tuple(ir.Param(b.name, buffer=b) for b in (x, y))
    f = ir.Function("f", params, (one, two), workspaces=(w,), stage="loop")
    assert len(set(backend.modules(f, host_cpu()).symbols)) == 2
    check(f, [values(32), np.zeros(32, np.float32)])
    assert n.name == "n"


ATOMICS: dict[str, Any] = {
    "add": operator.add, "max": max, "min": min, "exchange": lambda old, new: new, "and": operator.and_,
    "or": operator.or_, "xor": operator.xor,
}  # fmt: skip


@pytest.mark.parametrize("name", ["int32", "uint64", "float32", "float64", "bfloat16", "int16"])
def test_atomics(name: str) -> None:
    d = as_dtype(name)
    x, y = tensor("x", (16,), d), tensor("y", (16,), d)
    body: list[ir.Stmt] = []
    operations = [name_ for name_ in ATOMICS if not d.is_float or name_ not in ("and", "or", "xor")]
    for k, name_ in enumerate(operations):
        old = v(f"old{k}", d)
        value = load(x, k + 8)
        body += [ir.Atomic(name_, x, (c(k),), value, old), store(y, (k,), old)]
    body += [ir.Atomic("store", y, (c(14),), load(x, 1)), ir.Atomic("load", x, (c(2),), None, v("l", d))]
    start = (np.arange(16) * 3 - (0 if d.kind == "uint" else 20)).astype(d.numpy)
    out = [start.copy(), np.zeros(16, d.numpy)]
    assert run_loop_function(function(tuple(body), [x, y]), out) == 0
    for k, name_ in enumerate(operations):
        a, b = start[k], start[k + 8]
        new = ATOMICS[name_](a, b)
        assert out[0][k] == new and out[1][k] == a, name_
    assert out[1][14] == out[0][1]


def test_debug_records_and_failed_assert() -> None:
    from tiledsl.runtime.ring import Ring

    x, i = tensor("x", (4,)), v("i")
    t = ir.Buffer("t", I32, (c(2),), "scratch", base=c(0))
    body = (
        ir.Alloc(t),
        store(t, (0,), c(-7, I32)),
        store(t, (1,), c(9, I32)),
        loop(
            i, 4,
            ir.Debug("print", (i, load(x, i)), "x"),
            ir.Debug("assert", (op("lt", load(x, i), c(3.0, F32)), load(x, i)), "x is small"),
        ),
        ir.Debug("print", (t,), "never"),
    )  # fmt: skip
    f = function((ir.Debug("print", (t, c(True, BOOL)), "whole"), *body), [x], scratch=64)
    sites = backend.modules(f, host_cpu()).sites
    assert [s.kind for s in sites] == ["print", "print", "assert", "print"]
    ring = Ring(sites)
    words = np.frombuffer(ring.words, np.int64)
    assert run_loop_function(f, [np.array([1, 2.5, 3, 4], np.float32)], ring=words) == 2
    whole, *records = [(s.kind, s.message, found) for s, found in ring.records()]
    assert records == [
        ("print", "x", [0, 1]), ("print", "x", [1, 2.5]), ("print", "x", [2, 3]), ("assert", "x is small", [3]),
    ]  # fmt: skip
    assert whole[2][0].shape == (2,) and whole[2][0].dtype == np.int32 and whole[2][1] is True
    tiny = np.zeros(4, np.int64)
    tiny[:2] = 2, 4
    assert run_loop_function(f, [np.array([1, 1, 1, 1], np.float32)], ring=tiny) == 0
    assert tiny[0] > 4  # nothing was written beyond the ring, but the reader sees what is missing


def test_cancelled() -> None:
    x = tensor("x", (4,))
    f = function((store(x, (ir.Cast(BX, I64),), c(1.0, F32)),), [x], (4,))
    out = np.zeros(4, np.float32)
    assert compile_function(f).run([out.ctypes.data], [4], cancel=1) == 1
    assert not out.any()


def test_names_and_text_of_authors_stay_text(numba_only: None) -> None:
    """Hostile names become identifiers, strings stay data, and source lines become comments."""
    import linecache

    file = "<evil>"
    linecache.cache[file] = (0, None, ['x = """; import os\n'], file)
    x = tensor('x"""\nimport os', (1, 4))
    names = ["f32", "class", "é", "1a", "a b", "range", "scratch", "block_index", "transpose_32"]
    lets = [ir.Let(v(n, F32), c(float(k), F32), loc=Loc(file, 1)) for k, n in enumerate(names)]
    total: ir.Expr = lets[0].var
    for one in lets[1:]:
        total = op("add", total, one.var)
    whole = ir.Region(x, (c(0), c(0)), x.shape)
    moved = ir.MicroCall("transpose", (whole,), (whole,), (c(0), c(0)))
    f = function((*lets, ir.Debug("print", (total,), '"""\n{}'), moved, store(x, (0, 0), total)), [x])
    text = print_function(f).text
    assert not any(line.strip().startswith("import") for line in text.splitlines())
    assert "# <evil>:1  x = '''; import os" in text
    out = np.zeros((1, 4), np.float32)
    assert run_loop_function(f, [out]) == 0
    assert out[0, 0] == sum(range(len(names)))


def test_unknown_statements_are_internal_errors() -> None:
    x = tensor("x", (4,))
    fill = ir.Fill(ir.Region(x, (c(0),), x.shape), c(0.0, F32))
    with pytest.raises(InternalError, match="Fill"):
        backend.modules(function((fill,), [x]), host_cpu())
    with pytest.raises(InternalError, match="before it is defined"):
        backend.modules(function((store(x, (0,), v("ghost", F32)),), [x]), host_cpu())


# -- the object code ------------------------------------------------------------------------------------------------


def undefined(code: bytes) -> set[str]:
    """Undefined symbols of a 64-bit ELF object."""
    start, entry, count = (struct.unpack_from(f, code, at)[0] for f, at in (("<Q", 40), ("<H", 58), ("<H", 60)))
    sections = [struct.unpack_from("<IIQQQQIIQQ", code, start + k * entry) for k in range(count)]
    names = set()
    for s in sections:
        if s[1] != 2:  # SHT_SYMTAB
            continue
        strings = sections[s[6]]
        for at in range(s[4], s[4] + s[5], 24):
            name, _, _, section = struct.unpack_from("<IBBH", code, at)
            if section == 0 and name:
                end = code.index(b"\0", strings[4] + name)
                names.add(code[strings[4] + name : end].decode())
    return names


def gemm_like() -> ir.Function:
    """Something of everything: gemm, transpose, math, casts, integer division, atomics, debug."""
    m, n, k, i = v("m"), v("n"), v("k"), v("i")
    a, bp, out = tensor("a", (m, k)), tensor("bp", (1, k, 16)), tensor("out", (m, n))
    h = tensor("h", (64,), as_dtype("float16"))
    whole = lambda b: ir.Region(b, tuple(c(0) for _ in b.shape), b.shape)
    lanes = F32.with_lanes(16)
    body = (
        ir.MicroCall("gemm", (whole(out),), (whole(a), whole(bp)), (m, n, k), (("NR", 16), ("a_trans", False))),
        ir.MicroCall("transpose", (whole(out),), (whole(a),), (m, k)),
        loop(i, 64, store(h, (i,), ir.Cast(ir.Call("exp", (ir.Cast(load(h, i, lanes=16), lanes),), lanes),
                                          as_dtype("float16x16"))), step=16),
        ir.Atomic("add", out, (c(0), c(0)), ir.Cast(op("floormod", m, n), F32)),
        loop(i, 100, store(out, (0, i), c(0.0, F32))),
        ir.Debug("print", (m,), "m"),
    )  # fmt: skip
    return function(body, [a, bp, out, h], (1,), (m, n, k))


@pytest.mark.skipif("linux" not in host_cpu().triple, reason="reads ELF objects")
def test_object_code_needs_nothing_but_libc() -> None:
    needed = undefined(compile_function(gemm_like()).artifact.code)
    assert needed <= {"memset", "memcpy", "memmove", "_GLOBAL_OFFSET_TABLE_"}, needed


def test_no_contraction_and_full_registers() -> None:
    """x * y + z stays two roundings, fma is one instruction, and 16 floats are one register where it exists."""
    x, y, i = tensor("x", (64,)), tensor("y", (64,)), v("i")
    e = load(x, i, lanes=16)

    def text(value: ir.Expr) -> str:
        f = function((loop(i, 64, store(y, (i,), value), step=16),), [x, y])
        return assembly(backend.modules(f, host_cpu()).modules, host_cpu())

    separate, fused = text(op("add", op("mul", e, e), e)), text(ir.Fma(e, e, e))
    if host_cpu().triple.startswith("x86_64"):
        assert "vfmadd" not in separate and "vmulps" in separate
        assert "vfmadd" in fused
        if host_cpu().register_bytes == 64:
            assert "%zmm" in separate and "%ymm" not in separate


def mxcsr_functions() -> tuple[Any, Any]:
    """(read, write) of the floating-point control register of the calling thread."""
    from llvmlite import ir as ll

    module = ll.Module()
    pointer = ll.PointerType()
    for name in ("stmxcsr", "ldmxcsr"):
        wanted = ll.Function(module, ll.FunctionType(ll.VoidType(), [pointer]), f"llvm.x86.sse.{name}")
        f = ll.Function(module, ll.FunctionType(ll.VoidType(), [pointer]), name)
        b = ll.IRBuilder(f.append_basic_block())
        b.call(wanted, f.args)
        b.ret_void()
    loaded = load_object(compile_module([module], host_cpu()), ["stmxcsr", "ldmxcsr"])
    word, kind = ctypes.c_uint32(), ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    store_, load_ = (kind(loaded.addresses[n]) for n in ("stmxcsr", "ldmxcsr"))

    def read() -> int:
        store_(ctypes.addressof(word))
        return word.value

    def write(value: int) -> None:
        word.value = value
        load_(ctypes.addressof(word))

    read.keep = loaded  # type: ignore[attr-defined]
    return read, write


@pytest.mark.skipif(not host_cpu().triple.startswith("x86_64"), reason="the control register is x86's")
def test_the_callers_floating_point_environment_does_not_matter() -> None:
    """Flush-to-zero and rounding towards zero in the caller's thread change no bit, and are there again afterwards."""
    x, y = tensor("x", (2,)), tensor("y", (4,))
    body = (
        store(y, (0,), op("mul", load(x, 0), c(0.5, F32))),
        store(y, (1,), op("add", load(x, 1), c(1.0, F32))),
    )
    compiled = compile_function(function(body, [x, y]))
    a, out = np.array([2e-39, 3e-8 * 2.5], np.float32), np.zeros(4, np.float32)
    read, write = mxcsr_functions()
    before = read()
    odd = 0x1F80 | 0x8040 | 0x6000  # flush to zero, denormals are zero, towards zero
    write(odd)
    code = compiled.run([a.ctypes.data, out.ctypes.data], [1])
    after = read()
    write(before)
    assert code == 0 and after & ~0x3F == odd & ~0x3F
    assert out[0] == np.float32(1e-39) != 0
    assert out[1] == a[1] + np.float32(1.0) != 1


def test_objects_for_other_machines() -> None:
    """Code is emitted for a CPU by name, whatever this machine is; on AArch64 the products are vector FMAs."""
    arm = Cpu("aarch64-unknown-linux-gnu", "neoverse-n1", "")
    machines = {183: arm, 62: Cpu("x86_64-unknown-linux-gnu", "x86-64-v4", LEVELS["x86-64-v4"])}
    for machine, cpu in machines.items():
        code = compile_module(backend.modules(gemm_like(), cpu).modules, cpu)
        assert code[:4] == b"\x7fELF" and struct.unpack_from("<H", code, 18)[0] == machine
    text = assembly(backend.modules(gemm_like(), arm).modules, arm)
    assert text.count("fmla\tv") > 50


def test_an_artifact_loads_without_numba() -> None:
    x, y, i = tensor("x", (64,)), tensor("y", (64,)), v("i")
    f = function((loop(i, 64, store(y, (i,), op("add", load(x, i, lanes=16), load(x, i, lanes=16))), step=16),), [x, y])
    artifact = backend.emit(f, Target(backend.name))
    program = f"""
import sys, ctypes
from tiledsl.backend import Artifact, Entry, Target
from tiledsl.backends.{backend.printer} import backend
code = bytes.fromhex("{artifact.code.hex()}")
loaded = backend.load(Artifact("", code, entries=(Entry("{artifact.entries[0].symbol}", ()),)))
x, y, flag = (ctypes.c_float * 64)(*range(64)), (ctypes.c_float * 64)(), ctypes.c_int64(0)
args = (ctypes.c_int64 * 2)(ctypes.addressof(x), ctypes.addressof(y))
context = (ctypes.c_int64 * 8)(0, ctypes.addressof(flag))
assert loaded.functions[0](0, 1, bytes(args), ctypes.addressof(context)) == 0
assert list(y) == [2.0 * k for k in range(64)]
assert backend.version(Target("{backend.name}"))
assert "numba" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_text_is_golden(golden: Any, numba_only: None) -> None:
    """The text that people read."""
    golden("numba/everything", print_function(gemm_like()).text)
