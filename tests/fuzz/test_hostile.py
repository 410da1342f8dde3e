"""Programs that are wrong, and names and texts that mean something to the code that is generated."""

# mypy: disable-error-code="no-untyped-def,valid-type,misc"
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tiledsl
import tiledsl.language as T
from tiledsl.frontend.reader import from_text
from tiledsl.ir.equal import equal
from tiledsl.ir.printer import to_text
from tiledsl.testing import assert_targets_agree
from tiledsl.testing.hostile import edited, judge


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_edited_programs_end_well(number: int) -> None:
    endings = set()
    for program in edited(number, 100):
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
