"""T.gemm is our own micro-kernel: no library multiplies matrices inside a compiled kernel."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiledsl.backend import load_backend, resolve
from tiledsl.dtypes import as_dtype
from tiledsl.kernels import flash_attention, grouped_gemm, matmul
from tiledsl.kernels.attention import flash_attention_kernel
from tiledsl.kernels.gemm import matmul_kernel
from tiledsl.passes import pipeline

LIBC = {"memset", "memcpy", "memmove", "bzero"}


def poisoned(*args: Any, **options: Any) -> Any:
    raise AssertionError("a compiled kernel called NumPy's matrix product")


@pytest.fixture
def no_numpy_products(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("dot", "matmul", "inner", "vdot", "tensordot", "einsum", "linalg"):
        monkeypatch.setattr(np, name, poisoned)


def test_products_without_numpy(no_numpy_products: None) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-8, 9, (37, 53)).astype(np.float32), rng.integers(-8, 9, (53, 29)).astype(np.float32)
    c = matmul(a, b, target="numba")
    assert (c == (a[:, :, None] * b[None]).sum(1)).all()  # small integers: every order of summation is exact
    g = grouped_gemm(a, np.stack([b, -b]), np.array([20, 17], np.int32), target="numba")
    assert (g == np.concatenate([c[:20], -c[20:]])).all()
    q = rng.standard_normal((1, 33, 2, 32), dtype=np.float32)
    assert np.isfinite(flash_attention(q, q, q, causal=True, target="numba")).all()


def test_the_poison_is_deadly(no_numpy_products: None) -> None:
    """The interpreter does use NumPy's product: the fixture would catch a kernel that did."""
    a = np.ones((4, 4), np.float32)
    with pytest.raises(Exception, match="matrix product"):
        matmul(a, a, target="numpy")


def test_object_code_calls_nothing_but_memory_functions(tmp_path: Path) -> None:
    f32 = as_dtype("float32")
    target = resolve("numba")
    backend = load_backend(target.name)
    function = matmul_kernel(64, 64, 128, f32, f32).function
    artifact = backend.emit(pipeline.run(function, backend.pipeline(target)), target)
    assert undefined_symbols(artifact.code) <= LIBC


@pytest.mark.parametrize("name", ["llvm", "numba"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_objects_for_aarch64_multiply_vectors(name: str, dtype: str) -> None:
    """Emitted here, not run: products of a GEMM and of attention are fused multiply-adds of four floats, and
    nothing is called but memory functions."""
    native = pytest.importorskip("tiledsl.backends.cpu.native")
    arm, target, d = native.Cpu("aarch64-unknown-linux-gnu", "neoverse-n1", ""), resolve(name), as_dtype(dtype)
    backend: Any = load_backend(target.name)
    for kernel, steps in ((matmul_kernel(64, 64, 128, d, d), 16), (flash_attention_kernel(16, 64, 64, True, d), 100)):
        loops = pipeline.run(kernel.function, backend.pipeline(target))
        text = native.assembly(backend.modules(loops, arm).modules, arm)
        fused = re.findall(r"\bfmla\s+v\d+\.4s", text)
        assert len(fused) >= steps, len(fused)
        code = native.compile_module(backend.modules(loops, arm).modules, arm)
        assert code[:4] == b"\x7fELF" and int.from_bytes(code[18:20], "little") == 183  # EM_AARCH64
        assert undefined_symbols(code) <= LIBC


def undefined_symbols(code: bytes) -> set[str]:
    """Names that an ELF64 object needs from elsewhere (section index 0 in its symbol table)."""
    at = int.from_bytes(code[40:48], "little")
    size, count = int.from_bytes(code[58:60], "little"), int.from_bytes(code[60:62], "little")
    sections = [code[at + i * size : at + (i + 1) * size] for i in range(count)]

    def body(section: bytes) -> bytes:
        start, length = int.from_bytes(section[24:32], "little"), int.from_bytes(section[32:40], "little")
        return code[start : start + length]

    names: set[str] = set()
    for section in sections:
        if int.from_bytes(section[4:8], "little") != 2:  # SHT_SYMTAB
            continue
        strings = body(sections[int.from_bytes(section[40:44], "little")])
        table = body(section)
        for entry in (table[i : i + 24] for i in range(24, len(table), 24)):
            if int.from_bytes(entry[6:8], "little") == 0:
                start = int.from_bytes(entry[:4], "little")
                names.add(strings[start : strings.index(b"\0", start)].decode())
    return names - {""}
