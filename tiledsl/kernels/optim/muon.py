"""Muon: momentum, made orthogonal by a hybrid Newton-Schulz iteration in which every product but one is symmetric."""

# mypy: disable-error-code="no-untyped-def,valid-type"
import math
from functools import cache
from typing import Any

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import arrays
from tiledsl.kernels.reorder import transpose
from tiledsl.kernels.tiles import GEMM_K, tiles_for
from tiledsl.runtime import allocate

__all__ = ["adamw_kernel", "adamw_step", "affine_product_kernel", "momentum_kernel", "muon_step", "newton_schulz"]
__all__ += ["symmetric_product_kernel"]

TILE = 64  # rows and columns of a product's tile
WIDTH = 256  # columns of a block of elementwise work
FAST, LAST = (3.4445, -4.7750, 2.0315), (2.0, -1.5, 0.5)
COEFFICIENTS = (*[FAST] * 8, *[LAST] * 2)


@tiledsl.jit
def symmetric_product_kernel(dtype: DType, added: bool, threads: int = 128) -> Any:
    """Y = alpha C + beta X X^T where C is added, else Y = X X^T - I, operands rounded to dtype: blocks on and below
    the diagonal compute, and write their transpose too."""
    B, M, K = T.dynamic("B"), T.dynamic("M"), T.dynamic("K")

    @T.prim_func
    def symmetric_product(
        X: T.Tensor((B, M, K), T.float32),
        C: T.Tensor((B, M, M), T.float32),
        alpha: T.float32,
        beta: T.float32,
        Y: T.Tensor((B, M, M), T.float32),
    ):
        with T.Kernel(T.ceildiv(M, TILE), T.ceildiv(M, TILE), B, threads=threads) as (bx, by, b):
            if bx <= by:
                left = T.alloc_shared((TILE, GEMM_K), dtype)
                right = T.alloc_shared((TILE, GEMM_K), dtype)
                acc = T.alloc_fragment((TILE, TILE), T.float32)
                T.clear(acc)
                for k in T.Pipelined(T.ceildiv(K, GEMM_K), num_stages=2):
                    T.copy(X[b, by * TILE, k * GEMM_K], left)
                    T.copy(X[b, bx * TILE, k * GEMM_K], right)
                    T.gemm(left, right, acc, transpose_B=True)
                for i, j in T.Parallel(TILE, TILE):
                    if added:
                        acc[i, j] = alpha * C[b, by * TILE + i, bx * TILE + j] + beta * acc[i, j]
                    else:
                        acc[i, j] = acc[i, j] - T.if_then_else(by * TILE + i == bx * TILE + j, 1.0, 0.0)
                T.copy(acc, Y[b, by * TILE, bx * TILE])
                if bx < by:
                    for i, j in T.Parallel(TILE, TILE):
                        Y[b, bx * TILE + i, by * TILE + j] = acc[j, i]

    return symmetric_product


@tiledsl.jit
def affine_product_kernel(dtype: DType, threads: int = 128) -> Any:
    """Y = alpha X + S X, the product's operands rounded to dtype."""
    B, M, N = T.dynamic("B"), T.dynamic("M"), T.dynamic("N")

    @T.prim_func
    def affine_product(
        S: T.Tensor((B, M, M), T.float32),
        X: T.Tensor((B, M, N), T.float32),
        alpha: T.float32,
        Y: T.Tensor((B, M, N), T.float32),
    ):
        with T.Kernel(T.ceildiv(N, TILE), T.ceildiv(M, TILE), B, threads=threads) as (bx, by, b):
            left = T.alloc_shared((TILE, GEMM_K), dtype)
            right = T.alloc_shared((GEMM_K, TILE), dtype)
            acc = T.alloc_fragment((TILE, TILE), T.float32)
            T.clear(acc)
            for k in T.Pipelined(T.ceildiv(M, GEMM_K), num_stages=2):
                T.copy(S[b, by * TILE, k * GEMM_K], left)
                T.copy(X[b, k * GEMM_K, bx * TILE], right)
                T.gemm(left, right, acc)
            for i, j in T.Parallel(TILE, TILE):
                acc[i, j] = alpha * X[b, by * TILE + i, bx * TILE + j] + acc[i, j]
            T.copy(acc, Y[b, by * TILE, bx * TILE])

    return affine_product


@tiledsl.jit
def momentum_kernel(nesterov: bool, threads: int = 128) -> Any:
    """V = mu V + G; U = mu V + G (nesterov) or G alone; then U divided by its Frobenius norm, 0 where that is 0."""
    B, M, N = T.dynamic("B"), T.dynamic("M"), T.dynamic("N")

    @T.prim_func
    def momentum(
        G: T.Tensor((B, M, N), T.float32),
        V: T.Tensor((B, M, N), T.float32),
        mu: T.float32,
        Rows: T.Tensor((B, M), T.float32),
        Norm: T.Tensor((B,), T.float32),
        U: T.Tensor((B, M, N), T.float32),
    ):
        with T.Kernel(M, B, threads=threads) as (row, b):
            square = T.alloc_fragment((1, WIDTH), T.float32)
            total = T.alloc_fragment((1,), T.float32)
            T.clear(total)
            for k in T.serial(T.ceildiv(N, WIDTH)):
                for _, j in T.Parallel(1, WIDTH):
                    g = G[b, row, k * WIDTH + j]
                    if nesterov:
                        v = mu * V[b, row, k * WIDTH + j] + g
                        V[b, row, k * WIDTH + j] = v
                        u = mu * v + g
                        U[b, row, k * WIDTH + j] = u
                        square[0, j] = T.if_then_else(k * WIDTH + j < N, u * u, 0.0)
                    else:
                        U[b, row, k * WIDTH + j] = g
                        square[0, j] = T.if_then_else(k * WIDTH + j < N, g * g, 0.0)
                T.reduce_sum(square, total, dim=1, clear=False)
            for i in T.Parallel(1):
                Rows[b, row] = total[i]
        with T.Kernel(B, threads=threads) as b:
            some = T.alloc_fragment((1, WIDTH), T.float32)
            total = T.alloc_fragment((1,), T.float32)
            T.clear(total)
            for k in T.serial(T.ceildiv(M, WIDTH)):
                for _, j in T.Parallel(1, WIDTH):
                    some[0, j] = Rows[b, k * WIDTH + j]
                T.reduce_sum(some, total, dim=1, clear=False)
            for i in T.Parallel(1):
                Norm[b] = T.sqrt(total[i])
        with T.Kernel(T.ceildiv(N, WIDTH), M, B, threads=threads) as (bx, row, b):
            norm = Norm[b]
            for j in T.Parallel(WIDTH):
                u = U[b, row, bx * WIDTH + j]
                U[b, row, bx * WIDTH + j] = T.if_then_else(norm == 0.0, u, u / norm)

    return momentum


@tiledsl.jit
def update_kernel(threads: int = 128) -> Any:
    """W = W keep - step O."""
    B, M, N = T.dynamic("B"), T.dynamic("M"), T.dynamic("N")

    @T.prim_func
    def update(W: T.Tensor((B, M, N), T.float32), O: T.Tensor((B, M, N), T.float32), keep: T.float32, step: T.float32):
        with T.Kernel(T.ceildiv(N, WIDTH), M, B, threads=threads) as (bx, row, b):
            for j in T.Parallel(WIDTH):
                at = bx * WIDTH + j
                W[b, row, at] = W[b, row, at] * keep - O[b, row, at] * step

    return update


@tiledsl.jit
def adamw_kernel(threads: int = 128) -> Any:
    """m and v updated; W = W keep - lr (m / first) / (sqrt(v / second) + eps)."""
    N = T.dynamic("N")

    @T.prim_func
    def adamw(
        W: T.Tensor((N,), T.float32),
        G: T.Tensor((N,), T.float32),
        First: T.Tensor((N,), T.float32),
        Second: T.Tensor((N,), T.float32),
        b1: T.float32,
        rest1: T.float32,
        b2: T.float32,
        rest2: T.float32,
        unbias1: T.float32,
        unbias2: T.float32,
        keep: T.float32,
        lr: T.float32,
        eps: T.float32,
    ):
        with T.Kernel(T.ceildiv(N, 4 * WIDTH), threads=threads) as bx:
            for i in T.Parallel(4 * WIDTH):
                at = bx * 4 * WIDTH + i
                if at < N:
                    m = b1 * First[at] + rest1 * G[at]
                    v = b2 * Second[at] + rest2 * (G[at] * G[at])
                    First[at] = m
                    Second[at] = v
                    W[at] = W[at] * keep - lr * (m / unbias1 / (T.sqrt(v / unbias2) + eps))

    return adamw


_symmetric_product_kernel = cache(symmetric_product_kernel)  # the same values, the same kernel
_affine_product_kernel = cache(affine_product_kernel)
_momentum_kernel = cache(momentum_kernel)
_update_kernel = cache(update_kernel)
_adamw_kernel = cache(adamw_kernel)


def _batch(name: str, which: str, x: Any) -> tuple[int, int, int]:
    arrays.dtype_of(name, which, x, ("float32",))
    if x.ndim not in (2, 3):
        raise TileTypeError(f"{name}: {arrays.describe(**{which: x})}, expected [m, n] or [batch, m, n]")
    return (1, *x.shape) if x.ndim == 2 else tuple(x.shape)


def _unit(x: Any, momentum: Any, mu: float, shape: tuple[int, int, int], target: Any) -> Any:
    """x, or with a momentum its Nesterov update, over its Frobenius norm."""
    f32 = as_dtype("float32")
    u, rows, norm = allocate(shape, f32, x), allocate(shape[:2], f32, x), allocate(shape[:1], f32, x)
    kernel = _momentum_kernel(momentum is not None, tiles_for(target).threads)
    kernel(arrays.dense(x).reshape(shape), momentum, mu, rows, norm, u, target=target)
    return u


def _orthogonal(x: Any, products: DType, steps: tuple[tuple[float, float, float], ...], target: Any) -> Any:
    """The iteration on x [batch, m, n] of norm 1, on the shorter side.

    With E = X X^T - I a step is X <- (a + b + c) X + ((b + 2 c) E + c E E) X: the same polynomial, but what bfloat16
    rounds goes to 0 with E instead of staying as large as X.
    """
    b, m, n = x.shape
    turned = m > n
    if turned:
        x, m, n = transpose(x, target=target), n, m
    f32, threads = as_dtype("float32"), tiles_for(target).threads
    square, poly = allocate((b, m, m), f32, x), allocate((b, m, m), f32, x)
    other = allocate((b, m, n), f32, x)
    gram = _symmetric_product_kernel(products, False, threads)
    polynomial = _symmetric_product_kernel(products, True, threads)
    apply = _affine_product_kernel(products, threads)
    for alpha, beta, gamma in steps:
        gram(x, None, 0.0, 1.0, square, target=target)
        polynomial(square, square, beta + 2 * gamma, gamma, poly, target=target)  # squares of symmetric ones are too
        apply(poly, x, alpha + beta + gamma, other, target=target)
        x, other = other, x
    return transpose(x, target=target) if turned else x


def newton_schulz(
    x: Any,
    *,
    products: Any = "bfloat16",
    coefficients: tuple[tuple[float, float, float], ...] = COEFFICIENTS,
    target: Any = None,
) -> Any:
    """The nearly orthogonal factor of x: X = x / |x|_F, then for each (a, b, c) of the coefficients
    X <- a X + (b A + c A A) X with A = X X^T (Jordan et al., "Muon", 2024; DeepSeek-V4's hybrid form: eight steps of
    (3.4445, -4.7750, 2.0315), which bring singular values near 1, and two of (2, -1.5, 0.5), which converge).

    x             [m, n] or [batch, m, n] float32; NumPy or torch
    products      "bfloat16" or "float32": what the operands of products are rounded to; sums are float32
    coefficients  the steps
    target        where to run (default: TILEDSL_TARGET, else auto)

    Returns float32 like x: singular values within [0.995, 1.006] with bfloat16 products where those of x / |x|_F are
    above 1e-4 or so. A and A A are symmetric: half of their blocks are computed. A matrix has the same bits in every
    batch; a zero matrix gives zeros.

    Raises TileTypeError for wrong dtypes or shapes.
    """
    name = "newton_schulz"
    shape = _batch(name, "x", x)
    kind = arrays.choice(name, "products", products, ("bfloat16", "float32"))
    if not all(shape):
        return allocate(tuple(x.shape), as_dtype("float32"), x)
    return _orthogonal(_unit(x, None, 0.0, shape, target), kind, coefficients, target).reshape(tuple(x.shape))


def muon_step(
    weight: Any,
    grad: Any,
    momentum: Any,
    *,
    lr: float,
    mu: float = 0.95,
    weight_decay: float = 0.1,
    rms: float = 0.18,
    products: Any = "bfloat16",
    target: Any = None,
) -> None:
    """One step of Muon as DeepSeek-V4 does it, in place: momentum <- mu momentum + grad;
    o = newton_schulz(mu momentum + grad) sqrt(max(m, n)) rms; weight <- weight (1 - lr weight_decay) - lr o.

    weight, grad, momentum  [m, n] or [batch, m, n] float32, contiguous, of one shape (parameters of one shape in one
                            call); NumPy or torch; weight and momentum are updated
    lr, mu, weight_decay    as above; rms the size of an element of the update
    products, target        as in newton_schulz

    Raises TileTypeError for wrong dtypes or shapes, TileValueError where an array to be updated is not contiguous.
    """
    name = "muon_step"
    shape = _batch(name, "weight", weight)
    kind = arrays.choice(name, "products", products, ("bfloat16", "float32"))
    _updated(name, weight, grad=grad, momentum=momentum)
    if all(shape):
        unit = _unit(grad, momentum.reshape(shape), float(mu), shape, target)
        o = _orthogonal(unit, kind, COEFFICIENTS, target)
        step = lr * rms * math.sqrt(max(shape[1:]))
        kernel = _update_kernel(tiles_for(target).threads)
        kernel(weight.reshape(shape), o, 1 - lr * weight_decay, step, target=target)


def adamw_step(
    weight: Any,
    grad: Any,
    first: Any,
    second: Any,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-20,
    weight_decay: float = 0.1,
    target: Any = None,
) -> None:
    """One step of AdamW (Loshchilov and Hutter, 2019), in place, for what Muon does not update: first <- b1 first +
    (1 - b1) grad; second <- b2 second + (1 - b2) grad^2; weight <- weight (1 - lr weight_decay) -
    lr (first / (1 - b1^step)) / (sqrt(second / (1 - b2^step)) + eps).

    weight, grad, first, second  any shape, float32, contiguous; all but grad are updated; NumPy or torch
    step                         1 for the first step
    target                       where to run (default: TILEDSL_TARGET, else auto)

    Raises TileTypeError for wrong dtypes or shapes, TileValueError for a step below 1 and where an array to be updated
    is not contiguous.
    """
    name = "adamw_step"
    _updated(name, weight, grad=grad, first=first, second=second)
    if step < 1:
        raise TileValueError(f"{name}: step is {step}, expected 1 for the first step")
    if n := math.prod(weight.shape):
        flat = [arrays.dense(x).reshape(n) for x in (weight, grad, first, second)]
        (b1, b2), keep = betas, 1 - lr * weight_decay
        kernel = _adamw_kernel(tiles_for(target).threads)
        kernel(*flat, b1, 1 - b1, b2, 1 - b2, 1 - b1**step, 1 - b2**step, keep, lr, eps, target=target)


def _updated(name: str, weight: Any, **others: Any) -> None:
    """Raises TileTypeError unless all are float32 of one shape, TileValueError unless they are contiguous."""
    for which, x in (("weight", weight), *others.items()):
        arrays.dtype_of(name, which, x, ("float32",))
        if tuple(x.shape) != tuple(weight.shape):
            raise TileTypeError(f"{name}: shapes differ: {arrays.describe(weight=weight, **{which: x})}")
        if which != "grad" and arrays.dense(x) is not x:
            raise TileValueError(f"{name}: {which} is updated in place and has to be contiguous")
