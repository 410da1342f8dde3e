"""Running kernels: jit, argument binding, the thread pool, launching, caches."""
