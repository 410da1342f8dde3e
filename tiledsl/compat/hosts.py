"""Small helpers that programs take from TileLang's host modules: numbers, types, what the device has."""

from __future__ import annotations

import os
from typing import Any

from tiledsl import config
from tiledsl.compat.pretended_cuda import MULTIPROCESSORS as MULTIPROCESSORS

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


cache_used = [True]  # what the program said last; kernels are found by their content, so that a cache cannot harm


def use_cache(on: bool) -> None:
    cache_used[:] = [on]


def set_cache_dir(path: Any) -> None:
    """Where compiled kernels are kept from now on."""
    os.environ[config.CACHE_DIR.env] = str(path)


def on_gpu() -> bool:
    """Kernels run on a real GPU; everywhere else the device is pretended."""
    return config.TARGET.get().partition(":")[0] == "cuda"


def map_torch_type(name: Any) -> Any:
    """The torch dtype of a TileLang dtype."""
    import tiledsl.language as T

    return T.dtype(name).as_torch()


def compute_version() -> str:
    """The compute capability that the program is told."""
    return config.PRETEND.get() or "9.0"


def target(as_object: bool = False) -> Any:
    """What `determine_target` says."""
    from tiledsl.compat.tvm import Target

    return Target() if as_object else str(Target())


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


def scope_tests() -> dict[str, Any]:
    """`is_shared(buffer)` and its relatives of `tilelang.utils.language`."""

    def scoped(*scopes: str) -> Any:
        return lambda buffer: getattr(getattr(buffer, "buffer", buffer), "scope", "") in scopes

    return {
        "is_global": scoped("global"), "is_shared": scoped("shared"), "is_shared_dynamic": scoped("shared"),
        "is_fragment": scoped("fragment"), "is_local": scoped("local"), "is_local_var": scoped("var"),
        "is_full_region": lambda region: getattr(region, "region", region) is region or region.region.whole,
    }  # fmt: skip


def target_tests() -> dict[str, Any]:
    """`target_is_cuda(target)` and its relatives of `tilelang.utils.target`, about the pretended device."""
    version = int(compute_version().replace(".", ""))
    generations = {"volta": (70, 75), "turing": (75, 80), "ampere": (80, 90), "hopper": (90, 100), "sm100": (100, 110)}
    return {
        "target_is_cuda": lambda target=None: True,
        **{f"target_is_{n}": lambda target=None: False for n in ("hip", "rocm", "metal", "cpu", "c", "llvm", "cdna")},
        **{f"target_is_{n}": lambda target=None, r=low <= version < high: r for n, (low, high) in generations.items()},
        "target_get_warp_size": lambda target=None: 32,
        "check_cuda_availability": lambda: True,
        "check_hip_availability": lambda: False,
        "check_metal_availability": lambda: False,
    }


def nvcc() -> dict[str, Any]:
    """What `tilelang.contrib.nvcc` says of the pretended device, whose units of matrices and narrow types are there."""
    kinds = ("fp16", "int8", "tensorcore", "bf16", "fp8", "cudagraph", "tma", "pdl")
    return {
        "get_target_compute_version": lambda target=None: compute_version(),
        "get_target_arch": lambda version=None: (version or compute_version()).replace(".", ""),
        "parse_compute_version": lambda version: tuple(map(int, f"{version}.0".split(".")[:2])),
        "get_cuda_version": lambda cuda_path=None: (12, 8),
        **{f"have_{kind}": lambda *args, **kw: True for kind in kinds},
    }


class Environment:
    """`tilelang.env`: switches of caches do nothing, and variables are those of the process, or empty."""

    def __init__(self, **members: Any) -> None:
        vars(self).update(members)

    def __getattr__(self, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return os.environ.get(name, "")
