"""The emitted micro-kernels against their NumPy meanings, bit for bit, for every register width."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
import pytest
from llvmlite import ir as ll

from tiledsl.backends.cpu.emit.bytes import Bytes
from tiledsl.backends.cpu.emit.gemm import Blocking, blocking, emit_gemm
from tiledsl.backends.cpu.emit.halves import Halves, emit_turned, step
from tiledsl.backends.cpu.emit.transpose import emit_transpose
from tiledsl.backends.cpu.native import Cpu, Loaded, compile_module, host_cpu, load_object, x86_level
from tiledsl.dtypes import as_dtype
from tiledsl.ir.exact import gemm_chain
from tiledsl.ir.micro import MICRO

Array = np.ndarray[Any, Any]
GUARD = 77  # what surrounds every output


def cpus() -> dict[str, Cpu]:
    found = {"host": host_cpu()}
    if host_cpu().register_bytes == 64:
        found["x86-64-v3"] = x86_level("x86-64-v3")
    return found


@cache
def gemm(cpu: str, dtype: str, panel: int, shape: Blocking | None = None) -> tuple[Any, Loaded]:
    d, target, module = as_dtype(dtype), cpus()[cpu], ll.Module()
    f = emit_gemm(module, d, panel, shape or blocking(d, panel, target.register_bytes))
    return entry(module, f, target, [1, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0])


@cache
def transpose(bits: int, side: int) -> tuple[Any, Loaded]:
    module = ll.Module()
    return entry(module, emit_transpose(module, bits, side), host_cpu(), [1, 0, 1, 0, 0, 0])


def entry(module: Any, f: Any, cpu: Cpu, pointers: list[int]) -> tuple[Any, Loaded]:
    f.linkage = "external"
    loaded = load_object(compile_module([module], cpu), [f.name])
    types = [ctypes.c_void_p if p else ctypes.c_int64 for p in pointers]
    return ctypes.CFUNCTYPE(None, *types)(loaded.addresses[f.name]), loaded


def random(shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    if dtype == "int32":
        return rng.integers(-(2**31), 2**31, shape).astype(np.int32)
    return (rng.standard_normal(shape) * np.exp2(rng.integers(-20, 20, shape))).astype(dtype)


def check_gemm(run: Any, dtype: str, panel: int, m: int, n: int, k: int, a_trans: bool, step: int = 1) -> None:
    """One product inside larger arrays with unequal strides; what lies around must stay as it is."""
    a_all = random((k + 2, (m + 3) * step) if a_trans else (m + 2, (k + 3) * step), dtype, 1)
    a = a_all[:k, : m * step : step] if a_trans else a_all[:m, : k * step : step]
    count = -(-n // panel)
    panels = random((count, k + 1, panel), dtype, 2)
    c_all = np.full((m + 2, n + 19), GUARD, dtype)
    c_all[:m, :n] = random((m, n), dtype, 3)
    wanted = c_all.copy()
    MICRO["gemm"]([wanted[:m, :n]], [a, panels], [m, n, k], {"NR": panel, "a_trans": a_trans}, True)
    size = a.itemsize
    rows, inner = (a.strides[1], a.strides[0]) if a_trans else a.strides
    run(
        c_all.ctypes.data, c_all.shape[1], a.ctypes.data, rows // size, inner // size, panels.ctypes.data,
        panels.strides[0] // size, panel, m, n, k,
    )  # fmt: skip
    assert c_all.tobytes() == wanted.tobytes(), (dtype, panel, m, n, k, a_trans)


SIZES = [(1, 1, 1), (2, 15, 3), (5, 16, 7), (6, 64, 16), (7, 65, 17), (13, 100, 33), (31, 47, 5), (29, 128, 40),
         (0, 5, 3), (5, 0, 3), (4, 20, 0)]  # fmt: skip


@pytest.mark.parametrize("panel", [16, 32, 48, 64])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cpu", cpus())
def test_gemm(cpu: str, dtype: str, panel: int) -> None:
    run, _ = gemm(cpu, dtype, panel)
    for m, n, k in SIZES:
        for a_trans in (False, True):
            check_gemm(run, dtype, panel, m, n, k, a_trans)
    check_gemm(run, dtype, panel, 9, 70, 11, False, step=3)


def test_every_row_count_of_a_block() -> None:
    run, _ = gemm("host", "float32", 32)
    for m in range(1, 30):
        check_gemm(run, "float32", 32, m, 33, 3, False)


FORMS = {"vnni": ["host"], "pairs": ["host", "x86-64-v3"], "plain": ["host", "x86-64-v3"]}


@pytest.mark.parametrize("left, right", [(a, b) for a in ("int8", "uint8") for b in ("int8", "uint8")])
@pytest.mark.parametrize("form, cpu", [(f, c) for f, names in FORMS.items() for c in names if c in cpus()])
def test_gemm_of_bytes(form: str, cpu: str, left: str, right: str) -> None:
    """Every way to multiply bytes against the integers' own product; A is read by words that are not aligned."""
    target = cpus()[cpu]
    if form == "vnni" and target.byte_products != "vnni":
        pytest.skip("this CPU has no products of bytes")
    flip, panel = left == right, 32
    shape = blocking(as_dtype("int32"), panel, target.register_bytes)
    for clear in (False, True):
        module = ll.Module()
        f = emit_gemm(module, as_dtype("int32"), panel, shape, clear, Bytes(left == "int8", flip, form))
        assert ("pmadd" in str(module), "vpdpbusd" in str(module)) == (form == "pairs", form == "vnni")
        run, _keep = entry(module, f, target, [1, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0])
        for m, n, k in [*SIZES, (7, 33, 64), (13, 31, 67), (3, 32, 130), (2, 7, 2), (9, 40, 61)]:
            rng = np.random.default_rng(k)
            a_all, b = rng.integers(0, 256, (m + 1, k + 3), "u1").view(left), rng.integers(0, 256, (k, n), "u1")
            if k and n:
                a_all[0], b[:, 0] = np.iinfo(left).min, 128  # the extremes
            a, b = a_all[:m, :k], b.view(right)
            c_all = rng.integers(-(2**31), 2**31, (m + 1, n + 19)).astype(np.int32)
            wanted = c_all.copy()
            old = 0 if clear else wanted[:m, :n]
            wanted[:m, :n] = (a.astype(np.int64) @ b.astype(np.int64) + old).astype(np.int32)
            panels = words_of(b, panel, flip)
            meant = c_all.copy()
            attrs = {"NR": panel, "flip": flip, "clear": clear}
            MICRO["gemm"]([meant[:m, :n]], [a, panels], [m, n, k], attrs, True)
            assert meant.tobytes() == wanted.tobytes()
            run(c_all.ctypes.data, c_all.shape[1], a_all.ctypes.data, k + 3, 1, panels.ctypes.data,
                panels.strides[0] // 4, panel, m, n, k)  # fmt: skip
            assert c_all.tobytes() == wanted.tobytes(), (m, n, k, clear)


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("cpu", cpus())
def test_gemm_with_rows_in_place(cpu: str, stored: str) -> None:
    """The right operand as it lies, widened in registers; what lies between its rows is NaN."""
    target, d = cpus()[cpu], as_dtype(stored)
    form = None if stored == "float32" else Halves(d)
    for panel, apart in ((16, "apart"), (32, "apart"), (48, "together"), (64, "together")):
        for clear in (False, True):
            module = ll.Module()
            shape = blocking(as_dtype("float32"), panel, target.register_bytes)
            f = emit_gemm(module, as_dtype("float32"), panel, shape, clear, form, apart)
            run, _keep = entry(module, f, target, [1, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0])
            for m, k in [(1, 1), (2, 7), (4, 128), (7, 33), (8, 16), (13, 5), (16, 64), (0, 3), (3, 0)]:
                n = panel * 2
                a, c_all = random((m + 1, k + 3), "float32", 1), np.full((m + 2, n + 3), GUARD, "float32")
                rows = np.full((k, n + (0 if apart == "together" else 5)), np.nan, d.numpy)
                rows[:, :n] = np.clip(random((k, n), "float32", 2), -6e4, 6e4).astype(d.numpy)
                c_all[:m, :n] = random((m, n), "float32", 3)
                wanted = c_all.copy()
                attrs = {"NR": panel, "in_place": apart, "clear": clear}
                MICRO["gemm"]([wanted[:m, :n]], [a[:m, :k], rows], [m, n, k], attrs, True)
                run(c_all.ctypes.data, c_all.shape[1], a.ctypes.data, k + 3, 1, rows.ctypes.data, panel, rows.shape[1],
                    m, n, k)  # fmt: skip
                assert c_all.tobytes() == wanted.tobytes(), (panel, m, k, clear)


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
@pytest.mark.parametrize("register_bytes", [16, 32, 64])
def test_gemm_of_turned_rows(register_bytes: int, stored: str) -> None:
    """[n, k] halves turned in registers: the product of the widened operands, chain by chain, for every height; what
    lies between rows is NaN, and rows begin at odd addresses."""
    if register_bytes > host_cpu().register_bytes:
        pytest.skip("code for this CPU has no such registers")
    d, lanes = as_dtype(stored), register_bytes // 4
    for m in range(1, 9):
        for clear in (False, True):
            module = ll.Module()
            f = emit_turned(module, Halves(d), m, lanes, clear)
            run, _keep = entry(module, f, host_cpu(), [1, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0])
            for n, k in [(lanes, step(lanes)), (3 * lanes, 128), (64, 5 * step(lanes)), (0, 16), (lanes, 0)]:
                a, c_all = random((m + 1, k + 3), "float32", 1), np.full((m + 2, n + 3), GUARD, "float32")
                rows = np.full((n, k + 3), np.nan, d.numpy)
                rows[:, :k] = np.clip(random((n, k), "float32", 2), -6e4, 6e4).astype(d.numpy)
                c_all[:m, :n] = random((m, n), "float32", 3)
                wanted = c_all.copy()
                attrs = {"NR": m, "in_place": "turned", "clear": clear}
                MICRO["gemm"]([wanted[:m, :n]], [a[:m, :k], rows], [m, n, k], attrs, True)
                start = np.zeros((m, n), "float32") if clear else c_all[:m, :n]
                chain = gemm_chain(a[:m, :k], rows[:, :k].T.astype(np.float32), start)
                assert wanted[:m, :n].tobytes() == chain.tobytes()
                run(c_all.ctypes.data, c_all.shape[1], a.ctypes.data, k + 3, 1, rows.ctypes.data, m, rows.shape[1],
                    m, n, k)  # fmt: skip
                assert c_all.tobytes() == wanted.tobytes(), (m, n, k, clear)


def words_of(b: Array, panel: int, flip: bool) -> Array:
    """[k, n] bytes as panels of words of four along k, zero beyond k."""
    (k, n), count = b.shape, -(-b.shape[1] // panel)
    flat = np.zeros((-(-k // 4) * 4, count * panel), np.uint8)
    flat[:k, :n] = b.view(np.uint8) ^ (0x80 * flip)
    words = (
        np.ascontiguousarray(flat.reshape(-(-k // 4), 4, count * panel).swapaxes(1, 2))
        .view(np.uint32)
        .reshape(-(-k // 4), count * panel)
    )
    return np.ascontiguousarray(words.reshape(-(-k // 4), count, panel).swapaxes(0, 1)).view(np.int32)


@pytest.mark.parametrize("shape", [Blocking(4, 2, 3), Blocking(16, 1, 1), Blocking(8, 3, 4), Blocking(16, 3, 9)])
def test_blocking_never_changes_a_bit(shape: Blocking) -> None:
    run, _ = gemm("host", "float32", 48, shape)
    for m, n, k in SIZES:
        check_gemm(run, "float32", 48, m, n, k, False)


@pytest.mark.parametrize("register_bytes", [16, 32, 64])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_blocks_fit_the_register_file(dtype: str, register_bytes: int) -> None:
    for panel in (16, 32, 48, 64):
        b = blocking(as_dtype(dtype), panel, register_bytes)
        registers = 32 if register_bytes == 64 else 16
        assert b.mr * b.nv + b.nv + 1 <= registers
        assert panel % (b.lanes * b.nv) == 0
        assert b.lanes * as_dtype(dtype).bits == register_bytes * 8


@pytest.mark.parametrize("bits, side", [(32, 16), (32, 8), (64, 8), (64, 4)])
def test_transpose(bits: int, side: int) -> None:
    run, _ = transpose(bits, side)
    dtype = f"uint{bits}"
    for rows, cols in [(1, 1), (side, side), (side - 1, 2 * side), (3 * side + 5, side + 1), (0, 7), (7, 0), (40, 70)]:
        src = np.arange((rows + 1) * (cols + 3)).astype(dtype).reshape(rows + 1, cols + 3)
        dst = np.full((cols + 1, rows + 5), GUARD, dtype)
        wanted = dst.copy()
        MICRO["transpose"]([wanted], [src], [rows, cols], {}, True)
        run(dst.ctypes.data, dst.shape[1], src.ctypes.data, src.shape[1], rows, cols)
        assert (dst == wanted).all(), (rows, cols)
