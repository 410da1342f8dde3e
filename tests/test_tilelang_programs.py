"""TileLang programs, unchanged, through `tiledsl pytest` and `tiledsl run`: few processes, many programs each."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tiledsl.backend import Capabilities, Target, backends, load_backend  # noqa: E402
from tiledsl.compat.port import complaints, rows, support, table  # noqa: E402

PROGRAMS = Path(__file__).parent / "tilelang_programs"
NEVER = (*("-p", "no:cacheprovider"), "-q", "--no-header", "--tb=short")


def tiledsl(*args: str, cwd: Path = PROGRAMS, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tiledsl", *args],
        cwd=cwd, capture_output=True, text=True, timeout=600,
        env={**os.environ, "PYTHONPATH": str(PROGRAMS.parent.parent), **env},
    )  # fmt: skip


def passed(done: subprocess.CompletedProcess[str]) -> int:
    """How many tests passed; none failed."""
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    found = re.search(r"(\d+) passed", done.stdout)
    assert found, done.stdout
    return int(found[1])


@pytest.mark.slow
def test_all_programs_on_the_default_target() -> None:
    done = tiledsl("pytest", "--", *NEVER, "products.py", "rows.py", "traps.py", "hosts.py", "idioms.py", "roles.py")
    assert passed(done) >= 55 and "1 skipped" in done.stdout  # requires_rocm


@pytest.mark.slow
def test_programs_in_the_manner_of_many_authors() -> None:
    files = ("inference.py", "attention_kinds.py", "models.py", "puzzles.py", "layers.py", "gradients.py")
    done = tiledsl("pytest", "--", *NEVER, *files, "packages.py")
    assert passed(done) >= 40


@pytest.mark.slow
def test_programs_over_tokens_chunks_and_states() -> None:
    done = tiledsl("pytest", "--", *NEVER, "tokens.py", "chunks.py", "indices.py", "states.py")
    assert passed(done) >= 44


def test_programs_of_warps_lanes_and_vectors() -> None:
    assert passed(tiledsl("pytest", "--", *NEVER, "lanes.py")) == 33


def test_names_of_the_language_and_spellings_of_its_versions() -> None:
    done = tiledsl("pytest", "--", *NEVER, "names.py", "versions.py")
    assert passed(done) == 36


def test_what_programs_ask_of_the_host() -> None:
    done = tiledsl("pytest", "--", *NEVER, "host_tools.py", "surface.py", "signatures.py", "sparse.py")
    assert passed(done) >= 38


def test_the_device_and_members_of_kernels() -> None:
    done = tiledsl("pytest", "--", *NEVER, "device.py", "members.py")
    assert passed(done) >= 32


def test_a_project_with_fixtures_and_modules_of_its_own() -> None:
    done = tiledsl("pytest", "--", *NEVER, "training.py")
    assert passed(done) == 3
    project = PROGRAMS / "project"
    done = tiledsl("pytest", "--", *NEVER, "-n", "1", "--run-benchmark", cwd=project)
    assert passed(done) == 37 and "1 skipped" in done.stdout  # of a newer device
    done = tiledsl("run", "-m", "checks.check_quant", *NEVER, "-k", "TestDevice or 33", cwd=project)
    assert passed(done) == 12


def test_traps_on_the_reference_and_in_workers() -> None:
    done = tiledsl("pytest", "--target", "numpy", "--", *NEVER, "-n", "1", "traps.py")
    assert passed(done) >= 11


def test_helpers_of_the_host() -> None:
    done = tiledsl("pytest", "--", *NEVER, "helpers.py")
    assert passed(done) == 8 and "4 skipped" in done.stdout


def test_the_traps_of_the_language() -> None:
    """Each trap of section 3 of language.md that section 0 leaves has a test (14: tests/test_conversions.py)."""
    texts = [(PROGRAMS / f"{name}.py").read_text(encoding="utf-8") for name in ("semantics", "checked")]
    named = {int(n) for text in texts for names in re.findall(r"def test_trap_((?:\d+_(?:and_)?)+)", text)
             for n in re.findall(r"\d+", names)}  # fmt: skip
    assert named == {4, *range(6, 14), *range(15, 23)}
    done = tiledsl("pytest", "--", *NEVER, "semantics.py")
    assert passed(done) == sum(text.count("\ndef test_") for text in texts[:1]) + 5  # parameters
    done = tiledsl("pytest", "--target", "numpy:checked", "--", *NEVER, "semantics.py", "checked.py")
    assert passed(done) == sum(text.count("\ndef test_") for text in texts) + 7


def test_a_program_that_is_its_own_test() -> None:
    done = tiledsl("run", "products.py", *NEVER, "-k", "marks or eager_product")
    assert passed(done) == 2


def test_notices_are_given_once(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(
        "import tilelang, tilelang.language as T\n"
        "for _ in range(2):\n"
        "    @T.prim_func\n"
        "    def main(A: T.Tensor((4,), 'int32')):\n"
        "        with T.Kernel(1, threads=32, speed=9):\n"
        "            T.annotate_pass_configs({'tl.no_such_key': True, 'tl.disable_tma_lower': True})\n"
        "            k = 0\n"
        "            for i in T.serial(4):\n"
        "                k = k + 1\n"
        "                A[i] = k\n"
        "    tilelang.compile(main, target='cuda', made_up=1)\n"
        "@T.prim_func(private=True, bogus=1)\n"
        "def second(A: T.Tensor((32, 32), 'float16'), B: T.Tensor((32, 32), 'float32')):\n"
        "    with T.Kernel(1, threads=32, is_cpu=False):\n"
        "        s, c = T.alloc_shared((32, 32), 'float16'), T.alloc_fragment((32, 32), 'float32')\n"
        "        T.copy(A, s)\n"
        "        T.gemm(s, s, c, wg_wait=0, clear_accum=True)\n"
        "        T.copy(c, B)\n"
        "made = tilelang.compile(second, out_idx=1, pass_configs={'tir.no_such': 1, 'tir.disable_vectorize': True})\n"
        "for _ in range(2):\n"
        "    made.get_profiler().do_bench(n_warmup=1, n_repeat=1, silly=1, fast_flush=True)\n"
        "    tilelang.profiler.do_bench(lambda: None, warmup=1, rep=1, sillier=1)\n"
        "    tuner = tilelang.autotuner.AutoTuner.from_kernel(second, [{}]).set_compile_args(out_idx=1, odd=1)\n"
        "    tuner.set_profile_args(odder=1, supply_type=tilelang.TensorSupplyType.Auto)\n"
    )
    done = tiledsl("run", "p.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for said in (
        "speed=9", "tl.no_such_key", "made_up", "every iteration begins with the value that k has", "option bogus",
        "configuration tir.no_such ", "option silly ", "option sillier ", "option odd ", "option odder ",
    ):  # fmt: skip
        assert done.stderr.count(said) == 1, done.stderr
    assert "disable_tma_lower" not in done.stderr and "p.py:9" in done.stderr
    assert not any(said in done.stderr for said in ("is_cpu", "wg_wait", "private", "fast_flush", "disable_vectorize"))


def test_port_reads_a_program_without_running_it(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(
        "import tilelang.language as T\n"
        "raise SystemExit('must not run')\n"
        "@T.prim_func\n"
        "def main(A: T.Tensor((4,), 'int32')):\n"
        "    with T.Kernel(1, prelude=SOURCE):\n"
        "        T.alloc_tmem([1], 'float32')\n"
        "        T.create_tma_descriptor(1)\n"
        "        T.no_such_operation(1)\n"
        "        T.alloc_tmem([2], T.float32x4)\n"
        "from tilelang.intrinsics import TensorCoreIntrinEmitter as E\n"
        "from tvm import te, arith\n"
        "te.placeholder(arith.Analyzer().simplify(3), T.ptr)\n"
        "T.import_source(made()), T.import_source(SOURCE)\n"
        "T.call_extern('int32', '__popc', 1), T.call_extern('int32', 'my_function', 1)\n"
        "T.call_intrin('float32', 'tir.exp', 1.0), T.call_intrin('handle', 'tl.tma_load', 1)\n"
        "T.cast(1.0, 'float8_e4m3fn', sat=False), T.cast(1.0, 'float6_e2m3fn', round='rs')\n"
        "SOURCE = '#include <mma.h>'\n"
    )
    done = tiledsl("port", "p.py", cwd=tmp_path)
    first, _, *lines = done.stdout.splitlines()
    columns = list(backends())
    assert done.returncode == 1, done.stdout + done.stderr
    found = {line.split()[0]: line for line in lines[1:] if line.endswith((" yes", " no"))}
    assert lines[0].split() == ["lines", *columns]
    made = rows((tmp_path / "p.py").read_text())
    refused = [r.name for r in made if all(r.refused.values())]
    assert set(found) == {r.name for r in made} and sorted(refused) == sorted(
        ["T.Kernel(prelude=)", "T.alloc_tmem", "T.create_tma_descriptor", "T.no_such_operation",
         "T.import_source(source)", "tilelang.intrinsics.TensorCoreIntrinEmitter", "tvm.te.placeholder",
         "T.call_extern('my_function')",
         "T.call_intrin('tl.tma_load')", "float6_e2m3fn", "T.cast(round=)"]
    )  # fmt: skip
    assert first.startswith(f"p.py: of {len(made)} names, supported: {len(made) - 11} on numpy")
    fine = (
        "T.prim_func",
        "T.Kernel",
        "int32",
        "float32",
        "float32x4",
        "handle",
        "T.import_source",
        "T.call_intrin",
        "T.cast",
    )
    assert all("yes" in found[n] for n in (*fine, "tvm.arith.Analyzer"))
    assert found["T.alloc_tmem"].split()[1:] == ["6,", "9", *["no"] * len(columns)]
    said = {line.split()[0]: line for line in lines if line.startswith("p.py:")}
    for place, what in {
        5: "T.Kernel(prelude=...) is hardware-only: it is C text for one GPU; leave it out",
        6: "T.alloc_tmem is hardware-only: it needs tensor memory, which only some GPUs have; accumulate in a",
        7: "T.create_tma_descriptor is hardware-only: it needs descriptors of a GPU's copy engine",
        8: "the language has no T.no_such_operation",
        10: "tilelang.intrinsics.TensorCoreIntrinEmitter is not part of the compatibility layer; write kernels with",
        13: "T.import_source is hardware-only",
        14: "T.call_extern: 'my_function' is none of CUDA's documented",
        15: "T.tma_load is hardware-only",
        16: "T.float6_e2m3fn is hardware-only: it needs formats of other makers' GPUs",
    }.items():
        assert said[f"p.py:{place}:"].startswith(f"p.py:{place}: {what}"), done.stdout
    only = tiledsl("port", "--refused", "p.py", cwd=tmp_path).stdout.splitlines()
    assert [line.split()[0] for line in only[3:14]] == [n for n in found if " no" in found[n]]
    others = ("products.py", "rows.py", "puzzles.py", "host_tools.py")
    assert tiledsl("port", *others).returncode == 0


def test_port_has_a_column_for_every_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target of a later version, or of somebody else, says itself what it lacks."""

    class Small:
        name = "small"

        def capabilities(self, target: Target) -> Capabilities:
            return Capabilities(frozenset(["float32"]), lacks={"gemm": "it has no products; write the loops"})

    real = load_backend
    monkeypatch.setattr("tiledsl.backend.backends", lambda: {"numpy": "", "small": ""})
    monkeypatch.setattr("tiledsl.backend.load_backend", lambda name: Small() if name == "small" else real(name))
    text = "import tilelang.language as T\nT.gemm(a, b)\nT.alloc_shared((4,), 'float16')\nT.copy(a, T.float32)\n"
    found = rows(text)
    assert [(r.name, r.refused["numpy"] is None, r.refused["small"] is None) for r in found] == [
        ("T.gemm", True, False), ("T.alloc_shared", True, True), ("float16", True, False), ("T.copy", True, True),
        ("float32", True, True),
    ]  # fmt: skip
    assert table(found)[0].split() == ["lines", "numpy", "small"]
    assert complaints(found, "p.py") == [
        "p.py:2: on small: T.gemm is refused: it has no products; write the loops",
        "p.py:3: on small: small has no float16",
    ]
    assert "**Refused**: on small: it has no products" in support() and "`gemm`" in support()


def test_the_support_list_of_the_docs() -> None:
    """Made anew by: tiledsl port --support."""
    text = (PROGRAMS.parent.parent / "docs" / "tilelang.md").read_text(encoding="utf-8")
    made = tiledsl("port", "--support")
    assert made.returncode == 0 and text.partition("<!-- support list -->\n")[2] == made.stdout
