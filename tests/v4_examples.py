"""The modules of examples/deepseek_v4, for tests; one that imports this file is skipped where there is no checkout."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "deepseek_v4"


def load(name: str) -> Any:
    """The module examples/deepseek_v4/<name>.py, which may import its neighbours."""
    if not FOLDER.is_dir():
        pytest.skip("not in a checkout", allow_module_level=True)
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    return importlib.import_module(name)
