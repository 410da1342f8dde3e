"""Kernels in notebooks: cells as source, what a notebook shows, and the two notebooks of the examples."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tiledsl
from tiledsl.backend import load_backend
from tiledsl.errors import InternalError, TileError

interactiveshell = pytest.importorskip("IPython.core.interactiveshell")
capture = pytest.importorskip("IPython.utils.capture")

FOLDER = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

KERNEL = """
import numpy as np
import tiledsl
import tiledsl.language as T


@tiledsl.jit(out_idx=[-1], target="numpy")
def add(n, more):
    @T.prim_func
    def main(A: T.Tensor((n,), "float32"), B: T.Tensor((n,), "float32")):
        with T.Kernel(1, threads=32):
            for i in T.Parallel(n):
                B[i] = A[i] + more

    return main
"""


@pytest.fixture
def shell() -> Iterator[Any]:
    made = interactiveshell.InteractiveShell.instance()
    made.reset(new_session=True)
    yield made
    interactiveshell.InteractiveShell.clear_instance()


def run(shell: Any, text: str) -> tuple[Any, str]:
    """(the cell's result, what it printed)."""
    with capture.capture_output() as seen:
        result = shell.run_cell(text, store_history=True)
    return result, seen.stdout


def test_a_kernel_of_one_cell_is_called_in_another(shell: Any) -> None:
    run(shell, KERNEL)[0].raise_error()
    result, _ = run(shell, "add(5, 1.0)(np.arange(5, dtype=np.float32)).tolist()")
    assert result.result == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_cell_run_again_with_a_change_is_another_kernel(shell: Any) -> None:
    run(shell, KERNEL)[0].raise_error()
    run(shell, KERNEL.replace("A[i] + more", "A[i] - more"))[0].raise_error()
    result, _ = run(shell, "add(2, 1.0)(np.zeros(2, np.float32)).tolist()")
    assert result.result == [-1.0, -1.0]


def test_messages_name_the_cell_and_leave_our_frames_out(shell: Any) -> None:
    run(shell, KERNEL.replace("A[i] + more", "A[i, i] + more"))[0].raise_error()
    result, printed = run(shell, "add(2, 1.0)")
    assert isinstance(result.error_in_exec, TileError)
    assert "--> In[1]:12:" in printed and "^" in printed
    assert "tiledsl/" not in printed


def test_bugs_of_ours_keep_their_traceback(shell: Any) -> None:
    result, printed = run(shell, "from tiledsl.errors import InternalError\ndef f(): raise InternalError('x')\nf()")
    assert isinstance(result.error_in_exec, InternalError)
    assert "in f()" in printed or "line 2" in printed


def test_a_notebook_shows_kernels_as_panels(shell: Any) -> None:
    run(shell, KERNEL)[0].raise_error()
    result, _ = run(shell, "add(5, 1.0).show()")
    shown = result.result._repr_html_()
    assert "B[i] = " in shown and shown.startswith("<details") and "tile stage" in shown
    assert str(result.result) == result.result.text
    result, _ = run(shell, "add(5, 1.0)")
    assert isinstance(result.result, tiledsl.JITKernel) and result.result._repr_html_() == shown


def test_texts_of_authors_are_escaped() -> None:
    from tiledsl.runtime.shown import Shown

    shown = Shown("<a>", "tile", 'T.print("</pre><script>alert(1)</script>")')._repr_html_()
    assert "<script>" not in shown and "<a>" not in shown and "&lt;script&gt;" in shown


def test_the_notebooks_are_there() -> None:
    if not FOLDER.is_dir():
        pytest.skip("not in a checkout")
    assert [p.name[:2] for p in NOTEBOOKS] == ["05", "06"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(path: Path, shell: Any) -> None:
    """All cells run; those that show a mistake fail with the message that is printed in the notebook."""
    if not load_backend("llvm").probe().ok:
        pytest.skip("the notebooks use the target llvm")
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        result, printed = run(shell, "".join(cell["source"]))
        if "raises-exception" not in cell["metadata"].get("tags", ()):
            result.raise_error()
            assert "False" not in printed
            continue
        saved = next(o for o in cell["outputs"] if o["output_type"] == "error")
        assert type(result.error_in_exec).__name__ == saved["ename"]
        assert str(result.error_in_exec) == re.sub(r"\x1b\[[0-9;]*m", "", saved["evalue"])
