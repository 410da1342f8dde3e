"""Programs of random control flow either mean in a kernel what they mean in Python, or are refused."""

from __future__ import annotations

import linecache
from collections import Counter
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiledsl.errors import TileError
from tiledsl.frontend.reader import from_text
from tiledsl.interp import run
from tiledsl.ir.equal import equal
from tiledsl.ir.printer import to_text
from tiledsl.ir.verifier import verify

NAMES = ["a", "b", "c"]  # plain names: values
VARIABLES = ["u", "v"]  # T.alloc_var in the kernel
HEAD = "def program(A, u, v, w):\n    a = A[0]\n    b = A[1] * 2\n    c = 3\n"
TAIL = "    A[4] = u\n    A[5] = v\n"

# A program is a list of lines without indentation and nested lists (bodies), which render() indents.
atoms = st.sampled_from([*NAMES, *NAMES, *VARIABLES, "A[0]", "A[1]", "A[2]", "1", "2", "5"])
values = st.one_of(
    atoms,
    st.tuples(atoms, st.sampled_from("+-*"), atoms).map(lambda t: f"({t[0]} {t[1]} {t[2]}) % 11"),
    st.tuples(atoms, atoms, atoms).map(lambda t: f"{t[0]} if {t[1]} > 2 else {t[2]}"),
)
conditions = st.one_of(
    st.tuples(atoms, st.sampled_from(["<", ">", "==", "!="]), atoms).map(" ".join),
    st.tuples(atoms, atoms).map(lambda t: f"1 <= {t[0]} < {t[1]}"),
    st.tuples(atoms, st.sampled_from(["and", "or"]), atoms).map(lambda t: f"{t[0]} > 1 {t[1]} not {t[2]} == 2"),
)
targets = st.sampled_from([*NAMES, *VARIABLES, *VARIABLES, "A[0]", "A[1]", "A[2]", "A[3]"])
simple = st.one_of(
    st.tuples(targets, values).map(lambda t: [f"{t[0]} = {t[1]}"]),
    st.tuples(targets, st.sampled_from(["+", "-"]), atoms).map(lambda t: [f"{t[0]} {t[1]}= {t[2]}"]),
    st.tuples(targets, targets, values, values).map(lambda t: [f"{t[0]}, {t[1]} = {t[2]}, {t[3]}"]),
)


def compound(inner: st.SearchStrategy[list[Any]]) -> st.SearchStrategy[list[Any]]:
    body = st.lists(inner, min_size=1, max_size=3).map(lambda parts: [line for part in parts for line in part])
    leave = st.sampled_from([[], [], ["break"], ["continue"]])
    return st.one_of(
        st.tuples(conditions, body).map(lambda t: [f"if {t[0]}:", t[1]]),
        st.tuples(conditions, body, body).map(lambda t: [f"if {t[0]}:", t[1], "else:", t[2]]),
        st.tuples(conditions, body, conditions, body).map(lambda t: [f"if {t[0]}:", t[1], f"elif {t[2]}:", t[3]]),
        st.tuples(st.integers(1, 4), body).map(lambda t: [f"for i in range({t[0]}):", [*t[1], "A[3] += i"]]),
        st.tuples(st.integers(1, 4), conditions, leave, body).map(
            lambda t: [f"for i in range({t[0]}):", [*([f"if {t[1]}:", t[2]] if t[2] else []), *t[3]]]
        ),
        st.tuples(conditions, body).map(lambda t: [f"while w > 0 and ({t[0]}):", ["w -= 1", *t[1]]]),
        st.tuples(st.sampled_from(["[1, 2]", "(A[0], b)"]), body).map(
            lambda t: [f"for x in {t[0]}:", [*t[1], "v += x"]]
        ),
    )


programs = st.lists(st.recursive(simple, compound, max_leaves=6), min_size=1, max_size=5)


def render(lines: list[Any], depth: int = 1) -> str:
    return "".join(render(x, depth + 1) if isinstance(x, list) else "    " * depth + x + "\n" for x in lines)


def python(source: str, data: list[int]) -> list[int]:
    names: dict[str, Any] = {}
    exec(source, names)
    names["program"](data, 0, 0, 9)
    return data


def kernel(source: str, data: list[int]) -> list[int]:
    """The same body in T.Kernel, with u and v variables."""
    lines = source.splitlines()[1:]
    text = (
        "import tiledsl.language as T\n\n\n@T.prim_func\ndef program(A: T.Tensor((6,), T.int64)):\n"
        "    with T.Kernel(1, threads=1):\n        u = T.alloc_var(T.int64, 0)\n        v = T.alloc_var(T.int64, 0)\n"
        "        w = T.alloc_var(T.int64, 9)\n"  # bounds all iterations of while loops
        + "".join(f"    {line}\n" for line in lines)
    )
    linecache.cache["program.py"] = (len(text), None, text.splitlines(keepends=True), "program.py")
    names: dict[str, Any] = {}
    exec(compile(text, "program.py", "exec"), names)
    function = names["program"].function
    verify(function)
    assert equal(from_text(to_text(function)), function)
    array = np.array(data, np.int64)
    run(function, [array])
    return [int(x) for x in array]


outcomes: Counter[str] = Counter()


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(programs)
def test_same_as_python_or_refused(program: list[Any]) -> None:
    source = HEAD + render([line for part in program for line in part]) + TAIL
    data = [3, 1, 4, 0, 0, 0]
    try:
        expected = python(source, list(data))
    except NameError:
        outcomes["no Python program"] += 1
        return
    try:
        got = kernel(source, list(data))
    except TileError as e:
        outcomes[str(getattr(e, "ident", type(e).__name__))] += 1
        assert getattr(e, "ident", "") in ("loop-carried", "undefined-after-region", "jump-from-python-loop"), source
        return
    outcomes["ran"] += 1
    assert got == expected, source


def test_most_programs_ran() -> None:
    """The property above is about programs that run: not nearly all of them may be refused. (A third of what is drawn
    runs, give or take a tenth.)"""
    if sum(outcomes.values()) >= 100:
        assert outcomes["ran"] > 0.15 * sum(outcomes.values())
