"""`tilelang.autotuner`: the decorator, the class and the inputs of the block, over `tiledsl.tune`."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import tiledsl.tune as tune_
from tiledsl.compat import jit as jit_
from tiledsl.compat.language import tilelang_meaning
from tiledsl.compat.notices import notice, passed_over
from tiledsl.compat.profiler import Profiler, TensorSupplyType

__all__ = ["AutoTuner", "AutotuneResult", "autotune", "get_autotune_inputs", "set_autotune_inputs"]

_inputs: ContextVar[tuple[Any, ...] | None] = ContextVar("autotune_inputs", default=None)

# Accepted and without a meaning here.
_HINTS = (
    "keys",
    "do_not_specialize",
    "verbose",
    "execution_backend",
    "target",
    "target_host",
    "pass_configs",
)


@contextlib.contextmanager
def set_autotune_inputs(*args: Any) -> Iterator[None]:
    """Tuners inside measure with these arguments (several, or one list)."""
    given = tuple(args[0]) if len(args) == 1 and isinstance(args[0], (list, tuple)) else args
    token = _inputs.set(given)
    try:
        yield
    finally:
        _inputs.reset(token)


def get_autotune_inputs() -> tuple[Any, ...] | None:
    """What the innermost `set_autotune_inputs` was given."""
    return _inputs.get()


@dataclass
class AutotuneResult:
    """What a tuner found: milliseconds, configuration, the kernel, and every trial with its diagnostics."""

    latency: float
    config: Any
    kernel: Any
    ref_latency: float | None = None
    trials: tuple[tune_.Trial, ...] = ()

    @property
    def func(self) -> Any:
        return self.kernel.prim_func

    @property
    def libcode(self) -> str:
        return str(self.kernel.get_kernel_source())


_PATIENCE = 10  # a program's timeout is for a GPU


@dataclass
class _Profile:
    """How to measure and what to compare with."""

    timeout: float | None = 30

    warmup: float = 25
    rep: float = 100
    supply_type: Any = TensorSupplyType.Auto
    ref_prog: Callable[..., Any] | None = None
    supply_prog: Callable[..., Any] | None = None
    rtol: float = 1e-2
    atol: float = 1e-2
    max_mismatched_ratio: float = 0.01
    skip_check: bool = False
    manual_check_prog: Callable[..., Any] | None = None
    cache_input_tensors: bool = False
    early_stop: bool = False
    early_stop_factor: float = 2.0


def _profile(where: str, options: dict[str, Any], base: _Profile | None = None) -> _Profile:
    fields = _Profile.__dataclass_fields__.keys()
    passed_over(where, options, fields | _HINTS)
    return replace(base or _Profile(), **{name: value for name, value in options.items() if name in fields})


class AutoTuner:
    """Measures a factory of kernels, or an eager kernel, over configurations."""

    def __init__(self, fn: Any, configs: Any) -> None:
        self.fn, self.configs = fn, configs
        self.compile_args: dict[str, Any] = {}
        self.profile = _Profile()
        self.jit_compile: Callable[..., Any] | None = None

    @classmethod
    def from_kernel(cls, kernel: Any, configs: Any) -> AutoTuner:
        return cls(kernel, configs)

    def set_compile_args(self, out_idx: Any = None, target: Any = None, **options: Any) -> AutoTuner:
        """out_idx and what belongs to set_profile_args are taken; where and how to compile is the run's business."""
        jit_.check_options("set_compile_args", options)
        self.compile_args = {"out_idx": out_idx}
        old = {name: value for name, value in options.items() if name in _Profile.__dataclass_fields__}
        self.profile = replace(self.profile, **old)  # where old versions took them
        return self

    def set_profile_args(self, **options: Any) -> AutoTuner:
        self.profile = _profile("set_profile_args", options, self.profile)
        return self

    def run(
        self, warmup: float | None = None, rep: float | None = None, timeout: float | None = None
    ) -> AutotuneResult:
        """Tune with no arguments but the configuration's."""
        self.profile.timeout = self.profile.timeout if timeout is None else timeout
        self.profile.warmup = self.profile.warmup if warmup is None else warmup
        self.profile.rep = self.profile.rep if rep is None else rep
        return self._run((), {})

    def _make(self, *args: Any, **kwargs: Any) -> jit_.JITKernel:
        """A kernel of the factory, which may be any callable that gives a kernel or what becomes one."""
        if isinstance(self.fn, jit_.JITImpl):
            return self.fn.compile(*args, **kwargs)
        with tilelang_meaning():
            made = self.fn(*args, **kwargs)
        return made if isinstance(made, jit_.JITKernel) else jit_.compile(made, **self.compile_args)

    def _run(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], arrays: Sequence[Any] | None = None
    ) -> AutotuneResult:
        configs = _configs(self.configs, args, kwargs)
        p, made = self.profile, dict[Any, list[Any]]()

        def inputs(kernel: Any) -> list[Any]:
            if arrays is not None:
                return list(arrays)
            given = get_autotune_inputs()
            if given is not None:
                return list(given)
            params = getattr(kernel, "native", kernel).params
            of = tuple(str(x) for x in params)
            if of not in made:  # the same inputs for every configuration
                profiler = Profiler(kernel, p.supply_type)
                own = p.supply_prog
                made[of] = list(own([*map(jit_.KernelParam, params)])) if own else profiler._get_inputs()
            return made[of]

        def check(kernel: Any, given: Sequence[Any]) -> None:
            profiler = Profiler(kernel, p.supply_type)
            if p.manual_check_prog is not None and p.ref_prog is not None:
                profiler.manual_assert_close(p.ref_prog, given, p.manual_check_prog)
            elif p.ref_prog is not None:
                profiler.assert_allclose(p.ref_prog, given, p.atol, p.rtol, p.max_mismatched_ratio)

        found = tune_.tune(
            self._make,
            _listed(configs),
            args=args,
            kwargs=kwargs,
            inputs=inputs,
            check=None if p.skip_check or p.ref_prog is None else check,
            warmup=p.warmup,
            rep=p.rep,
            early_stop=p.early_stop_factor if p.early_stop else None,
            timeout=None if p.timeout is None else _PATIENCE * p.timeout,
        )
        for failed in found.failures:
            notice(f"autotune: {failed.config} fails: {(failed.error or '').splitlines()[0]}")
        kernel = found.kernel
        kernel.config, kernel.latency = found.config, found.latency
        if p.ref_prog is not None:
            kernel.ref_latency = tune_.milliseconds(lambda: p.ref_prog(*inputs(kernel)), p.warmup, p.rep)  # type: ignore[misc]
        kernel.tuner_result = AutotuneResult(found.latency, found.config, kernel, kernel.ref_latency, found.trials)
        result: AutotuneResult = kernel.tuner_result
        return result


def _configs(configs: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Configurations, or what a function of the call's arguments says; it need not take those that are tuned, and
    may take the rest as two: `def get_configs(args, kwargs)`."""
    if not callable(configs):
        return configs
    parameters = inspect.signature(configs).parameters
    if [*parameters] == ["args", "kwargs"] and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return configs(args, kwargs)
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        kwargs = {k: v for k, v in kwargs.items() if k in parameters}
    return configs(*args, **kwargs)


def _without(configs: Any, given: Mapping[str, Any]) -> Any:
    """The configurations without parameters that are given, each once."""
    if isinstance(configs, dict):
        return {name: values for name, values in configs.items() if name not in given}
    left = [{name: value for name, value in c.items() if name not in given} for c in _listed(configs)]
    return [c for at, c in enumerate(left) if c not in left[:at]]


def _listed(configs: Any) -> Any:
    """Configurations may come as lists of one dict each (old programs)."""
    if isinstance(configs, dict):
        return configs
    return [c[0] if isinstance(c, (list, tuple)) and len(c) == 1 else c for c in configs]


class AutoTuneImpl:
    """A jit function that chooses the parameters which the configurations name, once per call signature."""

    def __init__(self, function: jit_.JITImpl, configs: Any, profile: _Profile) -> None:
        self.jit_impl, self.configs, self.profile = function, configs, profile
        self._found: dict[Any, AutotuneResult] = {}
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The best kernel (factories), or the result of running it (eager kernels). Parameters that the call gives
        are not tuned."""
        configs = _configs(self.configs, args, kwargs)
        tuned = set(configs if isinstance(configs, dict) else _listed(configs)[0] if configs else ())
        given = inspect.signature(self.jit_impl).bind_partial(*args, **kwargs).arguments
        if tuned and tuned <= set(given):
            return self.jit_impl(*args, **kwargs)
        names = self.jit_impl.array_names
        arrays = [given[n] for n in names if n in given] if names else None
        key = tuple((n, _key(x)) for n, x in given.items())
        if key not in self._found:
            tuner = AutoTuner(self.jit_impl, _without(configs, given))
            tuner.profile = self.profile
            self._found[key] = tuner._run(args, kwargs, arrays)
        kernel = self._found[key].kernel
        return kernel if arrays is None else kernel(*arrays)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["jit_impl"], name)


def _key(x: Any) -> Any:
    return (tuple(x.shape), str(x.dtype)) if hasattr(x, "shape") else repr(x)


def autotune(func: Any = None, *positional: Any, configs: Any = None, **options: Any) -> Any:
    """Decorator above `tilelang.jit`: configs is a list of dicts, a dict of lists, or a function of the arguments."""
    if func is not None and not callable(func):
        func, configs = None, func

    def decorate(f: Any) -> Any:
        impl = f if isinstance(f, jit_.JITImpl) else jit_.jit(f)
        return AutoTuneImpl(impl, configs, _profile("tilelang.autotune", options))

    return decorate if func is None or configs is None else decorate(func)
