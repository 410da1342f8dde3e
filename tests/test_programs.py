"""The programs of tests/programs on every target, against their references and through every pass."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from programs.registry import PROGRAMS, Program
from properties import support

from tiledsl.backends.cpu.pipeline import cpu_pipeline
from tiledsl.passes import pipeline
from tiledsl.passes.instruments import CheckSemantics, Verify
from tiledsl.runtime import JITKernel
from tiledsl.testing import available_targets

for path in sorted((Path(__file__).parent / "programs").glob("*.py")):
    importlib.import_module(f"programs.{path.stem}")

every = pytest.mark.parametrize("program", PROGRAMS.values(), ids=lambda p: p.name)


def run(program: Program, target: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    monkeypatch.setenv("TILEDSL_TARGET", target)
    return program.run(np.random.default_rng(7))


def plain(x: Any) -> Any:
    return x if isinstance(x, np.ndarray) else np.asarray(x)


def compare(program: Program, pairs: list[tuple[Any, Any]], target: str) -> None:
    assert pairs, "a program compares something"
    for i, (got, want) in enumerate(pairs):
        got, want = plain(got), plain(want)
        assert got.shape == want.shape, f"{target}: result {i} has shape {got.shape}, expected {want.shape}"
        if program.error == 0 or got.dtype.kind in "iub":
            assert np.array_equal(got.astype(want.dtype), want), f"{target}: result {i}:\n{got}\n{want}"
            continue
        a, b = got.astype(np.float64), want.astype(np.float64)
        strange = ~np.isfinite(b)
        assert np.array_equal(a[strange], b[strange], equal_nan=True), f"{target}: result {i}"
        error = np.abs(a[~strange] - b[~strange]).max(initial=0.0)
        size = max(1e-30, np.abs(b[~strange]).max(initial=0.0))
        assert error <= program.error * size, f"{target}: result {i} is off by {error:.3g} of {size:.3g}"


@every
def test_on_every_target(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = run(program, "numpy:exact", monkeypatch)
    compare(program, exact, "numpy:exact")
    for target in available_targets():
        pairs = run(program, target, monkeypatch)
        compare(program, pairs, target)
        if program.ordered:
            for i, ((got, _), (want, _)) in enumerate(zip(pairs, exact, strict=True)):
                support.assert_same(plain(got), plain(want), f"{target}: result {i}")


@every
def test_passes_keep_the_meaning(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kernel, on the arguments of its first call: interpreted before and after every pass, down to the loops."""
    seen: set[JITKernel] = set()
    call = JITKernel.__call__

    def checked(kernel: JITKernel, *args: Any, **kw: Any) -> Any:
        if kernel not in seen:
            seen.add(kernel)
            instruments = [Verify(), CheckSemantics(lambda seed: arguments(kernel, list(args)), 0)]
            assert pipeline.run(kernel.function, cpu_pipeline(), instruments).stage == "loop"
        return call(kernel, *args, **kw)

    monkeypatch.setattr(JITKernel, "__call__", checked)
    run(program, "numpy", monkeypatch)
    assert seen, "a program runs a kernel"


def arguments(kernel: JITKernel, inputs: list[Any]) -> list[Any]:
    """One argument per parameter: the inputs, and empty outputs of the shapes that follow from them."""
    from tiledsl.runtime.arguments import Signature
    from tiledsl.runtime.launch import Plan
    from tiledsl.runtime.views import as_numpy

    signature = Signature(kernel.function)
    copies = [a.copy() if isinstance(a, np.ndarray) else a for a in inputs]
    plan = Plan(signature, signature.bind(copies), frozenset(), lambda facts: None)  # type: ignore[arg-type, return-value]
    values = plan.values(copies, None)
    found = []
    for slot, value in zip(signature.slots, values, strict=True):
        if slot.output:
            value[...] = 0
        found.append(value if slot.buffer is None or value is None else as_numpy(value, slot.dtype))
    return found
