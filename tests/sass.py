"""Machine code of cubins, as far as gates need it: which instructions a kernel has.

A cubin is an ELF file with a section `.text.NAME` per kernel; an instruction has 16 bytes (since sm_70), the lowest 12
bits of which say what it does. `test_cuda_gates.py` checks these numbers against kernels of one instruction each.
"""

from __future__ import annotations

import struct
from collections import Counter

__all__ = ["OPCODES", "instructions"]

OPCODES = {
    0x23C: "HMMA", 0x237: "IMMA", 0x23F: "DMMA", 0x27A: "QMMA", 0x83B: "LDSM", 0xFAE: "LDGSTS", 0xB1D: "BAR",
    0x981: "LDG", 0x986: "STG", 0x984: "LDS",
}  # fmt: skip


def sections(cubin: bytes) -> dict[str, bytes]:
    """The contents of an ELF file by the names of its sections."""
    (start,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", cubin, start + i * size) for i in range(count)]
    strings = headers[names][4]
    found = {}
    for name, _, _, _, offset, length, *_ in headers:
        first = strings + name
        found[cubin[first : cubin.index(b"\0", first)].decode()] = cubin[offset : offset + length]
    return found


def instructions(cubin: bytes) -> dict[str, Counter[str]]:
    """How often each kernel has each instruction; those without a name here count as numbers."""
    found = {}
    for name, code in sections(cubin).items():
        if name.startswith(".text."):
            numbers = (struct.unpack_from("<Q", code, at)[0] & 0xFFF for at in range(0, len(code), 16))
            found[name.removeprefix(".text.")] = Counter(OPCODES.get(n, hex(n)) for n in numbers)
    return found
