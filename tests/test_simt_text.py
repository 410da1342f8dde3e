"""The CUDA C++ text of five small kernels, as it is read by people: goldens, which change only on purpose."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

import tiledsl
import tiledsl.language as T
from tiledsl.backends.simt.lower import lower

n = T.dynamic("n")


@T.prim_func
def scaled_copy(X: T.Tensor((n, 64), "float32"), Y: T.Tensor((n, 64), "float32")):
    with T.Kernel(T.ceildiv(n, 16), threads=128) as b:
        s = T.alloc_shared((16, 64), "float32")
        T.copy(X[b * 16, 0], s)
        for i, j in T.Parallel(16, 64):
            s[i, j] = s[i, j] * 2.0
        T.copy(s, Y[b * 16, 0])


@T.prim_func
def softmax(X: T.Tensor((n, 100), "float16"), Y: T.Tensor((n, 100), "float16")):
    with T.Kernel(T.ceildiv(n, 8), threads=128) as b:
        x = T.alloc_fragment((8, 100), "float32")
        top = T.alloc_fragment((8,), "float32")
        total = T.alloc_fragment((8,), "float32")
        T.copy(X[b * 8, 0], x)
        T.reduce_max(x, top, dim=1)
        for i, j in T.Parallel(8, 100):
            x[i, j] = T.exp2(x[i, j] - top[i])
        T.reduce_sum(x, total, dim=1)
        for i, j in T.Parallel(8, 100):
            x[i, j] = x[i, j] / total[i]
        T.copy(x, Y[b * 8, 0])


def product(dtype: str, threads: int) -> Any:
    @T.prim_func
    def gemm(A: T.Tensor((n, 128), dtype), B: T.Tensor((128, 64), dtype), C: T.Tensor((n, 64), "float32")):
        with T.Kernel(T.ceildiv(n, 32), threads=threads) as b:
            a_s = T.alloc_shared((32, 32), dtype)
            b_s = T.alloc_shared((32, 64), dtype)
            acc = T.alloc_fragment((32, 64), "float32")
            T.clear(acc)
            for k in T.Pipelined(4, num_stages=2):
                T.copy(A[b * 32, k * 32], a_s)
                T.copy(B[k * 32, 0], b_s)
                T.gemm(a_s, b_s, acc)
            T.copy(acc, C[b * 32, 0])

    return gemm


@T.prim_func
def block_sum(X: T.Tensor((n,), "float32"), Y: T.Tensor((1,), "float32")):
    with T.Kernel(1, threads=64):
        t = T.get_thread_binding()
        parts = T.alloc_shared((2,), "float32")
        own = T.alloc_var("float32", 0.0)
        for k in T.serial(T.ceildiv(n, 64)):
            own += X[k * 64 + t]
        total = T.warp_reduce_sum(own)
        if t % 32 == 0:
            parts[t // 32] = total
        T.sync_threads()
        if t == 0:
            Y[0] = parts[0] + parts[1]


KERNELS = {
    "scaled_copy": scaled_copy,
    "softmax": softmax,
    "gemm_multiply_adds": product("float32", 128),
    "gemm_matrix_instructions": product("bfloat16", 64),
    "block_sum": block_sum,
}


@pytest.mark.parametrize("name", KERNELS)
def test_golden_text(name: str, golden: Callable[..., None]) -> None:
    program = lower(tiledsl.compile(KERNELS[name]).function, "sm_80")
    (kernel,) = program.kernels
    text = re.sub(r"(?m)^( *//@ .*):\d+ \|", r"\1:NN |", kernel.text)
    golden(f"simt/{name}", f"{text}\n// shared memory: {kernel.shared_bytes} bytes, block {kernel.block}")


def test_source_needs_no_gpu() -> None:
    source = tiledsl.compile(product("bfloat16", 64)).get_kernel_source(target="cuda:sm_90a")
    assert "tl_mma_m16n8k16_f32_bf16" in source and "tl_cp_async_16" in source
