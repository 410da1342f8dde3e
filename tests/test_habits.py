"""What diagnostics say to people who come from elsewhere is true of the language as it is."""

from __future__ import annotations

import re

import pytest

import tiledsl.kernels
import tiledsl.language as T
from tiledsl.dtypes import SCALARS, as_dtype
from tiledsl.frontend import habits
from tiledsl.frontend.kernel import KernelLaunch
from tiledsl.language.compute import gemm, reduce_max
from tiledsl.runtime import JITFunction, JITKernel, members


def test_every_name_that_is_recommended_exists():
    said = " ".join([*habits.INSTEAD.values(), *members.INSTEAD.values()])
    named = set(re.findall(r"\bT\.(\w+)", said))
    assert len(named) > 25
    assert not sorted(n for n in named - {"Tensor"} if n not in T.__all__)
    assert hasattr(tiledsl.kernels, "softmax")
    assert all(hasattr(JITKernel, n) for n in re.findall(r"kernel\.(\w+)\(", said))


def test_names_that_are_called_the_same_exist():
    assert not sorted(habits.SAME - set(T.__all__))


def test_names_of_other_languages_are_not_names_of_this_one():
    """Else the advice would never be seen, or would be wrong; `x.max()`, `max(x)` and `np.abs(x)` are methods and
    functions of others although T.max exists."""
    both = {n for n in habits.INSTEAD if n in T.__all__}
    of_others = (
        "abs copy cumsum fill float float16 float32 float64 int int32 int64 max min pow power reshape transpose "
        "uint32 view"
    )
    assert both == set(of_others.split())


@pytest.mark.parametrize("name", habits.DTYPES)
def test_a_dtype_of_elsewhere_is_none_here_and_has_one(name):
    assert habits.DTYPES[name] in SCALARS
    if name not in ("bool_", "char", "byte", "single"):  # NumPy's own names, which are accepted
        with pytest.raises(TypeError):
            as_dtype(name)


def test_keywords_of_elsewhere():
    parameters = {*_parameters(gemm), *_parameters(reduce_max), *_parameters(T.Pipelined), *_parameters(T.Kernel)}
    assert set(habits.KEYWORDS.values()) <= parameters
    assert not set(habits.KEYWORDS) & parameters


def _parameters(function):
    import inspect

    return inspect.signature(function).parameters


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("max(x, 0)", "T.max"),
        ("np.maximum(x, 0)", "T.max"),
        ("math.exp(x)", "T.exp"),
        ("torch.where(c, x, y)", "T.if_then_else"),
        ("x in (1, 2)", "compare one by one"),
        ("x not in kept", "compare one by one"),
    ],
)
def test_advice(text, named):
    assert named in habits.advice(text)[1]


@pytest.mark.parametrize("text", ["T.max(x, 0)", "mine(x)", "x", "for x in y", "x[0]", "index(x)"])
def test_no_advice_where_none_is_known(text):
    assert habits.advice(text) is None


def test_probing_for_members_costs_nothing_and_finds_nothing():
    """hasattr works as everywhere, and Python's own protocols meet a plain AttributeError."""
    kernel = tiledsl.compile(_empty)
    for thing in (kernel, tiledsl.jit(lambda n: n)):
        assert isinstance(thing, (JITKernel, JITFunction))
        assert not hasattr(thing, "no_such_member") and not hasattr(thing, "__array__")
    assert repr(KernelLaunch((2, 3), 128)) == "T.Kernel(2, 3)"


@T.prim_func
def _empty(A: T.Tensor((4,), "float32")):
    with T.Kernel(1, threads=4):
        T.clear(A)
