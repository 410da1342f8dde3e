"""Names of asynchronous hardware that have a plain, ordered meaning: copies that happen now, waits that are over."""

from __future__ import annotations

from typing import Any

from tiledsl.language.memory import copy
from tiledsl.language.operation import operation

__all__ = [
    "async_copy", "fence_barrier_init", "fence_proxy_async", "pdl_sync", "pdl_trigger", "ptx_commit_group",
    "ptx_wait_group", "tma_copy", "tma_store_arrive", "tma_store_wait", "wait_wgmma", "warpgroup_arrive",
    "warpgroup_commit_batch", "warpgroup_fence_operand", "warpgroup_wait",
]  # fmt: skip


@operation
def async_copy(
    src: Any, dst: Any, coalesced_width: int | None = None, annotations: dict[str, Any] | None = None,
    loop_layout: Any = None,
) -> None:  # fmt: skip
    """Same as `copy`: dst may be read after the next wait, and holds the data from here on."""
    copy(src, dst, coalesced_width=coalesced_width)


@operation
def tma_copy(
    src: Any, dst: Any, barrier: Any = None, eviction_policy: Any = None, annotations: dict[str, Any] | None = None
) -> None:  # fmt: skip
    """Same as `copy`, whichever engine does it; barrier is a hint."""
    copy(src, dst, eviction_policy=eviction_policy)


@operation
def ptx_commit_group() -> None:
    """Ends a group of asynchronous copies; they are done already."""


@operation
def ptx_wait_group(num: int = 0) -> None:
    """Waits until at most `num` groups of asynchronous copies are left; they are done already."""


@operation
def pdl_trigger() -> None:
    """Lets the next kernel begin early; kernels run one after the other."""


@operation
def pdl_sync() -> None:
    """Waits for the kernel before this one; it has ended."""


@operation
def warpgroup_arrive() -> None:
    """Orders operands before an asynchronous product; they are."""


@operation
def warpgroup_commit_batch() -> None:
    """Ends a batch of asynchronous products; they are done already."""


@operation
def warpgroup_wait(num_mma: int = 0) -> None:
    """Waits until at most `num_mma` batches of asynchronous products are left; they are done already."""


@operation
def warpgroup_fence_operand(
    buffer_or_ptr: Any, offset: Any = 0, num_regs: int | None = None, dtype: Any = None
) -> None:  # fmt: skip
    """Keeps registers of an asynchronous product in place; nothing moves them here."""


@operation
def wait_wgmma(id: int = 0) -> None:
    """Waits until at most `id` batches of asynchronous products are left; they are done already."""


@operation
def fence_proxy_async() -> None:
    """Orders memory between engines; it is ordered."""


@operation
def fence_barrier_init() -> None:
    """Makes new barriers visible; they are."""


@operation
def tma_store_arrive() -> None:
    """Ends a group of asynchronous stores; they are done already."""


@operation
def tma_store_wait(count: int = 0) -> None:
    """Waits until at most `count` groups of asynchronous stores are left; they are done already."""
