"""Launching on every target: in place and zero-copy, any number of threads, debug output, caches, failures."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import subprocess
import sys
import textwrap
import threading
import weakref
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from kernels_support import close

import tiledsl
import tiledsl.language as T
from tiledsl import backend, config, ir
from tiledsl.dtypes import as_dtype
from tiledsl.errors import InternalError, TileError, TileRuntimeError, TileValueError
from tiledsl.runtime import program, ring
from tiledsl.runtime.kernel import JITKernel

ROOT = Path(__file__).parent.parent


@pytest.fixture(params=["numpy", "numba"])
def target(request):
    state = backend.load_backend(request.param).probe()
    if not state.ok:
        pytest.skip(f"target {request.param} is not available: {state.reason}")
    return request.param


def without_lines(e):
    """The text of an error, with the numbers of this file's lines left out, and the room that they take."""
    text = re.sub(r"(launch\.py:)\d+", r"\1N", f"{type(e).__name__}: {e}")
    return re.sub(r"^ +( \|| =|-->)|^\d+( \|)", lambda m: f"N{m[2]}" if m[2] else f" {m[1]}", text, flags=re.MULTILINE)


def needs_numba():
    state = backend.load_backend("numba").probe()
    if not state.ok:
        pytest.skip(f"target numba is not available: {state.reason}")


M, N = T.dynamic("m, n")


@T.prim_func
def softplus_rows(X: T.Tensor((M, N), "float32"), s: T.float32, Y: T.Tensor((M, N), "float32")):
    with T.Kernel(T.ceildiv(N, 64), T.ceildiv(M, 16), threads=64) as (bx, by):
        for i, j in T.Parallel(16, 64):
            Y[by * 16 + i, bx * 64 + j] = T.exp2(X[by * 16 + i, bx * 64 + j]) * s


@T.prim_func
def double_in_place(X: T.Tensor((M,), "float32")):
    with T.Kernel(T.ceildiv(M, 32), threads=32) as bx:
        for i in T.Parallel(32):
            X[bx * 32 + i] = X[bx * 32 + i] * 2


@T.prim_func
def scale_bf16(X: T.Tensor((M, N), "bfloat16"), Y: T.Tensor((M, N), "bfloat16")):
    with T.Kernel(M, threads=32) as bx:
        for j in T.Parallel(N):
            Y[bx, j] = X[bx, j] * 2


@T.prim_func
def strided_copy(X: T.StridedTensor((M, N), (T.dynamic("sx"), 1), "int32"), Y: T.Tensor((M, N), "int32")):
    with T.Kernel(M, threads=32) as bx:
        for j in T.Parallel(N):
            Y[bx, j] = X[bx, j]


@T.prim_func
def optional_bias(X: T.Tensor((4,), "int32"), Bias: T.Tensor((4,), "int32"), Y: T.Tensor((4,), "int32")):
    with T.Kernel(1, threads=4):
        for i in T.Parallel(4):
            Y[i] = X[i]


@T.prim_func
def grid_from_scalar(X: T.Tensor((M,), "int32"), blocks: T.int32):
    with T.Kernel(blocks, threads=1) as bx:
        for _ in T.Parallel(1):
            X[bx] = X[bx] + 1


@T.prim_func
def checks(X: T.Tensor((M,), "int32")):
    with T.Kernel(T.ceildiv(M, 4), threads=1) as bx:
        for i in T.serial(4):
            T.device_assert(X[bx * 4 + i] < 10, "values stay below ten")
            T.device_assert(X[bx * 4 + i] > -10, "values stay\nabove minus ten")
            X[bx * 4 + i] = X[bx * 4 + i] + 1


@T.prim_func
def talks(X: T.Tensor((M,), "float16")):
    with T.Kernel(M, threads=1) as bx:
        s = T.alloc_shared((3,), "float32")
        for i in T.Parallel(3):
            s[i] = X[bx] + i
        T.print(X[bx], "value")
        T.print(bx * 2)
        T.print(s, "tile")
        square = T.alloc_shared((2, 2), "float32")
        T.fill(square, X[bx])
        T.print(square, "two\nlines, and a square")
        T.print("done {with} this")


# -- values --------------------------------------------------------------------------------------------------------


def test_one_kernel_many_shapes(target):
    kernel = tiledsl.compile(softplus_rows, out_idx=[2])
    rng = np.random.default_rng(1)
    for m, n in [(1, 1), (16, 64), (33, 129), (7, 500), (0, 5), (5, 0)]:
        x = rng.standard_normal((m, n)).astype(np.float32)
        y = kernel(x, 0.5, target=target)
        assert y.shape == (m, n)
        assert close(y, np.exp2(x.astype(np.float64)) * 0.5, 3)
    assert len(kernel._programs) == 1  # one compile serves them all


def test_any_number_of_threads_gives_the_same_bits(target):
    kernel = tiledsl.compile(softplus_rows, out_idx=[2])
    x = np.random.default_rng(2).standard_normal((301, 777)).astype(np.float32)
    results = []
    for threads in (1, 2, 3, 8):
        with config.NUM_THREADS.override(threads):
            results += [kernel(x, 1.5, target=target) for _ in range(3)]
    assert all(np.array_equal(r, results[0]) for r in results)


def test_in_place_and_repeated(target):
    kernel = tiledsl.compile(double_in_place)
    x = np.ones(100, np.float32)
    for _ in range(5):
        assert kernel(x, target=target) is None
    assert (x == 32).all()


def test_many_python_threads_at_once(target):
    kernel = tiledsl.compile(double_in_place)
    arrays = [np.full(5000, float(i), np.float32) for i in range(6)]

    def work(x):
        for _ in range(10):
            kernel(x, target=target)

    workers = [threading.Thread(target=work, args=(x,)) for x in arrays]
    for w in workers:
        w.start()
    for w in workers:
        w.join(60)
    for i, x in enumerate(arrays):
        assert (x == i * 1024).all()


def test_strided_arguments_are_not_copied(target):
    kernel = tiledsl.compile(strided_copy, out_idx=1)
    base = np.arange(60, dtype=np.int32).reshape(6, 10)
    assert np.array_equal(kernel(base[1:5, 2:7], target=target), base[1:5, 2:7])
    assert np.array_equal(kernel(np.broadcast_to(base[0], (4, 10)), target=target), np.tile(base[0], (4, 1)))


def test_absent_arguments(target):
    kernel = tiledsl.compile(optional_bias, out_idx=2)
    assert kernel(np.arange(4, dtype=np.int32), None, target=target).tolist() == [0, 1, 2, 3]


def test_a_grid_that_depends_on_a_scalar(target):
    kernel = tiledsl.compile(grid_from_scalar)
    x = np.zeros(6, np.int32)
    for blocks in (2, 4, 0, 4, np.int64(1)):
        kernel(x, blocks, target=target)
    assert x.tolist() == [4, 3, 2, 2, 0, 0]


def test_torch_in_torch_out(target):
    torch = pytest.importorskip("torch", reason="no torch")
    kernel = tiledsl.compile(scale_bf16, out_idx=1)
    x = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)
    for _ in range(2):  # the second call takes the quick path
        y = kernel(x, target=target)
        assert isinstance(y, torch.Tensor) and y.dtype == torch.bfloat16
        assert torch.equal(y, x * 2)
    parameter = torch.nn.Parameter(x.clone())
    assert torch.equal(kernel(parameter, target=target), x * 2)
    mixed = kernel(x.view(torch.int16).numpy().view(ml_dtypes.bfloat16), target=target)
    assert isinstance(mixed, np.ndarray)


def test_out_takes_arrays_of_any_kind(target):
    kernel = tiledsl.compile(softplus_rows, out_idx=[2])
    x, y = np.zeros((3, 4), np.float32), np.full((3, 4), 7, np.float32)
    assert kernel(x, 1.0, out=y, target=target) is y and (y == 1).all()
    with pytest.raises(TileError, match="Y: expected float32"):
        kernel(x, 1.0, out=np.zeros((3, 5), np.float32), target=target)


def test_a_call_with_other_types_is_checked_again(target):
    kernel = tiledsl.compile(softplus_rows, out_idx=[2])
    x = np.zeros((3, 4), np.float32)
    kernel(x, 1.0, target=target)
    kernel(x, 2, target=target)
    with pytest.raises(TileError, match="expected a Python or NumPy number"):
        kernel(x, "2", target=target)
    with pytest.raises(TileError, match="does not fit"):
        kernel(x, 1e300, target=target)
    with pytest.raises(TileError, match="contiguous"):
        kernel(x.T, 1.0, target=target)
    with pytest.raises(TileError, match="read-only"):
        frozen = np.zeros((3, 4), np.float32)
        frozen.flags.writeable = False
        kernel(x, 1.0, out=frozen, target=target)


def test_kernels_and_arrays_are_freed(target):
    kernel = tiledsl.compile(double_in_place)
    x = np.ones(64, np.float32)
    kernel(x, target=target)
    seen, dead = weakref.ref(kernel), weakref.ref(x)
    del kernel, x
    gc.collect()
    assert seen() is None and dead() is None


# -- debug output ----------------------------------------------------------------------------------------------------


def test_prints_are_the_same_on_every_target(capsys):
    needs_numba()
    kernel = tiledsl.compile(talks)
    x = np.array([1.5, -2, 1000], np.float16)
    kernel(x, target="numpy")
    expected = capsys.readouterr().out
    assert expected.splitlines()[-7:] == [
        "value 1e+03",
        "4",
        "tile [1000. 1001. 1002.]",
        "two",
        "lines, and a square [[1000. 1000.]",
        " [1000. 1000.]]",
        "done {with} this",
    ]
    kernel(x, target="numba")
    assert capsys.readouterr().out == expected


def test_failed_asserts_name_the_line(target, golden):
    kernel = tiledsl.compile(checks)
    x = np.arange(12, dtype=np.int32) % 9
    kernel(x, target=target)
    x[6] = 10
    with pytest.raises(TileRuntimeError) as caught:
        kernel(x, target=target)
    golden("errors/device_assert", without_lines(caught.value))
    x[6] = -10
    with pytest.raises(TileRuntimeError, match="values stay\nabove minus ten") as caught:
        kernel(x, target=target)
    assert caught.value.notes == ("where bx = 1, i = 2",)


def test_a_full_ring_says_how_much_is_missing(capsys):
    with config.PRINT_BUFFER.override(64):
        one = ring.Ring([backend.Site("print", "x = {}", (as_dtype("int32"),))])
    for _ in range(20):  # what compiled code does
        at = one.words[0]
        one.words[0] += 4
        if at + 4 <= one.words[1]:
            one.words[at], one.words[at + 1], one.words[at + 2], one.words[at + 3] = 0, 0, 1, -7
    one.flush()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:15] == ["x = -7"] * 15 and len(lines) == 16 and "18 words" in lines[15]
    assert list(one.records()) == []


# -- specialisation and caches -----------------------------------------------------------------------------------------


def variants(monkeypatch, *facts):
    """Y = X + 1 for a backend that asks for these facts, and the list of what it is told of each program."""
    seen = []
    reference = backend.load_backend("numpy")
    wants = backend.Capabilities(dtypes=frozenset(["float32"]), facts=frozenset(facts), cacheable=False)
    monkeypatch.setattr(type(reference), "capabilities", lambda self, target: wants)
    emit = type(reference).emit
    monkeypatch.setattr(
        type(reference), "emit", lambda self, f, target: (seen.append(dict(f.attrs)), emit(self, f, target))[1]
    )

    @T.prim_func
    def add_one(X: T.Tensor((M,), "float32"), Y: T.Tensor((M,), "float32")):
        with T.Kernel(T.ceildiv(M, 32), threads=32) as bx:
            for i in T.Parallel(32):
                Y[bx * 32 + i] = X[bx * 32 + i] + 1

    return tiledsl.compile(add_one), seen


def test_overlapping_arguments_have_a_program_of_their_own(monkeypatch):
    """Where nothing else is asked for, too."""
    kernel, seen = variants(monkeypatch, "aliased")
    x, y = np.zeros((2, 64), np.float32)
    for args in ((x, y), (x, x), (x, y), (y, y)):
        kernel(*args, target="numpy")
    assert seen == [{}, {"aliased": True}]


def test_aliased_and_aligned_arguments_select_variants(monkeypatch):
    """A backend that asks for facts gets them as attrs of the function it compiles."""
    kernel, seen = variants(monkeypatch, "aliased", "aligned16", "divisible16")
    memory = np.zeros(200, np.float32)
    start = (-memory.ctypes.data % 16) // 4  # from here addresses are multiples of 16 bytes
    x, y = memory[start : start + 64], memory[start + 64 : start + 128]
    kernel(x, y, target="numpy")
    kernel(x, y, target="numpy")
    assert seen == [{"aligned16": ("X", "Y"), "divisible16": ("m",)}]
    kernel(x, x, target="numpy")
    assert seen[1]["aliased"] is True
    kernel(memory[start + 1 : start + 65], memory[start + 65 : start + 129], target="numpy")
    assert seen[2] == {"aligned16": (), "divisible16": ("m",)}
    kernel(x[:63], y[:63], target="numpy")
    assert seen[3] == {"aligned16": ("X", "Y"), "divisible16": ()}
    kernel(memory[:64], memory[63:127], target="numpy")  # one element in common
    assert seen[4].get("aliased") is True
    assert len(seen) == 5


def run_python(text, cache, **env):
    needs_numba()
    settings = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TILEDSL_CACHE_DIR": str(cache),
        "TILEDSL_TARGET": "numba",
        **env,
    }
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", text], env=settings, capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def script(tmp_path):
    """A program in a file (the frontend reads sources) that adds two arrays and says how it got its code."""
    file = tmp_path / "program.py"
    file.write_text(
        textwrap.dedent(
            """
            import sys
            import numpy as np
            import tiledsl
            import tiledsl.language as T

            m = T.dynamic("m")

            @tiledsl.jit(out_idx=[-1])
            def make(block):
                @T.prim_func
                def main(A: T.Tensor((m,), "float32"), B: T.Tensor((m,), "float32"), C: T.Tensor((m,), "float32")):
                    with T.Kernel(T.ceildiv(m, block), threads=32) as bx:
                        for i in T.Parallel(block):
                            T.device_assert(A[bx * block + i] < 1000, "small")
                            C[bx * block + i] = A[bx * block + i] + B[bx * block + i]

                return main

            kernel = make(int(sys.argv[1]) if len(sys.argv) > 1 else 32)
            x = np.arange(100, dtype=np.float32)
            assert np.array_equal(kernel(x, x), x * 2)
            (found,) = kernel._programs.values()
            print("compiled" if found.compiled else "cached", "numba" in sys.modules)
            """
        )
    )
    return f"import runpy; runpy.run_path({str(file)!r})"


def test_a_warm_process_compiles_nothing(script, tmp_path):
    cache = tmp_path / "cache"
    cold = run_python(script, cache)
    assert cold.stdout == "compiled True\n", cold.stderr
    warm = run_python(script, cache)
    assert warm.stdout == "cached False\n", warm.stderr
    assert run_python(script, cache, TILEDSL_DISABLE_CACHE="1").stdout == "compiled True\n"
    for file in cache.glob("*.tile"):
        file.write_bytes(file.read_bytes()[:-7])
    assert run_python(script, cache).stdout == "compiled True\n"
    assert run_python(script, cache).stdout == "cached False\n"


@pytest.mark.slow
def test_eight_cold_processes_at_once(script, tmp_path):
    needs_numba()
    settings = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TILEDSL_CACHE_DIR": str(tmp_path / "c"),
        "TILEDSL_TARGET": "numba",
    }
    workers = [
        subprocess.Popen([sys.executable, "-c", script], env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(8)
    ]
    for worker in workers:
        out, err = worker.communicate(timeout=300)
        assert worker.returncode == 0 and out.split()[0] in (b"compiled", b"cached"), err.decode()
    assert run_python(script, tmp_path / "c").stdout == "cached False\n"


def test_a_moved_line_is_not_reported_from_the_cache(tmp_path):
    """The artifact names lines of asserts: the same kernel further down the file is compiled anew."""
    file = tmp_path / "moving.py"
    body = textwrap.dedent(
        """
        import numpy as np
        import tiledsl
        import tiledsl.language as T

        @T.prim_func
        def main(A: T.Tensor((4,), "int32")):
            with T.Kernel(1, threads=4):
                for i in T.serial(4):
                    T.device_assert(A[i] < 0, "negative")

        try:
            tiledsl.compile(main)(np.zeros(4, np.int32))
        except tiledsl.errors.TileRuntimeError as e:
            print(e.loc.line)
        """
    )
    call = f"import tiledsl.errors, runpy; runpy.run_path({str(file)!r})"
    lines = []
    for shift in (0, 5):
        file.write_text("\n" * shift + body)
        done = run_python(call, tmp_path / "cache")
        assert done.returncode == 0, done.stderr
        lines.append(int(done.stdout))
    assert lines[1] == lines[0] + 5


# -- what goes wrong below us ------------------------------------------------------------------------------------------


def test_anything_unexpected_names_a_file_that_reproduces_it(monkeypatch):
    needs_numba()
    numba = backend.load_backend("numba")

    def broken(self, function, target):
        raise KeyError("no such register")

    monkeypatch.setattr(type(numba), "emit", broken)
    monkeypatch.setenv("TILEDSL_DISABLE_CACHE", "1")
    kernel = tiledsl.compile(double_in_place)
    with pytest.raises(InternalError, match="emit failed for double_in_place: KeyError: 'no such register'") as caught:
        kernel(np.ones(4, np.float32), target="numba")
    (note,) = [n for n in caught.value.notes if "saved" in n]
    file = Path(note.split()[-1])
    text = file.read_text()
    file.unlink()
    assert "double_in_place" in text and "no such register" in text and "pipeline:" in text
    assert len(str(caught.value).splitlines()) <= 12


def test_author_errors_from_a_backend_pass_through(monkeypatch):
    def refuses(self, artifact):
        raise TileRuntimeError("not on Sundays")

    monkeypatch.setattr(type(backend.load_backend("numpy")), "load", refuses)
    with pytest.raises(TileRuntimeError, match="not on Sundays"):
        tiledsl.compile(double_in_place)(np.ones(4, np.float32), target="numpy")


def with_code(code):
    """A kernel whose compiled code does nothing but return a code."""
    signature = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_char_p, ctypes.c_void_p)
    function = signature(lambda first, last, args, context: code)

    class Launches:
        def __call__(self, call, *, stream=None, device=None):
            call.run_grid(0, function)

    traced = double_in_place.function
    kernel, target = JITKernel(traced), backend.Target("numpy")
    artifact = backend.Artifact.of(traced, "text")
    kernel._programs[(target, ())] = program.Program(traced, target, artifact, Launches(), True)
    return lambda: kernel(np.ones(4, np.float32), target=target)


def test_codes_of_compiled_blocks(golden):
    with_code(0)()
    with pytest.raises(InternalError, match="code 3"):  # suspended: nobody here can resume, so it must not pass
        with_code(3)()
    with pytest.raises(TileRuntimeError) as caught:
        with_code(2)()  # an assert whose record found no room
    golden("errors/device_assert_unrecorded", without_lines(caught.value))


def test_host_variables_of_an_artifact():
    n, f, m = ir.Var("n", as_dtype("int32")), ir.Var("f", as_dtype("float32")), ir.Var("m", as_dtype("int64"))
    function = ir.Function("g", (ir.Param("n", None, n), ir.Param("f", None, f)), (), symbols=(m,))
    assert backend.host_vars(function) == (n, m)


def test_threads_that_meet_at_the_first_call_compile_once(monkeypatch):
    needs_numba()
    compiled = []
    real = program.compile_function
    monkeypatch.setattr(program, "compile_function", lambda *a: (compiled.append(1), real(*a))[1])
    kernel = tiledsl.compile(double_in_place)
    arrays = [np.ones(40, np.float32) for _ in range(4)]
    workers = [threading.Thread(target=kernel, args=(x,), kwargs={"target": "numba"}) for x in arrays]
    for w in workers:
        w.start()
    for w in workers:
        w.join(60)
    assert len(compiled) == 1 and all((x == 2).all() for x in arrays)


def test_a_repeated_call_is_not_bound_again(target, monkeypatch):
    """Everything that follows from types and shapes is looked up, not worked out again."""
    from tiledsl.runtime.arguments import Signature

    bound = []
    real = Signature.bind
    monkeypatch.setattr(Signature, "bind", lambda self, *a, **k: (bound.append(1), real(self, *a, **k))[1])
    kernel = tiledsl.compile(softplus_rows, out_idx=[2])
    for value in (1.0, 2.0, 3):
        for rows in (4, 5):
            for _ in range(3):
                kernel(np.zeros((rows, 8), np.float32), value, target=target)
    assert len(bound) == 4  # two shapes, two types of scalar
    torch = sys.modules.get("torch")
    if torch is not None:
        for _ in range(3):
            kernel(torch.zeros(4, 8), 1.0, target=target)
        assert len(bound) == 5


def test_an_array_without_elements_may_be_written() -> None:
    """NumPy gives it strides of 0, which otherwise mean that elements share memory."""
    n = T.dynamic("n")

    @T.prim_func
    def main(X: T.Tensor((n, 5), "int32")):
        with T.Kernel(T.ceildiv(n, 4)) as b:
            for i, j in T.Parallel(4, 5):
                X[b * 4 + i, j] = 1

    kernel = tiledsl.compile(main)
    for target in ("numpy:exact", "llvm", "numba"):
        kernel(np.empty((0, 5), np.int32), target=target)
    with pytest.raises(TileError, match="share memory"):
        kernel(np.lib.stride_tricks.as_strided(np.zeros(5, np.int32), (3, 5), (0, 4)))


@pytest.mark.parametrize("target", ["llvm", "numpy:exact"])
def test_an_empty_grid_makes_no_output(target: str) -> None:
    """A new array that no block writes would hold whatever was in memory."""
    n = T.dynamic("n")

    @T.prim_func
    def main(A: T.Tensor((n,), "float32"), B: T.Tensor((n,), "float32")):
        with T.Kernel(n // 64) as b:
            for i in T.Parallel(64):
                B[b * 64 + i] = A[b * 64 + i]

    kernel = tiledsl.compile(main, out_idx=[1])
    assert kernel(np.ones(64, np.float32), target=target).sum() == 64
    with pytest.raises(TileValueError, match=r"the grid \(0,\) has no blocks: nobody writes B"):
        kernel(np.ones(10, np.float32), target=target)
    assert kernel(np.ones(0, np.float32), target=target).shape == (0,)
    given = np.full(10, 7, np.float32)
    kernel(np.ones(10, np.float32), out=given, target=target)
    assert (given == 7).all()
