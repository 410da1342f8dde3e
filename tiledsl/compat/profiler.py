"""`tilelang.profiler`: inputs made from a kernel's parameters, comparisons, and times on the host's clock."""

from __future__ import annotations

import enum
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import tiledsl.language as T
from tiledsl.compat import hosts
from tiledsl.compat.notices import passed_over
from tiledsl.errors import TileError
from tiledsl.surface import evaluate
from tiledsl.tune import times

__all__ = ["Profiler", "TensorSupplyType", "do_bench", "get_tensor_supply"]


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
    """A torch tensor of a dtype by name, where kernels run."""
    made = _supplied(kind, list(shape), name)
    return made.cuda() if hosts.on_gpu() else made


def _supplied(kind: TensorSupplyType, shape: list[int], name: str) -> Any:
    import torch

    if T.dtype(name).is_packed:  # two values a byte
        return torch.randint(0, 256, [*shape[:-1], -(-shape[-1] // 2)]).to(torch.uint8)
    dtype = getattr(torch, name)
    if kind is TensorSupplyType.Zero:
        return torch.zeros(shape).to(dtype)
    if kind is TensorSupplyType.One:
        return torch.ones(shape).to(dtype)
    if name == "bool":
        return torch.randint(0, 2, shape).bool()
    if name.startswith("uint"):
        return torch.randint(0, 3, shape).to(dtype)
    if name.startswith("int") or kind is TensorSupplyType.Integer:
        return torch.randint(-2, 3, shape).to(dtype)
    if kind in (TensorSupplyType.Normal, TensorSupplyType.Randn):
        return torch.randn(shape).to(dtype)
    return (torch.rand(shape) * 2 - 1).to(dtype)


def get_tensor_supply(supply_type: TensorSupplyType = TensorSupplyType.Auto) -> Callable[[Any], Any]:
    """A function that makes a tensor for a parameter of a kernel (`KernelParam`)."""
    return lambda param: supply(supply_type, param.shape, param.dtype.name)


# Options of other versions, which say how to use a GPU.
_OPTIONS = frozenset("fast_flush backend profiler device_type verbose with_stack cache_size".split())


def do_bench(
    fn: Callable[[], Any],
    warmup: float = 25,
    rep: float = 100,
    _n_warmup: int = 0,
    _n_repeat: int = 0,
    quantiles: Sequence[float] | None = None,
    return_mode: str = "mean",
    grad_to_none: Sequence[Any] | None = None,
    n_warmup: int = 0,
    n_repeat: int = 0,
    **options: Any,
) -> Any:
    """Milliseconds of a call: mean, min, max or median by return_mode, all of them ascending, or quantiles, of runs for
    `rep` milliseconds. The gradients of the tensors in grad_to_none are dropped before each. ValueError for another
    return_mode."""
    modes: dict[str, Callable[[list[float]], Any]] = {
        "mean": statistics.fmean, "min": min, "max": max, "median": statistics.median, "all": list,
    }  # fmt: skip
    if return_mode not in modes:
        raise ValueError(f"do_bench: return_mode is one of {', '.join(modes)}, not {return_mode!r}")
    passed_over("do_bench", options, _OPTIONS)

    def run() -> None:
        for x in grad_to_none or ():
            x.grad = None
        fn()

    found = times(run, warmup, rep, _n_warmup or n_warmup, _n_repeat or n_repeat)
    if quantiles is not None:
        wanted: list[float] = np.quantile(found, list(quantiles)).tolist()
        return wanted[0] if len(wanted) == 1 else wanted
    return modes[return_mode](found)


class Profiler:
    """Runs a kernel on inputs of its own."""

    def __init__(self, kernel: Any, supply_type: TensorSupplyType = TensorSupplyType.Auto) -> None:
        self.kernel, self.supply_type = kernel, supply_type

    def __call__(self, *args: Any, **kw: Any) -> Any:
        return self.kernel(*args, **kw)

    @property
    def func(self) -> Any:
        """The kernel."""
        return self.kernel

    adapter = func

    @property
    def params(self) -> list[Any]:
        return list(self.kernel.params)

    @property
    def result_idx(self) -> list[int]:
        return list(self.kernel.out_idx)

    def with_default_adapter(self, adapter: Any) -> Profiler:
        """Kernels are called in one way only."""
        return self

    def determine_profiler(self, func: Any = None) -> str:
        return "torch"

    def _get_inputs(
        self, with_output: bool = False, dynamic_symbolic_constraints: Mapping[str, int] | None = None
    ) -> list[Any]:
        """dynamic_symbolic_constraints: values of the symbols in shapes, by name."""
        found, known = [], dynamic_symbolic_constraints or {}
        env = {v: known[v.name] for v in self.kernel.prim_func.symbols if v.name in known}
        for i, p in enumerate(self.kernel.params):
            if i in self.kernel.out_idx and not with_output:
                continue
            if p.buffer is None:
                raise ValueError(f"{p.name} is a scalar: pass input_tensors=")
            try:
                shape = [int(evaluate(extent, env)) for extent in p.buffer.shape]
            except TileError:
                raise ValueError(f"the shape of {p.name} is symbolic: pass input_tensors=") from None
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
        got = got if self.result_idx else inputs
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

    def do_bench(
        self,
        func: Callable[..., Any] | None = None,
        warmup: float = 25,
        rep: float = 100,
        n_warmup: int = 0,
        n_repeat: int = 0,
        input_tensors: Sequence[Any] | None = None,
        dynamic_symbolic_constraints: Mapping[str, int] | None = None,
        **options: Any,
    ) -> Any:
        """The module's `do_bench` of the kernel, or of func, on these tensors or on inputs of its own."""
        inputs = input_tensors
        if inputs is None:
            inputs = self._get_inputs(dynamic_symbolic_constraints=dynamic_symbolic_constraints)
        run = func or self.kernel
        return do_bench(lambda: run(*inputs), warmup, rep, n_warmup, n_repeat, **options)


def _listed(x: Any) -> list[Any]:
    return list(x) if isinstance(x, (list, tuple)) else [x]


def _copy(x: Any) -> Any:
    return x.clone() if hasattr(x, "clone") else x
