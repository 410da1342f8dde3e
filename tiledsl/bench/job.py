"""What a job of the bench is, and what its makers share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

__all__ = ["BF16", "Array", "Job", "Maker", "Thunk", "array", "large", "tensor", "torch_module"]

Array = np.ndarray[Any, Any]
Thunk = Callable[[], Any]
Maker = Callable[[str | None, bool], dict[str, Thunk]]

BF16 = ml_dtypes.bfloat16


@dataclass(frozen=True)
class Job:
    """One line of the table.

    make     (target, small) -> the contestants, ours ("tiledsl") first; each call computes the job and returns the
             result. small: sizes for a test of the job itself
    work     operations: products and sums of floats each count one
    moved    bytes that have to come from memory and go there; 0 where everything stays in the caches
    written  some of these bytes are written
    integer  the operations are products of bytes summed in int32
    told     a call returns the seconds that count, instead of the result
    """

    name: str
    make: Maker
    work: float = 0.0
    moved: float = 0.0
    written: bool = True
    integer: bool = False
    told: bool = False


def torch_module() -> Any:
    """torch, or None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    return torch


def array(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    """Normally distributed numbers."""
    return rng.standard_normal(shape, dtype=np.float32).astype(dtype)


def large(shape: tuple[int, ...], dtype: Any, seed: int) -> Array:
    """Random numbers, a mebi of them repeated: what is large takes time to draw. It begins with a line of memory, as
    torch's arrays do."""
    drawn = array(np.random.default_rng(seed), (1 << 20,), dtype)
    count = math.prod(shape)
    memory = np.empty(count * drawn.itemsize + 64, np.uint8)
    start = -memory.ctypes.data % 64
    made: Array = memory[start : start + count * drawn.itemsize].view(dtype)
    for i in range(0, count, len(drawn)):
        made[i : i + len(drawn)] = drawn[: count - i]
    return made.reshape(shape)


def tensor(torch: Any, x: Array) -> Any:
    """The same memory as a torch tensor."""
    if x.dtype == BF16:
        return torch.from_numpy(x.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(x)
