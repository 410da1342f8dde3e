"""The computations of `tilelang.carver`'s templates as plain kernels: one tile at a time, nothing tuned."""

from typing import Any

import tiledsl.language as T

__all__ = ["attention", "convolution", "elementwise", "matmul", "reduction", "window"]

_TILE = 32


def window(n: int, kernel: int, stride: int, dilation: int, padding: int) -> int:
    """Positions of a window along an axis of n."""
    return (n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _sum_dtype(dtype: Any) -> str:
    """What sums of a dtype are accumulated in."""
    return "int32" if T.dtype(dtype).is_int else "float64" if T.dtype(dtype).bits == 64 else "float32"


def matmul(m: int, n: int, k: int, trans_a: bool, trans_b: bool, in_dtype: Any, out_dtype: Any, with_bias: bool) -> Any:
    """main(A, B, [bias,] C): C = op(A) @ op(B) (+ bias[N])."""
    a_shape, b_shape = ((k, m) if trans_a else (m, k)), ((n, k) if trans_b else (k, n))
    a_tile = (_TILE, _TILE)

    @T.macro
    def product(A, B, c, bx, by):  # type: ignore[no-untyped-def]
        a, b = T.alloc_shared(a_tile, in_dtype), T.alloc_shared(a_tile, in_dtype)
        T.clear(c)
        for ko in T.serial(T.ceildiv(k, _TILE)):
            if trans_a:
                T.copy(A[ko * _TILE, by * _TILE], a)
            else:
                T.copy(A[by * _TILE, ko * _TILE], a)
            if trans_b:
                T.copy(B[bx * _TILE, ko * _TILE], b)
            else:
                T.copy(B[ko * _TILE, bx * _TILE], b)
            T.gemm(a, b, c, transpose_A=trans_a, transpose_B=trans_b)

    @T.prim_func
    def main(A: T.Tensor(a_shape, in_dtype), B: T.Tensor(b_shape, in_dtype), C: T.Tensor((m, n), out_dtype)):  # type: ignore[no-untyped-def, valid-type]
        with T.Kernel(T.ceildiv(n, _TILE), T.ceildiv(m, _TILE), threads=128) as (bx, by):
            c = T.alloc_fragment((_TILE, _TILE), _sum_dtype(in_dtype))
            product(A, B, c, bx, by)
            T.copy(c, C[by * _TILE, bx * _TILE])

    @T.prim_func
    def biased(
        A: T.Tensor(a_shape, in_dtype),  # type: ignore[valid-type]
        B: T.Tensor(b_shape, in_dtype),  # type: ignore[valid-type]
        bias: T.Tensor((n,), out_dtype),  # type: ignore[valid-type]
        C: T.Tensor((m, n), out_dtype),  # type: ignore[valid-type]
    ) -> None:
        with T.Kernel(T.ceildiv(n, _TILE), T.ceildiv(m, _TILE), threads=128) as (bx, by):
            c = T.alloc_fragment((_TILE, _TILE), _sum_dtype(in_dtype))
            product(A, B, c, bx, by)
            for i, j in T.Parallel(_TILE, _TILE):
                c[i, j] += bias[bx * _TILE + j]
            T.copy(c, C[by * _TILE, bx * _TILE])

    return biased if with_bias else main


def elementwise(size: int, dtype: Any) -> Any:
    """main(A, B): B = A + 1, flat."""

    @T.prim_func
    def main(A: T.Tensor((size,), dtype), B: T.Tensor((size,), dtype)):  # type: ignore[no-untyped-def, valid-type]
        with T.Kernel(T.ceildiv(size, 256), threads=128) as bx:
            for i in T.Parallel(256):
                B[bx * 256 + i] = A[bx * 256 + i] + 1

    return main


def reduction(structure: str, shape: tuple[int, ...], dtype: Any) -> Any:
    """main(A, B): B is the sum of A over its R axes."""
    kept = [i for i, s in enumerate(structure) if s == "S"]
    summed = [i for i, s in enumerate(structure) if s == "R"]
    out = tuple(shape[i] for i in kept) or (1,)

    @T.prim_func
    def main(A: T.Tensor(shape, dtype), B: T.Tensor(out, dtype)):  # type: ignore[no-untyped-def, valid-type]
        with T.Kernel(1, threads=128):
            for at in T.grid(*out):
                index = at if isinstance(at, tuple) else (at,)
                total = T.alloc_var(_sum_dtype(dtype), init=0)
                for r in T.grid(*(shape[i] for i in summed) or (1,)):
                    step = r if isinstance(r, tuple) else (r,)
                    places = dict(zip(kept, index)) | dict(zip(summed, step))  # noqa: B905 (the whole sum has none kept)
                    total += A[tuple(places[i] for i in range(len(shape)))]
                B[index] = total

    return main


def attention(
    batch: int, heads: int, dim: int, queries: int, keys: int, causal: bool, in_dtype: Any, out_dtype: Any
) -> Any:
    """main(Q, K, V, O), [batch, seq, heads, dim]: O = softmax(Q K^T / sqrt(dim)) V."""
    scale = dim**-0.5

    @T.prim_func
    def main(
        Q: T.Tensor((batch, queries, heads, dim), in_dtype),  # type: ignore[valid-type]
        K: T.Tensor((batch, keys, heads, dim), in_dtype),  # type: ignore[valid-type]
        V: T.Tensor((batch, keys, heads, dim), in_dtype),  # type: ignore[valid-type]
        O: T.Tensor((batch, queries, heads, dim), out_dtype),  # type: ignore[valid-type]  # noqa: E741
    ) -> None:
        with T.Kernel(T.ceildiv(queries, _TILE), heads, batch, threads=128) as (bx, by, bz):
            q, k = T.alloc_shared((_TILE, dim), in_dtype), T.alloc_shared((keys, dim), in_dtype)
            s, o = T.alloc_fragment((_TILE, keys), "float32"), T.alloc_fragment((_TILE, dim), "float32")
            p = T.alloc_shared((_TILE, keys), in_dtype)
            top, total = T.alloc_fragment((_TILE,), "float32"), T.alloc_fragment((_TILE,), "float32")
            T.copy(Q[bz, bx * _TILE : (bx + 1) * _TILE, by, :], q)
            T.copy(K[bz, :, by, :], k)
            T.clear(s)
            T.gemm(q, k, s, transpose_B=True)
            for i, j in T.Parallel(_TILE, keys):
                seen = not causal or bx * _TILE + i >= j
                s[i, j] = T.if_then_else(seen, s[i, j] * scale, -T.infinity("float32"))
            T.reduce_max(s, top, dim=1)
            for i, j in T.Parallel(_TILE, keys):
                s[i, j] = T.exp(s[i, j] - top[i])
            T.reduce_sum(s, total, dim=1)
            T.copy(s, p)
            T.copy(V[bz, :, by, :], k)
            T.clear(o)
            T.gemm(p, k, o)
            for i, j in T.Parallel(_TILE, dim):
                o[i, j] = o[i, j] / total[i]
            T.copy(o, O[bz, bx * _TILE : (bx + 1) * _TILE, by, :])

    return main


def convolution(
    n: int, c: int, h: int, w: int, f: int, k: int, s: int, d: int, p: int, in_dtype: Any, out_dtype: Any
) -> Any:
    """main(image[N, H, W, C], filters[K, K, C, F], out[N, OH, OW, F])."""
    oh, ow = window(h, k, s, d, p), window(w, k, s, d, p)

    @T.prim_func
    def main(
        image: T.Tensor((n, h, w, c), in_dtype),  # type: ignore[valid-type]
        filters: T.Tensor((k, k, c, f), in_dtype),  # type: ignore[valid-type]
        out: T.Tensor((n, oh, ow, f), out_dtype),  # type: ignore[valid-type]
    ) -> None:
        with T.Kernel(ow, oh, n, threads=128) as (bx, by, bz):
            acc = T.alloc_fragment((f,), _sum_dtype(in_dtype))
            T.clear(acc)
            for ky, kx, ci in T.grid(k, k, c):
                for j in T.Parallel(f):
                    pixel = T.cast(image[bz, by * s + ky * d - p, bx * s + kx * d - p, ci], _sum_dtype(in_dtype))
                    acc[j] += pixel * filters[ky, kx, ci, j]
            T.copy(acc, out[bz, by, bx, :])

    return main
