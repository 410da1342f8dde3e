"""Cache entries of compressed attention: norm, rotary embedding and FP8 in one kernel, in the published byte layout.

An entry has 584 bytes: 448 e4m3 codes, 64 bfloat16 (the rotated elements), 7 e8m0 scales (of 64 codes each), one byte
unused. A page of n entries holds n x 576 bytes of codes and bfloat16, then n x 8 bytes of scales, padded to a multiple
of 576. A slot is a place in the whole cache: entry slot % n of page slot // n.
"""

# mypy: disable-error-code="no-untyped-def,valid-type"
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import TileTypeError
from tiledsl.kernels import arrays
from tiledsl.kernels.quant.scales import E4M3, E8M0, FLOOR, scale_of
from tiledsl.kernels.tiles import tiles_for
from tiledsl.runtime import allocate

__all__ = ["CODES", "ENTRY", "check_cache", "load_entries", "page_bytes", "read_entries", "read_entries_kernel"]
__all__ += ["rope_tables", "write_entries", "write_entries_kernel"]

ENTRY, CODES, ROPE, BLOCK = 512, 448, 64, 64  # elements of an entry, its FP8 part, its rotated part, a scale's
DATA, SCALES = 576, 8  # bytes
ROWS = 4


def page_bytes(page_size: int) -> int:
    """Bytes of a page of so many entries: 64 have 37,440, 2 have 1,728."""
    return -(-page_size * (DATA + SCALES) // DATA) * DATA


def rope_tables(
    positions: int,
    theta: float,
    *,
    dims: int = ROPE,
    factor: float = 1.0,
    original: int = 65536,
    fast: float = 32.0,
    slow: float = 1.0,
) -> tuple[Any, Any]:
    """cos and sin [positions, dims / 2] float32 of the angles position * theta^(-2 i / dims).

    With factor > 1 the frequencies are stretched as YaRN does (Peng et al., 2023): those that turn more than `fast`
    times within the original length stay, those that turn less than `slow` times are divided by the factor, with a
    linear ramp between. There is no scaling of cos and sin. DeepSeek-V4: theta 10000 in layers of windows alone;
    160000 with factor 16 in the others.
    """
    if not isinstance(positions, (int, np.integer)) or positions < 0:
        raise TileTypeError(f"rope_tables: positions is how many there are, from 0 on; got {type(positions).__name__}")
    i = np.arange(dims // 2)
    frequency = theta ** (-2.0 * i / dims)
    if factor > 1:

        def turning(turns: float) -> float:
            return dims * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = max(math.floor(turning(fast)), 0), min(math.ceil(turning(slow)), dims - 1)
        ramp = np.clip((i - low) / max(high - low, 1e-3), 0, 1)
        frequency = frequency * (1 - ramp) + frequency / factor * ramp
    angle = np.arange(positions)[:, None] * frequency
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


@T.macro
def norm_rows(x, W, eps, square, total):
    """x [rows, :n] = x / rms(x) * W of each row; square [rows, n] and total [rows] are scratch."""
    rows, n = square.shape
    for i, j in T.Parallel(rows, n):
        square[i, j] = T.cast(x[i, j], T.float32) * T.cast(x[i, j], T.float32)
    T.reduce_sum(square, total, dim=1)
    for i, j in T.Parallel(rows, n):
        x[i, j] = T.cast(x[i, j], T.float32) * T.rsqrt(total[i] / n + eps) * W[j]


@T.macro
def places(Slots, first, page, entry, page_size):
    """Page and entry of the slots from `first` on; page -1, which is outside of the cache, beyond the last slot."""
    for i in T.Parallel(page.shape[0]):
        slot = T.if_then_else(first + i < Slots.shape[0], Slots[first + i], -1)
        page[i] = slot // page_size
        entry[i] = slot % page_size


def rotated(a: Any, b: Any, cos: Any, sin: Any) -> tuple[Any, Any]:
    """The pair turned by an angle, in bfloat16."""
    a, b = T.cast(a, T.float32), T.cast(b, T.float32)
    return T.cast(a * cos - b * sin, "bfloat16"), T.cast(b * cos + a * sin, "bfloat16")


@T.macro
def store_pair(cache, page, where, a, b):
    """Two bfloat16 as four bytes, the lower ones first."""
    first, second = T.reinterpret(a, T.uint16), T.reinterpret(b, T.uint16)
    cache[page, where] = T.cast(first & 255, T.uint8)
    cache[page, where + 1] = T.cast(first >> 8, T.uint8)
    cache[page, where + 2] = T.cast(second & 255, T.uint8)
    cache[page, where + 3] = T.cast(second >> 8, T.uint8)


@tiledsl.jit
def write_entries_kernel(page_size: int, dtype: DType, normalise: bool, threads: int = 128) -> Any:
    """x rounded to bfloat16, normalised with weight W (bfloat16 again), its last 64 rotated (bfloat16), its first 448
    cast, and written to its slot; nothing where that is outside of the cache."""
    N, P, B, pages = T.dynamic("N"), T.dynamic("P"), T.dynamic("B"), T.dynamic("pages")
    ldx = T.dynamic("ldx", "int64")

    @T.prim_func
    def write_entries(
        X: T.StridedTensor((N, ENTRY), (ldx, 1), dtype),
        W: T.Tensor((ENTRY,), T.float32),
        eps: T.float32,
        Cos: T.Tensor((P, ROPE // 2), T.float32),
        Sin: T.Tensor((P, ROPE // 2), T.float32),
        At: T.Tensor((N,), T.int32),
        Slots: T.Tensor((N,), T.int32),
        Cache: T.Tensor((pages, B), T.uint8),
    ):
        with T.Kernel(T.ceildiv(N, ROWS), threads=threads) as by:
            x = T.alloc_shared((ROWS, ENTRY), "bfloat16")
            square = T.alloc_fragment((ROWS, ENTRY), T.float32)
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
                store_pair(Cache, page[i], entry[i] * DATA + CODES + 4 * p, a, b)
            for k in T.serial(CODES // BLOCK):
                for i, j in T.Parallel(ROWS, BLOCK):
                    tile[i, j] = x[i, k * BLOCK + j]
                T.reduce_absmax(tile, largest, dim=1)
                for i in T.Parallel(ROWS):
                    found = scale_of(largest[i], FLOOR, as_dtype(E4M3), as_dtype(E8M0))
                    Cache[page[i], page_size * DATA + entry[i] * SCALES + k] = T.reinterpret(found, T.uint8)
                    scale[i] = T.cast(found, T.float32)
                for i, j in T.Parallel(ROWS, BLOCK):
                    code = T.cast(tile[i, j] / scale[i], E4M3)
                    Cache[page[i], entry[i] * DATA + k * BLOCK + j] = T.reinterpret(code, T.uint8)
            for i in T.Parallel(ROWS):
                Cache[page[i], page_size * DATA + entry[i] * SCALES + 7] = T.cast(0, T.uint8)

    return write_entries


_write_entries_kernel = cache(write_entries_kernel)  # the same values, the same kernel


def check_cache(name: str, which: str, pages: Any, page_size: int, bytes_per_page: int) -> int:
    """Slots of a cache. Raises TileTypeError unless it is uint8 [pages, bytes of a page]."""
    arrays.dtype_of(name, which, pages, ("uint8",))
    count, width = arrays.rank(name, which, pages, "pages, bytes")
    if page_size < 1 or width != bytes_per_page:
        raise TileTypeError(
            f"{name}: {arrays.describe(**{which: pages})} does not hold pages of {page_size} entries",
            help=f"a page of {page_size} entries has {bytes_per_page} bytes",
        )
    return count * page_size


def write_entries(
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
    """Write entries of a window or a compressed cache: y = x / rms(x) * weight, the last 64 elements rotated in
    neighbouring pairs by the angles of the position, the first 448 cast to FP8 as per_token_cast(block=64, e8m0) does.
    x, y and the rotated elements are each rounded to bfloat16.

    x          [n, 512] float32 or bfloat16; NumPy (ml_dtypes) or torch
    weight     [512] float32 of the RMS norm; None: no norm
    cos, sin   [positions, 32] float32 (rope_tables)
    positions  [n] int32: of a token, or of the first token of a compressed block
    slots      [n] int32: where each entry goes; -1 (and what lies outside of the cache): nowhere. No slot twice
    cache      [pages, page_bytes(page_size)] uint8, written in place
    target     where to run (default: TILEDSL_TARGET, else auto)

    Bit-exact on every CPU target; an entry does not depend on others.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError for positions outside of the tables (where they lie
    on the host) and a negative eps.
    """
    tables = cos, sin, positions, slots
    name = "write_entries"
    write_rows(name, _write_entries_kernel, ENTRY, x, (weight,), eps, tables, cache, page_size, page_bytes, target)


def write_rows(
    name: str,
    kernel_of: Callable[[int, DType, bool, int], Any],
    width: int,
    x: Any,
    norm: tuple[Any, ...],
    eps: float,
    tables: tuple[Any, Any, Any, Any],
    cache: Any,
    page_size: int,
    bytes_of: Callable[[int], int],
    target: Any,
    normed: int | None = None,
) -> None:
    """Checks and runs what writes rows of a width into pages. norm: its vectors, all None without, of the first
    `normed` elements (default: all); tables: cos, sin, positions, slots."""
    dtype = arrays.dtype_of(name, "x", x, ("float32", "bfloat16"))
    n, d = arrays.rank(name, "x", x, f"n, {width}")
    check_cache(name, "cache", cache, page_size, bytes_of(page_size))
    vectors = [v for v in norm if v is not None]
    for v in vectors:
        arrays.dtype_of(name, "weight", v, ("float32",))
    size = width if normed is None else normed
    if d != width or any(tuple(v.shape) != (size,) for v in vectors):
        given = arrays.describe(x=x, **({"weight": vectors[0]} if vectors else {}))
        raise TileTypeError(f"{name}: {given}, expected rows of {width} elements and a weight of {size}")
    if len(vectors) not in (0, len(norm)):
        raise TileTypeError(f"{name}: weight and bias come together")
    check_places(name, n, *tables)
    epsilon = arrays.check_eps(name, eps)
    if n:
        kernel = kernel_of(page_size, dtype, bool(vectors), tiles_for(target).threads)
        parts = [None if v is None else arrays.dense(v) for v in norm]
        kernel(arrays.unit_last(x), *parts, epsilon, *map(arrays.dense, tables), cache, target=target)


def check_places(name: str, n: int, cos: Any, sin: Any, positions: Any, slots: Any) -> None:
    """Raises TileTypeError or TileValueError unless there are n positions within the tables, and n slots."""
    for which, table in (("cos", cos), ("sin", sin)):
        arrays.dtype_of(name, which, table, ("float32",))
        if table.ndim != 2 or tuple(table.shape) != (cos.shape[0], ROPE // 2):
            raise TileTypeError(f"{name}: {arrays.describe(cos=cos, sin=sin)}, expected [positions, {ROPE // 2}]")
    for which, given in (("positions", positions), ("slots", slots)):
        arrays.dtype_of(name, which, given, ("int32",))
        if tuple(given.shape) != (n,):
            raise TileTypeError(f"{name}: {arrays.describe(**{which: given})}, expected [{n}]")
    arrays.check_size(name, "positions", positions, 0, int(cos.shape[0]) - 1)


@T.macro
def load_entries(cache, slot, scale, KV, *, rows, page_size):
    """KV [rows, 512] = the entries at `slot` [rows]; where that is negative zeros. scale [rows, 7] is scratch."""
    for i, k in T.Parallel(rows, CODES // BLOCK):
        code = cache[slot[i] // page_size, page_size * DATA + slot[i] % page_size * SCALES + k]
        scale[i, k] = T.cast(T.reinterpret(code, E8M0), T.float32)
    for k in T.serial(CODES // BLOCK):
        for i, j in T.Parallel(rows, BLOCK):
            code = cache[slot[i] // page_size, slot[i] % page_size * DATA + k * BLOCK + j]
            KV[i, k * BLOCK + j] = T.cast(T.reinterpret(code, E4M3), T.float32) * scale[i, k]
    for i, j in T.Parallel(rows, ROPE):
        where = slot[i] % page_size * DATA + CODES + 2 * j
        low = T.cast(cache[slot[i] // page_size, where], T.uint16)
        high = T.cast(cache[slot[i] // page_size, where + 1], T.uint16)
        KV[i, CODES + j] = T.reinterpret(T.cast(low | (high << 8), T.uint16), "bfloat16")


@tiledsl.jit
def read_entries_kernel(page_size: int, threads: int = 128) -> Any:
    """Y[i] = entry Slots[i]."""
    N, B, pages = T.dynamic("N"), T.dynamic("B"), T.dynamic("pages")

    @T.prim_func
    def read_entries(
        Cache: T.Tensor((pages, B), T.uint8), Slots: T.Tensor((N,), T.int32), Y: T.Tensor((N, ENTRY), "bfloat16")
    ):
        with T.Kernel(T.ceildiv(N, ROWS), threads=threads) as by:
            slot = T.alloc_fragment((ROWS,), T.int32)
            scale = T.alloc_fragment((ROWS, CODES // BLOCK), T.float32)
            y = T.alloc_shared((ROWS, ENTRY), "bfloat16")
            for i in T.Parallel(ROWS):
                slot[i] = T.if_then_else(by * ROWS + i < N, Slots[by * ROWS + i], -1)
            load_entries(Cache, slot, scale, y, rows=ROWS, page_size=page_size)
            T.copy(y, Y[by * ROWS, 0])

    return read_entries


_read_entries_kernel = cache(read_entries_kernel)


def read_entries(cache: Any, slots: Any, page_size: int, *, target: Any = None) -> Any:
    """The values of entries, bfloat16 [n, 512]: code times scale, exact in bfloat16 but for the smallest scales.

    cache   [pages, page_bytes(page_size)] uint8; NumPy or torch
    slots   [n] int32; what lies outside of the cache reads zeros
    target  where to run (default: TILEDSL_TARGET, else auto)

    Raises TileTypeError for wrong dtypes or shapes.
    """
    check_cache("read_entries", "cache", cache, page_size, page_bytes(page_size))
    arrays.dtype_of("read_entries", "slots", slots, ("int32",))
    (n,) = arrays.rank("read_entries", "slots", slots, "n")
    y = allocate((n, ENTRY), as_dtype("bfloat16"), cache)
    if n:
        kernel = _read_entries_kernel(page_size, tiles_for(target).threads)
        kernel(cache, arrays.dense(slots), y, target=target)
    return y
