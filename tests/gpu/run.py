"""All that waits for a GPU, in one go: `make gpu`, or `python tests/gpu/run.py` where the packages are there already.

Writes docs/gpu_sm_90a.md (tables with device and date), tests/goldens/gpu/sm_90a.json (what instructions gave), and a
log of each step into gpu-logs/. `--emulated` runs the same steps on the emulator behind a driver, and writes into
gpu-emulated/: it shows that the steps work, and says nothing of a GPU.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from gpu import machine  # noqa: E402

OWN = "kernels* quant* moe muon engram v4* hyper_connections"  # the library's own tests, against formulas in float64
_CLOSING = re.compile(r"^=*\s*(\d+ (?:passed|failed|skipped|deselected|error).*) in ([\d.]+)s", re.MULTILINE)


@dataclass(frozen=True)
class Step:
    """One command. env: besides the environment; needs: a program without which the step is left out."""

    name: str
    command: Sequence[str]
    env: dict[str, str] = field(default_factory=dict)
    needs: str = ""


@dataclass(frozen=True)
class Result:
    """said: how the command ended, for the table."""

    name: str
    ok: bool
    said: str
    seconds: float


def steps(results: Path, bench: Path) -> list[Step]:
    """results: file for what instructions gave; bench: for what was measured."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"]
    own = [f for name in OWN.split() for f in sorted(glob.glob(f"tests/test_{name}.py", root_dir=ROOT))]
    launched = ["tests/test_emulator_library.py", "tests/test_programs.py", "-k", "not passes_keep"]
    every_call = [sys.executable, "tests/gpu/calls.py"]
    sanitizer = ["compute-sanitizer", "--error-exitcode", "9", "--tool"]
    return [
        Step("instructions", [*pytest, "tests/test_cuda_prelude.py"], {"TILEDSL_GPU_RESULTS": str(results)}),
        Step("arrays and streams", [*pytest, "tests/test_gpu.py"]),
        Step("bits: library, programs, conformance, generated", [*pytest, *launched],
             {"TILEDSL_TEST_TARGETS": "cuda-copied:sm_70"}),
        Step("tensor cores: the library's own tests", [*pytest, *own], {"TILEDSL_TEST_TARGETS": "cuda-copied"}),
        *(Step(f"compute-sanitizer {tool}", [*sanitizer, tool, *every_call], needs="compute-sanitizer")
          for tool in ("memcheck", "racecheck", "synccheck")),
        Step("bench", [sys.executable, "-m", "tiledsl", "bench", "--target", "cuda", "--json", str(bench)]),
    ]  # fmt: skip


def run(step: Step, logs: Path, gpu: str) -> Result:
    """Runs a step, and shows and keeps what it says."""
    print(f"======== {step.name}", flush=True)
    if step.needs and not shutil.which(step.needs):
        return Result(step.name, False, f"left out: {step.needs} is not on the path", 0.0)
    begin = time.monotonic()
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": paths, "TILEDSL_GPU": gpu, **step.env}
    with open(logs / f"{re.sub(r'[^a-z]+', '-', step.name.lower())}.log", "w+", encoding="utf-8") as log:
        with subprocess.Popen(
            step.command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                log.write(line)
        log.seek(0)
        text = log.read()
    seconds = time.monotonic() - begin
    closing = _CLOSING.findall(text)
    last = text.strip().splitlines()[-1:] or [""]
    return Result(step.name, process.returncode == 0, closing[-1][0] if closing else last[0], seconds)


def report(facts: dict[str, str], done: Sequence[Result], measured: dict[str, Any] | None) -> str:
    """The page for docs/."""
    head = ", ".join(f"{k} {v}" for k, v in facts.items() if k != "device")
    lines = [f"# Run on {facts['device']}", "", f"{head}. Made by `make gpu`.", ""]
    lines += ["| step | | seconds | |", "|---|---|---|---|"]
    lines += [f"| {r.name} | {'ok' if r.ok else '**no**'} | {r.seconds:.0f} | {r.said} |" for r in done]
    if measured:
        ceilings = measured["ceilings"]
        lines += ["", f"Measured ceilings: {ceilings['products'] / 1e12:.0f} TFLOP/s bfloat16, "
                  f"{ceilings['copies'] / 1e9:.0f} GB/s copied.", ""]  # fmt: skip
        lines += ["| job | ms | TFLOP/s | GB/s | of the bound | peers, ms | ratio |", "|---|---|---|---|---|---|---|"]
        for r in measured["rows"]:
            ms = dict(r["milliseconds"])
            ours = ms.pop("tiledsl")
            peers = ", ".join(f"{who} {t:.3f}" for who, t in ms.items()) or "none"
            ratio = "" if r["ratio"] is None else f"{r['ratio']:.2f}"
            rates = f"{r['gflops'] / 1e3:.1f} | {r['gbytes']:.0f} | {r['share']:.0%}"
            lines.append(f"| {r['job']} | {ours:.3f} | {rates} | {peers} | {ratio} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emulated", action="store_true", help="on the emulator behind a driver, into gpu-emulated/")
    parser.add_argument("--only", default="", help="a regular expression: the steps whose names it matches")
    options = parser.parse_args(argv)
    gpu = "emulated" if options.emulated else "real"
    os.environ["TILEDSL_GPU"] = gpu
    if reason := machine.problem():
        print(f"nothing was run: {reason}; `--emulated` tries the steps without a GPU", file=sys.stderr)
        return 1
    place = ROOT / "gpu-emulated" if options.emulated else ROOT
    facts = {**machine.facts(), "commit": _commit()}
    logs, name = place / "gpu-logs", facts["architecture"]
    logs.mkdir(parents=True, exist_ok=True)
    bench = logs / "bench.json"
    bench.unlink(missing_ok=True)
    chosen = [s for s in steps(place / "tests/goldens/gpu" / f"{name}.json", bench) if re.search(options.only, s.name)]
    done = [run(s, logs, gpu) for s in chosen]
    measured = json.loads(bench.read_text(encoding="utf-8")) if bench.exists() else None
    page = place / "docs" / f"gpu_{name}.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text := report(facts, done, measured), encoding="utf-8")
    print(f"======== {page}\n{text}")
    return 0 if all(r.ok for r in done) else 1


def _commit() -> str:
    asked = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return asked.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
