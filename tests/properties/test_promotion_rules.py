"""Every line of docs/dtypes.md on promotion, and narrow integers until they are stored (language.md 0.12)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from properties import support
from properties.support import Array

import tiledsl
import tiledsl.language as T
from tiledsl import ir
from tiledsl.conversions import convert
from tiledsl.dtypes import as_dtype
from tiledsl.errors import TileError
from tiledsl.frontend.values import Value


def value(dtype: str) -> Value:
    return Value(ir.Var("x", as_dtype(dtype)))


PROMOTIONS = [  # left, right (a dtype or a literal), result
    ("int32", "float16", "float16"), ("int64", "float8_e4m3fn", "float8_e4m3fn"), ("float16", "float32", "float32"),
    ("float8_e4m3fn", "bfloat16", "bfloat16"), ("float16", "bfloat16", "float16"),
    ("float8_e4m3fn", "float4_e2m1fn", "float8_e4m3fn"), ("float8_e5m2", "float16", "float16"),
    ("uint64", "bfloat16", "bfloat16"), ("bool", "float8_e5m2", "float8_e5m2"), ("float32", "float64", "float64"),
    ("int8", "int16", "int16"), ("int8", "uint8", "uint8"), ("int32", "uint32", "uint32"), ("int64", "uint32", "int64"),
    ("uint16", "int32", "int32"), ("int4", "int8", "int8"), ("uint4", "int4", "uint4"), ("bool", "int8", "int8"),
    ("int8", 1, "int32"), ("uint8", 1, "int32"), ("float16", 1, "float16"), ("uint32", 1, "uint32"),
    ("int64", 1, "int64"), ("float8_e4m3fn", 2, "float8_e4m3fn"), ("int4", 1, "int32"), ("int32", 1 << 40, "int64"),
    ("uint32", 1 << 31, "uint32"), ("bfloat16", 1.5, "float32"), ("float16", 0.5, "float32"),
    ("float8_e4m3fn", 0.5, "float32"), ("float64", 0.5, "float64"), ("int32", 0.5, "float32"),
    ("int64", 0.5, "float32"),
]  # fmt: skip


@pytest.mark.parametrize(("left", "right", "result"), PROMOTIONS)
def test_promotion(left: str, right: Any, result: str) -> None:
    a, b = value(left), value(right) if isinstance(right, str) else right
    for made in (a + b, b + a, a * b, T.max(a, b), T.min(b, a)):
        assert made.dtype == result
    assert (a < b).dtype == "bool" and (a == b).dtype == "bool"


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_bit_operations_with_a_literal_keep_the_type(dtype: str) -> None:
    x = value(dtype)
    for made in (x & 1, 1 | x, x ^ 0x55, x << 20, x >> 3, 1 << x, ~x, -x):
        assert made.dtype == dtype
    assert (x + 1).dtype == ("int32" if as_dtype(dtype).bits < 32 else dtype)
    assert (value("float16") / 2).dtype == "float16" and T.max(value("bfloat16"), 1e-4).dtype == "float32"


def test_division_rules() -> None:
    assert (value("uint32") / 3).dtype == "uint32" and (value("uint8") / value("uint8")).dtype == "uint8"
    for bad in (lambda: value("int32") / 2, lambda: value("int8") / value("int8"), lambda: 1 / value("int64")):
        with pytest.raises(TileError, match="ambiguous") as caught:
            bad()  # type: ignore[no-untyped-call]
        assert "//" in (caught.value.help or "")


@dataclass(frozen=True)
class Rule:
    """text: of x and y (of `dtype`) and w (int32); meant: on Python ints, not wrapped; out: where it is stored."""

    text: str
    dtype: str
    out: str
    meant: Callable[..., int]

    def __str__(self) -> str:
        return f"{self.out} = {self.text} of {self.dtype}".replace(" ", "_")


def c32(v: int) -> int:
    """As a C int."""
    return (v + 2**31) % 2**32 - 2**31


RULES = [
    Rule("x << 20", "uint16", "uint16", lambda x, y, w: x << 20),
    Rule("T.uint32(x << 20)", "uint16", "uint32", lambda x, y, w: x << 20),
    Rule("T.uint32(x << 8) | T.uint32(y)", "uint8", "uint32", lambda x, y, w: x << 8 | y),
    Rule("(x << 8) | y", "uint8", "uint16", lambda x, y, w: x << 8 | y),
    Rule("x * y", "int8", "int16", lambda x, y, w: x * y),
    Rule("x * y", "int8", "int8", lambda x, y, w: x * y),
    Rule("x + y", "uint8", "int32", lambda x, y, w: x + y),
    Rule("x - y", "uint8", "int32", lambda x, y, w: x - y),
    Rule("(x + y) >> 1", "uint8", "uint8", lambda x, y, w: (x + y) >> 1),
    Rule("(x + 1) * y", "int16", "int64", lambda x, y, w: c32((x + 1) * y)),
    Rule("~x", "uint8", "int32", lambda x, y, w: ~x),
    Rule("-x", "uint8", "int32", lambda x, y, w: -x),
    Rule("-x", "int8", "int8", lambda x, y, w: -x),
    Rule("(x >> (4 * (w & 1))) & 0xF", "uint8", "int32", lambda x, y, w: x >> 4 * (w & 1) & 15),
    Rule("((x >> 4) & 0xF) - 8", "uint8", "int8", lambda x, y, w: (x >> 4 & 15) - 8),
    Rule("x >> 3", "int8", "int8", lambda x, y, w: x >> 3),
    Rule("x >> 40", "int8", "int8", lambda x, y, w: -1 if x < 0 else 0),
    Rule("x << 9", "uint8", "uint8", lambda x, y, w: 0),
    Rule("x << 32", "uint32", "uint32", lambda x, y, w: 0),
    Rule("x >> 35", "int32", "int32", lambda x, y, w: -1 if x < 0 else 0),
    Rule("(x - 1) >> 23", "uint32", "uint32", lambda x, y, w: (x - 1) % 2**32 >> 23),
    Rule(
        "(((x - 1) >> 23) + 1 - 127) << 23", "uint32", "uint32", lambda x, y, w: (((x - 1) % 2**32 >> 23) - 126) << 23
    ),
    Rule("x & (1 << 31)", "uint32", "uint32", lambda x, y, w: x & 1 << 31),
    Rule("x + y", "int64", "int64", lambda x, y, w: x + y),
    Rule("x // y", "int8", "int8", lambda x, y, w: x // y if y else 0),
    Rule("x % y", "int8", "int8", lambda x, y, w: x % y if y else 0),
    Rule("T.truncdiv(x, y)", "int8", "int8", lambda x, y, w: trunc(x, y)),
    Rule("T.truncmod(x, y)", "int8", "int8", lambda x, y, w: x - y * trunc(x, y) if y else 0),
    Rule("x // 3", "int16", "int16", lambda x, y, w: x // 3),
    Rule("x % -5", "int16", "int16", lambda x, y, w: x % -5),
    Rule("x / y", "uint16", "uint16", lambda x, y, w: x // y if y else 0),
    Rule("x * y + x", "uint32", "uint32", lambda x, y, w: x * y + x),
    Rule("x + w", "uint32", "int64", lambda x, y, w: (x + w) % 2**32),
    Rule("x + w", "int16", "int32", lambda x, y, w: c32(x + w)),
    Rule("T.max(x, y) + T.min(x, y)", "int8", "int32", lambda x, y, w: x + y),
    Rule("T.if_then_else(x + y > 255, 1, 0)", "uint8", "int32", lambda x, y, w: int(x + y > 255)),
    Rule("T.cast(x + y, 'int64')", "uint8", "int64", lambda x, y, w: x + y),
    Rule("T.reinterpret(x + y, T.int8)", "uint8", "int32", lambda x, y, w: support.wrap(x + y, as_dtype("int8"))),
    Rule("T.reinterpret(T.int8, x)", "uint8", "int32", lambda x, y, w: support.wrap(x, as_dtype("int8"))),
    Rule("T.popcount(x << 4)", "uint8", "int32", lambda x, y, w: bin(x << 4 & 255).count("1")),
]


def trunc(x: int, y: int) -> int:
    return 0 if y == 0 else (abs(x) // abs(y)) * (1 if (x < 0) == (y < 0) else -1)


@functools.cache
def rules_kernel(dtype: str, loop: str) -> tuple[tiledsl.JITKernel, list[Rule]]:
    """Every rule of a dtype: once stored straight away, once through a let (which wraps) into int64."""
    rules = [r for r in RULES if r.dtype == dtype]
    params = "".join(f', O{k}: T.Tensor((n,), "{r.out}"), L{k}: T.Tensor((n,), "int64")' for k, r in enumerate(rules))
    lines = []
    for k, r in enumerate(rules):
        lines += [f"O{k}[i] = {r.text}", f"t{k} = {r.text}", f"L{k}[i] = t{k}"]
    body = "\n            ".join(lines)
    made = support.kernel_from(f"""
import tiledsl.language as T

n = T.dynamic("n")

@T.prim_func
def main(X: T.Tensor((n,), "{dtype}"), Y: T.Tensor((n,), "{dtype}"), W: T.Tensor((n,), "int32"){params}):
    with T.Kernel(1) as b:
        for i in T.{loop}(n):
            x, y, w = X[i], Y[i], W[i]
            {body}
""")
    return made, rules


@pytest.mark.parametrize("loop", ["Parallel", "serial"])
@pytest.mark.parametrize("dtype", sorted({r.dtype for r in RULES}))
def test_narrow_arithmetic_wraps_when_it_is_stored(dtype: str, loop: str) -> None:
    """Stores wrap at the destination, high bits included; a let wraps at the dtype that the author sees."""
    kernel, rules = rules_kernel(dtype, loop)
    x, y, _, _ = support.operands(dtype)
    n = len(x) if loop == "Parallel" else 301
    w = np.random.default_rng(1).integers(-(2**31), 2**31, n).astype(np.int32)
    outs = [np.zeros(n, as_dtype(d).numpy) for r in rules for d in (r.out, "int64")]
    args = [x[:n].copy(), y[:n].copy(), w, *outs]
    got = support.agree(kernel, *args)
    for k, r in enumerate(rules):
        exact = [r.meant(int(a), int(b), int(c)) for a, b, c in zip(*args[:3], strict=True)]
        wanted = np.array([support.wrap(v, as_dtype(r.out)) for v in exact], as_dtype(r.out).numpy)
        support.assert_same(got[3 + 2 * k], wanted, str(r), args[:3])
        seen = as_dtype(seen_dtype(r))
        let = np.array([support.wrap(v, seen) for v in exact], np.int64)
        support.assert_same(got[4 + 2 * k], let, f"let of {r}", args[:3])


def seen_dtype(r: Rule) -> str:
    x, y, w = value(r.dtype), value(r.dtype), value("int32")
    return str(eval(r.text, {"T": T, "x": x, "y": y, "w": w}).dtype)


FLOATS = """
import tiledsl.language as T

n = T.dynamic("n")

@T.prim_func
def main(H: T.Tensor((n,), "float16"), B: T.Tensor((n,), "bfloat16"), E: T.Tensor((n,), "float8_e4m3fn"),
         I: T.Tensor((n,), "int32"), O0: T.Tensor((n,), "float32"), O1: T.Tensor((n,), "float32"),
         O2: T.Tensor((n,), "float32"), O3: T.Tensor((n,), "float32"), O4: T.Tensor((n,), "float32"),
         O5: T.Tensor((n,), "float32")):
    with T.Kernel(1) as b:
        for i in T.Parallel(n):
            O0[i] = H[i] / 3
            O1[i] = B[i] * 1.7
            O2[i] = H[i] + B[i]
            O3[i] = I[i] * H[i]
            O4[i] = E[i] * B[i]
            O5[i] = E[i] + 2
"""


def test_float_results_round_to_the_promoted_type() -> None:
    """The result's type decides the rounding: f16 / int is f16, bf16 * float literal is float32."""
    n = 1000
    rng = np.random.default_rng(0)
    h, b = (rng.standard_normal(n) * 30).astype(np.float16), (rng.standard_normal(n) * 30).astype(ml_dtypes.bfloat16)
    e, i = (rng.standard_normal(n) * 30).astype(ml_dtypes.float8_e4m3fn), rng.integers(-3000, 3000, n).astype(np.int32)
    got = support.agree(support.kernel_from(FLOATS), h, b, e, i, *(np.zeros(n, np.float32) for _ in range(6)))[4:]
    wide: list[Array] = [x.astype(np.float32) for x in (h, b, e)]
    f16 = functools.partial(np.asarray, dtype=np.float16)
    with np.errstate(all="ignore"):
        wanted = [
            f16(wide[0] / np.float32(3)),
            wide[1] * np.float32(1.7),
            f16(wide[0] + f16(wide[1]).astype(np.float32)),
            f16(f16(i.astype(np.float32)).astype(np.float32) * wide[0]),
            (wide[2] * wide[1]).astype(ml_dtypes.bfloat16),
            convert(wide[2] + np.float32(2), as_dtype("float32"), as_dtype("float8_e4m3fn")),
        ]
    for k, (x, y) in enumerate(zip(got, wanted, strict=True)):
        support.assert_same(x, y.astype(np.float32), f"O{k}")
