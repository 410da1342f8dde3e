"""Looking into a running kernel, promises to the compiler, and hints."""

from __future__ import annotations

from typing import Any

from tiledsl.analysis.evaluate import evaluate
from tiledsl.errors import TileError, TileTypeError
from tiledsl.frontend.builder import current
from tiledsl.frontend.control import tracer
from tiledsl.frontend.location import error, here
from tiledsl.frontend.storage import BufferRef, RegionRef
from tiledsl.frontend.text import check_text
from tiledsl.frontend.values import as_bool, as_value, describe, to_dtype
from tiledsl.ir import Debug
from tiledsl.ir.build import const
from tiledsl.language.memory import alloc_fragment, copy
from tiledsl.language.operation import operation, surface

__all__ = [
    "annotate_compile_flags", "annotate_consumer_reg_alloc", "annotate_l2_hit_ratio", "annotate_pass_configs",
    "annotate_producer_reg_dealloc", "annotate_restrict_buffers", "annotate_safe_value", "assume", "dec_max_nreg",
    "device_assert", "disable_warp_group_reg_alloc", "inc_max_nreg", "no_set_max_nreg", "print", "set_max_nreg",
    "use_swizzle",
]  # fmt: skip


@operation
def print(obj: Any, msg: str = "", warp_group_id: int = 0, warp_id: int = 0) -> None:
    """Prints a buffer, slice or scalar once per block, after the text `msg`; inside T.Parallel buffers and scalars,
    once per iteration."""
    msg = _text("T.print", msg)
    for text in (obj, msg):
        check_text("T.print", text)
    if isinstance(obj, str):
        values: tuple[Any, ...] = ()
        msg = f"{msg} {obj}".strip()
    elif isinstance(obj, BufferRef):
        values = (obj.buffer,)
    elif isinstance(obj, RegionRef):
        part = alloc_fragment([n for n in obj.shape if not (isinstance(n, int) and n == 1)] or [1], obj.dtype)
        copy(obj, part)
        values = (part.buffer,)
    else:
        values = (as_value(obj, "T.print: obj").typed,)
    current("T.print").emit(Debug("print", values, msg, loc=here()), "T.print")


@operation
def device_assert(condition: Any, msg: str = "", no_stack_info: bool = False) -> None:
    """Stops the kernel with an error naming this line, unless the condition holds."""
    value = as_bool(condition, "T.device_assert: condition")
    text = _text("T.device_assert", msg)
    current("T.device_assert").emit(Debug("assert", (value,), text, loc=here()), "T.device_assert")


def _text(what: str, msg: Any) -> str:
    if isinstance(msg, str):
        return msg
    raise error(
        "message-text",
        TileTypeError,
        f"{what}: msg is a text, got {describe(msg)}",
        help='values are shown by T.print(x, msg="...")',
    )


@operation
def assume(condition: Any) -> None:
    """Promises that the condition holds; compilers may use it, the checked mode tests it."""
    value = as_bool(condition, "T.assume: condition")
    current("T.assume").at_start(Debug("assume", (value,), "", loc=here()), "T.assume")


# -- hints: they may change speed, never values -----------------------------------------------------------


@operation
def use_swizzle(panel_size: int = 10, order: str = "row", enable: bool = True) -> None:
    """Hint: visit the blocks of the grid in panels, for cache reuse."""
    if not isinstance(panel_size, int):
        raise error(
            "not-a-scalar",
            TileTypeError,
            f"T.use_swizzle: panel_size is a Python int, got {panel_size!r}",
            help="T.use_swizzle(10)",
        )
    if enable:
        tracer("T.use_swizzle").kernel_attrs.append(("swizzle", (panel_size, order)))


@operation
def annotate_safe_value(values: dict[Any, Any]) -> None:
    """The value that reads out of range give, per global tensor (0 where nothing is said)."""
    if not isinstance(values, dict):
        raise error(
            "safe-value-key",
            TileTypeError,
            f"T.annotate_safe_value takes a dict of tensors, got {values!r}",
            help="T.annotate_safe_value({A: 0.0})",
        )
    for key, value in values.items():
        if not isinstance(key, BufferRef) or key.scope != "global":
            raise error("safe-value-key", TileTypeError, f"T.annotate_safe_value: {key!r} is no global tensor")
        try:
            constant = const(evaluate(to_dtype(value, key.dtype), {}), key.dtype)
        except (TileError, TypeError, ValueError):
            raise error(
                "safe-value", TileTypeError, f"T.annotate_safe_value: {value!r} is not a constant of dtype {key.dtype}"
            ) from None
        object.__setattr__(key.buffer, "safe", constant)


@surface
def annotate_l2_hit_ratio(ratios: dict[Any, Any]) -> None:
    """Hint: how much of a tensor should stay in the L2 cache."""


@surface
def annotate_restrict_buffers(*buffers: Any) -> None:
    """Hint: these arguments do not overlap."""


@operation
def annotate_pass_configs(configs: dict[Any, Any]) -> None:
    """Compiler configuration of this kernel; recorded on the function."""
    if not isinstance(configs, dict):
        raise error(
            "pass-configs", TileTypeError, f"T.annotate_pass_configs takes a dict, got {type(configs).__name__}"
        )
    found = tuple((str(k), str(v)) for k, v in configs.items())
    tracer("T.annotate_pass_configs").attrs.append(("pass_configs", found))


@operation
def annotate_compile_flags(flags: list[str]) -> None:
    """Compiler flags of this kernel; recorded on the function."""
    if not isinstance(flags, (list, tuple)) or not all(isinstance(f, str) for f in flags):
        raise error("compile-flags", TileTypeError, f"T.annotate_compile_flags takes a list of texts, got {flags!r}")
    tracer("T.annotate_compile_flags").attrs.append(("compile_flags", tuple(flags)))


@surface
def disable_warp_group_reg_alloc() -> None:
    """Hint: registers of warp groups."""


@surface
def inc_max_nreg(reg_count: int) -> None:
    """Hint: registers of warp groups."""


@surface
def dec_max_nreg(reg_count: int) -> None:
    """Hint: registers of warp groups."""


@surface
def annotate_producer_reg_dealloc(reg_count: int = 24) -> None:
    """Hint: registers of warp groups."""


@surface
def annotate_consumer_reg_alloc(reg_count: int = 240) -> None:
    """Hint: registers of warp groups."""


@surface
def no_set_max_nreg() -> None:
    """Hint: registers of warp groups."""


@surface
def set_max_nreg(reg_count: int, is_inc: int) -> None:
    """Hint: registers of warp groups."""
