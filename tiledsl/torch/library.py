"""The library's kernels as PyTorch operators `tiledsl::...`: on CPU tensors, with shapes without memory and gradients.

Every operator is a function of its arguments alone: it writes nothing that it is given and returns no views. The
gradients are library kernels again, so they have its properties: float32 sums (float64 for float64) in one order, the
same bits for any number of threads.
"""

# mypy: disable-error-code="untyped-decorator,no-any-return,no-untyped-call"
from typing import Any

import torch
from torch import Tensor

from tiledsl import kernels
from tiledsl.errors import TileValueError
from tiledsl.torch.op import op

__all__ = [
    "flash_attention", "grouped_gemm", "k_grouped_gemm", "layer_norm", "matmul", "rms_norm", "rope", "softmax",
    "swiglu",
]  # fmt: skip


def _operator(fake: Any) -> Any:
    """The operator tiledsl::<name of the function>, for tensors on the CPU; `fake` gives outputs without memory."""
    return lambda f: op(f, name=f"tiledsl::{f.__name__.strip('_')}", fake=fake, device_types="cpu")


def _like(x: Tensor) -> Tensor:
    """A result of the shape and dtype of x, contiguous as the library allocates it."""
    return x.new_empty(x.shape)


def _fits(name: str, condition: Any, **given: Tensor) -> None:
    """Raises RuntimeError, as torch's own operators do while they are traced, unless the shapes fit."""
    torch._check(
        condition, lambda: f"{name}: shapes do not fit: {', '.join(f'{k} {tuple(x.shape)}' for k, x in given.items())}"
    )


# -- products -----------------------------------------------------------------------------------------------------


def _matmul_shape(a: Tensor, b: Tensor) -> Tensor:
    _fits("matmul", a.dim() == 2 and b.dim() == 2 and a.shape[1] == b.shape[0], a=a, b=b)
    return a.new_empty((a.shape[0], b.shape[1]))


@_operator(_matmul_shape)
def _matmul(a: Tensor, b: Tensor) -> Tensor:
    return kernels.matmul(a, b)


def _matmul_backward(ctx: Any, g: Tensor) -> Any:
    a, b = ctx.saved_tensors
    first, second = ctx.needs_input_grad
    return _matmul(g, b.t()) if first else None, _matmul(a.t(), g) if second else None


_matmul.register_autograd(_matmul_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b by tiledsl.kernels.matmul, differentiable any number of times.

    a  [m, k], b [k, n]; one dtype, float32, float16, bfloat16 or float64; transposed views are read in place

    Returns [m, n] of the same dtype. Raises TileTypeError for wrong dtypes or shapes.
    """
    return _matmul(a, b)


def _grouped_gemm_shape(a: Tensor, b: Tensor, group_sizes: Tensor, transpose_b: bool) -> Tensor:
    n, k = (1, 2) if transpose_b else (2, 1)
    _fits("grouped_gemm", a.dim() == 2 and b.dim() == 3 and a.shape[1] == b.shape[k], a=a, b=b)
    return a.new_empty((a.shape[0], b.shape[n]))


@_operator(_grouped_gemm_shape)
def _grouped_gemm(a: Tensor, b: Tensor, group_sizes: Tensor, transpose_b: bool) -> Tensor:
    c = kernels.grouped_gemm(a, b, group_sizes, transpose_b=transpose_b)
    c[int(group_sizes.sum()) :] = 0  # rows of no group: an operator leaves nothing undefined
    return c


def _grouped_gemm_backward(ctx: Any, g: Tensor) -> Any:
    a, b, sizes = ctx.saved_tensors
    first, second, *_ = ctx.needs_input_grad
    da = _grouped_gemm(g, b, sizes, not ctx.transpose_b) if first else None
    left, right = (g, a) if ctx.transpose_b else (a, g)
    return da, _k_grouped_gemm(left, right, sizes) if second else None, None, None


def _grouped_gemm_context(ctx: Any, inputs: Any, output: Any) -> None:
    *tensors, ctx.transpose_b = inputs
    ctx.save_for_backward(*tensors)


_grouped_gemm.register_autograd(_grouped_gemm_backward, setup_context=_grouped_gemm_context)


def grouped_gemm(a: Tensor, b: Tensor, group_sizes: Tensor, *, transpose_b: bool = False) -> Tensor:
    """c[i, :] = a[i, :] @ b[g(i)] by tiledsl.kernels.grouped_gemm, group g owning group_sizes[g] consecutive rows;
    differentiable any number of times (the gradient of b is k_grouped_gemm).

    a            [m, k]; float32, float16, bfloat16 or float64
    b            [groups, k, n], or [groups, n, k] with transpose_b=True; dtype of a
    group_sizes  [groups] int32 or int64, zeros allowed

    Returns [m, n]. Rows beyond the sum of group_sizes are 0.
    Raises TileTypeError for wrong dtypes or shapes, TileValueError for sizes that are negative or exceed m.
    """
    return _grouped_gemm(a, b, group_sizes, transpose_b)


def _k_grouped_gemm_shape(a: Tensor, b: Tensor, group_sizes: Tensor) -> Tensor:
    _fits("k_grouped_gemm", a.dim() == 2 and b.dim() == 2 and a.shape[0] == b.shape[0], a=a, b=b)
    return a.new_empty((group_sizes.shape[0], a.shape[1], b.shape[1]))


@_operator(_k_grouped_gemm_shape)
def _k_grouped_gemm(a: Tensor, b: Tensor, group_sizes: Tensor) -> Tensor:
    return kernels.k_grouped_gemm(a, b, group_sizes)


def _k_grouped_gemm_backward(ctx: Any, g: Tensor) -> Any:
    a, b, sizes = ctx.saved_tensors
    first, second, _ = ctx.needs_input_grad
    return (
        _grouped_gemm(b, g, sizes, True) if first else None,
        _grouped_gemm(a, g, sizes, False) if second else None,
        None,
    )


_k_grouped_gemm.register_autograd(
    _k_grouped_gemm_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs)
)


def k_grouped_gemm(a: Tensor, b: Tensor, group_sizes: Tensor) -> Tensor:
    """c[g] = a[rows of g].T @ b[rows of g] by tiledsl.kernels.k_grouped_gemm; differentiable any number of times.

    a            [rows, m], b [rows, n]; one dtype, float32, float16, bfloat16 or float64
    group_sizes  [groups] int32 or int64, zeros allowed

    Returns [groups, m, n]; rows beyond the sum of group_sizes count nowhere, and their gradient is 0.
    Raises TileTypeError for wrong dtypes or shapes, TileValueError for sizes that are negative or exceed the rows.
    """
    return _k_grouped_gemm(a, b, group_sizes)


# -- attention ----------------------------------------------------------------------------------------------------


def _lse_like(q: Tensor, layout: str) -> Tensor:
    batch, seq, heads, _ = q.shape
    shape = (batch, heads, seq) if layout == "bshd" else (batch, seq, heads)
    return q.new_empty(shape, dtype=torch.float64 if q.dtype == torch.float64 else torch.float32)


def _flash_attention_shape(
    q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, causal: bool, left: int | None, right: int | None,
    scale: float | None, layout: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _fits("flash_attention", q.dim() == 4 and k.dim() == 4 and k.shape == v.shape, q=q, k=k, v=v)
    return _like(q), _lse_like(q, layout)


@_operator(_flash_attention_shape)
def _flash_attention(
    q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, causal: bool, left: int | None, right: int | None,
    scale: float | None, layout: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return kernels.flash_attention(
        q, k, v, sink=sink, causal=causal, window=(left, right), scale=scale, layout=layout, return_lse=True
    )


def _flash_attention_backward_shape(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, do: Tensor, dlse: Tensor | None, sink: Tensor | None,
    causal: bool, left: int | None, right: int | None, scale: float | None, layout: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _like(q), _like(k), _like(v), q.new_empty(0) if sink is None else _like(sink)


@_operator(_flash_attention_backward_shape)
def _flash_attention_backward(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, do: Tensor, dlse: Tensor | None, sink: Tensor | None,
    causal: bool, left: int | None, right: int | None, scale: float | None, layout: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv, *dsink = kernels.flash_attention_backward(
        q, k, v, o, lse, do, dlse=dlse, sink=sink, causal=causal, window=(left, right), scale=scale, layout=layout
    )
    return dq, dk, dv, dsink[0] if dsink else q.new_empty(0)


def _attention_context(ctx: Any, inputs: Any, output: Any) -> None:
    q, k, v, sink, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, *output, sink)
    ctx.set_materialize_grads(False)  # who does not use lse does not pay for its gradient


def _attention_gradient(ctx: Any, do: Tensor | None, dlse: Tensor | None) -> Any:
    q, k, v, o, lse, sink = ctx.saved_tensors
    do = torch.zeros_like(o) if do is None else do
    dq, dk, dv, dsink = _flash_attention_backward(q, k, v, o, lse, do, dlse, sink, *ctx.options)
    return dq, dk, dv, None if sink is None else dsink, *[None] * len(ctx.options)


_flash_attention.register_autograd(_attention_gradient, setup_context=_attention_context)


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    sink: Tensor | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    layout: str = "bshd",
) -> Any:
    """Attention by tiledsl.kernels.flash_attention, which explains the arguments; once differentiable with respect to
    q, k, v and sink, through the result and through lse.

    q     [batch, seq_q, heads, head_dim], k and v [batch, seq_kv, kv_heads, head_dim]; layout="bhsd": heads before seq;
          one dtype, float32, float16, bfloat16 or float64
    sink  [heads] float32 (float64 with float64)

    Returns a tensor like q; with return_lse also lse [batch, heads, seq_q], float32 (float64).
    Raises TileTypeError for wrong dtypes or shapes, TileValueError for an unknown layout, a scale that is not finite
    or a negative window.
    """
    left, right = window or (None, None)
    o, lse = _flash_attention(q, k, v, sink, causal, left, right, scale, layout)
    return (o, lse) if return_lse else o


# -- rows ---------------------------------------------------------------------------------------------------------


@_operator(_like)
def _softmax(x: Tensor) -> Tensor:
    return kernels.softmax(x)


@_operator(lambda y, dy: _like(y))
def _softmax_backward(y: Tensor, dy: Tensor) -> Tensor:
    return kernels.softmax_backward(y, dy)


_softmax.register_autograd(
    lambda ctx, g: _softmax_backward(*ctx.saved_tensors, g),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(output),
)


def softmax(x: Tensor) -> Tensor:
    """Softmax over the last axis by tiledsl.kernels.softmax, once differentiable; a row of -inf gives 0.

    x  [..., n], float32, float16, bfloat16 or float64

    Returns a tensor like x. Raises TileTypeError for another dtype.
    """
    return _softmax(x)


@_operator(lambda x, weight, eps: _like(x))
def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return kernels.rms_norm(x, weight, eps=eps)


@_operator(lambda x, weight, dy, eps: (_like(x), _like(weight)))
def _rms_norm_backward(x: Tensor, weight: Tensor, dy: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return kernels.rms_norm_backward(x, weight, dy, eps=eps)


def _norm_context(ctx: Any, inputs: Any, output: Any) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


_rms_norm.register_autograd(
    lambda ctx, g: (*_rms_norm_backward(*ctx.saved_tensors, g, ctx.eps), None), setup_context=_norm_context
)


def rms_norm(x: Tensor, weight: Tensor, *, eps: float = 1e-6) -> Tensor:
    """x / sqrt(mean x^2 + eps) * weight over the last axis, by tiledsl.kernels.rms_norm; once differentiable.

    x       [..., n], float32, float16, bfloat16 or float64
    weight  [n], one of the same four dtypes
    eps     not negative

    Returns a tensor like x. Raises TileTypeError for wrong dtypes or shapes, TileValueError for a negative eps.
    """
    return _rms_norm(x, weight, eps)


@_operator(lambda x, weight, bias, eps: _like(x))
def _layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    return kernels.layer_norm(x, weight, bias, eps=eps)


@_operator(
    lambda x, weight, dy, eps: (_like(x), *((x if weight is None else weight).new_empty(x.shape[-1:]) for _ in "wb"))
)
def _layer_norm_backward(x: Tensor, weight: Tensor | None, dy: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return kernels.layer_norm_backward(x, weight, dy, eps=eps)


def _layer_norm_gradient(ctx: Any, g: Tensor) -> Any:
    x, weight, bias = ctx.saved_tensors
    factor = torch.ones_like(bias) if weight is None and bias is not None else weight  # the sums take its dtype
    dx, dw, db = _layer_norm_backward(x, factor, g, ctx.eps)
    return dx, None if weight is None else dw, None if bias is None else db, None


_layer_norm.register_autograd(_layer_norm_gradient, setup_context=_norm_context)


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis, by tiledsl.kernels.layer_norm; once
    differentiable.

    x             [..., n], float32, float16, bfloat16 or float64
    weight, bias  [n], one of the same four dtypes, the same for both; None: 1 and 0
    eps           not negative

    Returns a tensor like x. Raises TileTypeError for wrong dtypes or shapes, TileValueError for a negative eps.
    """
    return _layer_norm(x, weight, bias, eps)


def _swiglu_shape(gate: Tensor, up: Tensor) -> Tensor:
    _fits("swiglu", gate.shape == up.shape, gate=gate, up=up)
    return _like(gate)


@_operator(_swiglu_shape)
def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return kernels.swiglu(gate, up)


@_operator(lambda gate, up, dy: (_like(gate), _like(up)))
def _swiglu_backward(gate: Tensor, up: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    return kernels.swiglu_backward(gate, up, dy)


_swiglu.register_autograd(
    lambda ctx, g: _swiglu_backward(*ctx.saved_tensors, g),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


def swiglu(gate: Tensor, up: Tensor | None = None) -> Tensor:
    """gate / (1 + exp(-gate)) * up by tiledsl.kernels.swiglu, once differentiable.

    gate  [..., n], float32, float16, bfloat16 or float64
    up    like gate; None: gate is [..., 2 n], its first half the gate and its second half up

    Returns [..., n]. Raises TileTypeError for wrong dtypes or shapes, an odd last axis without `up` included.
    """
    if up is not None:
        return _swiglu(gate, up)
    n = gate.shape[-1] // 2
    return _swiglu(gate[..., :n], gate[..., n:])


@_operator(lambda x, *_: _like(x))
def _rope(
    x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, interleaved: bool, layout: str, inverse: bool
) -> Tensor:
    return kernels.rope(x, cos, sin, positions=positions, interleaved=interleaved, layout=layout, inverse=inverse)


def _rope_context(ctx: Any, inputs: Any, output: Any) -> None:
    _, cos, sin, positions, *ctx.options, ctx.inverse = inputs
    if any(ctx.needs_input_grad[1:3]):
        raise TileValueError(
            "rope: there is no gradient with respect to cos and sin", help="pass cos.detach() and sin.detach()"
        )
    ctx.save_for_backward(cos, sin, positions)


def _rope_gradient(ctx: Any, g: Tensor) -> Any:
    return _rope(g, *ctx.saved_tensors, *ctx.options, not ctx.inverse), *[None] * 6


_rope.register_autograd(_rope_gradient, setup_context=_rope_context)


def rope(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    positions: Tensor | None = None,
    interleaved: bool = False,
    inverse: bool = False,
    layout: str = "bshd",
) -> Tensor:
    """Rotary position embedding by tiledsl.kernels.rope, which explains the arguments; linear in x, and differentiable
    with respect to it any number of times (the gradient is the inverse rotation).

    x          [batch, seq, heads, head_dim]; layout="bhsd": heads before seq; float32, float16, bfloat16 or float64
    cos, sin   [positions, half] with 2 half <= head_dim, one of the same four dtypes; constants
    positions  [seq] or [batch, seq] int32 or int64; default 0 ... seq - 1

    Returns a tensor like x. Raises TileTypeError for wrong dtypes or shapes, TileValueError for an unknown layout, for
    positions outside of the tables, and when cos or sin want a gradient.
    """
    return _rope(x, cos, sin, positions, interleaved, layout, inverse)
