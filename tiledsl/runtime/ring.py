"""The debug ring: what T.print and T.device_assert of compiled kernels leave behind, read after the blocks ran.

Words of 64 bits: 0 the write offset (records start at word 2), 1 the capacity in words; a record is
[kind, site, n values, n words of value bits]. A record that does not fit is dropped by the writer, which still
advances the offset, so that the reader sees how much is missing.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tiledsl import config
from tiledsl.backend import Site
from tiledsl.dtypes import DType
from tiledsl.errors import TileRuntimeError

__all__ = ["Ring", "prints", "room"]

_FIRST = 2


def room(sites: Sequence[Site]) -> int:
    """The words of a ring for these records. Of failures one is enough, so what does not print needs room for one."""
    if prints(sites):
        return config.PRINT_BUFFER.get()
    return _FIRST + 3 + max([len(s.dtypes) for s in sites], default=0)


def prints(sites: Sequence[Site]) -> bool:
    return any(s.kind == "print" for s in sites)


class Ring:
    """One ring and the table that says what its records mean."""

    def __init__(self, sites: Sequence[Site], capacity: int = 0) -> None:
        self.sites = sites
        self.capacity = capacity or room(sites)
        self.words = (ctypes.c_int64 * self.capacity)()
        self.address = ctypes.addressof(self.words)
        self.reset()

    def reset(self) -> None:
        self.words[0], self.words[1] = _FIRST, self.capacity

    def records(self) -> Iterator[tuple[Site, list[Any]]]:
        """The records in the order in which they were written, values decoded."""
        at, end = _FIRST, min(self.words[0], self.capacity)
        while at + 3 <= end:
            _, site, count = self.words[at : at + 3]
            if not 0 <= count <= end - at - 3 or not 0 <= site < len(self.sites):
                return  # a record cut off by a full ring
            found = self.sites[site]
            if count != len(found.dtypes):
                return  # the room of one that found none
            bits = self.words[at + 3 : at + 3 + count]
            yield found, shown(found, bits)
            at += 3 + count

    def flush(self) -> None:
        """Print what was printed, in order; raise TileRuntimeError for the first failed assert."""
        lost = max(0, self.words[0] - self.capacity)
        records = list(self.records())
        self.reset()
        for site, values in records:
            text = site.message.format(*map(str, values))
            if site.kind == "print":
                print(text)
                continue
            if site.kind == "bounds":
                from tiledsl.passes.guard_bounds import out_of_range

                raise out_of_range(text, site.loc)
            text, _, where = text.rpartition("\n") if "\n" in text else (text, "", "")
            raise TileRuntimeError(
                f"device_assert failed{': ' if text else ''}{text}", site.loc, (where,) if where else ()
            )
        if lost:
            print(f"... {lost} words of print output did not fit; set {config.PRINT_BUFFER.env} higher")


def decode(word: int, dtype: DType) -> Any:
    """A value from the bits of an argument-like word."""
    raw = (word & (2**64 - 1)).to_bytes(8, "little")[: dtype.bytes]
    value = np.frombuffer(raw, dtype.numpy)[0]
    return bool(value) if dtype.is_bool else int(value) if dtype.is_int else value


def shown(site: Site, words: Sequence[int]) -> list[Any]:
    """The values of a record: Python ints and bools, NumPy floats, and arrays of printed buffers."""
    values = [decode(w, d) for w, d in zip(words, site.dtypes, strict=True)]
    found: list[Any] = []
    at = 0
    for shape in site.shapes or [()] * len(values):
        if shape:
            end = at + math.prod(shape)
            found.append(np.array(values[at:end], site.dtypes[at].numpy).reshape(shape))
            at = end
        else:
            found.append(values[at])
            at += 1
    return found
