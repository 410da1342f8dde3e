"""Which Python is staged (language.md 0.6), construct by construct, and the smaller names of the surface."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import pytest
from properties.support import TARGETS, agree, kernel_from

import tiledsl
from tiledsl.errors import TileError

HEAD = """
import dataclasses
import math
import sys
import types
import tiledsl.language as T

sys.modules.setdefault(__name__, types.ModuleType(__name__))  # dataclasses look there

@dataclasses.dataclass(frozen=True)
class Config:
    block: int = 16
    scale: float = 2.0
    fast: bool = True

config = Config()
table = {"a": 1, "b": [2, 3]}

def twice(x):
    return x + x

@T.macro
def swap(a: T.Ref, b: T.Ref):
    a, b = b, a

@T.macro
def divmod_(a, b):
    return a // b, a % b

@T.macro
def nested(a, b):
    q, r = divmod_(a, b)
    return q * 100 + r

@T.prim_func
def main(X: T.Tensor((16,), "int32"), O: T.Tensor((16,), "int32"), n: T.int32, f: T.float32, flag: T.bool):
    with T.Kernel(1, threads=1):
"""
X = np.array([5, 3, 8, 1, 9, 2, 7, 4, 6, 0, 11, 13, 12, 10, 15, 14], np.int32)


def outputs(body: str, n: int = 3, f: float = 2.5, flag: bool = True) -> list[int]:
    made = kernel_from(HEAD + textwrap.indent(textwrap.dedent(body), " " * 8))
    return agree(made, X, np.zeros(16, np.int32), n, f, flag)[1].tolist()  # type: ignore[no-any-return]


def sections(text: str) -> dict[str, tuple[str, str]]:
    """name -> (statements, what is expected), from `=== name -> expected` and the statements below it."""
    found = {}
    for part in text.split("=== ")[1:]:
        head, body = part.split("\n", 1)
        name, expected = head.split(" -> ")
        found[name] = (body, expected)
    return found


CASES = sections("""
=== chained assignment -> 6, 6, 6
O[0] = O[1] = X[0] + 1
a = b = X[1]
O[2] = a + b
=== swap of elements -> 3, 5
O[0] = X[0]
O[1] = X[1]
O[0], O[1] = O[1], O[0]
=== swap of variables -> 2, 1
u, v = T.alloc_var('int32', 1), T.alloc_var('int32', 2)
u, v = v, u
O[0] = u
O[1] = v
=== rotation of three -> 2, 3, 1
u = T.alloc_var('int32', 1)
v = T.alloc_var('int32', 2)
w = T.alloc_var('int32', 3)
u, v, w = v, w, u
O[0] = u
O[1] = v
O[2] = w
=== augmented assignment of a var -> 19
v = T.alloc_var('int32', 10)
v += X[0]
v -= 1
v *= 2
v //= 3
v <<= 1
v |= 1
O[0] = v
=== augmented assignment of an element -> 3
O[0] = 7
O[0] += X[0]
O[0] %= 5
O[0] ^= 1
=== augmented assignment of a value -> 6, 5
x = X[0]
x += 1
O[0] = x
O[1] = X[0]
=== a copy of a var is a value -> 1, 2
v = T.alloc_var('int32', 1)
b = v
v = 2
O[0] = b
O[1] = v
=== a let is bound before later stores -> 9, 4
O[0] = 4
x = O[0]
O[0] = 9
O[1] = x
=== while -> 8
v = T.alloc_var('int32', 0)
while v * v < 50:
    v += 1
O[0] = v
=== while with break -> 4
v = T.alloc_var('int32', 0)
while True:
    v += 1
    if v > n:
        break
O[0] = v
=== break and continue -> 18
v = T.alloc_var('int32', 0)
for i in range(16):
    if X[i] == 2:
        break
    if X[i] % 2 == 0:
        continue
    v += X[i]
O[0] = v
=== range with a negative step -> 531
v = T.alloc_var('int32', 0)
for i in range(5, 0, -2):
    v = v * 10 + i
O[0] = v
=== range with bounds of the kernel -> 1234
v = T.alloc_var('int32', 0)
for i in range(1, n + 2):
    v = v * 10 + i
O[0] = v
=== grid and unroll -> 336
v = T.alloc_var('int32', 0)
for i, j in T.grid(2, 3):
    v += i * 10 + j
for i in T.unroll(3):
    v += 100
O[0] = v
=== chained comparison -> 1, 1
O[0] = T.int32(0 <= n < 4)
if 1 < X[0] < 5 or n == 3:
    O[1] = 1
=== comparison chain evaluates once -> 1
O[0] = 1 if 2 < X[0] <= 5 < n + 3 else 2
=== conditional expression -> 5, 1, 7
O[0] = X[0] if n > 2 else X[1]
O[1] = 1 if config.fast else X[99]
O[2] = X[n - 4] if n > 3 else 7
=== and, or, not -> 1, 1
O[0] = 1 if n > 2 and not X[0] < 5 else 0
if n > 5 or (flag and f > 2.0):
    O[1] = 1
=== elif -> 2
if n == 1:
    O[0] = 1
elif n == 3:
    O[0] = 2
else:
    O[0] = 3
=== a branch decided while tracing -> 4
if config.fast:
    x = 4
else:
    x = missing_name
O[0] = x
=== None and strings decide -> 1, 2, 0
x = None
if x is None:
    O[0] = 1
if 'a' in table:
    O[1] = 2
if x:
    O[2] = 1
=== comprehensions -> 32, 2, 10
parts = [X[k] * 2 for k in (0, 1, 2)]
O[0] = sum(parts)
O[1] = max(len(table), 1)
O[2] = sum([k for k in range(5)])
=== Python loops over sequences -> 1, 2, 0, 0, 6, 7
for k, name in enumerate(table):
    O[k] = k + len(name)
for a, b in zip((4, 5), [6, 7]):
    O[a] = b
=== dicts, dataclasses, math and f-strings -> 19, 4, 5
O[0] = table['b'][1] + config.block
O[1] = int(math.log2(config.block))
O[2] = len(f'{config.block}-{X.shape[0]}')
=== helpers and lambdas -> 19
square = lambda x: x * x
O[0] = twice(X[0]) + square(X[1])
=== nested macros return tuples -> 803, 2, 2
O[0] = nested(X[0] * 7, 4)
q, r = divmod_(X[2], 3)
O[1] = q
O[2] = r
=== macros assign to variables and elements -> 2, 1, 6, 5
u, v = T.alloc_var('int32', 1), T.alloc_var('int32', 2)
swap(u, v)
O[0] = u
O[1] = v
O[2] = 5
O[3] = 6
swap(O[2], O[3])
=== starred targets -> 5, 11
a, *rest = (X[0], X[1], X[2])
O[0] = a
O[1] = rest[0] + rest[1]
=== assert that holds -> 1
assert X[0] == 5, f'X[0] is 5'
assert config.block == 16
O[0] = 1
=== bool and float parameters -> 5, 1, 0
O[0] = T.int32(f * 2.0)
O[1] = T.int32(flag)
if not flag:
    O[2] = 1
=== T.max and T.min of several forms -> 7, 2, 4
O[0] = T.max(X[0], 7)
O[1] = T.min(T.max(n, 1), 2)
O[2] = T.max(3, 4)
=== astype and casts -> 2, 2, 5
O[0] = (X[0] / 2.0).astype('int32')
O[1] = T.Cast('int32', f)
O[2] = X[0].astype(T.int64).astype(T.int32)
=== constant negative indices wrap -> 14, 3
O[0] = X[-1]
O[-1] = 3
O[1] = O[15]
=== run-time negative indices do not -> 1
O[0] = X[n - 4] + 1
=== pass and docstring -> 1
'''A docstring.'''
pass
O[0] = 1
=== early return -> 1
O[0] = 1
if n > 2:
    return
O[0] = 2
""")


@pytest.mark.parametrize("case", CASES)
def test_construct(case: str) -> None:
    body, expected = CASES[case]
    wanted = [int(v) for v in expected.split(",")]
    assert outputs(body)[: len(wanted)] == wanted


def test_assert_that_fails_names_the_line() -> None:
    made = kernel_from(HEAD + "        assert X[0] == n, 'no equality'\n")
    for target in TARGETS:
        with pytest.raises(TileError, match="no equality") as caught:
            made(X, np.zeros(16, np.int32), 3, 1.0, True, target=target)
        assert caught.value.loc is not None


REFUSED = sections("""
=== a value in a helper's if -> Python needs True or False
def pick(x):
    return 1 if x else 2
O[0] = pick(X[0] > 2)
=== a name bound in a staged branch -> y
if n > 2:
    y = 1
O[0] = y
=== a counter that is rebound -> alloc_var
k = 0
for i in T.serial(n):
    k = k + 1
O[0] = k
=== attribute assignment -> attribute
config.block = n
=== an endless loop -> never ends
while True:
    O[0] = 1
=== too few indices -> 2-dimensional
B = T.alloc_shared((4, 4), 'int32')
O[0] = B[1]
=== a return of a value -> returns no value
return X[0]
=== a walrus -> is not possible
if (x := X[0]) > 4:
    O[0] = x
=== a sum of a slice -> slice|region|element
O[0] = X[0:4] + 1
""")


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    body, message = REFUSED[case]
    with pytest.raises(TileError, match=message) as caught:
        kernel_from(HEAD + textwrap.indent(body, " " * 8))
    assert caught.value.loc is not None


def test_schedulers_of_a_meta_class() -> None:
    made = kernel_from("""
import tiledsl.language as T

@T.meta_class
class Tiles:
    def __init__(self, count, first, step):
        self.count, self.step = count, step
        self.now = T.alloc_local((1,), "int32")
        self.now[0] = first

    @T.inline
    def advance(self):
        self.now[0] = self.now[0] + self.step

    @T.macro
    def row_and_column(self, width):
        return self.now[0] // width, self.now[0] % width

    def valid(self):
        return self.now[0] < self.count

@T.prim_func
def main(O: T.Tensor((4, 5), "int32")):
    with T.Kernel(3, threads=32) as b:
        tiles = Tiles(20, b, 3)
        while tiles.valid():
            r, c = tiles.row_and_column(5)
            O[r, c] = b * 100 + tiles.now[0]
            tiles.advance()
""")
    got = agree(made, np.zeros((4, 5), np.int32))[0].reshape(-1)
    np.testing.assert_array_equal(got, np.arange(20) % 3 * 100 + np.arange(20))


def test_annotations_of_macros_and_other_names() -> None:
    made = kernel_from("""
import tiledsl.language as T

@T.macro
def add(a: T.SharedBuffer((16,), "float32"), b: T.FragmentBuffer[[16], T.float32], x: T.PrimExpr, c: T.LocalBuffer):
    for i in T.Parallel(16):
        b[i] = a[i] + x

@T.prim_func
def main(X: T.Tensor((64,), "float32"), O: T.Tensor((64,), "float32")):
    with T.ClusterKernel(4, threads=32, cluster_dims=2) as b:
        s, f = T.alloc_shared((16,), "float32"), T.alloc_fragment((16,), "float32")
        T.copy(X[b * 16], s)
        add(s, f, T.float32(b), None)
        T.copy(f, O[b * 16])
""")
    x = np.arange(64, dtype=np.float32)
    np.testing.assert_array_equal(agree(made, x, np.zeros_like(x))[1], x + np.arange(64) // 16)


@pytest.mark.parametrize("bits", [32, 64, 128, 256])
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int64"])
def test_words(bits: int, dtype: str) -> None:
    if np.dtype(dtype).itemsize * 8 > bits:
        pytest.skip("an element is wider than the word")
    count = bits // 8 // np.dtype(dtype).itemsize
    made = kernel_from(f"""
import tiledsl.language as T

@T.prim_func
def main(X: T.Tensor((3, {4 * count}), "{dtype}"), O: T.Tensor((3, {4 * count}), "{dtype}"),
         W: T.Tensor((8,), "uint32")):
    with T.Kernel(3, threads=1) as b:
        for i in T.serial(4):
            T.stg{bits}(O[b, i * {count}], T.ldg{bits}(X[2 - b, i * {count}], i != 2))
        if b == 0:
            w = T.ldg{bits}(X[1, {count}])
            W[0] = w{"" if bits == 32 else "[0]"}
            W[1] = w{"" if bits == 32 else f"[{bits // 32 - 1}]"}
""")
    rng = np.random.default_rng(bits)
    x = rng.integers(0, 100, (3, 4 * count)).astype(dtype)
    _, out, words = agree(made, x, np.zeros_like(x), np.zeros(8, np.uint32))
    wanted = x[::-1].copy().reshape(3, 4, count)
    wanted[:, 2] = 0
    np.testing.assert_array_equal(out, wanted.reshape(x.shape))
    seen = np.ascontiguousarray(x[1, count : 2 * count]).view(np.uint32)
    assert words[:2].tolist() == [seen[0], seen[-1]]


def test_absent_tensors() -> None:
    """None stands for a tensor that the kernel does not touch, decided while tracing."""

    def made(bias: bool) -> Any:
        body = "O[i] = X[i] + B[i]" if bias else "O[i] = X[i]"
        return kernel_from(f"""
import tiledsl.language as T

@T.prim_func
def main(X: T.Tensor((16,), "float32"), B: T.Tensor((16,), "float32"), O: T.Tensor((16,), "float32")):
    with T.Kernel(1, threads=32):
        for i in T.Parallel(16):
            {body}
""")

    x = np.arange(16, dtype=np.float32)
    for target in TARGETS:
        out = np.zeros_like(x)
        made(False)(x, None, out, target=target)
        np.testing.assert_array_equal(out, x)
        with pytest.raises(tiledsl.errors.TileTypeError, match="got None"):
            made(True)(x, None, out, target=target)


def test_slices_with_steps() -> None:
    made = kernel_from("""
import tiledsl.language as T

@T.prim_func
def main(X: T.Tensor((33, 17), "float32"), O: T.Tensor((33, 17), "float16"), n: T.int32):
    with T.Kernel(2, threads=32) as b:
        s = T.alloc_shared((8, 5), "float32")
        T.copy(X[b * 16:b * 16 + 16:2, 1:16:3], s)
        T.copy(s, O[b * 16 + n:b * 16 + n + 16:2, 2:17:3])
        T.copy(X[32, 0:17:4], O[32, 0:5])
""")
    x = np.random.default_rng(0).standard_normal((33, 17)).astype(np.float32)
    got = agree(made, x, np.zeros((33, 17), np.float16), 1)[1]
    wanted = np.zeros((33, 17), np.float16)
    wanted[1:33:2, 2:17:3] = x[0:32:2, 1:16:3].astype(np.float16)
    wanted[32, 0:5] = x[32, ::4].astype(np.float16)
    np.testing.assert_array_equal(got, wanted)


def test_addresses_inside_a_tensor() -> None:
    made = kernel_from("""
import tiledsl.language as T

@T.prim_func
def main(X: T.Tensor((6, 8), "float32"), O: T.Tensor((6, 8), "float32"), n: T.int32):
    with T.Kernel(1, threads=1):
        T.stg128(O.access_ptr("w", offset=12), T.ldg128(X.access_ptr("r", offset=n * 8)))
        T.copy(X.data, O[0, 0:8])
        O[5, 0] = X.access_ptr(offset=47) + float(X.strides[0])
""")
    x = np.arange(48, dtype=np.float32).reshape(6, 8)
    got = agree(made, x, np.zeros_like(x), 3)[1]
    wanted = np.zeros_like(x)
    wanted[1, 4:8], wanted[0], wanted[5, 0] = x[3, :4], x[0], 55
    np.testing.assert_array_equal(got, wanted)
