"""What the demo computes: three operations on the tokens of a text, each with its float64 answer and its rivals.

Shapes are those of an attention layer of Llama 3 8B (32 query heads, 8 key heads, head_dim 128) and of a layer of
8 experts of which each token takes 2, on a model width of 512. Weights are random; the tokens, the lengths of the
sentences and the experts' shares come from the text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tiledsl import kernels
from tiledsl.demo.text import VOCABULARY, Batch
from tiledsl.dtypes import as_dtype

__all__ = ["Case", "cases"]

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
WIDTH, HIDDEN, EXPERTS, TOP = 512, 1024, 8, 2

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Case:
    """One row of the table per target.

    run      target -> result
    exact    the float64 answer for the same inputs
    rivals   name -> the same computation by another library
    flops    floating-point operations of the formula (two per multiply-add)
    """

    kernel: str
    shape: str
    dtype: str
    flops: float
    run: Callable[[str], Array]
    exact: Array
    rivals: dict[str, Callable[[], Any]] = field(default_factory=dict)


def cases(batch: Batch, dtype_name: str, torch: Any) -> list[Case]:
    """The three operations in one dtype. torch: the module, or None."""
    dtype = as_dtype(dtype_name).numpy
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        x: Array = rng.standard_normal(shape, np.float32) * shape[-2] ** -0.5
        return x.astype(dtype)

    x = rng.standard_normal((VOCABULARY, WIDTH), np.float32).astype(dtype)[batch.tokens]
    w_qkv = normal(WIDTH, (HEADS + 2 * KV_HEADS) * HEAD_DIM)
    router, experts = normal(WIDTH, EXPERTS), normal(EXPERTS, WIDTH, HIDDEN)

    # The inputs of attention and of the experts are computed once, by the reference target, for all contenders.
    qkv = kernels.matmul(x, w_qkv, target="numpy")
    q, k, v = (
        np.ascontiguousarray(part).reshape(len(x), -1, HEAD_DIM)
        for part in np.split(qkv, [HEADS * HEAD_DIM, (HEADS + KV_HEADS) * HEAD_DIM], axis=1)
    )
    gates = kernels.matmul(x, router, out_dtype="float32", target="numpy")
    chosen = np.argsort(-gates, axis=1, kind="stable")[:, :TOP]
    order = np.argsort(chosen, axis=None, kind="stable")
    sizes = np.bincount(chosen.ravel(), minlength=EXPERTS).astype(np.int32)
    rows = x[order // TOP]
    return [
        _gemm(dtype_name, x, w_qkv, torch),
        _attention(dtype_name, q, k, v, batch.cu_seqlens, torch),
        _grouped(dtype_name, rows, experts, sizes, torch),
    ]


def _gemm(dtype: str, a: Array, b: Array, torch: Any) -> Case:
    (m, k), n = a.shape, b.shape[1]
    rivals: dict[str, Callable[[], Any]] = {}
    if dtype == "float32":
        rivals["NumPy"] = lambda: a @ b
    if torch is not None:
        ta, tb = _tensor(torch, a), _tensor(torch, b)
        rivals["torch"] = lambda: ta @ tb
    return Case(
        "GEMM (q, k, v projection)",
        f"{m} x {k} x {n}",
        dtype,
        2.0 * m * k * n,
        lambda target: kernels.matmul(a, b, target=target),
        a.astype(np.float64) @ b.astype(np.float64),
        rivals,
    )


def _attention(dtype: str, q: Array, k: Array, v: Array, ends: Array, torch: Any) -> Case:
    spans = list(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True))
    pairs = sum((stop - start) * (stop - start + 1) / 2 for start, stop in spans)
    rivals: dict[str, Callable[[], Any]] = {}
    if dtype == "float32":
        rivals["NumPy"] = lambda: _attention_numpy(q, k, v, spans)
    if torch is not None:
        tq, tk, tv = (_tensor(torch, x) for x in (q, k, v))
        rivals["torch"] = lambda: _attention_torch(torch, tq, tk, tv, spans)
    return Case(
        "causal GQA attention",
        f"{len(q)} tokens in {len(spans)} sentences, {HEADS}/{KV_HEADS} heads of {HEAD_DIM}",
        dtype,
        4.0 * pairs * HEADS * HEAD_DIM,
        lambda target: kernels.flash_attention_varlen(q, k, v, ends, causal=True, target=target),
        _attention_numpy(q.astype(np.float64), k.astype(np.float64), v.astype(np.float64), spans),
        rivals,
    )


def _attention_numpy(q: Array, k: Array, v: Array, spans: list[tuple[int, int]]) -> Array:
    """Sentence by sentence, all heads at once; in the dtype of q."""
    out = np.empty_like(q)
    group = HEADS // KV_HEADS
    for start, stop in spans:
        n = stop - start
        qs = q[start:stop].reshape(n, KV_HEADS, group, HEAD_DIM).transpose(1, 2, 0, 3)
        ks, vs = (x[start:stop].transpose(1, 0, 2)[:, None] for x in (k, v))
        s = qs @ ks.swapaxes(2, 3) * q.dtype.type(HEAD_DIM**-0.5)
        s = np.where(np.tri(n, dtype=bool), s, q.dtype.type(-np.inf))
        p = np.exp(s - s.max(axis=-1, keepdims=True))
        o = p @ vs / p.sum(axis=-1, keepdims=True)
        out[start:stop] = o.transpose(2, 0, 1, 3).reshape(n, HEADS, HEAD_DIM)
    return out


def _attention_torch(torch: Any, q: Any, k: Any, v: Any, spans: list[tuple[int, int]]) -> Any:
    out = torch.empty_like(q)
    group = HEADS // KV_HEADS
    for start, stop in spans:
        qs = q[start:stop].transpose(0, 1)[None]
        ks, vs = (x[start:stop].transpose(0, 1).repeat_interleave(group, 0)[None] for x in (k, v))
        o = torch.nn.functional.scaled_dot_product_attention(qs, ks, vs, is_causal=True)
        out[start:stop] = o[0].transpose(0, 1)
    return out


def _grouped(dtype: str, a: Array, b: Array, sizes: Array, torch: Any) -> Case:
    (m, k), n = a.shape, b.shape[2]
    cuts = np.cumsum(sizes)[:-1].tolist()

    def loop(x: Array, w: Array) -> Array:
        return np.concatenate([part @ w[g] for g, part in enumerate(np.split(x, cuts))])

    rivals: dict[str, Callable[[], Any]] = {}
    if dtype == "float32":
        rivals["NumPy"] = lambda: loop(a, b)
    if torch is not None:
        ta, tb = _tensor(torch, a), _tensor(torch, b)
        counts = sizes.tolist()
        rivals["torch"] = lambda: torch.cat([part @ tb[g] for g, part in enumerate(ta.split(counts))])
    return Case(
        f"grouped GEMM (top {TOP} of {len(b)} experts)",
        f"rows {','.join(map(str, sizes.tolist()))} x {k} x {n}",
        dtype,
        2.0 * m * k * n,
        lambda target: kernels.grouped_gemm(a, b, sizes, target=target),
        loop(a.astype(np.float64), b.astype(np.float64)),
        rivals,
    )


def _tensor(torch: Any, x: Array) -> Any:
    if x.dtype == np.float32:
        return torch.from_numpy(x)
    return torch.from_numpy(x.view(np.int16)).view(getattr(torch, x.dtype.name))
