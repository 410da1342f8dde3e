"""Quantisers, dequantisers and products of few bits against NumPy, ml_dtypes and torch: formulas that know no tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from kernels_registry import KERNELS, Array
from properties import support
from registry_low_precision import BLOCK

import tiledsl
import tiledsl.language as T

E4M3, E8M0, E2M1 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e8m0fnu, ml_dtypes.float4_e2m1fn


def halves(raw: Array) -> Array:
    """The codes of bytes, low half first."""
    return np.stack([raw & 15, raw >> 4], -1).reshape(*raw.shape[:-1], -1)


def signed(codes: Array) -> Array:
    return (codes.astype(np.int64) ^ 8) - 8


def check_quantise_e4m3(x: Array, q: Array, s: Array) -> None:
    blocks = x.reshape(len(x), -1, BLOCK)
    wanted = np.maximum(np.abs(blocks).max(-1), np.float32(1e-30)).astype(np.float64) / 448
    _, exponent = np.frexp(wanted)
    power = exponent - (np.frexp(wanted)[0] == 0.5)
    np.testing.assert_array_equal(s.view(np.uint8), power + 127)
    scaled = (blocks.astype(np.float64) / np.exp2(power.astype(np.float64))[..., None]).astype(np.float32)
    np.testing.assert_array_equal(q.astype(np.float32), scaled.reshape(x.shape).astype(E4M3).astype(np.float32))
    assert np.abs(q.astype(np.float32)).max() <= 448


def check_quantise_e2m1(x: Array, q: Array, s: Array) -> None:
    blocks = x.astype(np.float32).reshape(len(x), 3, 24)
    scale = np.maximum(np.abs(blocks).max(-1), np.float32(1e-30)) / np.float32(6)
    np.testing.assert_array_equal(s, scale)
    wanted = (blocks / scale[..., None]).reshape(x.shape).astype(E2M1)
    np.testing.assert_array_equal(halves(q), wanted.view(np.uint8) & 15)
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    back = np.where(halves(q) & 8, -1, 1) * table[halves(q) & 7]
    assert (np.abs(back.reshape(blocks.shape) - blocks / scale[..., None]) <= 1).all()


def check_gemm_fp8_scaled(a: Array, sa: Array, b: Array, sb: Array, c: Array) -> None:
    torch = pytest.importorskip("torch")
    wide_a = torch.from_numpy(a.view(np.uint8)).view(torch.float8_e4m3fn).to(torch.float64).numpy()
    wide_b = torch.from_numpy(b.view(np.uint8)).view(torch.float8_e5m2).to(torch.float64).numpy()
    left = wide_a * np.repeat(sa.astype(np.float64), BLOCK, 1)
    right = wide_b * np.repeat(sb.astype(np.float64), BLOCK)
    error = np.abs(c.astype(np.float64) - left @ right.T)
    assert (error <= 2.0**-8 * np.abs(left @ right.T) + 2.0**-18 * (np.abs(left) @ np.abs(right).T)).all()


def check_gemm_w4a16(a: Array, w: Array, s: Array, c: Array) -> None:
    weights = (np.repeat(s, BLOCK, 1) * (halves(w).astype(np.float32) - 8)).astype(np.float16)
    wanted = a.astype(np.float64) @ weights.astype(np.float64).T
    size = np.abs(a.astype(np.float64)) @ np.abs(weights.astype(np.float64)).T
    assert (np.abs(c.astype(np.float64) - wanted) <= 2.0**-11 * np.abs(wanted) + 2.0**-17 * size).all()


def check_gemm_w4a8(a: Array, w: Array, c: Array) -> None:
    np.testing.assert_array_equal(c, a.astype(np.int64) @ signed(halves(w)).T)


def check_reversed_halves(x: Array, y: Array, z: Array) -> None:
    codes = halves(x)[:, ::-1]
    np.testing.assert_array_equal(y, np.ascontiguousarray(codes).view(E2M1).astype(np.float32))
    np.testing.assert_array_equal(halves(z), codes)


CHECKS: dict[str, Callable[..., None]] = {
    name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")
}


@pytest.mark.parametrize("name", CHECKS)
def test_against_the_formula(name: str) -> None:
    """The interpreter within the formula's bound; the targets bit for bit as the interpreter."""
    for s, seed in ((1, 0), (1, 5), (3, 1)):
        entry = KERNELS[name]
        args: list[Any] = entry.args(s, seed)
        CHECKS[name](*support.agree(entry.kernel(s), *args))


def test_nothing_of_e8m0_is_its_smallest_power() -> None:
    """Out of range a load and a copy of e8m0 give 0 as the table of conversions has it, code 0x00, and constants take
    the table's way too: up to a power of two, saturated."""

    @T.prim_func
    def main(X: T.Tensor((5,), "float8_e8m0fnu"), Y: T.Tensor((3, 17), "int32"), Z: T.Tensor((4,), "float8_e8m0fnu"),
             W: T.Tensor((2,), "float8_e4m3fn")):  # fmt: skip
        with T.Kernel(1):
            x = T.alloc_shared((17,), "float8_e8m0fnu")
            T.copy(X[2], x)
            for i in T.Parallel(17):
                Y[0, i] = T.cast(T.reinterpret(X[i], "uint8"), "int32")
                Y[1, i] = T.cast(T.reinterpret(x[i], "uint8"), "int32")
                Y[2, i] = T.cast(T.cast(X[i - 3], "float32") > 0, "int32")
            Z[0], Z[1], Z[2], Z[3] = 0, 3.0, 1e39, -1
            W[0], W[1] = 500.0, -1e9

    x = np.full(5, 160, np.uint8).view(E8M0)
    out = [np.zeros((3, 17), np.int32), np.zeros(4, np.uint8).view(E8M0), np.zeros(2, E4M3)]
    _, y, z, w = support.agree(tiledsl.compile(main), x, *out)
    np.testing.assert_array_equal(y[0], [160] * 5 + [0] * 12)
    np.testing.assert_array_equal(y[1], [160] * 3 + [0] * 14)
    assert y[2].all()
    np.testing.assert_array_equal(z.view(np.uint8), [0, 129, 254, 0])
    np.testing.assert_array_equal(w.astype(np.float32), [448, -448])


@pytest.mark.parametrize("target", ["numpy:exact", "numba", "llvm"])
@pytest.mark.parametrize("mode", ["", "rz"])
@pytest.mark.parametrize("to", ["float8_e4m3fn", "float8_e5m2"])
def test_without_saturation_as_ml_dtypes_has_it(to: str, mode: str, target: str) -> None:
    """All float16 values, larger ones, and halfway to what is too large; sat=False gives infinity or NaN. Towards zero
    only infinity is too large."""

    @tiledsl.jit
    def made(n: int, src: str) -> Any:
        @T.prim_func
        def main(A: T.Tensor((n,), src), B: T.Tensor((n,), to), C: T.Tensor((n,), "int8"), D: T.Tensor((n,), "int8")):
            with T.Kernel(T.ceildiv(n, 256), threads=128) as b:
                for i in T.Parallel(256):
                    B[b * 256 + i] = T.cast(A[b * 256 + i], to, mode, sat=False)
                    C[b * 256 + i] = T.cast(A[b * 256 + i], "int8", sat=False)
                    D[b * 256 + i] = T.cast(A[b * 256 + i], "int8")

        return main

    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    tails = np.array([464, 465, 448.1, 61440, 61439.996, 57344.004, 65536, 1e30, np.inf, -np.inf, np.nan, -1e38], "f4")
    dtype = np.dtype(getattr(ml_dtypes, to))
    largest = float(ml_dtypes.finfo(dtype).max)
    for src in (halves, tails):
        b, c, d = np.zeros(src.size, dtype), np.zeros(src.size, np.int8), np.zeros(src.size, np.int8)
        made(src.size, str(src.dtype))(src, b, c, d, target=target)
        with np.errstate(invalid="ignore", over="ignore"):
            want = src.astype(dtype).astype("f4")
            if mode:  # one code below, where rounding went away from zero
                down = (src.astype(dtype).view(np.uint8) - 1).astype(np.uint8).view(dtype).astype("f4")
                want = np.where(np.abs(want) > np.abs(src.astype("f4")), down, want)
                too_large = np.isfinite(src) & (np.abs(src.astype("f4")) > largest)
                want = np.where(too_large, np.copysign(largest, src), want)
        np.testing.assert_array_equal(b.astype("f4"), want)
        assert np.array_equal(c, d)  # integers saturate all the same


@pytest.mark.parametrize("target", ["numpy:exact", "llvm"])
def test_powers_that_are_too_large(target: str) -> None:
    @tiledsl.jit
    def made(n: int) -> Any:
        @T.prim_func
        def main(A: T.Tensor((n,), "float32"), B: T.Tensor((2, n), "float8_e8m0fnu")):
            with T.Kernel(1, threads=32):
                for i in T.Parallel(n):
                    B[0, i] = A[i]
                    B[1, i] = T.cast(A[i], "float8_e8m0fnu", sat=False)

        return main

    a = np.array([1.0, 2.0**127, np.nextafter(np.float32(2.0**127), np.float32(np.inf)), np.inf, np.nan, -np.inf], "f4")
    b = np.zeros((2, a.size), ml_dtypes.float8_e8m0fnu)
    made(a.size)(a, b, target=target)
    assert b.view(np.uint8).tolist() == [[127, 254, 254, 254, 255, 0], [127, 254, 255, 255, 255, 0]]
