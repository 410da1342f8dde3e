"""The library as PyTorch operators: opcheck, gradients in float64 and against torch's own, torch.compile."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

import tiledsl.torch as tt  # noqa: E402
from tiledsl.errors import TileTypeError, TileValueError  # noqa: E402

# The dispatcher of old compilers warns about what torch itself does.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
SIZES = torch.tensor([3, 0, 4], dtype=torch.int32)
POSITIONS = torch.tensor([3, 0, 2, 1, 4])
COS, SIN = torch.linspace(-1, 1, 15).reshape(5, 3), torch.linspace(0.3, 0.9, 15).reshape(5, 3)


class Case(NamedTuple):
    """call(*tensors): by the library; same(*tensors): by torch's operators; shapes of the tensors."""

    call: Callable[..., Any]
    same: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    operator: str  # torch.ops.tiledsl.<operator>
    options: tuple[Any, ...] = ()  # its arguments behind the tensors
    twice: bool = False  # has second derivatives


def ragged(a: Any, b: Any) -> Any:
    """grouped_gemm by slices; two rows belong to no group."""
    parts, first = [], 0
    for g, n in enumerate(SIZES.tolist()):
        parts.append(a[first : first + n] @ b[g])
        first += n
    return torch.cat([*parts, a.new_zeros(len(a) - first, b.shape[2])])


def ragged_k(a: Any, b: Any) -> Any:
    cuts = [0, 3, 3, 7]
    return torch.stack([a[i:j].T @ b[i:j] for i, j in zip(cuts, cuts[1:], strict=False)])


def attention(
    q: Any, k: Any, v: Any, sink: Any = None, causal: bool = False, left: int = 10**6, lse: bool = False
) -> Any:
    """[batch, heads, rows, dim], by the formula; 2 query heads for each key head."""
    k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
    s = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    at = torch.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2]
    key = torch.arange(k.shape[2])
    seen = (key >= at - left) & ((key <= at) if causal else torch.tensor(True))
    s = s.masked_fill(~seen, -torch.inf)
    total = s.logsumexp(-1)
    whole = total if sink is None else torch.logaddexp(total, sink[None, :, None])
    o = torch.exp(s - whole[..., None]) @ v
    return (o, total) if lse else o


def turned(q: Any, k: Any, v: Any, **options: Any) -> Any:
    return attention(*(x.transpose(1, 2) for x in (q, k, v)), **options).transpose(1, 2)


def rotated(x: Any) -> Any:
    """bshd, pairs (j, j + half), positions in POSITIONS."""
    c, s = (t[POSITIONS][None, :, None] for t in (COS, SIN))
    half = c.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * c - b * s, b * c + a * s, rest], dim=-1)


QKV = ((1, 4, 5, 6), (1, 2, 9, 6), (1, 2, 9, 6))  # bhsd
BSHD = ((1, 5, 4, 6), (1, 9, 2, 6), (1, 9, 2, 6))
CASES = {
    "matmul": Case(tt.matmul, torch.matmul, ((5, 7), (7, 3)), "matmul", twice=True),
    "matmul_turned": Case(
        lambda a, b: tt.matmul(a.T, b.T), lambda a, b: a.T @ b.T, ((7, 5), (3, 7)), "", twice=True
    ),
    "grouped_gemm": Case(
        lambda a, b: tt.grouped_gemm(a, b, SIZES), ragged, ((9, 5), (3, 5, 4)), "grouped_gemm", (SIZES, False), True
    ),
    "grouped_gemm_turned": Case(
        lambda a, b: tt.grouped_gemm(a, b, SIZES, transpose_b=True),
        lambda a, b: ragged(a, b.transpose(1, 2)),
        ((9, 5), (3, 4, 5)), "grouped_gemm", (SIZES, True), True,
    ),
    "k_grouped_gemm": Case(
        lambda a, b: tt.k_grouped_gemm(a, b, SIZES), ragged_k, ((9, 5), (9, 4)), "k_grouped_gemm", (SIZES,), True
    ),
    "attention": Case(tt.flash_attention, turned, BSHD, "flash_attention", (None, False, None, None, None, "bshd")),
    "attention_causal": Case(
        lambda q, k, v: tt.flash_attention(q, k, v, causal=True, layout="bhsd"),
        lambda q, k, v: attention(q, k, v, causal=True),
        QKV, "flash_attention", (None, True, None, None, None, "bhsd"),
    ),
    "attention_sink": Case(
        lambda q, k, v, s: tt.flash_attention(q, k, v, sink=s, window=(2, 0), layout="bhsd"),
        lambda q, k, v, s: attention(q, k, v, s, causal=True, left=2),
        (*QKV, (4,)), "flash_attention", (False, 2, 0, None, "bhsd"),
    ),
    "attention_lse": Case(
        lambda q, k, v: tt.flash_attention(q, k, v, causal=True, layout="bhsd", return_lse=True),
        lambda q, k, v: attention(q, k, v, causal=True, lse=True),
        QKV, "flash_attention", (None, True, None, None, 0.3, "bhsd"),
    ),
    "softmax": Case(tt.softmax, lambda x: F.softmax(x, -1), ((2, 3, 7),), "softmax"),
    "rms_norm": Case(
        lambda x, w: tt.rms_norm(x, w, eps=0.1), lambda x, w: F.rms_norm(x, (7,), w, 0.1), ((2, 3, 7), (7,)),
        "rms_norm", (0.1,),
    ),
    "layer_norm": Case(
        lambda x, w, b: tt.layer_norm(x, w, b, eps=0.1), lambda x, w, b: F.layer_norm(x, (7,), w, b, 0.1),
        ((2, 3, 7), (7,), (7,)), "layer_norm", (0.1,),
    ),
    "layer_norm_bias": Case(
        lambda x, b: tt.layer_norm(x, None, b), lambda x, b: F.layer_norm(x, (7,), None, b), ((3, 7), (7,)), "",
    ),
    "layer_norm_plain": Case(
        tt.layer_norm, lambda x: F.layer_norm(x, (7,)), ((3, 7),), "layer_norm", (None, None, 0.1)
    ),
    "swiglu": Case(tt.swiglu, lambda g, u: F.silu(g) * u, ((3, 7), (3, 7)), "swiglu"),
    "swiglu_halves": Case(tt.swiglu, lambda x: F.silu(x[..., :4]) * x[..., 4:], ((2, 3, 8),), ""),
    "rope": Case(
        lambda x: tt.rope(x, COS, SIN, positions=POSITIONS), rotated, ((2, 5, 3, 7),), "rope",
        (COS, SIN, POSITIONS, False, "bshd", False), True,
    ),
}  # fmt: skip
BACKWARD = {
    "flash_attention_backward": (*BSHD, BSHD[0], (1, 4, 5), BSHD[0]),
    "softmax_backward": ((3, 7), (3, 7)),
    "rms_norm_backward": ((3, 7), (7,), (3, 7)),
    "layer_norm_backward": ((3, 7), (7,), (3, 7)),
    "swiglu_backward": ((3, 7), (3, 7), (3, 7)),
}
BACKWARD_OPTIONS = {
    "flash_attention_backward": (None, None, True, None, None, None, "bshd"),
    "rms_norm_backward": (0.1,),
    "layer_norm_backward": (0.1,),
}


def tensors(case: Case, dtype: Any = torch.float64, seed: int = 0) -> list[Any]:
    torch.manual_seed(seed)
    return [torch.randn(s, dtype=torch.float64).to(dtype).requires_grad_() for s in case.shapes]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def outputs(found: Any) -> tuple[Any, ...]:
    return found if isinstance(found, tuple) else (found,)


def test_gradients_in_float64(case: Case) -> None:
    given = tensors(case)
    for got, expected in zip(outputs(case.call(*given)), outputs(case.same(*given)), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(case.call, given)
    if case.twice:
        assert torch.autograd.gradgradcheck(case.call, given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_against_torch(case: Case, dtype: Any) -> None:
    """The same formula in float64 of the same values; the upstream gradient is random."""
    given = tensors(case, dtype)
    if len(given) == 4:  # the sink
        given[3] = given[3].detach().float().requires_grad_()
    exact = [x.detach().double().requires_grad_() for x in given]
    found, expected = outputs(case.call(*given)), outputs(case.same(*exact))
    up = [torch.randn_like(x) for x in found]
    torch.autograd.backward(found, up)
    torch.autograd.backward(expected, [x.double() for x in up])
    tolerance = {torch.float32: 2e-6, torch.bfloat16: 3e-2}[dtype]
    for x, y in zip(given, exact, strict=True):
        assert (x.grad is None) == (y.grad is None)
        if x.grad is not None:
            assert x.grad.dtype == x.dtype
            size = y.grad.abs().max().clamp(min=1)
            assert (x.grad.double() - y.grad).abs().max() <= tolerance * size


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.operator])
def test_opcheck(name: str) -> None:
    case = CASES[name]
    torch.library.opcheck(getattr(torch.ops.tiledsl, case.operator).default, (*tensors(case), *case.options))


@pytest.mark.parametrize("name", BACKWARD)
def test_opcheck_of_gradients(name: str) -> None:
    """Shapes, strides and schema; they have no derivative of their own."""
    torch.manual_seed(1)
    given = [torch.randn(s) for s in BACKWARD[name]]
    operator = getattr(torch.ops.tiledsl, name).default
    torch.library.opcheck(operator, (*given, *BACKWARD_OPTIONS.get(name, ())))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_whole(case: Case, dynamic: bool) -> None:
    """Forward and backward through one graph: the bits of the calls outside of it."""
    torch._dynamo.reset()
    compiled = torch.compile(case.call, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for seed in range(2):
        plain, traced = tensors(case, torch.float32, seed), tensors(case, torch.float32, seed)
        found, again = outputs(case.call(*plain)), outputs(compiled(*traced))
        sum((x * x).sum() for x in found).backward()
        sum((x * x).sum() for x in again).backward()
        for a, b in zip(found, again, strict=True):
            assert torch.equal(a, b)
        for x, y in zip(plain, traced, strict=True):
            assert (x.grad is None and y.grad is None) or torch.equal(x.grad, y.grad)


def test_one_graph_for_all_lengths() -> None:
    seen = []

    def backend(graph: Any, inputs: Any) -> Any:
        seen.append(graph)
        return graph.forward

    def block(x: Any, w: Any) -> Any:
        y = tt.rms_norm(x, w)
        y = tt.flash_attention(y[None, :, None], y[None, :, None], y[None, :, None], causal=True)[0, :, 0]
        return tt.softmax(tt.swiglu(tt.matmul(y, w[:, None] * w), y))

    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend=backend, dynamic=True)
    w = torch.randn(6)
    for rows in (4, 9, 31):
        x = torch.randn(rows, 6)
        assert torch.equal(compiled(x, w), block(x, w))
    assert len(seen) == 1


def test_shapes_on_the_meta_device() -> None:
    q, k = torch.empty(2, 5, 4, 8, device="meta"), torch.empty(2, 9, 2, 8, device="meta")
    o, lse = tt.flash_attention(q, k, k, return_lse=True)
    assert o.is_meta and o.shape == q.shape and lse.shape == (2, 4, 5)
    assert tt.grouped_gemm(q[0, 0], k[0, :3], torch.empty(3, device="meta"), transpose_b=True).shape == (4, 2)
    with pytest.raises(RuntimeError, match="matmul: shapes do not fit: a \\(4, 8\\), b \\(4, 8\\)"):
        tt.matmul(q[0, 0], q[0, 0])


def test_gradient_only_where_wanted() -> None:
    a, b = torch.randn(3, 4), torch.randn(4, 5, requires_grad=True)
    tt.matmul(a, b).sum().backward()
    torch.testing.assert_close(b.grad, a.sum(0)[:, None].expand(4, 5))
    o, lse = tt.flash_attention(*(torch.randn(s, requires_grad=True) for s in BSHD), return_lse=True)
    assert lse.requires_grad and o.requires_grad


def test_mistakes() -> None:
    x = torch.ones(3, 4)
    with pytest.raises(TileTypeError, match="inner sizes differ"):
        tt.matmul(x, x)
    with pytest.raises(TileTypeError, match="x is torch.int64"):
        tt.softmax(x.long())
    with pytest.raises(TileTypeError, match="swiglu: one shape expected"):
        tt.swiglu(torch.ones(3))
    with pytest.raises(TileValueError, match="layout is 'shbd'"):
        tt.flash_attention(*[torch.ones(1, 2, 3, 4)] * 3, layout="shbd")
    with pytest.raises(TileValueError, match="no gradient with respect to cos and sin"):
        tt.rope(torch.ones(1, 3, 1, 4), torch.ones(3, 2, requires_grad=True), torch.ones(3, 2))
    y = tt.softmax(x.requires_grad_())
    (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        g.sum().backward()
