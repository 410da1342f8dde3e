"""The few names of TVM that portable kernels touch: `tvm.tirx` (and its older name `tvm.tir`), `tvm.DataType`, and
helpers of `tvm.arith`. Other modules of TVM can be imported; what is used of them is refused."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from types import ModuleType, SimpleNamespace
from typing import Any

import tiledsl.language as T
from tiledsl.compat import absent, hosts

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


class Analyzer:
    """`tvm.arith.Analyzer()`: what it can tell of Python numbers; a value of the kernel stays as it is."""

    def __init__(self, *args: Any) -> None:
        pass

    def simplify(self, value: Any, steps: int = 2) -> Any:
        """The value itself: the compiler simplifies."""
        return value

    rewrite_simplify = canonical_simplify = simplify

    def can_prove(self, condition: Any, *strength: Any) -> bool:
        """Whether a condition is known while tracing, and holds."""
        return not isinstance(condition, T.PrimExpr) and bool(condition)

    can_prove_equal = staticmethod(lambda a, b: Analyzer().can_prove(a == b))
    bind = update = staticmethod(lambda *args, **kw: None)


class Op(str):
    """`tvm.ir.Op.get("tir.exp")`, which T.call_intrin takes: its name."""

    @staticmethod
    def get(name: str) -> Op:
        return Op(name)


def build(top: dict[str, Any]) -> None:
    """Fill the namespace of `tvm` and register its submodules."""
    names: dict[str, Any] = {
        "__getattr__": absent.words,
        "const": const,
        "IntImm": lambda dtype, value: const(value, dtype),
        "FloatImm": lambda dtype, value: const(value, dtype),
        "StringImm": str,
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
    modules: dict[str, dict[str, Any]] = {
        **{package + part: names for package in ("tirx", "tir") for part in ("", ".expr", ".op")},
        "target": {"Target": Target},
        "arith": {"Analyzer": Analyzer, "__getattr__": absent.refusing("tvm.arith")},
        "ir": {"Op": Op, "PrimExpr": T.PrimExpr, "__getattr__": absent.refusing("tvm.ir")},
    }
    for name, members in modules.items():
        made = ModuleType(f"tvm.{name}")
        made.__dict__.update({"__path__": [], "Op": Op, **members})
        sys.modules[f"tvm.{name}"] = made
        parent, _, last = name.rpartition(".")
        (vars(sys.modules[f"tvm.{parent}"]) if parent else top)[last] = made
    top.update(
        __version__="0.22", DataType=T.dtype, PrimExpr=T.PrimExpr, __path__=[], __getattr__=absent.refusing("tvm")
    )
    absent.install()
