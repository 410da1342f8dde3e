"""A small server loop over paged compressed caches: requests come and go, prefixes go to disk and come back.

Each pass takes a ragged batch: a chunk of the prompt of some requests, one token of others. All requests begin with
the same text; the first one leaves it on disk (its pages, and its slot's state at that point), and the others load it
into memory of their own instead of computing it. What is checked: what comes back from disk are the bytes that went
there; every request gets, bit for bit, what it gets when it is served alone and from its first token on. What is
printed: bytes per token, as allocated, as held, on disk, and as the published formula has it.

Run it: python examples/deepseek_v4/serve.py [--requests 3 --prompt 300 --new 4]
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from measure import MS, Clock, count, fail_unless, print_table, save, use_threads
from paged import BLOCK, CHUNK, Caches, Model, Ragged

from tiledsl.demo.report import Progress

Array = np.ndarray[Any, Any]


@dataclass
class Request:
    """A prompt and what follows. seen: tokens whose entries are in the caches; blocks, slot: the memory it holds."""

    name: str
    tokens: list[int]
    new: int
    prompt: int = 0
    seen: int = 0
    slot: int = -1
    blocks: list[int] = field(default_factory=list)
    loaded: int = 0  # tokens that came from disk
    logits: list[bytes] = field(default_factory=list)  # of each new token

    def __post_init__(self) -> None:
        self.tokens = list(self.tokens)  # it grows
        self.prompt = len(self.tokens)

    @property
    def room(self) -> int:
        """Blocks for the prompt and all that follows."""
        return -(-(self.prompt + self.new) // BLOCK)


class Prefixes:
    """Beginnings of prompts in a folder: one file of pages and state each, named by the hash of its tokens."""

    def __init__(self, folder: Path, length: int) -> None:
        self.folder, self.length = folder, length
        self.written = self.read = 0
        self.digests: dict[Path, str] = {}
        self.intact = True

    def file(self, tokens: list[int]) -> Path:
        name = hashlib.sha256(np.array(tokens[: self.length], np.int32).tobytes()).hexdigest()[:24]
        return self.folder / f"{name}.npz"

    def parts(self, request: Request, caches: Caches) -> dict[str, Array]:
        """Views of all that the first `length` tokens of a request have left in the caches."""
        found = {f"slot.{name}": x for name, x in caches.of_slot(request.slot)}
        for number, block in enumerate(request.blocks[: self.length // BLOCK]):
            found |= {f"block{number}.{name}": x for name, x in caches.of_block(block)}
        return found

    def spill(self, request: Request, caches: Caches) -> None:
        """Write the prefix, of which the request has just seen the last token."""
        path, parts = self.file(request.tokens), self.parts(request, caches)
        if path.exists():
            return
        with path.open("wb") as f:
            np.savez(f, **parts)  # type: ignore[arg-type]
        self.digests[path] = digest(parts)
        self.written += path.stat().st_size

    def load(self, request: Request, caches: Caches) -> None:
        """Read the prefix of a request into its own blocks and slot, where there is one."""
        path = self.file(request.tokens)
        if request.prompt <= self.length or not path.exists():
            return
        parts = self.parts(request, caches)
        with np.load(path, allow_pickle=False) as stored:
            for name, x in parts.items():
                x[...] = stored[name]
        self.read += path.stat().st_size
        self.intact &= digest(parts) == self.digests[path]
        request.seen = request.loaded = self.length


def digest(parts: dict[str, Array]) -> str:
    """A hash of names and bytes."""
    whole = hashlib.sha256()
    for name in sorted(parts):
        whole.update(name.encode() + np.ascontiguousarray(parts[name]).tobytes())
    return whole.hexdigest()


class Server:
    """Slots and blocks, who holds them, and the loop. prefixes None: nothing goes to disk."""

    def __init__(self, model: Model, slots: int, blocks: int, prefixes: Prefixes | None, clock: Clock) -> None:
        self.model, self.prefixes, self.clock = model, prefixes, clock
        self.caches = Caches(model.ratios, blocks, slots)
        self.slots, self.blocks = list(range(slots)), list(range(blocks))
        self.tables = np.zeros((slots, blocks), np.int32)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.computed = 0
        self.most_blocks = 0
        self.ragged: set[tuple[int, ...]] = set()  # rows of the requests of a pass

    def admit(self) -> None:
        """Waiting requests get a slot and blocks, in their order, while there are some. While a prefix is computed that
        the next request begins with, this one waits."""
        while self.waiting and self.slots and len(self.blocks) >= self.waiting[0].room:
            request = self.waiting[0]
            if self.prefixes is not None and not self.prefixes.file(request.tokens).exists():
                mine = self.prefixes.file(request.tokens)
                if any(self.prefixes.file(other.tokens) == mine for other in self.running):
                    return
            self.waiting.popleft()
            request.slot = self.slots.pop()
            request.blocks = [self.blocks.pop() for _ in range(request.room)]
            self.tables[request.slot, : request.room] = request.blocks
            self.caches.clear(request.slot)
            if self.prefixes is not None:
                self.prefixes.load(request, self.caches)
            self.running.append(request)
        self.most_blocks = max(self.most_blocks, sum(r.room for r in self.running))

    def step(self) -> None:
        """One pass over what every running request has to compute next."""
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        spans: list[tuple[int, int, int]] = []
        for r in self.running:
            n = min(len(r.tokens) - r.seen, CHUNK - r.seen % CHUNK)  # a prefix ends where a chunk does
            spans.append((r.slot, len(tokens), n))
            tokens += r.tokens[r.seen : r.seen + n]
            positions += range(r.seen, r.seen + n)
            slots += [r.slot] * n
        rows = (np.array(x, np.int32) for x in (tokens, positions, slots))
        batch = Ragged(*rows, spans, self.tables)
        decoding = len(tokens) == len(self.running)
        with self.clock(f"decode {len(tokens)}" if decoding else "prefill"):
            logits = self.model.forward(batch, self.caches)
        self.computed += len(tokens)
        self.ragged.add(tuple(n for _, _, n in spans))
        for r, (_, _, n), row in zip(list(self.running), spans, logits, strict=True):
            r.seen += n
            if self.prefixes is not None and r.seen == self.prefixes.length < r.prompt:
                self.prefixes.spill(r, self.caches)
            if r.seen == len(r.tokens):
                r.logits.append(row.tobytes())
                r.tokens.append(int(row.argmax()))
                if len(r.logits) == r.new:
                    self.finish(r)

    def finish(self, request: Request) -> None:
        """Its memory is free again."""
        self.running.remove(request)
        self.slots.append(request.slot)
        self.blocks += request.blocks

    def serve(self, requests: list[Request], progress: Progress | None = None) -> None:
        """Until every request has its tokens."""
        self.waiting += requests
        while self.waiting or self.running:
            before = len(self.waiting) + len(self.running)
            self.admit()
            if not self.running:
                raise SystemExit(f"{self.waiting[0].name} needs {self.waiting[0].room} blocks: --blocks is too small")
            self.step()
            for _ in range(before - len(self.waiting) - len(self.running)):
                if progress is not None:
                    progress.step("requests served")


def parse() -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--requests", type=count, default=6, help="default 6")
    parser.add_argument(
        "--prompt", type=count, default=1200, help="tokens (bytes of text) of the longest (default 1200)"
    )
    parser.add_argument("--prefix", type=count, default=512, help=f"common tokens, a multiple of {BLOCK} (default 512)")
    parser.add_argument("--new", type=count, default=16, help="tokens for each request (default 16)")
    parser.add_argument("--slots", type=count, default=4, help="requests at a time (default 4)")
    parser.add_argument("--blocks", type=count, default=24, help=f"blocks of {BLOCK} tokens (default 24)")
    parser.add_argument("--ratios", type=int, nargs="+", default=[0, 4, 128, 4], choices=[0, 4, 128], metavar="R",
                        help="layers: 0 window alone, 4 CSA, 128 HCA (default 0 4 128 4)")  # fmt: skip
    parser.add_argument("--dim", type=count, default=256, help="of the model (default 256)")
    parser.add_argument("--heads", type=count, default=8, help="default 8")
    parser.add_argument("--folder", type=Path, help="for prefixes (default: a temporary one)")
    parser.add_argument("--threads", type=count, default=2, help="threads; 1: CPU time is taken, else wall time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    options = parser.parse_args()
    if options.prefix % BLOCK or options.prompt <= options.prefix:
        parser.error(f"--prefix: a multiple of {BLOCK}, and less than --prompt")
    if options.heads % 4 and options.heads > 4:
        parser.error("--heads: a multiple of 4")
    return options


def make_requests(options: argparse.Namespace) -> list[Request]:
    """Prompts from a real text: the same beginning, then passages of different lengths from different places."""
    text = files("tiledsl.demo").joinpath("text.txt").read_bytes()
    text = text * (1 + 2 * options.prompt // len(text))
    rng = np.random.default_rng(options.seed)
    requests = []
    for i in range(options.requests):
        own = options.prompt - options.prefix if i == 0 else int(rng.integers(1, options.prompt - options.prefix + 1))
        at = int(rng.integers(0, len(text) - own))
        tokens = list(text[: options.prefix]) + list(text[at : at + own])
        requests.append(Request(f"request {i}", tokens, options.new))
    return requests


def main() -> None:
    options = parse()
    use_threads(options.threads)
    model = Model(tuple(options.ratios), options.dim, options.heads, options.prompt + options.new, options.seed)
    requests, clock = make_requests(options), Clock(options.threads)
    with Progress(2 * len(requests)) as progress, tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        prefixes = Prefixes(folder, options.prefix)
        prefixes.file(requests[0].tokens).unlink(missing_ok=True)  # of an earlier run, with other weights
        server = Server(model, options.slots, options.blocks, prefixes, clock)
        begin = time.perf_counter()
        server.serve(requests, progress)
        seconds = time.perf_counter() - begin
        alike = []
        for r in requests:  # each alone, from its first token on, in memory of its own
            alone = Request(r.name, r.tokens[: r.prompt], r.new)
            Server(model, 1, alone.room, None, Clock(options.threads)).serve([alone])
            alike.append(alone.logits == r.logits and alone.tokens == r.tokens)
            progress.step(f"{r.name} alone")
    report(options, server, requests, prefixes, seconds)
    several = any(len(spans) > 1 and len(set(spans)) > 1 for spans in server.ragged)
    fail_unless(
        {
            "every request has the bits that it has alone": all(alike),
            "prefixes came back as they went to disk": prefixes.intact,
            "prefixes were loaded": sum(r.loaded > 0 for r in requests) == len(requests) - 1,
            "batches were ragged": several or len(requests) == 1 or options.slots == 1,
            "all memory was given back": len(server.blocks) == options.blocks and len(server.slots) == options.slots,
        }
    )


def report(
    options: argparse.Namespace, server: Server, requests: list[Request], prefixes: Prefixes, seconds: float
) -> None:
    """Who was served, what it cost, and where the bytes are."""
    print_table(
        f"{len(requests)} requests, {options.slots} slots, {options.blocks} blocks of {BLOCK} tokens",
        ["request", "prompt", "from disk", "new", "blocks"],
        [[r.name, str(r.prompt), str(r.loaded), str(len(r.logits)), str(r.room)] for r in requests],
    )
    caches, ratios = server.caches, options.ratios
    per_block = sum(x.nbytes for _, x in caches.of_block(0))
    state = sum(x.nbytes for _, x in caches.of_slot(0))
    csa, hca = ratios.count(4), ratios.count(128)
    formula = csa * (584 + 68) / 4 + hca * 584 / 128
    tokens = sum(len(r.tokens) - 1 for r in requests)
    held = sum(r.room for r in requests) * per_block
    rows = [
        ["formula: CSA layers (584 + 68) / 4, HCA layers 584 / 128", f"{formula:.2f}"],
        ["pages as allocated, full blocks", f"{per_block / BLOCK:.2f}"],
        ["pages held by these requests (last blocks not full)", f"{held / tokens:.2f}"],
        [f"a prefix on disk, pages and state ({options.prefix} tokens)", f"{prefixes.written / options.prefix:.2f}"],
        ["bfloat16 keys and values of 8 heads of 128 in every layer", f"{len(ratios) * 2 * 8 * 128 * 2:.2f}"],
    ]
    print_table("Bytes per token", ["what", "bytes"], rows)
    print(
        f"state of a slot: {state} bytes (windows, compressors); at most {server.most_blocks} blocks were held; "
        f"{sum(r.loaded for r in requests)} tokens came from {prefixes.written} bytes on disk"
    )
    decode = {name: s for name, s in server.clock.seconds.items() if name.startswith("decode")}
    times = ", ".join(f"{n.removeprefix('decode ')}: {server.clock.median(n) * MS:.1f} ms" for n in sorted(decode))
    print(f"{server.computed} tokens computed in {seconds:.1f} s; decoding passes, medians by batch: {times or 'none'}")
    figures = {"formula": formula, "allocated": per_block / BLOCK, "held": held / tokens, "state": state}
    save(options.json, figures | {"disk": prefixes.written / options.prefix, "threads": options.threads})


if __name__ == "__main__":
    main()
