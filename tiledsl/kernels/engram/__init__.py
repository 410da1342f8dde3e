"""Engram: a hashed n-gram memory beside the attention: hash, gated lookup with gradient, tables in files."""

from tiledsl.kernels.engram.gate import (
    engram_gate,
    engram_gate_backward,
    engram_gate_backward_kernel,
    engram_gate_kernel,
)
from tiledsl.kernels.engram.hashing import engram_primes, ngram_hash, ngram_hash_kernel
from tiledsl.kernels.engram.table import TableReader, gather_rows, gather_rows_kernel

__all__ = [
    "TableReader",
    "engram_gate",
    "engram_gate_backward",
    "engram_gate_backward_kernel",
    "engram_gate_kernel",
    "engram_primes",
    "gather_rows",
    "gather_rows_kernel",
    "ngram_hash",
    "ngram_hash_kernel",
]
