"""The modules of TileLang that programs import, made of what this package has."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from tiledsl.compat import jit as jit_
from tiledsl.compat import profiler, testing

__all__ = ["build"]


class _Keys(type):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return "tl." + name.removeprefix("TL_").lower()


class PassConfigKey(metaclass=_Keys):
    """Any key of a pass configuration: `PassConfigKey.TL_ENABLE_FAST_MATH` is its text."""


class _Jit(ModuleType):
    """`tilelang.jit` is a decorator and a package."""

    def __call__(self, *args: Any, **kw: Any) -> Any:
        return jit_.jit(*args, **kw)


def cdiv(a: int, b: int) -> int:
    """The quotient rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def _nothing(*args: Any, **kw: Any) -> None:
    """Has no meaning here."""


def _marks(name: str) -> Callable[..., Any]:
    if name.startswith("requires_"):
        return testing.marks(name)
    raise AttributeError(f"module 'tilelang.testing' has no attribute {name!r}")


def build(top: dict[str, Any], language: ModuleType) -> None:
    """Fill the namespace of `tilelang` and register its submodules."""

    def module(name: str, made: ModuleType | None = None, **members: Any) -> None:
        made = made or ModuleType(f"tilelang.{name}")
        made.__dict__.update(members)
        sys.modules[f"tilelang.{name}"] = made
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[f"tilelang.{parent}"], last, made)
        else:
            top[name] = made

    kinds = profiler.TensorSupplyType
    top.update(
        __version__="0.1.15",
        JITKernel=jit_.JITKernel,
        PassConfigKey=PassConfigKey,
        Profiler=profiler.Profiler,
        TensorSupplyType=kinds,
        cdiv=cdiv,
        clear_cache=_nothing,
        compile=jit_.compile,
        disable_cache=_nothing,
        enable_cache=_nothing,
        is_cache_enabled=lambda: True,
        language=language,
        lower=jit_.lower,
        next_power_of_2=next_power_of_2,
        set_log_level=_nothing,
    )
    module("testing", **{n: getattr(testing, n) for n in testing.__all__}, __getattr__=_marks)
    module("profiler", Profiler=profiler.Profiler, TensorSupplyType=kinds, do_bench=profiler.do_bench)
    module("profiler.bench", do_bench=profiler.do_bench)
    module("jit", _Jit("tilelang.jit"), JITKernel=jit_.JITKernel, compile=jit_.compile, jit=jit_.jit)
    module("jit.kernel", JITKernel=jit_.JITKernel)
    module("utils", TensorSupplyType=kinds, cdiv=cdiv)
    module("utils.target", determine_target=lambda target="auto", return_object=False: "cuda")
    module("utils.tensor", TensorSupplyType=kinds, torch_assert_close=testing.torch_assert_close)
    module("engine", lower=jit_.lower)
    module("cache", clear_cache=_nothing, cached=jit_.compile)
    module("transform", PassConfigKey=PassConfigKey)
    module("layout", Layout=language.Layout, Fragment=language.Fragment, make_swizzled_layout=lambda b, *a, **k: b)
    module("math", cdiv=cdiv, next_power_of_2=next_power_of_2)
    module("env", disable_cache=_nothing, enable_cache=_nothing)
