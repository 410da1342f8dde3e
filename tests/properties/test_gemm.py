"""T.gemm: dtypes x transposes x odd tiles x odd sizes, against rational arithmetic, error bounds and each other."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from properties import bounds, support
from properties.support import Array

import tiledsl
from tiledsl.dtypes import DType, as_dtype
from tiledsl.interp import Options


@dataclass(frozen=True)
class Case:
    """One kernel: operand and result dtype, tile (M, N, K), which operands are stored transposed."""

    operand: str
    result: str
    tile: tuple[int, int, int]
    transpose_a: bool = False
    transpose_b: bool = False
    clear: str = "fill"  # how the sum begins: "fill", "clear_accum", "load" (C is an input too), "regions" of tiles

    def __str__(self) -> str:
        flags = "T" * self.transpose_a + "-" + "T" * self.transpose_b
        return f"{self.operand}-{self.result}-{'x'.join(map(str, self.tile))}-{flags}-{self.clear}"


CASES = [
    *(Case("float32", "float32", (33, 48, 31), ta, tb) for ta in (False, True) for tb in (False, True)),
    Case("float32", "float32", (1, 1, 1)),
    Case("float32", "float32", (7, 229, 3), clear="clear_accum"),
    Case("float32", "float32", (127, 16, 5), True, clear="load"),
    Case("float32", "float32", (13, 17, 64), False, True, clear="regions"),
    Case("float32", "float16", (16, 33, 8)),
    Case("float16", "float32", (33, 31, 48), False, True),
    Case("float16", "float16", (31, 33, 16)),
    Case("bfloat16", "float32", (64, 64, 32)),
    Case("bfloat16", "bfloat16", (13, 48, 16), True, True, clear="load"),
    Case("float64", "float64", (31, 13, 7), False, True),
    Case("float8_e4m3fn", "float32", (31, 33, 48), False, True),
    Case("float8_e5m2", "float16", (13, 17, 33), True, clear="clear_accum"),
    Case("float8_e4m3fn", "bfloat16", (16, 31, 7), False, True, clear="regions"),
    Case("int8", "int32", (33, 31, 48)),
    Case("uint8", "int32", (7, 64, 13), True, clear="clear_accum"),
    Case("int8", "int32", (33, 65, 31), True, True, clear="load"),
    Case("int8", "int32", (13, 17, 70), False, True, clear="regions"),
    Case("int8", "int32", (1, 1, 2), True),
    Case("uint8", "int32", (16, 33, 129), False, True),
]
SHAPES = [(1, 1, 1), (3, 5, 7), (33, 31, 48), (127, 13, 33), (5, 229, 7)]
MOST_BLOCKS = 100  # a tile of one element stays with small matrices


@functools.cache
def kernel(case: Case) -> tiledsl.JITKernel:
    bm, bn, bk = case.tile
    ta, tb = case.transpose_a, case.transpose_b
    start = {"fill": "T.clear(acc)", "clear_accum": "pass", "load": "T.copy(C[by * BM, bx * BN], acc)"}
    a_tile, b_tile = ("BK, BM" if ta else "BM, BK"), ("BN, BK" if tb else "BK, BN")
    a_from = "A[k * BK, by * BM]" if ta else "A[by * BM, k * BK]"
    b_from = "B[bx * BN, k * BK]" if tb else "B[k * BK, bx * BN]"
    flags = f"transpose_A={ta}, transpose_B={tb}"
    if case.clear == "clear_accum":
        flags += ", clear_accum=k == 0"
    if case.clear == "regions":  # the operands are the middles of larger tiles, the result two halves of columns
        alloc = f"""A_s = T.alloc_shared((BM + 3, BK + 5), "{case.operand}")
        B_s = T.alloc_shared((2, BN + 1, BK + 2), "{case.operand}")"""
        copies = """T.copy(A[by * BM, k * BK], A_s[2:BM + 2, 3:BK + 3])
            T.copy(B[bx * BN, k * BK], B_s[1, 1:BN + 1, 2:BK + 2])"""
        half = bn // 2
        gemm = f"""T.gemm(A_s[2:BM + 2, 3:BK + 3], B_s[1, 1:{half + 1}, 2:BK + 2], acc[:, 0:{half}], {flags})
            T.gemm(A_s[2:BM + 2, 3:BK + 3], B_s[1, {half + 1}:BN + 1, 2:BK + 2], acc[:, {half}:BN], {flags})"""
        assert tb and not ta
    else:
        alloc = f"""A_s = T.alloc_shared(({a_tile}), "{case.operand}")
        B_s = T.alloc_shared(({b_tile}), "{case.operand}")"""
        copies = f"""T.copy({a_from}, A_s)
            T.copy({b_from}, B_s)"""
        gemm = f"T.gemm(A_s, B_s, acc, {flags})"
    return support.kernel_from(f"""
import tiledsl.language as T

M, N, K = T.dynamic("M, N, K")
BM, BN, BK = {bm}, {bn}, {bk}

@T.prim_func
def main(A: T.Tensor(({"K, M" if ta else "M, K"}), "{case.operand}"),
         B: T.Tensor(({"N, K" if tb else "K, N"}), "{case.operand}"), C: T.Tensor((M, N), "{case.result}")):
    with T.Kernel(T.ceildiv(N, BN), T.ceildiv(M, BM)) as (bx, by):
        {alloc}
        acc = T.alloc_fragment((BM, BN), "{case.result}")
        {start.get(case.clear, "T.clear(acc)")}
        for k in T.Pipelined(T.ceildiv(K, BK), num_stages=2):
            {copies}
            {gemm}
        T.copy(acc, C[by * BM, bx * BN])
""")


def draws(dtype: DType, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if dtype.is_float:
        return rng.standard_normal(shape).astype(np.float32).astype(dtype.numpy)
    low, high = support.int_range(dtype)
    return rng.integers(low, high + 1, shape).astype(dtype.numpy)


def arguments(case: Case, m: int, n: int, k: int, seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    a = draws(as_dtype(case.operand), (k, m) if case.transpose_a else (m, k), rng)
    b = draws(as_dtype(case.operand), (n, k) if case.transpose_b else (k, n), rng)
    c = draws(as_dtype(case.result), (m, n), rng)
    return [a, b, c]


def exact(case: Case, a: Array, b: Array, c: Array) -> tuple[Array, Array, Array]:
    """The factors in float64 (int64), the start included as one more term, and their exact product."""
    wide = np.float64 if as_dtype(case.operand).is_float else np.int64
    left = (a.T if case.transpose_a else a).astype(wide)
    right = (b.T if case.transpose_b else b).astype(wide)
    if case.clear == "load":
        left = np.concatenate([left, np.eye(len(c), dtype=wide)], axis=1)
        right = np.concatenate([right, c.astype(wide)])
    return left, right, left @ right


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gemm(case: Case) -> None:
    """Targets agree with the fma chain bit for bit; the chain and BLAS lie within the bound of float32 sums."""
    result, operand = as_dtype(case.result), as_dtype(case.operand)
    made = kernel(case)
    for m, n, k in SHAPES:
        if m * n > MOST_BLOCKS * case.tile[0] * case.tile[1]:
            continue
        args = arguments(case, m, n, k)
        chain = support.agree(made, *args, what=f"{m}x{n}x{k}")[2]
        left, right, product = exact(case, *args)
        if not operand.is_float:
            support.assert_same(chain, product.astype(np.int32), f"{case} {m}x{n}x{k}")
            continue
        blas = support.copies(args)
        support.run_reference(made, *blas, options=Options())
        count = bounds.count_gemm(made.function, {"M": m, "N": n, "K": k})
        accumulator = as_dtype("float64" if case.operand == "float64" else "float32")
        for independent in (False, True):
            bound = bounds.gemm_bound(left, right, count, accumulator, result, independent)
            if case.operand == "float64":  # the product in float64 is no more exact than what it checks
                bound = 2 * bound
            for got, name in ((chain, "chain"), (blas[2], "BLAS")):
                bounds.assert_within(got, product, bound, f"{name} of {case} at {m}x{n}x{k}")


def test_the_chain_is_one_fma_per_term_in_ascending_order() -> None:
    """Against rational numbers, with terms that differ so much in size that any other order gives other bits."""
    case = Case("float32", "float32", (7, 229, 3), clear="clear_accum")
    rng = np.random.default_rng(5)
    m, n, k = 3, 5, 17
    a, b = (np.ldexp(rng.standard_normal(s), rng.integers(-12, 12, s)).astype(np.float32) for s in ((m, k), (k, n)))
    got = support.agree(kernel(case), a, b, np.zeros((m, n), np.float32))[2]
    f32 = as_dtype("float32")
    orders = [list(range(k)), list(reversed(range(k)))]
    results = []
    for order in orders:
        wanted = np.zeros((m, n), np.float32)
        for i, j in np.ndindex(m, n):
            total = Fraction(0)
            for x in order:
                total = Fraction(support.nearest(Fraction(float(a[i, x])) * Fraction(float(b[x, j])) + total, f32))
            wanted[i, j] = float(total)
        results.append(wanted)
    support.assert_same(got, results[0], "chain")
    assert (results[0] != results[1]).any()


def test_special_values_pass_through_gemm() -> None:
    """Infinities, NaN, overflow and denormals of float32 come out as the chain says, on every target."""
    case = Case("float32", "float32", (33, 48, 31))
    values = support.specials(as_dtype("float32"))
    rng = np.random.default_rng(3)
    for m, n, k in ((33, 31, 7), (48, 229, 31)):
        a, b = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
        for x in (a, b):
            at = rng.integers(0, x.size, x.size // 9)
            x.flat[at] = rng.choice(values, len(at))
        support.agree(kernel(case), a, b, np.zeros((m, n), np.float32), what=f"{m}x{n}x{k}")


@pytest.mark.parametrize("left, right", [("int8", "uint8"), ("uint8", "int8"), ("int4", "uint4"), ("int4", "int4")])
@pytest.mark.parametrize("transposed", [False, True])
def test_small_integers_of_two_kinds(left: str, right: str, transposed: bool) -> None:
    """Signed by unsigned, and tiles of four bits; then a right operand that is one value throughout."""
    made = support.kernel_from(f"""
import tiledsl.language as T

M, N, K = T.dynamic("M, N, K")

@T.prim_func
def main(A: T.Tensor((M, K), "int32"), B: T.Tensor((K, N), "int32"), C: T.Tensor((M, N), "int32")):
    with T.Kernel(T.ceildiv(N, 20), T.ceildiv(M, 7)) as (bx, by):
        A_s = T.alloc_shared(({"39, 7" if transposed else "7, 39"}), "{left}")
        B_s = T.alloc_shared(({"20, 39" if transposed else "39, 20"}), "{right}")
        D_s = T.alloc_shared(({"20, 39" if transposed else "39, 20"}), "{right}")
        acc = T.alloc_fragment((7, 20), "int32")
        T.clear(acc)
        T.fill(D_s, 5)
        for k in T.serial(T.ceildiv(K, 39)):
            for i, j in T.Parallel(7, 39):
                A_s[{"j, i" if transposed else "i, j"}] = T.cast(A[by * 7 + i, k * 39 + j], "{left}")
            for i, j in T.Parallel(39, 20):
                B_s[{"j, i" if transposed else "i, j"}] = T.cast(B[k * 39 + i, bx * 20 + j], "{right}")
            T.gemm(A_s, B_s, acc, transpose_A={transposed}, transpose_B={transposed})
            T.gemm(A_s, D_s, acc, transpose_A={transposed}, transpose_B={transposed})
        T.copy(acc, C[by * 7, bx * 20])
""")
    ranges = []
    for name in (left, right):
        bits = as_dtype(name).bits
        low = -(1 << (bits - 1)) if as_dtype(name).is_signed else 0
        ranges.append((low, low + (1 << bits)))
    rng = np.random.default_rng(1)
    for m, n, k in SHAPES:
        a, b = (rng.integers(*r, s).astype(np.int32) for r, s in zip(ranges, ((m, k), (k, n)), strict=True))
        got = support.agree(made, a, b, np.zeros((m, n), np.int32), what=f"{m}x{n}x{k}")[2]
        support.assert_same(got, a @ b + 5 * a.sum(axis=1, dtype=np.int32)[:, None], f"{left} {right} {m}x{n}x{k}")
