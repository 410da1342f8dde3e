"""Elements of a block's own tiles out of range: the same error on every target, at compile time where it is certain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from properties import support

import tiledsl
import tiledsl.kernels
import tiledsl.language as T
from tiledsl import ir
from tiledsl.backends.cpu.pipeline import cpu_pipeline
from tiledsl.errors import TileIndexError
from tiledsl.frontend.reader import from_text
from tiledsl.interp import run
from tiledsl.ir.equal import equal
from tiledsl.ir.printer import to_text
from tiledsl.ir.walk import walk
from tiledsl.passes import pipeline
from tiledsl.passes.instruments import CheckSemantics, Verify
from tiledsl.testing import available_targets

# mypy: disable-error-code="valid-type,misc,no-untyped-def"

TARGETS = available_targets()
n = T.dynamic("n")


@T.prim_func
def gather(I: T.Tensor((n,), "int32"), Y: T.Tensor((n,), "float32")):
    """Sixteen lanes at a time, behind a condition."""
    with T.Kernel(T.ceildiv(n, 128)) as b:
        S = T.alloc_shared((64,), "float32")
        for i in T.Parallel(64):
            S[i] = i
        for i in T.Parallel(128):
            if b * 128 + i < n:
                Y[b * 128 + i] = S[I[b * 128 + i]]


@T.prim_func
def scatter(I: T.Tensor((n,), "int32"), Y: T.Tensor((n,), "float32")):
    with T.Kernel(1):
        S = T.alloc_fragment((2, 64), "float16")
        T.clear(S)
        for i in T.Parallel(n):
            S[i % 2, I[i]] = 1.0
        T.copy(S[0, 0:64], Y[0:64])


@T.prim_func
def serial(I: T.Tensor((n,), "int64"), Y: T.Tensor((n,), "float32")):
    """Scalar code; the index reads memory that changes."""
    with T.Kernel(1, threads=1):
        S = T.alloc_shared((64,), "int32")
        T.clear(S)
        for i in T.serial(n):
            S[I[i]] = i
        for i in T.serial(n):
            Y[i] = S[I[i]]


@T.prim_func
def lazy(I: T.Tensor((n,), "int32"), Y: T.Tensor((n,), "float32")):
    """Sides that are not taken are not looked at."""
    with T.Kernel(1):
        S = T.alloc_shared((64,), "float32")
        T.fill(S, 2.0)
        for i in T.Parallel(n):
            Y[i] = T.if_then_else(I[i] < 0, -1.0, S[I[i]])
            if I[i] >= 0 and S[I[i]] == 2.0:
                Y[i] += 1.0


@T.prim_func
def while_reads(I: T.Tensor((n,), "int32"), Y: T.Tensor((n,), "float32")):
    """The condition is evaluated again and again."""
    with T.Kernel(1, threads=1):
        S = T.alloc_shared((64,), "int32")
        at = T.alloc_var("int32", 0)
        for i in T.Parallel(64):
            S[i] = I[i] - i
        while S[at] == 0:
            at += 1
            if at == 7:
                continue
        Y[0] = at


@T.prim_func
def threads(I: T.Tensor((n,), "int32"), Y: T.Tensor((n,), "float32")):
    with T.Kernel(T.ceildiv(n, 64), threads=64) as b:
        S = T.alloc_shared((64,), "float32")
        tx = T.get_thread_binding()
        S[tx] = tx
        T.sync_threads()
        if b * 64 + tx < n:
            Y[b * 64 + tx] = S[I[b * 64 + tx]]


@T.prim_func
def atomics(I: T.Tensor((n,), "int32"), Y: T.Tensor((n,), "float32")):
    with T.Kernel(1, threads=32):
        S = T.alloc_shared((64,), "float32")
        T.clear(S)
        for i in T.Parallel(n):
            T.atomic_add(S[I[i]], 1.0)
        T.copy(S, Y[0:64])


@T.prim_func
def reducers(I: T.Tensor((n,), "int32"), Y: T.Tensor((n,), "float32")):
    with T.Kernel(1):
        S = T.alloc_reducer((64,), "float32", "max")
        T.fill(S, -T.infinity("float32"))
        for i in T.Parallel(n):
            S[I[i]] = T.max(S[I[i]], 1.0 * i)
        T.finalize_reducer(S)
        T.copy(S, Y[0:64])


@T.prim_func
def nibbles(I: T.Tensor((n,), "int32"), Y: T.Tensor((n,), "float32")):
    with T.Kernel(1):
        S = T.alloc_shared((64,), "int4")
        T.clear(S)
        for i in T.Parallel(n):
            Y[i] = T.cast(S[I[i]], "float32")


@T.prim_func
def view(I: T.Tensor((n,), "int32"), Y: T.Tensor((n,), "float32")):
    """The tile's own extents count, not those of what it is a view of."""
    with T.Kernel(1):
        S = T.alloc_shared((4, 64), "float32")
        T.clear(S)
        V = T.view(S, (64, 4))
        for i, j in T.Parallel(n, 4):
            if j == 3:
                Y[i] = V[I[i], j]


KERNELS = (gather, scatter, serial, lazy, while_reads, threads, atomics, reducers, nibbles, view)


def call(kernel: Any, target: str, index: Any) -> Any:
    dtype = kernel.function.params[0].buffer.dtype.numpy
    y = np.zeros(len(index), np.float32)
    tiledsl.compile(kernel, target=target)(np.asarray(index, dtype), y)
    return y


def indices() -> Any:
    return np.arange(200) % 64


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.function.name)
@pytest.mark.parametrize("wrong", [64, -1, 2**31 - 1, -(2**31)])
def test_one_wild_index_is_the_interpreters_error(kernel: Any, wrong: int) -> None:
    good, bad = indices(), indices()
    if kernel is while_reads:  # goes on until it leaves the tile; where it stops before, nothing is read
        good, bad = np.where(good == 50, -1, good), good
    elif kernel is lazy:
        good[3], bad[150] = -5, abs(wrong) - (wrong == 2**31 * -1) if wrong < -1 or wrong > 0 else 77
    else:
        bad[150] = wrong
    want = call(kernel, "numpy:exact", good)
    with pytest.raises(TileIndexError) as told:
        call(kernel, "numpy:exact", bad)
    for target in TARGETS:
        np.testing.assert_array_equal(call(kernel, target, good), want)
        with pytest.raises(TileIndexError) as e:
            call(kernel, target, bad)
        assert e.value.message == told.value.message
        assert (e.value.loc.line, e.value.help) == (told.value.loc.line, told.value.help)  # type: ignore[union-attr]
        assert e.value.notes[-1] == told.value.notes[-1]
        if kernel is not threads:
            assert e.value.notes == told.value.notes
        np.testing.assert_array_equal(call(kernel, target, good), want)  # and the kernel still works


@T.prim_func
def regions(I: T.Tensor((n,), "int32"), Y: T.Tensor((16, 16), "float32")):
    with T.Kernel(1):
        A = T.alloc_shared((32, 16), "float32")
        B = T.alloc_shared((16, 16), "float32")
        C = T.alloc_fragment((16, 16), "float32")
        row = T.alloc_fragment((64,), "float32")
        T.fill(A, 1.0)
        T.fill(B, 1.0)
        T.clear(C)
        T.clear(row)
        T.gemm(A[I[0] : I[0] + 16, :], B, C)
        T.reduce_sum(A[0:16, :], row[I[1] : I[1] + 16], dim=1)
        T.cumsum(A[I[2] : I[2] + 16, :], C, dim=0)
        T.copy(C, Y)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("start", [-1, 17, 49, 2**30])
def test_regions_of_tile_operations(which: int, start: int) -> None:
    if which == 1 and start == 17:
        start = 50
    good, bad = np.array([3, 0, 16], np.int32), np.array([3, 0, 16], np.int32)
    bad[which] = start
    want, y = np.zeros((2, 16, 16), np.float32)
    tiledsl.compile(regions, target="numpy:exact")(good, want)
    with pytest.raises(TileIndexError, match=r"\[.*:.*\] is out of range on axis 0") as told:
        tiledsl.compile(regions, target="numpy:exact")(bad, y)
    for target in TARGETS:
        kernel = tiledsl.compile(regions, target=target)
        kernel(good, y)
        np.testing.assert_array_equal(y, want)
        with pytest.raises(TileIndexError) as e:
            kernel(bad, y)
        assert (e.value.message, e.value.help) == (told.value.message, told.value.help)


def lowered(kernel: Any, instruments: Any = ()) -> ir.Function:
    return pipeline.run(kernel.function, cpu_pipeline(), instruments)


def count_tests(function: ir.Function) -> int:
    names = [p.name for p in cpu_pipeline()]
    guarded = pipeline.run(function, cpu_pipeline()[: names.index("guard_bounds") + 1], ())
    return sum(isinstance(s, ir.Debug) and s.kind == "bounds" for k in guarded.kernels for s in walk(k.body))


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k is not while_reads], ids=lambda k: k.function.name)
def test_the_loop_stage_means_the_same(kernel: Any) -> None:
    dtype = kernel.function.params[0].buffer.dtype.numpy
    good, bad = indices().astype(dtype), indices().astype(dtype)
    bad[150] = 77
    checks = [Verify(), CheckSemantics(lambda seed: [good, np.zeros(200, np.float32)], 0)]
    loops = lowered(kernel, checks)
    assert equal(from_text(to_text(loops)), loops)
    with pytest.raises(TileIndexError) as told:
        run(kernel.function, [bad, np.zeros(200, np.float32)])
    with pytest.raises(TileIndexError) as e:
        run(loops, [bad, np.zeros(200, np.float32)])
    assert e.value.message == told.value.message


# -- what is certain ---------------------------------------------------------------------------------------------


def certain(statement: str) -> Any:
    return support.kernel_from(f"""
import tiledsl.language as T

n = T.dynamic("n")

@T.prim_func
def main(I: T.Tensor((n,), "int32"), Y: T.Tensor((n,), "float32")):
    with T.Kernel(T.ceildiv(n, 64), threads=64) as b:
        S = T.alloc_shared((64,), "float32")
        F = T.alloc_fragment((8, 16), "float32")
        T.clear(S)
        T.clear(F)
        for i in T.Parallel(16):
            {statement}
""").function


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ("S[i + 64] = 0.0", "S[64...79] is out of range: S is float32 of shape (64,)"),
        ("Y[i] = S[i - 16]", "S[-16...-1] is out of range: S is float32 of shape (64,)"),
        ("Y[i] = F[i % 8, i + 16]", "F[-8...15, 16...31] is out of range: F is float32 of shape (8, 16)"),
        ("S[T.max(I[i], 64)] = 0.0", "S[64...2147483647] is out of range"),
        ("T.atomic_add(S[i * 2 + 64], 1.0)", "S[64...94] is out of range"),
    ],
)
def test_what_is_always_out_of_range_does_not_compile(statement: str, text: str) -> None:
    with pytest.raises(TileIndexError) as e:
        pipeline.run(certain(statement), cpu_pipeline(), ())
    assert e.value.message.startswith(text)
    assert e.value.loc is not None and e.value.loc.line == 14
    assert e.value.notes[-1].startswith(f"{text[0]} was allocated at")
    assert "enlarge the buffer" in str(e.value.help)


@pytest.mark.parametrize(
    "statement",
    [
        "Y[i] = T.if_then_else(i >= 16, S[i + 64], 0.0)",
        "for j in T.serial(4, 4): S[j + 64] = 0.0",
        "for j in T.serial(T.min(n, 0)): S[j + 64] = 0.0",
        "if i + 64 < 64: S[i + 64] = 0.0",
        "if b < 0: S[i + 64] = 0.0",
    ],
)
def test_what_never_runs_is_not_refused(statement: str) -> None:
    assert pipeline.run(certain(statement), cpu_pipeline(), ()).stage == "loop"


@pytest.mark.parametrize(
    "statement",
    [
        "Y[i] = T.if_then_else(I[i] > 0, S[i + n + 64], 0.0)",
        "if I[i] > 0: S[i + 64] = 0.0",
        "for j in T.serial(I[i]): S[j + 64] = 0.0",
        "for j in T.serial(2):\n                if I[i] <= 0: break\n                S[j + 64] = 0.0",
        "while I[i] > 0: S[i + 64] = 0.0",
    ],
)
@pytest.mark.parametrize("target", ["llvm", "numpy"])
def test_what_the_data_decides_is_told_when_it_happens(statement: str, target: str) -> None:
    kernel, y = tiledsl.compile(certain(statement), target=target), np.zeros(16, np.float32)
    kernel(np.zeros(16, np.int32), y)
    with pytest.raises(TileIndexError, match=r"S\[\d+\] is out of range"):
        kernel(np.ones(16, np.int32), y)


@pytest.mark.parametrize(
    ("statement", "count"),
    [
        ("S[i * 4 + 3] = F[i // 2, i]", 0),
        ("Y[i] = S[I[i] & 63] + S[(i ^ 5) + 48] + S[(i | 32) & -4]", 0),
        ("S[T.clamp(I[i], 0, 63)] = 1.0", 0),
        ("S[T.cast(T.cast(I[i], 'uint8'), 'int32') >> 2] = 1.0", 0),
        ("S[b * 0 + i] = S[n - n + i]", 0),
        ("S[i + n % 49] = 1.0", 0),
        ("S[i + n % 50] = 1.0", 1),
        ("k = I[i]; S[k] = S[k] + S[k] * 2.0", 1),  # one test serves all accesses
        ("T.device_assert(0 <= b and b < 64); S[b] = 1.0", 0),
    ],
)
def test_proofs_cost_nothing(statement: str, count: int) -> None:
    assert count_tests(certain(statement)) == count


def test_kernels_of_the_library_have_no_tests() -> None:
    """Products and attention are proved to stay in their tiles."""
    found: list[ir.Function] = []
    call = tiledsl.JITKernel.__call__

    def noting(kernel: tiledsl.JITKernel, *args: Any, **kw: Any) -> Any:
        found.append(kernel.function)
        return call(kernel, *args, **kw)

    x, q = np.ones((70, 70), np.float32), np.ones((1, 70, 2, 64), np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiledsl.JITKernel, "__call__", noting)
        patch.setenv("TILEDSL_TARGET", "numpy")
        tiledsl.kernels.matmul(x, x)
        tiledsl.kernels.flash_attention(q, q, q, causal=True)
        tiledsl.kernels.softmax(x)
    assert len(found) >= 3
    assert list(map(count_tests, found)) == [0] * len(found)


def test_explain_names_what_is_tested() -> None:
    index, y = indices().astype(np.int32), np.zeros(200, np.float32)
    assert "tests indices of S, gathers from S" in str(tiledsl.compile(gather, target="llvm").explain(index, y))
