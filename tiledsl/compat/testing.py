"""`tilelang.testing`: comparisons that allow a share of misses, and marks that ask for a device."""

from __future__ import annotations

import importlib.util
import inspect
import operator
import sys
from collections.abc import Callable
from typing import Any

from tiledsl.compat.hosts import compute_version

__all__ = ["main", "marks", "process_func", "regression", "set_random_seed", "torch_assert_close"]


def set_random_seed(seed: int = 42) -> None:
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def main() -> None:
    """Run the tests of the calling file."""
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
    """`requires_cuda` and its relatives: a test runs where the pretended device, of its capability, has what is asked
    for, and where the packages are that `requires_package` names."""
    import pytest

    def mark(*args: Any, **kw: Any) -> Any:
        bare = args[:1] if args and callable(args[0]) else ()
        reason = _lacking(name, *args[len(bare) :], **kw)
        skip: Any = pytest.mark.skip(reason=f"needs {reason}") if reason else _same
        return skip(bare[0]) if bare else skip

    return mark


_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "ge": operator.ge, "gt": operator.gt, "le": operator.le, "lt": operator.lt, "eq": operator.eq,
}  # fmt: skip


def _same(f: Any) -> Any:
    return f


def _lacking(mark: str, *args: Any, mode: str = "ge", **kw: Any) -> str | None:
    """What a mark asks for that is not here."""
    other = {"requires_rocm": "ROCm", "requires_metal": "Metal", "requires_multi_gpus": "several GPUs"}.get(mark)
    if other or mark.startswith("requires_rocm"):
        return other or "ROCm"
    if mark == "requires_package":
        missing = [p for p in args if importlib.util.find_spec(p) is None]
        return f"the package {missing[0]}" if missing else None
    if mark.startswith("requires_cuda_compute_version"):
        order = mark.removeprefix("requires_cuda_compute_version").lstrip("_") or mode
        asked = [*map(int, (*args, *kw.values())), 0][:2]
        has = [*map(int, compute_version().split(".")), 0][:2]
        return None if _ORDERS[order](has, asked) else f"compute capability {order} {asked[0]}.{asked[1]}"
    return None


def regression(prefixes: Any = None, verbose: bool = True) -> None:
    """Calls the functions of the calling file that are named regression_..."""
    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    for name, found in list(frame.f_back.f_globals.items()):
        if name.startswith("regression_") and callable(found):
            found()


def process_func(func: Callable[..., Any], name: str | None = None, **kwargs: Any) -> Any:
    return func(**kwargs)
