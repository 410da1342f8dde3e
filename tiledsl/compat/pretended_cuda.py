"""torch programs that say "cuda", run on CPU tensors: device names are redirected, and `torch.cuda` answers.

`pretended(capability)` is a context manager; everything is as before when it ends. Inside, tensors that were asked for
on "cuda" lie in host memory; `x.is_cuda` and `x.device` say what the program expects to hear.
"""

from __future__ import annotations

import collections
import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from tiledsl.compat import graphs, streams

__all__ = ["MULTIPROCESSORS", "pretended", "real"]

MULTIPROCESSORS = 132


class _Depth(threading.local):
    """real above 0: tiledsl itself is at work in this thread and wants to know the truth. plain above 0: so does a tool
    of torch's, while programs may still say cuda."""

    real = plain = 0


_depth = _Depth()


@contextlib.contextmanager
def real() -> Iterator[None]:
    """Inside, torch says where things are in truth."""
    _depth.real += 1
    try:
        yield
    finally:
        _depth.real -= 1


@contextlib.contextmanager
def _plain() -> Iterator[None]:
    """Inside, tensors say where they are; what is asked for on cuda is made all the same."""
    _depth.plain += 1
    try:
        yield
    finally:
        _depth.plain -= 1


def _is_cuda(device: Any) -> bool:
    import torch

    if isinstance(device, torch.device):
        return device.type == "cuda"
    if isinstance(device, str):
        return device.partition(":")[0] == "cuda"
    return type(device) is int  # the number of a GPU


def _redirected(value: Any) -> Any:
    """What says where, on the host."""
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
            if _depth.real:
                return func(*args, **kwargs)
            if func in getters and not _depth.plain and args[0].device.type == "cpu":  # the truth: modes are off here
                return getters[func]
            if func in stays:
                return args[0]
            if func is torch.device and args and type(args[0]) is int:  # the number of a GPU
                return torch.device("cuda", *args)
            if func is torch.Tensor.__dlpack__:
                kwargs.pop("stream", None)
            if "device" in kwargs:
                kwargs["device"] = _redirected(kwargs["device"])
            if kwargs.get("pin_memory"):
                kwargs["pin_memory"] = False
            if func is torch.Tensor.to:
                args = (args[0], *map(_redirected, args[1:]))
            elif func is torch.Tensor.type and len(args) > 1 and isinstance(args[1], str):
                args = (args[0], args[1].replace("torch.cuda.", "torch."), *args[2:])
            return func(*args, **kwargs)

    return Redirect()


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
        max_threads_per_block=1024,
        clock_rate=1980000,
        memory_clock_rate=2619000,
        memory_bus_width=5120,
        uuid="00000000-0000-0000-0000-000000000000",
        pci_bus_id=0,
        regs_per_multiprocessor=65536,
        shared_memory_per_block=48 * 2**10,
        shared_memory_per_block_optin=227 * 2**10,
        shared_memory_per_multiprocessor=228 * 2**10,
        L2_cache_size=50 * 2**20,
        is_integrated=False,
        gcnArchName="",
    )
    found: dict[str, Any] = {
        "is_available": number(True),
        "is_initialized": number(True),
        "device_count": number(1),
        "current_device": number(0),
        "get_device_name": number(properties.name),
        "get_device_capability": number(capability),
        "get_device_properties": number(properties),
        "get_arch_list": number([f"sm_{capability[0]}{capability[1]}"]),
        "current_stream": streams.current_stream,
        "default_stream": streams.default_stream,
        "set_stream": streams.set_stream,
        "stream": lambda stream=None: streams.StreamContext(stream),
        "StreamContext": streams.StreamContext,
        "Event": streams.Event,
        "Stream": streams.Stream,
        "ExternalStream": streams.ExternalStream,
        "get_stream_from_external": lambda ptr, device=None: streams.ExternalStream(ptr),
        "memory_stats": lambda device=None: collections.defaultdict(int),
        "memory_stats_as_nested_dict": lambda device=None: {},
        "memory_summary": number(""),
        "memory_snapshot": lambda *args: [],
        "get_allocator_backend": number("native"),
        "can_device_access_peer": number(False),
        "is_tf32_supported": number(capability >= (8, 0)),
        "get_gencode_flags": number(""),
        "get_sync_debug_mode": number(0),
        "default_generators": (torch.default_generator,),
        "cudart": lambda: _Silent(),
        "graph": graphs.graph,
        "CUDAGraph": graphs.CUDAGraph,
        "graph_pool_handle": number((0, 0)),
        "make_graphed_callables": lambda callables, *args, **kw: callables,
        "is_current_stream_capturing": lambda: graphs.capturing(),
        "is_bf16_supported": number(True),
        "device_of": type("device_of", (_Device,), {}),
        "mem_get_info": number((64 * 2**30, 80 * 2**30)),
        "manual_seed": lambda seed: torch.default_generator.manual_seed(seed),  # torch.manual_seed calls these
        "manual_seed_all": lambda seed: torch.default_generator.manual_seed(seed),
        "initial_seed": lambda: torch.initial_seed(),
        "seed": lambda: torch.seed(),
        "get_rng_state_all": lambda: [torch.get_rng_state()],
        "set_rng_state_all": lambda states: torch.set_rng_state(states[0]),
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "device": _Device,
    }
    for name in (
        "synchronize",
        "set_device",
        "empty_cache",
        "init",
        "reset_peak_memory_stats",
        "ipc_collect",
        "_lazy_init",
        "_sleep",
        "reset_max_memory_allocated",
        "set_per_process_memory_fraction",
        "reset_accumulated_memory_stats",
        "reset_max_memory_cached",
        "set_sync_debug_mode",
        "check_error",
    ):
        found[name] = number(None)
    for name in (
        "memory_allocated",
        "max_memory_allocated",
        "memory_reserved",
        "max_memory_reserved",
        "memory_cached",
        "max_memory_cached",
        "utilization",
        "memory_usage",
        "device_memory_used",
        "temperature",
        "power_draw",
        "clock_rate",
    ):
        found[name] = number(0)
    for name in ("Float", "Double", "Half", "BFloat16", "Byte", "Char", "Short", "Int", "Long", "Bool"):
        found[f"{name}Tensor"] = getattr(torch, f"{name}Tensor")
    return found


def _accelerator() -> dict[str, Any]:
    """What `torch.accelerator` says of the same device."""
    import torch

    def number(value: Any) -> Callable[..., Any]:
        return lambda *args, **kw: value

    nothing = ("set_device_index", "set_device_idx", "synchronize", "empty_cache", "reset_peak_memory_stats")
    return {
        "is_available": number(True),
        "device_count": number(1),
        "current_device_index": number(0),
        "current_device_idx": number(0),
        "current_accelerator": lambda check_available=False: torch.device("cuda"),
        "current_stream": lambda device=None: streams.current_stream(),
        "set_stream": lambda stream: streams.set_stream(stream),
        "memory_allocated": number(0),
        "max_memory_allocated": number(0),
        "memory_reserved": number(0),
        "max_memory_reserved": number(0),
        **{name: number(None) for name in nothing},
    }


class _Silent:
    """A library of a GPU's whose functions do nothing: CUDA's runtime, its marks for profilers."""

    def __getattr__(self, name: str) -> Callable[..., int]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kw: 0


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

    for name in ("is_autocast_enabled", "get_autocast_dtype"):
        asked = getattr(torch, name)
        patch(torch, name, lambda device_type="cuda", asked=asked: asked(_redirected(device_type)))
    patch(torch, "get_autocast_gpu_dtype", lambda: torch.get_autocast_dtype("cuda"))
    patch(torch.amp, "GradScaler", off)
    patch(torch.cuda.amp, "GradScaler", lambda *args, **kw: off())


def _redirect_modules(patch: Callable[[Any, str, Any], None]) -> None:
    """torch.nn.Module's own moves, default devices, files."""
    import torch

    module, set_default, load = torch.nn.Module.to, torch.set_default_device, torch.load
    default: list[Any] = [None]
    get_default = torch.get_default_device

    def to(self: Any, *args: Any, **kw: Any) -> Any:
        given = {k: _redirected(v) if k == "device" else v for k, v in kw.items()}
        return module(self, *map(_redirected, args), **given)

    def set_default_device(device: Any) -> None:
        default[0] = device if _is_cuda(device) else None
        set_default(_redirected(device))

    def load_(f: Any, map_location: Any = None, **kw: Any) -> Any:
        return load(f, map_location=_redirected(map_location), **kw)

    patch(torch.nn.Module, "to", to)
    shared: Any = torch.UntypedStorage._new_shared  # batches that workers of a loader put together

    def new_shared(cls: Any, size: int, *, device: Any = "cpu") -> Any:
        return shared(size, device=_redirected(device))

    patch(torch.UntypedStorage, "_new_shared", classmethod(new_shared))
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


def _redirect_operators(patch: Callable[[Any, str, Any], None]) -> None:
    """Operators that a program registers for "cuda" are those of its tensors, also where it has others for the CPU; of
    attention, the forms that only GPUs have are done by the plain one; processes meet through the host."""
    import torch
    import torch.nn.attention as attention

    register: Any = torch.library.Library.impl
    ours = set[tuple[str, str, str]]()

    def impl(self: Any, op_name: Any, fn: Any, dispatch_key: str = "", **kw: Any) -> None:
        key = dispatch_key or self.dispatch_key
        what = (self.ns, str(op_name).rpartition("::")[2], key.replace("CUDA", "CPU"))
        module = str(getattr(fn, "__module__", ""))
        if not module.startswith("torch.") or module == "torch._library.custom_ops":  # not torch's own
            if "CUDA" in key:
                ours.add(what)
                key = what[2]
            elif what in ours:
                return
        register(self, op_name, fn, key, **kw)

    patch(torch.library.Library, "impl", impl)
    choose: Any = vars(attention)["_sdpa_kernel"]
    patch(attention, "_sdpa_kernel", lambda backends, *more: choose([*backends, attention.SDPBackend.MATH], *more))
    patch(torch.backends.cuda, "enable_math_sdp", lambda enabled: None)
    if torch.distributed.is_available():
        begin = torch.distributed.init_process_group

        def init_process_group(backend: Any = None, *args: Any, device_id: Any = None, **kw: Any) -> None:
            begin("gloo" if backend is None or "nccl" in str(backend) else backend, *args, **kw)

        more = torch.distributed.new_group

        def new_group(ranks: Any = None, timeout: Any = None, backend: Any = None, **kw: Any) -> Any:
            kw.pop("device_id", None)
            return more(ranks, timeout, "gloo" if "nccl" in str(backend) else backend, **kw)

        patch(torch.distributed, "init_process_group", init_process_group)
        patch(torch.distributed, "new_group", new_group)
        patch(torch.distributed, "is_nccl_available", lambda: True)


def _redirect_tools(patch: Callable[[Any, str, Any], None]) -> None:
    """torch.compile gives the function itself: its compiler asks tensors where they lie, in truth and not. Profilers
    look at the host alone."""
    import torch

    def compile(model: Any = None, **options: Any) -> Any:
        return compile if model is None else model

    patch(torch, "compile", compile)
    for owner, name in (
        (torch.export, "export"),
        (torch.library, "opcheck"),
    ):  # they look at tensors as a compiler does
        patch(owner, name, _plain()(getattr(owner, name)))
    begin: Any = vars(torch.profiler)["_KinetoProfile"].__init__

    def profile(self: Any, *, activities: Any = None, **options: Any) -> None:
        begin(self, activities=[torch.profiler.ProfilerActivity.CPU], **options)

    patch(vars(torch.profiler)["_KinetoProfile"], "__init__", profile)
    patch(torch.autograd.profiler, "emit_nvtx", lambda *args, **kw: contextlib.nullcontext())
    patch(torch.nn.DataParallel, "forward", lambda self, *args, **kw: self.module(*args, **kw))
    patch(torch.backends.cuda, "cufft_plan_cache", _Silent())
    for name in ("preferred_linalg_library", "preferred_blas_library"):
        patch(torch.backends.cuda, name, lambda backend=None: backend)
    for name in ("_record_memory_history", "_dump_snapshot", "_snapshot"):
        patch(torch.cuda.memory, name, lambda *args, **kw: None)


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
    run: Callable[[threading.Thread], None] = vars(threading.Thread)["_bootstrap_inner"]  # programs override `run`

    def inside(self: threading.Thread) -> None:
        with _mode():
            run(self)

    patch(threading.Thread, "_bootstrap_inner", inside)


def _generator() -> Any:
    """torch.Generator, of "cuda" too: all are generators, and say what they were made for."""
    import torch

    base: Any = torch.Generator

    class Kind(type(base)):  # type: ignore[misc]
        def __instancecheck__(cls, x: Any) -> bool:
            return issubclass(type(x), base)

    class Generator(base, metaclass=Kind):  # type: ignore[misc]
        def __new__(cls, device: Any = "cpu") -> Any:
            made = base.__new__(cls, "cpu")
            made.asked = torch.device("cuda", 0) if _is_cuda(device) else torch.device("cpu")
            return made

        def __init__(self, device: Any = "cpu") -> None:
            pass

        @property
        def device(self) -> Any:
            return self.asked

    return Generator


@contextlib.contextmanager
def pretended(capability: tuple[int, int] = (9, 0)) -> Iterator[None]:
    """Inside, "cuda" means the host's memory, and `torch.cuda` describes a device of this compute capability."""
    import torch

    saved: list[tuple[Any, str, Any]] = []

    def patch(owner: Any, name: str, value: Any) -> None:
        saved.append((owner, name, owner.__dict__.get(name, _MISSING)))
        setattr(owner, name, value)

    answers = _answers(capability)
    try:
        for name, value in answers.items():
            patch(torch.cuda, name, value)
            for part in ("memory", "random", "streams", "graphs", "profiler"):
                if name in vars(getattr(torch.cuda, part)):
                    patch(getattr(torch.cuda, part), name, value)
        for name, value in _accelerator().items():
            if hasattr(torch, "accelerator") and hasattr(torch.accelerator, name):
                patch(torch.accelerator, name, value)
        patch(torch.cuda.nvtx, "_nvtx", _Silent())
        patch(torch, "Generator", _generator())
        patch(torch, "Stream", streams.Stream)
        patch(torch, "Event", streams.DeviceEvent)
        _redirect_modules(patch)
        _redirect_autocast(patch)
        _redirect_threads(patch)
        _redirect_gradients(patch)
        _redirect_operators(patch)
        _redirect_tools(patch)
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
