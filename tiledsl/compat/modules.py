"""The modules of TileLang that programs import, made of what this package has."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from tiledsl import config
from tiledsl.compat import absent, artifact, autotuner, carver, hosts, profiler, quantize, sparse, testing, tools
from tiledsl.compat import jit as jit_
from tiledsl.compat import layouts as layouts_
from tiledsl.compat.install import VERSION
from tiledsl.compat.notices import notice

__all__ = ["build"]


class _Keys(type):
    def __getattr__(cls, name: str) -> str:
        package, _, key = name.lower().partition("_")
        if package not in ("tl", "tir", "cuda") or not key:
            raise AttributeError(name)
        found: str = cls(f"{package}.{key}")
        return found


class PassConfigKey(str, metaclass=_Keys):
    """Any key of a pass configuration: `PassConfigKey.TL_ENABLE_FAST_MATH` is its text, and a member of an
    enumeration."""

    @property
    def value(self) -> str:
        return str(self)


class _Callable(ModuleType):
    """`tilelang.jit` and `tilelang.autotune` are decorators and modules."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        super().__init__(name)
        self._function = function

    def __call__(self, *args: Any, **kw: Any) -> Any:
        return self._function(*args, **kw)


def _nothing(*args: Any, **kw: Any) -> None:
    """Has no meaning here."""


def _marks(name: str) -> Callable[..., Any]:
    if name.startswith("requires_"):
        return testing.marks(name)
    raise AttributeError(f"module 'tilelang.testing' has no attribute {name!r}")


def build(top: dict[str, Any], words: ModuleType) -> None:
    """Fill the namespace of `tilelang` and register its submodules."""

    def module(name: str, made: ModuleType | None = None, **members: Any) -> None:
        made = made or ModuleType(f"tilelang.{name}")
        made.__dict__.update({"__path__": [], "__getattr__": absent.refusing(f"tilelang.{name}"), **members})
        sys.modules[f"tilelang.{name}"] = made
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[f"tilelang.{parent}"], last, made)
        else:
            top[name] = made

    absent.install()
    kinds = profiler.TensorSupplyType
    cache: dict[str, Any] = {
        "clear_cache": _nothing,
        "disable_cache": lambda: hosts.use_cache(False),
        "enable_cache": lambda: hosts.use_cache(True),
        "is_cache_enabled": lambda: hosts.cache_used[-1],
        "set_cache_dir": hosts.set_cache_dir,
        "get_cache_dir": config.CACHE_DIR.get,
    }
    tuners = {n: getattr(autotuner, n) for n in autotuner.__all__}
    kernels = {
        "JITKernel": jit_.JITKernel,
        "compile": jit_.compile,
        "par_compile": jit_.par_compile,
        "lazy_jit": jit_.jit,
    }
    numbers = {n: getattr(hosts, n) for n in hosts.__all__}
    layouts = {
        "Layout": words.Layout,
        "Fragment": words.Fragment,
        **{f"make_{kind}_layout": layouts_.identity for kind in ("cutlass_metadata", "linear")},
        **{f"make_{kind}swizzled_layout": layouts_.swizzled for kind in ("", "wgmma_", "volta_", "tcgen05mma_")},
        **{
            f"make_{kind}_bank_swizzled_layout": functools.partial(layouts_.swizzled, sizes=(pieces,))
            for kind, pieces in (("full", 8), ("half", 4), ("quarter", 2))
        },
    }
    top.update(
        __version__=VERSION,
        PassConfigKey=PassConfigKey,
        Profiler=profiler.Profiler,
        TensorSupplyType=kinds,
        JITImpl=jit_.JITImpl,
        language=words,
        lower=jit_.lower,
        cached=jit_.compile,
        logger=logging.getLogger("tilelang"),
        set_log_level=lambda level: logging.getLogger("tilelang").setLevel(level),
        **kernels,
        **numbers,
        **cache,
    )
    module("testing", **{n: getattr(testing, n) for n in testing.__all__}, __getattr__=_marks)
    bench: dict[str, Any] = {"do_bench": profiler.do_bench}
    module("profiler", Profiler=profiler.Profiler, TensorSupplyType=kinds, **bench)
    module("profiler.bench", **bench)
    module("profiler.bench_utils", **bench)
    module("jit", _Callable("tilelang.jit", jit_.jit), jit=jit_.jit, JITImpl=jit_.JITImpl, **kernels)
    top["lazy_jit"] = jit_.jit
    module("jit.kernel", JITKernel=jit_.JITKernel)
    module("jit.adapter")
    module("autotuner", jit=jit_.jit, **tuners)
    module("autotuner.tuner", **tuners)
    module("autotuner.capture", **tuners)
    module("autotuner.param", AutotuneResult=autotuner.AutotuneResult)
    top.update(autotune=autotuner.autotune, set_autotune_inputs=autotuner.set_autotune_inputs)
    module("utils", TensorSupplyType=kinds, **numbers, map_torch_type=hosts.map_torch_type, **layouts)
    module("utils.language", **numbers, **hosts.scope_tests())
    module("utils.target", determine_target=lambda target="auto", return_object=False: hosts.target(return_object),
           AVALIABLE_TARGETS=["auto", "cuda", "cpu"], **hosts.target_tests())  # fmt: skip
    module("utils.deprecated", deprecated=_deprecated, deprecated_warning=_nothing)
    module("utils.tensor", TensorSupplyType=kinds, torch_assert_close=testing.torch_assert_close,
           map_torch_type=hosts.map_torch_type, get_tensor_supply=profiler.get_tensor_supply)  # fmt: skip
    module("utils.sparse", **{n: getattr(sparse, n) for n in sparse.__all__ if n != "gemm_sp"})
    module("utils.device", get_current_device=lambda: "cuda", IS_CUDA=True)
    module("engine", lower=jit_.lower)
    module("engine.lower", _Callable("tilelang.engine.lower", jit_.lower), lower=jit_.lower)
    module("engine.param", KernelParam=jit_.KernelParam, CompiledArtifact=artifact.CompiledArtifact)
    module("cache", cached=jit_.compile, **cache)
    module("transform", PassConfigKey=PassConfigKey, simplify_prim_func=lambda f: f)
    module("transform.pass_config", PassConfigKey=PassConfigKey)
    module("transform.simplify", simplify_prim_func=lambda f: f, apply_simplify=lambda f, *more: f)
    module("layout", **layouts)
    module(
        "intrinsics",
        **{n: f for n, f in layouts.items() if n.startswith("make_")},
        make_mma_swizzle_layout=layouts_.swizzled,
        get_swizzle_layout=lambda row, col, size, dtype="float16", swizzle_bytes=None: (row, col),
    )
    module("primitives", gemm=words.gemm)
    module("primitives.gemm", gemm=words.gemm)
    packing: dict[str, Any] = {n: getattr(quantize, n) for n in ("general_compress", "interleave_weight")}
    decoders = quantize.intrin_groups()
    module("quantize", **quantize.converters(), **packing, **decoders)
    module("quantize.quantization", **quantize.converters())
    module("quantize.utils", **packing)
    module("quantize.lop3", **decoders)
    module("quantize.mxfp", **decoders)
    module("intrinsics.mma_layout", make_mma_swizzle_layout=layouts_.swizzled)
    module("math", **numbers)
    module("env", env=hosts.Environment(**cache), **cache)
    module("tools", Analyzer=tools.Analyzer, __getattr__=tools.tool)
    _carver(module)
    module("contrib")
    module("engine.callback", __getattr__=_callback)
    module("contrib.nvcc", **hosts.nvcc())


def _carver(module: Callable[..., None]) -> None:
    """The templates, where programs look for them."""
    templates = {n: getattr(carver, n) for n in carver.__all__ if n.endswith("Template") and n != "Template"}
    platforms = {n: getattr(carver, n) for n in ("CUDA", "CDNA", "RDNA", "METAL", "CPU", "auto_infer_current_arch")}
    machines = {**platforms, "TileDevice": carver.Arch, "get_arch": lambda target="cuda": carver.CUDA(target)}
    plans = {n: getattr(carver, n) for n in ("NoRasterization", "Rasterization2DColumn", "Rasterization2DRow")}
    module("carver", Hint=carver.Hint, **templates, **machines, **plans)
    module("carver.template", BaseTemplate=carver.Template, **templates)
    module("carver.arch", **machines, **carver.arch_tests())
    module("carver.arch.driver", **{n: getattr(hosts, n) for n in hosts.DRIVER})
    module("carver.arch.cuda", CUDA=carver.CUDA)
    module("carver.roller", Hint=carver.Hint, **plans)
    module("carver.roller.hint", Hint=carver.Hint)
    module("carver.roller.rasterization", Rasterization=carver.NoRasterization, **plans)


def _deprecated(*reasons: Any, **more: Any) -> Callable[[Any], Any]:
    """A decorator that changes nothing."""
    return lambda f: f


def _callback(name: str) -> Any:
    """Hooks into generated CUDA text: there is none to change."""
    if name.startswith("__"):
        raise AttributeError(name)

    def register(func: Any = None, *args: Any, **kw: Any) -> Any:
        notice(f"tilelang.engine.callback.{name} does nothing here")
        return func if func is not None else lambda f: f

    return register
