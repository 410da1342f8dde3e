"""tiledsl.jit and tiledsl.compile: both styles, outputs, targets, and which calls share a kernel."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import tiledsl
import tiledsl.language as T
from tiledsl import backend, config
from tiledsl.errors import TileError, TileTypeError, TileValueError

ROOT = Path(__file__).parent.parent
SCALE = 2


@tiledsl.jit(out_idx=[-1])
def scaled(n, by=3, dtype="float32"):
    @T.prim_func
    def main(X: T.Tensor((n,), dtype), Y: T.Tensor((n,), dtype)):
        with T.Kernel(T.ceildiv(n, 32), threads=32) as bx:
            for i in T.Parallel(32):
                Y[bx * 32 + i] = X[bx * 32 + i] * by

    return main


@tiledsl.jit
def uses_global(n):
    @T.prim_func
    def main(X: T.Tensor((n,), "int32")):
        with T.Kernel(1, threads=32):
            for i in T.Parallel(n):
                X[i] = X[i] * SCALE

    return main


@tiledsl.jit
def add(A, B, block=64):
    M = T.const("M")
    A: T.Tensor[(M,), T.float32]
    B: T.Tensor[(M,), T.float32]
    C = T.empty((M,), T.float32)
    with T.Kernel(T.ceildiv(M, block), threads=64) as bx:
        for i in T.Parallel(block):
            C[bx * block + i] = A[bx * block + i] + B[bx * block + i]
    return C


@tiledsl.jit
def twice(A, dtype="float32"):
    m = T.dynamic("m")
    A: T.Tensor[(m,), dtype]
    S = T.empty((m,), dtype)
    D = T.empty((m,), dtype)
    with T.Kernel(T.ceildiv(m, 32), threads=32) as bx:
        for i in T.Parallel(32):
            S[bx * 32 + i] = A[bx * 32 + i] + A[bx * 32 + i]
            D[bx * 32 + i] = A[bx * 32 + i] - A[bx * 32 + i]
    return S, D


@T.prim_func
def shifted(X: T.Tensor((8,), "int32"), n: T.int32, Y: T.Tensor((8,), "int32")):
    with T.Kernel(1, threads=8):
        for i in T.Parallel(8):
            Y[i] = X[i] + n


def floats(n):
    return np.arange(n, dtype=np.float32)


# -- styles --------------------------------------------------------------------------------------------------------


def test_lazy_kernels_allocate_and_return():
    kernel = scaled(100)
    y = kernel(floats(100))
    assert isinstance(y, np.ndarray) and y.dtype == np.float32
    assert np.array_equal(y, floats(100) * 3)
    assert kernel.out_idx == (1,) and [p.name for p in kernel.params] == ["X", "Y"]


def test_same_values_same_kernel():
    assert scaled(10) is scaled(10, 3) is scaled(n=10, by=3) is scaled(10, dtype="float32")
    assert scaled(10) is not scaled(10, 3.0)  # another literal is another dtype of arithmetic
    assert scaled(10) is not scaled(11)
    assert scaled(10, True) is not scaled(10, 1)


def test_a_changed_global_is_another_kernel(monkeypatch):
    x = np.arange(5, dtype=np.int32)
    uses_global(5)(x)
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 7)
    uses_global(5)(x)
    assert x.tolist() == [0, 14, 28, 42, 56]


def test_a_changed_closure_cell_is_another_kernel():
    by = 2

    @tiledsl.jit(out_idx=1)
    def make():
        @T.prim_func
        def main(X: T.Tensor((4,), "int32"), Y: T.Tensor((4,), "int32")):
            with T.Kernel(1, threads=4):
                for i in T.Parallel(4):
                    Y[i] = X[i] * by

        return main

    x = np.ones(4, np.int32)
    assert make()(x).tolist() == [2] * 4
    by = 5
    assert make()(x).tolist() == [5] * 4


def test_eager_kernels_specialise_on_const_dimensions():
    for n in (1, 64, 100):
        assert np.array_equal(add(floats(n), floats(n)), floats(n) * 2)
    assert add.kernel(floats(64), floats(64)) is add.kernel(floats(64), floats(64), 64)
    assert add.kernel(floats(64), floats(64)) is not add.kernel(floats(65), floats(65))
    assert add.kernel(floats(64), floats(64)) is not add.kernel(floats(64), floats(64), block=32)
    assert np.array_equal(add.compile(M=9)(floats(9), floats(9)), floats(9) * 2)


def test_eager_kernels_with_symbols_serve_every_shape():
    kernels = {id(twice.kernel(floats(n))) for n in (1, 31, 200)}
    assert len(kernels) == 1
    s, d = twice(floats(40))
    assert np.array_equal(s, floats(40) * 2) and not d.any()
    assert isinstance(twice(floats(3)), list)


def test_prim_func_and_compile():
    kernel = tiledsl.compile(shifted, out_idx=[2])
    x = np.arange(8, dtype=np.int32)
    assert kernel(x, 5).tolist() == (x + 5).tolist()
    in_place = tiledsl.compile(shifted)
    y = np.zeros(8, np.int32)
    assert in_place(x, -1, y) is None and y.tolist() == (x - 1).tolist()
    assert tiledsl.jit(shifted, out_idx=-1)(x, 1).tolist() == (x + 1).tolist()


def test_several_outputs_are_a_list_in_the_order_asked():
    @T.prim_func
    def main(X: T.Tensor((4,), "int32"), A: T.Tensor((4,), "int32"), B: T.Tensor((4,), "int64")):
        with T.Kernel(1, threads=4):
            for i in T.Parallel(4):
                A[i] = X[i] + 1
                B[i] = X[i] + 2

    x = np.zeros(4, np.int32)
    b, a = tiledsl.compile(main, out_idx=[2, 1])(x)
    assert (a.dtype, a[0], b.dtype, b[0]) == (np.int32, 1, np.int64, 2)


def test_outputs_before_inputs():
    @T.prim_func
    def main(Y: T.Tensor((4,), "int32"), n: T.int32, X: T.Tensor((4,), "int32")):
        with T.Kernel(1, threads=4):
            for i in T.Parallel(4):
                Y[i] = X[i] + n

    kernel = tiledsl.compile(main, out_idx=0)
    x = np.arange(4, dtype=np.int32)
    for target in ("numpy", "numba"):
        assert kernel(3, x, target=target).tolist() == [3, 4, 5, 6]
        out = np.zeros(4, np.int32)
        assert kernel(4, x, out=out, target=target) is out and out.tolist() == [4, 5, 6, 7]


def test_no_arrays_at_all_gives_numpy():
    @T.prim_func
    def main(n: T.float32, Y: T.Tensor((4,), "bfloat16")):
        with T.Kernel(1, threads=4):
            for i in T.Parallel(4):
                Y[i] = n

    y = tiledsl.compile(main, out_idx=1)(1.0039)
    assert y.dtype == ml_dtypes.bfloat16 and y.tolist() == [1.0] * 4


def test_what_a_kernel_shows():
    kernel = scaled(100)
    assert "T.Kernel" in kernel.text() and "scaled" in repr(scaled)
    assert kernel.get_kernel_source(target="numpy") == kernel.text()
    assert "def " in kernel.get_kernel_source(target="numba")
    assert scaled.get_tir(100) is kernel.function
    assert scaled.get_kernel_source(100) == kernel.get_kernel_source()
    assert [k.params[0].name for k in scaled.par_compile([(1,), {"n": 2, "by": 4}])] == ["X", "X"]


# -- targets -------------------------------------------------------------------------------------------------------


def targets_of(kernel):
    return {str(target) for target, _ in kernel._programs}


def test_argument_then_decorator_then_environment(monkeypatch):
    monkeypatch.setenv("TILEDSL_TARGET", "numpy")

    def factory(n):
        @T.prim_func
        def main(X: T.Tensor((n,), "int32")):
            with T.Kernel(1, threads=32):
                for i in T.Parallel(n):
                    X[i] = X[i] + 1

        return main

    x = np.zeros(4, np.int32)
    plain = tiledsl.jit(factory)(4)
    plain(x)
    assert targets_of(plain) == {"numpy"}
    plain(x, target="numpy:exact")
    assert targets_of(plain) == {"numpy", "numpy:exact"}
    decorated = tiledsl.jit(target="numpy:checked")(factory)(4)
    decorated(x)
    assert targets_of(decorated) == {"numpy:checked"}
    decorated(x, target="numpy")
    assert targets_of(decorated) == {"numpy:checked", "numpy"}
    per_kernel = tiledsl.jit(factory)(4, target="numpy:exact")
    per_kernel(x)
    assert targets_of(per_kernel) == {"numpy:exact"}
    monkeypatch.setenv("TILEDSL_TARGET", "numpy:exact")
    plain(x)
    assert x.tolist() == [6] * 4


def test_auto_is_cpu_and_cpu_is_the_first_compiled_target_that_is_there(monkeypatch):
    monkeypatch.delenv("TILEDSL_TARGET", raising=False)
    for expected in ("llvm", "numba"):
        if backend.load_backend(expected).probe().ok:
            backend._resolve.cache_clear()
            assert str(backend.resolve(None)) == str(backend.resolve("auto")) == str(backend.resolve("cpu")) == expected
        gone = backend.Availability(False, "gone")
        monkeypatch.setattr(type(backend.load_backend(expected)), "probe", lambda self, gone=gone: gone)
    backend._resolve.cache_clear()
    assert str(backend.resolve("cpu")) == "numpy"
    backend._resolve.cache_clear()


def test_import_is_light():
    program = (
        "import sys, tiledsl; tiledsl.jit; import tiledsl.language; "
        "print([m for m in ('numba', 'llvmlite', 'torch', 'rich') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# -- refusals ------------------------------------------------------------------------------------------------------


@tiledsl.jit(out_idx=0)
def eager_with_out_idx(A):
    A: T.Tensor[(4,), T.float32]
    C = T.empty((4,), T.float32)
    with T.Kernel(1, threads=4):
        for i in T.Parallel(4):
            C[i] = A[i]
    return C


@tiledsl.jit
def no_prim_func(n):
    @T.prim_func
    def main(X: T.Tensor((n,), "int32")):
        with T.Kernel(1, threads=32):
            for i in T.Parallel(n):
                X[i] = 0

    return n


@tiledsl.jit(out_idx=[-1])
def forgot_prim_func(n):
    def main(X: T.Tensor((n,), "int32"), Y: T.Tensor((n,), "int32")):
        with T.Kernel(1, threads=32):
            T.copy(X, Y)

    return main


@tiledsl.jit
def forgot_return(n):
    @T.prim_func
    def main(X: T.Tensor((n,), "int32")):
        with T.Kernel(1, threads=32):
            T.clear(X)


class Hashable:
    """As a torch tensor: an array that is a valid key."""

    dtype, shape = "float32", (3,)

    def __dlpack__(self):
        raise NotImplementedError

    def __dlpack_device__(self):
        return (1, 0)


class Kernels:
    @tiledsl.jit
    def method(self, A):
        A: T.Tensor[(4,), T.float32]
        C = T.empty((4,), T.float32)
        with T.Kernel(1):
            T.copy(A, C)
        return C


def calls_a_kernel():
    kernel = scaled(8)

    @T.prim_func
    def main(X: T.Tensor((8,), "float32")):
        with T.Kernel(1, threads=8):
            kernel(X)


REFUSED = {
    "method": lambda: Kernels().method(floats(4)),
    "class": lambda: tiledsl.jit(Kernels),
    "kernel_in_kernel": lambda: calls_a_kernel(),
    "order_of_arguments": lambda: tiledsl.compile(shifted)(np.zeros((8, 2), np.float32), 3, np.zeros(8, np.int32)),
    "list_for_an_array": lambda: add([1.0, 2.0], floats(2)),
    "text_for_an_array": lambda: add(floats(2), "2"),
    "none_for_an_array": lambda: add(None, floats(2)),
    "arrays_for_a_factory": lambda: scaled(floats(3), floats(3)),
    "hashable_array_for_a_factory": lambda: scaled(Hashable()),
    "array_for_an_option": lambda: add(floats(2), floats(2), floats(2)),
    "forgot_prim_func": lambda: forgot_prim_func(3),
    "forgot_return": lambda: forgot_return(3),
    "launch_of_triton": lambda: add[(4,)](floats(2), floats(2)),
    "profiler": lambda: scaled(3).get_profiler(),
    "misspelt_member": lambda: scaled(3).get_kernel_sorce(),
    "member_of_function": lambda: scaled.assert_allclose,
    "target_at_decoration": lambda: tiledsl.jit(target="lvm"),
    "target_at_compile": lambda: tiledsl.compile(shifted, target="nunba"),
    "arch_at_decoration": lambda: tiledsl.jit(target="numpy:chekced"),
    "arch_of_cuda": lambda: tiledsl.jit(target="cuda:sm_99"),
    "arch_of_emulator": lambda: tiledsl.jit(target="cuda-emulator:sm_90,chekced"),
    "misspelt_stage": lambda: scaled(3).text("lop"),
    "explain_of_factory": lambda: scaled.explain(3),
    "target_no_text": lambda: tiledsl.jit(target=3),
    "misspelt_option": lambda: tiledsl.jit(out_index=[-1]),
    "call_keyword": lambda: scaled(3)(floats(3), output=floats(3)),
    "eager_out_idx": lambda: eager_with_out_idx(floats(4)),
    "no_prim_func": lambda: no_prim_func(3),
    "unknown_parameter": lambda: scaled(3, dtyp="float16"),
    "missing_parameter": lambda: scaled(),
    "unhashable_array": lambda: scaled(np.zeros(3)),
    "unhashable_option": lambda: scaled(3, by=slice(1, [2])),
    "jit_what": lambda: tiledsl.jit(3),
    "array_type": lambda: add(np.zeros(3, np.complex64), floats(3)),
    "unknown_keyword": lambda: scaled(3)(floats(3), taget="numba"),
    "positional_only": lambda: scaled(3)(**{scaled(3).params[0].name: floats(3)}),
    "unknown_target": lambda: scaled(3)(floats(3), target="nunba"),
    "unknown_arch": lambda: scaled(3)(floats(3), target="numpy:fast"),
    "stage_of_target": lambda: scaled(3).text("loop", "numpy"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name, golden):
    with pytest.raises(TileError) as caught:
        REFUSED[name]()
    text = f"{type(caught.value).__name__}: {caught.value}"
    assert len(text.splitlines()) <= 12
    golden(f"errors/jit_{name}", text, numbered=False)


def test_unavailable_target(monkeypatch, golden):
    gone = backend.Availability(False, "numba not installed", "pip install numba")
    monkeypatch.setattr(type(backend.load_backend("numba")), "probe", lambda self: gone)
    backend._resolve.cache_clear()
    with pytest.raises(TileError) as caught:
        scaled(3)(floats(3), target="numba")
    backend._resolve.cache_clear()
    golden("errors/jit_unavailable_target", f"{type(caught.value).__name__}: {caught.value}")


REGISTRIES = {
    "unavailable": ({"else": "tiledsl.no_such_module:backend"}, "else"),
    "no_backend": ({"else": "tiledsl.config:TARGET"}, "else"),
    "other_name": ({"else": "tiledsl.backends.numpy_reference:backend"}, "else"),
}


@pytest.mark.parametrize("name", REGISTRIES)
def test_registry_errors(name, monkeypatch, golden):
    places, asked = REGISTRIES[name]
    monkeypatch.setattr(backend, "BUILT_IN", {**backend.BUILT_IN, **places})
    caches = (backend.backends, backend.load_backend, backend._resolve)
    for found in caches:
        found.cache_clear()
    with pytest.raises(TileError) as caught:
        backend.resolve(asked)
    golden(f"errors/backend_{name}", f"{type(caught.value).__name__}: {caught.value}")
    if name == "unavailable":
        with pytest.raises(TileError) as caught:
            backend.load_backend(asked).version(backend.Target(asked))
        golden("errors/backend_asked_anyway", f"{type(caught.value).__name__}: {caught.value}")
    for found in caches:
        found.cache_clear()


def test_two_backends_of_one_name(monkeypatch, golden):
    from importlib import metadata

    point = metadata.EntryPoint("numba", "another_package:backend", backend.ENTRY_POINTS)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point])
    backend.backends.cache_clear()
    with pytest.raises(TileError) as caught:
        backend.backends()
    backend.backends.cache_clear()
    golden("errors/backend_two_of_one_name", f"{type(caught.value).__name__}: {caught.value}")


def test_dtype_that_a_target_lacks(monkeypatch, golden):
    few = backend.Capabilities(dtypes=frozenset(["int32"]))
    monkeypatch.setattr(type(backend.load_backend("numba")), "capabilities", lambda self, target: few)
    with pytest.raises(TileError) as caught:
        scaled(4)(floats(4), target="numba")
    golden(
        "errors/jit_dtype_of_target", re.sub(r"\d+(:| \|)", r"N\1", f"{type(caught.value).__name__}: {caught.value}")
    )


def test_wrong_knob_names_the_variable(golden, monkeypatch):
    monkeypatch.setenv("TILEDSL_NUM_THREADS", "many")
    with pytest.raises(TileValueError) as caught:
        config.NUM_THREADS.get()
    golden("errors/config_num_threads", f"{type(caught.value).__name__}: {caught.value}")


def test_errors_are_of_python_kinds_too():
    with pytest.raises(TypeError):
        scaled(3)(np.zeros(3, np.int8))
    with pytest.raises(ValueError, match="expected 1 input"):
        scaled(3)()
    assert issubclass(TileTypeError, TileError)
