"""`tilelang.jit`, `tilelang.compile` and the kernels they give, over `tiledsl.jit` and `tiledsl.compile`.

Options are the union of versions 0.1.6 to 0.1.15. None of them can change a value here, so all are accepted; those that
no version has are said once.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
from collections.abc import Callable
from typing import Any

import tiledsl
from tiledsl.compat import graphs, hosts
from tiledsl.compat.artifact import CompiledArtifact, Module
from tiledsl.compat.language import tilelang_meaning
from tiledsl.compat.notices import notice, pass_configs, passed_over
from tiledsl.compat.pretended_cuda import real
from tiledsl.errors import TileError, TileNotImplementedError
from tiledsl.surface import is_array

__all__ = ["JITImpl", "JITKernel", "KernelParam", "compile", "jit", "lower", "par_compile"]

_ACCEPTED = frozenset(
    "target_host execution_backend verbose debug_root_path compile_flags pass_configs debug supply_type ref_prog rtol "
    "atol max_mismatched_ratio skip_check cache_input_tensors enable_host_codegen enable_device_compile is_cpu func "
    "runtime_only tune_key".split()
)


def check_options(where: str, options: dict[str, Any]) -> None:
    """Says which options no version has, once."""
    passed_over(where, options, _ACCEPTED)
    pass_configs(where, options.get("pass_configs"))


def _target() -> str | None:
    """Where everything runs: `tiledsl run --target`, not what the program says."""
    return os.environ.get("TILEDSL_TARGET")


def _outputs(kernel: tiledsl.JITKernel, args: tuple[Any, ...], kw: dict[str, Any]) -> dict[str, Any]:
    """`out=` with tensors of torch, where no argument is an array whose kind outputs could have."""
    if not kernel.out_idx or "out" in kw or any(map(is_array, args)) or importlib.util.find_spec("torch") is None:
        return {}
    import torch

    made = []
    for buffer in (kernel.params[i].buffer for i in kernel.out_idx):
        if buffer is None or buffer.const_shape is None:
            return {}
        shape, name = list(buffer.const_shape), buffer.dtype.name
        if buffer.dtype.is_packed:  # two values a byte
            shape, name = [*shape[:-1], -(-shape[-1] // 2)], "uint8"
        made.append(torch.empty(shape, dtype=getattr(torch, name), device="cuda" if hosts.on_gpu() else "cpu"))
    return {"out": made}


class KernelParam:
    """A parameter: its dtype and its shape (extents that are symbols are their names; scalars have none)."""

    def __init__(self, param: Any) -> None:
        self.name, self.buffer = param.name, param.buffer
        self.dtype = param.var.dtype if param.buffer is None else param.buffer.dtype
        extents = () if param.buffer is None else param.buffer.shape
        self.shape = [getattr(e, "value", None) if hasattr(e, "value") else str(e) for e in extents]

    def __repr__(self) -> str:
        return f"KernelParam({self.name}: {self.dtype}{self.shape})"

    def is_scalar(self) -> bool:
        return self.buffer is None

    def is_unsigned(self) -> bool:
        return bool(self.dtype.is_int and not self.dtype.is_signed)

    def is_float8(self) -> bool:
        return bool(self.dtype.is_float and self.dtype.bits == 8)

    def is_boolean(self) -> bool:
        return bool(self.dtype.is_bool)

    def torch_dtype(self) -> Any:
        return self.dtype.as_torch()


class JITKernel:
    """A kernel with the members of TileLang's."""

    def __init__(self, kernel: Any, out_idx: Any = None, target: Any = None, **options: Any) -> None:
        if not isinstance(kernel, tiledsl.JITKernel):  # programs may also give what tilelang.compile takes
            check_options("tilelang.JITKernel", options)
            if out_idx is not None and getattr(kernel, "outputs", None):  # of another kernel: asked for anew
                kernel = kernel.replace(outputs=())
            with tilelang_meaning():
                kernel = tiledsl.compile(kernel, out_idx=out_idx, target=_target())
        self._kernel: tiledsl.JITKernel = kernel
        inputs = [p for i, p in enumerate(kernel.params) if i not in kernel.out_idx]
        self._pointers = [i for i, p in enumerate(inputs) if p.var is not None and p.var.dtype.name == "int64"]
        self.config: Any = None
        self.latency: float | None = None
        self.ref_latency: float | None = None
        self.tuner_result: Any = None
        self.adapter = self
        self.target = os.environ.get("TILEDSL_TARGET", "cpu")
        self.execution_backend, self.verbose = options.get("execution_backend", "tvm_ffi"), False
        self.target_host, self.compile_flags = options.get("target_host"), options.get("compile_flags")
        self.pass_configs: dict[str, Any] = dict(options.get("pass_configs") or {})
        self.resource_usage: dict[str, int] = {}
        self.n_regs = self.n_spills = 0

    def __call__(self, *args: Any, **kw: Any) -> Any:
        """One output, or a list of all of them, which is empty when there are none."""
        with real():
            made = graphs.launch(self._kernel, self._addresses(args), {**_outputs(self._kernel, args, kw), **kw})
            return [] if made is None else made

    def explain(self, *args: Any, **kw: Any) -> Any:
        """`tiledsl.JITKernel.explain`, for what a call would be given."""
        with real():
            return self._kernel.explain(*self._addresses(args), **kw)

    def __deepcopy__(self, memo: Any) -> JITKernel:
        """A kernel has no state: copies of modules that hold it share it."""
        return self

    def __repr__(self) -> str:
        return f"<tilelang.JITKernel {self._kernel!r}>"

    def _addresses(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments, with the address of a tensor that is given for a T.ptr parameter."""
        given = [i for i in self._pointers if i < len(args) and getattr(args[i], "ndim", None)]
        return tuple(x.data_ptr() if i in given else x for i, x in enumerate(args)) if given else args

    @functools.cached_property
    def artifact(self) -> CompiledArtifact:
        """The texts."""
        return CompiledArtifact.of(self)

    @property
    def rt_mod(self) -> Module:
        return self.artifact.rt_mod

    rt_module = rt_mod

    @property
    def torch_function(self) -> Callable[..., Any]:
        return self.__call__

    @property
    def native(self) -> tiledsl.JITKernel:
        """The kernel of `tiledsl` that this one stands for."""
        return self._kernel

    @property
    def params(self) -> list[KernelParam]:
        return [KernelParam(p) for p in self._kernel.params]

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

    def get_tuner_result(self) -> Any:
        """What the tuner found; ValueError when no tuner made this kernel."""
        if self.tuner_result is None:
            raise ValueError("this kernel was not made by a tuner")
        return self.tuner_result

    @property
    def n_max_threads(self) -> int:
        """Threads of a block."""
        found = 1
        for extent in self.prim_func.kernels[0].threads:
            found *= int(getattr(extent, "value", 1))
        return found

    def show_ptx(self) -> None:
        """There is no PTX here; the target's own text is shown."""
        notice("show_ptx and show_sass: the text of this target is shown instead")
        print(self.get_kernel_source())

    show_sass = show_ptx

    def _get_ptx(self) -> str:
        return self.get_kernel_source()

    _get_sass = _get_ptx

    def export_ptx(self, path: str) -> None:
        """The target's own text, in a file."""
        self.export_sources(path)

    export_sass = export_ptx

    def export_library(self, path: str) -> None:
        """There is no shared library of a kernel here."""
        raise TileNotImplementedError("export_library: kernels are kept in the cache, not as shared libraries")

    def do_bench(self, *args: Any, **options: Any) -> Any:
        return self.get_profiler().do_bench(*args, **options)

    def get_profiler(self, tensor_supply_type: Any = None) -> Any:
        from tiledsl.compat.profiler import Profiler, TensorSupplyType

        return Profiler(self, tensor_supply_type or TensorSupplyType.Auto)

    def assert_allclose(self, *args: Any, **options: Any) -> None:
        """`Profiler.assert_allclose`, on inputs of its own."""
        self.get_profiler().assert_allclose(*args, **options)

    def assert_consistent(self, *args: Any, **options: Any) -> None:
        self.get_profiler().assert_consistent(*args, **options)

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

    @property
    def native(self) -> Any:
        """The jit function of `tiledsl` that this one stands for."""
        return self._function

    def _wrapped(self, kernel: Any) -> JITKernel:
        found = self._kernels.get(kernel)
        if found is None:
            found = self._kernels[kernel] = JITKernel(kernel)
        return found

    def __call__(self, *args: Any, **kw: Any) -> Any:
        if kw.pop("__return_kernel", False):
            return self.compile(*args, **kw)
        with tilelang_meaning():
            if self._function.lazy:  # a factory is the program's own code, which may look at tensors
                return self._wrapped(self._function(*args, **kw))
            if not any(map(is_array, (*args, *kw.values()))):  # nothing says what new outputs are to be
                given = inspect.signature(self._function.pyfunc).bind_partial(*args, **kw).arguments
                return self.compile(*args, **kw)(*(given[n] for n in self.array_names if n in given))
            with real():
                made = graphs.launch(self._function, args, kw)
                return [] if made is None else made

    def compile(self, *args: Any, **kw: Any) -> JITKernel:
        """The kernel for these values; arrays may be given for those of an eager kernel."""
        with tilelang_meaning():
            return self._wrapped(self._function.kernel(*args, **kw))

    @property
    def array_names(self) -> tuple[str, ...]:
        """The parameters of an eager kernel that are arrays; none of a factory."""
        return tuple(self._function.arguments)

    @property
    def mode(self) -> str:
        return "lazy" if self._function.lazy else "eager"

    def get_tir(self, *args: Any, **kw: Any) -> Any:
        """The function; which of its parameters are outputs is up to who compiles it."""
        found = self.compile(*args, **kw).prim_func
        return found.replace(outputs=()) if self._function.lazy else found

    def get_kernel_source(self, *args: Any, **kw: Any) -> str:
        return self.compile(*args, **kw).get_kernel_source()

    def explain(self, *args: Any, **kw: Any) -> Any:
        """`tiledsl.JITKernel.explain`, of an eager kernel; of a factory's kernels each has its own."""
        with tilelang_meaning(), real():
            return self._function.explain(*args, **kw)

    def par_compile(self, configs: Any, num_workers: int | None = None, ignore_error: bool = False) -> list[JITKernel]:
        """One kernel per configuration; ignore_error: those that fail are left out, and said."""
        found = []
        for c in configs:
            try:
                found.append(self.compile(**c) if isinstance(c, dict) else self.compile(*c))
            except TileError as e:
                if not ignore_error:
                    raise
                notice(f"par_compile: {c} fails: {e.message}")
        return found


def jit(
    func: Any = None,
    *positional: Any,
    out_idx: Any = None,
    workspace_idx: Any = None,
    target: Any = None,
    **options: Any,
) -> Any:
    """As tilelang.jit; the target is the run's."""
    check_options("tilelang.jit", options)
    if func is not None and not callable(func) and not hasattr(func, "function"):
        func, out_idx = None, func  # jit(out_idx), as old programs wrote

    def decorate(f: Any) -> Any:
        with tilelang_meaning():
            made = tiledsl.jit(f, out_idx=out_idx, target=_target())
        return JITKernel(made) if isinstance(made, tiledsl.JITKernel) else JITImpl(made)

    return decorate if func is None else decorate(func)


def compile(func: Any, out_idx: Any = None, workspace_idx: Any = None, target: Any = None, **options: Any) -> JITKernel:
    """As tilelang.compile; the target is the run's."""
    return JITKernel(func, out_idx, target, **options)


def par_compile(funcs: Any, out_idx: Any = None, **options: Any) -> list[JITKernel]:
    """As tilelang.par_compile."""
    options.pop("num_workers", None)
    options.pop("ignore_error", None)
    return [compile(f, out_idx, **options) for f in funcs]


def lower(func_or_mod: Any, target: Any = None, target_host: Any = None, **options: Any) -> CompiledArtifact:
    """As tilelang.lower: the texts of a kernel, which nothing can run."""
    return CompiledArtifact.of(compile(func_or_mod, None, target, **options))
