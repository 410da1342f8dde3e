"""Programs with something wrong in them: random edits of valid kernels. Whatever an author writes ends in a kernel, in
a TileError with a place, or in an exception of the author's own Python - never in an error of this package.

`python tests/fuzz/hostile.py --count 20000` tries many and saves those that end otherwise.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import io
import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tiledsl.language as T
from tiledsl.errors import InternalError, TileError
from tiledsl.testing.strategies import Program

__all__ = ["hostile_edits", "judge", "main"]

_VALUES: tuple[Any, ...] = (
    0, -1, 1, 2, 7, 16, -(2**31), 2**31, 2**63, 2**64, 10**20, 0.5, -0.0, 1e308, float("nan"), True, None, "",
    "float32", "float99", "}{'\"\n\\", b"x", (), (1, 2), Ellipsis, 3j,
)  # fmt: skip
_NAMES = ("first", "last", "args", "context", "T", "tiledsl", "range", "i64", "store16", "maximum", "lin", "bx", "self",
          "print", "Ünï", "undefined_name", "__tl__", "S1", "A1", "O1", "len")  # fmt: skip
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.LShift, ast.BitAnd, ast.MatMult)
_COMPARISONS = (ast.Lt, ast.Eq, ast.Is, ast.In, ast.NotIn, ast.GtE)


def hostile_edits(source: str, rng: random.Random, edits: int = 2) -> str | None:
    """The source with that many random edits, or None where the result is no Python."""
    tree = ast.parse(source)
    for _ in range(edits):
        nodes = [n for f in tree.body if isinstance(f, ast.FunctionDef) for n in ast.walk(f)]
        try:
            _edit(rng.choice(nodes), nodes, rng)
        except (IndexError, AttributeError, TypeError, ValueError):  # nothing there to change
            continue
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            text = ast.unparse(ast.fix_missing_locations(tree))
            compile(text, "<hostile>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, TypeError, AttributeError, RecursionError):
            return None
    return text


def _edit(n: ast.AST, nodes: list[ast.AST], rng: random.Random) -> None:
    """Changes n in place, in a way that fits its kind."""
    expressions = [x for x in nodes if isinstance(x, ast.expr)]
    if isinstance(n, ast.Constant):
        n.value = rng.choice(_VALUES)
    elif isinstance(n, ast.Name):
        n.id = rng.choice([*_NAMES, *(x.id for x in nodes if isinstance(x, ast.Name))])
    elif isinstance(n, ast.arg):
        n.arg = rng.choice(_NAMES)
    elif isinstance(n, ast.Attribute):
        n.attr = rng.choice([*T.__all__, "nothing", "shape", "dtype", "__class__", "Parallel", "gemm"])
    elif isinstance(n, ast.BinOp):
        n.op = rng.choice(_OPERATORS)()
    elif isinstance(n, ast.Compare):
        n.ops[0] = rng.choice(_COMPARISONS)()
    elif isinstance(n, ast.Call):
        how = rng.randrange(5)
        if how == 0:
            n.args.pop(rng.randrange(len(n.args)))
        elif how == 1:
            n.args.append(copy.deepcopy(rng.choice(expressions)))
        elif how == 2:
            rng.shuffle(n.args)
        elif how == 3:
            keyword = rng.choice(("num_stage", "dim", "clear", "threads"))
            n.keywords.append(ast.keyword(keyword, ast.Constant(rng.choice(_VALUES))))
        else:
            n.args[rng.randrange(len(n.args))] = copy.deepcopy(rng.choice(expressions))
    elif isinstance(n, ast.Subscript):
        n.slice = copy.deepcopy(rng.choice(expressions))
    elif isinstance(n, ast.Tuple):
        rng.choice((n.elts.reverse, n.elts.pop, n.elts.clear))()
    elif hasattr(n, "body") and isinstance(n.body, list):
        how = rng.randrange(5)
        if how == 0:
            n.body.pop(rng.randrange(len(n.body)))
        elif how == 1:
            n.body.append(copy.deepcopy(rng.choice([x for x in nodes if isinstance(x, ast.stmt)])))
        elif how == 2:
            rng.shuffle(n.body)
        elif how == 3:
            n.body.insert(0, rng.choice((ast.Break(), ast.Continue(), ast.Return(None), ast.Pass())))
        else:
            n.body.insert(0, copy.deepcopy(rng.choice(n.body)))
        n.body = n.body or [ast.Pass()]
    elif isinstance(n, (ast.Assign, ast.AugAssign)):
        n.value = copy.deepcopy(rng.choice(expressions))


def _authors_own(error: BaseException) -> bool:
    """The author's Python raised it, by itself or inside what it called that is not ours."""
    files = [f.filename for f in traceback.extract_tb(error.__traceback__)]
    last = max((i for i, f in enumerate(files) if f.startswith("<generated")), default=None)
    if last is None:
        return False
    ours = [f for f in files[last + 1 :] if "tiledsl" in f or "backends" in f]
    return not ours or all(f.endswith(str(Path("tiledsl", "__init__.py"))) for f in ours)  # a name tiledsl lacks


def _at_the_call(error: BaseException) -> bool:
    """It is about a call of a kernel or factory from Python, whose place is in Python's own traceback."""
    return "runtime" in Path(traceback.extract_tb(error.__traceback__)[-1].filename).parts


class _TooLong(BaseException):  # what catches Exception must let it through
    pass


def judge(program: Program, seconds: int = 20, depth: int = 1) -> tuple[str, str]:
    """("kernel" | "diagnostic" | "python" | "wrong", details): what becomes of the program.

    depth: 0 the frontend and the verifier, 1 the CPU pipeline down to the loop stage too, 2 a run by the checked
    interpreter as well, where a kernel that does not end within `seconds` of CPU time is the author's.
    """
    from tiledsl.backends.cpu.pipeline import cpu_pipeline
    from tiledsl.ir.verifier import verify

    begin = time.monotonic(), time.process_time()

    def stop(*_: Any) -> None:
        """Asked every second: on a machine that is busy with other work a program may take its time."""
        if time.process_time() - begin[1] > seconds or time.monotonic() - begin[0] > 30 * seconds:
            raise _TooLong(f"longer than {seconds} s of CPU time")

    running = False
    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 1, 1)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            kernel = program.kernel()
            function = kernel.function
            verify(function)
            if depth:
                for p in cpu_pipeline():
                    function = p(function)
                verify(function)
            if depth > 1:
                running = True
                kernel(*program.make_args(1), target="numpy:checked")
    except InternalError as e:
        if running and isinstance(e.__cause__, MemoryError):
            return "kernel", "without an end"
        return "wrong", f"InternalError {e}\n{traceback.format_exc()}"
    except TileError as e:
        if not str(e).strip() or (e.loc is None and not _at_the_call(e)):
            return "wrong", f"{type(e).__name__} without a place: {e}\n{traceback.format_exc()}"
        return "diagnostic", type(e).__name__
    except (_TooLong, MemoryError) as e:  # the author's loop, the author's sizes
        return ("kernel", "without an end") if running else ("wrong", f"{type(e).__name__} {e}")
    except Exception as e:
        if _authors_own(e):
            return "python", type(e).__name__
        return "wrong", f"{type(e).__name__}: {e}\n{traceback.format_exc()}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    return "kernel", ""


def edited(number: int, count: int) -> Iterator[Program]:
    """Edited programs, the same ones for the same number."""
    from tiledsl.testing.fuzz_run import drawn

    rng = random.Random(number)
    bases = list(drawn(number, 10, most=6))
    made = 0
    while made < count:
        base = rng.choice(bases)
        text = hostile_edits(base.source, rng, 1 + rng.randrange(3))
        if text is not None:
            made += 1
            yield replace(base, source=text)


@dataclass(frozen=True)
class Verdict:
    """What became of one program. kind: the error and the innermost line of the traceback."""

    ending: str
    details: str
    program: Program

    @property
    def kind(self) -> str:
        lines = [x.strip() for x in self.details.splitlines() if x.strip().startswith("File")]
        return f"{self.details.splitlines()[0][:60]} {lines[-1] if lines else ''}"


def round_of(number: int, count: int, lower_every: int, run_every: int) -> Iterator[Verdict]:
    """Judge `count` programs in a forked process: a crash, or what uses up the memory, ends that process and is the
    verdict on the program it was at; the rest of the round follows in another one."""
    programs = list(edited(number, count))
    done = 0
    while done < count:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            with contextlib.suppress(BaseException), os.fdopen(writing, "w", encoding="utf-8") as out:
                limit_memory()
                for k in range(done, count):
                    depth = 2 if k % run_every == 0 else 1 if k % lower_every == 0 else 0
                    out.write(json.dumps(judge(programs[k], depth=depth)) + "\n")
                    out.flush()
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, encoding="utf-8") as rows:
            for row in rows:
                ending, details = json.loads(row)
                yield Verdict(ending, details, programs[done])
                done += 1
        _, status = os.waitpid(child, 0)
        if done < count:
            yield Verdict("wrong", f"the process ended with status {status}", programs[done])
            done += 1


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the number of kinds of wrong endings, at most 100."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--start", type=int, default=0, help="number of the first round of 100")
    parser.add_argument("--lower-every", type=int, default=4, help="which programs go through the CPU pipeline too")
    parser.add_argument("--run-every", type=int, default=10, help="which programs are run by the interpreter too")
    parser.add_argument("--folder", type=Path, default=Path(".fuzz") / "hostile")
    given = parser.parse_args(argv)
    endings: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    begin = time.monotonic()
    for number in range(given.start, given.start + -(-given.count // 100)):
        for verdict in round_of(number, 100, given.lower_every, given.run_every):
            endings[verdict.ending] += 1
            if verdict.ending == "wrong":
                kinds[verdict.kind] += 1
                if kinds[verdict.kind] == 1:
                    given.folder.mkdir(parents=True, exist_ok=True)
                    path = given.folder / f"{number}-{len(kinds)}.py"
                    path.write_text(verdict.program.text(0, verdict.details), encoding="utf-8")
                    print(f"\n{verdict.kind}\n  saved as {path}", file=sys.stderr)
        spent = time.monotonic() - begin
        text = f"{sum(endings.values())} programs in {spent:.0f} s: {dict(endings)}"
        print(f"\r{text} ", end="", file=sys.stderr, flush=True)
    print(f"\n{dict(endings)}")
    for key, n in kinds.most_common():
        print(f"{n:6} {key}")
    return min(100, len(kinds))


def limit_memory(gibibytes: int = 8) -> None:
    """An edit may ask Python for a very long list."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (gibibytes << 30, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    sys.exit(main())
