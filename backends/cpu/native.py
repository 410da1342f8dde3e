"""From LLVM modules to object code and back: target machine, optimiser, loader. llvmlite only, no Numba.

Object code is emitted for a CPU given by name and features, so AVX-512, AVX2 and AArch64 objects can be made on any
machine. Loaded code lives as long as its `Loaded` object: LLVM unmaps it with its resource tracker.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import llvmlite.binding as llvm

from tiledsl import config
from tiledsl.errors import TileValueError

__all__ = ["LEVELS", "Cpu", "Loaded", "compile_module", "host_cpu", "load_object", "named_cpu", "x86_level"]


@dataclass(frozen=True)
class Cpu:
    """A CPU to generate code for: LLVM triple, CPU name and feature string ("+avx2,-avx512f,...")."""

    triple: str
    name: str
    features: str

    def has(self, feature: str) -> bool:
        return f"+{feature}" in self.features.split(",")

    @property
    def register_bytes(self) -> int:
        """Width of the vector registers."""
        return 64 if self.has("avx512f") else 32 if self.has("avx2") else 16

    @property
    def byte_products(self) -> str:
        """How products of bytes are best summed in int32 (`emit.bytes`): "vnni", "pairs" or "plain"."""
        if self.has("avx512vnni") if self.has("avx512f") else self.has("avxvnni"):
            return "vnni"
        wide = self.has("avx512bw") if self.has("avx512f") else self.triple.startswith("x86_64")
        return "pairs" if wide else "plain"


@cache
def _initialize() -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.initialize_native_asmparser()


def host_cpu() -> Cpu:
    """The CPU that code is made for where no other is named: this machine, or what TILEDSL_CPU says of it."""
    level = config.CPU.get()
    return named_cpu(level) if level else _this_machine()


@cache
def _this_machine() -> Cpu:
    """512-bit registers are used wherever they exist."""
    _initialize()
    features = llvm.get_host_cpu_features().flatten()
    return Cpu(llvm.get_process_triple(), llvm.get_host_cpu_name(), features)


@cache
def _machine(cpu: Cpu) -> Any:
    _initialize()
    features = cpu.features + (",-prefer-256-bit" if cpu.has("avx512f") else "")
    target = llvm.Target.from_triple(cpu.triple)
    return target.create_target_machine(cpu=cpu.name, features=features, opt=2, reloc="pic", codemodel="default")


def compile_module(modules: Sequence[Any], cpu: Cpu) -> bytes:
    """Object code of llvmlite.ir modules, linked into one and optimised for `cpu`.

    The optimiser may neither contract nor reassociate floats: no instruction carries such a flag.
    """
    return bytes(_machine(cpu).emit_object(optimized(modules, cpu)))


def assembly(modules: Sequence[Any], cpu: Cpu) -> str:
    """The assembly text of what `compile_module` emits."""
    return str(_machine(cpu).emit_assembly(optimized(modules, cpu)))


def optimized(modules: Sequence[Any], cpu: Cpu) -> Any:
    """The parsed and linked modules after LLVM's middle end."""
    machine = _machine(cpu)
    parsed, context = None, llvm.create_context()  # an own context: others may compile in other threads
    for module in modules:
        module.triple = cpu.triple
        module.data_layout = str(machine.target_data)
        one = llvm.parse_assembly(str(module), context)
        one.verify()
        if parsed is None:
            parsed = one
        else:
            parsed.link_in(one)
    tuning = llvm.create_pipeline_tuning_options(speed_level=2)
    tuning.loop_unrolling = False  # measured: costs compile time and brings nothing here
    tuning.slp_vectorization = False
    builder = llvm.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(parsed, builder)
    return parsed


class Loaded:
    """Object code in memory: the address of each symbol. It is unmapped when this object goes."""

    def __init__(self, code: bytes, symbols: Sequence[str]) -> None:
        builder = llvm.JITLibraryBuilder().add_object_img(code).add_current_process()
        for symbol in symbols:
            builder.export_symbol(symbol)
        self._tracker = builder.link(_jit(), f"tiledsl_{next(_serial)}")
        self.addresses = {s: int(self._tracker[s]) for s in symbols}


_serial = itertools.count()


@cache
def _jit() -> Any:
    _initialize()
    # JITLink puts all of an object into one piece of memory. The older loader maps code and constants where each finds
    # room; beside gigabytes of arrays that is too far apart for 32-bit distances, and it ends the process.
    here = _this_machine()
    return llvm.create_lljit_compiler(_machine(here), use_jit_link="windows" not in here.triple)


_V3 = "+avx,+avx2,+bmi,+bmi2,+f16c,+fma,+lzcnt,+movbe"
LEVELS = {"x86-64-v3": _V3, "x86-64-v4": _V3 + ",+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl"}


def x86_level(level: str) -> Cpu:
    """What every x86 CPU of a level has: "x86-64-v3" is AVX2, "x86-64-v4" AVX-512."""
    return Cpu(_this_machine().triple, level, LEVELS[level])


def named_cpu(level: str) -> Cpu:
    """`x86_level` of a level that this machine has. Raises TileValueError for others."""
    mine = set(_this_machine().features.split(","))
    able = [x for x, needed in LEVELS.items() if mine.issuperset(needed.split(","))]
    if level not in able:
        raise TileValueError(f"this machine runs no code for {level!r}", help=f"it has {', '.join(able) or 'no level'}")
    return x86_level(level)


def load_object(code: bytes, symbols: Sequence[str]) -> Loaded:
    """Maps object code made by `compile_module` for this machine."""
    return Loaded(code, symbols)
