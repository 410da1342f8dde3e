"""Functions beyond the first: accuracy in dense samples, special values, rounding modes, bits, any and all."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from properties import support
from properties.support import agree, kernel_from

from tiledsl.dtypes import as_dtype
from tiledsl.errors import TileError
from tiledsl.interp import Options, run

LD = np.longdouble
EXACT = {
    "exp10": lambda x: LD(10) ** x, "expm1": np.expm1, "log10": np.log10, "log1p": np.log1p, "sinh": np.sinh,
    "cosh": np.cosh, "tanh": np.tanh, "sin": np.sin, "cos": np.cos, "tan": np.tan,
}  # fmt: skip
BOUNDS = {"expm1": 2.0, "sinh": 2.5, "cosh": 2.0, "tanh": 2.5, "tan": 2.0}


def elementwise(expression: str, dtype: str, out: str = "") -> Any:
    """A kernel: X, Y, Z (n) -> O (n), O[i] = expression of x, y, z."""
    return kernel_from(f"""
import tiledsl.language as T

n = T.dynamic("n")

@T.prim_func
def main(X: T.Tensor((n,), "{dtype}"), Y: T.Tensor((n,), "{dtype}"), Z: T.Tensor((n,), "{dtype}"),
         O: T.Tensor((n,), "{out or dtype}")):
    with T.Kernel(T.ceildiv(n, 256)) as b:
        for i in T.Parallel(256):
            p = b * 256 + i
            x, y, z = X[p], Y[p], Z[p]
            O[p] = {expression}
""")


def evaluate(expression: str, *args: Any, out: str = "", targets: bool = False) -> Any:
    dtype = args[0].dtype.name
    given = [*args, *[args[0]] * (3 - len(args))]
    result = np.zeros(len(args[0]), as_dtype(out or dtype).numpy)
    kernel = elementwise(expression, dtype, out)
    if targets:
        return agree(kernel, *given, result)[3]
    run(kernel.function, [*given, result], Options(exact=True))
    return result


def worst(got: Any, exact: Any, precision: int, lowest: int) -> float:
    """Largest error in units in the last place of the exact value."""
    with np.errstate(all="ignore"):
        spacing = np.ldexp(LD(1), np.maximum(np.frexp(np.abs(exact))[1] - precision, lowest))
        return float((np.abs(got.astype(LD) - exact) / spacing).max())


@pytest.mark.parametrize("name", EXACT)
def test_float32_accuracy_over_all_binades(name: str) -> None:
    step = 2039 * 7
    bits = np.arange(0, 2**32, step, dtype=np.uint64).astype(np.uint32).view(np.float32)
    ranges = np.linspace(-20, 20, 100001), np.linspace(-1.5, 1.5, 50001)
    x = np.concatenate([bits, *(r.astype(np.float32) for r in ranges)])
    x = np.where(np.isnan(x), np.float32(np.nan), x)  # signalling ones warn
    with np.errstate(all="ignore"):
        exact, got = EXACT[name](x.astype(LD)), evaluate(f"T.{name}(x)", x)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(exact))
    finite = np.isfinite(exact) & (np.abs(exact) < np.finfo(np.float32).max)
    assert np.isinf(got[~finite & ~np.isnan(exact)]).all()
    assert worst(got[finite], exact[finite], 24, -149) <= BOUNDS.get(name, 1.0)
    zero = x == 0
    np.testing.assert_array_equal(np.signbit(got[zero]), np.signbit(exact[zero]))


@pytest.mark.parametrize("name", [*EXACT, "erf"])
def test_float64_accuracy(name: str) -> None:
    mpmath = pytest.importorskip("mpmath")
    rng = np.random.default_rng(3)
    low, high = {
        "exp10": (-300, 300), "expm1": (-50, 700), "sinh": (-709, 709), "cosh": (-709, 709), "tanh": (-20, 20),
        "log10": (1e-3, 5), "log1p": (-0.99, 5), "erf": (-6.5, 6.5),
    }.get(name, (-100, 100))  # fmt: skip
    x = [rng.uniform(low, high, 300), rng.uniform(max(low, -1), 1, 300), np.exp2(rng.uniform(-60, 0, 100))]
    if name in ("sin", "cos", "tan", "log10", "log1p"):
        x.append(np.exp2(rng.uniform(-1000, 1000, 200)))
    if name in ("sin", "cos", "tan"):  # the float64 that comes closest to a multiple of pi / 2, and others
        x.append(np.array([6381956970095103 * 2.0**797, np.pi, np.pi / 2, 355.0, 1e22, 1.7e308]))
    given = np.concatenate(x)
    got = evaluate(f"T.{name}(x)", given)
    with mpmath.workdps(60):
        function = {"exp10": lambda v: mpmath.mpf(10) ** v}.get(name) or getattr(mpmath, name)
        for xi, yi in zip(given, got, strict=True):
            exact = function(mpmath.mpf(float(xi)))
            unit = mpmath.mpf(2) ** max(mpmath.frexp(exact)[1] - 53, -1074)
            assert abs(mpmath.mpf(float(yi)) - exact) <= BOUNDS.get(name, 1.0) * unit, (name, xi, yi)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["pow", "fmod", "copysign"])
def test_two_arguments_at_special_values(name: str, dtype: str) -> None:
    """All pairs, against the C library's special cases; fmod and copysign are exact everywhere."""
    special = np.array(
        [
            0.0,
            -0.0,
            1,
            -1,
            np.inf,
            -np.inf,
            np.nan,
            2,
            -2,
            3,
            -3,
            0.5,
            -0.5,
            2.5,
            1e30,
            -1e30,
            1e-40,
            2.0**24,
            2**24 + 1,
        ]
    )
    x, y = (a.ravel().astype(dtype) for a in np.meshgrid(special, special))
    rng = np.random.default_rng(5)
    if name == "fmod":
        x = np.concatenate([x, rng.uniform(-1e3, 1e3, 999), np.exp2(rng.uniform(-149, 127, 999))]).astype(dtype)
        y = np.concatenate([y, rng.standard_normal(999), np.exp2(rng.uniform(-149, 127, 999))]).astype(dtype)
        if dtype == "float64":
            x[-9:], y[-9:] = 1.7e308, 5e-324 * np.arange(1, 10)
    got = evaluate(f"T.{name}(x, y)", x, y, targets=True)
    with np.errstate(all="ignore"):
        wanted = {"pow": np.power, "fmod": np.fmod, "copysign": np.copysign}[name](
            x.astype(np.float64), y.astype(np.float64)
        ).astype(dtype)
    if name == "pow":
        np.testing.assert_allclose(got, wanted, rtol=2e-7)
        np.testing.assert_array_equal(np.signbit(got[~np.isnan(got)]), np.signbit(wanted[~np.isnan(got)]))
    else:
        support.assert_same(got, wanted, name, (x, y))


def test_pow_accuracy() -> None:
    rng = np.random.default_rng(7)
    x = np.concatenate([rng.uniform(0, 4, 40000), np.exp2(rng.uniform(-149, 128, 40000)), -rng.integers(1, 50, 9999)])
    y = np.concatenate([rng.uniform(-64, 64, 40000), rng.standard_normal(40000) * 2, rng.integers(-20, 20, 9999)])
    x, y = x.astype(np.float32), y.astype(np.float32)
    with np.errstate(all="ignore"):
        exact = x.astype(LD) ** y.astype(LD)
    fine = np.isfinite(exact) & (np.abs(exact) < np.finfo(np.float32).max)
    assert worst(evaluate("T.pow(x, y)", x, y)[fine], exact[fine], 24, -149) <= 1.0
    mpmath = pytest.importorskip("mpmath")
    x, y = np.exp2(rng.uniform(-400, 400, 600)), rng.standard_normal(600)
    got = evaluate("T.pow(x, y)", x, y)
    with mpmath.workdps(60):
        for a, b, c in zip(x, y, got, strict=True):
            value = mpmath.power(mpmath.mpf(float(a)), mpmath.mpf(float(b)))
            assert abs(mpmath.mpf(float(c)) - value) <= mpmath.mpf(2) ** (mpmath.frexp(value)[1] - 53), (a, b, c)


def test_powers_with_python_exponents_multiply() -> None:
    x = np.array([-3.5, 0.1, 2, -0.0], np.float32)
    np.testing.assert_array_equal(evaluate("T.pow(x, 3)", x, targets=True), x * x * x)
    np.testing.assert_array_equal(evaluate("T.pow_of_int(x, 0)", x), np.ones_like(x))
    i = np.arange(-5, 5, dtype=np.int32)
    np.testing.assert_array_equal(evaluate("T.pow(x, 5)", i, targets=True), i**5)
    with pytest.raises(TileError, match="Python int from 0 to 64"):
        elementwise("T.pow_of_int(x, 65)", "float32")
    with pytest.raises(TileError, match="takes a float"):
        elementwise("T.pow(x, y)", "int32")


def test_literals_and_dtypes_of_two_argument_functions() -> None:
    half = np.array([0.5, 2.0, -3.0], np.float16)
    got = evaluate("T.pow(x, 2.5)", half, out="float32")  # a float literal is float32: so is the result
    np.testing.assert_allclose(got[:2], np.array([0.5, 2.0]) ** 2.5, rtol=1e-7)
    got = evaluate("T.fmod(x, 2)", half)
    np.testing.assert_array_equal(got, np.fmod(half, np.float16(2)))


def test_ties_away_from_zero() -> None:
    for dtype in ("float32", "float64", "float16"):
        x = np.array([0.5, 1.5, -0.5, 2.5, -2.5, 0.49999997, 1023.5, np.inf, -np.inf, -0.0, 6e-8, -0.3], dtype)
        got = evaluate('T.round(x, rounding_mode="ties-away-from-zero")', x, targets=True)
        wanted = np.copysign(np.floor(np.abs(x.astype(np.float64)) + 0.5), x).astype(dtype)
        wanted[5] = x[5] == 0.5
        support.assert_same(got, wanted, dtype)
    with pytest.raises(TileError, match="unknown rounding_mode"):
        elementwise('T.round(x, rounding_mode="up")', "float32")


# -- rounding modes -------------------------------------------------------------------------------------------------


def directed(q: Fraction, mode: str) -> np.float32:
    """A rational number, not zero, rounded to float32 in one direction."""
    with np.errstate(over="ignore"):
        near = np.float32(support.nearest(q, as_dtype("float32")))
    exact = None if np.isinf(near) else Fraction(float(near))
    above = np.isposinf(near) or (exact is not None and exact > q)
    below = np.isneginf(near) or (exact is not None and exact < q)
    down = mode == "rd" or (mode == "rz" and q > 0)
    with np.errstate(all="ignore"):
        if above and down:
            return np.nextafter(near, np.float32(-np.inf))
        if below and not down:
            return np.nextafter(near, np.float32(np.inf))
    return near


@pytest.mark.parametrize("mode", ["rz", "ru", "rd"])
def test_rounding_modes(mode: str) -> None:
    rng = np.random.default_rng(13)
    special = support.specials(as_dtype("float32"))
    special = special[np.isfinite(special)]
    pairs = [a.ravel() for a in np.meshgrid(special, special)]
    random = [rng.integers(0, 256, 1200, np.uint8).view(np.float32) for _ in range(3)]
    x, y, z = (
        np.concatenate([p, np.where(np.isfinite(r), r, 1), (rng.standard_normal(300) * 4).astype(np.float32)])
        for p, r in zip((*pairs, pairs[0]), random, strict=True)
    )
    for spelled, exact in (
        ("T.ieee_add(x, y, '{}')", lambda a, b, c: a + b),
        ("T.ieee_sub(x, y, '{}')", lambda a, b, c: a - b),
        ("T.ieee_mul(x, y, '{}')", lambda a, b, c: a * b),
        ("T.ieee_fdiv(x, y, '{}')", lambda a, b, c: a / b),
        ("T.ieee_frcp(x, '{}')", lambda a, b, c: 1 / a),
        ("T.ieee_fmaf(x, y, z, '{}')", lambda a, b, c: a * b + c),
    ):
        got = evaluate(spelled.format(mode), x, y, z, targets=True)
        for a, b, c, g in zip(x, y, z, got, strict=True):
            try:
                q = exact(*(Fraction(float(v)) for v in (a, b, c)))
            except ZeroDivisionError:
                continue
            if q:
                w = directed(q, mode)
                assert g == w and np.signbit(g) == np.signbit(w), (spelled, a, b, c, g, w)
            else:
                assert g == 0
    squares = np.abs(x)
    got = evaluate(f"T.ieee_fsqrt(x, '{mode}')", squares, targets=True)
    for a, g in zip(squares, got, strict=True):
        s, a = Fraction(float(g)), Fraction(float(a))
        assert (s * s >= a) if mode == "ru" else (s * s <= a)
        other = Fraction(float(np.nextafter(g, np.float32(0 if mode == "ru" else np.inf))))
        assert a == s * s or (other * other < a if mode == "ru" else other * other > a)


def test_zero_sums_round_down_to_minus_zero() -> None:
    x = np.array([1.0, 0.0, -0.0, 0.0], np.float32)
    y = np.array([-1.0, 0.0, -0.0, -0.0], np.float32)
    assert np.signbit(evaluate("T.ieee_add(x, y, 'rd')", x, y, targets=True)).tolist() == [True, False, True, True]
    assert np.signbit(evaluate("T.ieee_add(x, y, 'ru')", x, y)).tolist() == [False, False, True, False]


def test_rounding_modes_are_refused_where_they_are_not_exact() -> None:
    with pytest.raises(TileError, match="works in float32"):
        elementwise("T.ieee_add(x, y, 'rz')", "float64")
    with pytest.raises(TileError, match="unknown rounding mode"):
        elementwise("T.ieee_add(x, y, 'up')", "float32")


# -- bits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["Parallel", "serial"])
@pytest.mark.parametrize("dtype", support.INTS)
def test_bit_functions(dtype: str, loop: str) -> None:
    d = as_dtype(dtype)
    x = np.concatenate([support.specials(d), support.random_values(d, 60, np.random.default_rng(2))])
    made = kernel_from(f"""
import tiledsl.language as T

@T.prim_func
def main(X: T.Tensor(({len(x)},), "{dtype}"), O: T.Tensor((4, {len(x)}), "{dtype}")):
    with T.Kernel(1):
        for i in T.{loop}({len(x)}):
            O[0, i] = T.popcount(X[i])
            O[1, i] = T.clz(X[i])
            O[2, i] = T.ffs(X[i])
            O[3, i] = T.brev(X[i])
""")
    got = agree(made, x, np.zeros((4, len(x)), d.numpy))[1]
    for i, v in enumerate(x.tolist()):
        bits = v & (1 << d.bits) - 1
        reverse = int(format(bits, f"0{d.bits}b")[::-1], 2)
        wanted = [bits.bit_count(), d.bits - bits.bit_length(), (bits & -bits).bit_length(), support.wrap(reverse, d)]
        assert got[:, i].tolist() == wanted, (v, dtype)


def test_byte_perm() -> None:
    rng = np.random.default_rng(4)
    x, y, s = (rng.integers(0, 2**32, 200, np.uint64).astype(np.uint32) for _ in range(3))
    got = evaluate("T.byte_perm(x, y, z)", x, y, s, targets=True)
    for a, b, selector, g in zip(x.tolist(), y.tolist(), s.tolist(), got.tolist(), strict=True):
        source = a.to_bytes(4, "little") + b.to_bytes(4, "little")
        wanted = []
        for k in range(4):
            nibble = selector >> 4 * k & 15
            byte = source[nibble & 7]
            wanted.append((255 if byte & 128 else 0) if nibble & 8 else byte)
        assert g == int.from_bytes(bytes(wanted), "little")


def test_bits_of_floats_are_refused() -> None:
    with pytest.raises(TileError, match="takes an integer") as caught:
        elementwise("T.popcount(x)", "float32")
    assert caught.value.loc is not None and "reinterpret" in str(caught.value)


# -- helpers --------------------------------------------------------------------------------------------------------


def test_any_of_and_all_of() -> None:
    made = kernel_from("""
import tiledsl.language as T

@T.prim_func
def main(X: T.Tensor((5, 17), "int32"), O: T.Tensor((5, 4), "bool")):
    with T.Kernel(5) as b:
        s = T.alloc_shared((17,), "int32")
        T.copy(X[b, :], s)
        O[b, 0] = T.any_of(s)
        O[b, 1] = T.all_of(s)
        O[b, 2] = T.any_of(s[3:7])
        if T.all_of(X[b, 3:7]):
            O[b, 3] = True
        else:
            O[b, 3] = False
""")
    x = np.zeros((5, 17), np.int32)
    x[1, 5], x[2], x[3, 3:7], x[4, 16] = 1, 7, -1, 2
    got = agree(made, x, np.zeros((5, 4), bool))[1]
    part = x[:, 3:7] != 0
    wanted = np.stack([(x != 0).any(1), (x != 0).all(1), part.any(1), part.all(1)], 1)
    np.testing.assert_array_equal(got, wanted)


def test_loop_break_evaluate_and_align_up() -> None:
    made = kernel_from("""
import tiledsl.language as T

@T.prim_func
def main(X: T.Tensor((33,), "int32"), O: T.Tensor((3,), "int32")):
    with T.Kernel(1):
        found = T.alloc_var("int32", -1)
        for i in range(33):
            if X[i] > 20:
                found = i
                T.loop_break()
        T.evaluate(found)
        O[0] = found
        O[1] = T.align_up(found, 16)
        O[2] = T.align_up(33, 16)
""")
    assert agree(made, np.arange(33, dtype=np.int32), np.zeros(3, np.int32))[1].tolist() == [21, 32, 48]


def test_the_shadow_follows_the_functions() -> None:
    """The float64 shadow's bound covers the distance from the value in float64."""
    x = np.linspace(-1.5, 1.5, 33).astype(np.float32)
    for name in (*EXACT, "erf"):
        kernel = elementwise(f"T.{name}(T.abs(x) * 1.5 + 0.1)", "float32")
        out = np.zeros_like(x)
        result = run(kernel.function, [x, x, x, out], Options(shadow=True))
        assert np.isfinite(out).all(), (name, result)


def test_erf_against_the_c_library() -> None:
    x = np.concatenate([np.linspace(-7, 7, 20001), np.exp2(np.linspace(-149, 2, 999))]).astype(np.float32)
    exact = np.array([math.erf(float(v)) for v in x]).astype(LD)
    assert worst(evaluate("T.erf(x)", x), exact, 24, -149) <= 1.0


# -- intrinsics by name -----------------------------------------------------------------------------------------------


def called(name: str, gives: str, *args: Any) -> Any:
    names = ", ".join("xyz"[: len(args)])
    return evaluate(f'T.call_extern("{gives}", "{name}", {names})', *args, out=gives, targets=True)


def test_intrinsics_of_integers() -> None:
    rng = np.random.default_rng(8)
    x, y, n = (rng.integers(0, 2**32, 99, np.uint64).astype(np.uint32) for _ in range(3))
    assert called("__popc", "int32", x).tolist() == [v.bit_count() for v in x.tolist()]
    assert called("__clzll", "int32", x).tolist() == [64 - v.bit_length() for v in x.tolist()]
    assert called("__umulhi", "uint32", x, y).tolist() == [
        a * b >> 32 for a, b in zip(x.tolist(), y.tolist(), strict=True)
    ]
    both = [(b << 32 | a, k & 31) for a, b, k in zip(x.tolist(), y.tolist(), n.tolist(), strict=True)]
    assert called("__funnelshift_l", "uint32", x, y, n).tolist() == [(v << k >> 32) & 0xFFFFFFFF for v, k in both]
    assert called("__funnelshift_r", "uint32", x, y, n).tolist() == [(v >> k) & 0xFFFFFFFF for v, k in both]
    signed = x.view(np.int32).astype(np.int64)
    np.testing.assert_array_equal(
        called("__mulhi", "int32", x.view(np.int32), y.view(np.int32)), signed * y.view(np.int32) >> 32
    )


def test_intrinsics_that_convert() -> None:
    rng = np.random.default_rng(9)
    x = np.concatenate(
        [
            support.specials(as_dtype("float32")),
            rng.integers(0, 2**32, 3000, np.uint64).astype(np.uint32).view(np.float32),
        ]
    )
    x = x[~np.isnan(x)]
    np.testing.assert_array_equal(called("__float_as_uint", "uint32", x), x.view(np.uint32))
    for dtype in ("float16", "bfloat16"):
        d = as_dtype(dtype)
        name = f"__float2{'half' if dtype == 'float16' else dtype}"
        codes = np.arange(2**16, dtype=np.uint16).view(d.numpy)
        with np.errstate(invalid="ignore"):
            values = codes.astype(np.float64)
        values = np.unique(values[~np.isnan(values)])
        near = called(f"{name}_rn", dtype, x)
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(near, x.astype(d.numpy))
        for mode in ("rz", "ru", "rd"):
            got = called(f"{name}_{mode}", dtype, x).astype(np.float64)
            down = (mode == "rd") | ((mode == "rz") & (x > 0))
            below = values[np.searchsorted(values, x, side="right") - 1]
            above = values[np.searchsorted(values, x, side="left")]
            np.testing.assert_array_equal(got, np.where(down, below, above))
    np.testing.assert_array_equal(
        called("__float2int_rn", "int32", x), np.clip(np.rint(x.astype(np.float64)), -(2**31), 2**31 - 1)
    )


def test_unknown_intrinsics_are_refused() -> None:
    with pytest.raises(TileError, match="no meaning on other targets") as caught:
        elementwise('T.call_extern("int32", "__popcc", x)', "uint32")
    assert "__popc" in str(caught.value) and caught.value.loc is not None
    with pytest.raises(TileError, match="takes 1 arguments, got 2"):
        elementwise('T.call_extern("int32", "__popc", x, y)', "uint32")


def test_warp_intrinsics_are_those_of_the_language() -> None:
    made = kernel_from("""
import tiledsl.language as T

@T.prim_func
def main(X: T.Tensor((32,), "int32"), O: T.Tensor((4, 32), "int32")):
    with T.Kernel(1, threads=32):
        t = T.get_thread_binding()
        O[0, t] = T.call_extern("int32", "__shfl_xor_sync", 0xFFFFFFFF, X[t], 3)
        O[1, t] = T.call_extern("int32", "__ballot_sync", 0xFFFFFFFF, X[t] > 2)
        O[2, t] = T.call_extern("uint32", "__match_any_sync", 0xFFFFFFFF, X[t])
        T.call_extern("void", "__syncthreads")
        O[3, t] = T.call_extern("int32", "__shfl_sync", 0xFFFFFFFF, X[t], 1, 8)
""")
    x = (np.arange(32) % 5).astype(np.int32)
    got = agree(made, x, np.zeros((4, 32), np.int32))[1]
    lanes = np.arange(32)
    np.testing.assert_array_equal(got[0], x[lanes ^ 3])
    ballot = sum(1 << i for i in lanes.tolist() if x[i] > 2)
    np.testing.assert_array_equal(got[1], np.full(32, ballot, np.uint32).view(np.int32))
    match = np.array([sum(1 << j for j in lanes.tolist() if x[j] == x[i]) for i in lanes], np.uint32)
    np.testing.assert_array_equal(got[2], match.view(np.int32))
    np.testing.assert_array_equal(got[3], x[lanes // 8 * 8 + 1])
