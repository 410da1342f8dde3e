"""Running kernels: jit, argument binding, the thread pool, launching, caches."""

from tiledsl.runtime.jit import JITFunction, jit
from tiledsl.runtime.kernel import JITKernel, compile
from tiledsl.runtime.views import address_of, allocate, device_of, is_torch

__all__ = ["JITFunction", "JITKernel", "address_of", "allocate", "compile", "device_of", "is_torch", "jit"]
