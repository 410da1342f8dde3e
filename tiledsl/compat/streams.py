"""Streams and events of the pretended device: work is done when it is asked for, so streams only have names, and events
are times on the host's clock."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

__all__ = [
    "DeviceEvent",
    "Event",
    "ExternalStream",
    "Stream",
    "StreamContext",
    "current_stream",
    "default_stream",
    "set_stream",
]

_numbers = itertools.count(1)


class Stream:
    """torch.cuda.Stream."""

    device_index, device_type = 0, 1

    def __init__(self, device: Any = None, priority: int = 0, **more: Any) -> None:
        self.priority, self.stream_id = priority, more.get("stream_id", next(_numbers))

    @property
    def device(self) -> Any:
        import torch

        return torch.device("cuda", 0)

    @property
    def cuda_stream(self) -> int:
        return int(self.stream_id)

    native_handle = _as_parameter_ = cuda_stream

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self.stream_id == other.stream_id

    def __hash__(self) -> int:
        return hash(self.stream_id)

    def __repr__(self) -> str:
        return f"<torch.cuda.Stream device=cuda:0 cuda_stream={self.cuda_stream:#x}>"

    def __enter__(self) -> Stream:
        _open.streams.append(self)
        return self

    def __exit__(self, *exc: Any) -> None:
        _open.streams.pop()

    @staticmethod
    def priority_range() -> tuple[int, int]:
        return (0, -5)

    def is_capturing(self) -> bool:
        from tiledsl.compat import graphs

        return graphs.capturing()

    def synchronize(self) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        pass

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def query(self) -> bool:
        return True


class ExternalStream(Stream):
    """torch.cuda.ExternalStream: a stream by its number."""

    def __init__(self, stream_ptr: int, device: Any = None, **more: Any) -> None:
        super().__init__(device, stream_id=stream_ptr)


class _Open(threading.local):
    """The streams that a thread has entered, the innermost last; the first is its own."""

    def __init__(self) -> None:
        self.streams = [_DEFAULT]


_DEFAULT = Stream(stream_id=0)
_open = _Open()


def default_stream(device: Any = None) -> Stream:
    return _DEFAULT


def current_stream(device: Any = None) -> Stream:
    return _open.streams[-1]


def set_stream(stream: Stream | None) -> None:
    if stream is not None:
        _open.streams[-1] = stream


class StreamContext:
    """torch.cuda.stream(s): inside, s is the current stream; None changes nothing."""

    def __init__(self, stream: Stream | None = None) -> None:
        self.stream = stream

    def __enter__(self) -> None:
        _open.streams.append(self.stream or current_stream())

    def __exit__(self, *exc: Any) -> None:
        _open.streams.pop()


class Event:
    """torch.cuda.Event. Without enable_timing, and before it is recorded, it has no time."""

    device = Stream.device
    cuda_event = 0

    def __init__(
        self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False, external: bool = False
    ) -> None:
        self.timing = enable_timing
        self.at: float | None = None

    def record(self, stream: Stream | None = None) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds. RuntimeError for events without times."""
        if not (self.timing and end.timing):
            raise RuntimeError("both events must be made with enable_timing=True")
        if self.at is None or end.at is None:
            raise RuntimeError("both events must be recorded before the time between them is known")
        return (end.at - self.at) * 1e3

    def synchronize(self) -> None:
        pass

    def wait(self, stream: Stream | None = None) -> None:
        pass

    def query(self) -> bool:
        return True

    def ipc_handle(self) -> bytes:
        return b""


class DeviceEvent(Event):
    """torch.Event, which names its device first."""

    def __init__(self, device: Any = None, **options: Any) -> None:
        super().__init__(**options)
