"""What a token costs DeepSeek-V3.2, V4-Flash and V4-Pro: cache bytes and operations, beside the published figures.

Everything follows from the published hyper-parameters. Conventions:

- Cache: V3.2 keeps 656 bytes per token and layer (512 e4m3, 4 float32 scales, 64 bfloat16) and 132 of the indexer (128
  e4m3, a float32 scale). V4 keeps 584 bytes per entry (448 e4m3, 64 bfloat16, 7 e8m0 scales, a byte of padding) and 68
  of the indexer (64 of e2m1 pairs, 4 e8m0 scales): one entry per 4 tokens (compressed sparse attention, CSA) or per 128
  (heavily compressed, HCA), and a window of 128 entries per layer. The compressors' states are not counted.
- Operations: of one token that is decoded at position T, a multiplication and an addition one each, matrix products
  alone, without the multi-token-prediction layer. They are "equivalent FP8 operations": a product of bfloat16 or
  float32 counts twice, one of FP8 once, the indexer's FP4 half.
- That convention, and T = 1,000,000 for the published ratios, are inferred: the paper does not state them. Of five
  conventions that were tried it is the one that gives both 3.7x and 9.8x.

Run it: python examples/deepseek_v4/cost_model.py [--tokens N] [--plot FILE] [--no-check]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

GIB, MILLION = 2.0**30, 1_000_000
GROUPED_QUERY = 2 * 8 * 128 * 2  # bytes per token and layer: keys and values of 8 heads of 128, bfloat16


@dataclass(frozen=True)
class Product:
    """Matrix products [1, k] x [k, n], `times` of them for a token in all layers together; `stored` matrices exist.
    wide: in bfloat16 or float32; else FP8 or FP4."""

    name: str
    k: int
    n: int
    times: int
    wide: bool = False
    stored: int | None = None

    @property
    def touched(self) -> float:
        """Parameters that a token meets."""
        return float(self.k * self.n * self.times)


@dataclass(frozen=True)
class V32:
    """DeepSeek-V3.2: latent attention over 2048 selected tokens in every layer."""

    name: str = "V3.2"
    layers: int = 61
    d: int = 7168
    vocab: int = 129280
    heads: int = 128
    q_rank: int = 1536
    latent: int = 512
    rope: int = 64
    head: int = 128
    index_heads: int = 64
    index_dim: int = 128
    top_k: int = 2048
    dense: int = 3
    dense_inter: int = 18432
    experts: int = 256
    active: int = 8
    shared: int = 1
    inter: int = 2048
    index_weight: float = 1.0  # FP8

    def products(self) -> list[Product]:
        """Every matrix that a token is multiplied with."""
        n, sparse, both = self.layers, self.layers - self.dense, self.head + self.rope
        return [
            Product("wq_a", self.d, self.q_rank, n),
            Product("wq_b", self.q_rank, self.heads * both, n),
            Product("wkv_a", self.d, self.latent + self.rope, n),
            Product("wkv_b", self.latent, self.heads * 2 * self.head, n),
            Product("wo", self.heads * self.head, self.d, n),
            Product("indexer wq_b", self.q_rank, self.index_heads * self.index_dim, n),
            Product("indexer wk", self.d, self.index_dim, n),
            Product("indexer weights", self.d, self.index_heads, n, wide=True),
            Product("dense up", self.d, 2 * self.dense_inter, self.dense),
            Product("dense down", self.dense_inter, self.d, self.dense),
            Product("router", self.d, self.experts, sparse, wide=True),
            *experts(self.d, self.inter, self.experts, self.active, self.shared, sparse),
            Product("lm_head", self.d, self.vocab, 1, wide=True),
        ]

    def cache_bytes(self, tokens: int) -> float:
        """Of all layers."""
        return float(tokens * self.layers * (656 + 132))

    def wide_cache_bytes(self, tokens: int) -> float:
        """The same entries in bfloat16."""
        return float(tokens * self.layers * 2 * (self.latent + self.rope + self.index_dim))

    def core(self, position: int) -> float:
        """Attention's two products over what is selected; the latent is key (with the rotated part) and value."""
        seen = min(self.top_k, position)
        return 2.0 * self.layers * self.heads * (self.latent + self.rope + self.latent) * seen

    def index(self, position: int) -> float:
        """Scores of all tokens."""
        return 2.0 * self.layers * self.index_heads * self.index_dim * position


@dataclass(frozen=True)
class V4:
    """DeepSeek-V4: layers of a window alone, of CSA (ratio 4) and of HCA (ratio 128)."""

    name: str
    layers: int
    d: int
    heads: int
    q_rank: int
    groups: int
    o_rank: int
    window_layers: int
    csa_layers: int
    hca_layers: int
    top_k: int
    experts: int
    inter: int
    active: int = 6
    shared: int = 1
    vocab: int = 129280
    head: int = 512
    window: int = 128
    index_heads: int = 64
    index_dim: int = 128
    streams: int = 4
    index_weight: float = 0.5  # FP4

    def products(self) -> list[Product]:
        """Every matrix that a token is multiplied with."""
        n, csa, hca = self.layers, self.csa_layers, self.hca_layers
        group, mixes = self.heads * self.head // self.groups, self.streams * (self.streams + 2)
        return [
            Product("wq_a", self.d, self.q_rank, n),
            Product("wq_b", self.q_rank, self.heads * self.head, n),
            Product("wkv", self.d, self.head, n),
            Product("wo_a", group, self.o_rank, self.groups * n),
            Product("wo_b", self.groups * self.o_rank, self.d, n),
            Product("CSA compressor", self.d, 2 * self.head, 2 * csa, wide=True),
            Product("HCA compressor", self.d, self.head, 2 * hca, wide=True),
            Product("indexer wq_b", self.q_rank, self.index_heads * self.index_dim, csa),
            Product("indexer compressor", self.d, 2 * self.index_dim, 2 * csa, wide=True),
            Product("indexer weights", self.d, self.index_heads, csa, wide=True),
            Product("router", self.d, self.experts, n, wide=True),
            *experts(self.d, self.inter, self.experts, self.active, self.shared, n),
            Product("hyper-connections", self.streams * self.d, mixes, 2 * n, wide=True),
            Product("lm_head", self.d, self.vocab, 1, wide=True),
        ]

    def cache_bytes(self, tokens: int) -> float:
        """Of all layers, pages not padded."""
        per_token = self.csa_layers * (584 + 68) / 4 + self.hca_layers * 584 / 128
        return tokens * per_token + self.layers * self.window * 584

    def wide_cache_bytes(self, tokens: int) -> float:
        """The same entries in bfloat16, the window left out."""
        entry, key = 2 * self.head, 2 * self.index_dim
        return tokens * (self.csa_layers * (entry + key) / 4 + self.hca_layers * entry / 128)

    def core(self, position: int) -> float:
        """Attention's two products over the window and what is selected (CSA) or everything (HCA)."""
        entries = self.csa_layers * (min(self.top_k, position / 4) + self.window)
        entries += self.hca_layers * (position / 128 + self.window) + self.window_layers * self.window
        return 2.0 * self.heads * (self.head + self.head) * entries

    def index(self, position: int) -> float:
        """Scores of all compressed entries."""
        return 2.0 * self.csa_layers * self.index_heads * self.index_dim * position / 4


def experts(d: int, inter: int, routed: int, active: int, shared: int, layers: int) -> list[Product]:
    """Gate and up in one, then down, of the experts that a token goes to."""
    times, stored = (active + shared) * layers, (routed + shared) * layers
    return [
        Product("experts up", d, 2 * inter, times, stored=stored),
        Product("experts down", inter, d, times, stored=stored),
    ]


Model = V32 | V4
V3_2 = V32()
V4_FLASH = V4("V4-Flash", 43, 4096, 64, 1024, 8, 1024, 2, 21, 20, 512, 256, 2048)
V4_PRO = V4("V4-Pro", 61, 7168, 128, 1536, 16, 1024, 0, 30, 31, 1024, 384, 3072)
MODELS: tuple[Model, ...] = (V3_2, V4_PRO, V4_FLASH)

# Published: times fewer operations and bytes than V3.2 at a million tokens, as told with one digit and in percent;
# bytes as part of grouped-query attention's; parameters and those active, in 10^9.
PUBLISHED = {
    "V4-Pro": {"operations": (3.7, 27), "cache": (9.5, 10)},
    "V4-Flash": {"operations": (9.8, 10), "cache": (13.7, 7)},
}
PUBLISHED_OF_GROUPED = 2
PUBLISHED_PARAMETERS = {"V3.2": (671, 37), "V4-Pro": (1600, 49), "V4-Flash": (284, 13)}


@dataclass(frozen=True)
class Cost:
    """Equivalent FP8 operations of a token, by what they are for."""

    products: float
    core: float
    index: float

    @property
    def total(self) -> float:
        return self.products + self.core + self.index


def operations(model: Model, position: int) -> Cost:
    """Of the token at this position."""
    products = sum(2 * p.touched * (2 if p.wide else 1) for p in model.products())
    return Cost(products, 2 * model.core(position), model.index_weight * model.index(position))


def parameters(model: Model) -> tuple[float, float]:
    """All, with the embedding; and those that a token's products touch."""
    matrices = model.products()
    stored = sum(p.k * p.n * (p.times if p.stored is None else p.stored) for p in matrices)
    return float(stored + model.d * model.vocab), sum(p.touched for p in matrices)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side, the first to the left, the others to the right; the first row is the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(x.ljust(w) if i == 0 else x.rjust(w) for i, (x, w) in enumerate(zip(row, widths, strict=True)))
             for row in rows]  # fmt: skip
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def ratios(model: Model, tokens: int) -> dict[str, tuple[float, float]]:
    """Times less than V3.2 and percent of it, of operations and cache bytes."""
    work = operations(V3_2, tokens).total / operations(model, tokens).total
    held = V3_2.cache_bytes(tokens) / model.cache_bytes(tokens)
    return {"operations": (work, 100 / work), "cache": (held, 100 / held)}


def cache_table(tokens: int) -> str:
    rows = [["cache", "B/token", "GB", "less than V3.2", "published", "of grouped-query", "published", "all bf16, GB"]]
    for m in MODELS:
        held, (times, percent) = m.cache_bytes(tokens), ratios(m, tokens)["cache"]
        told = PUBLISHED.get(m.name)
        share = 100 * held / (tokens * m.layers * GROUPED_QUERY)
        rows.append([
            m.name, f"{(held - m.cache_bytes(0)) / tokens:,.1f}", f"{held / 1e9:.3f}", f"{times:.2f}x {percent:.1f}%",
            f"{told['cache'][0]}x {told['cache'][1]}%" if told else "", f"{share:.2f}%" if told else "",
            f"{PUBLISHED_OF_GROUPED}%" if told else "", f"{m.wide_cache_bytes(tokens) / 1e9:.2f}",
        ])  # fmt: skip
    v32, pro = (m.wide_cache_bytes(1 << 20) / GIB for m in (V3_2, V4_PRO))
    wide = f"all bf16 at 1,048,576 tokens: {v32:.2f} and {pro:.2f} GiB, {v32 / pro:.2f}x"
    return f"{table(rows)}\n{wide} (published 83.9, 9.62, 8.7x)"


def work_table(position: int) -> str:
    rows = [["operations, 10^9", "products", "attention", "indexer", "together", "less than V3.2", "published"]]
    for m in MODELS:
        cost, (times, percent), told = operations(m, position), ratios(m, position)["operations"], PUBLISHED.get(m.name)
        parts = [f"{x / 1e9:.1f}" for x in (cost.products, cost.core, cost.index, cost.total)]
        said = f"{told['operations'][0]}x {told['operations'][1]}%" if told else ""
        rows.append([m.name, *parts, f"{times:.2f}x {percent:.1f}%", said])
    return table(rows)


def parameter_table() -> str:
    rows = [["parameters, 10^9", "all", "published", "active", "published"]]
    for m in (V3_2, V4_PRO, V4_FLASH):
        every, active = parameters(m)
        published = PUBLISHED_PARAMETERS[m.name]
        rows.append([m.name, f"{every / 1e9:.1f}", str(published[0]), f"{active / 1e9:.2f}", str(published[1])])
    return table(rows)


def plot(file: str) -> None:
    """Operations of the next token and bytes of the cache over the context's length. Raises ImportError without
    matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lengths = [1024 * 2**i for i in range(11)]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    for m in MODELS:
        left.plot(lengths, [operations(m, t).total / 1e12 for t in lengths], "o-", markersize=3, label=m.name)
        right.plot(lengths, [m.cache_bytes(t) / 1e9 for t in lengths], "o-", markersize=3, label=m.name)
    left.set_ylabel("equivalent FP8 operations of a token, 10^12")
    right.set_ylabel("cache of a sequence, GB")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("tokens before it")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--tokens", type=int, default=MILLION, help="length of the context (default: a million)")
    parser.add_argument("--plot", metavar="FILE", default="cost_model.png", help="picture to write; '' for none")
    parser.add_argument("--no-check", action="store_true", help="leave out the comparison with the kernels")
    options = parser.parse_args(arguments)
    if options.tokens < 1:
        parser.error("--tokens is a positive number")
    print(f"{parameter_table()}\n\n{cache_table(options.tokens)}\n\n{work_table(options.tokens)}")
    if options.tokens != MILLION:
        print("(the published figures are for a million tokens)")
    if not options.no_check:
        from counted import report

        print(f"\n{report()}")
    if options.plot:
        try:
            plot(options.plot)
        except ImportError:
            print("no picture: matplotlib is not installed (pip install 'tiledsl[viz]')")
        else:
            print(f"\npicture: {options.plot}")


if __name__ == "__main__":
    main()
