"""The cost model's other source: the kernels. Operations that their IR holds, bytes of the caches that they write.

The kernels are traced, not compiled or run: `tiledsl.analysis.work` counts their statements for given sizes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from block import Cache
from cost_model import V3_2, V4, V4_FLASH, V4_PRO, V32, Product, table
from weights import Config, F

from tiledsl import ir
from tiledsl.analysis.work import work
from tiledsl.dtypes import as_dtype
from tiledsl.kernels import deepseek_v4 as v4
from tiledsl.kernels import matmul_kernel
from tiledsl.kernels.quant import fp4_grouped_gemm_kernel, scaled_gemm_kernel

ROWS = 16  # tokens that a counted product has: whole tiles


def products(kernel: Any, **sizes: int) -> float:
    """Operations of the matrix products in a kernel's IR for these sizes (symbols and scalars by name, others 1)."""
    function: ir.Function = kernel.function
    named = [*function.symbols, *(p.var for p in function.params if p.var is not None)]
    if unknown := sizes.keys() - {v.name for v in named}:
        raise ValueError(f"{function.name} has no {', '.join(sorted(unknown))}")
    env = {v: sizes.get(v.name, 1) for v in named}
    return sum(w.operations for w in work(function, env) if isinstance(w.statement, ir.Gemm))


def of_product(p: Product) -> float:
    """Operations of one [1, k] x [k, n], in the kernel that the layers use for it."""
    if p.name == "hyper-connections":
        streams = 4
        kernel = v4.hyper_pre_kernel(streams, 20, False, as_dtype("bfloat16"))
        return products(kernel, M=ROWS, D=p.k // streams) / ROWS
    if p.wide or p.name == "wo_a":
        kernel = matmul_kernel(ROWS, 64, 128, as_dtype("bfloat16"), as_dtype("float32"))
        return products(kernel, M=ROWS, N=p.n, K=p.k) / ROWS
    e4m3, e8m0, bf16 = (as_dtype(t) for t in ("float8_e4m3fn", "float8_e8m0fnu", "bfloat16"))
    if p.name.startswith("experts"):
        kernel = fp4_grouped_gemm_kernel(ROWS, e4m3, bf16, e4m3, e8m0, 128)
    else:
        kernel = scaled_gemm_kernel(ROWS, 128, e4m3, e8m0, e8m0, bf16)
    return products(kernel, M=ROWS, N=p.n, K=p.k, tiles=1) / ROWS


def of_attention(heads: int, dim: int, values: int, lists: tuple[int, ...]) -> float:
    """Operations of one query over lists of so many entries (multiples of 64)."""
    kernel = v4.sparse_attention_kernel(64, dim, values, (64,) * len(lists), True)
    sizes = {f"N{i + 1}": n for i, n in enumerate(lists)}
    return products(kernel, M=1, H=heads, **sizes)


def of_model(m: V4, position: int) -> tuple[float, float]:
    """Attention and indexer of all layers for the token at `position`, a multiple of 8192."""
    kinds = (
        (m.window_layers, ()),
        (m.csa_layers, (min(m.top_k, position // 4),)),
        (m.hca_layers, (position // 128,)),
    )
    core = sum(n * of_attention(m.heads, m.head, m.head, (m.window, *more)) for n, more in kinds if n)
    logits = v4.index_logits_kernel(m.index_heads, 64, as_dtype("float32"))
    return core, m.csa_layers * products(logits, M=1, S=position // 4)


def of_v32(m: V32, position: int) -> tuple[float, float]:
    """The same of V3.2, which scores every token."""
    seen = min(m.top_k, position)
    core = m.layers * of_attention(m.heads, m.latent + m.rope, m.latent, (seen,))
    logits = v4.index_logits_fp8_kernel(m.index_heads)
    return core, m.layers * products(logits, M=1, S=position)


def caches(m: V4, tokens: int) -> tuple[int, int]:
    """Bytes that the layers' caches take as allocated, and of the compressors' states."""
    kinds = ((m.window_layers, 0), (m.csa_layers, 4), (m.hca_layers, 128))
    made = [(n, Cache(Config(ratio=ratio, window=m.window), tokens)) for n, ratio in kinds]
    return sum(n * c.nbytes for n, c in made), sum(n * c.state_bytes for n, c in made)


def written_bytes() -> dict[str, tuple[float, float]]:
    """Of each kind of cache entry: the published bytes, and those that the kernel writes: what changes whatever was
    there."""
    n, page = 128, 64
    rng, tables = np.random.default_rng(0), v4.rope_tables(n, 160000.0)
    at = np.arange(n, dtype=np.int32)
    kinds: dict[str, tuple[Any, int, int, int, tuple[None, ...]]] = {
        "V4 entry": (v4.write_entries, 512, v4.page_bytes(page), 584, (None,)),
        "V4 indexer key": (v4.write_index_keys, 128, v4.index_page_bytes(page), 68, (None,)),
        "V3.2 entry": (v4.write_mla_entries, 576, v4.mla_page_bytes(page), 656, (None,)),
        "V3.2 indexer key": (v4.write_index_keys_fp8, 128, v4.index_page_bytes_fp8(page), 132, (None, None)),
    }
    found: dict[str, tuple[float, float]] = {}
    for name, (write, width, page_bytes, published, weights) in kinds.items():
        x, same = rng.standard_normal((n, width), dtype=F), np.ones((n // page, page_bytes), bool)
        for before in (3, 250):
            cache = np.full(same.shape, before, np.uint8)
            write(x, *weights, *tables, at, at, cache, page)
            same &= cache == before
        found[name] = published, float((~same).sum()) / n
    return found


def report(position: int = 1 << 20) -> str:
    """Formulas against kernels, at a power of two so that no tile is half empty."""
    rows = [[f"at {position:,} tokens", "formula", "kernels", "ratio"]]

    def row(what: str, formula: float, counted: float) -> None:
        rows.append([what, f"{formula:,.0f}", f"{counted:,.0f}", f"{counted / formula:.4f}"])

    for m in (V3_2, V4_PRO, V4_FLASH):
        matrices = m.products()
        row(f"{m.name} products", sum(2 * p.touched for p in matrices), sum(of_product(p) * p.times for p in matrices))
        core, index = of_model(m, position) if isinstance(m, V4) else of_v32(m, position)
        row(f"{m.name} attention", m.core(position), core)
        row(f"{m.name} indexer", m.index(position), index)
    for m in (V4_PRO, V4_FLASH):
        allocated, state = caches(m, position)
        row(f"{m.name} cache, bytes (pages padded)", m.cache_bytes(position), allocated)
        rows.append([f"{m.name} states, bytes", "", f"{state:,}", ""])
    for name, (published, written) in written_bytes().items():
        row(f"{name}, bytes written", published, written)
    return table(rows)
