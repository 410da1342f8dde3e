"""`tilelang.language`: the language with the union of TileLang's signatures, and its meaning where ours refuses.

Hints that no function knows are passed over with one notice. What language.md 0.3 and 0.6 refuse is traced with
TileLang's meaning, also with one notice.
"""

from __future__ import annotations

import functools
import inspect
import operator
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import tiledsl.language as T
from tiledsl.compat import frames, quantize, sparse
from tiledsl.compat.layouts import Fragment
from tiledsl.compat.notices import notice, pass_configs, passed_over
from tiledsl.errors import TileError
from tiledsl.surface import lenient, trace_prim_func

__all__ = ["lookup", "names", "tilelang_meaning"]


def names() -> list[str]:
    """The public names."""
    return [*T.__all__, *(n for n in _OWN if n not in T.__all__ and n != "import_source")]


def tilelang_meaning() -> AbstractContextManager[None]:
    """Kernels traced inside mean what they mean in TileLang."""

    def report(e: TileError, meaning: str) -> None:
        notice(f"{e.loc}: {e.message}; as in TileLang, {meaning}")

    return lenient(report)


@functools.cache
def lookup(name: str) -> Any:
    """`T.<name>` as a TileLang program means it. Raises what `tiledsl.language` raises for unknown names."""
    if name in _OWN:
        return _OWN[name]
    value = getattr(T, name)
    return _lenient(f"T.{name}", value) if inspect.isfunction(value) else value


# Parameters that TileLang calls otherwise: theirs=ours.
_NAMES = {
    "fill": "buffer=dst", "clear": "buffer=dst", "annotate_layout": "layout_map=layouts",
    "annotate_safe_value": "safe_value_map=values", "atomic_store": "src=value",
    "if_then_else": "condition=cond true_value=t false_value=f", "ceildiv": "lhs=a rhs=b", "dynamic": "name=names",
    "Select": "condition=cond true_value=t false_value=f", "clamp": "dst=x min_val=low max_val=high",
    "symbolic": "name=names", "const": "name=names", "get_mbarrier": "id=barrier_id", "assume": "expr=condition",
    "address_of": "buffer_load=place", "fma": "x=a y=b z=c", "reducer_init": "value=init",
}  # fmt: skip


# Keywords of some version of TileLang that say how a GPU is to be used.
_HINTS = frozenset(["is_cpu", "use_2cta", "wg_wait"])


def _lenient(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function without the keywords that it does not have."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return function

    renamed = dict(pair.split("=") for pair in _NAMES.get(what[2:], "").split())

    @functools.wraps(function)
    def accepting(*args: Any, **kw: Any) -> Any:
        for theirs in [k for k in kw if k in renamed]:
            kw[renamed[theirs]] = kw.pop(theirs)
        for unknown in [k for k in kw if k not in parameters]:
            value = kw.pop(unknown)
            if unknown not in _HINTS:
                notice(f"{what}: the hint {unknown}={value!r} is passed over")
        return function(*args, **kw)

    return accepting


# -- what differs ------------------------------------------------------------------------------------------------
class _DTypes(type):
    def __call__(cls, x: Any) -> Any:
        return T.dtype(x)

    def __instancecheck__(cls, x: object) -> bool:
        return isinstance(x, type(T.int32))


class dtype(metaclass=_DTypes):
    """T.dtype, a type as well: `isinstance(x, T.dtype)`, `x: T.dtype | None`."""


def prim_func(func: Any = None, private: bool = False, check_well_formed: bool = False, **hints: Any) -> Any:
    """T.prim_func, bare or with options (which are hints)."""
    passed_over("T.prim_func", hints)
    if func is None:
        return prim_func
    with tilelang_meaning():
        return trace_prim_func(func, sys._getframe(1).f_locals)


def macro(func: Any = None, hygienic: bool = True, **hints: Any) -> Any:
    """T.macro, bare or with options (which are hints)."""
    passed_over("T.macro", hints)
    return macro if func is None else T.macro(func)


def annotate_pass_configs(configs: Any = None, **hints: Any) -> None:
    pass_configs("T.annotate_pass_configs", configs)


def attr(node: Any, attr_key: str, value: Any = None) -> AbstractContextManager[None]:
    """T.attr: reducers mean something, all other attributes are hints to a compiler."""
    if attr_key == "reduce_scope":
        return T.attr(node, attr_key, value)
    if attr_key not in _ATTRIBUTES:
        notice(f"T.attr: the attribute {attr_key} is passed over")
    return nullcontext()


_ATTRIBUTES = ("async_scope", "async_commit_queue_scope", "async_wait_queue_scope", "storage_scope", "thread_extent")


def call_extern(*args: Any, **kw: Any) -> Any:
    """T.call_extern, which knows TileLang's own decoders as well."""
    names = [i for i, a in enumerate(args[:2]) if isinstance(a, str) and quantize.DECODERS.fullmatch(a)]
    return quantize.decode(*args[names[0] :]) if names else T.call_extern(*args, **kw)


def call_intrin(dtype: Any, name: Any, *args: Any) -> Any:
    """T.call_intrin: an operator of TVM by its name, `T.call_intrin("float32", "tir.exp", x)`: the function of T."""
    last = str(name).rpartition(".")[2]
    result = lookup(last)(*((args[0], dtype) if last == "reinterpret" else args))
    return result if result is None or str(dtype) in ("handle", "void") else T.cast(result, dtype)


def access_ptr(place: Any, access_type: Any = "r", *more: Any, offset: Any = 0, **hints: Any) -> Any:
    """T.access_ptr: an element as an address."""
    return place.access_ptr(access_type, offset) if hasattr(place, "access_ptr") else T.address_of(place)


def rng_init(seed: Any, seq: Any = None, off: Any = 0, generator: str = "") -> None:
    """T.rng_init: whatever generator is named, the numbers are Philox's."""
    if generator and "Philox" not in generator:
        notice(f"T.rng_init: random numbers are those of Philox4x32-10, not of {generator}")
    T.rng_init(seed, seq, off)


def reduce(buffer: Any, out: Any, reduce_type: str, dim: int, clear: bool = True) -> None:
    """T.reduce: a reduction by its name."""
    getattr(T, f"reduce_{reduce_type}")(buffer, out, dim, **({} if clear is True else {"clear": clear}))


def linear_index(*indices_and_extents: Any) -> Any:
    """The row-major number of a place: linear_index(i, j, columns), linear_index(i, j, k, rows, columns)."""
    count = (len(indices_and_extents) + 1) // 2
    number, *rest = indices_and_extents[:count]
    for extent, index in zip(indices_and_extents[count:], rest, strict=True):
        number = number * extent + index
    return number


def index_to_coordinates(index: Any, shape: Any) -> list[Any]:
    """The indices of a place with this row-major number."""
    found: list[Any] = []
    for extent in reversed(shape):
        found.insert(0, index % extent)
        index = index // extent
    return found


def import_source(source: str | None = None) -> None:
    """T.import_source: of C text, only the decoders that T.call_extern knows by name."""
    if source and not quantize.DECODERS.fullmatch(source.removeprefix("// ")):
        T.import_source(source)


def _all(*conditions: Any) -> Any:
    """All conditions hold."""
    return functools.reduce(lambda a, b: T.bitwise_and(a, b), conditions)


def _any(*conditions: Any) -> Any:
    """One of the conditions holds."""
    return functools.reduce(lambda a, b: T.bitwise_or(a, b), conditions)


def likely(condition: Any) -> Any:
    """A hint about a branch."""
    return condition


def register_hint(*args: Any, **kw: Any) -> None:
    """How many registers a thread gets: a hint."""


def tvm_storage_sync(scope: str = "shared") -> Any:
    """The barrier of a storage scope."""
    return T.sync_warp() if scope == "warp" else T.sync_threads()


_OPERATORS = [
    ("add Add", "add"), ("subtract sub Sub", "sub"), ("multiply mul Mul", "mul"), ("And", "and_"), ("Or", "or_"),
    ("EQ", "eq"), ("NE", "ne"), ("LT", "lt"), ("LE", "le"), ("GT", "gt"), ("GE", "ge"),
]  # fmt: skip


class GemmWarpPolicy:
    """`T.GemmWarpPolicy`, with the constructor of TileLang's: it is a hint."""

    Square, FullRow, FullCol = T.GemmWarpPolicy

    def __new__(cls, value: int) -> Any:
        return T.GemmWarpPolicy(value)

    @staticmethod
    def from_warp_partition(m_warp: int, n_warp: int) -> T.GemmWarpPolicy:
        """The policy that divides a tile so."""
        if m_warp > 1 and n_warp == 1:
            return T.GemmWarpPolicy.FullRow
        return T.GemmWarpPolicy.FullCol if n_warp > 1 and m_warp == 1 else T.GemmWarpPolicy.Square


_OWN: dict[str, Any] = {
    "Fragment": Fragment,
    "GemmWarpPolicy": GemmWarpPolicy,
    "prim_func": prim_func,
    "macro": macro,
    "inline": macro,
    "attr": attr,
    **{n: getattr(frames, n) for n in frames.__all__},
    "Broadcast": lambda value, lanes: getattr(T, f"{T.cast(value, value.dtype).dtype}x{lanes}")(value),
    "BufferLoad": T.PrimExpr,
    "BufferRegion": T.PrimExpr,
    "FloatImm": lambda dtype, value: T.Cast(dtype, value),
    "IntImm": lambda dtype, value: T.Cast(dtype, value),
    "PrimFunc": Callable,
    "access_ptr": access_ptr,
    "buffer_store": lambda buffer, value, indices: buffer.__setitem__(tuple(indices), value),
    "get_block_extents": lambda: tuple(map(T.get_block_extent, range(3))),
    "get_thread_extents": lambda: tuple(map(T.get_thread_extent, range(3))),
    "index_to_coordinates": index_to_coordinates,
    "linear_index": linear_index,
    "logical_and": _all,
    "logical_or": _any,
    "reduce": reduce,
    "call_extern": call_extern,
    "call_intrin": call_intrin,
    "call_pure_intrin": call_intrin,
    "rng_init": rng_init,
    "gemm_sp": _lenient("T.gemm_sp", sparse.gemm_sp),
    "gemm_sp_v2": _lenient("T.gemm_sp", sparse.gemm_sp),
    "cp_async_barrier_noinc": T.barrier_arrive,
    "import_source": import_source,
    "Var": T.PrimExpr,
    "annotate_pass_configs": annotate_pass_configs,
    "all": _all,
    "any": _any,
    "likely": likely,
    "bool": T.bool,
    "cdiv": T.ceildiv,
    "dtype": dtype,
    "gemm_v1": _lenient("T.gemm", T.gemm),
    "wgmma_gemm": _lenient("T.gemm", T.gemm),
    "fmin": T.min,
    "fmax": T.max,
    "fabs": T.abs,
    "max3": lambda a, b, c: T.max(T.max(a, b), c),
    "min3": lambda a, b, c: T.min(T.min(a, b), c),
    **{n: getattr(operator, f) for names, f in _OPERATORS for n in names.split()},
    "div": lambda a, b: a / b if any(getattr(x, "dtype", T.int32).is_float for x in (a, b)) else T.truncdiv(a, b),
    **dict.fromkeys(("Not", "logical_not"), lambda a: a == False),  # noqa: E712  a value of the kernel
    "Min": T.min,
    "Max": T.max,
    "Div": T.truncdiv,
    "Mod": T.truncmod,
    "FloorDiv": T.floordiv,
    "FloorMod": T.floormod,
    "indexdiv": T.floordiv,
    "indexmod": T.floormod,
    "logistic": T.sigmoid,
    "truncate": T.trunc,
    "rint": T.nearbyint,
    "bitcast": T.reinterpret,
    "call_pure_extern": call_extern,
    "e8m0_float8": T.float8_e8m0fnu,
    "tvm_storage_sync": tvm_storage_sync,
    "tvm_warp_shuffle": lambda mask, value, lane, width=32, warp=32: T.shfl_sync(value, lane, width, mask),
    "tvm_warp_shuffle_up": lambda mask, value, by, width=32, warp=32: T.shfl_up(value, by, width, mask),
    "tvm_warp_shuffle_down": lambda mask, value, by, width=32, warp=32: T.shfl_down(value, by, width, mask),
    "tvm_warp_activemask": T.activemask,
    "tvm_thread_invariant": likely,
    "__ffs": T.ffs,
    "__ldg": lambda place, index=None: place if index is None else place[index],
    "fmul": operator.mul,
    "annotate_producer_reg_dealloc": register_hint,
    "annotate_consumer_reg_alloc": register_hint,
    "annotate_min_blocks_per_sm": register_hint,
    "func_attr": register_hint,
    "inc_max_nreg": register_hint,
    "dec_max_nreg": register_hint,
}
