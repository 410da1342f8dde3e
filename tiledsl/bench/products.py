"""Jobs that multiply matrices: float32, halves, bytes, groups, and a kernel as it is written for a GPU."""

# mypy: disable-error-code="no-untyped-def,valid-type"

from typing import Any

import numpy as np

import tiledsl
import tiledsl.language as T
from tiledsl.bench.job import BF16, Job, Maker, Thunk, array, large, tensor, torch_module

__all__ = ["PRODUCTS", "gpu_gemm"]

_ROWS = (13, 200, 64, 0, 301, 129, 7, 310)


def _gemm(m: int, n: int, k: int, dtype: Any, turned: str = "") -> Maker:
    """turned: "a" or "b" lies transposed in memory."""

    def make(target: str | None, small: bool) -> dict[str, Thunk]:
        from tiledsl.kernels import matmul

        rows, columns, depth = (min(x, 65) for x in (m, n, k)) if small else (m, n, k)
        rng = np.random.default_rng(0)
        a = array(rng, (depth, rows), dtype).T if turned == "a" else array(rng, (rows, depth), dtype)
        b = array(rng, (columns, depth), dtype).T if turned == "b" else array(rng, (depth, columns), dtype)
        out = np.empty((rows, columns), dtype)
        jobs: dict[str, Thunk] = {"tiledsl": lambda: matmul(a, b, out=out, target=target)}
        if dtype == np.float32:
            peer = np.empty((rows, columns), dtype)
            jobs["numpy"] = lambda: np.matmul(a, b, out=peer)
        if torch := torch_module():
            ta, tb = (
                tensor(torch, x.T).T if turned == which else tensor(torch, x) for which, x in (("a", a), ("b", b))
            )
            to = torch.empty(rows, columns, dtype=ta.dtype)
            jobs["torch"] = lambda: torch.mm(ta, tb, out=to)
        return jobs

    return make


def _int8(n: int) -> Maker:
    def make(target: str | None, small: bool) -> dict[str, Thunk]:
        from tiledsl.kernels import int8_matmul

        size = 64 if small else n
        rng = np.random.default_rng(0)
        a, b = (rng.integers(-128, 128, (size, size)).astype(np.int8) for _ in "ab")
        out = np.empty((size, size), np.int32)
        jobs: dict[str, Thunk] = {"tiledsl": lambda: int8_matmul(a, b, out=out, target=target)}
        if torch := torch_module():
            ta, tb = torch.from_numpy(a), torch.from_numpy(b)
            jobs["torch"] = lambda: torch._int_mm(ta, tb)
        return jobs

    return make


def _grouped(target: str | None, small: bool) -> dict[str, Thunk]:
    """Eight experts with uneven rows against a loop over them."""
    rows = (3, 0, 9, 1) if small else _ROWS
    k = n = 32 if small else 512
    rng = np.random.default_rng(0)
    return _experts(target, array(rng, (sum(rows), k), np.float32), array(rng, (len(rows), k, n), np.float32), rows)


def _grouped_bf16(tokens: int) -> Maker:
    """64 experts of 2048 x 4096, a gibibyte of weights, some tokens for each."""

    def make(target: str | None, small: bool) -> dict[str, Thunk]:
        from tiledsl.kernels import prepack

        groups, k, n = (3, 40, 48) if small else (64, 2048, 4096)
        a, b = array(np.random.default_rng(0), (groups * tokens, k), BF16), large((groups, k, n), BF16, 1)
        return _experts(target, a, b, (tokens,) * groups, prepack(b, target=target))

    return make


def _experts(target: str | None, a: Any, b: Any, rows: tuple[int, ...], packed: Any = None) -> dict[str, Thunk]:
    from tiledsl.kernels import grouped_gemm

    sizes = np.array(rows, np.int32)
    out = np.empty((a.shape[0], b.shape[2]), a.dtype)
    starts = np.concatenate([[0], np.cumsum(rows)])
    spans = [(e, int(starts[e]), int(starts[e + 1])) for e in range(len(rows)) if rows[e]]
    weights = b if packed is None else packed
    jobs: dict[str, Thunk] = {"tiledsl": lambda: grouped_gemm(a, weights, sizes, out=out, target=target)}
    if a.dtype == np.float32:
        peer = np.empty_like(out)

        def with_numpy() -> Any:
            for e, lo, hi in spans:
                np.matmul(a[lo:hi], b[e], out=peer[lo:hi])
            return peer

        jobs["numpy"] = with_numpy
    if torch := torch_module():
        ta, tb = tensor(torch, a), tensor(torch, b)
        to = torch.empty(out.shape, dtype=ta.dtype)

        def with_torch() -> Any:
            for e, lo, hi in spans:
                torch.mm(ta[lo:hi], tb[e], out=to[lo:hi])
            return to

        jobs["torch"] = with_torch
    return jobs


@tiledsl.jit
def gpu_gemm(M: int, N: int, K: int, block_M: int = 128, block_N: int = 128, block_K: int = 32) -> Any:
    """C = A @ B in float32, written as for a GPU: tiles through shared memory, accumulators in a fragment."""

    @T.prim_func
    def main(
        A: T.Tensor((M, K), T.float32),
        B: T.Tensor((K, N), T.float32),
        C: T.Tensor((M, N), T.float32),
    ):
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), threads=128) as (bx, by):
            A_shared = T.alloc_shared((block_M, block_K), T.float32)
            B_shared = T.alloc_shared((block_K, block_N), T.float32)
            C_local = T.alloc_fragment((block_M, block_N), T.float32)
            T.clear(C_local)
            for k in T.Pipelined(T.ceildiv(K, block_K), num_stages=3):
                T.copy(A[by * block_M, k * block_K], A_shared)
                T.copy(B[k * block_K, bx * block_N], B_shared)
                T.gemm(A_shared, B_shared, C_local)
            T.copy(C_local, C[by * block_M, bx * block_N])

    return main


def _gpu_style(size: int, interpreter: bool) -> Maker:
    """interpreter: on target "numpy", with tiles of 64."""

    def make(target: str | None, small: bool) -> dict[str, Thunk]:
        n = 100 if small else size
        rng = np.random.default_rng(0)
        a, b = array(rng, (n, n), np.float32), array(rng, (n, n), np.float32)
        out, peer = np.empty((n, n), np.float32), np.empty((n, n), np.float32)
        kernel = gpu_gemm(n, n, n, 64, 64, 64) if interpreter else gpu_gemm(n, n, n)

        def ours() -> Any:
            kernel(a, b, out, target="numpy" if interpreter else target)
            return out

        return {"tiledsl": ours, "numpy": lambda: np.matmul(a, b, out=peer)}

    return make


def _cube(n: int) -> float:
    return 2.0 * n**3


_KINDS = (("f32", np.float32), ("bf16", BF16), ("f16", np.float16))
PRODUCTS = (
    *(Job(f"gemm-{x}-{n}", _gemm(n, n, n, t), _cube(n)) for x, t in _KINDS for n in (512, 1024, 2048)),
    Job("gemm-f32-48x1000x777", _gemm(48, 1000, 777, np.float32), 2.0 * 48 * 1000 * 777),
    *(Job(f"gemm-f32-1024-{x}t", _gemm(1024, 1024, 1024, np.float32, x), _cube(1024)) for x in "ab"),
    *(Job(f"gemm-int8-{n}", _int8(n), _cube(n), integer=True) for n in (512, 1024, 2048)),
    Job("gpu-gemm-f32-1024", _gpu_style(1024, False), _cube(1024)),
    Job("interpreter-gemm-1024", _gpu_style(1024, True), _cube(1024)),
    Job("grouped-f32", _grouped, 2.0 * sum(_ROWS) * 512 * 512),
    *(
        Job(f"grouped-bf16-{t}", _grouped_bf16(t), 2.0 * 64 * t * 2048 * 4096, 2.0 * 64 * 2048 * 4096, False)
        for t in (1, 4, 16)
    ),
)
