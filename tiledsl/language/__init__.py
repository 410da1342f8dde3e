"""The language: `import tiledsl.language as T`.

Every name is a typed, documented function or a dtype. A name that the language has but this version does not raises
TileNotImplementedError when used; an unknown name raises TileAttributeError with a suggestion.
"""

from __future__ import annotations

from typing import Any

from tiledsl import dtypes as _dtypes
from tiledsl.errors import TileAttributeError as _TileAttributeError
from tiledsl.errors import suggest as _suggest
from tiledsl.frontend.habits import DTYPES as _DTYPES
from tiledsl.frontend.habits import instead as _instead
from tiledsl.frontend.location import error as _error
from tiledsl.frontend.values import Value as PrimExpr
from tiledsl.language.allreduce import (
    attr,
    comm_reducer,
    tvm_thread_allreduce,
)
from tiledsl.language.asynchronous import (
    async_copy,
    fence_barrier_init,
    fence_proxy_async,
    pdl_sync,
    pdl_trigger,
    ptx_commit_group,
    ptx_wait_group,
    tma_copy,
    tma_store_arrive,
    tma_store_wait,
    wait_wgmma,
    warpgroup_arrive,
    warpgroup_commit_batch,
    warpgroup_fence_operand,
    warpgroup_wait,
)
from tiledsl.language.atomics import (
    atomic_add,
    atomic_addx2,
    atomic_addx4,
    atomic_and,
    atomic_load,
    atomic_max,
    atomic_min,
    atomic_or,
    atomic_store,
    atomic_xor,
)
from tiledsl.language.barriers import (
    alloc_barrier,
    barrier_arrive,
    barrier_wait,
    create_list_of_mbarrier,
    get_mbarrier,
    mbarrier_arrive,
    mbarrier_expect_tx,
    mbarrier_wait_parity,
    ptx_arrive_barrier,
    ptx_arrive_barrier_expect_tx,
    ws,
)
from tiledsl.language.bits import (
    align_up,
    all_of,
    any_of,
    brev,
    byte_perm,
    clz,
    determine_fp8_type,
    evaluate,
    ffs,
    loop_break,
    popcount,
)
from tiledsl.language.casts import Cast, cast, reinterpret
from tiledsl.language.compute import (
    GemmWarpPolicy,
    cummax,
    cumsum,
    gemm,
    gemm_v2,
    reduce_absmax,
    reduce_abssum,
    reduce_bitand,
    reduce_bitor,
    reduce_bitxor,
    reduce_max,
    reduce_min,
    reduce_sum,
)
from tiledsl.language.debug import (
    annotate_compile_flags,
    annotate_consumer_reg_alloc,
    annotate_l2_hit_ratio,
    annotate_pass_configs,
    annotate_producer_reg_dealloc,
    annotate_restrict_buffers,
    annotate_safe_value,
    assume,
    dec_max_nreg,
    device_assert,
    disable_warp_group_reg_alloc,
    inc_max_nreg,
    no_set_max_nreg,
    print,
    set_max_nreg,
    use_swizzle,
)
from tiledsl.language.extern import NAMES as _FUNCTIONS
from tiledsl.language.extern import call_extern
from tiledsl.language.functions import (
    __cos,
    __exp,
    __exp2,
    __exp10,
    __log,
    __log2,
    __log10,
    __pow,
    __sin,
    __tan,
    acos,
    acosh,
    asin,
    asinh,
    atan,
    atan2,
    atanh,
    copysign,
    cos,
    cosh,
    erf,
    exp,
    exp2,
    exp10,
    expm1,
    fmod,
    hypot,
    ieee_add,
    ieee_div,
    ieee_fdiv,
    ieee_fmaf,
    ieee_frcp,
    ieee_frsqrt,
    ieee_fsqrt,
    ieee_mul,
    ieee_sub,
    ldexp,
    log,
    log1p,
    log2,
    log10,
    pow,
    pow_of_int,
    power,
    sin,
    sinh,
    tan,
    tanh,
)
from tiledsl.language.im2col import c2d_im2col, im2col
from tiledsl.language.launch import (
    ClusterKernel,
    Kernel,
    Parallel,
    Persistent,
    Pipelined,
    Ref,
    Serial,
    Unroll,
    Vectorized,
    grid,
    inline,
    macro,
    meta_class,
    parallel,
    prim_func,
    serial,
    unroll,
    vectorized,
)
from tiledsl.language.layout import Fragment, Layout, annotate_layout
from tiledsl.language.math import (
    Select,
    abs,
    bitwise_and,
    bitwise_not,
    bitwise_or,
    bitwise_xor,
    ceil,
    ceildiv,
    clamp,
    floor,
    floordiv,
    floormod,
    fma,
    if_then_else,
    infinity,
    isfinite,
    isinf,
    isnan,
    max,
    max_value,
    min,
    min_value,
    nearbyint,
    round,
    rsqrt,
    shift_left,
    shift_right,
    sigmoid,
    sqrt,
    trunc,
    truncdiv,
    truncmod,
)
from tiledsl.language.memory import (
    alloc_fragment,
    alloc_global,
    alloc_local,
    alloc_shared,
    alloc_var,
    clear,
    copy,
    fill,
    reshape,
    transpose,
    view,
)
from tiledsl.language.missing import HARDWARE as _HARDWARE
from tiledsl.language.missing import MISSING as _MISSING
from tiledsl.language.missing import Missing as _Missing
from tiledsl.language.missing import refused as _refused
from tiledsl.language.pointers import make_tensor
from tiledsl.language.random import rng_init, rng_rand, rng_rand_float
from tiledsl.language.reducers import alloc_reducer, finalize_reducer, reducer_init, reducer_update
from tiledsl.language.schedule import PersistentTileScheduler
from tiledsl.language.threads import (
    activemask,
    all_sync,
    any_sync,
    ballot,
    ballot_sync,
    get_block_binding,
    get_block_bindings,
    get_block_extent,
    get_lane_idx,
    get_thread_binding,
    get_thread_bindings,
    get_thread_extent,
    get_warp_group_idx,
    get_warp_idx,
    get_warp_idx_sync,
    launch_thread,
    match_all_sync,
    match_any_sync,
    shfl_down,
    shfl_sync,
    shfl_up,
    shfl_xor,
    shuffle_elect,
    sync_global,
    sync_grid,
    sync_threads,
    sync_warp,
    syncthreads_and,
    syncthreads_count,
    syncthreads_or,
    thread_binding,
    thread_return,
    warp_reduce_bitand,
    warp_reduce_bitor,
    warp_reduce_bitxor,
    warp_reduce_max,
    warp_reduce_min,
    warp_reduce_sum,
)
from tiledsl.language.types import (
    Buffer,
    FragmentBuffer,
    LocalBuffer,
    SharedBuffer,
    StridedTensor,
    Tensor,
    const,
    dtype,
    dynamic,
    empty,
    symbolic,
)
from tiledsl.language.vectors import abs2, add2, extract_lane, fma2, max2, min2, mul2, sub2, vectorized_cast
from tiledsl.language.words import address_of, dp4a, ldg32, ldg64, ldg128, ldg256, stg32, stg64, stg128, stg256

# -- dtypes -----------------------------------------------------------------------------------------------
bool = boolean = _dtypes.as_dtype("bool")
int8, int16, int32, int64 = (_dtypes.as_dtype(f"int{b}") for b in (8, 16, 32, 64))
uint8, uint16, uint32, uint64 = (_dtypes.as_dtype(f"uint{b}") for b in (8, 16, 32, 64))
float16, float32, float64 = (_dtypes.as_dtype(f"float{b}") for b in (16, 32, 64))
bfloat16 = _dtypes.as_dtype("bfloat16")
float8_e4m3fn = float8_e4m3 = _dtypes.as_dtype("float8_e4m3fn")
float8_e5m2, float8_e8m0fnu = _dtypes.as_dtype("float8_e5m2"), _dtypes.as_dtype("float8_e8m0fnu")
float4_e2m1fn = _dtypes.as_dtype("float4_e2m1fn")
int4, uint4 = _dtypes.as_dtype("int4"), _dtypes.as_dtype("uint4")
ptr = handle = _dtypes.as_dtype("handle")  # addresses: int64
float, half, double = float32, float16, float64
int, uint, long, ulong, short, ushort = int32, uint32, int64, uint64, int16, uint16
char, uchar = int8, uint8

__all__ = [
    "Buffer", "Cast", "ClusterKernel", "Fragment", "FragmentBuffer", "GemmWarpPolicy", "Kernel", "Layout",
    "LocalBuffer", "Parallel", "Persistent", "PersistentTileScheduler", "Pipelined", "PrimExpr", "Ref", "Select",
    "Serial", "SharedBuffer", "StridedTensor", "Tensor", "Unroll", "Vectorized", "__cos", "__exp", "__exp10",
    "__exp2", "__log", "__log10", "__log2", "__pow", "__sin", "__tan", "abs", "abs2", "acos", "acosh", "activemask",
    "add2", "address_of", "align_up", "all_of", "all_sync", "alloc_barrier", "alloc_fragment", "alloc_global",
    "alloc_local", "alloc_reducer", "alloc_shared", "alloc_var", "annotate_compile_flags",
    "annotate_consumer_reg_alloc", "annotate_l2_hit_ratio", "annotate_layout", "annotate_pass_configs",
    "annotate_producer_reg_dealloc", "annotate_restrict_buffers", "annotate_safe_value", "any_of", "any_sync",
    "asin", "asinh", "assume", "async_copy", "atan", "atan2", "atanh", "atomic_add", "atomic_addx2", "atomic_addx4",
    "atomic_and", "atomic_load", "atomic_max", "atomic_min", "atomic_or", "atomic_store", "atomic_xor", "attr",
    "ballot", "ballot_sync", "barrier_arrive", "barrier_wait", "bfloat16", "bitwise_and", "bitwise_not",
    "bitwise_or", "bitwise_xor", "bool", "boolean", "brev", "byte_perm", "c2d_im2col", "call_extern", "cast",
    "ceil", "ceildiv", "char", "clamp", "clear", "clz", "comm_reducer", "const", "copy", "copysign", "cos", "cosh",
    "create_list_of_mbarrier", "cummax", "cumsum", "dec_max_nreg", "determine_fp8_type", "device_assert",
    "disable_warp_group_reg_alloc", "double", "dp4a", "dtype", "dynamic", "empty", "erf", "evaluate", "exp",
    "exp10", "exp2", "expm1", "extract_lane", "fence_barrier_init", "fence_proxy_async", "ffs", "fill",
    "finalize_reducer", "float", "float16", "float32", "float4_e2m1fn", "float64", "float8_e4m3", "float8_e4m3fn",
    "float8_e5m2", "float8_e8m0fnu", "floor", "floordiv", "floormod", "fma", "fma2", "fmod", "gemm", "gemm_v2",
    "get_block_binding", "get_block_bindings", "get_block_extent", "get_lane_idx", "get_mbarrier",
    "get_thread_binding", "get_thread_bindings", "get_thread_extent", "get_warp_group_idx", "get_warp_idx",
    "get_warp_idx_sync", "grid", "half", "handle", "hypot", "ieee_add", "ieee_div", "ieee_fdiv", "ieee_fmaf",
    "ieee_frcp", "ieee_frsqrt", "ieee_fsqrt", "ieee_mul", "ieee_sub", "if_then_else", "im2col", "inc_max_nreg",
    "infinity", "inline", "int", "int16", "int32", "int4", "int64", "int8", "isfinite", "isinf", "isnan",
    "launch_thread", "ldexp", "ldg128", "ldg256", "ldg32", "ldg64", "log", "log10", "log1p", "log2", "long",
    "loop_break", "macro", "make_tensor", "match_all_sync", "match_any_sync", "max", "max2", "max_value",
    "mbarrier_arrive", "mbarrier_expect_tx", "mbarrier_wait_parity", "meta_class", "min", "min2", "min_value",
    "mul2", "nearbyint", "no_set_max_nreg", "parallel", "pdl_sync", "pdl_trigger", "popcount", "pow", "pow_of_int",
    "power", "prim_func", "print", "ptr", "ptx_arrive_barrier", "ptx_arrive_barrier_expect_tx", "ptx_commit_group",
    "ptx_wait_group", "reduce_absmax", "reduce_abssum", "reduce_bitand", "reduce_bitor", "reduce_bitxor",
    "reduce_max", "reduce_min", "reduce_sum", "reducer_init", "reducer_update", "reinterpret", "reshape", "rng_init",
    "rng_rand", "rng_rand_float", "round", "rsqrt", "serial", "set_max_nreg", "shfl_down", "shfl_sync", "shfl_up",
    "shfl_xor", "shift_left", "shift_right",
    "short", "shuffle_elect", "sigmoid", "sin", "sinh", "sqrt", "stg128", "stg256", "stg32", "stg64", "sub2",
    "symbolic", "sync_global", "sync_grid", "sync_threads", "sync_warp", "syncthreads_and", "syncthreads_count",
    "syncthreads_or", "tan", "tanh", "thread_binding", "thread_return", "tma_copy", "tma_store_arrive",
    "tma_store_wait", "transpose", "trunc", "truncdiv", "truncmod", "tvm_thread_allreduce", "uchar", "uint",
    "uint16", "uint32", "uint4", "uint64", "uint8", "ulong", "unroll", "use_swizzle", "ushort", "vectorized",
    "vectorized_cast", "view", "wait_wgmma", "warp_reduce_bitand", "warp_reduce_bitor", "warp_reduce_bitxor",
    "warp_reduce_max", "warp_reduce_min", "warp_reduce_sum", "warpgroup_arrive", "warpgroup_commit_batch",
    "warpgroup_fence_operand", "warpgroup_wait", "ws",
]  # fmt: skip

_REFUSED = sorted({*_MISSING, *_HARDWARE})  # names of TileLang that say, when used, why they are not here

_EXTERN = _FUNCTIONS  # what T.call_extern knows


def __getattr__(name: str) -> Any:
    if name.startswith("__") and name.endswith("__"):
        raise AttributeError(name)
    if name in _MISSING or _refused(name):
        return _Missing(name)
    try:
        return _dtypes.as_dtype(name)  # vector types: T.float32x4
    except TypeError:
        pass
    raise _error("unknown-name", _TileAttributeError, f"the language has no T.{name}", help=_advice(name))


def _advice(name: str) -> str | None:
    """What to write instead of T.<name>."""
    found = _DTYPES.get(name)
    if found or _instead(name):
        return f"use {f'T.{found}' if found else _instead(name)}"
    return _suggest(name, [*__all__, *_MISSING])


def __dir__() -> list[str]:
    return __all__
