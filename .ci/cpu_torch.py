"""Install torch for the tests that compare with it, but only a CPU build; otherwise say so and leave it out.

torch is never required. pip is first asked what it would install, without installing or resolving anything else; the
answer's metadata tells a CPU build from one that needs the vendor's CUDA packages, which are gigabytes.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

VERSION = "2.13.0"
CANDIDATES = (f"torch=={VERSION}+cpu", f"torch=={VERSION}")
ACCELERATOR = re.compile(r"^(nvidia|cuda|triton|pytorch-triton|intel-|rocm)", re.IGNORECASE)
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
QUESTION = ("install", "--dry-run", "--no-deps", "--ignore-installed", "--quiet", "--only-binary", ":all:")
PATIENCE = 120  # seconds; an index that has no separate metadata files would send the wheel instead


def ask(requirement: str) -> dict[str, Any] | None:
    """pip's report about the one wheel it would take for `requirement`; None where there is none."""
    try:
        answer = subprocess.run(
            [*PIP, *QUESTION, "--report", "-", requirement], capture_output=True, text=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return None
    if answer.returncode != 0:
        return None
    found = json.loads(answer.stdout)["install"]
    return found[0] if len(found) == 1 else None


def accelerator_packages(metadata: dict[str, Any]) -> list[str]:
    """The requirements of a wheel that apply on this machine and belong to an accelerator's stack."""
    from packaging.requirements import Requirement

    required = [Requirement(text) for text in metadata.get("requires_dist", [])]
    applies = [r for r in required if r.marker is None or r.marker.evaluate({"extra": ""})]
    return [r.name for r in applies if ACCELERATOR.match(r.name)]


def is_cpu_build(metadata: dict[str, Any]) -> bool:
    """Whether a wheel's version and requirements are those of a CPU build."""
    local = metadata["version"].partition("+")[2]
    return local in ("", "cpu") and not accelerator_packages(metadata)


def main() -> int:
    for requirement in CANDIDATES:
        report = ask(requirement)
        if report is not None and is_cpu_build(report["metadata"]):
            exact = f"torch=={report['metadata']['version']}"
            print(f"torch: {exact} is a CPU build; installing it for the tests that compare with it", flush=True)
            done = subprocess.run([*PIP, "install", "--quiet", "--only-binary", "torch", exact])
            if done.returncode == 0:
                return 0
            print("torch: the installation failed")
    print("torch: no CPU build on offer here; the tests that compare with it will be skipped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
