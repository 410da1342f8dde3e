"""`tilelang.carver`: templates of common computations that recommend tile sizes, for tuners to measure.

The recommendations come from a small model of a machine (waves of blocks, traffic, fast memory). They are places to
start from: what is best is measured.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import tiledsl.language as T
from tiledsl import config
from tiledsl.compat import carver_functions as functions
from tiledsl.compat import hosts

__all__ = [
    "Arch", "CDNA", "CPU", "CUDA", "ConvTemplate", "ElementwiseTemplate", "FlashAttentionTemplate", "GEMVTemplate",
    "GeneralReductionTemplate", "Hint", "METAL", "MatmulTemplate", "NoRasterization", "RDNA", "Rasterization2DColumn",
    "Rasterization2DRow", "Template", "arch_tests", "auto_infer_current_arch",
]  # fmt: skip

WARP = 32


# -- machines --------------------------------------------------------------------------------------------------------
class Arch:
    """A machine as templates see it: the pretended GPU, or for "CPU" this one's cores."""

    def __init__(self, platform: str, target: Any = None) -> None:
        self.platform, self.target = platform, target
        on_cpu = platform == "CPU"
        version = hosts.compute_version()
        self.name = version if platform == "CUDA" else platform.lower()
        self.compute_capability = self.name.replace(".", "")
        self.sm_version = int(version.replace(".", "")) if platform == "CUDA" else 0
        self.compute_max_core = config.usable_cores() if on_cpu else hosts.MULTIPROCESSORS
        self.warp_size = 1 if on_cpu else 64 if platform == "CDNA" else WARP
        self.smem_cap = 2**20 if on_cpu else hosts.get_max_dynamic_shared_size_bytes()
        self.max_smem_usage = 2 * self.smem_cap
        self.reg_cap, self.sm_partition = 65536, 4
        self.l2_cache_size_bytes = 50 * 2**20
        self.transaction_size = [32, 128]
        self.bandwidth = [750, 12080]
        self.intensity = 16 if on_cpu else 256  # operations per byte of memory that it is balanced at

    def __repr__(self) -> str:
        return f"{self.platform}({self.compute_capability})"


def _platform(name: str) -> type[Any]:
    def begin(self: Arch, target: Any = None) -> None:
        Arch.__init__(self, name, target)

    return type(name, (Arch,), {"__init__": begin})


CUDA, CDNA, RDNA, METAL, CPU = map(_platform, ("CUDA", "CDNA", "RDNA", "METAL", "CPU"))


def auto_infer_current_arch() -> Arch:
    """The machine that the program is told it runs on."""
    found: Arch = CUDA()
    return found


def arch_tests() -> dict[str, Callable[[Arch], bool]]:
    """`is_cuda_arch`, `is_hopper_arch` and their relatives."""
    platforms = {f"is_{p.lower()}_arch": p for p in ("CUDA", "CDNA", "RDNA", "METAL", "CPU")}
    generations = {"volta": (70, 75), "ampere": (80, 89), "ada": (89, 90), "hopper": (90, 100), "blackwell": (100, 130)}
    found: dict[str, Callable[[Arch], bool]] = {
        name: lambda arch, p=p: arch.platform == p  # type: ignore[misc]
        for name, p in platforms.items()
    }
    for name, (low, high) in generations.items():
        found[f"is_{name}_arch"] = lambda arch, low=low, high=high: low <= arch.sm_version < high  # type: ignore[misc]
    found["has_mma_support"] = lambda arch: arch.sm_version >= 80
    return found


# -- hints -----------------------------------------------------------------------------------------------------------
class NoRasterization:
    """Blocks go in the order of the grid."""

    panel_width_ = 1

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.panel_width_}>"


class Rasterization2DRow(NoRasterization):
    """Blocks go in panels of rows."""

    def __init__(self, panel_width: int = 4) -> None:
        self.panel_width_ = panel_width


class Rasterization2DColumn(Rasterization2DRow):
    """Blocks go in panels of columns."""


@dataclass
class Hint:
    """One recommendation: tile of a block and of a warp along the spatial axes, step along the reduced ones."""

    block: list[int]
    warp: list[int] = field(default_factory=list)
    rstep: list[int] = field(default_factory=list)
    thread: list[int] = field(default_factory=list)
    reduce_thread: list[int] = field(default_factory=list)
    pipeline_stage: int = 1
    use_async: bool = False
    use_tc: Any = None
    split_k_factor: int = 1
    vectorize: dict[str, int] = field(default_factory=dict)
    rasterization_plan: NoRasterization = field(default_factory=NoRasterization)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return math.prod(self.thread)

    def to_dict(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


def _powers(low: int, high: int, size: int) -> list[int]:
    """Powers of two from low to high, and not beyond what covers `size`."""
    most = max(low, min(high, hosts.next_power_of_2(size)))
    return [1 << k for k in range(low.bit_length() - 1, most.bit_length())]


def _bytes(dtype: Any) -> float:
    return T.dtype(dtype).bits / 8


def _partition(m: int, n: int, warps: int) -> tuple[int, int] | None:
    """Rows and columns of warps over an m x n tile: each has at least 16 x 8, as square as can be."""
    ways = [(r, warps // r) for r in _powers(1, warps, warps) if m % (16 * r) == 0 and n % (8 * (warps // r)) == 0]
    return min(ways, key=lambda w: abs(math.log2((m / w[0]) / (n / w[1])))) if ways else None


@dataclass
class Template:
    """A computation of known shape."""

    def with_arch(self, arch: Arch) -> Any:
        """This template on a machine; gives itself."""
        self._arch = arch
        return self

    @property
    def arch(self) -> Arch:
        found: Arch = getattr(self, "_arch", None) or auto_infer_current_arch()
        return found

    def has_arch(self) -> bool:
        return hasattr(self, "_arch")

    def recommend_hints(self, topk: int = 10) -> list[Hint]:
        """At most topk recommendations, the most promising one first."""
        return [h for _, h in sorted(self._ranked(), key=lambda pair: pair[0])[:topk]]

    get_hardware_aware_configs = lambda self, arch=None, topk=10: (  # noqa: E731
        self.with_arch(arch) if arch is not None else self
    ).recommend_hints(topk)

    def equivalent_function(self) -> Any:
        """The computation as a plain kernel."""
        raise NotImplementedError

    def _ranked(self) -> Iterable[tuple[tuple[float, ...], Hint]]:
        raise NotImplementedError

    def _products(
        self, m: int, n: int, k: int, dtype: Any, fixed_k: bool = False
    ) -> Iterable[tuple[tuple[float, ...], Hint]]:
        """Tilings of a product: time is the larger of arithmetic in whole waves of blocks and traffic."""
        arch, size = self.arch, _bytes(dtype)
        steps = [k] if fixed_k else _powers(16, 128, k)
        for bm, bn, bk in itertools.product(_powers(16, 256, m), _powers(16, 256, n), steps):
            warps = min(8, max(1, bm * bn // 2048))
            ways = _partition(bm, bn, warps)
            stages = [s for s in (4, 3, 2, 1) if s * (bm + bn) * bk * size <= arch.smem_cap and (s - 1) * bk < k]
            if ways is None or not stages or bm * bn > 256 * warps * WARP:
                continue
            tiles = math.ceil(m / bm) * math.ceil(n / bn)
            waves = math.ceil(tiles / arch.compute_max_core)
            arithmetic = waves * arch.compute_max_core * bm * bn * k / arch.intensity
            traffic = tiles * k * (bm + bn) * size
            large = (m + n) * k * size > arch.l2_cache_size_bytes
            hint = Hint(
                [bm, bn], [bm // ways[0], bn // ways[1]], [bk], [warps * WARP], pipeline_stage=stages[0],
                use_async=stages[0] > 1, use_tc=arch.compute_capability,
                rasterization_plan=Rasterization2DColumn(10) if large else NoRasterization(),
            )  # fmt: skip
            yield (max(arithmetic, traffic), traffic, abs(bk - 32), abs(bm - bn)), hint

    def _elements(self, shape: Sequence[int], reduced: Sequence[int]) -> Iterable[tuple[tuple[float, ...], Hint]]:
        """Tilings of an element-wise or reducing computation: whole rows, enough blocks, enough threads."""
        inner = shape[-1] if shape else 1
        ways = [_powers(1, 128, n) for n in shape[:-1][-1:]] or [[1]]
        for rows, last in itertools.product(ways[0], _powers(32, 1024, inner) if shape else [1]):
            block = [1] * max(0, len(shape) - 2) + ([rows] if len(shape) > 1 else []) + ([last] if shape else [])
            elements = math.prod(block)
            blocks = math.prod(math.ceil(n / b) for n, b in zip(shape, block, strict=True))
            waste = blocks * elements / max(1, math.prod(shape))
            waves = math.ceil(blocks / self.arch.compute_max_core) * self.arch.compute_max_core / blocks
            threads = max(WARP, min(256, elements))
            for step in _powers(32, 512, reduced[-1]) if reduced else [0]:
                rstep = [1] * (len(reduced) - 1) + [step] if reduced else []
                hint = Hint(block, list(block), rstep, [threads])
                yield (waste * waves, abs(math.log2(elements) - 11), abs(step - 128)), hint


@dataclass
class MatmulTemplate(Template):
    """C[M, N] = A @ B: A is [M, K] ([K, M] if trans_A), B [N, K] if trans_B, else [K, N]."""

    M: int
    N: int
    K: int
    trans_A: bool = False
    trans_B: bool = True
    in_dtype: Any = "float16"
    out_dtype: Any = "float16"
    accum_dtype: Any = "float16"
    with_bias: bool = False

    def equivalent_function(self) -> Any:
        return functions.matmul(self.M, self.N, self.K, self.trans_A, self.trans_B, self.in_dtype, self.out_dtype,
                                self.with_bias)  # fmt: skip

    def _ranked(self) -> Iterable[tuple[tuple[float, ...], Hint]]:
        return self._products(self.M, self.N, self.K, self.in_dtype)


@dataclass
class GEMVTemplate(Template):
    """C[1, N] = A[1, K] @ B: B is [N, K] if trans_B, else [K, N]."""

    N: int
    K: int
    trans_B: bool = True
    in_dtype: Any = "float16"
    out_dtype: Any = "float16"
    accum_dtype: Any = "float16"
    with_bias: bool = False

    def equivalent_function(self) -> Any:
        return functions.matmul(1, self.N, self.K, False, self.trans_B, self.in_dtype, self.out_dtype, self.with_bias)

    def _ranked(self) -> Iterable[tuple[tuple[float, ...], Hint]]:
        for cost, hint in self._elements([self.N], [self.K]):
            reduce = max(1, min(WARP, self.K // 8))
            yield (
                cost,
                Hint([1, *hint.block], rstep=hint.rstep, thread=[1, max(1, 128 // reduce)], reduce_thread=[reduce]),
            )


@dataclass
class ElementwiseTemplate(Template):
    """B = A + 1 over a shape."""

    shape: Sequence[int]
    dtype: Any = "float16"

    def equivalent_function(self) -> Any:
        return functions.elementwise(math.prod(self.shape), self.dtype)

    def _ranked(self) -> Iterable[tuple[tuple[float, ...], Hint]]:
        return self._elements(list(self.shape), [])


@dataclass
class GeneralReductionTemplate(Template):
    """The sum over the axes that `structure` marks with R; S are the others: "SSR"."""

    structure: str
    shape: Sequence[int]
    dtype: Any = "float16"

    def _axes(self, kind: str) -> list[int]:
        return [n for s, n in zip(self.structure, self.shape, strict=True) if s == kind]

    def equivalent_function(self) -> Any:
        return functions.reduction(self.structure, tuple(self.shape), self.dtype)

    def _ranked(self) -> Iterable[tuple[tuple[float, ...], Hint]]:
        return self._elements(self._axes("S"), self._axes("R"))


@dataclass
class FlashAttentionTemplate(Template):
    """softmax(Q K^T) V; a hint's block is (rows of queries, rows of keys), its step the head's dimension."""

    batch_size: int = 1
    num_heads: int = 1
    head_dim: int = 1
    seq_length: int = 1
    seq_kv_length: int = 1
    is_causal: bool = False
    in_dtype: Any = "float16"
    out_dtype: Any = "float16"
    accum_dtype: Any = "float16"

    def equivalent_function(self) -> Any:
        return functions.attention(self.batch_size, self.num_heads, self.head_dim, self.seq_length, self.seq_kv_length,
                                   self.is_causal, self.in_dtype, self.out_dtype)  # fmt: skip

    def _ranked(self) -> Iterable[tuple[tuple[float, ...], Hint]]:
        rows = self.batch_size * self.num_heads * self.seq_length
        return self._products(rows, self.seq_kv_length, self.head_dim, self.in_dtype, fixed_k=True)


@dataclass
class ConvTemplate(Template):
    """A convolution of N images [H, W, C] with F filters of K x K: stride S, dilation D, padding P; as a product."""

    N: int
    C: int
    H: int
    W: int
    F: int
    K: int
    S: int = 1
    D: int = 1
    P: int = 0
    in_dtype: Any = "float16"
    out_dtype: Any = "float16"
    accum_dtype: Any = "float16"
    with_bias: bool = False

    def equivalent_function(self) -> Any:
        return functions.convolution(self.N, self.C, self.H, self.W, self.F, self.K, self.S, self.D, self.P,
                                     self.in_dtype, self.out_dtype)  # fmt: skip

    def _ranked(self) -> Iterable[tuple[tuple[float, ...], Hint]]:
        height, width = (functions.window(n, self.K, self.S, self.D, self.P) for n in (self.H, self.W))
        return self._products(self.N * height * width, self.F, self.K * self.K * self.C, self.in_dtype)
