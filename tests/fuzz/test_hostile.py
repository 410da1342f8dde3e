"""Programs that are wrong, and names and texts that mean something to the code that is generated."""

# mypy: disable-error-code="no-untyped-def,valid-type,misc"
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fuzz.hostile import edited, judge

import tiledsl
import tiledsl.language as T
from tiledsl.errors import TileError
from tiledsl.frontend.reader import from_text
from tiledsl.ir.equal import equal
from tiledsl.ir.printer import to_text
from tiledsl.testing import assert_targets_agree


@pytest.mark.slow
def test_edited_programs_end_well() -> None:
    endings = set()
    for program in (p for number in range(1, 6) for p in edited(number, 50)):
        ending, details = judge(program)
        assert ending != "wrong", f"{details}\n{program.source}"
        endings.add(ending)
    assert endings == {"kernel", "diagnostic", "python"}


def agree(kernel: Any, *args: Any) -> None:
    assert equal(kernel.function, from_text(to_text(kernel.function)), hints=True)
    assert_targets_agree(tiledsl.compile(kernel), *args)


def test_names_of_the_generated_code() -> None:
    """A kernel's names may be those of the entry, its arguments, its helpers and Python's words."""

    @T.prim_func
    def args(first: T.Tensor((40,), "float32"), last: T.int32, context: T.Tensor((40,), "float32")):
        with T.Kernel(2) as scratch:
            range_ = T.alloc_fragment((20,), "float32")
            i64 = T.alloc_var("int32", last)
            Größe = last * 2
            T.copy(first[scratch * 20], range_)
            for store16 in T.Parallel(20):
                load16 = range_[store16] * Größe
                context[scratch * 20 + store16] = load16 + i64
            for ramp in T.serial(3):
                i64 += ramp

    agree(args, np.arange(40, dtype=np.float32), 3, np.zeros(40, np.float32))


@pytest.mark.parametrize("text", ['"""', "'''\n", "{x!r}", "}{", "\\", "%s %d", "\x00", "# pass", "Ünï\u2028"])
def test_texts_of_authors(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    @T.prim_func
    def kernel(A: T.Tensor((4,), "float32")):
        with T.Kernel(1) as bx:
            T.print(A[bx], text)
            T.device_assert(A[bx] == 0, text)
            A[bx + 1] = 2.0

    agree(kernel, np.zeros(4, np.float32))
    assert capfd.readouterr().out.count(text) >= 1


ODD = ['n"""', "n'", "a.b", "x\ny", "class", "import os", "n)", "{n}", "\\", "\x00", "None", "1n", "n#", "\u2028",
       "__import__('os')", "", "args", "T", "n" * 300]  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_names_of_kernels(name: str) -> None:
    """A function's __name__ may be any text; symbols of the object and the printed function get names of their own."""

    def kernel(A: T.Tensor((4,), "float32")):
        with T.Kernel(1):
            for i in T.Parallel(4):
                A[i] = A[i] + 1

    kernel.__name__ = kernel.__qualname__ = name
    agree(T.prim_func(kernel), np.arange(4, dtype=np.float32))


@pytest.mark.parametrize("name", ODD)
def test_names_of_symbols(name: str) -> None:
    """A symbol's name is a word, or the declaration is refused."""
    try:
        n = T.dynamic(name)

        @T.prim_func
        def kernel(A: T.Tensor((n,), "float32"), B: T.Tensor((n,), "float32")):
            with T.Kernel(T.ceildiv(n, 16)) as bx:
                for i in T.Parallel(16):
                    B[bx * 16 + i] = A[bx * 16 + i] + n
    except TileError as error:
        assert error.loc is not None and error.loc.file == __file__
        assert not name.isidentifier()
        return
    agree(kernel, np.arange(20, dtype=np.float32), np.zeros(20, np.float32))


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("place", ["parameter", "tile", "cast"])
def test_names_of_dtypes(name: str, place: str) -> None:
    dtypes = {p: name if p == place else "float32" for p in ("parameter", "tile", "cast")}
    with pytest.raises(TileError) as caught:

        @T.prim_func
        def kernel(A: T.Tensor((4,), dtypes["parameter"])):
            with T.Kernel(1):
                x = T.alloc_shared((4,), dtypes["tile"])
                T.copy(A, x)
                for i in T.Parallel(4):
                    A[i] = T.cast(x[i], dtypes["cast"])

    assert caught.value.loc is not None and caught.value.loc.file == __file__


@pytest.mark.parametrize("text", ['"""', "'''\n", "{x!r}", "\\", "\x00", "\u2028"])
def test_texts_of_closures(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Python values of the author's scope are constants of the kernel: texts in messages, keys, defaults."""
    table = {text: 2.0}

    def named(message: str = f"<{text}>") -> str:
        return message

    @T.macro
    def add(x, key, by):
        T.print(x, key)
        return x + by[key]

    @T.prim_func
    def kernel(A: T.Tensor((4,), "float32")):
        with T.Kernel(1) as bx:
            T.device_assert(A[bx] == 0, named())
            A[bx + 1] = add(A[bx], text, table)

    agree(kernel, np.zeros(4, np.float32))
    assert capfd.readouterr().out.count(text) >= 1
