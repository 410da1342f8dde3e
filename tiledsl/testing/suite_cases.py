"""The programs of the conformance suite: every operation of the table on every dtype that a backend lists.

Each program takes what is awkward: 100 elements (no multiple of 16 or 64), tiles of 20 by 17, infinities, NaN, extreme
integers. Elements of types below a byte are made from, and stored as, a wider type, their carrier.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tiledsl.dtypes import SCALARS, as_dtype
from tiledsl.ir.operations import OPERATIONS, Operation
from tiledsl.testing.strategies import Argument, Program

__all__ = ["PROGRAMS", "cases"]

_N = 100
# What T.gemm multiplies: (A, B, C)
_PRODUCTS = (("float32", "float32", "float32"), ("float16", "float16", "float32"), ("bfloat16", "bfloat16", "float32"),
             ("float16", "float16", "float16"), ("float64", "float64", "float64"), ("int8", "int8", "int32"),
             ("uint8", "uint8", "int32"), ("float8_e4m3fn", "float8_e4m3fn", "float32"),
             ("float8_e5m2", "float8_e5m2", "float32"), ("float8_e4m3fn", "float8_e5m2", "float16"))  # fmt: skip


def cases(able: frozenset[str]) -> Iterator[tuple[str, Program]]:
    """(name, program) for all of the language; programs over several dtypes take those that are able."""
    order = sorted(SCALARS, key=lambda t: (as_dtype(t).kind, -as_dtype(t).bits, t))
    for t in order:
        rows = [r for r in OPERATIONS.values() if r.arity and r.accepts(as_dtype(t)) and r.family != "Tiles"]
        for loop in ("Parallel", "serial"):
            yield f"elementwise {t} in T.{loop}", _elementwise(rows, t, loop)
        targets = [x for x in order if x in able and x != t]
        yield f"casts from {t}", _casts(t, [x for x in targets if not _sub_byte(x)])
        if any(map(_sub_byte, targets)):
            yield f"casts from {t} below a byte", _casts(t, [x for x in targets if _sub_byte(x)])
        yield f"copies {t}", _copies(t)
        reductions = [r for r in OPERATIONS.values() if r.name.startswith("reduce_") and r.accepts(as_dtype(t))]
        if reductions and not _sub_byte(t):
            yield f"reductions {t}", _reductions(reductions, t)
        if reductions and not _sub_byte(t):
            yield f"scans and reducers {t}", _scans(t)
        if as_dtype(t).is_int and not _sub_byte(t) or as_dtype(t).is_float and as_dtype(t).bits >= 16:
            yield f"atomics {t}", _atomics(t)
    for a, b, c in _PRODUCTS:
        for transposed in (False, True):
            yield f"gemm {a}, {b} to {c}{' transposed' * transposed}", _product(a, b, c, transposed)
    yield from PROGRAMS.items()


def _sub_byte(t: str) -> bool:
    return as_dtype(t).bits < 8


def _carrier(t: str) -> str:
    """What an array of t is passed as."""
    return t if not _sub_byte(t) else "float32" if as_dtype(t).is_float else "int32"


def _into(t: str, x: str) -> str:
    return f"T.cast({x}, '{t}')" if _sub_byte(t) else x


def _elementwise(rows: Sequence[Operation], dtype: str, loop: str) -> Program:
    """Every operation of the table on one dtype: X, Y, Z and shift counts S to Out and Flag."""
    numbers = [r for r in rows if r.gives == "promoted"]
    flags = [r for r in rows if r.gives == "bool"]
    lines = [f"x, y, z, s = {', '.join(_into(dtype, f'{v}[p]') for v in 'XYZS')}"]
    lines += [f"Out[{k}, p] = {_into(dtype, _spelled(r))}" for k, r in enumerate(numbers)]
    lines += [f"Flag[{k}, p] = {_spelled(r)}" for k, r in enumerate(flags)]
    held = _carrier(dtype)
    outs = [Argument("Out", held, (max(1, len(numbers)), _N)), Argument("Flag", "bool", (max(1, len(flags)), _N))]
    arrays = [Argument(v, held, (_N,), "special") for v in "XYZ"]
    return _over_elements([*arrays, Argument("S", held, (_N,)), *outs], lines, loop)


def _spelled(row: Operation) -> str:
    return re.sub(r"\by\b", "s", row.spelling) if "count" in row.draws else row.spelling


def _casts(src: str, targets: Sequence[str]) -> Program:
    """Every value's way to other dtypes."""
    arguments = [Argument("X", _carrier(src), (_N,), "special")]
    lines = []
    for k, t in enumerate(targets):
        arguments.append(Argument(f"O{k}", _carrier(t), (_N,)))
        lines.append(f"O{k}[p] = T.cast({_into(src, 'X[p]')}, '{t}')")
    return _over_elements(arguments, lines, "Parallel")


def _over_elements(arguments: Sequence[Argument], lines: Sequence[str], loop: str) -> Program:
    """A kernel over blocks of 64 of the last axes of its arguments, whose extent is symbolic."""
    params = []
    for a in arguments:
        lead = "".join(f"{n}, " for n in (a.shape or ())[:-1])
        params.append(f"{a.name}: T.Tensor(({lead}N0,), '{a.dtype}')")
    body = "\n            ".join(["p = b * 64 + i", *lines])
    source = (
        "import tiledsl\nimport tiledsl.language as T\n\nN0 = T.dynamic('N0')\n\n@T.prim_func\n"
        f"def main({', '.join(params)}):\n"
        f"    with T.Kernel(T.ceildiv(N0, 64)) as b:\n        for i in T.{loop}(64):\n            {body}\n\n"
        "kernel = tiledsl.compile(main)\n"
    )
    return Program(source, tuple(arguments))


def _copies(t: str) -> Program:
    """Tiles that hang over every edge, a tile filled, a tile copied to another dtype and back."""
    held, wide = _carrier(t), "int32" if as_dtype(t).is_int else "float32"
    wide = "uint8" if as_dtype(t).is_bool else wide
    fill = "True" if as_dtype(t).is_bool else "2"
    return _program(
        f"A: T.Tensor((37, 50), '{held}'), O: T.Tensor((2, 37, 50), '{held}')",
        f"""
x = T.alloc_shared((20, 17), '{t}')
y = T.alloc_fragment((20, 17), '{wide}')
z = T.alloc_shared((3, 20), '{t}')
T.copy(A[bx * 20 - 1, by * 17 + 2], x)
T.copy(x, y)
T.copy(x, O[0, bx * 20, by * 17])
T.fill(z, {fill})
T.copy(x[3, :], z[1, 0:17])
T.copy(y, x)
T.copy(x[0:19, 1:17], O[1, bx * 20, by * 17])
T.copy(z[1:3, 0:9], O[1, bx * 20, by * 17])
""",
        (Argument("A", held, (37, 50), "special"), Argument("O", held, (2, 37, 50))),
    )


def _reductions(rows: Sequence[Operation], t: str) -> Program:
    """Along both axes, onto cleared and onto old values, of tiles with a whole number of lanes and without."""
    lines = [f"x = T.alloc_fragment((20, 37), '{t}')", f"r = T.alloc_fragment((20,), '{t}')",
             f"c = T.alloc_fragment((37,), '{t}')", "T.copy(A, x)", "T.clear(r)", "T.clear(c)"]  # fmt: skip
    k = 0
    for row in rows:
        options = [""]
        if "clear" in row.params:
            options.append(", clear=False")
        if "nan_propagate" in row.params and as_dtype(t).is_float:
            options.append(", nan_propagate=True")
        for option in options:
            lines += [f"T.{row.name}(x, r, dim=1{option})", f"T.copy(r, O[{k}, 0])"]
            lines += [f"T.{row.name}(x, c, dim=0{option})", f"T.copy(c, O[{k + 1}, 0])"]
            k += 2
    arguments = (Argument("A", t, (20, 37), "special"), Argument("O", t, (k, 40)))
    return _program(
        f"A: T.Tensor((20, 37), '{t}'), O: T.Tensor(({k}, 40), '{t}')", "\n".join(lines), arguments, "1", "bx"
    )


def _scans(t: str) -> Program:
    """Running sums and maxima both ways along both axes, and reducers that all iterations of a nest contribute to."""
    lines = [f"x = T.alloc_fragment((20, 37), '{t}')", f"y = T.alloc_fragment((20, 37), '{t}')", "T.copy(A, x)"]
    k = 0
    for name in ("cumsum", "cummax"):
        for dim in (0, 1):
            for reverse in (False, True):
                lines += [f"T.{name}(x, y, dim={dim}, reverse={reverse})", f"T.copy(y, O[{k}, 0, 0])"]
                k += 1
    updates = (("sum", "r[j] += x[i, j]"), ("max", "r[j] = T.max(r[j], x[i, j])"))
    for op, update in () if as_dtype(t).is_float and as_dtype(t).bits < 16 else updates:  # none of float8
        lines += [f"r = T.alloc_reducer((37,), '{t}', op='{op}')", "T.reducer_init(r)"]
        lines += ["for i, j in T.Parallel(20, 37):", f"    {update}", "T.finalize_reducer(r)"]
        lines += ["for j in T.Parallel(37):", f"    O[{k}, 0, j] = r[j]"]
        k += 1
    arguments = (Argument("A", t, (20, 37), "special"), Argument("O", t, (k, 20, 37)))
    params = f"A: T.Tensor((20, 37), '{t}'), O: T.Tensor(({k}, 20, 37), '{t}')"
    return _program(params, "\n".join(lines), arguments, "1", "bx")


def _product(a: str, b: str, c: str, transposed: bool) -> Program:
    """A chain along k with a tail in every direction, onto old values, then rounded and stored."""
    flags = ", transpose_A=True, transpose_B=True" if transposed else ""
    shapes = ("(13, 20)", "(15, 13)") if transposed else ("(20, 13)", "(13, 15)")
    starts = ("k * 13, bx * 20", "by * 15, k * 13") if transposed else ("bx * 20, k * 13", "k * 13, by * 15")
    left, right = ((50, 37), (41, 50)) if transposed else ((37, 50), (50, 41))
    return _program(
        f"A: T.Tensor({left}, '{a}'), B: T.Tensor({right}, '{b}'), C: T.Tensor((37, 41), '{c}')",
        f"""
a = T.alloc_shared({shapes[0]}, '{a}')
b = T.alloc_shared({shapes[1]}, '{b}')
c = T.alloc_fragment((20, 15), '{c}')
T.copy(C[bx * 20, by * 15], c)
for k in T.Pipelined(4, num_stages=2):
    T.copy(A[{starts[0]}], a)
    T.copy(B[{starts[1]}], b)
    T.gemm(a, b, c{flags})
T.copy(c, C[bx * 20, by * 15])
""",
        (Argument("A", a, left), Argument("B", b, right), Argument("C", c, (37, 41))),
        "2, 3",
        "(bx, by)",
    )


def _atomics(t: str) -> Program:
    """Seven counters that many elements meet; sums of floats are whole and small, so that their order is free."""
    ops = ["add", "max", "min", *(["and", "or", "xor"] if as_dtype(t).is_int else [])]
    lines = [f"T.atomic_{op}(O[{k}, I[p] % 7], X[p])" for k, op in enumerate(ops)]
    lines.append("T.atomic_store(P[p], T.atomic_load(X[p]))")
    arguments = (Argument("X", t, (_N,), "whole"), Argument("I", "int32", (_N,), "huge"),
                 Argument("O", t, (len(ops), 7), "whole"), Argument("P", t, (_N,)))  # fmt: skip
    body = "for i in T.Parallel(64):\n    p = bx * 64 + i\n" + "\n".join(f"    {line}" for line in lines)
    params = ", ".join(f"{a.name}: T.Tensor({a.shape}, '{a.dtype}')" for a in arguments)
    return _program(params, body, arguments, "2", "bx")


def _program(
    params: str, body: str, arguments: Sequence[Argument], grid: str = "2, 3", names: str = "(bx, by)"
) -> Program:
    text = "\n".join(f"        {line}" for line in body.strip("\n").splitlines())
    source = (
        f"import tiledsl\nimport tiledsl.language as T\n\n@T.prim_func\ndef main({params}):\n"
        f"    with T.Kernel({grid}) as {names}:\n{text}\n\nkernel = tiledsl.compile(main)\n"
    )
    return Program(source, tuple(arguments))


def _threads(params: str, body: str, arguments: Sequence[Argument]) -> Program:
    """Two blocks of 64 threads, that is two warps; tx is the thread."""
    return _program(params, "tx = T.get_thread_binding(0)\n" + body.strip("\n"), arguments, "2, threads=64", "bx")


_F = "float32"
_MATRIX = "A: T.Tensor((37, 50), 'float32'), B: T.Tensor((50, 41), 'float32'), C: T.Tensor((37, 41), 'float32')"
_MATRICES = (Argument("A", _F, (37, 50)), Argument("B", _F, (50, 41)), Argument("C", _F, (37, 41)))

PROGRAMS: dict[str, Program] = {
    "copies": _program(
        "A: T.Tensor((37, 50), 'float32'), O: T.Tensor((37, 50), 'float32')",
        """
x = T.alloc_shared((20, 17), 'float32')
T.copy(A[bx * 20 - 1, by * 17 + 2], x)
T.copy(x, O[bx * 20, by * 17])
""",
        (Argument("A", _F, (37, 50)), Argument("O", _F, (37, 50))),
    ),
    "gemm": _program(
        _MATRIX,
        """
a = T.alloc_shared((20, 13), 'float32')
b = T.alloc_shared((13, 15), 'float32')
c = T.alloc_fragment((20, 15), 'float32')
T.clear(c)
for k in T.Pipelined(4, num_stages=2):
    T.copy(A[bx * 20, k * 13], a)
    T.copy(B[k * 13, by * 15], b)
    T.gemm(a, b, c)
for i, j in T.Parallel(20, 15):
    c[i, j] = T.max(c[i, j], 0.0) * 0.5
T.copy(c, C[bx * 20, by * 15])
""",
        _MATRICES,
    ),
    "gemm of halves": _program(
        _MATRIX,
        """
a = T.alloc_shared((13, 20), 'bfloat16')
b = T.alloc_shared((15, 13), 'bfloat16')
c = T.alloc_fragment((20, 15), 'float16')
for i, k in T.Parallel(20, 13):
    a[k, i] = A[bx * 20 + i, k]
for k, j in T.Parallel(13, 15):
    b[j, k] = B[k, by * 15 + j]
T.gemm(a, b, c, transpose_A=True, transpose_B=True, clear_accum=True)
T.copy(c, C[bx * 20, by * 15])
""",
        _MATRICES,
    ),
    "reductions": _program(
        "A: T.Tensor((37, 50), 'float32'), O: T.Tensor((6, 40), 'float32')",
        """
x = T.alloc_fragment((20, 50), 'float32')
r = T.alloc_fragment((20,), 'float32')
T.copy(A[bx * 20, 0], x)
for i, j in T.Parallel(20, 50):  # a row of -0, and one of NaN
    if i == 1:
        x[i, j] = -0.0
    if i == 2:
        x[i, j] = T.infinity('float32') - T.infinity('float32')
T.reduce_sum(x, r, dim=1)
T.copy(r, O[0, bx * 20])
T.reduce_max(x, r, dim=1)
T.copy(r, O[1, bx * 20])
T.reduce_min(x, r, dim=1, clear=False)
T.copy(r, O[2, bx * 20])
T.reduce_absmax(x, r, dim=1, nan_propagate=True)
T.copy(r, O[3, bx * 20])
T.reduce_abssum(x, r, dim=1)
T.copy(r, O[4, bx * 20])
T.reduce_sum(x, r, dim=1, clear=False)
T.copy(r, O[5, bx * 20])
""",
        (Argument("A", _F, (37, 50), "special"), Argument("O", _F, (6, 40))),
        "2",
        "bx",
    ),
    "control": _program(
        "A: T.Tensor((37,), 'float32'), I: T.Tensor((37,), 'int32'), n: T.int32, O: T.Tensor((37,), 'float32')",
        """
v = T.alloc_var('int32', 0)
while v < n % 5 + 1:
    v += 1
    if v == 4:
        break
for k in T.serial(v, -1, -1):
    if k == 2:
        continue
    for i in T.Parallel(20):
        p = bx * 20 + i
        if A[p] > 0 and I[p] < 20:
            O[p] = O[p] + A[I[p]] if I[p] % 2 == 0 else O[p] - k
        else:
            for q in T.serial(I[p] % 4):
                if q == 2:
                    break
                O[p] += q
""",
        (Argument("A", _F, (37,)), Argument("I", "int32", (37,), "index"), Argument("n", "int32", None, "index"),
         Argument("O", _F, (37,))),
        "2",
        "bx",
    ),
    "threads": _threads(
        "A: T.Tensor((2, 64), 'float32'), O: T.Tensor((2, 64), 'float32')",
        """
x = T.alloc_shared((64,), 'float32')
private = T.alloc_local((3,), 'float32')
x[tx] = A[bx, tx]
for k in T.serial(3):
    private[k] = A[bx, tx] * k
T.sync_threads()
total = T.alloc_var('float32', 0.0)
for k in T.serial(3):
    total += private[k] * x[63 - tx]
T.sync_threads()
if tx % 3 == 0:
    x[tx] = total
T.sync_threads()
O[bx, tx] = x[(tx * 5) % 64] + total
""",
        (Argument("A", _F, (2, 64)), Argument("O", _F, (2, 64))),
    ),
    "warps": _threads(
        "A: T.Tensor((2, 64), 'int32'), O: T.Tensor((9, 2, 64), 'int32')",
        """
x = A[bx, tx]
O[0, bx, tx] = T.shfl_sync(x, 5)
O[1, bx, tx] = T.shfl_xor(x, 3)
O[2, bx, tx] = T.warp_reduce_sum(x)
O[3, bx, tx] = T.warp_reduce_max(x)
O[4, bx, tx] = T.warp_reduce_min(x)
O[5, bx, tx] = T.any_sync(x > 3)
O[6, bx, tx] = T.all_sync(x > -5)
O[7, bx, tx] = T.cast(T.ballot(x > 0), 'int32')
O[8, bx, tx] = T.syncthreads_count(x > 0)
""",
        (Argument("A", "int32", (2, 64)), Argument("O", "int32", (9, 2, 64))),
    ),
}  # fmt: skip
