"""The host's side of the prelude and the emulator's instructions, each against an independent source.

Conversions and arithmetic: the tables of the language. Fragments: the PTX ISA's figures as data (ptx_tables.toml).
Warp operations: their definitions in NumPy. `make gpu` runs all of it on a GPU, and records what that gave
(gpu/recorded.py); there is no such record yet.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from prelude_kernels import DTYPES, INTS, NARROW, Kernels, c_type, elementwise, same

from tiledsl.backends.cuda_emulator import toolchain
from tiledsl.backends.cuda_nvrtc import compile as nvrtc
from tiledsl.backends.simt import prelude
from tiledsl.conversions import convert
from tiledsl.dtypes import as_dtype
from tiledsl.ir import arithmetic

Array = np.ndarray[Any, Any]
pytestmark = pytest.mark.skipif(toolchain.find_compiler() is None, reason="no C++ compiler")
TABLES = tomllib.loads((Path(__file__).parent / "ptx_tables.toml").read_text(encoding="utf-8"))


# -- conversions ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def conversions() -> Kernels:
    bodies = {f"f32_{n}": elementwise([n], "f32", f"tl_cvt_f32_{n}(a[i])") for n in NARROW}
    for src, dst in itertools.product(("f32", "f64", "i64", "u64"), NARROW):
        bodies[f"{dst}_{src}"] = elementwise([src], dst, f"tl_cvt_{dst}_{src}(a[i])")
    for src, dst in itertools.product(("f32", "f64"), INTS):
        bodies[f"{dst}_{src}"] = elementwise([src], dst, f"tl_cvt_{dst}_{src}(a[i])")
    return Kernels(bodies)


def floats(src: str) -> Array:
    rng = np.random.default_rng(0)
    high = np.arange(2**16, dtype=np.uint32) << 16
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    singles = (high[:, None] | low).reshape(-1).view(np.float32)
    if src == "f32":
        return np.concatenate([singles, rng.integers(0, 2**32, 100_000, np.uint32).view(np.float32)])
    with np.errstate(all="ignore"):
        near = singles[::3].astype(np.float64)
    ends = np.array(
        [float(x) for b in (8, 16, 32, 64) for x in (2**b, 2**b - 1, -(2**b), 2 ** (b - 1), -(2 ** (b - 1)) - 1)]
    )
    return np.concatenate([near, np.nextafter(near, np.inf), np.nextafter(near, -np.inf), ends, np.nextafter(ends, 0)])


def integers(src: str) -> Array:
    rng = np.random.default_rng(1)
    dtype = np.dtype(INTS[src])
    info = np.iinfo(dtype)
    powers = [s * 2**e + d for e in range(63 + (src == "u64")) for d in (-1, 0, 1) for s in (1, -1)]
    near = itertools.product((4, 8, 11, 24), (0, 1), (0, 20, 38), (-1, 0, 1), (1, -1))  # close to ties of each format
    odd = [s * ((2**e + 2**k) * 2**j + d) for e, k, j, d, s in near]
    edges = np.array([x for x in (*powers, *odd, info.min, info.max) if info.min <= x <= info.max], dtype)
    return np.concatenate([edges, rng.integers(info.min, info.max, 20000, dtype, endpoint=True)])


@pytest.mark.parametrize("dst", NARROW)
def test_narrow_floats_widen_exactly(conversions: Kernels, dst: str) -> None:
    dtype = as_dtype(NARROW[dst])
    codes = np.arange(1 << dtype.bits, dtype=f"u{dtype.numpy.itemsize}")
    same(conversions.map(f"f32_{dst}", np.float32, codes), convert(codes.view(dtype.numpy), dtype, as_dtype("float32")))


@pytest.mark.parametrize("src", ["f32", "f64", "i64", "u64"])
@pytest.mark.parametrize("dst", NARROW)
def test_conversions_to_narrow_floats(conversions: Kernels, src: str, dst: str) -> None:
    x = floats(src) if src[0] == "f" else integers(src)
    target = as_dtype(NARROW[dst])
    with np.errstate(all="ignore"):
        want = convert(x, as_dtype(DTYPES[src]), target)
    got = conversions.map(f"{dst}_{src}", f"u{target.numpy.itemsize}", x)
    same(got.view(target.numpy), want, x)


@pytest.mark.parametrize("src", ["f32", "f64"])
@pytest.mark.parametrize("dst", INTS)
def test_conversions_to_integers(conversions: Kernels, src: str, dst: str) -> None:
    x = floats(src)
    with np.errstate(all="ignore"):
        want = convert(x, as_dtype(DTYPES[src]), as_dtype(INTS[dst]))
    np.testing.assert_array_equal(conversions.map(f"{dst}_{src}", INTS[dst], x), want)


# -- arithmetic ----------------------------------------------------------------------------------------------------

BINARY = ("add", "sub", "mul", "floordiv", "floormod", "truncdiv", "truncmod", "max", "min")
UNARY = {"sqrt": np.sqrt, "abs": np.abs, "floor": np.floor, "ceil": np.ceil, "trunc": np.trunc, "rint": np.rint}


@pytest.fixture(scope="module")
def arithmetics() -> Kernels:
    bodies = {}
    for t in ("i32", "u32", "i64", "u64"):
        bodies |= {f"{op}_{t}": elementwise([t, t], t, f"tl_{op}_{t}(a[i], b[i])") for op in BINARY}
        bodies |= {f"{op}_{t}": elementwise([t, "i32"], t, f"tl_{op}_{t}(a[i], b[i])") for op in ("shl", "shr")}
        bodies |= {f"{op}_{t}": elementwise([t], t, f"tl_{op}_{t}(a[i])") for op in ("neg", "abs")}
        if t[0] == "u":
            bodies |= {f"{op}_{t}": elementwise([t], t, f"tl_{op}_{t}(a[i])") for op in ("popcount", "clz", "brev")}
    for t in ("f32", "f64"):
        bodies |= {f"{op}_{t}": elementwise([t, t], t, f"tl_{op}_{t}(a[i], b[i])") for op in ("max", "min")}
        bodies |= {f"{op}_{t}": elementwise([t], t, f"tl_{op}_{t}(a[i])") for op in UNARY}
        bodies[f"fma_{t}"] = elementwise([t, t, t], t, f"tl_fma_{t}(a[i], b[i], c[i])")
    bodies["tf32"] = elementwise(["f32"], "u32", "tl_cvt_tf32_f32(a[i])")
    return Kernels(bodies)


@pytest.mark.parametrize("t", ["i32", "u32", "i64", "u64"])
def test_integer_arithmetic(arithmetics: Kernels, t: str) -> None:
    dtype = as_dtype(INTS[t])
    low, high = arithmetic.int_range(dtype)
    edges = sorted(
        {x for x in (low, low + 1, -7, -2, -1, 0, 1, 2, 3, 7, 1000, high // 2, high - 1, high) if low <= x <= high}
    )
    pairs = list(itertools.product(edges, edges))
    a, b = (np.array(x, dtype.numpy) for x in zip(*pairs, strict=True))
    for op in BINARY:
        meaning = arithmetic.binary(op, dtype, False)
        assert meaning is not None
        want = np.array([meaning(x, y) for x, y in pairs], dtype.numpy)
        np.testing.assert_array_equal(arithmetics.map(f"{op}_{t}", dtype.numpy, a, b), want, op)
    shifts = list(itertools.product(edges, (-1, 0, 1, 5, 31, 32, 33, 63, 64, 2**31 - 1, -(2**31))))
    x, n = np.array([s[0] for s in shifts], dtype.numpy), np.array([s[1] for s in shifts], np.int32)
    for op in ("shl", "shr"):
        meaning = arithmetic.binary(op, dtype, False)
        assert meaning is not None
        want = np.array([meaning(*s) for s in shifts], dtype.numpy)
        np.testing.assert_array_equal(arithmetics.map(f"{op}_{t}", dtype.numpy, x, n), want, op)
    one = np.array(edges, dtype.numpy)
    for op in ("neg", "abs"):
        single = arithmetic.unary(op, dtype, False)
        assert single is not None
        want = np.array([single(v) for v in edges], dtype.numpy)
        np.testing.assert_array_equal(arithmetics.map(f"{op}_{t}", dtype.numpy, one), want, op)
    if t[0] == "u":
        for op in ("popcount", "clz", "brev"):
            want = arithmetic.bit_function(op, dtype, True)(one)
            np.testing.assert_array_equal(arithmetics.map(f"{op}_{t}", dtype.numpy, one), want, op)


@pytest.mark.parametrize("t", ["f32", "f64"])
def test_float_arithmetic(arithmetics: Kernels, t: str) -> None:
    dtype = as_dtype(DTYPES[t])
    rng = np.random.default_rng(2)
    special = np.array(
        [0.0, -0.0, 1.5, -2.5, 0.5, 3.7, np.inf, -np.inf, np.nan, 1e-40, -1e-310, 2.0**52 + 0.5], dtype.numpy
    )
    bits = rng.integers(0, 2**dtype.bits, 2000, f"u{dtype.bits // 8}").view(dtype.numpy)
    x = np.concatenate([np.repeat(special, len(special)), bits])
    y = np.concatenate([np.tile(special, len(special)), rng.permutation(bits)])
    with np.errstate(all="ignore"):
        for op, function in UNARY.items():
            same(arithmetics.map(f"{op}_{t}", dtype.numpy, x), function(x), op)
        for op in ("max", "min"):
            meaning = arithmetic.binary(op, dtype, True)
            assert meaning is not None
            same(arithmetics.map(f"{op}_{t}", dtype.numpy, x, y), meaning(x, y), op)


def test_fma_rounds_once(arithmetics: Kernels) -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal(5000).astype(np.float32) for _ in range(2))
    c = (-(a * b) * (1 + rng.integers(-2, 3, 5000) * 2.0**-22)).astype(np.float32)  # most digits cancel
    exact = a.astype(np.float64) * b + c  # the product is exact, and so is this sum: its digits are close together
    same(arithmetics.map("fma_f32", np.float32, a, b, c), exact.astype(np.float32))
    assert (a * b + c != exact).any()


def test_tf32_rounds_to_nearest_away(arithmetics: Kernels) -> None:
    x = floats("f32")
    x = x[np.abs(x) < 2.0**127]
    got = arithmetics.map("tf32", np.uint32, x).view(np.float32).astype(np.float64)
    scale = 2.0 ** (10 - np.maximum(np.floor(np.log2(np.maximum(np.abs(x.astype(np.float64)), 2.0**-126))), -126))
    want = np.sign(x) * np.floor(np.abs(x.astype(np.float64)) * scale + 0.5) / scale
    np.testing.assert_array_equal(got, want)


# -- the warp ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def warps() -> Kernels:
    bodies = {}
    for t in ("i32", "u32", "i64", "u64", "f32", "f64"):
        for op in ("shfl", "shfl_up", "shfl_down", "shfl_xor"):
            bodies[f"{op}_{t}"] = (
                f"const {c_type(t)}* x, {c_type(t)}* y, tl_u32 mask, int arg, int width",
                f"if (mask >> t & 1u) {{ y[t] = tl_{op}_{t}(mask, x[t], arg, width); }}",
            )
    votes = {"ballot": "tl_ballot(mask, (int)x[t])", "any": "tl_any(mask, (int)x[t])", "all": "tl_all(mask, (int)x[t])",
             "match_any": "tl_match_any_u32(mask, x[t])", "match_all": "tl_match_all_u32(mask, x[t])",
             "wide_any": "tl_match_any_u64(mask, (tl_u64)x[t] << 32)",
             "wide_all": "tl_match_all_u64(mask, (tl_u64)x[t] << 32)", "active": "tl_activemask()"}  # fmt: skip
    for op, call in votes.items():
        parameters = "const tl_u32* x, tl_u32* y, tl_u32 mask"
        bodies[op] = parameters, f"if (mask >> t & 1u) {{ y[t] = (tl_u32){call}; }}"
    return Kernels(bodies)


MASKS = (0xFFFFFFFF, 0x0000FFFF, 0xAAAAAAAA, 0x80000001, 0x00F0_FF3C)


def shuffled(op: str, x: Array, mask: int, arg: int, width: int) -> Array:
    """The definition in `tiledsl.ir.collectives`, lane by lane."""
    want = x.copy()
    for lane in range(32):
        first = lane - lane % width
        source = {"shfl": first + arg % width, "shfl_up": lane - arg, "shfl_down": lane + arg, "shfl_xor": lane ^ arg}[
            op
        ]
        inside = {
            "shfl": True, "shfl_up": source >= first, "shfl_down": source < first + width,
            "shfl_xor": source < first + width,
        }[op]  # fmt: skip
        if inside and mask >> source & 1:
            want[lane] = x[source]
    return want


@pytest.mark.parametrize("op", ["shfl", "shfl_up", "shfl_down", "shfl_xor"])
def test_shuffles(warps: Kernels, op: str) -> None:
    x = np.arange(100, 132, dtype=np.int32)
    for mask, width, arg in itertools.product(MASKS, (1, 2, 8, 16, 32), (0, 1, 3, 8, 16, 31)):
        y = np.full(32, -1, np.int32)
        warps(f"{op}_i32", x, y, np.uint32(mask), np.int32(arg), np.int32(width))
        lanes = np.array([mask >> i & 1 for i in range(32)], bool)
        np.testing.assert_array_equal(y, np.where(lanes, shuffled(op, x, mask, arg, width), -1), (mask, width, arg))
    rng = np.random.default_rng(4)
    for t in ("u32", "i64", "u64", "f32", "f64"):
        dtype = np.dtype(DTYPES[t])
        x = rng.integers(0, 2 ** (8 * dtype.itemsize), 32, f"u{dtype.itemsize}").view(dtype)
        y = np.zeros_like(x)
        warps(f"{op}_{t}", x, y, np.uint32(MASKS[0]), np.int32(5), np.int32(32))
        same(y, shuffled(op, x, MASKS[0], 5, 32), t)


def test_votes_and_matches(warps: Kernels) -> None:
    rng = np.random.default_rng(5)
    for mask, most in itertools.product(MASKS, (1, 2, 4)):
        x = rng.integers(0, most, 32).astype(np.uint32)
        lanes = [i for i in range(32) if mask >> i & 1]
        equal = [sum(1 << j for j in lanes if x[j] == x[i]) for i in lanes]
        unanimous = [mask if e == mask else 0 for e in equal]
        n = len(lanes)
        wants = {
            "ballot": [sum(1 << j for j in lanes if x[j])] * n, "any": [int(any(x[lanes]))] * n,
            "all": [int(all(x[lanes]))] * n, "match_any": equal, "wide_any": equal, "match_all": unanimous,
            "wide_all": unanimous, "active": [mask] * n,
        }  # fmt: skip
        for op, want in wants.items():
            y = np.zeros(32, np.uint32)
            warps(op, x, y, np.uint32(mask))
            np.testing.assert_array_equal(y[lanes], want, (op, hex(mask)))


# -- atomics -------------------------------------------------------------------------------------------------------

ATOMIC_INTS = ("i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64")
ATOMIC_FLOATS = ("f32", "f64", "f16", "bf16")


@pytest.fixture(scope="module")
def atomics() -> Kernels:
    bodies = {}
    for t in (*ATOMIC_INTS, *ATOMIC_FLOATS):
        c = c_type(t)
        for op in ("add", "min", "max", "exch") + (("and", "or", "xor") if t in ATOMIC_INTS else ()):
            step = f"if (t == 0) {{ old[i] = tl_atomic_{op}_{t}(p, x[i], TL_ACQ_REL); }}"
            bodies[f"{op}_{t}"] = f"{c}* p, const {c}* x, {c}* old", f"for (int i = 0; i < 64; i++) {{ {step} }}"
        bodies[f"cas_{t}"] = (
            f"{c}* p, {c} expected, {c} v, {c}* old",
            f"if (t == 0) {{ old[0] = tl_atomic_cas_{t}(p, expected, v, TL_RELAXED);"
            f" old[1] = tl_atomic_load_{t}(p, TL_ACQUIRE); tl_atomic_store_{t}(p, v, TL_RELEASE); }}",
        )
    halves = "p, t, t * 7); tl_sync(); own[t] = tl_nibble(p, t); tl_u8 mine[2] = {0, 0}; tl_set_nibble(mine, t & 3, t)"
    bodies["nibbles"] = (
        "tl_u8* p, int* own, int* local",
        f"tl_merge_nibble({halves}; local[t] = tl_nibble_beside(mine, t & 3);",
    )
    bodies["count"] = "tl_u32* p, tl_u32* tickets", "tickets[t] = tl_atomic_add_u32(p, 1u, TL_RELAXED);"
    return Kernels(bodies)


@pytest.mark.parametrize("t", [*ATOMIC_INTS, *ATOMIC_FLOATS])
def test_atomics_one_after_the_other(atomics: Kernels, t: str) -> None:
    dtype = as_dtype(DTYPES[t])
    rng = np.random.default_rng(6)
    names = {"and": "bitand", "or": "bitor", "xor": "bitxor"}
    if t in ATOMIC_INTS:
        info = np.iinfo(dtype.numpy)
        x = rng.integers(info.min, info.max, 64, dtype.numpy, endpoint=True)
        ops = ["add", "min", "max", "exch", *names]
    else:
        x = (rng.standard_normal(64) * 100).astype(dtype.numpy)
        x[::9] = [np.nan, 0.0, -0.0, np.inf, 1e-7, -3.0, 5.0, 0.0][: len(x[::9])]
        ops = ["add", "min", "max", "exch"]
    for op in ops:
        p, old = x[:1].copy(), np.zeros_like(x)
        atomics(f"{op}_{t}", p, x, old)
        value, want = x[0], []
        meaning = None if op == "exch" else arithmetic.binary(names.get(op, op), dtype, True)
        with np.errstate(all="ignore"):
            for v in x:
                want.append(value)
                value = v if meaning is None else np.asarray(meaning(np.array([value]), np.array([v])), dtype.numpy)[0]
        same(old, np.array(want, dtype.numpy), op)
        same(p, np.array([value], dtype.numpy), op)
    for expected, found in ((x[1], x[1]), (x[2], x[1])):
        p, old = np.array([found]), np.zeros(2, dtype.numpy)
        atomics(f"cas_{t}", p, expected, x[3], old)
        after = x[3] if expected.tobytes() == found.tobytes() else found
        same(old, np.array([found, after], dtype.numpy))
        same(p, np.array([x[3]]))


def test_halves_of_a_byte_by_two_threads(atomics: Kernels) -> None:
    p, own, local = np.full(32, 0xA5, np.uint8), np.zeros(64, np.int32), np.zeros(64, np.int32)
    atomics("nibbles", p, own, local, threads=64, check=True)
    want = np.arange(64) * 7 % 16
    np.testing.assert_array_equal(p, want[::2] | want[1::2] << 4)
    np.testing.assert_array_equal(own, want)
    np.testing.assert_array_equal(local, np.arange(64) % 16)


def test_tickets_are_all_different(atomics: Kernels) -> None:
    p, tickets = np.zeros(1, np.uint32), np.zeros(1024, np.uint32)
    for check in (False, True):
        p[:] = 0
        atomics("count", p, tickets, blocks=8, threads=128, check=check, kept=False)
        assert p[0] == 1024 and sorted(tickets) == list(range(1024))


# -- matrix instructions -------------------------------------------------------------------------------------------

# name of the instruction: shape, types of a and b (elements per register word), type of d
MMA = {
    "m16n8k16_f32_f16": ("m16n8k16", "f16", "f16", np.float32),
    "m16n8k16_f32_bf16": ("m16n8k16", "bf16", "bf16", np.float32),
    "m16n8k16_f16_f16": ("m16n8k16", "f16", "f16", np.float16),
    "m16n8k8_f32_tf32": ("m16n8k8", "f32", "f32", np.float32),
    **{
        f"m16n8k32_{d}_{a}_{b}": ("m16n8k32", ab[a], ab[b], c)
        for d, c, ab in (
            ("i32", np.int32, {"s8": "i8", "u8": "u8"}),
            ("f32", np.float32, {"e4m3": "e4m3", "e5m2": "e5m2"}),
        )
        for a in ab
        for b in ab
    },
    "m8n8k4_f64": ("m8n8k4", "f64", "f64", np.float64),
}


def table(shape: str, matrix: str) -> tuple[Array, Array]:
    """(thread, element) of each place."""
    cells = [[tuple(map(int, x.split("."))) for x in row.split()] for row in TABLES[shape][matrix].strip().splitlines()]
    both = np.array(cells)
    return both[..., 0], both[..., 1]


def fragments(matrix: Array, shape: str, name: str) -> Array:
    """[32, elements per thread]: what each thread holds of a matrix."""
    thread, element = table(shape, name)
    held = np.zeros((32, element.max() + 1), matrix.dtype)
    held[thread, element] = matrix
    return held


@pytest.fixture(scope="module")
def mma() -> Kernels:
    bodies = {}
    for name, (shape, a, _, d) in MMA.items():
        words = {"m16n8k16": (4, 2), "m16n8k8": (4, 2), "m16n8k32": (4, 2), "m8n8k4": (1, 1)}[shape]
        ab = "double" if a == "f64" else "tl_u32"
        out = {np.float32: "float", np.int32: "tl_i32", np.float64: "double", np.float16: "tl_u32"}[d]
        count = {"m8n8k4": 2}.get(shape, 2 if d is np.float16 else 4)
        bodies[name] = (
            f"const {ab}* A, const {ab}* B, {out}* D",
            f"{ab} a[{words[0]}], b[{words[1]}]; {out} d[{count}];"
            f" for (int i = 0; i < {words[0]}; i++) {{ a[i] = A[t * {words[0]} + i]; }}"
            f" for (int i = 0; i < {words[1]}; i++) {{ b[i] = B[t * {words[1]} + i]; }}"
            f" for (int i = 0; i < {count}; i++) {{ d[i] = D[t * {count} + i]; }}"
            f" tl_mma_{name}(d, a, b); for (int i = 0; i < {count}; i++) {{ D[t * {count} + i] = d[i]; }}",
        )
    for n, trans in itertools.product((1, 2, 4), ("", "_trans")):
        bodies[f"ldmatrix_x{n}{trans}"] = (
            "const tl_u16* M, const int* rows, tl_u32* r",
            "tl_u16* s = (tl_u16*)tl_shared(); for (int i = t; i < 320; i += 32) { s[i] = M[i]; } tl_sync();"
            f" tl_u32 x[{n}]; tl_ldmatrix_x{n}{trans}(x, &s[rows[t] * 8]);"
            f" for (int i = 0; i < {n}; i++) {{ r[t * {n} + i] = x[i]; }}",
        )
    return Kernels(bodies)


def test_tables_are_complete() -> None:
    for shape, matrices in TABLES.items():
        for name in matrices:
            thread, element = table(shape, name)
            places = set(zip(thread.ravel().tolist(), element.ravel().tolist(), strict=True))
            assert len(places) == thread.size == 32 * (element.max() + 1), (shape, name)


@pytest.mark.parametrize("name", MMA)
def test_matrix_products(mma: Kernels, name: str) -> None:
    shape, a_type, b_type, out = MMA[name]
    m, n, k = map(int, re.findall(r"\d+", shape))
    rng = np.random.default_rng(7)
    kinds = [np.dtype(as_dtype(DTYPES[t]).numpy) for t in (a_type, b_type)]
    small = 4 if "e" in a_type + b_type else 9
    if out is np.int32:  # the whole range, and sums that wrap
        limits = [(np.iinfo(t).min, np.iinfo(t).max) for t in kinds]
        a = rng.integers(*limits[0], (m, k), kinds[0], endpoint=True)
        b = rng.integers(*limits[1], (k, n), kinds[1], endpoint=True)
        c = rng.integers(-(2**31), 2**31, (m, n), np.int32)
        want = (a.astype(np.int64) @ b.astype(np.int64) + c).astype(np.int32)
    else:  # small integers, of which every sum is exact in whatever order
        a, b = (rng.integers(-small, small, s).astype(t) for t, s in zip(kinds, ((m, k), (k, n)), strict=True))
        c = rng.integers(-99, 100, (m, n)).astype(out)
        want = (a.astype(np.float64) @ b.astype(np.float64) + c).astype(out)
    d = fragments(c, shape, "c")
    held = [fragments(x, shape, y) for x, y in ((a, "a"), (b, "b"))]
    mma(name, *(h if h.dtype == np.float64 else h.view(np.uint32) for h in held), d)
    thread, element = table(shape, "c")
    np.testing.assert_array_equal(d[thread, element], want)


def test_matrix_products_of_any_values_are_close(mma: Kernels) -> None:
    """Whatever order and width the hardware sums in: within k roundings of the largest partial sum."""
    rng = np.random.default_rng(8)
    for name in ("m16n8k16_f32_f16", "m16n8k16_f32_bf16", "m16n8k32_f32_e4m3_e5m2", "m16n8k32_f32_e5m2_e4m3"):
        shape, a_type, b_type, _ = MMA[name]
        m, n, k = map(int, re.findall(r"\d+", shape))
        a = rng.standard_normal((m, k)).astype(as_dtype(DTYPES[a_type]).numpy)
        b = rng.standard_normal((k, n)).astype(as_dtype(DTYPES[b_type]).numpy)
        d = fragments(np.zeros((m, n), np.float32), shape, "c")
        mma(name, fragments(a, shape, "a").view(np.uint32), fragments(b, shape, "b").view(np.uint32), d, kept=False)
        wide = [x.astype(np.float64) for x in (a, b)]
        thread, element = table(shape, "c")
        bound = k * 2.0**-23 * (np.abs(wide[0]) @ np.abs(wide[1]))
        assert (np.abs(d[thread, element] - wide[0] @ wide[1]) <= bound).all()


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("trans", [False, True])
def test_ldmatrix(mma: Kernels, count: int, trans: bool) -> None:
    rng = np.random.default_rng(9)
    memory = rng.integers(0, 2**16, (40, 8), np.uint16)
    rows = rng.permutation(40)[:32].astype(np.int32)
    r = np.zeros((32, count), np.uint32)
    mma(f"ldmatrix_x{count}{'_trans' if trans else ''}", memory, rows, r, check=True)
    thread, element = table("ldmatrix", "m")
    for i in range(count):
        matrix = memory[rows[8 * i : 8 * i + 8]]
        got = r[:, i].copy().view(np.uint16).reshape(32, 2)[thread, element]
        np.testing.assert_array_equal(got, matrix.T if trans else matrix)


# -- copies --------------------------------------------------------------------------------------------------------


def test_asynchronous_copies_fill_with_zeros() -> None:
    bodies = {
        f"copy{n}": (
            "const tl_u8* x, tl_u8* y, int bytes",
            f"tl_cp_async_{n}_zfill(tl_shared() + t * {n}, x + t * {n}, bytes);"
            " tl_cp_async_commit(); tl_cp_async_wait(0);"
            f" for (int i = 0; i < {n}; i++) {{ y[t * {n} + i] = tl_shared()[t * {n} + i]; }}",
        )
        for n in (4, 8, 16)
    }
    kernels = Kernels(bodies)
    x = np.random.default_rng(10).integers(1, 256, 512).astype(np.uint8)
    for n in (4, 8, 16):
        for given in range(n + 1):
            y = np.zeros(32 * n, np.uint8)
            kernels(f"copy{n}", x, y, np.int32(given), check=given == n)
            want = x[: 32 * n].reshape(32, n).copy()
            want[:, given:] = 0
            np.testing.assert_array_equal(y.reshape(32, n), want)


# -- the table of names ----------------------------------------------------------------------------------------------


def documented() -> list[str]:
    """Every name of the README, patterns written out."""
    text = (Path(prelude.__file__).parent / "README.md").read_text(encoding="utf-8")
    return sorted(set(re.findall(r"`(tl_[a-z0-9_]+)\(", text)))


def test_both_sides_have_the_documented_names() -> None:
    names = documented()
    assert len(names) > 30
    for side in ("host", "device"):
        text = prelude.prelude(side)
        # Names whose last part is a letter that stands for several are made by macros.
        for name in names:
            stem = re.sub(r"_[A-Z]\w*", "_", name)
            assert re.search(rf"\b{stem}", text) or re.search(rf"\b{stem.rsplit('_', 1)[0]}_", text), (side, name)


@pytest.mark.skipif(bool(nvrtc.missing()), reason=f"NVRTC: {nvrtc.missing()}")
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_120a"])
def test_all_kernels_of_this_file_compile_for_the_device(
    arch: str, conversions: Kernels, arithmetics: Kernels, warps: Kernels, atomics: Kernels, mma: Kernels
) -> None:
    """The same text on the other side: every name that is tested here exists there, and ptxas takes its PTX."""
    for kernels in (conversions, arithmetics, warps, atomics, mma):
        text = kernels.text
        if arch == "sm_80":  # has no instruction for 8-bit floats
            text = "\n".join(
                p for p in re.split(r"(?=^extern)", text, flags=re.M) if not re.search(r"tl_mma\w*_e[45]m", p)
            )
        made = nvrtc.compile_text(text, arch)
        assert made.kernels and not made.warnings


def test_marks_give_the_authors_lines() -> None:
    text = "a\n//@ dir/my file.py:12 | x = y | z\nb\nc\n//@\nd\n  //@ other.py:3\ne"
    places = [prelude.author_line(text, i) for i in range(1, 9)]
    mine, other = ("dir/my file.py", 12, "x = y | z"), ("other.py", 3, "")
    assert places == [None, mine, mine, mine, None, None, other, other]


def test_ml_dtypes_agrees_with_the_widening_table() -> None:
    """The language's table is what the prelude is compared with; here is a source outside this house."""
    for suffix in ("bf16", "e4m3", "e5m2", "e8m0"):
        dtype = as_dtype(NARROW[suffix])
        codes = np.arange(1 << dtype.bits, dtype=f"u{dtype.numpy.itemsize}")
        outside = codes.view(getattr(ml_dtypes, dtype.name)).astype(np.float32)
        same(convert(codes.view(dtype.numpy), dtype, as_dtype("float32")), outside, suffix)
