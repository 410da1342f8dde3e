"""`tilelang.jit`, `tilelang.compile` and the kernels they give, over `tiledsl.jit` and `tiledsl.compile`."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import tiledsl
from tiledsl.compat.notices import notice
from tiledsl.compat.pretended_cuda import real

__all__ = ["JITImpl", "JITKernel", "compile", "jit", "lower"]

_ACCEPTED = ("target_host", "execution_backend", "verbose", "debug_root_path", "compile_flags", "pass_configs", "debug")


def _options(where: str, options: dict[str, Any]) -> None:
    for name in options:
        if name not in _ACCEPTED:
            notice(f"{where}: the option {name} is passed over")


def _target() -> str | None:
    """Where everything runs: `tiledsl run --target`, not what the program says."""
    return os.environ.get("TILEDSL_TARGET")


class JITKernel:
    """A kernel with the members of TileLang's."""

    def __init__(self, kernel: tiledsl.JITKernel) -> None:
        self._kernel = kernel
        self.config: Any = None
        self.latency: float | None = None
        self.ref_latency: float | None = None
        self.artifact = self.adapter = self

    def __call__(self, *args: Any, **kw: Any) -> Any:
        with real():
            return self._kernel(*args, **kw)

    @property
    def params(self) -> Any:
        return self._kernel.params

    @property
    def out_idx(self) -> list[int]:
        return list(self._kernel.out_idx)

    @property
    def prim_func(self) -> Any:
        return self._kernel.function

    def get_kernel_source(self, kernel_only: bool = True) -> str:
        return self._kernel.get_kernel_source()

    def get_host_source(self) -> str:
        return self._kernel.text()

    kernel_source = property(get_kernel_source)
    host_source = property(get_host_source)

    def show_source(self, which: str = "kernel") -> None:
        print(self.get_kernel_source())

    print_source_code = show_source

    def export_sources(self, kernel_path: str | None = None, host_path: str | None = None) -> None:
        for path, text in ((kernel_path, self.get_kernel_source()), (host_path, self.get_host_source())):
            if path:
                with open(path, "w", encoding="utf-8") as f:
                    f.write(text)

    def get_profiler(self, tensor_supply_type: Any = None) -> Any:
        from tiledsl.compat.profiler import Profiler, TensorSupplyType

        return Profiler(self, tensor_supply_type or TensorSupplyType.Auto)

    def run_once(self, func: Callable[..., Any] | None = None) -> None:
        self.get_profiler().run_once(func)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)


class JITImpl:
    """A decorated function: a factory of kernels, or a kernel in the eager style."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self._kernels: dict[Any, JITKernel] = {}
        functools.update_wrapper(self, function.pyfunc)

    def _wrapped(self, kernel: Any) -> JITKernel:
        found = self._kernels.get(kernel)
        if found is None:
            found = self._kernels[kernel] = JITKernel(kernel)
        return found

    def __call__(self, *args: Any, **kw: Any) -> Any:
        with real():
            found = self._function(*args, **kw)
        return self._wrapped(found) if self._function.lazy else found

    def compile(self, *args: Any, **kw: Any) -> JITKernel:
        with real():
            return self._wrapped(self._function.kernel(*args, **kw))

    def get_tir(self, *args: Any, **kw: Any) -> Any:
        return self._function.get_tir(*args, **kw)

    def get_kernel_source(self, *args: Any, **kw: Any) -> str:
        return self.compile(*args, **kw).get_kernel_source()

    def par_compile(self, configs: Any, num_workers: int | None = None, ignore_error: bool = False) -> list[JITKernel]:
        return [self.compile(**c) if isinstance(c, dict) else self.compile(*c) for c in configs]


def jit(func: Any = None, *, out_idx: Any = None, workspace_idx: Any = None, target: Any = None, **options: Any) -> Any:
    """As tilelang.jit; the target is the run's."""
    _options("tilelang.jit", options)

    def decorate(f: Any) -> Any:
        made = tiledsl.jit(f, out_idx=out_idx, target=_target())
        return JITKernel(made) if isinstance(made, tiledsl.JITKernel) else JITImpl(made)

    return decorate if func is None else decorate(func)


def compile(func: Any, out_idx: Any = None, workspace_idx: Any = None, target: Any = None, **options: Any) -> JITKernel:
    """As tilelang.compile; the target is the run's."""
    _options("tilelang.compile", options)
    return JITKernel(tiledsl.compile(func, out_idx=out_idx, target=_target()))


lower = compile
