"""The C entry of a kernel: the floating-point environment is IEEE's default inside and the caller's own outside.

A caller may have turned on flush-to-zero or another rounding mode for its thread; results must not depend on it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from tiledsl.backends.cpu.emit.values import I32, I64, PTR, VOID, intrinsic

__all__ = ["emit_entry"]

Value = Any
_MXCSR_DEFAULT = 0x1F80  # all exceptions masked, round to nearest, no flushing of denormals


def emit_entry(module: Any, inner: Any, symbol: str, triple: str) -> None:
    """Defines `int64 symbol(int64 first, int64 last, int64 *args, int64 *context)` around `inner`: a function of
    the same type, or one of Numba's calling convention: a place for the result, (unused) exception information, then
    the four arguments.

    inner is not inlined, so that no instruction can move across the change of the environment.
    """
    inner.linkage = "internal"
    inner.attributes.add("noinline")
    entry = ir.Function(module, ir.FunctionType(I64, [I64, I64, PTR, PTR]), symbol)
    b = ir.IRBuilder(entry.append_basic_block())
    hidden: list[Value] = []
    if len(inner.function_type.args) > 4:
        hidden = [b.alloca(I64), *(ir.Constant(t, None) for t in inner.function_type.args[1:-4])]
    x86, arm = triple.startswith(("x86_64", "i386", "i686")), triple.startswith(("aarch64", "arm64"))
    saved: Value = None
    if x86:
        saved = b.bitcast(b.alloca(I32), PTR)
        default = b.bitcast(b.alloca(I32), PTR)
        intrinsic(b, "llvm.x86.sse.stmxcsr", VOID, [saved])
        b.store(ir.Constant(I32, _MXCSR_DEFAULT), default, align=4)
        intrinsic(b, "llvm.x86.sse.ldmxcsr", VOID, [default])
    elif arm:
        saved = intrinsic(b, "llvm.aarch64.get.fpcr", I64, [])
        intrinsic(b, "llvm.aarch64.set.fpcr", VOID, [ir.Constant(I64, 0)])
    result = b.call(inner, [*hidden, *entry.args])
    if x86:
        intrinsic(b, "llvm.x86.sse.ldmxcsr", VOID, [saved])
    elif arm:
        intrinsic(b, "llvm.aarch64.set.fpcr", VOID, [saved])
    b.ret(b.load(hidden[0], typ=I64) if hidden else result)
