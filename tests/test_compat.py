"""TileLang programs through `tiledsl run`, and the device that they are told they have."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tiledsl.compat.pretended_cuda import pretended, real  # noqa: E402

PROGRAM = """
import tilelang
import tilelang.language as T
import torch


@tilelang.jit(out_idx=[-1], pass_configs={tilelang.PassConfigKey.TL_ENABLE_FAST_MATH: True})
def matmul(M, N, K, block_M, block_N, block_K, dtype="float16", accum_dtype="float"):
    @T.prim_func
    def main(A: T.Tensor((M, K), dtype), B: T.Tensor((K, N), dtype), C: T.Tensor((M, N), dtype)):
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), threads=128) as (bx, by):
            A_shared = T.alloc_shared((block_M, block_K), dtype)
            B_shared = T.alloc_shared((block_K, block_N), dtype)
            C_local = T.alloc_fragment((block_M, block_N), accum_dtype)
            T.clear(C_local)
            for ko in T.Pipelined(T.ceildiv(K, block_K), num_stages=3):
                T.copy(A[by * block_M, ko * block_K], A_shared, some_hint=3)
                T.copy(B[ko * block_K, bx * block_N], B_shared)
                T.gemm(A_shared, B_shared, C_local)
            T.copy(C_local, C[by * block_M, bx * block_N])

    return main


def main():
    kernel = matmul(100, 96, 64, 32, 32, 32)
    a, b = torch.randn(100, 64).cuda().half(), torch.randn(64, 96, device="cuda").half()
    c = kernel(a, b)
    assert c.is_cuda and c.device.type == "cuda"
    torch.testing.assert_close(c, a @ b, rtol=1e-2, atol=1e-2)
    profiler = kernel.get_profiler(tensor_supply_type=tilelang.TensorSupplyType.Normal)
    profiler.assert_allclose(lambda A, B: A @ B, rtol=1e-2, atol=1e-2)
    profiler.assert_consistent(repeat=2)
    assert profiler.do_bench(n_warmup=1, n_repeat=2) > 0
    assert "main" in kernel.get_kernel_source()
    print("Kernel output matches PyTorch reference.")


if __name__ == "__main__":
    main()
"""


FAILING = """
import sys
import tilelang
import tilelang.language as T
import torch


@tilelang.jit(out_idx=[-1])
def factory(n):
    @T.prim_func
    def main(A: T.Tensor((n,), "float32"), C: T.Tensor((n,), "float32")):
        with T.Kernel(1, threads=128) as bx:
            s = T.alloc_shared((64,), "float32")
            T.copy(A, s)
            T.device_assert(s[0] == 0, "not zero")
            T.copy(s, C)

    return main


def host(n, size):
    kernel = factory(n)
    return kernel(torch.ones(size, device="cuda"))


if __name__ == "__main__":
    host(int(sys.argv[1]), int(sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("sizes", "kernel_line", "call"),
    [
        ((65, 65), "T.copy(A, s)", "kernel = factory(n)"),
        ((64, 63), "def main(A", 'return kernel(torch.ones(size, device="cuda"))'),
        ((64, 64), "T.device_assert(s[0]", 'return kernel(torch.ones(size, device="cuda"))'),
    ],
)
def test_an_error_shows_the_kernel_and_the_call(sizes, kernel_line: str, call: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(FAILING)
    done = tiledsl_run("program.py", *map(str, sizes), cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    first, found, second = done.stderr.partition("called from\n  --> program.py:")
    assert found and kernel_line in first and call in second and "in host" in second
    assert call not in first and kernel_line not in second


def test_show_a_tilelang_program(tmp_path: Path) -> None:
    """It is imported as `tiledsl run` would, and the kernels are those of its own decorators."""
    (tmp_path / "program.py").write_text(FAILING)
    show = [sys.executable, "-m", "tiledsl", "show"]
    done = subprocess.run([*show, "program.py:factory(64)"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "T.copy(A, s)" in done.stdout and "T.Tensor((64,)" in done.stdout
    done = subprocess.run([*show, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "factory needs values" in done.stdout


def tiledsl_run(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tiledsl", "run", *args], cwd=cwd, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("target", ["cpu", "numpy"])
def test_a_program_runs_unchanged(target: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    done = tiledsl_run("--target", target, "program.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "matches" in done.stdout
    assert done.stderr.count("the hint some_hint=3 is passed over") == 1


def test_modules_arguments_and_exit_status(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("import sys, tilelang\nprint(sys.argv[1:])\nsys.exit(3)\n")
    for given in (["a", "--b"], ["--b", "-m", "a"], []):
        done = tiledsl_run("-m", "module", *given, cwd=tmp_path)
        assert done.returncode == 3 and done.stdout.strip() == str(given)
    done = tiledsl_run("module.py", "-m", "a", cwd=tmp_path)
    assert done.returncode == 3 and done.stdout.strip() == "['-m', 'a']"


def test_a_mistake_is_shown_with_the_programs_line(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(
        textwrap.dedent(
            """
            import tilelang.language as T

            @T.prim_func
            def main(A: T.Tensor((4,), "float32")):
                with T.Kernel(1):
                    T.gemm(A, A, A)
            """
        )
    )
    done = tiledsl_run("wrong.py", cwd=tmp_path)
    assert done.returncode == 1 and "wrong.py:7:9" in done.stderr


def test_cuda_is_pretended_only_inside() -> None:
    with pretended((8, 6)):
        x = torch.randn(3, 4, device="cuda", dtype=torch.float16)
        moved = [torch.ones(2).cuda(), torch.zeros(2).to("cuda"), torch.empty(2, device=torch.device("cuda:0"))]
        assert x.is_cuda and all(m.device == torch.device("cuda", 0) for m in moved)
        assert torch.cuda.is_available() and torch.cuda.get_device_capability() == (8, 6)
        assert torch.cuda.get_device_properties(0).multi_processor_count == 132
        generator = torch.Generator(device="cuda")
        generator.manual_seed(3)
        assert torch.randn(2, generator=generator, device="cuda").shape == (2,)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        end.record()
        torch.cuda.synchronize()
        assert start.elapsed_time(end) >= 0
        assert torch.nn.Linear(2, 3).cuda().to("cuda")(torch.ones(1, 2, device="cuda")).shape == (1, 3)
        with real():
            assert x.device.type == "cpu" and not x.is_cuda
    assert x.device.type == "cpu" and not torch.cuda.is_available()
