"""`tiledsl doctor`: what works here, what does not and how to get it, where things are, and every knob."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tiledsl import config
from tiledsl.backend import backends, load_backend, resolve
from tiledsl.errors import TileError
from tiledsl.runtime import cache_state, thread_count

__all__ = ["arguments", "main", "report"]

LIBRARIES = ("numpy", "ml_dtypes", "numba", "llvmlite", "torch", "rich", "platformdirs", "matplotlib")


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `tiledsl doctor`."""
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def report() -> dict[str, Any]:
    """Everything that `tiledsl doctor` shows, as JSON data."""
    targets = {}
    for name in sorted(backends()):
        state = load_backend(name).probe()
        targets[name] = {"available": state.ok, "reason": state.reason, "help": state.help}
    return {
        "tiledsl": config.VERSION,
        "python": f"{platform.python_implementation()} {sys.version.split()[0]}",
        "machine": f"{platform.system()} {platform.machine()}",
        "libraries": {name: _version(name) for name in LIBRARIES},
        "targets": targets,
        "default_target": _asked(lambda: str(resolve(None))),
        "threads": {"used": _asked(thread_count), "usable_cores": config.usable_cores()},
        "cache": _asked(cache_state),
        "knobs": [_knob(k) for k in config.KNOBS],
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _asked(question: Any) -> Any:
    """The answer, or what is wrong with the knob that it needs."""
    try:
        return question()
    except TileError as e:
        return {"error": e.message}


def _knob(knob: config.Knob[Any]) -> dict[str, Any]:
    return {"name": knob.env, "value": _asked(knob.get), "default": knob.default, "help": knob.help}


def main(options: argparse.Namespace) -> int:
    """Print the report; the exit status is 1 when something that was asked for cannot be had."""
    found = report()
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        print(_text(found))
    broken = [found["default_target"], found["threads"]["used"], found["cache"], *(k["value"] for k in found["knobs"])]
    return 1 if any(isinstance(x, dict) and "error" in x for x in broken) else 0


def _text(found: dict[str, Any]) -> str:
    lines = [f"tiledsl {found['tiledsl']}, {found['python']}, {found['machine']}"]
    libraries = [f"{name} {v or '-'}" for name, v in found["libraries"].items()]
    lines += [", ".join(libraries), "", "targets"]
    for name, state in found["targets"].items():
        mark = "yes" if state["available"] else "no "
        default = "  (default)" if str(found["default_target"]).partition(":")[0] == name else ""
        lines.append(f"  {mark} {name:14}{state['reason']}{default}")
        if not state["available"] and state["help"]:
            lines.append(f"      {'':14}to get it: {state['help']}")
    threads, cache = found["threads"], found["cache"]
    lines += ["", f"threads  {_value(threads['used'])} of {threads['usable_cores']} usable cores"]
    if "error" in cache:
        lines.append(f"cache    {_value(cache)}")
    else:
        use = cache["problem"] or f"{cache['artifacts']} kernels, {cache['bytes'] / 1e6:.1f} MB"
        lines.append(f"cache    {cache['folder']}: {'off; ' if cache['disabled'] else ''}{use}")
    lines += ["", "knobs (environment)"]
    for k in found["knobs"]:
        shown = _value(k["value"]) if k["value"] != k["default"] else f"{_value(k['default'])} (default)"
        lines.append(f"  {k['name']:24} {shown}")
        lines.append(f"  {'':24} {k['help']}")
    return "\n".join(lines)


def _value(x: Any) -> str:
    if isinstance(x, dict):
        return f"error: {x['error']}"
    return "-" if x == "" else str(int(x)) if isinstance(x, bool) else str(x)
