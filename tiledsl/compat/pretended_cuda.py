"""torch programs that say "cuda", run on CPU tensors: device names are redirected, and `torch.cuda` answers.

`pretended(capability)` is a context manager; everything is as before when it ends. Inside, tensors that were asked for
on "cuda" lie in host memory; `x.is_cuda` and `x.device` say what the program expects to hear.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

from tiledsl.compat import graphs

__all__ = ["MULTIPROCESSORS", "pretended", "real"]

MULTIPROCESSORS = 132
_DEPTH = [0]  # above 0: tiledsl itself is at work and wants to know the truth


@contextlib.contextmanager
def real() -> Iterator[None]:
    """Inside, torch says where things are in truth."""
    _DEPTH[0] += 1
    try:
        yield
    finally:
        _DEPTH[0] -= 1


def _is_cuda(device: Any) -> bool:
    import torch

    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.split(":")[0] == "cuda"


def _redirected(value: Any) -> Any:
    return "cpu" if _is_cuda(value) else value


def _mode() -> Any:
    """The mode through which every call of torch's functions, methods and properties goes."""
    import torch
    from torch.overrides import TorchFunctionMode

    getters = {
        torch.Tensor.is_cuda.__get__: True,  # type: ignore[attr-defined]
        torch.Tensor.is_cpu.__get__: False,  # type: ignore[attr-defined]
        torch.Tensor.device.__get__: torch.device("cuda", 0),
        torch.Tensor.get_device: 0,
    }
    stays: set[Any] = {torch.Tensor.cuda, torch.Tensor.pin_memory}

    class Redirect(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if _DEPTH[0]:
                return func(*args, **kwargs)
            if func in getters:
                return getters[func]
            if func in stays:
                return args[0]
            if func is torch.Tensor.__dlpack__:
                kwargs.pop("stream", None)
            if "device" in kwargs:
                # an integer is the number of a GPU
                device = kwargs["device"]
                kwargs["device"] = "cpu" if isinstance(device, int) else _redirected(device)
            if kwargs.get("pin_memory"):
                kwargs["pin_memory"] = False
            if func is torch.Tensor.to:
                args = (args[0], *("cpu" if type(a) is int else _redirected(a) for a in args[1:]))
            elif func is torch.Tensor.type and len(args) > 1 and isinstance(args[1], str):
                args = (args[0], args[1].replace("torch.cuda.", "torch."), *args[2:])
            return func(*args, **kwargs)

    return Redirect()


class _Event:
    """torch.cuda.Event on the host's clock."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        self.at = 0.0

    def record(self, stream: Any = None) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: _Event) -> float:
        """Milliseconds."""
        return (end.at - self.at) * 1e3

    def synchronize(self) -> None:
        pass

    def wait(self, stream: Any = None) -> None:
        pass

    def query(self) -> bool:
        return True


class _Stream:
    """torch.cuda.Stream: work is done when it is asked for."""

    cuda_stream = 0
    device_index = 0

    def __init__(self, *args: Any, **kw: Any) -> None:
        pass

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *exc: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        pass

    def record_event(self, event: Any = None) -> Any:
        event = event or _Event()
        event.record()
        return event

    def query(self) -> bool:
        return True


class _Device(contextlib.AbstractContextManager[None]):
    """torch.cuda.device."""

    def __init__(self, device: Any = None) -> None:
        self.idx = 0

    def __exit__(self, *exc: Any) -> None:
        pass


def _answers(capability: tuple[int, int]) -> dict[str, Any]:
    """What `torch.cuda` says. Each function is an object of its own: torch's compiler keeps tables of them."""
    import torch

    def number(value: Any) -> Callable[..., Any]:
        return lambda *args, **kw: value

    properties = SimpleNamespace(
        name="tiledsl on CPU",
        major=capability[0],
        minor=capability[1],
        multi_processor_count=MULTIPROCESSORS,
        total_memory=80 * 2**30,
        warp_size=32,
        max_threads_per_multi_processor=2048,
        regs_per_multiprocessor=65536,
        shared_memory_per_block=48 * 2**10,
        shared_memory_per_block_optin=227 * 2**10,
        shared_memory_per_multiprocessor=228 * 2**10,
        L2_cache_size=50 * 2**20,
        is_integrated=False,
        gcnArchName="",
    )
    stream = _Stream()
    found: dict[str, Any] = {
        "is_available": number(True),
        "is_initialized": number(True),
        "device_count": number(1),
        "current_device": number(0),
        "get_device_name": number(properties.name),
        "get_device_capability": number(capability),
        "get_device_properties": number(properties),
        "get_arch_list": number([f"sm_{capability[0]}{capability[1]}"]),
        "current_stream": number(stream),
        "default_stream": number(stream),
        "memory_stats": number({}),
        "stream": lambda s=None: contextlib.nullcontext(),
        "graph": graphs.graph,
        "CUDAGraph": graphs.CUDAGraph,
        "graph_pool_handle": number((0, 0)),
        "make_graphed_callables": lambda callables, *args, **kw: callables,
        "is_current_stream_capturing": lambda: graphs.capturing(),
        "is_bf16_supported": number(True),
        "ExternalStream": type("ExternalStream", (_Stream,), {}),
        "device_of": type("device_of", (_Device,), {}),
        "nvtx": _Nvtx("torch.cuda.nvtx"),
        "mem_get_info": number((64 * 2**30, 80 * 2**30)),
        "manual_seed": lambda seed: torch.default_generator.manual_seed(seed),  # torch.manual_seed calls these
        "manual_seed_all": lambda seed: torch.default_generator.manual_seed(seed),
        "initial_seed": lambda: torch.initial_seed(),
        "seed": lambda: torch.seed(),
        "get_rng_state_all": lambda: [torch.get_rng_state()],
        "set_rng_state_all": lambda states: torch.set_rng_state(states[0]),
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "Event": _Event,
        "Stream": _Stream,
        "device": _Device,
    }
    for name in (
        "synchronize",
        "set_device",
        "empty_cache",
        "init",
        "reset_peak_memory_stats",
        "set_stream",
        "ipc_collect",
        "_lazy_init",
        "_sleep",
        "reset_max_memory_allocated",
        "set_per_process_memory_fraction",
    ):
        found[name] = number(None)
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"):
        found[name] = number(0)
    return found


class _Nvtx(ModuleType):
    """torch.cuda.nvtx: marks for a tool that is not there."""

    range_push = range_pop = mark = range_start = range_end = staticmethod(lambda *args, **kw: 0)
    range = staticmethod(lambda *args, **kw: contextlib.nullcontext())


def _redirect_autocast(patch: Callable[[Any, str, Any], None]) -> None:
    """Automatic mixed precision of "cuda" is the CPU's; there are no scaled gradients, as for bfloat16."""
    import torch

    init = torch.autocast.__init__

    def autocast(
        self: Any, device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: Any = None
    ) -> None:
        if _is_cuda(device_type) and dtype is None:
            dtype = torch.float16  # cuda's default
        init(self, _redirected(device_type), dtype, enabled, cache_enabled)

    patch(torch.autocast, "__init__", autocast)
    scaler = torch.amp.GradScaler

    def off(*args: Any, **kw: Any) -> Any:
        return scaler("cpu", enabled=False)

    patch(torch.amp, "GradScaler", off)
    patch(torch.cuda.amp, "GradScaler", lambda *args, **kw: off())


def _redirect_modules(patch: Callable[[Any, str, Any], None]) -> None:
    """torch.nn.Module's own moves, default devices, files."""
    import torch

    module, set_default, load = torch.nn.Module.to, torch.set_default_device, torch.load
    default: list[Any] = [None]
    get_default = torch.get_default_device

    def to(self: Any, *args: Any, **kw: Any) -> Any:
        args = tuple("cpu" if type(a) is int else _redirected(a) for a in args)
        return module(self, *args, **{k: _redirected(v) for k, v in kw.items()})

    def set_default_device(device: Any) -> None:
        default[0] = device if _is_cuda(device) else None
        set_default(_redirected(device))

    def load_(f: Any, map_location: Any = None, **kw: Any) -> Any:
        return load(f, map_location=_redirected(map_location), **kw)

    patch(torch.nn.Module, "to", to)
    patch(torch.Tensor, "record_stream", lambda self, stream: None)  # its argument is looked at before any mode
    patch(torch.nn.Module, "cuda", lambda self, device=None: self)
    patch(torch, "set_default_device", set_default_device)
    patch(torch, "get_default_device", lambda: torch.device("cuda", 0) if default[0] else get_default())
    patch(torch, "load", load_)
    set_type = torch.set_default_tensor_type
    names = {f"torch.cuda.{n}Tensor": n for n in ("Float", "Double", "Half", "BFloat16")}

    def set_default_tensor_type(t: Any) -> None:
        name = t if isinstance(t, str) else f"{t.__module__}.{t.__name__}"
        if name not in names:
            return set_type(t)
        set_default_device("cuda")
        return set_type(f"torch.{names[name]}Tensor")

    patch(torch, "set_default_tensor_type", set_default_tensor_type)


def _redirect_gradients(patch: Callable[[Any, str, Any], None]) -> None:
    """Code of the program runs while gradients are computed: backward of functions, hooks, checkpointed forwards.
    torch computes them inside the handler of a mode, where the mode is off."""
    import torch

    engine = torch.autograd.__dict__["_engine_run_backward"]

    def run(*args: Any, **kw: Any) -> Any:
        with _mode():
            return engine(*args, **kw)

    patch(torch.autograd, "_engine_run_backward", run)
    checkpoint = sys.modules.get("torch.utils.checkpoint")
    if checkpoint is not None:  # it compares what it saves inside and outside of handlers
        compared = checkpoint._allowed_determinism_checks_to_fns
        patch(checkpoint, "_allowed_determinism_checks_to_fns", {k: real()(f) for k, f in compared.items()})


def _redirect_threads(patch: Callable[[Any, str, Any], None]) -> None:
    """A thread sees what the thread that starts it sees: torch keeps modes per thread."""
    run = threading.Thread.run

    def inside(self: threading.Thread) -> None:
        with _mode():
            run(self)

    patch(threading.Thread, "run", inside)


@contextlib.contextmanager
def pretended(capability: tuple[int, int] = (9, 0)) -> Iterator[None]:
    """Inside, "cuda" means the host's memory, and `torch.cuda` describes a device of this compute capability."""
    import torch

    saved: list[tuple[Any, str, Any]] = []

    def patch(owner: Any, name: str, value: Any) -> None:
        saved.append((owner, name, owner.__dict__.get(name, _MISSING)))
        setattr(owner, name, value)

    generator = torch.Generator

    class Generator(generator):  # type: ignore[misc, valid-type]
        def __new__(cls, device: Any = "cpu") -> Any:
            return generator("cpu")

    try:
        for name, value in _answers(capability).items():
            patch(torch.cuda, name, value)
        patch(torch, "Generator", Generator)
        _redirect_modules(patch)
        _redirect_autocast(patch)
        _redirect_threads(patch)
        _redirect_gradients(patch)
        if not torch.version.cuda:
            patch(torch.version, "cuda", "12.8")
        with _mode():
            yield
    finally:
        for owner, name, value in reversed(saved):
            if value is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


_MISSING = object()
