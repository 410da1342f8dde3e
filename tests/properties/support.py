"""What the property tests share: kernels generated from the operation table, inputs, references, comparisons."""

from __future__ import annotations

import functools
import itertools
import linecache
import re
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np

import tiledsl
from tiledsl.conversions import convert
from tiledsl.dtypes import DType, as_dtype
from tiledsl.interp import Options, run
from tiledsl.ir.operations import Operation
from tiledsl.testing import available_targets

Array = np.ndarray[Any, Any]

FLOATS = ("float32", "float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu")
INTS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES = (*FLOATS, *INTS, "bool")
CHOICES = ("-x", "abs", "max", "min", "clamp", "Select", "if_then_else", "y if x < z else z")  # round nothing
SIZES = (1, 2, 3, 7, 13, 31, 33, 48, 64, 127, 229)  # one, primes, around a vector of 16 and a block of 64
TARGETS = available_targets()
EXACT = Options(exact=True)


# -- kernels from text ---------------------------------------------------------------------------------------------


def kernel_from(source: str, name: str = "main") -> tiledsl.JITKernel:
    """The kernel that a module's text defines; the text is there for diagnostics, as in a notebook."""
    file = f"<generated {name} {abs(hash(source)):x}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    module: dict[str, Any] = {"__name__": "generated"}
    exec(compile(source, file, "exec"), module)
    return tiledsl.compile(module[name])


def elementwise_kernel(rows: Sequence[Operation], dtype: str, loop: str, block: int = 64) -> tiledsl.JITKernel:
    """X, Y, Z, S (n) -> Out (rows that give a number, n), Flag (rows that give a bool, n); S are shift counts.

    loop: "Parallel" makes vector code, "serial" scalar code.
    """
    numbers, flags = split(rows)
    lines = [f"Out[{k}, p] = {spelled(r)}" for k, r in enumerate(numbers)]
    lines += [f"Flag[{k}, p] = {spelled(r)}" for k, r in enumerate(flags)]
    body = "\n            ".join(lines)
    inputs = ", ".join(f'{v}: T.Tensor((n,), "{dtype}")' for v in "XYZS")
    return kernel_from(f"""
import tiledsl.language as T

n = T.dynamic("n")

@T.prim_func
def main({inputs}, Out: T.Tensor(({len(numbers)}, n), "{dtype}"), Flag: T.Tensor(({len(flags)}, n), "bool")):
    with T.Kernel(T.ceildiv(n, {block})) as b:
        for i in T.{loop}({block}):
            p = b * {block} + i
            x, y, z, s = X[p], Y[p], Z[p], S[p]
            {body}
""")


def split(rows: Sequence[Operation]) -> tuple[list[Operation], list[Operation]]:
    """Rows that give a number, and rows that give a bool."""
    return [r for r in rows if r.gives == "promoted"], [r for r in rows if r.gives == "bool"]


def spelled(row: Operation) -> str:
    return re.sub(r"\by\b", "s", row.spelling) if "count" in row.draws else row.spelling


# -- running ---------------------------------------------------------------------------------------------------------


def run_reference(kernel: tiledsl.JITKernel, *args: Any, options: Options = EXACT) -> Any:
    """Runs the interpreter in exact mode on the arrays, in place."""
    return run(kernel.function, args, options)


def copies(args: Iterable[Any]) -> list[Any]:
    return [a.copy() if isinstance(a, np.ndarray) else a for a in args]


def check_targets(kernel: tiledsl.JITKernel, args: Sequence[Any], wanted: Sequence[Any], what: str = "") -> None:
    """Every target leaves the arguments as the interpreter in exact mode did (`wanted`), bit for bit."""
    for target in TARGETS:
        got = copies(args)
        out = [got[i] for i in kernel.out_idx]
        inputs = [a for i, a in enumerate(got) if i not in kernel.out_idx]
        kernel(*inputs, target=target, **({"out": out} if out else {}))
        for parameter, g, w in zip(kernel.params, got, wanted, strict=True):
            if isinstance(g, np.ndarray):
                assert_same(g, w, f"{target}: {parameter.name} {what}")


def agree(kernel: tiledsl.JITKernel, *args: Any, what: str = "") -> list[Any]:
    """Runs the interpreter and every target on copies; they agree bit for bit. Returns the arguments afterwards."""
    wanted = copies(args)
    run_reference(kernel, *wanted)
    check_targets(kernel, args, wanted, what)
    return wanted


# -- comparing -------------------------------------------------------------------------------------------------------


def is_float(x: Array) -> bool:
    return x.dtype.kind == "f" or x.dtype.name.startswith(("bfloat", "float"))


def same_bits(got: Array, wanted: Array) -> Array:
    """Where the bits are equal; a NaN equals a NaN."""
    assert got.shape == wanted.shape and got.dtype == wanted.dtype, (got.shape, wanted.shape, got.dtype, wanted.dtype)
    width = np.dtype(f"u{got.dtype.itemsize}")
    equal: Array = np.ascontiguousarray(got).view(width) == np.ascontiguousarray(wanted).view(width)
    if is_float(got):
        with np.errstate(all="ignore"):  # a signalling NaN warns
            equal = equal | (np.isnan(got) & np.isnan(wanted))
    return equal


def assert_same(got: Array, wanted: Array, what: str, inputs: Sequence[Array] = ()) -> None:
    """Bit equality; a failure shows the first difference and the inputs there."""
    bad = np.argwhere(~same_bits(got, wanted))
    if len(bad):
        at = tuple(int(i) for i in bad[0])
        given = [a[at[-a.ndim :]] for a in inputs if a.ndim]
        raise AssertionError(
            f"{what}: {len(bad)} of {got.size} differ, first at {at}: {got[at]!r}, not {wanted[at]!r}; inputs {given!r}"
        )


def float_format(dtype: DType) -> tuple[int, int, Fraction]:
    """(precision in bits, exponent of the smallest normal, largest finite value)."""
    info = ml_dtypes.finfo(dtype.numpy)
    return info.nmant + 1, int(info.minexp), Fraction(float(info.max))


def spacing(x: Array, dtype: DType) -> Array:
    """One unit in the last place of |x| in dtype, as longdouble."""
    precision, lowest, _ = float_format(dtype)
    _, exponent = np.frexp(np.abs(np.asarray(x, np.longdouble)))
    return np.ldexp(np.longdouble(1), np.maximum(exponent - 1, lowest) - precision + 1)


def assert_within_ulps(got: Array, exact: Array, dtype: DType, row: Operation, inputs: Sequence[Array]) -> None:
    """|got - exact| is at most row.ulps; NaN exactly where the exact value is NaN."""
    assert row.ulps is not None
    wide = got.astype(np.float64).astype(np.longdouble)
    assert_same(np.isnan(wide), np.isnan(exact), f"{row.name}: NaN", inputs)
    precision, _, largest = float_format(dtype)
    if dtype.name == "float8_e8m0fnu":  # no sign: what is below becomes the smallest number
        exact = np.where(exact < float(ml_dtypes.finfo(dtype.numpy).min), ml_dtypes.finfo(dtype.numpy).min, exact)
    top = np.longdouble(float(largest))
    too_large = np.abs(exact) > top
    with np.errstate(all="ignore"):
        allowed = row.ulps * spacing(np.where(np.isfinite(exact), exact, 1), dtype) + row.flushes / top
        fine = np.abs(wide - exact) <= allowed
    fine |= np.isnan(exact) | (exact == wide)
    fine |= too_large & (np.abs(wide) >= top * (1 - np.longdouble(2.0) ** (1 - precision))) & (wide * exact > 0)
    bad = np.flatnonzero(~fine)
    if len(bad):
        i = bad[0]
        raise AssertionError(
            f"{row.name} {dtype}: {len(bad)} of {got.size} are off by more than {row.ulps} ulp, first "
            f"{got[i]!r}, exact {exact[i]!r}, inputs {[a[i] for a in inputs]!r}"
        )


# -- inputs -----------------------------------------------------------------------------------------------------------


def specials(dtype: DType) -> Array:
    """Values at which implementations go wrong."""
    if dtype.is_bool:
        return np.array([False, True])
    if dtype.is_float:
        info = ml_dtypes.finfo(dtype.numpy)
        eps, tiny, least, most = (float(v) for v in (info.eps, info.tiny, info.smallest_subnormal, info.max))
        positive = [
            0.0,
            1.0,
            0.5,
            1.5,
            2.5,
            1 + eps,
            1 - eps / 2,
            tiny,
            least,
            tiny - least,
            most,
            np.inf,
            3.0,
            1 / eps + 1,
        ]
        return rounded(np.array([*positive, *(-v for v in positive), np.nan], np.float64), dtype)
    low, high = int_range(dtype)
    values = [
        0,
        1,
        2,
        3,
        7,
        dtype.bits - 1,
        dtype.bits,
        dtype.bits + 1,
        high,
        high - 1,
        high // 2 + 1,
        low,
        low + 1,
        -1,
        -2,
        -3,
        -7,
    ]
    return np.array(sorted({v for v in values if low <= v <= high}), dtype.numpy)


def int_range(dtype: DType) -> tuple[int, int]:
    info = np.iinfo(dtype.numpy)
    return int(info.min), int(info.max)


def random_values(dtype: DType, count: int, rng: np.random.Generator) -> Array:
    """Half of any bit pattern, half of ordinary size."""
    if dtype.is_bool:
        return rng.integers(0, 2, count).astype(bool)
    half = count // 2
    bits = rng.integers(0, 256, half * dtype.bytes, np.uint8).view(dtype.numpy)
    if dtype.is_float:
        return np.concatenate([bits, rounded(rng.standard_normal(count - half) * 4, dtype)])
    low = max(-20, int_range(dtype)[0])
    return np.concatenate([bits, rng.integers(low, 21, count - half).astype(dtype.numpy)])


@functools.cache
def operands(name: str, count: int = 600) -> tuple[Array, Array, Array, Array]:
    """X, Y, Z, S: all pairs of special values, triples of some, then random ones; S are shift counts."""
    dtype = as_dtype(name)
    rng = np.random.default_rng(11)
    values = specials(dtype)
    pairs = np.array(list(itertools.product(range(len(values)), repeat=2)))
    third = rng.integers(0, len(values), len(pairs))
    columns = [values[pairs[:, 0]], values[pairs[:, 1]], values[third]]
    x, y, z = (np.concatenate([c, random_values(dtype, count, rng)]) for c in columns)
    if dtype.is_float:  # sums that nearly cancel
        y[-count // 4 :] = -x[-count // 4 :]
        z[-count // 4 :] = y[-count // 4 :]
    if not dtype.is_int:
        return x, y, z, y
    low, high = int_range(dtype)
    counts = [c for c in (*range(-2, dtype.bits + 3), 31, 32, 33, 63, 64, 65, 127, low, high) if low <= c <= high]
    return x, y, z, rng.choice(np.array(counts, dtype.numpy), len(x))


# -- references -------------------------------------------------------------------------------------------------------


def expected(row: Operation, dtype: DType, arrays: Sequence[Array]) -> Array:
    """What the row means on these operands, in dtype (or bool): independent of the interpreter.

    Rows with `ulps`: the exact values, as longdouble.
    """
    given = arrays[: row.arity]
    with np.errstate(all="ignore"):
        if not dtype.is_float:
            assert row.whole is not None
            return whole(row.whole, dtype, given, row.gives == "bool")
        assert row.real is not None
        if row.ulps is not None:
            return np.asarray(row.real(*(a.astype(np.float64).astype(np.longdouble) for a in given)))
        wide = [a.astype(np.float64) for a in given]
        if row.gives == "bool":
            return np.asarray(row.real(*wide))
        inner = dtype if dtype.bits >= 32 else as_dtype("float32")
        value = rational(row.real, wide, inner) if row.rational else np.asarray(row.real(*wide))
        value = value.astype(inner.numpy)
        if row.name in CHOICES and dtype.name != "float8_e8m0fnu":
            return value.astype(dtype.numpy)  # the result is an operand, infinity included
        return rounded(value, dtype)


def rounded(value: Array, dtype: DType) -> Array:
    """Once to nearest even; to 8 bits and less by the table of conversions (saturating), which has tests of its own."""
    if dtype.bits >= 16:
        return value.astype(dtype.numpy)
    return convert(value, as_dtype(value.dtype.name), dtype)


def whole(meaning: Callable[..., Any], dtype: DType, given: Sequence[Array], flag: bool) -> Array:
    """A meaning on Python ints (bools), wrapped at dtype."""
    values = [meaning(*v) for v in zip(*(a.tolist() for a in given), strict=True)]
    if flag or dtype.is_bool:
        return np.array(values, bool)
    return np.array([wrap(v, dtype) for v in values], dtype.numpy)


def wrap(value: int, dtype: DType) -> int:
    low, _ = int_range(dtype)
    return (value - low) % (1 << dtype.bits) + low


def rational(meaning: Callable[..., Any], wide: Sequence[Array], dtype: DType) -> Array:
    """A meaning in rational numbers, rounded once to dtype; where an operand is not finite only the signs of the
    others count, and float64 arithmetic gives the sign of zeros."""
    finite = np.logical_and.reduce([np.isfinite(a) for a in wide])
    result = np.array(meaning(*(np.where(finite | ~np.isfinite(a) | (a == 0), a, np.sign(a)) for a in wide)))
    for i in np.flatnonzero(finite):
        try:
            exact = meaning(*(Fraction(float(a[i])) for a in wide))
        except ZeroDivisionError:
            continue
        if exact:
            result[i] = nearest(exact, dtype)
        elif result[i]:
            result[i] = 0.0
    return result


def nearest(q: Fraction, dtype: DType) -> float:
    """q rounded to nearest even in dtype; too large ones become infinite."""
    precision, lowest, largest = float_format(dtype)
    exponent = abs(q.numerator).bit_length() - q.denominator.bit_length()
    exponent -= abs(q) < Fraction(2) ** exponent
    unit = Fraction(2) ** (max(exponent, lowest) - precision + 1)
    rounded = round(q / unit) * unit  # Python rounds Fractions to nearest even
    sign = -1.0 if q < 0 else 1.0
    return sign * (np.inf if abs(rounded) > largest else abs(float(rounded)))
