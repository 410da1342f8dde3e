"""torch.cuda.CUDAGraph on CPU tensors: what is captured is remembered, operation by operation, and replayed into the
same memory."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tiledsl.compat import streams

__all__ = ["CUDAGraph", "capturing", "graph", "launch"]


class _State(threading.local):
    graph: CUDAGraph | None = None


_state = _State()


def capturing() -> bool:
    """A graph is being captured in this thread."""
    return _state.graph is not None


def launch(call: Callable[..., Any], args: tuple[Any, ...], kw: dict[str, Any]) -> Any:
    """The call of a kernel, remembered where a graph is being captured."""
    return call(*args, **kw) if _state.graph is None else _state.graph.record(call, args, kw, _tensors((args, kw)))


class CUDAGraph:
    """What ran between the beginning and the end of its capture. The capture itself leaves older memory as it was."""

    def __init__(self, keep_graph: bool = False) -> None:
        self.calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], list[Any]]] = []
        self._saved: dict[int, tuple[Any, Any]] = {}  # memory that is written while capturing, and what was there
        self._mode: Any = None
        self._paused = False

    def record(self, call: Callable[..., Any], args: tuple[Any, ...], kw: dict[str, Any], written: list[Any]) -> Any:
        """Runs the call and remembers it. written: tensors that it may change."""
        with self._pause():
            for memory in (t.untyped_storage() for t in written):
                if memory.data_ptr() not in self._saved:
                    self._saved[memory.data_ptr()] = memory, memory.clone()
            result = call(*args, **kw)
        self.calls.append((call, args, kw, _tensors(result)))
        return result

    @contextlib.contextmanager
    def _pause(self) -> Iterator[None]:
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def capture_begin(self, *args: Any, **kw: Any) -> None:
        """From here on, what torch and kernels do in this thread is remembered."""
        from torch.utils._python_dispatch import TorchDispatchMode

        graph: CUDAGraph = self

        class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                kwargs = dict(kwargs or {})
                if graph._paused:
                    return func(*args, **kwargs)
                return graph.record(func, args, kwargs, _changed(func, args, kwargs))

        self.reset()
        _state.graph, self._mode = self, Recorder()  # type: ignore[no-untyped-call]
        self._mode.__enter__()

    def capture_end(self) -> None:
        """The end of what is remembered."""
        self._mode.__exit__(None, None, None)
        _state.graph = self._mode = None
        for memory, before in self._saved.values():
            memory.copy_(before)
        self._saved.clear()

    def replay(self) -> None:
        """Everything again, on what lies now in the memory of the inputs."""
        import torch

        from tiledsl.compat.pretended_cuda import real

        with real(), torch.no_grad():
            for call, args, kw, kept in self.calls:
                for old, new in zip(kept, _tensors(call(*args, **kw)), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)

    def reset(self) -> None:
        """Forgets everything."""
        self.calls.clear()
        self._saved.clear()

    def instantiate(self) -> None:
        """Nothing is to be prepared."""

    enable_debug_mode = instantiate

    def debug_dump(self, path: str) -> None:
        """Which calls there are, in a file."""
        with open(path, "w", encoding="utf-8") as f:
            f.writelines(f"{call}\n" for call, *_ in self.calls)

    def pool(self) -> tuple[int, int]:
        return (0, 0)


class graph:
    """torch.cuda.graph: `with torch.cuda.graph(g):` captures."""

    def __init__(self, cuda_graph: CUDAGraph, pool: Any = None, stream: Any = None, **more: Any) -> None:
        self.cuda_graph, self.stream = cuda_graph, stream or streams.Stream()

    def __enter__(self) -> None:
        self.stream.__enter__()
        self.cuda_graph.capture_begin()

    def __exit__(self, *exc: Any) -> None:
        self.cuda_graph.capture_end()
        self.stream.__exit__()


def _tensors(value: Any) -> list[Any]:
    """The tensors in a nest of tuples, lists and dicts."""
    import torch

    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [t for x in items for t in _tensors(x)]


def _changed(func: Any, args: tuple[Any, ...], kw: dict[str, Any]) -> list[Any]:
    """The tensors among an operation's arguments that it writes."""
    found = []
    for i, a in enumerate(func._schema.arguments):
        if a.alias_info is not None and a.alias_info.is_write:
            found += _tensors(args[i] if i < len(args) else kw.get(a.name))
    return found
