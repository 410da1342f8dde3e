"""`tilelang.testing`: comparisons that allow a share of misses, and marks that ask for a device."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

__all__ = ["main", "marks", "process_func", "set_random_seed", "torch_assert_close"]


def set_random_seed(seed: int = 42) -> None:
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def main() -> None:
    """Run the tests of the calling file."""
    import inspect

    import pytest

    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    sys.exit(pytest.main([frame.f_back.f_globals["__file__"], *sys.argv[1:]]))


def torch_assert_close(
    tensor_a: Any,
    tensor_b: Any,
    rtol: float = 1e-2,
    atol: float = 1e-3,
    max_mismatched_ratio: float = 0.001,
    verbose: bool = False,
    equal_nan: bool = True,
    check_device: bool = True,
    check_dtype: bool = True,
    check_layout: bool = True,
    check_stride: bool = False,
    base_name: str = "",
    ref_name: str = "",
) -> bool:
    """At most this share of the elements differ by more than atol + rtol * |b|."""
    import torch

    assert tensor_a.shape == tensor_b.shape, f"shapes differ: {tuple(tensor_a.shape)} and {tuple(tensor_b.shape)}"
    if check_dtype:
        assert tensor_a.dtype == tensor_b.dtype, f"dtypes differ: {tensor_a.dtype} and {tensor_b.dtype}"
    a, b = tensor_a.to(torch.float64), tensor_b.to(torch.float64)
    wrong = ~torch.isclose(a, b, rtol=rtol, atol=atol, equal_nan=equal_nan)
    count = int(wrong.sum())
    if count > max_mismatched_ratio * max(1, a.numel()):
        at = tuple(int(i) for i in wrong.nonzero()[0])
        raise AssertionError(
            f"{count} of {a.numel()} elements differ (allowed: {max_mismatched_ratio:.2%}), first at {at}: "
            f"{float(a[at])} and {float(b[at])}"
        )
    return True


def marks(name: str) -> Callable[..., Any]:
    """`requires_cuda` and its relatives: the pretended device has what they ask for, so the test runs."""
    import pytest

    skipped = {"requires_rocm": "ROCm", "requires_metal": "Metal", "requires_llvm": ""}
    reason = skipped.get(name)

    def mark(*args: Any, **kw: Any) -> Any:
        if args and callable(args[0]):
            return pytest.mark.skip(reason=f"needs {reason}")(args[0]) if reason else args[0]
        return lambda f: pytest.mark.skip(reason=f"needs {reason}")(f) if reason else f

    return mark


def process_func(func: Callable[..., Any], name: str | None = None, **kwargs: Any) -> Any:
    return func(**kwargs)
