"""Small helpers that programs take from TileLang's host modules: numbers, types, what the device has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tiledsl import config
from tiledsl.compat.pretended_cuda import MULTIPROCESSORS

__all__ = ["align", "cdiv", "next_power_of_2", "prev_power_of_2"]

# What `tilelang.carver.arch.driver` offers.
DRIVER = (
    "get_cuda_device_properties",
    "get_device_attribute",
    "get_device_name",
    "get_max_dynamic_shared_size_bytes",
    "get_num_sms",
    "get_persisting_l2_cache_max_size",
    "get_registers_per_block",
    "get_shared_memory_per_block",
)


def cdiv(a: int, b: int) -> int:
    """The quotient rounded up."""
    return -(-a // b)


def align(a: int, b: int) -> int:
    """a rounded up to a multiple of b."""
    return cdiv(a, b) * b


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length() if n > 0 else 0


def prev_power_of_2(n: int) -> int:
    """The largest power of two that is at most n."""
    return 1 << (n.bit_length() - 1) if n > 0 else 0


def map_torch_type(name: Any) -> Any:
    """The torch dtype of a TileLang dtype."""
    import tiledsl.language as T

    return T.dtype(name).as_torch()


def compute_version() -> str:
    """The compute capability that the program is told."""
    return config.PRETEND.get() or "9.0"


def target(as_object: bool = False) -> Any:
    """What `determine_target` says."""
    arch = f"sm_{compute_version().replace('.', '')}"
    return SimpleNamespace(kind=SimpleNamespace(name="cuda"), arch=arch) if as_object else f"cuda -arch={arch}"


def get_arch(target: Any = "cuda") -> Any:
    """What a program asks about the architecture."""
    return SimpleNamespace(
        platform="CUDA",
        sm_version=int(compute_version().replace(".", "")),
        compute_max_core=MULTIPROCESSORS,
        warp_size=32,
        smem_cap=get_shared_memory_per_block(),
        reg_cap=65536,
        l2_cache_size_bytes=50 * 2**20,
    )


def get_num_sms(device_id: int = 0) -> int:
    return MULTIPROCESSORS


def get_device_name(device_id: int = 0) -> str:
    return "tiledsl on CPU"


def get_shared_memory_per_block(device_id: int = 0, format: str = "bytes") -> int:
    return 48 * 2**10 // {"bytes": 1, "kb": 2**10, "mb": 2**20}[format]


def get_max_dynamic_shared_size_bytes(device_id: int = 0, format: str = "bytes") -> int:
    return 227 * 2**10 // {"bytes": 1, "kb": 2**10, "mb": 2**20}[format]


def get_persisting_l2_cache_max_size(device_id: int = 0) -> int:
    return 32 * 2**20


def get_registers_per_block(device_id: int = 0) -> int:
    return 65536


def get_cuda_device_properties(device_id: int = 0) -> Any:
    import torch

    return torch.cuda.get_device_properties(device_id)


def get_device_attribute(attr_id: int, device_id: int = 0) -> int:
    """CUDA's numbered attributes that programs ask for: 16 is the number of multiprocessors."""
    known = {1: 1024, 8: get_shared_memory_per_block(), 10: 32, 12: 65536, 16: MULTIPROCESSORS, 97: 227 * 2**10}
    if attr_id not in known:
        raise NotImplementedError(f"device attribute {attr_id} is not known here")
    return known[attr_id]
