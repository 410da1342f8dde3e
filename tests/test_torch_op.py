"""Kernels as PyTorch operators: schemas, shapes without memory, torch.compile, opcheck, gradients."""

import pytest

torch = pytest.importorskip("torch")

import tiledsl  # noqa: E402
import tiledsl.language as T  # noqa: E402
from tiledsl.errors import TileTypeError, TileValueError  # noqa: E402

THREADS = 64


@tiledsl.jit
def scaled(A, factor: float = 2.0, block: int = 32):
    M, N = T.const("M, N")
    A: T.Tensor[(M, N), T.float32]
    B = T.empty((M, N), T.float32)
    with T.Kernel(T.ceildiv(M, block), threads=THREADS) as bx:
        for i, j in T.Parallel(block, N):
            if bx * block + i < M:
                B[bx * block + i, j] = A[bx * block + i, j] * factor
    return B


@tiledsl.jit(out_idx=[1, 2])
def sum_and_square(dtype=T.float64):
    n = T.dynamic("n")

    @T.prim_func
    def main(X: T.Tensor((n,), dtype), Y: T.Tensor((n,), dtype), Z: T.Tensor((2 * n,), dtype), w: T.float32):
        with T.Kernel(T.ceildiv(n, 16), threads=THREADS) as bx:
            for i in T.Parallel(16):
                if bx * 16 + i < n:
                    x = X[bx * 16 + i]
                    Y[bx * 16 + i] = x * x
                    Z[2 * (bx * 16 + i)] = x
                    Z[2 * (bx * 16 + i) + 1] = x + T.cast(w, dtype)

    return main


@tiledsl.jit
def doubled(n, dtype=T.float32):
    @T.prim_func
    def main(X: T.Tensor((n,), dtype)):
        with T.Kernel(1, threads=THREADS):
            for i in T.Parallel(n):
                X[i] = X[i] * 2.0

    return main


scale = tiledsl.torch.op(scaled, name="tiledsl_tests::scale")
both = tiledsl.torch.op(sum_and_square(), name="tiledsl_tests::both")
double = tiledsl.torch.op(doubled(7), name="tiledsl_tests::double")


@tiledsl.torch.op(name="tiledsl_tests::square")
def square(x: torch.Tensor) -> torch.Tensor:
    return sum_and_square()(x.reshape(-1), 0.0)[0].reshape(x.shape)


square.register_autograd(
    lambda ctx, grad: 2.0 * ctx.saved_tensors[0] * grad,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


def test_eager_kernel():
    x = torch.randn(33, 7)
    torch.testing.assert_close(scale(x, 3.0), x * 3.0, rtol=0, atol=0)
    torch.testing.assert_close(scale(x), x * 2.0, rtol=0, atol=0)
    torch.library.opcheck(scale, (x, 3.0))


def test_kernel_with_two_outputs_and_a_scalar():
    x = torch.randn(19, dtype=torch.float64)
    y, z = both(x, 0.5)
    assert torch.equal(y, x * x) and torch.equal(z, torch.stack([x, x + 0.5], 1).reshape(-1))
    torch.library.opcheck(both, (x, 0.5))


def test_written_argument():
    x = torch.arange(7.0)
    double(x)
    assert torch.equal(x, torch.arange(7.0) * 2)
    torch.library.opcheck(double, (torch.ones(7),))


def test_function_with_a_gradient():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(square, (x,))
    assert torch.autograd.gradcheck(square, (x,))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_whole(dynamic):
    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=dynamic)
    def f(x):
        return square(scale(x + 1.0).double()).sum() + 1.0

    for rows in (5, 6, 40):
        x = torch.randn(rows, 3)
        expected = ((2.0 * (x + 1.0)).double() ** 2).sum() + 1.0
        torch.testing.assert_close(f(x), expected)


def test_dynamic_sizes_are_not_specialised():
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    f = torch.compile(lambda x: both(x, 1.0)[1] + 1.0, fullgraph=True, backend=backend, dynamic=True)
    for n in (4, 9, 31):
        assert f(torch.ones(n, dtype=torch.float64)).shape == (2 * n,)
    assert len(seen) == 1


def test_shapes_on_the_meta_device():
    x = torch.empty(33, 7, device="meta")
    y = scaled(x)
    assert y.is_meta and y.shape == (33, 7) and y.dtype == torch.float32
    with pytest.raises(TileTypeError, match="float32"):
        scaled(torch.empty(33, 7, device="meta", dtype=torch.float64))


def test_mistakes():
    with pytest.raises(TileTypeError, match="is a factory of kernels"):
        tiledsl.torch.op(doubled, name="tiledsl_tests::factory")
    with pytest.raises(TileTypeError, match="expected a function or a kernel, got int"):
        tiledsl.torch.op(3)
    with pytest.raises(TileValueError, match="not of the form"):
        tiledsl.torch.op(square._init_fn, name="square")

    @tiledsl.jit
    def in_place(A):
        N = T.const("N")
        A: T.Tensor[(N,), T.float32]
        with T.Kernel(1, threads=THREADS):
            for i in T.Parallel(N):
                A[i] = A[i] + 1.0

    hidden = tiledsl.torch.op(in_place, name="tiledsl_tests::hidden")
    with pytest.raises(TileTypeError, match="writes its argument A"):
        hidden(torch.ones(3))
    told = tiledsl.torch.op(in_place, name="tiledsl_tests::told", mutates=["A"])
    x = torch.ones(3)
    told(x)
    assert torch.equal(x, torch.full((3,), 2.0))
