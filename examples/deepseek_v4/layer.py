"""One DeepSeek-V4 block from this library's kernels: a short text is prefilled, then decoded token by token.

Weights are random, in the formats of the published checkpoint; sizes are V4-Flash's (3.4 GB of FP4 experts) or small
ones. The block is compared with plain NumPy (reference.py) stage by stage, and as a whole; and one call, chunks and
single tokens have to give the same bits.

Run it: python examples/deepseek_v4/layer.py [--size small] [--ratio 4|128|0] [--hashed] [--tokens N] [--decode N]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import numpy as np
from block import Block, embed
from compare import compare, failures, parts, reference_values, worst
from weights import FLASH, SMALL, Array, Weights, random_weights, with_ratio

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

TEXT = """The block sees bytes. Each of them is a token: four streams of numbers that hyper-connections mix, a window of
the last 128 tokens, entries that stand for four tokens or for a hundred and twenty-eight, an indexer that says which of
them to look at, and two hundred and fifty-six experts of which six have something to say."""
KINDS = {4: "compressed sparse attention", 128: "heavily compressed attention", 0: "a window alone"}


def gigabytes(w: Weights) -> float:
    """Of the routed experts, codes and scales."""
    packed = (w.routed.gate_up, w.routed.down)
    return float(sum(p.data.nbytes + p.scale.nbytes for p in packed)) / 1e9


def run(w: Weights, x: Array, token_ids: Array, prefill: int, target: str | None) -> tuple[Array, list[float], Block]:
    """The streams behind the block, and the seconds of the prefill and of each token after it."""
    block, out, seconds = Block(w, len(x), target), [], []
    for part in parts(len(x), prefill):
        start = time.perf_counter()
        out.append(block(x[part], token_ids[part]))
        seconds.append(time.perf_counter() - start)
    return np.concatenate(out), seconds, block


def in_chunks(w: Weights, x: Array, token_ids: Array, target: str | None) -> Array:
    """The same in chunks of uneven lengths."""
    block, out = Block(w, len(x), target), []
    for i in range(3):
        part = slice(len(x) * i * i // 9, len(x) * (i + 1) * (i + 1) // 9)
        if part.stop > part.start:
            out.append(block(x[part], token_ids[part]))
    return np.concatenate(out)


def check(w: Weights, x: Array, token_ids: Array, prefill: int, target: str | None) -> None:
    """Print each stage's errors. Raises SystemExit where one is out of bounds."""
    values = reference_values(w, x, token_ids, prefill)
    calls = compare(w, x, token_ids, prefill, values, target=target)
    print("against plain NumPy, given the same inputs; errors as parts of the root mean square:")
    for f in worst(calls):
        print(f"  {f.name:22} largest {f.largest:8.1e}   rms {f.typical:8.1e}{'' if f.ok else '   OUT OF BOUNDS'}")
    for what, forced in (("given attention's result", frozenset({"attn.raw"})), ("side by side", frozenset[str]())):
        whole = worst(compare(w, x, token_ids, prefill, values, forced=forced, target=target))
        last = next(f for f in whole if f.name == "ffn.x")
        print(f"the whole block, {what}: rms of errors {last.typical:.1e}")
    if wrong := failures(calls):
        raise SystemExit(f"out of bounds: {', '.join(sorted(wrong))}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--size", choices=["flash", "small"], default="flash", help="V4-Flash's sizes, or small ones")
    parser.add_argument("--ratio", type=int, choices=[4, 128, 0], default=4, help="kind of attention (default: 4)")
    parser.add_argument("--hashed", action="store_true", help="experts by a table of token ids")
    parser.add_argument("--tokens", type=int, help="of the text that are prefilled (default: 8; 126 with --ratio 128)")
    parser.add_argument("--decode", type=int, default=3, help="tokens decoded after them (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    parser.add_argument("--target", help="where to run (default: TILEDSL_TARGET, else auto)")
    parser.add_argument("--no-check", action="store_true", help="leave NumPy out, which takes most of the time")
    options = parser.parse_args(arguments)
    if options.tokens is None:  # enough that decoding completes a compressed block
        options.tokens = 126 if options.ratio == 128 else 8
    n = options.tokens + options.decode
    if options.tokens < 1 or options.decode < 0:
        parser.error("--tokens is positive, and --decode not negative")
    config = with_ratio(FLASH if options.size == "flash" else SMALL, options.ratio, options.hashed)
    start = time.perf_counter()
    w = random_weights(config, options.seed, options.target)
    print(f"{KINDS[config.ratio]}, {config.experts} experts, {config.active} for a token"
          f"{' by a table' if config.hashed else ''}, d {config.d}: {gigabytes(w):.2f} GB of FP4 experts drawn in "
          f"{time.perf_counter() - start:.1f} s")  # fmt: skip
    token_ids = np.resize(np.frombuffer(TEXT.encode(), np.uint8), n).astype(np.int32)
    x = embed(w, token_ids)
    run(w, x, token_ids, options.tokens, options.target)  # compiles
    y, seconds, block = run(w, x, token_ids, options.tokens, options.target)
    later = seconds[1:]
    print(f"prefill of {options.tokens} tokens: {seconds[0]:.3f} s"
          + (f"; decode: {np.median(later) * 1e3:.1f} ms a token (median)" if later else ""))  # fmt: skip
    print(f"caches for {n} tokens: {block.cache.nbytes:,} bytes, compressors' state {block.cache.state_bytes:,}")
    same = np.array_equal(y.view(np.uint16), in_chunks(w, x, token_ids, options.target).view(np.uint16))
    print(f"prefill and decode, and uneven chunks: {'the same bits' if same else 'DIFFERENT BITS'}")
    if not same:
        raise SystemExit("bits differ")
    if not options.no_check:
        check(w, x, token_ids, options.tokens, options.target)
    if resource is not None:
        unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
        print(f"largest memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
