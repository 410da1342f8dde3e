"""The few names of TVM that portable kernels touch: `tvm.tirx` (and its older name `tvm.tir`), `tvm.DataType`."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from types import ModuleType, SimpleNamespace
from typing import Any

import tiledsl.language as T
from tiledsl.compat import hosts

__all__ = ["build"]


def const(value: Any, dtype: Any = "int32", span: Any = None) -> Any:
    """A constant of a dtype."""
    return T.Cast(dtype, value)


class Target(AbstractContextManager["Target"]):
    """`tvm.target.Target("cuda")`: where a program thinks that it runs."""

    def __init__(self, target: Any = "cuda", host: Any = None) -> None:
        text = target.get("kind", "cuda") if isinstance(target, dict) else str(target)
        self.kind = SimpleNamespace(name=text.split()[0] if text and text != "auto" else "cuda")
        self.arch = f"sm_{hosts.compute_version().replace('.', '')}"
        self.attrs = {"arch": self.arch, "thread_warp_size": 32, "max_num_threads": 1024}
        self.keys, self.host = [self.kind.name, "gpu"], host

    def __str__(self) -> str:
        return f"{self.kind.name} -arch={self.arch}"

    def __exit__(self, *exc: Any) -> None:
        pass

    @staticmethod
    def current(allow_none: bool = True) -> Target:
        return Target()


def build(top: dict[str, Any]) -> None:
    """Fill the namespace of `tvm` and register its submodules."""
    names: dict[str, Any] = {
        "const": const,
        "Cast": T.Cast,
        "Select": T.Select,
        "Min": T.min,
        "Max": T.max,
        "min": T.min,
        "max": T.max,
        "PrimExpr": T.PrimExpr,
        "Var": T.PrimExpr,
        "Buffer": T.Buffer,
        "reinterpret": T.reinterpret,
        "if_then_else": T.if_then_else,
        "floordiv": T.floordiv,
        "floormod": T.floormod,
        "truncdiv": T.truncdiv,
        "truncmod": T.truncmod,
        "ceildiv": T.ceildiv,
        "infinity": T.infinity,
        "min_value": T.min_value,
        "max_value": T.max_value,
        "exp": T.exp,
        "exp2": T.exp2,
        "log": T.log,
        "log2": T.log2,
        "sqrt": T.sqrt,
        "rsqrt": T.rsqrt,
        "abs": T.abs,
    }
    for name in ("tirx", "tir", "tirx.expr", "tir.expr"):
        made = ModuleType(f"tvm.{name}")
        made.__dict__.update(names)
        sys.modules[f"tvm.{name}"] = made
        if "." not in name:
            top[name] = made
        else:
            vars(sys.modules[f"tvm.{name.partition('.')[0]}"])["expr"] = made
    sys.modules["tvm.target"] = top["target"] = ModuleType("tvm.target")
    top["target"].Target = Target
    top.update(__version__="0.22", DataType=T.dtype, PrimExpr=T.PrimExpr)
