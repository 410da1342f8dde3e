"""Functions of four bits, which compiled code looks up: every target has the bits of the arithmetic as written."""

# mypy: disable-error-code="no-untyped-def,valid-type"
import ctypes
from typing import Any

import numpy as np
import pytest
from llvmlite import ir as ll

import tiledsl
import tiledsl.language as T
from tiledsl import ir
from tiledsl.backends.cpu.emit import arith, values
from tiledsl.backends.cpu.native import compile_module, host_cpu, load_object, x86_level


def decoded(x: Any, form: str) -> Any:
    """The author's arithmetic; some forms look at more than four bits, or at two values, and stay arithmetic."""
    size = T.cast((T.uint32(0xC8643210) >> ((x & 7) * 4)) & 15, T.float32)
    if form == "e2m1":
        return T.reinterpret(T.reinterpret(size, T.uint32) | ((x & 8) << 28), T.float32)
    if form == "five bits":
        return T.reinterpret(T.reinterpret(size, T.uint32) | ((x & 16) << 27), T.float32)
    if form == "and itself":
        return size * T.cast(x, T.float32)
    return T.if_then_else((x & 3) == 2, -0.0, T.cast(x & 12, T.float32) / T.cast(x & 1, T.float32))  # NaN, infinities


@pytest.mark.parametrize("form", ["e2m1", "five bits", "and itself", "branches"])
@pytest.mark.parametrize("n", [7, 33])
def test_functions_of_four_bits(form: str, n: int) -> None:
    @T.prim_func
    def main(W: T.Tensor((n,), "uint8"), C: T.Tensor((4, n), "float32")):
        with T.Kernel(1):
            for j in T.Parallel(n):
                code = T.cast(W[j], T.uint32)
                for i in T.unroll(2):
                    C[i, j] = decoded(code >> (i * 4), form)
                C[2, j] = decoded(T.cast(W[n - 1 - j], T.uint32), form)
                C[3, j] = decoded(T.cast(W[0], T.uint32), form)  # the same for all lanes

    kernel = tiledsl.compile(main)
    for first in range(0, 256, 23):
        w = (np.arange(n) + first).astype(np.uint8)
        results = []
        for target in ("numpy:exact", "llvm", "numba"):
            kernel(w, c := np.full((4, n), 77.0, np.float32), target=target)
            results.append(c)
        for c in results[1:]:
            same = (c.view(np.uint32) == results[0].view(np.uint32)) | (np.isnan(c) & np.isnan(results[0]))
            assert same.all()


def test_only_functions_of_four_bits_are_looked_up() -> None:
    from tiledsl.backends.cpu.tables import coded

    x, y = (ir.Var(name, ir.build.INT32) for name in "xy")

    def both(a: ir.Expr, b: ir.Expr) -> ir.Expr:
        small = [ir.Binary("bitand", v, ir.Const(15, v.type)) for v in (a, b)]
        cubed = ir.Binary("mul", ir.Binary("mul", *small), small[0])
        return ir.Cast(ir.Binary("shl", cubed, ir.Const(1, ir.build.INT32)), tiledsl.dtypes.FLOAT32)

    found = coded(both(x, x), {})
    assert found is not None and found[0] == x and coded(both(x, y), {}) is None


CPUS = {"host": host_cpu(), **({"x86-64-v3": x86_level("x86-64-v3")} if host_cpu().register_bytes == 64 else {})}


@pytest.mark.parametrize("products", ["vnni", "plain"])
@pytest.mark.parametrize("cpu", CPUS)
def test_permutation(cpu: str, products: str) -> None:
    """With the CPU's instruction, and lane by lane; only four bits of an index count."""
    module, target = ll.Module(), CPUS[cpu]
    module.register_bytes, module.byte_products = target.register_bytes, products
    f = ll.Function(module, ll.FunctionType(values.VOID, [values.PTR] * 3), "permute")
    b = ll.IRBuilder(f.append_basic_block())
    floats, integers = ll.VectorType(ll.FloatType(), 16), ll.VectorType(values.I32, 16)
    x, index = (b.load(p, align=4, typ=t) for p, t in zip(f.args, (floats, integers), strict=False))
    b.store(arith.permute(b, x, index), f.args[2], align=4)
    b.ret_void()
    loaded = load_object(compile_module([module], target), ["permute"])
    run = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3)(loaded.addresses["permute"])
    rng = np.random.default_rng(0)
    table = rng.integers(0, 2**32, 16, np.uint64).astype(np.uint32)
    picked, out = rng.integers(-(2**31), 2**31, 16).astype(np.int32), np.zeros(16, np.uint32)
    run(table.ctypes.data, picked.ctypes.data, out.ctypes.data)
    assert (out == table[picked & 15]).all()
