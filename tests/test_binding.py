"""Argument binding: what is accepted and how it is seen, and the text of every refusal."""

from __future__ import annotations

import ctypes
import math
import struct

import ml_dtypes
import numpy as np
import pytest

from tiledsl import ir
from tiledsl.dtypes import as_dtype
from tiledsl.errors import TileError
from tiledsl.runtime import arguments, views
from tiledsl.runtime.arguments import Signature, convert_scalar, scalar_word
from tiledsl.runtime.kernel import compile, with_outputs
from tiledsl.runtime.options import check_options

I32 = as_dtype("int32")


def sym(name, dtype="int32"):
    return ir.Var(name, as_dtype(dtype))


def extent(x):
    return x if isinstance(x, ir.Expr) else ir.Const(x, I32)


def tensor(name, dtype, *shape, strides=None):
    strides = None if strides is None else tuple(map(extent, strides))
    return ir.Param(name, ir.Buffer(name, as_dtype(dtype), tuple(map(extent, shape)), "global", strides))


def scalar(name, dtype):
    return ir.Param(name, None, sym(name, dtype))


def function(*params, symbols=(), outputs=(), written=(), grid=1):
    """A function that mentions every tensor (but those named unused*) and stores into the written ones."""
    body = []
    for p in params:
        if p.buffer is None or p.name.startswith("unused"):
            continue
        at = (extent(0),) * p.buffer.rank
        value = ir.Load(p.buffer, at)
        if p.name in written:
            body.append(ir.Store(p.buffer, at, value))
        else:
            body.append(ir.Let(ir.Var("x", value.dtype), value))
    kernel = ir.Kernel("f", (extent(grid),), (extent(1),), (sym("bx"),), (sym("tx"),), tuple(body))
    return ir.Function("f", tuple(params), (kernel,), tuple(symbols), outputs=tuple(outputs))


M, N, K = sym("M"), sym("N"), sym("K")
MATMUL = function(
    tensor("A", "float16", M, K),
    tensor("B", "float16", K, N),
    tensor("C", "float32", M, N),
    symbols=(M, N, K),
    outputs=(2,),
    written=("C",),
)


def bind(f, *args, **kw):
    return Signature(f).bind(args, **kw)


def f16(*shape):
    return np.zeros(shape, np.float16)


# -- accepted ----------------------------------------------------------------------------------------------------


def test_symbols_and_views():
    a, b = f16(5, 7), f16(7, 3)
    bound = bind(MATMUL, a, b)
    assert bound.env == {M: 5, N: 3, K: 7}
    assert bound.values[0].address == a.ctypes.data and bound.values[0].shape == (5, 7)
    assert bound.values[2] is None


def test_strided_tensors_bind_strides_and_ignore_those_of_short_axes():
    s = sym("s")
    f = function(tensor("A", "float32", M, N, strides=(s, 1)), symbols=(M, N, s))
    base = np.zeros((6, 10), np.float32)
    assert bind(f, base[:, :4]).env == {M: 6, N: 4, s: 10}
    assert bind(f, np.broadcast_to(base[0], (6, 10))).env[s] == 0
    fixed = function(tensor("A", "float32", M, N, strides=(64, 1)), symbols=(M, N))
    assert bind(fixed, base[:1, :4]).env == {M: 1, N: 4}  # one row: its stride says nothing


def test_strides_of_empty_and_one_row_arrays_do_not_matter():
    f = function(tensor("A", "float32", M, N), symbols=(M, N))
    base = np.zeros((4, 8), np.float32)
    assert bind(f, base[:0, ::2]).env == {M: 0, N: 4}
    assert bind(f, base[::4, :][:1]).env == {M: 1, N: 8}
    assert bind(f, base[::-1][:1]).env == {M: 1, N: 8}
    assert bind(f, np.zeros((4, 1), np.float32)[::-1][:1]).env == {M: 1, N: 1}


@pytest.mark.parametrize("declared, given", [("bool", "int8"), ("bool", "uint8"), ("int8", "bool"), ("uint8", "bool")])
def test_bool_and_bytes_stand_for_each_other(declared, given):
    f = function(tensor("A", declared, 4))
    a = np.array([0, 1, 1, 0], given)
    bound = bind(f, a)
    seen = views.as_numpy(bound.values[0].obj, as_dtype(declared))
    assert seen.dtype == as_dtype(declared).numpy and seen.ctypes.data == a.ctypes.data


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float16", "int64", "uint16", "bool"])
def test_every_dtype_in_place(dtype):
    numpy_type = as_dtype(dtype).numpy
    a = np.zeros((3, 5), numpy_type)
    bound = bind(function(tensor("A", dtype, 3, 5)), a)
    assert bound.values[0].address == a.ctypes.data


def test_packed_types_have_two_elements_per_byte():
    f = function(tensor("A", "int4", M, N), symbols=(M, N))
    bound = bind(f, np.zeros((3, 8), np.uint8))
    assert bound.env == {M: 3, N: 16}
    s = sym("s")
    strided = function(tensor("A", "float4_e2m1fn", M, N, strides=(s, 1)), symbols=(M, N, s))
    assert bind(strided, np.zeros((3, 8), np.int8)[:, :4]).env == {M: 3, N: 8, s: 16}
    assert views.allocate((3, 16), as_dtype("int4"), None).shape == (3, 8)


def test_none_for_an_unused_parameter():
    f = function(tensor("A", "float32", M), tensor("unused_bias", "float32", M), symbols=(M,))
    assert bind(f, np.zeros(4, np.float32), None).values[1] is None


def test_outputs_that_the_caller_brings_are_checked():
    c = np.zeros((5, 3), np.float32)
    assert bind(MATMUL, f16(5, 7), f16(7, 3), outs=[c]).values[2].address == c.ctypes.data
    with pytest.raises(TileError):
        bind(MATMUL, f16(5, 7), f16(7, 3), outs=[c[:4]])


def test_dlpack_objects_are_shared():
    class Wrapped:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **kw):
            return self.array.__dlpack__(**kw)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    a = np.zeros((4, 6), np.float32)
    bound = bind(function(tensor("A", "float32", M, N), symbols=(M, N)), Wrapped(a))
    assert bound.env == {M: 4, N: 6} and bound.values[0].address == a.ctypes.data


def test_address_of_agrees_with_numpy():
    for a in (np.zeros(3), np.zeros((4, 4), np.int8)[1:, 1:], np.zeros(0), np.zeros((2, 2))[::-1]):
        assert views.address_of(a) == a.ctypes.data


def test_torch_tensors():
    torch = pytest.importorskip("torch", reason="no torch")
    f = function(tensor("A", "bfloat16", M, N), tensor("C", "float32", N, M), symbols=(M, N), outputs=(1,))
    t = torch.zeros(3, 5, dtype=torch.bfloat16, requires_grad=True)
    bound = bind(f, t)
    assert bound.env == {M: 3, N: 5} and bound.values[0].address == t.data_ptr()
    seen = views.as_numpy(t, as_dtype("bfloat16"))
    seen[1, 2] = 3
    assert t[1, 2].item() == 3
    out = views.allocate((5, 3), as_dtype("bfloat16"), t)
    assert isinstance(out, torch.Tensor) and out.dtype == torch.bfloat16 and tuple(out.shape) == (5, 3)


# -- scalars -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value, dtype, converted",
    [
        (7, "int32", 7),
        (np.int64(-7), "int8", -7),
        (True, "int32", 1),
        (np.uint8(255), "uint8", 255),
        (2**64 - 1, "uint64", 2**64 - 1),
        (1, "bool", True),
        (np.bool_(False), "bool", False),
        (1, "float32", 1.0),
        (0.1, "float32", float(np.float32(0.1))),
        (np.float16(0.5), "float64", 0.5),
        (1.0039, "bfloat16", 1.0),
        (math.inf, "float16", math.inf),
    ],
)
def test_scalars(value, dtype, converted):
    got = convert_scalar(value, as_dtype(dtype), "n")
    assert got == converted and type(got) is type(converted)


@pytest.mark.parametrize(
    "value, dtype, word",
    [
        (-1, "int8", -1),
        (255, "uint8", 255),
        (2**63, "uint64", -(2**63)),
        (True, "bool", 1),
        (1.0, "float32", 0x3F800000),
        (-2.0, "float16", 0xC000),
        (-1.0, "bfloat16", 0xBF80),
        (-1.5, "float64", struct.unpack("<q", struct.pack("<d", -1.5))[0]),
    ],
)
def test_scalar_words(value, dtype, word):
    assert scalar_word(value, as_dtype(dtype)) == word


# -- refused -----------------------------------------------------------------------------------------------------


class OnDevice:
    """An array of a device that no kernel runs on here."""

    def __dlpack__(self, **kw):
        raise BufferError("never asked")

    def __dlpack_device__(self):
        return (2, 0)


class NoDLPackType(OnDevice):
    def __dlpack__(self, **kw):
        raise BufferError("bfloat16 has no DLPack type here")

    def __dlpack_device__(self):
        return (1, 0)


def read_only(*shape):
    a = np.zeros(shape, np.float32)
    a.flags.writeable = False
    return a


def misaligned(n):
    return np.frombuffer(ctypes.create_string_buffer(4 * n + 8), np.float32, n, offset=2 - 0)


ONE = function(tensor("A", "float32", M, N), symbols=(M, N))
INOUT = function(tensor("A", "float32", M, N), symbols=(M, N), written=("A",))
STRIDED = function(tensor("A", "float32", M, N, strides=(64, 1)), symbols=(M, N))
SCALARS = function(tensor("A", "float32", M), scalar("n", "int8"), symbols=(M,))
DOUBLE = function(
    tensor("A", "float32", ir.Binary("mul", ir.Const(2, I32), M)), tensor("B", "float32", M), symbols=(M,)
)
FIXED = function(
    tensor("A", "float16", 1024, ir.Binary("floordiv", K, ir.Const(2, I32))), tensor("B", "int8", K), symbols=(K,)
)
OUT_UNKNOWN = function(tensor("A", "float32", M), tensor("C", "float32", N), symbols=(M, N), outputs=(1,))
BIG = 2**31 - 100

REFUSED = {
    "count": lambda: bind(MATMUL, f16(5, 7)),
    "count_no_outputs": lambda: bind(ONE, f16(5, 7), 3),
    "out_count": lambda: bind(MATMUL, f16(5, 7), f16(7, 3), outs=[1, 2]),
    "not_an_array": lambda: bind(ONE, [[1.0, 2.0]]),
    "none": lambda: bind(ONE, None),
    "dtype": lambda: bind(MATMUL, np.zeros((5, 7), np.float32), f16(7, 3)),
    "dtype_narrow": lambda: bind(function(tensor("A", "bfloat16", M), symbols=(M,)), f16(3)),
    "dtype_e4m3_other_format": lambda: bind(
        function(tensor("A", "float8_e4m3fn", 4)), np.zeros(4, ml_dtypes.float8_e4m3fnuz)
    ),
    "dtype_packed": lambda: bind(function(tensor("A", "int4", M), symbols=(M,)), np.zeros(3, np.int32)),
    "unpacked": lambda: bind(function(tensor("A", "int4", M), symbols=(M,)), np.zeros(3, ml_dtypes.int4)),
    "rank": lambda: bind(MATMUL, f16(5, 7, 1), f16(7, 3)),
    "shape": lambda: bind(MATMUL, f16(5, 7), f16(8, 3)),
    "shape_constant": lambda: bind(FIXED, f16(1000, 256), np.zeros(512, np.int8)),
    "shape_expression": lambda: bind(DOUBLE, np.zeros(7, np.float32), np.zeros(4, np.float32)),
    "shape_no_solution": lambda: bind(
        function(tensor("A", "float32", ir.Binary("mul", ir.Const(2, I32), M)), symbols=(M,)), np.zeros(7, np.float32)
    ),
    "undetermined": lambda: bind(OUT_UNKNOWN, np.zeros(3, np.float32)),
    "too_large": lambda: bind(ONE, np.broadcast_to(np.float32(0), (BIG, 1))[:, :0]),
    "not_contiguous": lambda: bind(ONE, np.zeros((4, 8), np.float32)[:, ::2]),
    "transposed": lambda: bind(ONE, np.zeros((4, 8), np.float32).T),
    "negative_stride": lambda: bind(ONE, np.zeros((4, 8), np.float32)[::-1]),
    "declared_stride": lambda: bind(STRIDED, np.zeros((4, 32), np.float32)),
    "read_only": lambda: bind(INOUT, read_only(2, 3)),
    "shared_elements": lambda: bind(
        function(tensor("A", "float32", M, N, strides=(sym("s"), 1)), symbols=(M, N), written=("A",)),
        np.lib.stride_tricks.as_strided(np.zeros(3, np.float32), (2, 3), (0, 4)),
    ),
    "byte_order": lambda: bind(ONE, np.zeros((2, 3), ">f4")),
    "misaligned": lambda: bind(function(tensor("A", "float32", M), symbols=(M,)), misaligned(3)),
    "device": lambda: bind(ONE, OnDevice()),
    "dlpack_type": lambda: bind(ONE, NoDLPackType()),
    "scalar_kind": lambda: bind(SCALARS, np.zeros(1, np.float32), "3"),
    "scalar_array": lambda: bind(SCALARS, np.zeros(1, np.float32), np.zeros(1, np.int8)),
    "scalar_float_for_int": lambda: bind(SCALARS, np.zeros(1, np.float32), 2.0),
    "scalar_range": lambda: bind(SCALARS, np.zeros(1, np.float32), 128),
    "scalar_bool": lambda: convert_scalar(2, as_dtype("bool"), "flag"),
    "scalar_float_range": lambda: convert_scalar(1e39, as_dtype("float32"), "eps"),
    "scalar_handle": lambda: convert_scalar(1, as_dtype("handle"), "p"),
    "out_idx_range": lambda: with_outputs(ONE, [1]),
    "out_idx_scalar": lambda: with_outputs(SCALARS, [-1]),
    "out_idx_twice": lambda: with_outputs(MATMUL.replace(outputs=()), [2, -1]),
    "out_idx_and_empty": lambda: with_outputs(MATMUL, [0]),
    "compile_what": lambda: compile(3),
    "option": lambda: check_options("tiledsl.jit", {"verbos": True}),
    "pass_config": lambda: check_options("tiledsl.jit", {"pass_configs": {"tl.enable_fast_maths": True}}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name, golden):
    with pytest.raises(TileError) as caught:
        REFUSED[name]()
    text = f"{type(caught.value).__name__}: {caught.value}"
    assert len(text.splitlines()) <= 12
    golden(f"errors/binding_{name}", text, numbered=False)


def test_torch_refusals(golden):
    torch = pytest.importorskip("torch", reason="no torch")
    refused = {
        "sparse": lambda: bind(ONE, torch.eye(3).to_sparse()),
        "dtype": lambda: bind(MATMUL, torch.zeros(5, 7), torch.zeros(7, 3)),
        "stride": lambda: bind(ONE, torch.zeros(4, 5).T),
    }
    for name, call in refused.items():
        with pytest.raises(TileError) as caught:
            call()
        golden(f"errors/binding_torch_{name}", f"{type(caught.value).__name__}: {caught.value}")


def test_sizes_that_fit_an_int64_symbol():
    big = sym("M", "int64")
    f = function(tensor("A", "float32", big, N), symbols=(big, N))
    a = np.broadcast_to(np.float32(0), (2**33, 1))[:, :0]
    assert bind(f, a).env[big] == 2**33


def test_effects_follow_views_to_their_root():
    a = tensor("A", "float32", 8)
    view = ir.Buffer("V", as_dtype("float32"), (extent(4),), "global", alias_of=a.buffer, offset=extent(4))
    store = ir.Store(view, (extent(0),), ir.Const(0.0, as_dtype("float32")))
    kernel = ir.Kernel("f", (extent(1),), (extent(1),), (sym("bx"),), (sym("tx"),), (store,))
    slot = arguments.Signature(ir.Function("f", (a,), (kernel,))).slots[0]
    assert slot.written and slot.used
