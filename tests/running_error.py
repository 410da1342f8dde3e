"""Running error analysis: a formula that computes, beside its float64 values, bounds of what float32 makes of them.

Every operation counts as rounded once (functions twice), to u = 2^-24 of its size. A sum of k terms t counts as k u of
their sizes, or, if that is less, as 6 sqrt(k) u (|sum| + |t|_2): roundings are independent, and partial sums of draws,
in whatever order, are about that large. Errors of operands go through each operation by its slope. `gradients` goes the
formula backwards, in the same arithmetic.

Where errors go round many times (forty normalisations, ten products of one matrix) such a worst case grows without
saying anything. `sampled` then runs the formula several times, each operation off by a random part of its own rounding,
and gives the largest deviation of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from kernels_support import Array, U, rounding, worst

Back = Sequence[tuple["Ball", Callable[["Ball"], "Ball"]]]


class Ball:
    """Float64 values, and how far float32 may be from them; `back` knows each operand's share of a gradient."""

    __array_ufunc__ = None  # NumPy arrays leave operators to us

    noise: Callable[[tuple[int, ...]], Array] | None = None  # set by `sampled`: values are off by so much of a rounding

    def __init__(self, value: Any, error: Any = 0.0, roundings: float = 0, back: Back = (), own: Any = 0.0) -> None:
        """error: what the operands' errors make; roundings, own: of the operation itself, relative and absolute."""
        self.value = np.asarray(value, np.float64)
        off = np.broadcast_to(np.asarray(error, np.float64), self.value.shape)
        new = own + roundings * U * (np.abs(self.value) + off)
        if Ball.noise is not None:
            self.value = self.value + new * Ball.noise(self.value.shape)
            new = np.zeros(self.value.shape)
        self.error = off + new
        self.back = back
        self.shape, self.ndim = self.value.shape, self.value.ndim

    def __add__(self, other: Any) -> Ball:
        b = ball(other)
        return Ball(self.value + b.value, self.error + b.error, 1, ((self, lambda g: g), (b, lambda g: g)))

    def __mul__(self, other: Any) -> Ball:
        a, b = self, ball(other)
        off = np.abs(a.value) * b.error + np.abs(b.value) * a.error + a.error * b.error
        return Ball(a.value * b.value, off, 1, ((a, lambda g: g * b), (b, lambda g: g * a)))

    def __truediv__(self, other: Any) -> Ball:
        a, b = self, ball(other)
        q = a.value / b.value
        least = np.abs(b.value) - b.error
        off = np.where(least > 0, (a.error + np.abs(q) * b.error) / np.where(least > 0, least, 1), np.inf)
        made = Ball(q, off, 1)
        made.back = ((a, lambda g: g / b), (b, lambda g: -(g * made) / b))
        return made

    def __neg__(self) -> Ball:
        return Ball(-self.value, self.error, 0, ((self, lambda g: -g),))

    def __sub__(self, other: Any) -> Ball:
        return self + -ball(other)

    def __radd__(self, other: Any) -> Ball:
        return ball(other) + self

    def __rsub__(self, other: Any) -> Ball:
        return ball(other) - self

    def __rmul__(self, other: Any) -> Ball:
        return ball(other) * self

    def __rtruediv__(self, other: Any) -> Ball:
        return ball(other) / self

    def __matmul__(self, other: Any) -> Ball:
        a, b = self, ball(other)
        x, y = np.abs(a.value), np.abs(b.value)
        own = _sum_error(a.shape[-1], a.value @ b.value, (x + a.error) @ (y + b.error), (x * x) @ (y * y))
        back = (a, lambda g: g @ b.swap()), (b, lambda g: a.swap() @ g)
        return Ball(a.value @ b.value, a.error @ (y + b.error) + x @ b.error, 1, back, own)

    def swap(self) -> Ball:
        """The last two axes exchanged."""
        return Ball(self.value.swapaxes(-1, -2), self.error.swapaxes(-1, -2), 0, ((self, lambda g: g.swap()),))

    def sum(self, axis: Any, keepdims: bool = False) -> Ball:
        sizes = np.abs(self.value) + self.error
        value, size, squares = (x.sum(axis, keepdims=True) for x in (self.value, sizes, sizes * sizes))
        off = self.error.sum(axis, keepdims=True)
        own = _sum_error(self.value.size // max(value.size, 1), value, size, squares)
        shape = value.shape if keepdims else self.value.sum(axis).shape
        ones = np.ones(self.shape)
        back = lambda g: Ball(g.value.reshape(value.shape) * ones, g.error.reshape(value.shape) * ones)  # noqa: E731
        return Ball(value.reshape(shape), off.reshape(shape), 0, ((self, back),), own.reshape(shape))

    def mean(self, axis: Any, keepdims: bool = False) -> Ball:
        made = self.sum(axis, keepdims)
        return made / (self.value.size // max(made.value.size, 1))

    def max(self, axis: Any, keepdims: bool = False) -> Ball:
        """A constant as far as gradients are concerned: what is subtracted before an exponential."""
        return Ball(self.value.max(axis, keepdims=keepdims), self.error.max(axis, keepdims=keepdims))

    def reshape(self, *shape: int) -> Ball:
        return Ball(
            self.value.reshape(shape), self.error.reshape(shape), 0, ((self, lambda g: g.reshape(*self.shape)),)
        )

    def __getitem__(self, key: Any) -> Ball:
        def back(g: Ball) -> Ball:
            value, error = np.zeros(self.shape), np.zeros(self.shape)
            np.add.at(value, key, g.value)
            np.add.at(error, key, g.error)
            return Ball(value, error)

        return Ball(self.value[key], self.error[key], 0, ((self, back),))

    def function(self, value: Array, error: Array, slope: Callable[[Ball], Ball]) -> Ball:
        """A function of one operand, of at most one ulp; slope of the result gives the derivative."""
        made = Ball(value, error, 2)
        made.back = ((self, lambda g: g * slope(made)),)
        return made

    def through(self, f: Callable[[Array], Array]) -> Ball:
        """A monotone function without an error of its own: a clamp; a cast, where what is near a boundary may move."""
        y = f(self.value)
        off = np.maximum(np.abs(f(self.value + self.error) - y), np.abs(f(self.value - self.error) - y))
        return Ball(y, off)

    def exp(self) -> Ball:
        y = np.exp(self.value)
        return self.function(y, y * np.expm1(self.error), lambda made: made)

    def log1p(self) -> Ball:
        return self.function(np.log1p(self.value), self.error / (1 + self.value - self.error), lambda _: 1 / (1 + self))

    def sqrt(self) -> Ball:
        y = np.sqrt(self.value)
        off = y - np.sqrt(np.maximum(self.value - self.error, 0))
        return self.function(y, np.maximum(off, np.sqrt(self.value + self.error) - y), lambda made: 0.5 / made)

    def sigmoid(self) -> Ball:
        """Its slope is s (1 - s), as kernels have it: what is lost near s = 1 counts."""
        s = 1 / (1 + (-self).exp())
        s.back = ((self, lambda g: g * s * (1 - s)),)
        return s

    def holds(self, got: Array, dtype: str = "float32") -> bool:
        """Whether `got`, stored in the dtype, is within the bound."""
        assert np.isfinite(self.error).all(), "a bound that says nothing"
        return worst(got, self.value, self.error + rounding(np.abs(self.value) + self.error, dtype)) <= 1


def ball(x: Any) -> Ball:
    return x if isinstance(x, Ball) else Ball(x)


def where(condition: Array, a: Any, b: Any) -> Ball:
    """Choice by exact conditions."""
    a, b = ball(a), ball(b)
    return Ball(
        np.where(condition, a.value, b.value),
        np.where(condition, a.error, b.error),
        0,
        ((a, lambda g: where(condition, g, 0.0)), (b, lambda g: where(condition, 0.0, g))),
    )


def concatenate(parts: Sequence[Ball], axis: int = 0) -> Ball:
    ends = np.cumsum([p.shape[axis] for p in parts])

    def share(stop: int, size: int) -> Callable[[Ball], Ball]:
        return lambda g: g[(slice(None),) * axis + (slice(stop - size, stop),)]

    back = tuple((p, share(int(n), p.shape[axis])) for p, n in zip(parts, ends, strict=True))
    return Ball(np.concatenate([p.value for p in parts], axis), np.concatenate([p.error for p in parts], axis), 0, back)


def gradients(outputs: Sequence[Ball], seeds: Sequence[Any], leaves: Sequence[Ball]) -> list[Ball]:
    """The gradient of the sum of outputs times seeds with respect to each leaf."""
    order: list[Ball] = []
    known: set[int] = set()

    def visit(x: Ball) -> None:
        stack: list[tuple[Ball, bool]] = [(x, False)]
        while stack:
            y, done = stack.pop()
            if done:
                order.append(y)
            elif id(y) not in known:
                known.add(id(y))
                stack.append((y, True))
                stack += [(p, False) for p, _ in y.back]

    shares: dict[int, Ball] = {}
    for out, seed in zip(outputs, seeds, strict=True):
        visit(out)
        shares[id(out)] = shares[id(out)] + seed if id(out) in shares else ball(seed)
    for x in reversed(order):
        g = shares.get(id(x))
        for parent, back in x.back if g is not None else ():
            assert g is not None
            share = _fold(back(g), parent.shape)
            shares[id(parent)] = shares[id(parent)] + share if id(parent) in shares else share
    return [shares.get(id(x), Ball(np.zeros(x.shape))) for x in leaves]


def _fold(g: Ball, shape: tuple[int, ...]) -> Ball:
    """The sum over the axes along which an operand of this shape was repeated."""
    extra = g.ndim - len(shape)
    axes = tuple(i for i in range(g.ndim) if i < extra or (shape[i - extra] == 1 and g.shape[i] != 1))
    return g.sum(axes, keepdims=True).reshape(*shape) if axes else g


def _sum_error(terms: int, total: Array, sizes: Array, squares: Array) -> Array:
    return U * np.minimum(terms * sizes, 6 * terms**0.5 * (np.abs(total) + np.sqrt(squares)))


def sampled(formula: Callable[[], Sequence[Ball]], samples: int = 8) -> list[tuple[Array, float]]:
    """Of each result of the formula its float64 values, and the largest error that random roundings gave it."""

    def run(noise: Callable[[tuple[int, ...]], Array]) -> list[Array]:
        Ball.noise = noise
        try:
            return [x.value for x in formula()]
        finally:
            Ball.noise = None

    exact = run(np.zeros)
    off = [0.0] * len(exact)
    for seed in range(samples):
        found = run(partial(np.random.default_rng(seed).uniform, -1, 1))
        off = [max(o, float(np.abs(f - e).max(initial=0))) for o, f, e in zip(off, found, exact, strict=True)]
    return list(zip(exact, off, strict=True))
