"""A pytest plugin (`-p sample`): a few tests of every file, evenly spread, for runs that look for missing modules.
`--per-file N` says how many."""

from __future__ import annotations

from collections import defaultdict

import pytest

PER_FILE = 3


def chosen(count: int, limit: int = PER_FILE) -> set[int]:
    """Positions of at most `limit` of `count` tests: the first, the last, and evenly between."""
    return set(range(count)) if count <= limit else {i * (count - 1) // max(limit - 1, 1) for i in range(limit)}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--per-file", type=int, default=PER_FILE, metavar="N", help="tests of each file")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    files = defaultdict(list)
    for item in items:
        files[item.path].append(item)
    keep = {id(tests[i]) for tests in files.values() for i in chosen(len(tests), config.getoption("per_file"))}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in keep])
    items[:] = [item for item in items if id(item) in keep]
