"""Every operator and conversion of the numba target, scalar and vector, against the interpreter's, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from loop_driver import run_loop_function
from properties.support import kernel_from

from tiledsl import ir
from tiledsl.backend import Target, load_backend
from tiledsl.backends.cpu.native import LEVELS, host_cpu, x86_level
from tiledsl.conversions import convert
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import TileValueError
from tiledsl.ir import arithmetic as ops
from tiledsl.testing import assert_targets_agree

I64, F32 = as_dtype("int64"), as_dtype("float32")
INTS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
FLOATS = ["float32", "float64"]
ALL = ["bool", *INTS, *FLOATS, "float16", "bfloat16"]
Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Overflow, NaN and division by zero are what is tested."""
    with np.errstate(all="ignore"):
        yield


def special(d: DType, count: int = 400) -> Array:
    """Values where implementations go wrong, then random ones of all magnitudes; a multiple of 16 of them."""
    rng = np.random.default_rng(7)
    if d.is_bool:
        return np.array([False, True] * 16)
    bits = np.dtype(f"uint{d.bits}")
    if d.is_float and d.bits > 16:
        t = d.numpy.type
        info = np.finfo(t)
        chosen = [0.0, -0.0, np.inf, -np.inf, np.nan, 0.5, 1.0, 1.5, 2.5, -0.5, -1.5, 1 / 3, 127.5, 128.5, -128.5,
                  255.5, 65504.0, 65520.0, 65519.99, 2.0**31, 2.0**31 - 1, -(2.0**31), 2.0**32, 2.0**63, -(2.0**63),
                  2.0**64, 3.3895314e38, 3.3961775e38, 2.0**-24, 2.0**-25, 2.0**-133, 2.0**-134, 1.0 + 2.0**-8,
                  1.0 + 2.0**-11, info.max, info.tiny, info.smallest_subnormal, 16777217.0]  # fmt: skip
        fixed = np.array(chosen).astype(t)
        near = np.concatenate([fixed, -fixed, np.nextafter(fixed, t(np.inf)), np.nextafter(fixed, t(-np.inf))])
        signalling = np.array([0x7F800001, 0xFF800001] if d.bits == 32 else [0x7FF << 52 | 1], bits).view(t)
        anything = rng.integers(0, 1 << d.bits, count, bits).view(t)
        halfway = (rng.integers(0, 1 << 15, count).astype(np.uint32) << 16 | 0x8000).view(np.float32).astype(t)
        x = np.concatenate([near, signalling, anything, halfway, (rng.standard_normal(count) * 100).astype(t)])
    elif d.bits <= 16:
        x = np.arange(1 << d.bits).astype(bits).view(d.numpy)
    else:
        low, high = (-(1 << (d.bits - 1)), (1 << (d.bits - 1)) - 1) if d.kind == "int" else (0, (1 << d.bits) - 1)
        wide = [v for v in (0, 1, 2, 3, 7, 31, 32, 63, 64, 65, 2**24 + 1, 2**53 + 1, 2**40 + 2**31, 2**62 + 2**53 + 1)]
        fixed_ints = [v for w in wide for v in (w, -w) if low <= v <= high] + [low, low + 1, high - 1, high]
        powers = rng.integers(0, 1 << 63, count, np.uint64) >> rng.integers(0, 63, count, np.uint64)
        negative = -powers.view(np.int64)
        x = np.concatenate([np.array(fixed_ints, d.numpy), powers.astype(d.numpy), negative.astype(d.numpy)])
    return np.ascontiguousarray(np.resize(x, -(-len(x) // 16) * 16))


def same(got: Array, wanted: Array, what: str) -> None:
    """Equal bits; NaNs are equal to each other."""
    if wanted.dtype.kind == "f" or wanted.dtype.name == "bfloat16":
        width = np.dtype(f"u{wanted.dtype.itemsize}")
        nan = np.isnan(got.astype(np.float64)) & np.isnan(wanted.astype(np.float64))
        bad = (got.view(width) != wanted.view(width)) & ~nan
    else:
        bad = got != wanted
    where = np.flatnonzero(bad)
    first = where[0] if len(where) else 0
    assert not len(where), f"{what}: {len(where)} differ, first at {first}: {got[first]!r}, not {wanted[first]!r}"


Make = Callable[[Sequence[ir.Expr]], ir.Expr]


def run(
    inputs: Sequence[Array], dtypes: Sequence[DType], makes: Sequence[Make], cpu: Target
) -> list[tuple[Array, Array]]:
    """Each of `makes` applied to the elements of the inputs, by vector code and by scalar code."""
    n = ir.Var("n", I64)
    i = ir.Var("i", I64)
    sources = [ir.Buffer(f"x{k}", d, (n,), "global") for k, d in enumerate(dtypes)]
    body: list[ir.Stmt] = []
    params, results, loops = list(sources), [], []
    for lanes in (16, 1):
        stores: list[ir.Stmt] = []
        loads = []
        for s in sources:
            x: ir.Expr = ir.Load(s, (i,), lanes=lanes, proved=True)
            loads.append(ir.Cast(x, F32.with_lanes(lanes)) if s.dtype.is_narrow else x)
        for k, make in enumerate(makes):
            value = make(loads)
            out = ir.Buffer(f"y{k}_{lanes}", value.dtype.scalar, (n,), "global")
            params.append(out)
            results.append(np.zeros(len(inputs[0]), value.dtype.numpy))
            stores.append(ir.Store(out, (i,), value, proved=True))
        loops.append(ir.For(i, ir.Const(0, I64), n, ir.Const(lanes, I64), tuple(stores)))
    body = list(loops)
    kernel = ir.Kernel("k", (ir.Const(1, I64),), (ir.Const(1, I64),), (ir.Var("bx", I64),), (), tuple(body))
    function = ir.Function("k", tuple(ir.Param(b.name, buffer=b) for b in params), (kernel,), (n,), stage="loop")
    code = run_loop_function(function, [*inputs, *results], backend=load_backend(cpu.name), arch=cpu.arch)
    assert code == 0
    half = len(makes)
    return list(zip(results[:half], results[half:], strict=True))


def builds() -> list[Target]:
    """Both printers for this machine, and its AVX2 subset where it has more."""
    both = [Target("numba"), Target("llvm")]
    return [*both, Target("llvm", "x86-64-v3")] if host_cpu().register_bytes == 64 else both


@pytest.fixture(params=builds(), ids=str)
def cpu(request: pytest.FixtureRequest) -> Target:
    found: Target = request.param
    return found


def pairs(d: DType) -> tuple[Array, Array]:
    """All pairs of some values."""
    x = special(d, 12)
    if len(x) > 192:
        x = np.concatenate([x[:160], x[-32:]]) if d.bits > 16 else x[:: len(x) // 192]
    a, b = np.meshgrid(x, x)
    whole = a.size // 16 * 16
    return np.ascontiguousarray(a.ravel()[:whole]), np.ascontiguousarray(b.ravel()[:whole])


BINARY_INT = sorted(ir.BINARY_OPS - {"and", "or", "div"})
BINARY_FLOAT = [op for op in BINARY_INT if op != "floordiv" and ops.binary(op, F32, True) is not None] + ["div"]


@pytest.mark.parametrize("name", ["bool", *INTS, *FLOATS])
def test_binary(name: str, cpu: Target) -> None:
    d = as_dtype(name)
    a, b = pairs(d)
    known = BINARY_FLOAT if d.is_float else BINARY_INT + ["div"]
    if d.is_bool:
        known = ["and", "or", "eq", "ne", "bitand", "bitor", "bitxor"]
    got = run([a, b], [d, d], [lambda x, op=op: ir.Binary(op, x[0], x[1]) for op in known], cpu)
    for op, (vector, scalar) in zip(known, got, strict=True):
        function = ops.binary({"and": "bitand", "or": "bitor"}.get(op, op), d, True)
        assert function is not None
        wanted = np.asarray(function(a, b))
        same(vector, wanted, f"{op} {name} x16")
        same(scalar, wanted, f"{op} {name}")


@pytest.mark.parametrize("name", ["bool", *INTS, *FLOATS])
def test_unary(name: str, cpu: Target) -> None:
    d = as_dtype(name)
    x = special(d)
    known = [op for op in sorted(ir.UNARY_OPS) if ops.unary(op, d, True) is not None]
    known = ["not"] if d.is_bool else [op for op in known if op != "not"]
    got = run([x], [d], [lambda v, op=op: ir.Unary(op, v[0]) for op in known], cpu)
    for op, (vector, scalar) in zip(known, got, strict=True):
        function = ops.unary(op, d, True)
        assert function is not None
        wanted = np.asarray(function(x)).astype(d.numpy)
        same(vector, wanted, f"{op} {name} x16")
        same(scalar, wanted, f"{op} {name}")


@pytest.mark.parametrize("name", ALL)
def test_casts(name: str, cpu: Target) -> None:
    """Exhaustive for sources of 16 bits and less."""
    src = as_dtype(name)
    x = special(src)
    targets = [as_dtype(t) for t in ALL if t != name]
    makes = [lambda v, t=t: ir.Cast(v[0], t.with_lanes(v[0].dtype.lanes)) for t in targets]
    for t, (vector, scalar) in zip(targets, run([x], [src], makes, cpu), strict=True):
        wanted = convert(x, src, t)
        same(vector, wanted, f"{name} -> {t.name} x16")
        same(scalar, wanted, f"{name} -> {t.name}")


@pytest.mark.parametrize("name", FLOATS)
def test_fma_and_classification(name: str, cpu: Target) -> None:
    from tiledsl.ir.exact import fma

    d = as_dtype(name)
    a, b = pairs(d)
    c = np.roll(special(d), 5)
    c = np.resize(c, len(a))
    boolean = as_dtype("bool")
    makes: list[Make] = [lambda v: ir.Fma(v[0], v[1], v[2])]
    names = ["isnan", "isinf", "isfinite"]
    makes += [lambda v, n=n: ir.Call(n, (v[0],), boolean.with_lanes(v[0].dtype.lanes)) for n in names]
    got = run([a, b, c], [d, d, d], makes, cpu)
    wanted = [fma(a, b, c), np.isnan(a), np.isinf(a), np.isfinite(a)]
    for what, w, (vector, scalar) in zip(["fma", *names], wanted, got, strict=True):
        same(vector, w, f"{what} {name} x16")
        same(scalar, w, f"{what} {name}")


def test_a_named_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """TILEDSL_CPU says what code is made for; what cannot run here is refused."""
    backend = load_backend("llvm")
    native = backend.version(Target("llvm"))
    if host_cpu().register_bytes == 64:
        monkeypatch.setenv("TILEDSL_CPU", "x86-64-v3")
        assert host_cpu() == x86_level("x86-64-v3") and host_cpu().register_bytes == 32
        assert backend.version(Target("llvm")) == backend.version(Target("llvm", "x86-64-v3")) != native
    monkeypatch.setenv("TILEDSL_CPU", "x86-64-v9")
    with pytest.raises(TileValueError, match="no code for 'x86-64-v9'"):
        host_cpu()


def test_levels_are_known_to_llvm() -> None:
    for level in LEVELS:
        if host_cpu().triple.startswith("x86_64"):
            assert x86_level(level).register_bytes in (32, 64)


KNOWN = {
    "an integer": "T.{op}(T.cast(b, '{dtype}'), a)",
    "the other order": "T.{op}(a, T.cast(b, '{dtype}'))",
    "nested": "T.{op}(T.{op}(c, {limit}), a)",
    "clamp": "T.clamp(c, {limit}, a)",
    "literal": "T.{op}(a, {limit})",
    "literal first": "T.{op}({limit}, a)",
    "absolute": "T.{op}(T.abs(T.cast(b, '{dtype}')), a)",
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("loop", ["serial", "Parallel"])
def test_maxima_with_an_operand_that_is_known_to_be_a_number(loop: str, dtype: str) -> None:
    """A compiler that knows one operand must still see that the other may be NaN, or a zero of the other sign."""
    forms = [
        form.format(op=op, dtype=dtype, limit=limit)
        for form in KNOWN.values()
        for op in ("max", "min")
        for limit in ("0.0", "-0.0", "1.0", "-2.5", "T.infinity('float32')")
    ]
    lines = "\n            ".join(f"Y[{k}, i] = {form}" for k, form in enumerate(forms))
    kernel = kernel_from(f"""
import tiledsl.language as T

@T.prim_func
def main(A: T.Tensor((8,), "{dtype}"), B: T.Tensor((8,), "int32"), C: T.Tensor((8,), "{dtype}"),
         Y: T.Tensor(({len(forms)}, 8), "{dtype}")):
    with T.Kernel(1, threads=1):
        for i in T.{loop}(8):
            a, b, c = A[i], B[i], C[i]
            {lines}
""")
    a = np.array([np.nan, 1, -0.0, 0.0, np.nan, -3, np.inf, -np.inf], dtype)
    b = np.array([3, -3, 0, 0, -1, 7, 1, 0], np.int32)
    c = np.array([np.nan, 2, 0.0, -0.0, 1, np.nan, np.nan, np.inf], dtype)
    assert_targets_agree(kernel, a, b, c, np.zeros((len(forms), 8), dtype))
