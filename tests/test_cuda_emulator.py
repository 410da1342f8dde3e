"""The CUDA emulator on hand-written text: right kernels run clean in every order, planted faults are all reported."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from cuda_text_support import CASES, FOLDER, Case, run, source

from tiledsl.backends.cuda_emulator import toolchain
from tiledsl.backends.cuda_emulator.machine import Options, parse_options, run_text
from tiledsl.errors import InternalError, TileError, TileRuntimeError, TileValueError

pytestmark = pytest.mark.skipif(toolchain.find_compiler() is None, reason="no C++ compiler")

ORDERS = (
    Options(),
    Options(order="last", copies="late"),
    Options(order="random", seed=1, copies="any"),
    Options(order="random", seed=2, copies="late"),
    Options(workers=2),
    Options(check=True, copies="late", banks=True),
    Options(check=True, order="last"),
    Options(check=True, order="random", seed=3, copies="any"),
)


@pytest.mark.parametrize("name", CASES)
def test_right_kernels_in_every_order(name: str) -> None:
    case = CASES[name]()
    for options in ORDERS:
        outcome = run(case, options)
        assert outcome.ended and not outcome.reports, (options, [str(r) for r in outcome.reports])
        case.check()


@pytest.mark.parametrize("sizes", [(1, 8, 8), (7, 8, 40), (64, 64, 32), (65, 136, 200)])
def test_sizes_of_matrix_products(sizes: tuple[int, int, int]) -> None:
    for name in ("gemm_fma", "gemm_mma"):
        case = CASES[name](*sizes)  # type: ignore[call-arg]
        for options in (Options(copies="late"), Options(check=True, copies="late")):
            outcome = run(case, options)
            assert outcome.ended and not outcome.reports
            case.check()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("s", [1, 17, 64, 130])
def test_sizes_of_attention(s: int, causal: bool) -> None:
    case = CASES["attention"](1, s, causal)  # type: ignore[call-arg]
    outcome = run(case, Options(check=True, copies="late"))
    assert outcome.ended and not outcome.reports
    case.check()


# -- planted faults ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """A change of a right kernel's text (cuda_text/faults.toml says what the fields mean)."""

    name: str
    kernel: str
    kinds: tuple[str, ...]
    old: str = ""
    new: str = ""
    line: int = 0
    silent: bool = False
    shared: int | None = None


FAULTS = [
    Fault(**{**row, "kinds": tuple(row["kinds"])})
    for row in tomllib.loads((FOLDER / "faults.toml").read_text(encoding="utf-8"))["fault"]
]


def faulty(case: Case, fault: Fault) -> str:
    text = source(case.name)
    assert fault.old in text, fault
    return text.replace(fault.old, fault.new) if fault.old else text


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.kernel}: {f.name}")
def test_planted_fault(fault: Fault) -> None:
    case = CASES[fault.kernel]()
    text = faulty(case, fault)
    outcome = run(case, Options(check=True, banks=True, copies="early"), text, fault.shared)
    found = {r.kind for r in outcome.reports}
    if "bank conflict" in fault.kinds:
        right = run(CASES[fault.kernel](), Options(check=True, banks=True))
        assert sum(c.wavefronts - c.ideal for c in right.conflicts) == 0
        worst = max(outcome.conflicts, key=lambda c: c.wavefronts - c.ideal)
        assert worst.wavefronts >= 2 * worst.ideal and worst.place is not None and worst.place.author == fault.line
        return
    assert found & set(fault.kinds), [str(r) for r in outcome.reports]
    if fault.line:
        lines = {p.author for r in outcome.reports if r.kind in fault.kinds for p in (r.place, r.other) if p}
        assert fault.line in lines, [str(r) for r in outcome.reports]
    if fault.silent:  # what testing alone would not have found
        fresh = CASES[fault.kernel]()
        run(fresh, Options(), text, None if fault.shared is None else case.shared)
        fresh.check()


def test_there_are_many_kinds_of_faults() -> None:
    assert len(FAULTS) >= 15 and sum(f.silent for f in FAULTS) >= 5
    assert {f.kernel for f in FAULTS} == set(CASES)


def test_deadlock_lists_who_waits_where() -> None:
    case = CASES["pipeline"]()
    fault = next(f for f in FAULTS if f.name == "an arrival too many expected")
    outcome = run(case, Options(), faulty(case, fault))
    (report,) = outcome.reports
    assert report.kind == "deadlock" and not outcome.ended
    assert "threads 0-31 wait at the mbarrier at shared+1168 for parity 0" in report.message
    assert "threads 32-127 wait at the mbarrier at shared+1152 for parity 1" in report.message
    assert "pipeline.py:12" in str(report) and "pipeline.py:17" in str(report)


def test_divergent_barrier_in_a_plain_run() -> None:
    case = CASES["block_sum"]()
    fault = next(f for f in FAULTS if f.name == "barrier in a branch")
    (report,) = run(case, Options(), faulty(case, fault)).reports
    assert report.message == "160 of 256 threads wait at a barrier that the other 96 have passed by"


def test_barriers_that_were_added_come_second() -> None:
    """The place of a report is the author's own barrier, and the other one is called what it is."""
    for first in (0, 1):
        text = kernel(f"""
//@ a.py:3 | T.sync_threads()
if (threadIdx.x / 32 == {first}) {{ tl_sync(); y[0] = n; }} else {{
//@ a.py:9 | T.copy(x, y)
tl_sync();  // added
y[1] = n;
}}""")
        outcome = run_text(text, "k", (np.zeros(2, np.int32), 1), (1,), (64,), 0, Options())
        (report,) = outcome.reports
        assert report.kind == "divergent barrier" and report.place is not None and report.place.author == 3
        assert "and a.py:9: a barrier added before T.copy(x, y)" in str(report)


# -- what may be: no reports ---------------------------------------------------------------------------------------


def kernel(body: str, parameters: str = "int* y, int n", threads: int = 64) -> str:
    return f'extern "C" __global__ void __launch_bounds__({threads}) k({parameters}) {{\n{body}\n}}\n'


def clean(
    text: str, *args: Any, grid: tuple[int, ...] = (1,), threads: int = 64, shared: int = 1024, **more: Any
) -> None:
    for options in (Options(), Options(check=True), Options(check=True, order="last"), Options(order="random", seed=4)):
        outcome = run_text(text, "k", args, grid, (threads,), shared, options, **more)
        assert outcome.ended and not outcome.reports, (options, [str(r) for r in outcome.reports])


def test_threads_that_end_early_do_not_count_at_barriers() -> None:
    y = np.zeros(64, np.int32)
    clean(
        kernel("int t = threadIdx.x; if (t >= n) { tl_exit(); } tl_sync(); y[t] = tl_sync_count(t & 1);"),
        y,
        np.int32(40),
    )
    np.testing.assert_array_equal(y[:40], 20)


def test_release_and_acquire_order_blocks() -> None:
    text = kernel(
        "int t = threadIdx.x, b = blockIdx.x; tl_u32* flag = (tl_u32*)(y + 192);\n"
        "if (b == 0) { y[t] = t; tl_sync(); if (t == 0) { tl_atomic_store_u32(flag, 1u, TL_RELEASE); } }\n"
        "else { if (t == 0) { while (tl_atomic_load_u32(flag, TL_ACQUIRE) == 0u) { tl_spin(); } }\n"
        "tl_sync(); y[b * 64 + t] = y[63 - t]; }"
    )
    y = np.zeros(256, np.int32)

    def fresh(options: Options, changed: str = text) -> tuple[str, ...]:
        y[:] = 0
        outcome = run_text(changed, "k", [y, np.int32(0)], (3,), (64,), 0, options, resident=True)
        assert outcome.ended
        return tuple(r.kind for r in outcome.reports)

    for options in (
        Options(),
        Options(check=True),
        Options(check=True, order="last"),
        Options(check=True, order="random"),
    ):
        assert fresh(options) == ()
        np.testing.assert_array_equal(y[64:192], np.tile(np.arange(64)[::-1], 2))
    relaxed = text.replace("TL_ACQUIRE", "TL_RELAXED")
    assert "race between blocks" in fresh(Options(check=True), relaxed)


def test_blocks_that_wait_by_rounds_of_barriers() -> None:
    """No order keeps the block that they wait for from running."""
    text = kernel(
        "int t = threadIdx.x, b = blockIdx.x; tl_u32* flag = (tl_u32*)(y + 64);\n"
        "if (b == 0) { for (int i = 0; i < 50; i++) { tl_sync(); }\n"
        "if (t == 0) { tl_atomic_store_u32(flag, 1u, TL_RELEASE); } }\n"
        "else { while (!tl_sync_count(tl_atomic_load_u32(flag, TL_ACQUIRE) != 0u)) { } if (b == 1) { y[t] = t; } }"
    )
    y = np.zeros(128, np.int32)
    for options in (
        Options(),
        Options(order="last"),
        Options(order="last", check=True),
        Options(order="random", seed=5),
    ):
        y[:] = 0
        outcome = run_text(text, "k", [y, np.int32(0)], (3,), (64,), 0, options, resident=True)
        assert outcome.ended and not outcome.reports, [str(r) for r in outcome.reports]
        np.testing.assert_array_equal(y[:64], np.arange(64))


def test_grid_barrier() -> None:
    body = (
        "int t = threadIdx.x, b = blockIdx.x; y[b * 64 + t] = b; tl_sync_grid(state);\n"
        "z[b * 64 + t] = y[(b + 1) % 4 * 64 + t]; tl_sync_grid(state); y[b * 64 + t] = 0;"
    )
    text = kernel(body, "int* y, int* z, tl_u32* state")
    y, z, state = np.zeros(256, np.int32), np.zeros(256, np.int32), np.zeros(1, np.uint32)
    for options in (Options(), Options(check=True), Options(check=True, order="random", seed=9)):
        state[:] = 0
        outcome = run_text(text, "k", [y, z, state], (4,), (64,), 0, options, resident=True)
        assert outcome.ended and not outcome.reports, [str(r) for r in outcome.reports]
        np.testing.assert_array_equal(z, np.repeat([1, 2, 3, 0], 64))
    outcome = run_text(text, "k", [y, z, state], (4,), (64,), 0, Options())  # one block at a time: nobody else comes
    assert (
        not outcome.ended
        and outcome.reports[0].kind == "deadlock"
        and "a loop that waits" in outcome.reports[0].message
    )


def test_outputs_count_as_uninitialised() -> None:
    y = np.zeros(64, np.int32)
    text = kernel("y[threadIdx.x] += 1;")
    clean(text, y, np.int32(0))
    outcome = run_text(text, "k", [y, np.int32(0)], (1,), (64,), 0, Options(check=True), outputs=[0])
    assert {r.kind for r in outcome.reports} == {"uninitialised"} and outcome.reports[0].message.startswith(
        "argument 0+0 "
    )


def test_overlapping_arguments_stay_together() -> None:
    memory = np.arange(80, dtype=np.int32)
    text = kernel("int t = threadIdx.x; y[t] = x[t];", "const int* x, int* y")
    outcome = run_text(text, "k", [memory[16:80], memory[0:64]], (1,), (64,), 0, Options(check=True))
    assert {r.kind for r in outcome.reports} == {"race"}  # threads of one block read what others write
    np.testing.assert_array_equal(memory[:64], np.arange(16, 80))


def test_wild_addresses_end_the_launch() -> None:
    y = np.zeros(64, np.int32)
    outcome = run_text(
        kernel("y[(tl_i64)n * 1000000 + threadIdx.x] = 1;"),
        "k",
        [y, np.int32(1000)],
        (1,),
        (64,),
        0,
        Options(check=True),
    )
    assert (
        not outcome.ended
        and outcome.reports[0].kind == "out of bounds"
        and "in no buffer" in outcome.reports[0].message
    )


def test_large_local_arrays() -> None:
    text = kernel(
        "float a[16384]; for (int i = 0; i < 16384; i++) { a[i] = i; } tl_sync(); y[0] = (int)a[n];", threads=1
    )
    y = np.zeros(1, np.int32)
    clean(text, y, np.int32(12345), threads=1)
    assert y[0] == 12345


# -- options, errors -----------------------------------------------------------------------------------------------


def test_options_of_targets() -> None:
    assert parse_options(["checked", "late", "random=7"]) == Options(order="random", seed=7, copies="late", check=True)
    assert parse_options(["banks", "last", "workers=3"]) == Options(order="last", check=True, banks=True, workers=3)
    with pytest.raises(TileValueError, match="has no option 'cheked'"):
        parse_options(["cheked"])


def test_no_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    with pytest.raises(TileRuntimeError, match="cannot be run") as e:
        toolchain.compiler()
    assert "install g++ or clang++" in str(e.value)


def test_text_that_does_not_compile_names_its_line() -> None:
    with pytest.raises(InternalError) as e:
        toolchain.build_kernel(kernel("int t = threadIdx.x;\n  y[t] = undeclared;"), ["k"], watched=False)
    assert any("kernel.cu:3" in n and "undeclared" in n for n in e.value.notes)


def test_sizes_that_no_gpu_has() -> None:
    with pytest.raises(TileError, match="2048 threads"):
        run_text(kernel(""), "k", [np.zeros(1, np.int32), np.int32(0)], (1,), (2048,))
    with pytest.raises(TileError, match="300000 bytes of shared memory"):
        run_text(kernel(""), "k", [np.zeros(1, np.int32), np.int32(0)], (1,), (64,), 300000)
