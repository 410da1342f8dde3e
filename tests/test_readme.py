"""The Python blocks of the README and of docs/ run, in order, with the line numbers of their file.

A page whose blocks import nothing holds fragments (signatures, single lines), and is left alone.
"""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if path.exists()]
FENCE = re.compile(r"^```(\w*)\s*$")


def python_blocks(text: str) -> str:
    """The text with every line outside ```python blocks blanked, so that errors name the page's own lines."""
    lines, language = [], None
    for line in text.splitlines():
        fence = FENCE.match(line)
        if fence:
            language = fence[1] if language is None else None
        lines.append(line if language == "python" and not fence else "")
    return "\n".join(lines) + "\n"


WITH_CODE = [page for page in PAGES if "\nimport " in python_blocks(page.read_text(encoding="utf-8"))]


def test_blocks_keep_their_lines() -> None:
    page = "x\n```\nshell\n```\n```python\na = 1\n```\ntext\n```python\nb = a\n```\n"
    assert python_blocks(page).split("\n") == [*[""] * 5, "a = 1", "", "", "", "b = a", "", ""]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_runs(page: Path, tmp_path: Path) -> None:
    program = tmp_path / f"{page.stem}.py"
    code = python_blocks(page.read_text(encoding="utf-8"))
    if "\nimport torch\n" in code:
        pytest.importorskip("torch", reason="torch is not installed")
    program.write_text(code, encoding="utf-8")
    runpy.run_path(str(program), run_name="__main__")


def test_readme_has_code() -> None:
    if not PAGES:
        pytest.skip("not in a checkout")
    assert ROOT / "README.md" in WITH_CODE
