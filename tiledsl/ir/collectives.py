"""The table of `Collective` operations: what they take, what they give, and where they may stand.

Who takes part: the threads of a warp (32 threads with consecutive numbers, x fastest; the last warp may hold fewer), or
of the block, that are at the statement; with a mask, of those the ones that the mask of the asking thread names.
A reduction is the xor butterfly 16-8-4-2-1 over lanes (language.md 0.10), in which lanes that do not take part have no
value and are passed over; over thread axes of the block it goes over groups of 32 first, then over the groups' results.
A shuffle whose source lies outside the segment of `width` lanes, or does not take part, gives the thread its own value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tiledsl.dtypes import BOOL, INT32, UINT32, DType

__all__ = ["COLLECTIVES", "COLLECTIVE_REDUCTIONS", "WARP", "CollectiveOp"]

WARP = 32  # lanes of a warp


@dataclass(frozen=True)
class CollectiveOp:
    """takes: per argument "any" (a number), "int32" or "bool"; gives: a dtype, or None for the first argument's;
    scopes: where it may happen; doc: one line of documentation."""

    name: str
    takes: tuple[str, ...]
    gives: DType | None
    scopes: tuple[str, ...]
    doc: str

    def result(self, args: tuple[DType, ...]) -> DType:
        return args[0] if self.gives is None else self.gives


# operator of `Binary` by the name of the reduction
COLLECTIVE_REDUCTIONS: Mapping[str, str] = {
    "sum": "add", "max": "max", "min": "min", "bitand": "bitand", "bitor": "bitor", "bitxor": "bitxor",
}  # fmt: skip
_WARP, _BLOCK, _BOTH = ("warp",), ("block",), ("warp", "block")
_ALL = [
    CollectiveOp("shfl", ("any", "int32"), None, _WARP, "the value of lane args[1] % width of the own segment"),
    CollectiveOp("shfl_up", ("any", "int32"), None, _WARP, "the value of the lane args[1] below, in the segment"),
    CollectiveOp("shfl_down", ("any", "int32"), None, _WARP, "the value of the lane args[1] above, in the segment"),
    CollectiveOp("shfl_xor", ("any", "int32"), None, _WARP, "the value of lane ^ args[1]; not in later segments"),
    CollectiveOp("any", ("bool",), BOOL, _BOTH, "true where the condition holds in some thread"),
    CollectiveOp("all", ("bool",), BOOL, _BOTH, "true where the condition holds in every thread"),
    CollectiveOp("count", ("bool",), INT32, _BLOCK, "in how many threads the condition holds"),
    CollectiveOp("rank", (), INT32, _BLOCK, "how many threads of lower number take part; no barrier"),
    CollectiveOp("size", (), INT32, _BLOCK, "how many threads take part; no barrier"),
    CollectiveOp("ballot", ("bool",), UINT32, _WARP, "bit i: the condition holds in lane i"),
    CollectiveOp("activemask", (), UINT32, _WARP, "bit i: lane i takes part"),
    CollectiveOp("match_any", ("any",), UINT32, _WARP, "bit i: lane i has this thread's bits"),
    CollectiveOp("match_all", ("any",), UINT32, _WARP, "who takes part, where all have the same bits; else 0"),
    *(
        CollectiveOp(name, ("any",), None, _BOTH, f"{name} over the warp, or over thread axes of the block")
        for name in COLLECTIVE_REDUCTIONS
    ),
]

COLLECTIVES: dict[str, CollectiveOp] = {c.name: c for c in _ALL}
