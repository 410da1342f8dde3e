"""What `kernel.explain` shows: each operation's form in the compiled code, its work, and the machine's bound."""

from __future__ import annotations

import html
import linecache
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tiledsl import ir
from tiledsl.analysis.evaluate import evaluate
from tiledsl.analysis.remarks import Remark, listening
from tiledsl.analysis.work import Work, work
from tiledsl.backend import Target
from tiledsl.errors import Loc
from tiledsl.ir.walk import walk
from tiledsl.runtime.arguments import Bound, Signature

__all__ = ["Explanation", "Line", "explain"]


@dataclass(frozen=True)
class Line:
    """One line of the author's: its work, how it is compiled, and what stands against a better form.

    operations and moved (bytes of arguments that are asked for, by each block anew) are totals of `runs` executions;
    at_least: data decide how often, and each loop was counted once.
    """

    loc: Loc | None
    source: str
    runs: float
    operations: float
    moved: float
    at_least: bool
    chosen: tuple[str, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Explanation:
    """lines in program order; operations in all; moved: bytes of the arguments, each once; bound: least seconds for
    these operations, and for these bytes, on the threads that launches use (None: not for this target)."""

    title: str
    lines: tuple[Line, ...]
    operations: float
    moved: float
    bound: tuple[float, float] | None
    machine: str

    def __str__(self) -> str:
        out = [self.title]
        for line in self.lines:
            out.append(f"  {line.loc}: {line.source}" if line.loc else f"  {line.source}")
            out.append(f"      {_work(line)}")
            out += [f"      {x}" for x in line.chosen]
            out += [f"      but {x}" for x in line.reasons]
        return "\n".join([*out, *self._sum()])

    __repr__ = __str__

    def _sum(self) -> list[str]:
        out = [f"together {_si(self.operations, 'operations')}, arguments of {_si(self.moved, 'B')}"]
        if self.bound is not None:
            compute, memory = self.bound
            what = "operations" if compute >= memory else "memory"
            out.append(
                f"bound: {_si(max(compute, memory), 's')} by {what} ({_si(compute, 's')} to compute, "
                f"{_si(memory, 's')} to move the arguments once; {self.machine})"
            )
        return out

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td><code>{html.escape(x.source)}</code></td><td>{html.escape(_work(x))}</td>"
            f"<td>{html.escape('; '.join(x.chosen))}</td><td>{html.escape('; '.join(x.reasons))}</td></tr>"
            for x in self.lines
        )
        head = "".join(f"<th>{h}</th>" for h in ("operation", "work", "compiled as", "but"))
        foot = "<br>".join(map(html.escape, self._sum()))
        return f"<b>{html.escape(self.title)}</b><table><tr>{head}</tr>{rows}</table><p>{foot}</p>"


def explain(
    function: ir.Function, signature: Signature, bound: Bound, target: Target, lower: Callable[[], ir.Function]
) -> Explanation:
    """Lower once more and listen; count the work for these arguments."""
    scalars = {s.param.var: v for s, v in zip(signature.slots, bound.values, strict=True) if s.param.var is not None}
    env = {**scalars, **bound.env}
    with listening() as heard:
        lower()
    lines = _lines(work(function, env), list(heard))
    moved, said = 0.0, []
    for b in function.buffers:
        shape = [int(evaluate(e, env)) for e in b.shape]
        size = b.dtype.bits / 8
        for n in shape:
            size *= n
        moved += size
        said.append(f"{b.name} {b.dtype} {tuple(shape)}")
    operations = sum(line.operations for line in lines)
    title = f"{function.name} on {target}: {', '.join(said)}"
    if target.name not in ("llvm", "numba"):
        return Explanation(title, lines, operations, moved, None, "")
    from tiledsl.backends.cpu.ceilings import measure_ceilings
    from tiledsl.runtime.pool import thread_count

    threads = thread_count()
    most = measure_ceilings(threads, 1 << 28)
    integer = any(_bytes(n) for k in function.kernels for n in walk(k.body))
    machine = f"{_si(most.bytes if integer else most.fma, 'operations')}/s, {_si(most.copy, 'B')}/s, threads: {threads}"
    seconds = (most.seconds(operations, 0.0, integer), most.seconds(0.0, moved))
    return Explanation(title, lines, operations, moved, seconds, machine)


def _bytes(n: ir.Node) -> bool:
    return isinstance(n, ir.Gemm) and n.a.buffer.dtype.is_int and n.a.buffer.dtype.bits <= 8


def _lines(found: Sequence[Work], heard: Sequence[Remark]) -> tuple[Line, ...]:
    """Work of statements of one place together, with what was said of that place."""
    places: dict[Any, list[Work]] = {}
    for w in found:
        loc = w.statement.loc
        places.setdefault((loc.file, loc.line) if loc else id(w), []).append(w)
    out = []
    for key, group in places.items():
        loc = group[0].statement.loc
        about = [r for r in heard if loc is not None and r.loc is not None and (r.loc.file, r.loc.line) == key]
        source = linecache.getline(loc.file, loc.line).strip() if loc else type(group[0].statement).__name__
        out.append(
            Line(
                loc,
                source,
                max(w.runs for w in group),
                sum(w.operations for w in group),
                sum(w.moved for w in group),
                any(w.at_least for w in group),
                tuple(dict.fromkeys(r.chosen for r in about)),
                tuple(dict.fromkeys(r.reason for r in about if r.reason)),
            )
        )
    return tuple(out)


def _work(line: Line) -> str:
    parts = [f"{line.runs:,.0f} times"]
    if line.operations:
        parts.append(_si(line.operations, "operations"))
    if line.moved:
        parts.append(f"{_si(line.moved, 'B')} of arguments")
    return ("at least " if line.at_least else "") + ", ".join(parts)


def _si(x: float, unit: str) -> str:
    """Three digits and a prefix."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "u")):
        if x >= factor or factor == 1e-6:
            return f"{x / factor:.3g} {prefix}{unit}" if len(unit) == 1 else f"{x / factor:.3g}{prefix} {unit}"
    return f"0 {unit}"
