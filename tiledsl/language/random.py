"""Random numbers: T.rng_init, T.rng_rand, T.rng_rand_float. Each follows from seed, sequence and its number alone."""

from __future__ import annotations

import math
from typing import Any

from tiledsl.dtypes import UINT32, UINT64
from tiledsl.errors import TileSyntaxError, TileValueError
from tiledsl.frontend.control import Tracer, tracer
from tiledsl.frontend.location import error
from tiledsl.frontend.loops import LoopSpec, close_loop, open_loop
from tiledsl.frontend.values import Value, to_dtype
from tiledsl.language import casts
from tiledsl.language.functions import cos, log, sin
from tiledsl.language.math import if_then_else, select_value, sqrt
from tiledsl.language.memory import alloc_var, as_scalar
from tiledsl.language.operation import operation
from tiledsl.language.threads import collective, get_block_binding, get_thread_binding, get_thread_extent

__all__ = ["rng_init", "rng_rand", "rng_rand_float"]

_GENERATOR = "curandStatePhilox4_32_10_t"
_FACTORS, _STEPS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)  # of Philox4x32 (Salmon et al., 2011)


@operation
def rng_init(seed: Any, seq: Any = None, off: Any = 0, generator: str = _GENERATOR) -> None:
    """Starts this thread's random numbers at number `off` of sequence `seq` of a seed: Philox4x32-10, as cuRAND has it.

    seed, seq, off  integers, taken as uint64; seq None: the thread's number along x in the whole grid

    The numbers are the same on every target. In T.Parallel the iterations of a thread draw one after the other.
    """
    if generator != _GENERATOR:
        raise error(
            "random-generator",
            TileValueError,
            f"T.rng_init: there is no generator {generator!r}",
            help=f"leave it out: {_GENERATOR} is the one whose numbers can be had anywhere in a sequence",
        )
    builder = tracer("T.rng_init")
    if seq is None:
        seq = get_thread_binding() + get_block_binding() * get_thread_extent()
    first = select_value(
        collective("T.rng_init", "rank", (), scope="block") >= 0, _u64(off), _u64(0)
    )  # each thread's own
    given = {"seed": _u64(seed), "sequence": _u64(seq), "number": first}
    if builder.random is None:
        builder.random = {name: alloc_var(UINT64) for name in given}
        builder.random |= {"spare": alloc_var("float64"), "spares": alloc_var("int32")}
    for name, value in (*given.items(), ("spare", 0.0), ("spares", 0)):
        builder.random[name].store(value)


@operation
def rng_rand() -> Any:
    """The thread's next random number: uint32, all values alike."""
    return _word(_state("T.rng_rand"))


@operation
def rng_rand_float(bit: int = 32, dist: str = "uniform") -> Any:
    """The thread's next random float32 (bit=64: float64): dist "uniform" in (0, 1], or "normal" (mean 0, variance 1).

    A uniform number takes one number of the sequence; normal ones come in pairs from two (Box-Muller).
    """
    if bit not in (32, 64) or dist not in ("uniform", "normal"):
        raise error(
            "random-float",
            TileValueError,
            f"T.rng_rand_float: there are no {dist} numbers of {bit} bits",
            help='bit is 32 or 64, dist "uniform" or "normal"',
        )
    dtype, state = f"float{bit}", _state("T.rng_rand_float")
    if dist == "uniform":
        return _uniform(_word(state), dtype)
    ready, before = _let("ready", state["spares"] != 0), _let("before", state["number"])
    x, y = (_word(state) for _ in range(2))
    state["number"].store(before + casts.cast(if_then_else(ready, 0, 2), UINT64))
    turn = casts.cast(2 * math.pi * 2.0**-32, dtype)
    angle = casts.cast(y, dtype) * turn + turn / 2
    size = sqrt(log(_uniform(x, dtype)) * -2)
    found = _let("normal", select_value(ready, casts.cast(state["spare"], dtype), size * sin(angle)))
    state["spare"].store(size * cos(angle))
    state["spares"].store(if_then_else(ready, 0, 1))
    return found


def _let(name: str, value: Any) -> Value:
    return Value(tracer("a random number").let(name, value.typed))


def _u64(x: Any) -> Value:
    return Value(to_dtype(as_scalar(x, "T.rng_init: a number of 64 bits"), UINT64))


def _state(what: str) -> Any:
    """The variables that hold a thread's place."""
    builder: Tracer = tracer(what)
    if builder.random is None:
        raise error(
            "no-random", TileSyntaxError, f"{what} before T.rng_init", help="begin the kernel with T.rng_init(seed)"
        )
    return builder.random


def _uniform(word: Value, dtype: str) -> Any:
    """(0, 1]: multiples of 2**-32, and half a one more where that is not the 1 of float64."""
    half = 2.0**-33 if dtype == "float32" else 2.0**-32
    return casts.cast(word, dtype) * casts.cast(2.0**-32, dtype) + casts.cast(half, dtype)


def _low(x: Value) -> Any:
    return casts.cast(x, UINT32)


def _high(x: Value) -> Any:
    return casts.cast(x >> 32, UINT32)


def _word(state: Any) -> Value:
    """Number n of the sequence, word n % 4 of the block whose counter is n // 4; and goes on by one."""
    number, sequence, seed = (_let(n, state[n]) for n in ("number", "sequence", "seed"))
    state["number"].store(number + casts.cast(1, UINT64))
    counter = number >> 2
    words = [alloc_var(UINT32, half(x)) for x in (counter, sequence) for half in (_low, _high)]
    keys = [alloc_var(UINT32, half(seed)) for half in (_low, _high)]
    builder = tracer("a random number")
    rounds = open_loop(builder, LoopSpec.serial("a random number", 10), ())
    a, b, c, d, *key = (_let("word", x) for x in (*words, *keys))
    first, second = (
        _let("product", casts.cast(x, UINT64) * casts.cast(f, UINT64)) for x, f in zip((a, c), _FACTORS, strict=True)
    )
    mixed = (_high(second) ^ b ^ key[0], _low(second), _high(first) ^ d ^ key[1], _low(first))
    further = (k + casts.cast(step, UINT32) for k, step in zip(key, _STEPS, strict=True))
    for place, value in zip((*words, *keys), (*mixed, *further), strict=True):
        place.store(value)
    close_loop(builder, rounds)
    which, words = casts.cast(number & 3, "int32"), [_let("word", x) for x in words]
    upper = select_value(which == 2, words[2], words[3])
    return _let("random", select_value(which == 0, words[0], select_value(which == 1, words[1], upper)))
