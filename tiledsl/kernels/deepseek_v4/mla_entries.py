"""DeepSeek-V3.2's cache entries, the baseline: latent rows of 576 elements in 656 bytes.

An entry holds 512 e4m3 codes, 4 float32 scales (of 128 codes each), 64 bfloat16 (the rotated elements). A page of n
entries holds n x 656 bytes, entry by entry. A slot is a place in the whole cache: entry slot % n of page slot // n.
"""

# mypy: disable-error-code="no-untyped-def,valid-type"
from functools import cache
from typing import Any

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import DType, as_dtype
from tiledsl.kernels import arrays
from tiledsl.kernels.deepseek_v4.entries import check_cache, norm_rows, places, rotated, store_pair, write_rows
from tiledsl.kernels.deepseek_v4.indexer_fp8 import load_float, store_float
from tiledsl.kernels.quant.scales import E4M3, FLOOR, scale_of
from tiledsl.kernels.tiles import tiles_for
from tiledsl.runtime import allocate

__all__ = ["MLA_ENTRY", "load_mla_entries", "mla_page_bytes", "read_mla_entries", "read_mla_entries_kernel"]
__all__ += ["write_mla_entries", "write_mla_entries_kernel"]

MLA_ENTRY, CODES, ROPE, BLOCK = 576, 512, 64, 128  # elements of an entry, its FP8 part, its rotated part, a scale's
SIZE, SCALES_AT, ROPE_AT = 656, 512, 528  # bytes
ROWS = 4


def mla_page_bytes(page_size: int) -> int:
    """Bytes of a page of so many entries: 64 have 41,984."""
    return page_size * SIZE


@tiledsl.jit
def write_mla_entries_kernel(page_size: int, dtype: DType, normalise: bool, threads: int = 128) -> Any:
    """x rounded to bfloat16; its first 512 normalised with weight W (bfloat16 again) and cast, its last 64 rotated
    (bfloat16), and written to its slot; nothing where that is outside of the cache."""
    N, P, B, pages = T.dynamic("N"), T.dynamic("P"), T.dynamic("B"), T.dynamic("pages")
    ldx = T.dynamic("ldx", "int64")

    @T.prim_func
    def write_mla_entries(
        X: T.StridedTensor((N, MLA_ENTRY), (ldx, 1), dtype),
        W: T.Tensor((CODES,), T.float32),
        eps: T.float32,
        Cos: T.Tensor((P, ROPE // 2), T.float32),
        Sin: T.Tensor((P, ROPE // 2), T.float32),
        At: T.Tensor((N,), T.int32),
        Slots: T.Tensor((N,), T.int32),
        Cache: T.Tensor((pages, B), T.uint8),
    ):
        with T.Kernel(T.ceildiv(N, ROWS), threads=threads) as by:
            x = T.alloc_shared((ROWS, MLA_ENTRY), "bfloat16")
            square = T.alloc_fragment((ROWS, CODES), T.float32)
            tile = T.alloc_fragment((ROWS, BLOCK), T.float32)
            total = T.alloc_fragment((ROWS,), T.float32)
            largest = T.alloc_fragment((ROWS,), T.float32)
            scale = T.alloc_fragment((ROWS,), T.float32)
            page = T.alloc_fragment((ROWS,), T.int32)
            entry = T.alloc_fragment((ROWS,), T.int32)
            T.copy(X[by * ROWS, 0], x)
            if normalise:
                norm_rows(x, W, eps, square, total)
            places(Slots, by * ROWS, page, entry, page_size)
            for i, p in T.Parallel(ROWS, ROPE // 2):
                at = At[by * ROWS + i]
                a, b = rotated(x[i, CODES + 2 * p], x[i, CODES + 2 * p + 1], Cos[at, p], Sin[at, p])
                store_pair(Cache, page[i], entry[i] * SIZE + ROPE_AT + 4 * p, a, b)
            for k in T.serial(CODES // BLOCK):
                for i, j in T.Parallel(ROWS, BLOCK):
                    tile[i, j] = x[i, k * BLOCK + j]
                T.reduce_absmax(tile, largest, dim=1)
                for i in T.Parallel(ROWS):
                    scale[i] = scale_of(largest[i], FLOOR, as_dtype(E4M3), as_dtype("float32"))
                    store_float(Cache, page[i], entry[i] * SIZE + SCALES_AT + 4 * k, scale[i])
                for i, j in T.Parallel(ROWS, BLOCK):
                    code = T.cast(tile[i, j] / scale[i], E4M3)
                    Cache[page[i], entry[i] * SIZE + k * BLOCK + j] = T.reinterpret(code, T.uint8)

    return write_mla_entries


@T.macro
def load_mla_entries(cache, slot, scale, KV, *, rows, page_size):
    """KV [rows, 576] = the entries at `slot` [rows]; where that is negative zeros. scale [rows, >= 4] is scratch."""
    for i, k in T.Parallel(rows, CODES // BLOCK):
        scale[i, k] = load_float(cache, slot[i] // page_size, slot[i] % page_size * SIZE + SCALES_AT + 4 * k)
    for k in T.serial(CODES // BLOCK):
        for i, j in T.Parallel(rows, BLOCK):
            code = cache[slot[i] // page_size, slot[i] % page_size * SIZE + k * BLOCK + j]
            KV[i, k * BLOCK + j] = T.cast(T.reinterpret(code, E4M3), T.float32) * scale[i, k]
    for i, j in T.Parallel(rows, ROPE):
        where = slot[i] % page_size * SIZE + ROPE_AT + 2 * j
        low = T.cast(cache[slot[i] // page_size, where], T.uint16)
        high = T.cast(cache[slot[i] // page_size, where + 1], T.uint16)
        KV[i, CODES + j] = T.reinterpret(T.cast(low | (high << 8), T.uint16), "bfloat16")


@tiledsl.jit
def read_mla_entries_kernel(page_size: int, threads: int = 128) -> Any:
    """Y[i] = entry Slots[i]."""
    N, B, pages = T.dynamic("N"), T.dynamic("B"), T.dynamic("pages")

    @T.prim_func
    def read_mla_entries(
        Cache: T.Tensor((pages, B), T.uint8), Slots: T.Tensor((N,), T.int32), Y: T.Tensor((N, MLA_ENTRY), "bfloat16")
    ):
        with T.Kernel(T.ceildiv(N, ROWS), threads=threads) as by:
            slot = T.alloc_fragment((ROWS,), T.int32)
            scale = T.alloc_fragment((ROWS, CODES // BLOCK), T.float32)
            y = T.alloc_shared((ROWS, MLA_ENTRY), "bfloat16")
            for i in T.Parallel(ROWS):
                slot[i] = T.if_then_else(by * ROWS + i < N, Slots[by * ROWS + i], -1)
            load_mla_entries(Cache, slot, scale, y, rows=ROWS, page_size=page_size)
            T.copy(y, Y[by * ROWS, 0])

    return read_mla_entries


_write_mla_entries_kernel = cache(write_mla_entries_kernel)  # the same values, the same kernel
_read_mla_entries_kernel = cache(read_mla_entries_kernel)


def write_mla_entries(
    x: Any,
    weight: Any,
    cos: Any,
    sin: Any,
    positions: Any,
    slots: Any,
    cache: Any,
    page_size: int,
    *,
    eps: float = 1e-6,
    target: Any = None,
) -> None:
    """Write latent rows of DeepSeek-V3.2's attention: the first 512 elements x / rms(x) * weight, cast to FP8 as
    per_token_cast(block=128) does; the last 64 rotated in neighbouring pairs by the angles of the position. Both are
    rounded to bfloat16 first. sparse_attention(..., page_size=..., value_dim=512) reads them.

    x          [n, 576] float32 or bfloat16; NumPy (ml_dtypes) or torch
    weight     [512] float32 of the RMS norm; None: no norm
    cos, sin   [positions, 32] float32 (rope_tables)
    positions  [n] int32
    slots      [n] int32: where each entry goes; -1 (and what lies outside of the cache): nowhere. No slot twice
    cache      [pages, mla_page_bytes(page_size)] uint8, written in place
    target     where to run (default: TILEDSL_TARGET, else auto)

    Bit-exact on every CPU target; an entry does not depend on others.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError for positions outside of the tables (where they lie
    on the host) and a negative eps.
    """
    name, norm, tables = "write_mla_entries", (weight,), (cos, sin, positions, slots)
    kernel, size = _write_mla_entries_kernel, mla_page_bytes
    write_rows(name, kernel, MLA_ENTRY, x, norm, eps, tables, cache, page_size, size, target, normed=CODES)


def read_mla_entries(cache: Any, slots: Any, page_size: int, *, target: Any = None) -> Any:
    """The values of entries, bfloat16 [n, 576]: code times scale, rounded to bfloat16.

    cache   [pages, mla_page_bytes(page_size)] uint8; NumPy or torch
    slots   [n] int32; what lies outside of the cache reads zeros
    target  where to run (default: TILEDSL_TARGET, else auto)

    Raises TileTypeError for wrong dtypes or shapes.
    """
    check_cache("read_mla_entries", "cache", cache, page_size, mla_page_bytes(page_size))
    arrays.dtype_of("read_mla_entries", "slots", slots, ("int32",))
    (n,) = arrays.rank("read_mla_entries", "slots", slots, "n")
    y = allocate((n, MLA_ENTRY), as_dtype("bfloat16"), cache)
    if n:
        kernel = _read_mla_entries_kernel(page_size, tiles_for(target).threads)
        kernel(arrays.dense(cache), arrays.dense(slots), y, target=target)
    return y
