"""Tracing: what Python means inside a kernel, run on the interpreter against NumPy."""

from __future__ import annotations

import dataclasses
import inspect
import linecache
from typing import Any

import numpy as np
import pytest

import tiledsl.language as T
from tiledsl import ir
from tiledsl.errors import TileError
from tiledsl.frontend import PrimFunc, captures, is_lazy, trace_prim_func
from tiledsl.frontend.reader import from_text
from tiledsl.interp import run
from tiledsl.ir.equal import equal
from tiledsl.ir.printer import to_text
from tiledsl.ir.verifier import verify
from tiledsl.ir.walk import walk

# mypy: disable-error-code="no-untyped-def,valid-type,misc"


def execute(kernel: PrimFunc, *args: Any) -> Any:
    """Runs the kernel; gives its last argument."""
    verify(kernel.function)
    assert equal(from_text(to_text(kernel.function)), kernel.function)
    run(kernel.function, args)
    return args[-1]


def statements(kernel: PrimFunc, kind: type) -> list[Any]:
    return [n for k in kernel.function.kernels for n in walk(k) if isinstance(n, kind)]


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def test_a_name_keeps_its_value():
    @T.prim_func
    def kernel(A: T.Tensor((4,), T.int32), B: T.Tensor((4,), T.int32)):
        with T.Kernel(1):
            x = A[0]
            pair = (A[1], A[2])
            table = {"three": A[3]}
            A[0] = 10
            A[1] = 11
            A[2] = 12
            A[3] = 13
            B[0] = x
            B[1] = pair[0]
            B[2] = pair[1]
            B[3] = table["three"]

    assert execute(kernel, ints(1, 2, 3, 4), ints(0, 0, 0, 0)).tolist() == [1, 2, 3, 4]


def test_swap_and_chained_assignment():
    @T.prim_func
    def kernel(A: T.Tensor((6,), T.int32)):
        with T.Kernel(1):
            A[0], A[1] = A[1], A[0]
            p = T.alloc_var(T.int32, 5)
            q = T.alloc_var(T.int32, 7)
            p, q = q, p
            copy = p
            p = 1
            A[2] = A[3] = q
            A[4] = copy
            (first, *rest), last = [A[0], 40, 50], 60
            A[5] = first + rest[0] + rest[1] + last

    assert execute(kernel, ints(1, 2, 0, 0, 0, 0)).tolist() == [2, 1, 5, 5, 7, 152]


def test_variables_are_stored_into():
    @T.prim_func
    def kernel(A: T.Tensor((4,), T.int32)):
        with T.Kernel(1):
            total = T.alloc_var(T.int32, 0)
            largest = T.alloc_var(T.int32, -100)
            for i in T.serial(4):
                total += A[i]
                if A[i] > largest:
                    largest = A[i]
                elif A[i] < 0:
                    total -= 1
            A[0] = total
            A[1] = largest
            half: T.float32 = largest
            A[2] = T.cast(half / 2 * 10, T.int32)

    assert execute(kernel, ints(3, -9, 7, 2)).tolist() == [2, 7, 35, 2]


def test_while_break_continue():
    @T.prim_func
    def kernel(n: T.int32, A: T.Tensor((3,), T.int32)):
        with T.Kernel(1):
            steps = T.alloc_var(T.int32, 0)
            x = T.alloc_var(T.int32)
            x = n
            while x != 1 and steps < 1000:
                x = x // 2 if x % 2 == 0 else 3 * x + 1
                steps += 1
            A[0] = steps
            odd = T.alloc_var(T.int32, 0)
            for i in range(100):
                if i == n:
                    break
                if i % 2 == 0:
                    continue
                odd += i
            A[1] = odd
            k = T.alloc_var(T.int32, 0)
            while True:
                k += 1
                if k * k > n:
                    break
            A[2] = k

    assert execute(kernel, 27, ints(0, 0, 0)).tolist() == [111, sum(range(1, 27, 2)), 6]


def test_branches():
    @T.prim_func
    def kernel(A: T.Tensor((8,), T.int32), meta: T.Tensor((8,), T.int32)):
        with T.Kernel(8) as bx:
            value = A[bx]
            if value < 2:
                A[bx] = 100
            elif 2 <= value < 4:
                A[bx] = 200
            elif value == 5 or value == 7 and not bx == 7:
                A[bx] = 300
            else:
                A[bx] = 400
            if len("meta") == 4:
                visible = 3
            else:
                undefined_function()  # noqa: F821 - a dead branch is not traced
            meta[bx] = visible

    got = execute(kernel, np.arange(8, dtype=np.int32), np.zeros(8, np.int32))
    assert got.tolist() == [3] * 8
    A = np.arange(8, dtype=np.int32)
    execute(kernel, A, np.zeros(8, np.int32))
    assert A.tolist() == [100, 100, 200, 200, 400, 300, 400, 400]
    assert len(statements(kernel, ir.If)) == 3


def test_else_sees_the_names_of_before():
    @T.prim_func
    def kernel(n: T.int32, A: T.Tensor((2,), T.int32)):
        with T.Kernel(1):
            x = 1
            if n > 0:
                x = 2
                A[0] = x
            else:
                A[0] = x + 10

    assert execute(kernel, 1, ints(0, 0))[0] == 2
    assert execute(kernel, -1, ints(0, 0))[0] == 11


def test_lazy_operands_guard_loads():
    @T.prim_func
    def kernel(A: T.Tensor((8,), T.float32)):
        with T.Kernel(1, threads=1):
            s = T.alloc_shared((4,), T.float32)
            T.fill(s, 2.0)
            for i in T.serial(8):
                A[i] = s[i] if i < 4 else -1.0
            for i in T.serial(8):
                if i < 4 and s[i] > 1 or i == 6:
                    A[i] += 10.0

    assert execute(kernel, np.zeros(8, np.float32)).tolist() == [12, 12, 12, 12, -1, -1, 9, -1]


def test_loop_bounds_and_kinds():
    @T.prim_func
    def kernel(A: T.Tensor((40,), T.int32)):
        with T.Kernel(1):
            k = T.alloc_var(T.int32, 0)
            for i in range(3, -1, -1):
                A[k] = i
                k += 1
            for i in T.unroll(10, 16, 2):
                A[k] = i
                k += 1
            for i, j in T.grid(2, 3):
                A[k] = 10 * i + j
                k += 1
            for i in T.vectorized(2):
                A[k] = -i
                k += 1
            for i in T.Pipelined(2, 4, num_stages=3):
                A[k] = i
                k += 1

    expected = [3, 2, 1, 0, 10, 12, 14, 0, 1, 2, 10, 11, 12, 0, -1, 2, 3]
    assert execute(kernel, np.zeros(40, np.int32))[: len(expected)].tolist() == expected
    kinds = [loop.kind for loop in statements(kernel, ir.For)]
    assert kinds == ["serial", "unroll", "serial", "serial", "vectorized", "pipelined"]


def test_python_at_trace_time():
    @dataclasses.dataclass
    class Plan:
        scale: int
        steps: list[int]

    plan = Plan(3, [1, 2])

    def helper(x: Any, by: int) -> Any:
        return x * by + plan.scale

    @T.prim_func
    def kernel(A: T.Tensor((4,), T.int32)):
        with T.Kernel(1):
            tiles = [T.alloc_local((1,), T.int32) for _ in range(2)]
            for step, tile in zip(plan.steps, tiles, strict=True):
                tile[0] = helper(A[step], step)
            for n, tile in enumerate(tiles):
                if n == 7:
                    break
                A[n] = tile[0]
            total = sum(plan.steps)
            A[3] = total

    assert execute(kernel, ints(0, 5, 6, 0)).tolist() == [8, 15, 6, 3]
    assert not statements(kernel, ir.For)


def test_macros():
    @T.macro
    def bump(x: T.Ref, by):
        x += by
        x = x * 2

    @T.macro
    def fill_row(tile, row, *, value=1):
        for j in T.serial(3):
            tile[row, j] = value + j
        return row + 1, value * 10

    @T.prim_func
    def kernel(A: T.Tensor((2, 3), T.int32)):
        with T.Kernel(1, threads=1):
            v = T.alloc_var(T.int32, 1)
            bump(v, 2)
            after, ten = fill_row(A, 0, value=v)
            fill_row(A, after, value=ten)
            bump(A[1, 2], v)

    assert execute(kernel, np.zeros((2, 3), np.int32)).tolist() == [[6, 7, 8], [60, 61, 136]]


def test_macro_arguments_are_evaluated_once():
    @T.macro
    def twice(x, out):
        out[0] = x
        out[1] = x

    @T.prim_func
    def kernel(A: T.Tensor((2,), T.int32)):
        with T.Kernel(1, threads=1):
            twice(A[1], A)

    assert execute(kernel, ints(1, 5)).tolist() == [5, 5]


def test_locations_name_macro_and_caller():
    @T.macro
    def inner(s):
        T.clear(s)

    @T.prim_func
    def kernel(A: T.Tensor((4,), T.float32)):
        with T.Kernel(1):
            s = T.alloc_shared((4,), T.float32)
            inner(s)
            A[0] = s[0] if A[1] > 0 else 1.0

    (fill,) = statements(kernel, ir.Fill)
    source, first = inspect.getsourcelines(test_locations_name_macro_and_caller)
    assert source[fill.loc.line - first].strip() == "T.clear(s)"
    assert source[fill.loc.caller.line - first].strip() == "inner(s)"
    assert (fill.loc.function, fill.loc.caller.function) == (
        "test_locations_name_macro_and_caller.inner",
        "test_locations_name_macro_and_caller.kernel",
    )
    assert fill.loc.caller.caller is None
    column = source[fill.loc.line - first].index("T.clear(s)") + 1
    assert (fill.loc.col, fill.loc.end_col) == (column, column + len("T.clear(s)"))
    load = next(n for n in statements(kernel, ir.Load) if n.buffer.name == "s")
    text = source[load.loc.line - first]
    assert text[load.loc.col - 1 : load.loc.end_col - 1] == "s[0]"
    assert load.loc.function == "test_locations_name_macro_and_caller.kernel"


def test_buffers_carry_the_author_s_names():
    @T.prim_func
    def kernel(A: T.Tensor((4,), T.float32)):
        with T.Kernel(1) as bx:
            tile, other = T.alloc_shared((4,), T.float32), T.alloc_fragment((4,), T.float32)
            var = T.alloc_var(T.float32)
            var = 1.0
            T.fill(tile, var)
            T.copy(tile, other)
            where = bx * 4
            T.copy(other, A[where])

    assert [a.buffer.name for a in statements(kernel, ir.Alloc)] == ["tile", "other", "var"]
    assert [let.var.name for let in statements(kernel, ir.Let)] == ["where"]
    assert execute(kernel, np.zeros(4, np.float32)).tolist() == [1, 1, 1, 1]


def test_symbols_scalars_and_strides():
    m, n = T.dynamic("m, n")
    row = T.dynamic("row", "int64")

    @T.prim_func
    def kernel(
        A: T.StridedTensor((m, n), (row, 1), T.float32), alpha: T.float32, on: T.bool, C: T.Tensor((m, n), T.float32)
    ):
        with T.Kernel(T.ceildiv(m, 8), T.ceildiv(n, 8)) as (bx, by):
            for i, j in T.Parallel(8, 8):
                if on:
                    C[bx * 8 + i, by * 8 + j] = A[bx * 8 + i, by * 8 + j] * alpha

    assert [(s.name, s.dtype.name) for s in kernel.function.symbols] == [
        ("m", "int32"),
        ("n", "int32"),
        ("row", "int64"),
    ]
    kinds = [(p.name, "tensor" if p.buffer else "scalar") for p in kernel.function.params]
    assert kinds[1:3] == [("alpha", "scalar"), ("on", "scalar")]
    A = np.arange(200, dtype=np.float32).reshape(10, 20)[:, 2:15]
    np.testing.assert_array_equal(execute(kernel, A, 0.5, True, np.zeros((10, 13), np.float32)), A * np.float32(0.5))
    assert not execute(kernel, A, 0.5, False, np.zeros((10, 13), np.float32)).any()


def test_negative_indices_wrap_at_trace_time_only():
    m = T.dynamic("m")

    @T.prim_func
    def kernel(A: T.Tensor((m,), T.int32), B: T.Tensor((4,), T.int32)):
        with T.Kernel(1) as bx:
            B[0] = A[-1]
            B[-1] = A[-2]
            B[1] = A[bx - 1]

    assert execute(kernel, ints(1, 2, 3), ints(9, 9, 9, 9)).tolist() == [3, 0, 9, 2]


def test_several_kernels_in_launch_order():
    @T.prim_func
    def kernel(A: T.Tensor((4,), T.int32)):
        with T.Kernel(4) as bx:
            A[bx] = bx
        with T.Kernel(4, threads=1) as bx:
            A[bx] = A[bx] * 10

    assert [k.name for k in kernel.function.kernels] == ["kernel_0", "kernel_1"]
    assert execute(kernel, ints(0, 0, 0, 0)).tolist() == [0, 10, 20, 30]


def test_return_ends_the_block():
    @T.prim_func
    def kernel(A: T.Tensor((4,), T.int32)):
        with T.Kernel(4) as bx:
            if bx > 1:
                return
            A[bx] = 5

    assert execute(kernel, ints(0, 0, 0, 0)).tolist() == [5, 5, 0, 0]


def test_perfectly_nested_parallel_is_one_nest():
    @T.prim_func
    def kernel(A: T.Tensor((3, 4), T.int32)):
        with T.Kernel(1):
            for i in T.Parallel(3):
                for j in T.Parallel(4):
                    if j == 2:
                        continue
                    A[i, j] = 10 * i + j

    (nest,) = statements(kernel, ir.Parallel)
    assert len(nest.vars) == 2
    assert execute(kernel, np.full((3, 4), -1, np.int32)).tolist() == [
        [0, 1, -1, 3],
        [10, 11, -1, 13],
        [20, 21, -1, 23],
    ]


def test_non_uniform_effects():
    def kernel(threads: int, other: bool) -> PrimFunc:
        @T.prim_func
        def main(A: T.Tensor((4,), T.int32)):
            with T.Kernel(1, threads=threads):
                s = T.alloc_shared((4,), T.int32)
                s[0] = A[0]
                s[1] = s[0] + 1  # reads another element
                for _ in T.Parallel(1):
                    s[0] = s[0] + 1
                if other:
                    x = s[1]
                    s[1] = x * 2
                A[1] = s[0] + s[1]

        return main

    assert execute(kernel(128, False), ints(1, 0, 0, 0))[1] == 4
    assert execute(kernel(1, True), ints(1, 0, 0, 0))[1] == 6
    with pytest.raises(TileError, match="every thread"):
        kernel(128, True)


def test_rebinding_is_refused_only_where_it_matters():
    @T.prim_func
    def kernel(A: T.Tensor((8,), T.int32)):
        with T.Kernel(1, threads=1):
            x = 1
            for i in T.serial(4):
                x = A[i] * 2  # written before it is read, in every iteration
                A[i] = x
            x = 3
            for i in T.serial(4, 8):
                if i > 5:
                    y = i
                    A[i] = y
                y = 2
                A[i] += y
            A[0] = x
            for size in [1, 2, 3]:  # a Python loop may accumulate
                x = x + size
            A[1] = x

    assert execute(kernel, ints(1, 2, 3, 4, 5, 6, 7, 8)).tolist() == [3, 9, 6, 8, 7, 8, 8, 9]


def test_hints_do_not_take_part_in_equality():
    def kernel(stages: int) -> PrimFunc:
        @T.prim_func
        def main(A: T.Tensor((8,), T.int32)):
            with T.Kernel(1):
                T.use_swizzle(stages)
                for k in T.Pipelined(8, num_stages=stages):
                    A[k] = k

        return main

    assert equal(kernel(1).function, kernel(3).function)


def test_is_lazy_and_captures():
    scale = 3

    def factory(n):
        @T.prim_func
        def main(A: T.Tensor((n,), T.float32)):
            with T.Kernel(1):
                A[0] = scale

        return main

    def eager(A):
        A: T.Tensor[(4,), T.float32]
        with T.Kernel(1):
            A[0] = scale

    def other(n):
        return factory(n)

    assert (is_lazy(factory), is_lazy(eager), is_lazy(other)) == (True, False, True)
    seen = captures(other)
    assert scale in seen.values() and any(name.endswith(".factory") for name in seen)


def test_notebook_cells() -> None:
    """Source known to linecache only; a cell run again with another annotation is another kernel."""
    for extent in (4, 6):
        source = (
            f"import tiledsl.language as T\n@T.prim_func\ndef cell(A: T.Tensor(({extent},), T.int32)):\n"
            "    with T.Kernel(1):\n        for i in T.Parallel(A.shape[0]):\n            A[i] = i\n"
        )
        linecache.cache["<cell>"] = (len(source), None, source.splitlines(keepends=True), "<cell>")
        names: dict[str, Any] = {}
        exec(compile(source, "<cell>", "exec"), names)
        assert execute(names["cell"], np.zeros(extent, np.int32)).tolist() == list(range(extent))


def test_errors_leave_no_trace_behind() -> None:
    def broken(A: T.Tensor((4,), T.int32)):
        with T.Kernel(1):
            for i in [1, 2]:
                for j in range(3):
                    A[i, j] = 0

    for _ in range(2):
        with pytest.raises(TileError, match="1-dimensional"):
            trace_prim_func(broken)

    @T.prim_func
    def fine(A: T.Tensor((4,), T.int32)):
        with T.Kernel(1):
            A[0] = 1

    assert execute(fine, ints(0, 0, 0, 0))[0] == 1


def test_python_errors_of_the_author_stay_python_errors() -> None:
    with pytest.raises(ZeroDivisionError):

        @T.prim_func
        def kernel(A: T.Tensor((4,), T.int32)):
            with T.Kernel(1):
                A[0] = 1 // 0

    with pytest.raises(AssertionError, match="block"):

        @T.prim_func
        def second(A: T.Tensor((4,), T.int32)):
            assert A.shape[0] % 3 == 0, "block"
