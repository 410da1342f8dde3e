"""Decode at a context of 1,048,576 tokens: the attention of all 43 layers of DeepSeek-V4-Flash, caches at real size.

Each layer has its caches in the published formats (3.7 GB together), filled by the kernels from random blocks. A step
then takes one token through every layer: new entries, index scores over 262,144 FP4 keys, the selection of 512, sparse
attention (CSA); attention to 8,192 entries (HCA); the window alone. Projections and experts are no part of it (layer.py
and moe.py have them). What is checked: planted needles are among the selected; the selection by bfloat16 scores is
that by float32 scores; sampled layers against NumPy in float64 over the bytes of the caches. What is printed: the time
of each part beside the least time that this machine needs for its bytes and operations.

Run it: python examples/deepseek_v4/million_tokens.py [--tokens 16384 --layers 6]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import cache_bytes
import numpy as np
from decode import HEADS, KINDS, RATIOS, ROPE, TOP_K, Layer, Step, work
from measure import GB, MS, Clock, Work, ceilings, count, fail_unless, print_table, save, use_threads

from tiledsl.demo.report import Progress
from tiledsl.kernels import deepseek_v4 as v4

BF16 = 2.0**-8  # half a step of bfloat16, relative
OVERLAP = 0.997


def parse() -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument(
        "--tokens", type=count, default=1 << 20, help="context length (default 1048576: 4.5 GB of memory)"
    )
    parser.add_argument("--layers", type=count, default=43, help="the first so many layers (default 43)")
    parser.add_argument("--steps", type=count, default=4, help="tokens decoded (default 4)")
    parser.add_argument("--needles", type=count, default=16, help="planted in each CSA layer (default 16)")
    parser.add_argument(
        "--strength", type=float, default=0.9,
        help="cosine of a needle's key and the direction that the indexer's weighted queries share (default 0.9)",
    )  # fmt: skip
    parser.add_argument(
        "--related", type=int, default=1024,
        help="blocks of each CSA layer that have to do with its queries (default 1024; 0: all others are noise)",
    )  # fmt: skip
    parser.add_argument("--sample", type=count, default=2, help="layers of each kind that NumPy checks (default 2)")
    parser.add_argument("--threads", type=count, default=2, help="threads; 1: CPU time is taken, else wall time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    options = parser.parse_args()
    if options.tokens < 4096 or options.tokens % 128:
        parser.error("--tokens: a multiple of 128 from 4096 on")
    if options.layers > len(RATIOS) or options.steps > 128:
        parser.error(f"--layers: at most {len(RATIOS)}; --steps: at most 128")
    if options.needles + options.related > options.tokens // 8:
        parser.error("--needles and --related: at most half of the blocks, tokens / 8")
    return options


def check_entries(layer: Layer) -> bool:
    """Drawn blocks, normalised and rotated in float64, are what the caches' bytes say, to half a step of FP8 or FP4."""
    fine = True
    theta = ROPE[layer.ratio]
    for first, last in (layer.chunks()[0], layer.chunks()[-1]):
        at = np.unique(np.linspace(first, last - 1, 64).astype(np.int64))
        x = layer.entries(first, last)[at - first].astype(np.float64)
        y = cache_bytes.rotate(x / rms(x) * layer.norm, at * layer.ratio, *theta)
        kept = cache_bytes.entries(layer.comp, at, layer.page)
        peak = np.repeat(np.abs(y[:, :448]).reshape(-1, 7, 64).max(2), 64, 1)
        error = np.abs(kept - y)
        bound = 2.0**-4 * np.abs(y[:, :448]) + 2.0**-17 * peak + 3 * BF16 * np.abs(y[:, :448])
        fine &= bool((error[:, :448] <= bound).all())
        fine &= bool((error[:, 448:] <= 4 * BF16 * np.abs(y[:, 448:]).max(1, keepdims=True)).all())
        if layer.ratio == 4:
            x = layer.index_keys(first, last)[at - first].astype(np.float64)
            fine &= fp4_fits(cache_bytes.rotate(x / rms(x), at * 4, *theta), layer.index, at, layer.page)
    return fine


def fp4_fits(y: np.ndarray[Any, Any], index: np.ndarray[Any, Any], at: np.ndarray[Any, Any], page: int) -> bool:
    """Keys at these slots are H y / sqrt(128) to half a step of e2m1 (0.25 below 2, 0.5 below 4, 1 below 6)."""
    y = cache_bytes.hadamard(y)
    kept = np.stack([cache_bytes.keys(index, int(s), int(s) + 1, page)[0] for s in at])
    peak = np.abs(y).reshape(-1, 4, 32).max(2)
    step = np.exp2(np.ceil(np.log2(peak * 1.02 / 6)))
    unit = np.repeat(step, 32, 1)
    size = np.abs(y) / unit
    half = np.where(size < 2, 0.25, np.where(size < 4, 0.5, 1.0))
    return bool((np.abs(kept - y) <= (half + 0.08) * unit).all())  # 0.08: y has been rounded to bfloat16 three times


def rms(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def check_step(layer: Layer, step: Step) -> dict[str, bool]:
    """The last step of a layer against float64: queries, index scores over all keys, the selection, attention."""
    theta, p = ROPE[layer.ratio], step.position
    q = step.q[0].astype(np.float64)
    wanted = cache_bytes.rotate(q / rms(q), np.full(HEADS, p), *theta)
    fine = {"queries": bool((np.abs(step.queries[0] - wanted) <= 4 * BF16 * np.abs(wanted).max()).all())}
    if layer.ratio == 4:
        seen = np.array([step.logits.shape[1]], np.int32)
        logits = v4.index_logits(step.index_bytes, step.weights, layer.index, layer.page, seen, int(seen[0]))[0]
        exact, size = cache_bytes.scores(layer.index, step.index_bytes[0], step.weights[0], int(seen[0]), layer.page)
        fine["index scores"] = bool((np.abs(logits - exact) <= 80 * 2.0**-24 * size).all())
        fine["bfloat16 scores"] = np.array_equal(step.logits[0], logits.astype(step.logits.dtype))
        order = np.argsort(-step.logits[0].astype(np.float32), kind="stable")[:TOP_K]
        fine["selection"] = np.array_equal(step.chosen[0], order)
    kv = cache_bytes.entries(layer.window, np.arange(128), 64)
    if layer.ratio:
        chosen = step.chosen[0][step.chosen[0] >= 0]
        kv = np.concatenate([kv, cache_bytes.entries(layer.comp, chosen, layer.page)])
    o = cache_bytes.attention(step.queries[0], kv, layer.sink)
    fine["attention"] = bool(np.linalg.norm(step.o[0] - o) <= 0.01 * np.linalg.norm(o))
    return fine


def overlap(layer: Layer, step: Step) -> float:
    """Share of the blocks selected by bfloat16 scores that float32 scores select too."""
    seen = np.array([step.logits.shape[1]], np.int32)
    logits = v4.index_logits(step.index_bytes, step.weights, layer.index, layer.page, seen, int(seen[0]))
    return float(np.isin(step.chosen[0], v4.select_blocks(logits, TOP_K, seen)[0]).mean())


def heights(layer: Layer, step: Step) -> tuple[float, float]:
    """The lowest score of a needle, and the lowest that is selected, in standard deviations above the mean of all."""
    scores = step.logits[0].astype(np.float32)
    ends = scores[layer.needles].min(), scores[step.chosen[0]].min()
    return tuple(float((x - scores.mean()) / scores.std()) for x in ends)  # type: ignore[return-value]


def main() -> None:
    options = parse()
    use_threads(options.threads)
    machine = ceilings(options.threads)
    clock, warm = Clock(options.threads), Clock(options.threads)
    layers: list[Layer] = []
    last: dict[int, Step] = {}
    overlaps: list[float] = []
    lost, planted = 0, 0
    margins: list[tuple[float, float]] = []
    begin = time.perf_counter()
    with Progress(options.layers + options.steps + 1) as progress:
        for number in range(options.layers):
            progress.step(f"filling layer {number} ({KINDS[RATIOS[number]]})")
            layers.append(
                Layer(number, options.tokens, options.seed, options.needles, options.strength, options.related)
            )
            layers[-1].fill(options.steps)
        filled = time.perf_counter() - begin
        for p in range(options.tokens - options.steps, options.tokens):
            progress.step(f"decoding token {p}")
            for layer in layers:
                step = layer.inputs(p)
                layer.decode(step, warm if p == options.tokens - options.steps else clock)
                last[layer.number] = step
                if layer.ratio == 4:
                    overlaps.append(overlap(layer, step))
                    margins.append(heights(layer, step))
                    planted += len(layer.needles)
                    lost += int((~np.isin(layer.needles, step.chosen[0])).sum())
        progress.step("checking sampled layers in float64")
        passed: dict[str, bool] = {}
        for ratio, kind in KINDS.items():
            some = [x for x in layers if x.ratio == ratio]
            for layer in some[:: max(len(some) // options.sample, 1)][: options.sample]:
                found = check_step(layer, last[layer.number])
                if ratio:
                    found["cache bytes"] = check_entries(layer)
                for name, ok in found.items():
                    passed[f"{kind} {name}"] = passed.get(f"{kind} {name}", True) and ok
    if options.steps == 1:
        clock = warm
    report(options, layers, machine, clock, filled)
    if planted:
        lowest, mean = min(overlaps), sum(overlaps) / len(overlaps)
        needle, chosen = (float(np.median([m[i] for m in margins])) for i in (0, 1))
        print(
            f"needles found: {planted - lost} of {planted} ({options.needles} per layer, cosine {options.strength}); "
            f"scores in deviations above the mean: weakest needle of a layer {needle:.1f}, last selected block "
            f"{chosen:.1f} (medians)"
        )
        print(
            f"top {TOP_K} by bfloat16 scores that float32 scores give too: {mean:.2%} of {len(overlaps)} selections, "
            f"least {lowest:.2%}; {options.related} related blocks per layer"
        )
        passed["needles"] = lost == 0
        passed["overlap at least 99.7%"] = mean >= OVERLAP or options.related == 0
    fail_unless(passed)


def report(options: argparse.Namespace, layers: list[Layer], machine: Any, clock: Clock, filled: float) -> None:
    """Bytes of the caches; for every part and kind of layer the needed terms, the bound, the time, and their ratio."""
    kept, made = (sum(x.bytes[i] for x in layers) for i in (0, 1))
    print(
        f"{len(layers)} layers, {options.tokens} tokens: {kept * GB:.3f} GB of entries and keys, {made * GB:.3f} GB "
        f"with the padding of pages, {kept / options.tokens:.1f} bytes per token; filled in {filled:.0f} s"
    )
    rows, figures, total = [], {}, [0.0, 0.0]
    for ratio, kind in KINDS.items():
        number = sum(x.ratio == ratio for x in layers)
        if not number:
            continue
        parts, all_work, all_time = work(ratio, options.tokens), Work(), 0.0
        for name, needed in parts.items():
            seconds = clock.median(name)
            rows.append(line(name, needed, machine, seconds))
            all_work, all_time = all_work + needed, all_time + seconds
        rows.append(line(f"{kind}: one layer (of {number})", all_work, machine, all_time))
        bound = all_work.seconds(machine)
        figures[kind] = {"layers": number, "bound": bound, "seconds": all_time, "ratio": all_time / bound}
        total = [total[0] + number * bound, total[1] + number * all_time]
    rows.append(
        ["all layers", "", "", "", f"{total[0] * MS:.2f}", f"{total[1] * MS:.2f}", f"{total[1] / total[0]:.2f}"]
    )
    print_table(
        f"One token, {options.threads} thread{'s' * (options.threads > 1)}, medians of all layers of a kind and "
        f"{max(options.steps - 1, 1)} steps; bound: the longer of bytes at the read rate and operations at "
        "the rates of their instructions",
        ["part", "MB", "MFLOP float32", "MOP int8", "bound ms", "time ms", "time / bound"],
        rows,
    )
    rates = {"read": machine.read, "fma": machine.fma, "bytes": machine.bytes}
    save(options.json, {"tokens": options.tokens, "threads": options.threads, "machine": rates, "kinds": figures})


def line(name: str, needed: Work, machine: Any, seconds: float) -> list[str]:
    bound = needed.seconds(machine)
    terms = (needed.moved, needed.floats, needed.integers)
    return [
        name,
        *(f"{t * 1e-6:.2f}" for t in terms),
        *(f"{t * MS:.3f}" for t in (bound, seconds)),
        f"{seconds / bound:.2f}",
    ]


if __name__ == "__main__":
    main()
