"""Corners where memory could go wrong silently: outputs that nobody writes, early exits, wild lanes, empty launches."""

from __future__ import annotations

import linecache
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import tiledsl
import tiledsl.language as T
from tiledsl.backends.cpu.native import named_cpu
from tiledsl.compat.language import tilelang_meaning
from tiledsl.dtypes import as_dtype
from tiledsl.errors import TileError, TileIndexError, TileRuntimeError, TileValueError
from tiledsl.interp import Options, run
from tiledsl.testing import available_targets

# mypy: disable-error-code="valid-type,misc,no-untyped-def"

TARGETS = ("numpy:exact", *available_targets())
F32 = np.float32


def made(params: str, body: str, kernel: str = "1", out_idx: Any = None) -> Any:
    """A kernel of one statement block; the text is there for diagnostics."""
    lines = "\n".join("        " + line for line in body.strip("\n").split("\n"))
    text = f"""import tiledsl.language as T
n, m = T.dynamic("n, m")

@T.prim_func
def main({params}):
    with T.Kernel({kernel}) as b:
{lines}
"""
    file = f"<corner {abs(hash(text)):x}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    module: dict[str, Any] = {"__name__": "corner"}
    exec(compile(text, file, "exec"), module)
    return lambda target: tiledsl.compile(module["main"], out_idx=out_idx, target=target)


# -- outputs ------------------------------------------------------------------------------------------------------

X_Y = 'X: T.Tensor((n,), "float32"), Y: T.Tensor((n, 2), "float32")'


@pytest.mark.parametrize(
    ("body", "text", "help"),
    [
        ("for i in T.Parallel(n): X[i] = 1.0", "no statement writes it", "store into Y"),
        ("for i in T.Parallel(n): X[i] = Y[i, 0]", "no statement writes it", "store into Y"),
        ("for i in T.Parallel(n): T.atomic_add(Y[i, 0], X[i])", "atomics update it", "an argument that holds zeros"),
        ("for i in T.Parallel(n): X[i] = T.atomic_max(Y[0, 0], X[i], return_prev=True)", "atomics update it", "zeros"),
    ],
)
def test_an_output_that_gets_no_value_is_refused(body: str, text: str, help: str) -> None:
    with pytest.raises(TileValueError, match=f"main: the output Y is allocated without a value, and {text}") as e:
        made(X_Y, body, out_idx=-1)("llvm")
    assert e.value.loc is not None and e.value.loc.line == 5 and help in str(e.value.help)
    assert made(X_Y, body)("llvm").function.outputs == ()  # as an argument it is the caller's


def test_tilelang_programs_may_leave_outputs_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with tilelang_meaning():
        made(X_Y, "for i in T.Parallel(n): X[i] = 3.0", out_idx=-1)("llvm")
    assert "no statement writes it; as in TileLang, it holds what was there before" in capsys.readouterr().err


def test_eager_outputs_too() -> None:
    @tiledsl.jit
    def eager(A):
        size = T.const("size")
        A: T.Tensor[(size,), T.float32]
        C = T.empty((size,), T.float32)
        with T.Kernel(1):
            for i in T.Parallel(size):
                T.atomic_add(C[i], A[i])
        return C

    with pytest.raises(TileValueError, match="the output C is allocated without a value, and atomics update it") as e:
        eager(np.ones(4, F32))
    assert e.value.loc is not None and "T.empty" in linecache.getline(e.value.loc.file, e.value.loc.line)


@pytest.mark.parametrize(
    "body",
    [
        "for i, j in T.Parallel(n, 2): T.atomic_store(Y[i, j], X[i])",
        "T.fill(Y, 1.0)",
        "T.copy(X, Y[:, 0])\nT.copy(X, Y[:, 1])",
        "for i in T.Parallel(n):\n    Y[i, 0] = 1.0\n    Y[i, 1] = T.atomic_add(Y[i, 0], 1.0, return_prev=True)",
    ],
)
def test_what_gives_an_output_its_value(body: str) -> None:
    assert made(X_Y, body, out_idx=-1)("numpy:checked")(np.ones(5, F32)).shape == (5, 2)


def test_checked_mode_reports_elements_that_are_never_written() -> None:
    body = "for i in T.Parallel(n):\n    Y[i, 0] = X[i]\n    if i % 3 != 1: Y[i, 1] = 0.0"
    kernel = made(X_Y, body, out_idx=-1)("numpy:checked")
    with pytest.raises(TileRuntimeError, match=r"Y\[1, 1\] is never written: 2 of the 12 elements") as e:
        kernel(np.ones(6, F32))
    assert e.value.loc is not None and e.value.loc.line == 5
    assert kernel(np.ones(1, F32)).shape == (1, 2)  # here all are
    assert kernel(np.ones(0, F32)).shape == (0, 2)
    given = np.full((6, 2), 7, F32)
    kernel(np.ones(6, F32), out=given)  # who brings the array knows what it holds
    assert given[1, 1] == given[4, 1] == 7
    with pytest.raises(TileRuntimeError, match="is never written"):
        run(kernel.function, [np.ones(6, F32), given], Options.checked())
    run(kernel.function, [np.ones(6, F32), given], Options.checked(), fresh=False)


def test_packed_outputs_are_looked_at_byte_by_byte() -> None:
    params = 'X: T.Tensor((n,), "float32"), Y: T.Tensor((8,), "int4")'
    whole = made(params, "for i in T.serial(8): Y[i] = T.cast(i, 'int4')", out_idx=-1)("numpy:checked")
    assert whole(np.ones(1, F32)).tobytes() == bytes([0x10, 0x32, 0x54, 0x76])
    half = made(params, "for i in T.serial(4): Y[i] = T.cast(i, 'int4')", out_idx=-1)("numpy:checked")
    with pytest.raises(TileRuntimeError, match=r"Y\[4\] is never written: 4 of the 8"):
        half(np.ones(1, F32))


# -- storage of iterations ----------------------------------------------------------------------------------------

OWN = """
a = T.alloc_local((4,), "int32")
for i in T.serial(4):
    a[i] = 100 + i
for i in T.Parallel(n):
    a[0] = X[i]
    if X[i] % 2 == 0:
        continue
    a[1] = 7 * X[i]
    for j in T.serial(4):
        if j == 2:
            break
        a[2] += j + X[i]
for i in T.serial(4):
    Y[i] = a[i]
"""


@pytest.mark.parametrize("x", [[1, 3, 4], [2], [1, 3, 5], [2, 3], [4] * 33, [1] * 17])
def test_the_last_iterations_storage_stays_where_it_ends_early(x: list[int]) -> None:
    """The last iteration leaves its values behind, also those up to a `continue`."""
    kernel = made('X: T.Tensor((n,), "int32"), Y: T.Tensor((4,), "int32")', OWN)
    last = x[-1]
    want = [last, 101, 102, 103] if last % 2 == 0 else [last, 7 * last, 102 + 1 + 2 * last, 103]
    for target in TARGETS:
        y = np.zeros(4, np.int32)
        kernel(target)(np.array(x, np.int32), y)
        assert y.tolist() == want, target


# -- wild numbers -------------------------------------------------------------------------------------------------

SHUFFLES = """
tx = T.get_thread_binding()
v = tx * 10
Y[tx, 0] = T.shfl_sync(v, I[tx])
Y[tx, 1] = T.shfl_xor(v, I[tx])
Y[tx, 2] = T.shfl_down(v, I[tx])
Y[tx, 3] = T.shfl_up(v, I[tx])
Y[tx, 4] = T.shfl_down(v, 2147483647)
"""


@pytest.mark.parametrize("threads", [32, 48, 128])
def test_shuffles_by_wild_lanes(threads: int) -> None:
    """Far lanes keep the own value; the sum of lane and distance may not wrap into the warp."""
    kernel = made(
        f'I: T.Tensor(({threads},), "int32"), Y: T.Tensor(({threads}, 5), "int32")', SHUFFLES, f"1, threads={threads}"
    )
    rng = np.random.default_rng(threads)
    wild = [0, 1, 5, 31, 32, 33, -1, -5, 2**31 - 1, -(2**31), 100, 127, 128, 2**31 - 20]
    lanes = rng.choice(np.array(wild), threads).astype(np.int32)
    found = []
    for target in TARGETS:
        y = np.full((threads, 5), -1, np.int32)
        kernel(target)(lanes, y)
        found.append(y)
    t, by = np.arange(threads), lanes.astype(np.int64)
    far = (by < 0) | (by >= 32)
    for column, source in ((1, (t & -32) + ((t & 31) ^ (by & 31))), (2, t + by), (3, t - by)):
        there = ~far & (source // 32 == t // 32) & (source < threads)
        np.testing.assert_array_equal(found[0][:, column], 10 * np.where(there, source, t))
    np.testing.assert_array_equal(found[0][:, 4], 10 * t)
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def outcome(kernel: Any, *args: Any) -> str:
    try:
        kernel(*args)
    except TileError as e:
        return e.message
    return str([a.tolist() for a in args if isinstance(a, np.ndarray)])


@pytest.mark.parametrize(
    ("grid", "want"), [(0, "[[0, 0, 0]]"), (2, "[[1, 1, 0]]"), (-1, "main: the grid (-1,) has a negative extent")]
)
def test_grids_that_arguments_decide(grid: int, want: str) -> None:
    kernel = made('g: T.int32, Y: T.Tensor((n,), "int32")', "Y[b] = 1", "g, threads=1")
    assert [outcome(kernel(t), grid, np.zeros(3, np.int32)) for t in TARGETS] == [want] * len(TARGETS)


@pytest.mark.parametrize(
    ("bounds", "want"),
    [((0, 10, 3), "[[4]]"), ((10, 0, -3), "[[4]]"), ((0, 10, -1), "[[0]]"), ((2**31 - 5, 2**31 - 1, 3), "[[2]]"),
     ((0, 10, 0), "the step of a loop is 0"), ((5, 5, 0), "the step of a loop is 0")],
)  # fmt: skip
def test_loops_whose_step_an_argument_decides(bounds: tuple[int, int, int], want: str) -> None:
    body = 'c = T.alloc_var("int32", 0)\nfor i in T.serial(lo, hi, by):\n    c += 1\nY[0] = c'
    kernel = made('lo: T.int32, hi: T.int32, by: T.int32, Y: T.Tensor((n,), "int32")', body, "1, threads=1")
    assert [outcome(kernel(t), *bounds, np.zeros(1, np.int32)) for t in TARGETS] == [want] * len(TARGETS)


# What stands in a kernel whose second array's indices 1, 2, 9, 5 are wild; each line reads the tile in another place.
PLACES = {
    "the bound of a loop": "for q in T.serial(4):\n    for j in T.serial(S[I[q]]): Y[q] = j",
    "a chain of conditions": "for i in T.Parallel(n):\n    if I[i] > 99: Y[i] = 5.0\n    elif S[I[i]] > 2: Y[i] = 1.0",
    "both sides of Select": 'for i in T.Parallel(n): Y[i] = T.Select(I[i] < 8, T.cast(S[I[i]], "float32"), 0.0)',
    "an index of an index": "for i in T.Parallel(n): Y[i] = S[S[S[I[i]]]]",
    "the start of a copy": "R = T.alloc_shared((4,), 'float32')\nT.clear(R)\nT.copy(R[0:2], Y[S[I[2]]:S[I[2]] + 2])",
    "the value of a fill": "R = T.alloc_shared((4,), 'int32')\nT.fill(R, S[I[2]])\nfor i in T.Parallel(4): Y[i] = R[i]",
    "the first value of a variable": 'v = T.alloc_var("int32", S[I[2]])\nY[0] = v',
    "the condition of a lane's while": (
        'for i in T.Parallel(n):\n    v = T.alloc_var("int32", 0)\n'
        "    while S[I[i] + v] < 5 and v < 3: v += 1\n    Y[i] = v"
    ),
    "a thread's while with continue": (
        'tx = T.get_thread_binding()\nif tx < n:\n    v, c = T.alloc_var("int32", 0), T.alloc_var("int32", 0)\n'
        "    while S[I[tx] + v] < 6:\n        v += 1\n        if v % 2 == 0: continue\n        c += 1\n    Y[tx] = c"
    ),
    "behind a thread's return": "tx = T.get_thread_binding()\nif tx >= n: T.thread_return()\nY[tx] = S[I[tx]]",
    "beside a print": "for i in T.Parallel(n):\n    if I[i] < 0: T.print(I[i])\n    Y[i] = S[I[i]]",
    "an array of the iteration": (
        "for i in T.Parallel(n):\n    a = T.alloc_local((8,), 'int32')\n"
        "    for j in T.serial(8): a[j] = j\n    Y[i] = a[I[i]]"
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_wild_indices_everywhere_in_a_kernel(place: str) -> None:
    tile = 'S = T.alloc_shared((8,), "int32")\nfor i in T.Parallel(8): S[i] = i\n'
    kernel = made('I: T.Tensor((n,), "int32"), Y: T.Tensor((n,), "float32")', tile + PLACES[place])
    told = []
    for target in TARGETS:
        run = kernel(target)
        good = np.zeros(4, F32)
        run(np.array([1, 2, 3, 5], np.int32), good)
        with pytest.raises(TileIndexError) as e:
            run(np.array([1, 2, 9, 5], np.int32), np.zeros(4, F32))
        told.append((good.tolist(), e.value.message, e.value.notes, e.value.loc and e.value.loc.line))
    assert told == told[:1] * len(told)
    assert "[9] is out of range" in told[0][1]


def test_tiles_larger_than_memory() -> None:
    body = 'S = T.alloc_shared((1 << 44,), "float32")\nfor i in T.Parallel(n):\n    S[i] = 1.0\n    Y[i] = S[i]'
    kernel = made('Y: T.Tensor((n,), "float32")', body)
    for target in TARGETS:
        with pytest.raises(TileRuntimeError, match="main: there is not enough memory: ") as e:
            kernel(target)(np.zeros(4, F32))
        assert "make tiles smaller" in str(e.value.help)


# -- old values across a store ------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int32", "int8"])
@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("held", ["let", "var"])
def test_a_value_read_under_a_condition_is_older_than_the_store_behind_it(dtype: str, threads: bool, held: str) -> None:
    """The two greatest of each row, kept by exchanges: LLVM used to read after the store what was read before it."""
    hold = {"let": "t = best[s, i]", "var": f't = T.alloc_var("{dtype}"); t = best[s, i]'}[held]
    body = f"""
best = T.alloc_shared((2, 21), "{dtype}")
T.fill(best, T.min_value("{dtype}"))
{"i = T.get_thread_binding()" if threads else "for i in T.Parallel(21):"}
{"if i < 21:" if threads else "  if i != 3:"}
    for j in T.serial(m):
      x = T.alloc_var("{dtype}")
      x = X[i, j]
      for s in T.unroll(2):
        if x > best[s, i]:
          {hold}
          best[s, i] = x
          x = t
    for s in T.unroll(2):
      Y[i, s] = best[s, i]
"""
    params = f'X: T.Tensor((n, m), "{dtype}"), Y: T.Tensor((n, 2), "{dtype}")'
    kernel = made(params, body, "1, threads=32" if threads else "1")
    x = np.random.default_rng(0).integers(-100, 100, (21, 7)).astype(dtype)
    want = np.sort(x, axis=1)[:, :-3:-1]
    for target in TARGETS:
        y = np.zeros((21, 2), dtype)
        kernel(target)(x, y)
        np.testing.assert_array_equal(
            np.delete(y, [] if threads else [3], 0), np.delete(want, [] if threads else [3], 0)
        )


def edge_of(dtype: str) -> Any:
    """A tile whose first 5 columns are inside of A, where its rows are."""

    @T.prim_func
    def main(A: T.Tensor((13, 20), dtype), C: T.Tensor((14, 17), dtype)):
        with T.Kernel(1, threads=32):
            S = T.alloc_shared((13, 17), dtype)
            T.copy(A[2, 15], S)
            T.copy(S, C[0, 0])

    return main


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "int16", "int8", "bfloat16"])
@pytest.mark.parametrize("printer", ["llvm", "numba"])
def test_registers_that_lie_beyond_an_edge(printer: str, dtype: str) -> None:
    """LLVM loaded them without a mask in code for AVX2, which needs two registers for these lanes."""
    target = f"{printer}:x86-64-v3"
    try:
        named_cpu("x86-64-v3")
    except TileValueError:
        pytest.skip("this machine has no AVX2")
    a = (np.arange(260).reshape(13, 20) % 50 + 1).astype(as_dtype(dtype).numpy)
    c, wanted = np.ones((14, 17), a.dtype), np.ones((14, 17), a.dtype)
    wanted[:13] = 0
    wanted[:11, :5] = a[2:, 15:]
    tiledsl.compile(edge_of(dtype), target=target)(a, c)
    assert c.tobytes() == wanted.tobytes()


# -- where code lies in memory --------------------------------------------------------------------------------------
FAR = """
import ctypes, mmap
from llvmlite import ir
from tiledsl.backends.cpu.native import compile_module, host_cpu, load_object

word, byte, pointer = ir.IntType(64), ir.IntType(8), ir.PointerType()

def code(words):  # f(i) = i, by way of a table and of memset
    module = ir.Module("far")
    table = ir.GlobalVariable(module, ir.ArrayType(word, words), "table")
    table.global_constant, table.linkage = True, "internal"
    table.initializer = ir.Constant(table.value_type, list(range(words)))
    clear = ir.Function(module, ir.FunctionType(pointer, [pointer, ir.IntType(32), word]), "memset")
    b = ir.IRBuilder(ir.Function(module, ir.FunctionType(word, [word]), "f").append_basic_block())
    i, room = b.function.args[0], b.alloca(word, 64)
    b.call(clear, [room, ir.Constant(ir.IntType(32), 0), b.mul(b.and_(i, ir.Constant(word, 63)), ir.Constant(word, 8))])
    b.ret(b.load(b.gep(table, [ir.Constant(word, 0), i])))
    return compile_module([module], host_cpu())

def take(size):
    m = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    kept.append(m)
    return ctypes.addressof(ctypes.c_char.from_buffer(m))

kept = []
objects = [code(8), code(1 << 15)]
low = take(3 << 30)  # never touched
for size in (1 << 24, 1 << 20, 1 << 16):  # above it no room is left but for little pieces
    while take(size) > low:
        pass
for made in objects:
    kept.append(load_object(made, ["f"]))
    assert ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(kept[-1].addresses["f"])(5) == 5
print("found")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="maps memory as POSIX does")
def test_code_loads_where_memory_is_in_pieces() -> None:
    """Beside gigabytes of arrays, code and its constants still come together."""
    pytest.importorskip("llvmlite")
    ended = subprocess.run([sys.executable, "-c", FAR], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0 and ended.stdout == "found\n", ended.stderr[-500:]
