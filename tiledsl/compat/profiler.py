"""`tilelang.profiler`: inputs made from a kernel's parameters, comparisons, and times on the host's clock."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Sequence
from typing import Any

import tiledsl.language as T

__all__ = ["Profiler", "TensorSupplyType", "do_bench"]


class TensorSupplyType(enum.Enum):
    """How inputs are made."""

    Integer = 1
    Uniform = 2
    Normal = 3
    Randn = 4
    Zero = 5
    One = 6
    Auto = 7


def supply(kind: TensorSupplyType, shape: Sequence[int], name: str) -> Any:
    """A torch tensor of a dtype by name."""
    import torch

    if T.dtype(name).is_packed:  # two values a byte
        return torch.randint(0, 256, [*shape[:-1], -(-shape[-1] // 2)]).to(torch.uint8)
    dtype, shape = getattr(torch, name), list(shape)
    if kind is TensorSupplyType.Zero:
        return torch.zeros(shape, dtype=dtype)
    if kind is TensorSupplyType.One:
        return torch.ones(shape, dtype=dtype)
    if name == "bool":
        return torch.randint(0, 2, shape).bool()
    if name.startswith("uint"):
        return torch.randint(0, 3, shape, dtype=dtype)
    if name.startswith("int"):
        return torch.randint(-2, 3, shape, dtype=dtype)
    if kind is TensorSupplyType.Integer:
        return torch.randint(-2, 3, shape).to(dtype)
    if kind in (TensorSupplyType.Normal, TensorSupplyType.Randn):
        return torch.randn(shape).to(dtype)
    return (torch.rand(shape) * 2 - 1).to(dtype)


def do_bench(
    fn: Callable[[], Any],
    warmup: float = 25,
    rep: float = 100,
    _n_warmup: int = 0,
    _n_repeat: int = 0,
    grad_to_none: Any = None,
    quantiles: Sequence[float] | None = None,
    fast_flush: bool = True,
    backend: str = "event",
    return_mode: str = "mean",
    **hints: Any,
) -> Any:
    """Milliseconds of a call: mean, min, max or median by return_mode, or quantiles, of runs for `rep` milliseconds."""
    fn()
    start = time.perf_counter()
    fn()
    once = max(1e-7, time.perf_counter() - start)
    for _ in range(_n_warmup or min(100, int(warmup / 1e3 / once))):
        fn()
    times = []
    for _ in range(_n_repeat or max(1, min(1000, int(rep / 1e3 / once)))):
        start = time.perf_counter()
        fn()
        times.append((time.perf_counter() - start) * 1e3)
    times.sort()
    if quantiles is not None:
        found = [times[min(len(times) - 1, int(q * len(times)))] for q in quantiles]
        return found[0] if len(found) == 1 else found
    return {"mean": sum(times) / len(times), "min": times[0], "max": times[-1], "median": times[len(times) // 2]}[
        return_mode
    ]


class Profiler:
    """Runs a kernel on inputs of its own."""

    def __init__(self, kernel: Any, supply_type: TensorSupplyType = TensorSupplyType.Auto) -> None:
        self.kernel, self.supply_type = kernel, supply_type

    def _get_inputs(self, with_output: bool = False) -> list[Any]:
        found = []
        for i, p in enumerate(self.kernel.params):
            if i in self.kernel.out_idx and not with_output:
                continue
            if p.buffer is None:
                raise ValueError(f"{p.name} is a scalar: pass input_tensors=")
            shape = p.buffer.const_shape
            if shape is None:
                raise ValueError(f"the shape of {p.name} is symbolic: pass input_tensors=")
            found.append(supply(self.supply_type, shape, p.buffer.dtype.name))
        return found

    def run_once(self, func: Callable[..., Any] | None = None) -> Any:
        return (func or self.kernel)(*self._get_inputs())

    def assert_allclose(
        self,
        reference_program: Callable[..., Any],
        input_tensors: Sequence[Any] | None = None,
        atol: float = 1e-2,
        rtol: float = 1e-2,
        max_mismatched_ratio: float = 0.01,
    ) -> None:
        """The kernel's outputs, or what it leaves in its arguments, against a reference on the same inputs."""
        from tiledsl.compat.testing import torch_assert_close

        inputs = list(input_tensors) if input_tensors is not None else self._get_inputs()
        want = reference_program(*[_copy(x) for x in inputs])
        got = self.kernel(*inputs)
        if want is None:
            return
        got = inputs if got is None else got
        pairs = zip(_listed(got), _listed(want), strict=False)
        for a, b in pairs:
            if a is not None and b is not None:
                torch_assert_close(a, b, rtol=rtol, atol=atol, max_mismatched_ratio=max_mismatched_ratio)

    def manual_assert_close(
        self,
        reference_program: Callable[..., Any],
        input_tensors: Sequence[Any] | None = None,
        manual_check_prog: Callable[..., Any] | None = None,
    ) -> None:
        inputs = list(input_tensors) if input_tensors is not None else self._get_inputs()
        assert manual_check_prog is not None
        manual_check_prog(_listed(self.kernel(*inputs)), _listed(reference_program(*inputs)))

    def assert_consistent(self, repeat: int = 10) -> None:
        """The same inputs give the same results every time."""
        import torch

        inputs = self._get_inputs()
        first = _listed(self.kernel(*inputs))
        for _ in range(repeat):
            for a, b in zip(_listed(self.kernel(*inputs)), first, strict=True):
                assert torch.equal(a, b), "results differ between runs"

    def do_bench(self, func: Callable[..., Any] | None = None, input_tensors: Any = None, **options: Any) -> Any:
        inputs = list(input_tensors) if input_tensors is not None else self._get_inputs()
        run = func or self.kernel
        names = {"n_warmup": "_n_warmup", "n_repeat": "_n_repeat"}
        return do_bench(lambda: run(*inputs), **{names.get(k, k): v for k, v in options.items()})


def _listed(x: Any) -> list[Any]:
    return list(x) if isinstance(x, (list, tuple)) else [x]


def _copy(x: Any) -> Any:
    return x.clone() if hasattr(x, "clone") else x
