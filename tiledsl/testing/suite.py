"""What a backend has to pass: the same numbers as the exact interpreter, on all that it says it can do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tiledsl.backend import Artifact, Availability, Backend, Capabilities, load_backend, resolve
from tiledsl.dtypes import as_dtype
from tiledsl.ir.operations import OPERATIONS, Operation
from tiledsl.testing.fuzz import same_bits
from tiledsl.testing.strategies import Argument, Program

__all__ = ["Report", "run_suite"]

_DTYPES = ("float32", "float16", "bfloat16", "float64", "int32", "int8", "int16", "int64", "uint8", "uint16", "uint32",
           "uint64", "bool")  # fmt: skip


@dataclass(frozen=True)
class Report:
    """What the suite found. passed: names of cases; failed: (case, why); skipped: (case, missing capability)."""

    target: str
    passed: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    skipped: tuple[tuple[str, str], ...]

    @property
    def ok(self) -> bool:
        return bool(self.passed) and not self.failed

    def __str__(self) -> str:
        head = f"{self.target}: {len(self.passed)} passed, {len(self.failed)} failed, {len(self.skipped)} skipped"
        return "\n".join([head, *(f"  {case}: {why}" for case, why in self.failed)])


@dataclass(frozen=True)
class _Case:
    """One check. dtypes: what the backend has to support for it."""

    name: str
    dtypes: frozenset[str]
    run: Callable[[str], None]


def run_suite(target: str, rounds: int, only: str) -> Report:
    """See `tiledsl.testing.conformance`. What the backend itself raises is a failed case."""
    wanted = resolve(target)
    backend = load_backend(wanted.name)
    able = backend.capabilities(wanted).dtypes
    passed: list[str] = []
    failed: list[tuple[str, str]] = []
    skipped: list[tuple[str, str]] = []
    for case in _cases(backend, rounds):
        if not re.search(only, case.name):
            continue
        missing = sorted(case.dtypes - able)
        if missing:
            skipped.append((case.name, ", ".join(missing)))
            continue
        try:
            case.run(str(wanted))
        except Exception as error:
            lines = str(error).splitlines() or [""]
            failed.append((case.name, f"{type(error).__name__}: {lines[0]}"))
        else:
            passed.append(case.name)
    return Report(str(wanted), tuple(passed), tuple(failed), tuple(skipped))


def _cases(backend: Backend, rounds: int) -> Iterator[_Case]:
    yield _Case("protocol", frozenset(), lambda target: _protocol(backend, target))
    for dtype in _DTYPES:
        rows = [r for r in OPERATIONS.values() if r.arity and r.accepts(as_dtype(dtype))]
        for loop in ("Parallel", "serial"):
            program = _elementwise(rows, dtype, loop)
            yield _Case(f"elementwise {dtype} in T.{loop}", _used(program), _runner(program))
    for name, program in _PROGRAMS.items():
        yield _Case(name, _used(program), _runner(program))
    for number in range(rounds):
        from tiledsl.testing.fuzz_run import drawn

        for k, program in enumerate(drawn(5000 + number)):
            yield _Case(f"generated {number}.{k}", _used(program), _runner(program))


def _used(program: Program) -> frozenset[str]:
    words = set(re.findall(r"[a-z]+\d+|bool", program.source)) | {a.dtype for a in program.arguments}
    return frozenset(words & set(_DTYPES))


def _runner(program: Program) -> Callable[[str], None]:
    def run(target: str) -> None:
        kernel = program.kernel()
        want, got = program.make_args(1), program.make_args(1)
        kernel(*want, target="numpy:exact")
        kernel(*got, target=target)
        for p, a, b in zip(kernel.params, want, got, strict=True):
            if isinstance(a, np.ndarray):
                wrong = np.argwhere(~same_bits(a, b))
                assert not len(wrong), (
                    f"{len(wrong)} of {a.size} elements of {p.name} differ, first at {wrong[0].tolist()}: "
                    f"{b[tuple(wrong[0])]!r}, not {a[tuple(wrong[0])]!r}"
                )

    return run


def _protocol(backend: Backend, target: str) -> None:
    """The members give what they promise, and emit is a function of what it is given."""
    wanted = resolve(target)
    assert isinstance(backend.probe(), Availability) and isinstance(backend.capabilities(wanted), Capabilities)
    version = backend.version(wanted)
    assert isinstance(version, str) and version and version == backend.version(wanted), "version changes"
    program = _PROGRAMS["copies"]
    kernel = program.kernel()
    made = []
    for _ in range(2):
        function = kernel.function
        for p in backend.pipeline(wanted):
            function = p(function)
        made.append(backend.emit(function, wanted))
    assert all(isinstance(a, Artifact) for a in made)
    assert made[0].source == made[1].source, "two emissions of one function differ"
    assert not (made[0].payload is not None and backend.capabilities(wanted).cacheable), "a payload cannot be cached"


def _elementwise(rows: Sequence[Operation], dtype: str, loop: str) -> Program:
    """Every operation of the table on one dtype: X, Y, Z and shift counts S to Out and Flag."""
    n = 100
    numbers = [r for r in rows if r.gives == "promoted"]
    flags = [r for r in rows if r.gives == "bool"]
    lines = [f"Out[{k}, p] = {_spelled(r)}" for k, r in enumerate(numbers)]
    lines += [f"Flag[{k}, p] = {_spelled(r)}" for k, r in enumerate(flags)]
    inputs = ", ".join(f"{v}: T.Tensor((N0,), '{dtype}')" for v in "XYZS")
    body = "\n            ".join(lines)
    outs = f"Out: T.Tensor(({max(1, len(numbers))}, N0), '{dtype}'), Flag: T.Tensor(({max(1, len(flags))}, N0), 'bool')"
    source = (
        "import tiledsl\nimport tiledsl.language as T\n\nN0 = T.dynamic('N0')\n\n@T.prim_func\n"
        f"def main({inputs}, {outs}):\n"
        f"    with T.Kernel(T.ceildiv(N0, 64)) as b:\n        for i in T.{loop}(64):\n            p = b * 64 + i\n"
        f"            x, y, z, s = X[p], Y[p], Z[p], S[p]\n            {body}\n\nkernel = tiledsl.compile(main)\n"
    )
    arrays = [Argument(v, dtype, (n,), "special") for v in "XYZ"] + [Argument("S", dtype, (n,), "small")]
    outs_ = [Argument("Out", dtype, (max(1, len(numbers)), n)), Argument("Flag", "bool", (max(1, len(flags)), n))]
    return Program(source, (*arrays, *outs_))


def _spelled(row: Operation) -> str:
    return re.sub(r"\by\b", "s", row.spelling) if "count" in row.draws else row.spelling


def _program(
    params: str, body: str, arguments: Sequence[Argument], grid: str = "2, 3", names: str = "(bx, by)"
) -> Program:
    text = "\n".join(f"        {line}" for line in body.strip("\n").splitlines())
    source = (
        f"import tiledsl\nimport tiledsl.language as T\n\n@T.prim_func\ndef main({params}):\n"
        f"    with T.Kernel({grid}) as {names}:\n{text}\n\nkernel = tiledsl.compile(main)\n"
    )
    return Program(source, tuple(arguments))


_F = "float32"
_MATRIX = "A: T.Tensor((37, 50), 'float32'), B: T.Tensor((50, 41), 'float32'), C: T.Tensor((37, 41), 'float32')"
_MATRICES = (Argument("A", _F, (37, 50)), Argument("B", _F, (50, 41)), Argument("C", _F, (37, 41)))

_PROGRAMS: dict[str, Program] = {
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
}  # fmt: skip
