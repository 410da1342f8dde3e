"""What the device is."""

import functools

import torch

_multiprocessors = 0


@functools.cache
def device_multiprocessors() -> int:
    return torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count


def set_multiprocessors(n: int) -> None:
    global _multiprocessors
    assert 0 < n <= device_multiprocessors()
    _multiprocessors = n


def multiprocessors() -> int:
    return _multiprocessors or device_multiprocessors()


@functools.cache
def is_blackwell() -> bool:
    return torch.cuda.get_device_capability()[0] >= 10
