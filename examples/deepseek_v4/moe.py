"""An expert layer of DeepSeek-V4-Flash at real size: 256 experts of 4096 x 2048 in MXFP4 (3.4 GB), 6 for each token.

Random weights, packed as the kernels read them; batches of 1 to 256 tokens, every run with tokens and experts of its
own, so that no weight lies in a cache. A run takes the router's choice through mapping, expansion, the two grouped
products with the clamped SwiGLU between, and the ordered sum. Beside it torch with bfloat16 weights of the same values:
13 GB for all experts, so torch gets the first `--peer-experts` of them, and in the comparison both use those alone.
What is checked: results against float64 with dequantised weights, a token's bits in any batch, and torch's results.

Run it: python examples/deepseek_v4/moe.py [--experts 16 --dim 256 --inner 128 --batches 1 4]
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from measure import GB, MS, Clock, Work, ceilings, count, draw, fail_unless, print_table, save, use_threads

from tiledsl.demo.report import Progress
from tiledsl.kernels.moe import Experts, expand, feed_forward, reduce_rows, token_mapping
from tiledsl.kernels.quant import PackedMXFP4, dequantize, fp4_prepack

Array = np.ndarray[Any, Any]

LIMIT = 10.0  # of the clamp
BF16 = ml_dtypes.bfloat16
NEAR = 0.01  # three roundings to bfloat16 in a row, each 2^-9 at most, leave a relative distance of about 0.003


def parse() -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--experts", type=count, default=256, help="default 256")
    parser.add_argument("--top", type=count, default=6, help="experts of a token (default 6)")
    parser.add_argument("--dim", type=count, default=4096, help="default 4096; a multiple of 64")
    parser.add_argument("--inner", type=count, default=2048, help="default 2048; a multiple of 64")
    parser.add_argument("--batches", type=count, nargs="+", default=[1, 2, 4, 8, 16, 64, 256], metavar="N")
    parser.add_argument(
        "--runs", type=count, default=5, help="of each batch, after one that is not counted (default 5)"
    )
    parser.add_argument(
        "--peer-experts",
        type=int,
        default=64,
        help="experts that torch gets in bfloat16 (default 64: 3.2 GB; 0: no torch)",
    )
    parser.add_argument("--threads", type=count, default=2, help="threads; 1: CPU time is taken, else wall time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    options = parser.parse_args()
    if options.dim % 64 or options.inner % 64:
        parser.error("--dim and --inner: multiples of 64")
    if options.top > options.experts:
        parser.error("--top: at most --experts")
    options.peer_experts = min(options.peer_experts, options.experts)
    if 0 < options.peer_experts < options.top:
        parser.error("--peer-experts: at least --top, or 0")
    return options


def weights(rng: np.random.Generator, n: int, k: int) -> tuple[Array, Array]:
    """One matrix [n, k] in MXFP4: random codes, scales that make its values about k^-0.5 in size."""
    middle = 127 + round(np.log2(k**-0.5 / 2.6))  # 2.6 is the root mean square of e2m1's values
    scale = rng.integers(middle - 1, middle + 2, (1, n, k // 32), np.uint8)
    return rng.integers(0, 256, (1, n, k // 2), np.uint8), scale.view(ml_dtypes.float8_e8m0fnu)


class Model:
    """The experts, packed one after the other; `unpacked` draws an expert's weights again."""

    def __init__(self, options: argparse.Namespace, progress: Progress) -> None:
        self.options = options
        dim, inner, experts = options.dim, options.inner, options.experts
        packed: dict[str, list[Array]] = {}
        for e in range(experts):
            if e % 16 == 0:
                progress.step(f"packing expert {e} of {experts}")
            for name, (q, scale) in self.unpacked(e).items():
                one = fp4_prepack(q, scale)
                if not packed:
                    shapes = {"gate_up": (2 * inner, dim), "down": (dim, inner)}
                if name not in packed:
                    packed[name] = [np.empty((experts, *x.shape[1:]), x.dtype) for x in (one.data, one.scale)]
                for whole, x in zip(packed[name], (one.data, one.scale), strict=True):
                    whole[e] = x[0]
        parts = {name: PackedMXFP4(*packed[name], (experts, *shapes[name])) for name in packed}
        self.experts = Experts(parts["gate_up"], parts["down"])
        self.bytes = sum(x.nbytes for pair in packed.values() for x in pair)

    def unpacked(self, e: int) -> dict[str, tuple[Array, Array]]:
        """Codes and scales of an expert's two matrices."""
        rng = np.random.default_rng([self.options.seed, e])
        dim, inner = self.options.dim, self.options.inner
        return {"gate_up": weights(rng, 2 * inner, dim), "down": weights(rng, dim, inner)}

    def values(self, e: int, dtype: Any) -> dict[str, Array]:
        """An expert's matrices [n, k] as numbers; every one is exact in bfloat16."""
        return {
            name: dequantize(q[0], s[0], block=(1, 32), out_dtype="bfloat16").astype(dtype)
            for name, (q, s) in self.unpacked(e).items()
        }


class Batch:
    """Tokens and the router's choice for them: `top` different experts of the first `among` each."""

    def __init__(self, rng: np.random.Generator, tokens: int, options: argparse.Namespace, among: int) -> None:
        self.x = draw(rng, tokens, options.dim).astype(BF16)
        order = rng.random((tokens, among)).argsort(1)[:, : options.top]
        self.chosen = order.astype(np.int32)
        w = rng.uniform(0.5, 1.5, self.chosen.shape)
        self.weights = (1.5 * w / w.sum(1, keepdims=True)).astype(np.float32)

    def row(self, t: int) -> Batch:
        """One token alone."""
        alone = object.__new__(Batch)
        alone.x, alone.chosen, alone.weights = self.x[t : t + 1], self.chosen[t : t + 1], self.weights[t : t + 1]
        return alone


def run(batch: Batch, model: Model) -> Array:
    """The layer by the kernels, from the router's choice on: [tokens, dim] bfloat16."""
    mapping = token_mapping(batch.chosen, model.options.experts)
    m, k = batch.weights.shape
    per_row = expand(batch.weights.reshape(m, k, 1), mapping).reshape(mapping.rows)
    y = feed_forward(batch.x, model.experts, mapping.sizes, per_row, limit=LIMIT, mapping=mapping)
    out: Array = reduce_rows(y, mapping)
    return out


def exact(batch: Batch, t: int, model: Model) -> Array:
    """Token t in float64 with unrounded intermediates."""
    x, total = batch.x[t].astype(np.float64), np.zeros(model.options.dim)
    for e, weight in zip(batch.chosen[t], batch.weights[t], strict=True):
        w = model.values(int(e), np.float64)
        gate, up = np.split(w["gate_up"] @ x, 2)
        gate, up = np.minimum(gate, LIMIT), np.clip(up, -LIMIT, LIMIT)
        h = gate / (1 + np.exp(-gate)) * up * weight
        total += w["down"] @ h
    return total


def far(x: Array, y: Array) -> float:
    """The length of x - y in relation to that of y."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))


class Peer:
    """The same layer in torch on bfloat16 weights: a loop over the experts that have tokens."""

    def __init__(self, model: Model, threads: int, progress: Progress) -> None:
        import torch

        self.torch, self.options = torch, model.options
        torch.set_num_threads(threads)
        many, dim, inner = model.options.peer_experts, model.options.dim, model.options.inner
        self.gate_up = torch.empty((many, 2 * inner, dim), dtype=torch.bfloat16)
        self.down = torch.empty((many, dim, inner), dtype=torch.bfloat16)
        for e in range(many):
            if e % 16 == 0:
                progress.step(f"bfloat16 weights of expert {e} of {many} for torch")
            for name, value in model.values(e, BF16).items():
                getattr(self, name)[e].copy_(self.tensor(value))

    def tensor(self, x: Array) -> Any:
        return self.torch.from_numpy(x.view(np.uint16)).view(self.torch.bfloat16)

    def run(self, batch: Batch) -> Any:
        torch, tokens = self.torch, len(batch.x)
        x, chosen = self.tensor(batch.x), torch.from_numpy(batch.chosen)
        w, y = torch.from_numpy(batch.weights), torch.zeros((tokens, self.options.dim))
        for e in torch.unique(chosen).tolist():
            at, j = torch.where(chosen == e)
            gate, up = (x[at] @ self.gate_up[e].T).float().chunk(2, 1)
            h = torch.nn.functional.silu(gate.clamp(max=LIMIT)) * up.clamp(-LIMIT, LIMIT) * w[at, j, None]
            y.index_add_(0, at, (h.bfloat16() @ self.down[e].T).float())
        return y.bfloat16()


def needed(batch: Batch, options: argparse.Namespace, bytes_per_expert: float) -> Work:
    """Bytes of the experts that have tokens, and the products."""
    pairs = batch.chosen.size
    touched = len(np.unique(batch.chosen))
    return Work(moved=touched * bytes_per_expert, floats=2.0 * pairs * 3 * options.dim * options.inner)


def main() -> None:
    options = parse()
    use_threads(options.threads)
    machine = ceilings(options.threads)
    rng = np.random.default_rng([options.seed, 1 << 20])
    clock = Clock(options.threads)
    checks = {"float64": True, "a token alone has the same bits": True}
    steps = -(-options.experts // 16) + -(-options.peer_experts // 16) + len(options.batches) + 1
    rows, figures = [], []
    begin = time.perf_counter()
    with Progress(steps) as progress:
        model = Model(options, progress)
        peer = torch_peer(model, options, progress)
        packed = time.perf_counter() - begin
        for tokens in options.batches:
            progress.step(f"batch {tokens}")
            works, ratios = [], []
            for again in range(options.runs + 1):
                name = f"{tokens}" if again else "warm"
                batch = Batch(rng, tokens, options, options.experts)
                with clock(name):
                    y = run(batch, model)
                works += [needed(batch, options, model.bytes / options.experts)] * (again > 0)
                if peer is not None:
                    both = Batch(rng, tokens, options, options.peer_experts)
                    with clock(f"{name} torch"):
                        theirs = peer.run(both)
                    time.sleep(0.0 if options.threads == 1 else 0.1)  # until torch's threads sleep
                    with clock(f"{name} ours"):
                        run(both, model)
                    if again:
                        ratios.append(clock.seconds[f"{name} torch"][-1] / clock.seconds[f"{name} ours"][-1])
            t = tokens // 2
            checks["float64"] &= far(y[t], exact(batch, t, model)) < NEAR
            checks["a token alone has the same bits"] &= run(batch.row(t), model).tobytes() == y[t : t + 1].tobytes()
            if peer is not None:
                near = far(theirs.double().numpy(), run(both, model)) < NEAR
                checks["torch"] = checks.get("torch", True) and near
            seconds = clock.median(name)
            needs = Work(*(statistics.median(getattr(w, f) for w in works) for f in ("moved", "floats", "integers")))
            bound = needs.seconds(machine)
            ratio = statistics.median(ratios) if ratios else None
            figures.append({"batch": tokens, "seconds": seconds, "moved": needs.moved, "bound": bound, "torch": ratio})
            rows.append(
                [
                    str(tokens),
                    f"{needs.moved * 1e-6:.0f}",
                    f"{needs.floats * 1e-9:.2f}",
                    f"{bound * MS:.2f}",
                    f"{seconds * MS:.2f}",
                ]
                + [
                    f"{seconds / bound:.2f}",
                    f"{needs.moved / seconds * GB:.1f}",
                    f"{needs.moved / seconds / machine.read:.0%}",
                ]
                + ([f"{clock.median(f'{name} {w}') * MS:.2f}" for w in ("torch", "ours")] if peer else ["-", "-"])
                + [f"{ratio:.2f}" if ratio else "-"]
            )
        progress.step("done")
    print(
        f"{options.experts} experts, {model.bytes * GB:.3f} GB packed, in {packed:.0f} s"
        + (f"; torch has {options.peer_experts} of them in bfloat16" if peer else "; without torch")
    )
    print_table(
        f"Milliseconds, {options.threads} thread{'s' * (options.threads > 1)}, medians of {options.runs} runs; bound: "
        "the longer of bytes at the read rate and float32 operations at their rate",
        ["batch", "MB", "GFLOP", "bound", "time", "time / bound", "GB/s", "of stream"]
        + [f"torch, {options.peer_experts} experts", "ours, the same", "torch / ours"],
        rows,
    )
    rates = {"read": machine.read, "fma": machine.fma}
    save(options.json, {"threads": options.threads, "bytes": model.bytes, "machine": rates, "batches": figures})
    fail_unless(checks)


def torch_peer(model: Model, options: argparse.Namespace, progress: Progress) -> Peer | None:
    if not options.peer_experts:
        return None
    try:
        return Peer(model, options.threads, progress)
    except ImportError:
        return None


if __name__ == "__main__":
    main()
