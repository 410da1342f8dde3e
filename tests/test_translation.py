"""Every kernel of the registry: targets agree, passes keep the meaning, text reads back, steps ignore tile sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import registry_low_precision  # noqa: F401  (registers its kernels)
import registry_reductions  # noqa: F401
from kernels_registry import KERNELS, Entry
from properties import support

from tiledsl import ir
from tiledsl.backends.cpu.pipeline import cpu_pipeline
from tiledsl.frontend.reader import from_text
from tiledsl.interp import Options, checked, run
from tiledsl.ir.equal import equal
from tiledsl.ir.printer import to_text
from tiledsl.ir.verifier import verify
from tiledsl.passes import pipeline
from tiledsl.passes.instruments import CheckSemantics, Verify

every = pytest.mark.parametrize("entry", KERNELS.values(), ids=lambda e: e.name)


@every
def test_targets_agree_with_the_interpreter(entry: Entry) -> None:
    args = entry.args()
    support.agree(entry.kernel(), *args)


@pytest.mark.parametrize("entry", list(KERNELS.values())[::3], ids=lambda e: e.name)
def test_avx2_agrees_with_the_interpreter(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third kernel, in code for AVX2, where this machine has more; `make avx2` runs the whole suite."""
    native = pytest.importorskip("tiledsl.backends.cpu.native")
    if native.host_cpu().register_bytes < 64:
        pytest.skip("no AVX-512 here")
    monkeypatch.setattr(support, "TARGETS", ["llvm:x86-64-v3"])
    support.agree(entry.kernel(), *entry.args())


@every
def test_checked_mode_has_no_complaint(entry: Entry) -> None:
    """No poison, races or overflow; a shuffled order of blocks gives the same bits."""
    kernel, args = entry.kernel(), entry.args()
    plain = support.copies(args)
    run(kernel.function, plain, Options(exact=True))
    run(kernel.function, args, checked())
    for p, a, b in zip(kernel.params, args, plain, strict=True):
        if isinstance(a, np.ndarray):
            support.assert_same(a, b, f"checked: {p.name}")


class _Stages(pipeline.Instrument):
    """Keeps what each pass gives."""

    def __init__(self) -> None:
        self.functions: list[tuple[str, ir.Function]] = []

    def after(self, p: Any, index: int, before: ir.Function, result: ir.Function, seconds: float) -> None:
        self.functions.append((p.name, result))


@every
def test_passes_keep_the_meaning(entry: Entry) -> None:
    """Interpreted before and after each pass, down to the loop stage, bit for bit, for two sets of arguments."""
    function = entry.kernel().function
    for seed in (0, 1):
        instruments = [Verify(), CheckSemantics(lambda seed: entry.args(seed=seed), seed)]
        lowered = pipeline.run(function, cpu_pipeline(), instruments)
        assert lowered.stage == "loop"


@every
def test_every_stage_prints_and_reads_back(entry: Entry) -> None:
    """The text gives an equal tree, which computes the same."""
    stages = _Stages()
    function = entry.kernel().function
    pipeline.run(function, cpu_pipeline(), [stages])
    wanted = entry.args()
    run(function, wanted, Options(exact=True))
    for name, f in [("frontend", function), *stages.functions]:
        again = from_text(to_text(f))
        verify(again)
        assert equal(f, again, hints=True), f"after {name}:\n{to_text(f)}"
    got = entry.args()
    run(again, got, Options(exact=True))
    for a, b in zip(got, wanted, strict=True):
        if isinstance(a, np.ndarray):
            support.assert_same(a, b, f"{entry.name} read back")


@every
def test_steps_do_not_depend_on_tile_extents(entry: Entry) -> None:
    """All tiles and sizes doubled: as many blocks, as many Python-level steps."""
    counts = []
    for s in (1, 2):
        result = run(entry.kernel(s).function, entry.args(s), Options(count_steps=True))
        counts.append((result.blocks, result.steps))
    assert counts[0] == counts[1]
