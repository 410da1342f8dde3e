"""Running kernels: jit, argument binding, the thread pool, launching, caches."""

from tiledsl.analysis.evaluate import evaluate
from tiledsl.analysis.work import work as count_work
from tiledsl.runtime.cache import cache_state, default_cache
from tiledsl.runtime.jit import JITFunction, jit
from tiledsl.runtime.kernel import JITKernel, compile
from tiledsl.runtime.packing import pack, unpack
from tiledsl.runtime.pool import thread_count
from tiledsl.runtime.views import address_of, allocate, as_numpy, device_of, is_array, is_torch

__all__ = [
    "JITFunction",
    "JITKernel",
    "address_of",
    "allocate",
    "as_numpy",
    "cache_state",
    "compile",
    "count_work",
    "default_cache",
    "device_of",
    "evaluate",
    "is_array",
    "is_torch",
    "jit",
    "pack",
    "thread_count",
    "unpack",
]
