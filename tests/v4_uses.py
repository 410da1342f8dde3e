"""A valid use of every public function of quant, moe, optim, engram and deepseek_v4, for any number of tokens.

`make(n)` gives named arguments; those in `rows` have one entry per token along the first axis. `run` calls the function
and gives its arrays; those in `results` have one entry per token too. A function that writes into pages gives what it
wrote.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from v4_reference import BF16, Array, F, fp4_cast, fp8_cast

from tiledsl.kernels import deepseek_v4 as v4
from tiledsl.kernels import engram, moe, optim, quant

I = np.int32
COS, SIN = v4.rope_tables(300, 1e4)


@dataclass(frozen=True)
class Use:
    """results: which of the arrays that `run` gives have one entry per token."""

    run: Callable[..., Any]
    make: Callable[[int], dict[str, Any]]
    rows: tuple[str, ...] = ()
    results: tuple[int, ...] = (0,)


USES: dict[str, Use] = {}


def f(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(F)


def b(*shape: int) -> Array:
    return f(*shape).astype(BF16)


def places(n: int) -> Array:
    return np.arange(n, dtype=I)


def use(name: str, make: Callable[[int], dict[str, Any]], rows: str = "", results: tuple[int, ...] = (0,),
        run: Callable[..., Any] | None = None, room: Any = None) -> None:  # fmt: skip
    plain = run or getattr(room, name)
    USES[name] = Use(plain, make, tuple(rows.split()), results)


# -- quant --
for cast in ("per_token_cast", "mxfp4_cast"):
    use(cast, lambda n: {"x": f(n, 160)}, "x", (0, 1), room=quant)
for cast in ("per_block_cast", "per_channel_cast"):
    use(cast, lambda n: {"x": f(n, 160)}, room=quant)
use("dequantize", lambda n: dict(zip(("q", "scale"), fp8_cast(f(n, 160), 1, 128), strict=True)) | {"block": (1, 128)},
    "q scale", room=quant)  # fmt: skip
use("fp4_to_fp8", lambda n: dict(zip(("q", "scale"), fp4_cast(f(n, 160)), strict=True)) | {"per_token": True},
    "q scale", (0, 1), room=quant)  # fmt: skip
use("swiglu_cast", lambda n: {"gate_up": b(n, 320), "weight": f(n), "limit": 1.0}, "gate_up weight", (0, 1), room=quant)
use("swiglu_cast_backward", lambda n: {"gate_up": b(n, 320), "weight": f(n), "dh": b(n, 160), "limit": 1.0},
    "gate_up weight dh", (0, 1), room=quant)  # fmt: skip
use("pack_e5m6", lambda n: {"x": f(n, 160)}, "x", room=quant)
use("unpack_e5m6", lambda n: {"packed": quant.pack_e5m6(f(n, 160))}, "packed", room=quant)
use("stochastic_round", lambda n: {"x": f(n, 160), "random": f(n, 160).view(np.uint32)}, "x random", room=quant)


def operands(n: int, fp4: bool = False) -> dict[str, Any]:
    (a, a_scale), w = fp8_cast(f(n, 160), 1, 128), f(70, 160)
    q, scale = fp4_cast(w) if fp4 else fp8_cast(w, 128, 128)
    return {"a": a, "a_scale": a_scale, "b": q, "b_scale": scale}


def grouped(n: int) -> dict[str, Any]:
    given = operands(n) | {"group_sizes": np.array([0, n], I)}
    return given | {k: np.stack([given[k]] * 2) for k in ("b", "b_scale")}


def masked(n: int) -> dict[str, Any]:
    given = operands(n, True) | {"counts": np.array([n], I)}
    return {k: v[None] if k != "counts" else v for k, v in given.items()}


def packed() -> Any:
    q, scale = fp4_cast(f(70, 160))
    return quant.fp4_prepack(q[None], scale[None])


use("scaled_gemm", operands, "a a_scale", room=quant)
use("scaled_grouped_gemm", grouped, room=quant)
use("scaled_masked_gemm", masked, room=quant)
use("fp4_prepack", lambda n: dict(zip(("q", "scale"), (x[None] for x in fp4_cast(f(70, 160))), strict=True)),
    run=lambda **k: quant.fp4_prepack(**k).data, results=())  # fmt: skip
use("fp4_grouped_gemm", lambda n: {"a": b(n, 160), "b": packed(), "group_sizes": np.array([n], I)}, room=quant)

# -- moe --


def mapped(n: int) -> moe.Mapping:
    return moe.token_mapping(moe.route(f(n, 16), 4)[1], 16)


def experts(count: int, seed: int) -> moe.Experts:
    w = [fp4_cast(f(rows * count + seed, k)[seed:]) for rows, k in ((128, 96), (96, 64))]
    up, down = ([x.reshape(count, -1, x.shape[1]) for x in pair] for pair in w)
    return moe.Experts(up[0], down[0], up[1], down[1])


def layer(n: int) -> dict[str, Any]:
    x, gate = b(n, 96), b(16, 96)
    return {
        "x": x,
        "gate": gate,
        "experts": experts(16, 0),
        "k": 4,
        "bias": f(16),
        "shared": experts(1, 1),
        "limit": 10.0,
    }


use("route", lambda n: {"logits": f(n, 16), "k": 4, "bias": f(16), "groups": 8, "kept": 4}, "logits", (0, 1), room=moe)
use("route_backward", lambda n: {"logits": f(n, 16), "chosen": moe.route(f(n, 16), 4)[1], "dweights": f(n, 4)},
    "logits chosen dweights", room=moe)  # fmt: skip
use("token_mapping", lambda n: {"chosen": moe.route(f(n, 16), 4)[1], "experts": 16},
    run=lambda **k: moe.token_mapping(**k).slots, results=())  # fmt: skip
use("expand", lambda n: {"x": f(n, 40), "mapping": mapped(n)}, results=(), room=moe)
use("reduce_rows", lambda n: {"x": f(4 * n, 40), "mapping": mapped(n), "weights": f(n, 4), "add": f(n, 40)}, room=moe)
use("feed_forward", lambda n: {"x": b(n, 96), "experts": experts(2, 0), "sizes": np.array([0, n], I), "weights": f(n)},
    room=moe)  # fmt: skip
use("moe_forward", layer, "x", room=moe)

# -- optim and engram --


def stepped(name: str) -> Callable[..., Any]:
    def run(**given: Any) -> Any:
        getattr(optim, name)(**given)
        return given["weight"]

    return run


use("newton_schulz", lambda n: {"x": f(n, 40, 33)}, "x", room=optim)
use("muon_step", lambda n: {"weight": f(n, 40, 33), "grad": f(n, 40, 33), "momentum": f(n, 40, 33), "lr": 0.1},
    "weight grad momentum", run=stepped("muon_step"))  # fmt: skip
use("adamw_step", lambda n: {k: abs(f(n, 33)) for k in ("weight", "grad", "first", "second")} | {"step": 2, "lr": 0.1},
    "weight grad first second", run=stepped("adamw_step"))  # fmt: skip


def gated(n: int) -> dict[str, Any]:
    return {"x": b(n, 4, 40), "key": b(n, 4, 40), "value": b(n, 40), "x_weight": f(4, 40), "key_weight": f(4, 40)}


def ungated(n: int) -> dict[str, Any]:
    return gated(n) | {"saved": engram.engram_gate(**gated(n))[1], "dy": b(n, 4, 40)}


use("engram_gate", gated, "x key value", run=lambda **k: engram.engram_gate(**k)[0])
use("engram_gate_backward", ungated, results=(0, 1, 2), room=engram)
use("ngram_hash", lambda n: {"ids": np.arange(3 * n, dtype=I).reshape(n, 3), "multipliers": np.array([[3, 5, 7]]),
    "sizes": engram.engram_primes(99, 2, 4)[None]}, "ids", run=lambda **k: engram.ngram_hash(**k)[0])  # fmt: skip
use("gather_rows", lambda n: {"table": f(50, 40), "index": places(n) % 50}, "index", room=engram)

# -- deepseek_v4 --


def streams(n: int) -> dict[str, Any]:
    return {"x": b(n, 4, 40), "fn": f(24, 160) * F(0.1), "scale": f(3), "base": f(24)}


def headed(n: int) -> dict[str, Any]:
    return {"x": b(n, 4, 40), "fn": f(4, 160) * F(0.1), "scale": f(1), "base": f(4)}


def after(n: int) -> dict[str, Any]:
    return {"f": b(n, 40), "x": b(n, 4, 40), "post": f(n, 4), "comb": f(n, 4, 4)}


def gradients(n: int) -> dict[str, Any]:
    saved = v4.hyper_pre(**streams(n))[3]
    return streams(n) | {"saved": saved, "dy": b(n, 40), "dpost": f(n, 4), "dcomb": f(n, 4, 4)}


use("hyper_pre", streams, "x", (0, 1, 2), run=lambda **k: v4.hyper_pre(**k)[:3])
use("hyper_head", headed, "x", room=v4)
use("hyper_post", after, "f x post comb", room=v4)
use("hyper_post_backward", lambda n: after(n) | {"dy": b(n, 4, 40)}, "f x post comb dy", (0, 1, 2, 3), room=v4)
use("hyper_pre_backward", gradients, room=v4)
use("hyper_head_backward", lambda n: headed(n) | {"dy": b(n, 40), "saved":
    v4.hyper_head(**headed(n), return_mixes=True)[1]}, room=v4)  # fmt: skip


def compressed(**given: Any) -> Any:
    state = v4.compressor_state(len(given["kv"]), 4, 66)
    entries, counts = v4.compress(state=state, **given)
    return entries[:, :4], counts, state.kv, state.score


def tokens(n: int) -> dict[str, Any]:
    return {"kv": f(n, 17, 66), "scores": f(n, 17, 66), "ape": f(4, 66), "ratio": 4, "lengths": np.full(n, 17, I)}


use("compress", tokens, "kv scores lengths", (0, 1, 2, 3), run=compressed)
use("compress_backward", lambda n: tokens(n) | {"dentries": f(n, 5, 33)}, "kv scores lengths dentries", (0, 1), room=v4)


def writer(name: str, width: int, bytes_of: Callable[[int], int], norm: dict[str, int]) -> None:
    def make(n: int) -> dict[str, Any]:
        vectors = {k: f(size) for k, size in norm.items()}
        return {"x": f(n, width), **vectors, "cos": COS, "sin": SIN, "positions": places(n), "slots": places(n)}

    def run(**given: Any) -> Any:
        cache = np.zeros((300, bytes_of(1)), np.uint8)
        getattr(v4, name)(cache=cache, page_size=1, **given)
        return cache[np.clip(given["slots"], 0, 299)] if isinstance(given["slots"], np.ndarray) else cache

    use(name, make, "x positions slots", run=run)


writer("write_entries", 512, v4.page_bytes, {"weight": 512})
writer("write_mla_entries", 576, v4.mla_page_bytes, {"weight": 512})
writer("write_index_keys", 128, v4.index_page_bytes, {"weight": 128})
writer("write_index_keys_fp8", 128, v4.index_page_bytes_fp8, {"weight": 128, "bias": 128})


def cache(bytes_of: Callable[[int], int]) -> Array:
    """Twenty pages of three, of bytes that are small numbers in every format."""
    return np.random.default_rng(0).integers(40, 60, (20, bytes_of(3))).astype(np.uint8)


for reader, size in (("read_entries", v4.page_bytes), ("read_mla_entries", v4.mla_page_bytes)):
    use(reader, lambda n, size=size: {"cache": cache(size), "slots": places(n) % 60, "page_size": 3}, "slots", room=v4)


def lists(n: int) -> Array:
    return ((places(n)[:, None] + np.arange(70, dtype=I)) % 60).astype(I)


def attended(n: int) -> dict[str, Any]:
    slots = {"slots": lists(n)[:, :20], "extra_slots": lists(n)[:, 20:]}
    caches = {"source": cache(v4.page_bytes), "extra": cache(v4.page_bytes), "page_size": 3, "extra_page_size": 3}
    return {"q": b(n, 5, 512), **slots, **caches, "sink": f(5), "return_lse": True}


def unattended(n: int) -> dict[str, Any]:
    given = {"q": b(n, 5, 40), "source": b(60, 40), "slots": lists(n)[:, :50], "sink": f(5)}
    o, lse = v4.sparse_attention(**given, return_lse=True)
    return given | {"o": o, "lse": lse, "do": b(n, 5, 40)}


use("sparse_attention", attended, "q slots extra_slots", (0, 1), room=v4)
use("sparse_attention_backward", unattended, "q slots o lse do", room=v4)


def turned(n: int) -> dict[str, Any]:
    return {"q": b(n, 5, 128), "cos": COS, "sin": SIN, "positions": places(n)}


def lookup(n: int, width: int, bytes_of: Callable[[int], int]) -> dict[str, Any]:
    q = np.random.default_rng(1).integers(40, 60, (n, 5, width)).astype(np.uint8)
    table, sequence = np.arange(20, dtype=I).reshape(2, 10), (places(n) % 2).astype(I)
    given = {
        "q": q,
        "weights": f(n, 5),
        "cache": cache(bytes_of),
        "page_size": 3,
        "visible": (places(n) % 31).astype(I),
    }
    return given | {"length": 30, "block_table": table, "sequence": sequence}


use("index_queries", turned, "q positions", room=v4)
use("index_queries_fp8", turned, "q positions", room=v4)
use("index_logits", lambda n: lookup(n, 68, v4.index_page_bytes), "q weights visible sequence", room=v4)
use("index_logits_fp8", lambda n: lookup(n, 132, v4.index_page_bytes_fp8), "q weights visible sequence", room=v4)
use("select_blocks", lambda n: {"logits": f(n, 30), "k": 12, "visible": (places(n) % 31).astype(I)}, "logits visible",
    room=v4)  # fmt: skip
use("prepare_queries", turned, "q positions", room=v4)
use("inverse_rope", lambda n: {"o" if k == "q" else k: x for k, x in turned(n).items()}, "o positions", room=v4)
use("output_projection", lambda n: {"o": b(n, 8, 96), "group_weights": b(4, 24, 192), "weight": b(40, 96)}, "o",
    room=v4)  # fmt: skip
