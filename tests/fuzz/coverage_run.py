"""What generated kernels alone reach: `python tests/fuzz/coverage_run.py --count 150` (needs the package coverage).

Prints, per room, how many branches of the passes, the CPU lowering and its emitters were taken, and every line and
branch that was not; which node classes were seen at each stage; and which rules of the verifier never ran.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ROOMS = {
    "passes": "tiledsl/passes",
    "runner of passes": "tiledsl/passes/pipeline.py",
    "instruments": "tiledsl/passes/instruments.py",
    "lowering": "backends/cpu",
    "target": "backends/cpu/target.py",
    "loader": "backends/cpu/native.py",
    "emitters": "backends/cpu/emit",
    "numba": "backends/numba_cpu",
    "llvm": "backends/llvm_cpu",
    "threads of GPUs": "backends/simt",
    "verifier": "tiledsl/ir/verif",
    "frontend": "tiledsl/frontend",
    "interpreter": "tiledsl/interp",
}
GOAL = ("passes", "lowering", "emitters", "numba", "llvm")  # 95% of the branches of these


def room_of(file: str) -> str:
    """The room that a file belongs to, the most special one; "" if none."""
    path = os.path.realpath(file).removeprefix(str(ROOT.resolve()) + "/")
    fits = [(len(prefix), room) for room, prefix in ROOMS.items() if path.startswith(prefix)]
    return max(fits)[1] if fits else ""


def rules(text: str) -> dict[int, int]:
    """Line of each rule that a file of the verifier states -> the line that asks for it: of a `require` its own, of
    what is raised that of the test around it, or of the test in front of it that returns from what is legal."""
    found: dict[int, int] = {}

    def visit(body: Sequence[ast.stmt], asks: int) -> None:
        legal = 0
        for s in body:
            if isinstance(s, ast.Raise):
                found[s.lineno] = legal or asks
            elif isinstance(s, ast.Expr) and ast.unparse(s).startswith("self.require("):
                found[s.lineno] = s.lineno
            for inner in ("body", "orelse"):
                visit(getattr(s, inner, []), legal or s.lineno if isinstance(s, ast.If) else asks)
            if isinstance(s, ast.If) and isinstance(s.body[-1], ast.Return):
                legal = s.lineno

    visit(ast.parse(text).body, 0)
    return found


def nodes_of(function: Any) -> set[str]:
    from tiledsl.ir.walk import walk

    return {type(n).__name__ for k in function.kernels for n in walk(k.body)}


def cpus() -> list[Any]:
    """What printers write for: this machine first, then others that it need not be able to run."""
    from tiledsl.backends.cpu.native import Cpu, host_cpu, x86_level

    arm = Cpu("aarch64-unknown-linux-gnu", "generic", "+neon")
    plain = Cpu("x86_64-unknown-linux-gnu", "x86-64", "")
    other = Cpu("riscv64-unknown-linux-gnu", "generic-rv64", "+m,+a,+f,+d")
    return [host_cpu(), x86_level("x86-64-v3"), x86_level("x86-64-v4"), plain, arm, other]


def reach(program: Any, seen: dict[str, set[str]], number: int) -> None:
    """From the author's tree to the text of every CPU target and of GPUs, each tree verified; nothing is run."""
    from tiledsl.backends.cpu.pipeline import cpu_pipeline
    from tiledsl.backends.llvm_cpu import LlvmCpu
    from tiledsl.backends.numba_cpu import NumbaCpu
    from tiledsl.backends.simt.lower import lower
    from tiledsl.backends.simt.pipeline import simt_pipeline
    from tiledsl.errors import TileNotImplementedError
    from tiledsl.ir.verifier import verify
    from tiledsl.passes.instruments import Verify
    from tiledsl.passes.pipeline import run as run_passes

    function = program.function
    if any(a.beside for a in program.arguments):  # what the runtime says of them
        function = function.replace(attrs=(*function.attrs, ("aliased", True)))
    seen["tile"] |= nodes_of(function)
    verify(function)
    lowered = run_passes(function, cpu_pipeline(), [Verify()])
    seen["loop"] |= nodes_of(lowered)
    machines = cpus()
    LlvmCpu().modules(lowered, machines[number % len(machines)])
    if number % 6 == 0:  # the printer and Numba's front end, which takes longer than all the rest
        NumbaCpu().modules(lowered, machines[0])
    arch = ("", "sm_80", "sm_90a")[number % 3]
    with contextlib.suppress(TileNotImplementedError):  # what GPUs cannot do, or not yet
        lower(run_passes(function, simt_pipeline(arch), [Verify()]), arch)


def run(count: int, start: int, most: int, every: int, minutes: float) -> dict[str, set[str]]:
    """Takes programs through the compiler, for so long at most, and runs every n-th one on all targets, too; gives
    the node classes seen at each stage."""
    from tiledsl.testing.fuzz import check
    from tiledsl.testing.fuzz_run import drawn

    seen: dict[str, set[str]] = {"tile": set(), "loop": set()}
    sizes: list[int] = []
    begin = time.monotonic()
    numbers: Iterator[int] = iter(range(start, start + count))
    done = 0
    for number in numbers:
        for program in drawn(number, min(20, count - done), most):
            sizes.append(program.statements)
            try:
                reach(program, seen, done)
                if every and done % every == 0:
                    check(program, 0, ["passes", "targets"])
            except Exception as error:
                print(f"\n{number}.{done % 20}: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
            done += 1
            print(f"\r{done}/{count} programs, {time.monotonic() - begin:.0f} s ", end="", file=sys.stderr, flush=True)
            if time.monotonic() - begin > 60 * minutes:
                count = done
                break
        if done >= count:
            break
    print(f"\nmedian program: {sorted(sizes)[len(sizes) // 2]} statements", file=sys.stderr)
    return seen


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 where each room of GOAL reaches 95% of its branches, every node was seen and every rule ran."""
    import coverage

    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--start", type=int, default=50000, help="number of the first round of programs")
    parser.add_argument("--most", type=int, default=12)
    parser.add_argument("--compile-every", type=int, default=20, help="run every n-th program; 0: none")
    parser.add_argument("--minutes", type=float, default=30.0, help="stops after so many")
    parser.add_argument("--rooms", default=",".join(GOAL), help="whose lines are listed; 'all'")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the programs")
    given = parser.parse_args(argv)
    listed = list(ROOMS) if given.rooms == "all" else given.rooms.split(",")
    sys.path.insert(0, str(ROOT))
    folder = tempfile.TemporaryDirectory(prefix="tiledsl-coverage-")
    os.environ["TILEDSL_CACHE_DIR"] = folder.name
    files = [f"{ROOT}/tiledsl/**", f"{ROOT}/backends/**"]
    share = -(-given.count // given.jobs)
    for job in range(given.jobs):
        if os.fork() == 0:
            part = coverage.Coverage(branch=True, data_file=f"{folder.name}/{job}", config_file=False, include=files)
            part.start()
            first = given.start + job * -(-share // 20)
            found = run(share, first, given.most, given.compile_every, given.minutes)
            part.stop()
            part.save()
            Path(f"{folder.name}/{job}.json").write_text(json.dumps({k: [*v] for k, v in found.items()}))
            os._exit(0)
    failed = [pid for pid, status in (os.wait() for _ in range(given.jobs)) if status]
    assert not failed, "a process ended early"
    measure = coverage.Coverage(branch=True, data_file=f"{folder.name}/all", config_file=False, include=files)
    measure.combine([f"{folder.name}/{job}" for job in range(given.jobs)])
    seen: dict[str, set[str]] = {}
    for job in range(given.jobs):
        for stage, names in json.loads(Path(f"{folder.name}/{job}.json").read_text()).items():
            seen[stage] = seen.get(stage, set()) | set(names)
    totals: dict[str, list[int]] = {room: [0, 0, 0, 0] for room in ROOMS}
    stated, silent = 0, set()
    for file in sorted(measure.get_data().measured_files()):
        room = room_of(file)
        if not room:
            continue
        analysis = measure._analyze(file)
        n = analysis.numbers
        for k, value in enumerate((n.n_statements, n.n_executed, n.n_branches, n.n_executed_branches)):
            totals[room][k] += value
        if room == "verifier":
            missing, asked = set(analysis.missing), rules(Path(file).read_text(encoding="utf-8"))
            stated += len(asked)
            silent |= {f"{Path(file).name}:{at}" for at, line in asked.items() if line in missing}
        if room in listed and (n.n_missing or n.n_missing_branches):
            print(f"{os.path.relpath(os.path.realpath(file), ROOT)}: {n.n_executed_branches}/{n.n_branches} branches")
            lines = Path(file).read_text(encoding="utf-8").splitlines()
            arcs = analysis.missing_branch_arcs()
            for line in sorted({*analysis.missing, *arcs}):
                to = ", ".join(str(x) for x in arcs.get(line, ()))
                print(f"    {line:4} {'->' + to if to else '':12} {lines[line - 1].strip()[:100]}")
    print(f"\n{'room':16} {'lines':>16} {'branches':>16}")
    for room, (lines_, hit, branches, taken) in totals.items():
        parts = hit / max(1, lines_), taken / max(1, branches)
        print(f"{room:16} {hit:6}/{lines_:<6}{parts[0]:4.0%} {taken:6}/{branches:<6}{parts[1]:6.1%}")
    absent = unseen(seen)
    absent[f"rules of the verifier, {stated} in all, that no program was held against"] = silent
    for what, names in absent.items():
        print(f"{what}: {', '.join(sorted(names)) or 'all reached'}")
    short = [room for room in GOAL if totals[room][3] < 0.95 * totals[room][2]]
    return int(bool(short or any(absent.values())))


def unseen(seen: dict[str, set[str]]) -> dict[str, set[str]]:
    """Node classes that a stage allows and that no program had there."""
    from tiledsl.ir.verifier import STAGES

    others = {"tile": {"MicroCall"}, "loop": set()}  # made by the lowering for GPUs alone
    return {
        f"nodes of the {stage} stage not drawn": {c.__name__ for c in STAGES[stage]} - found - others[stage]
        for stage, found in seen.items()
    }


if __name__ == "__main__":
    sys.exit(main())
