"""Faults planted into text that the lowering made of tile programs: the checker reports each at a line of the author,
and tests of results alone would miss some. (`test_cuda_emulator.py` has more, in text of other kinds.)"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from test_simt_text import KERNELS

import tiledsl
from tiledsl import config
from tiledsl.backend import load_backend
from tiledsl.backends.simt import lower as simt_lower
from tiledsl.backends.simt.abi import SimtProgram
from tiledsl.errors import TileRuntimeError

pytestmark = pytest.mark.skipif(not load_backend("cuda-emulator").probe().ok, reason="no C++ compiler")
Array = np.ndarray[Any, Any]


def product(dtype: Any) -> tuple[list[Array], Array]:
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-4, 5, s).astype(dtype) for s in ((45, 128), (128, 64)))
    return [a, b], a.astype(np.float32) @ b.astype(np.float32)


def given(name: str) -> tuple[list[Array], Array]:
    """Inputs and the right result, of small integers: exact in every order."""
    if name.startswith("gemm"):
        return product(np.float32 if name == "gemm_multiply_adds" else ml_dtypes.bfloat16)
    if name == "block_sum":
        x = np.arange(150, dtype=np.float32)
        return [x], x.sum(keepdims=True)
    x = np.random.default_rng(2).integers(-9, 10, (45, 64)).astype(np.float32)
    return [x], 2 * x


MMA, FMA, COPY, SUM = "gemm_matrix_instructions", "gemm_multiply_adds", "scaled_copy", "block_sum"
IN_LOOP = r"(tl_cp_async_wait\(0\);\n\s*)tl_sync\(\);  // added"
RACES = "race|uninitialised"
PIPE, CELL = "T.copy|T.gemm", r"T.copy|s\[i, j\]"  # authors' lines
# (what, kernel, pattern in its text, replacement, kinds of reports, author's line in the report)
FAULTS: list[tuple[str, str, str, str, str, str]] = [
    ("pipeline's barrier removed", MMA, IN_LOOP, r"\1", RACES, PIPE),
    ("pipeline's barrier removed", FMA, IN_LOOP, r"\1", RACES, PIPE),
    ("wait count off by one", MMA, r"tl_cp_async_wait\(0\)", "tl_cp_async_wait(1)", RACES, PIPE),
    ("no wait", FMA, r"tl_cp_async_wait\(0\);", "", RACES, PIPE),
    ("first group never committed", MMA, r"tl_cp_async_commit\(\);(?=\n  for)", "", RACES, PIPE),
    ("stage written while it is read", MMA, r"b_s\[k_next % 2", "b_s[k % 2", RACES, PIPE),
    ("stage read before it is full", FMA, r"a_s\[k % 2", "a_s[(k + 1) % 2", RACES, PIPE),
    ("loads without their predicate", MMA, r"= b \* 32 \+ i0_2 < n \? 8 : 0", "= 8", "out of bounds", r"T.copy\(A"),
    ("stores without their predicate", MMA, r"if \(b \* 32 \+ i0_6 < n\)", "if (1)", "out of bounds", "T.copy.acc"),
    ("predicate off by one", COPY, r"valid_2 = b \* 16 \+ i0_2 < n", "valid_2 = b * 16 + i0_2 <= n", "out of bounds",
     r"T.copy\(s"),
    ("undersized buffer", MMA, "shared", "", "out of bounds", PIPE),
    ("undersized buffer", COPY, "shared", "", "out of bounds", CELL),
    ("rows beyond the tile", MMA, r"\(t \* 16 \+ \(tx", "(t * 16 + 32 + (tx", f"out of bounds|{RACES}", "T.gemm"),
    ("misaligned copies", MMA, r"tl_cp_async_16\(dst_2,", "tl_cp_async_16(dst_2 + 1,", "misaligned", r"T.copy\(B"),
    ("ldmatrix by half a warp", MMA, r"(tl_ldmatrix_x4\()", r"if (tx % 32 < 16) \1", "divergent|deadlock", "T.gemm"),
    ("operand loaded from half a row on", MMA, r"(tl_ldmatrix_x4\(.*?&a_s\[)", r"\g<1>4 + ", "misaligned", "T.gemm"),
    ("barrier before the elements removed", COPY, r"tl_sync\(\);  // added\n(?=  for \(int turn_2)", "", RACES, CELL),
    ("barrier before the store removed", COPY, r"tl_sync\(\);  // added\n(?=  for \(int turn_3)", "", RACES, CELL),
    ("barrier of the author removed", SUM, r"tl_sync\(\);", "", RACES, "parts"),
    ("barrier in a branch", SUM, r"tl_sync\(\);", "if (tx < 32) tl_sync();", f"divergent|{RACES}", "T.sync|parts"),
    ("mask without the caller", SUM, "TL_FULL", "0xfffffffeu", "divergent warp", "T.warp_reduce_sum"),
    ("element without its predicate", SUM, r"k \* 64 \+ tx < n \?", "true ?", "out of bounds", "own"),
    ("partial sum in another's place", SUM, r"parts\[\(tx >> 5\)\]", "parts[(tx >> 5) * 0]", RACES, "parts"),
    ("partial sum beyond the tile", SUM, r"parts\[\(tx >> 5\)\]", "parts[(tx >> 5) * 99]", "out of bounds", "parts"),
]  # fmt: skip


def planted(pattern: str, new: str) -> Callable[..., SimtProgram]:
    right = simt_lower.lower

    def lower(*args: Any) -> SimtProgram:
        program = right(*args)
        (k,) = program.kernels
        if pattern == "shared":
            changed = dataclasses.replace(k, shared_bytes=k.shared_bytes * 3 // 4)
        else:
            text, count = re.subn(pattern, new, k.text)
            assert count, f"{pattern} is not in\n{k.text}"
            changed = dataclasses.replace(k, text=text)
        return dataclasses.replace(program, kernels=(changed,))

    return lower


def run(kernel: str, target: str) -> Array:
    args, _ = given(kernel)
    with config.DISABLE_CACHE.override(True):
        found: Array = tiledsl.compile(KERNELS[kernel], out_idx=-1)(*args, target=target)
    return found


@pytest.mark.parametrize("kernel", [MMA, FMA, COPY, SUM])
def test_right_text_is_not_reported(kernel: str) -> None:
    for target in ("cuda-emulator", "cuda-emulator:sm_80,checked,banks", "cuda-emulator:sm_80,checked,late,last"):
        np.testing.assert_array_equal(run(kernel, target), given(kernel)[1])


@pytest.mark.parametrize(
    ("kernel", "pattern", "new", "kinds", "line"), [f[1:] for f in FAULTS], ids=[f"{f[1]}: {f[0]}" for f in FAULTS]
)
def test_planted_fault(
    kernel: str, pattern: str, new: str, kinds: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simt_lower, "lower", planted(pattern, new))
    with pytest.raises(TileRuntimeError, match=f": ({kinds})") as e:
        run(kernel, "cuda-emulator:sm_80,checked")
    assert re.search(r"test_simt_text\.py:\d+", str(e.value)) and re.search(line, str(e.value)), str(e.value)


def test_swizzle_of_one_side(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong, and said as what it costs: rows meet in the same banks."""
    run(MMA, "cuda-emulator:sm_80,checked,banks")
    assert "wavefronts" not in capsys.readouterr().err
    monkeypatch.setattr(simt_lower, "lower", planted(r" \^ \(\(t \* 16[^;]*?& 3\) \* 8\)\]", ")]"))
    assert (run(MMA, "cuda-emulator:sm_80,checked,banks") != given(MMA)[1]).any()
    assert re.search(r"wavefronts where .* would do: .*test_simt_text\.py:\d+: .*T.gemm", capsys.readouterr().err)


def test_results_alone_would_miss_some(monkeypatch: pytest.MonkeyPatch) -> None:
    right = simt_lower.lower
    silent = []
    for name, kernel, pattern, new, kinds, _ in FAULTS:
        if kinds != RACES:  # the others would write into memory of this process
            continue
        monkeypatch.setattr(simt_lower, "lower", right)
        monkeypatch.setattr(simt_lower, "lower", planted(pattern, new))
        try:
            if np.array_equal(run(kernel, "cuda-emulator:sm_80"), given(kernel)[1]):
                silent.append(f"{kernel}: {name}")
        except TileRuntimeError:
            pass
    assert len(silent) >= 3, silent
