"""The tuner's side of its workers: start them, hand them jobs, and outlive what kernels do to them.

Workers are fresh interpreters and import nothing of the program that tunes, so tuning needs no `if __name__ ==
"__main__"`, and a kernel that crashes or hangs costs one worker.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import queue
import signal
import site
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tiledsl import ir
from tiledsl.dtypes import DType, as_dtype
from tiledsl.runtime import JITKernel, as_numpy, is_array
from tiledsl.tune.worker import Job, Memory

__all__ = ["Elsewhere", "Worker", "arguments", "portable"]

_CHILD = "from tiledsl.tune.worker import main; main()"
_PACKAGE = str(Path(__file__).parents[2])


_UNREADABLE = (AttributeError, BufferError, RuntimeError, TypeError, ValueError)


class Elsewhere(Exception):
    """An argument lies where workers cannot get at it."""


def portable(kernel: Any) -> JITKernel | None:
    """The kernel, when another process can run it; None for other callables and for kernels that get addresses."""
    native = getattr(kernel, "native", kernel)
    if not isinstance(native, JITKernel):
        return None
    words = any(str(p.buffer.dtype if p.buffer is not None else p.var.dtype).endswith("int64") for p in native.params)  # type: ignore[union-attr]
    made = (n for k in native.function.kernels for n in ir.walk.walk(k.body) if isinstance(n, ir.Alloc))
    addresses = words and any(n.buffer.base is not None for n in made)
    return None if addresses else native


@contextlib.contextmanager
def arguments(kernel: JITKernel, given: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """The arguments of a call as a worker takes them: arrays lie in files while the block runs."""
    wanted = [p for i, p in enumerate(kernel.params) if i not in kernel.out_idx]
    made: list[Any] = []
    with tempfile.TemporaryDirectory(prefix="tiledsl-tune-", dir=_memory()) as folder:
        for i, x in enumerate(given):
            buffer = wanted[i].buffer if i < len(wanted) else None
            made.append(_put(_array(x, buffer.dtype), f"{folder}/{i}") if buffer is not None and is_array(x) else x)
        yield tuple(made)


def _memory() -> str | None:
    """A folder in memory, where there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _array(x: Any, wanted: DType) -> np.ndarray[Any, Any]:
    """An array argument as NumPy's, with its own type, right or wrong. Raises Elsewhere where this process cannot read
    its memory, as a GPU's."""
    if isinstance(x, np.ndarray):
        return x
    with contextlib.suppress(*_UNREADABLE):
        return as_numpy(x, as_dtype(x.dtype))
    try:  # a type that only its own library knows
        return as_numpy(x, wanted)
    except _UNREADABLE as e:
        raise Elsewhere(str(e)) from None


def _put(x: np.ndarray[Any, Any], file: str) -> Memory:
    """The array's bytes, gaps between its elements included."""
    if x.size == 0 or any(s < 0 for s in x.strides):
        x = np.ascontiguousarray(x)
    span = sum((n - 1) * s for n, s in zip(x.shape, x.strides, strict=True)) + x.itemsize if x.size else 0
    Path(file).write_bytes((ctypes.c_char * span).from_address(x.ctypes.data).raw if span else b"")
    return Memory(file, x.dtype, x.shape, x.strides)


class Worker:
    """One child process, started when it is needed, and again after it was lost."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._said: Any = None

    def run(self, job: Job, timeout: float | None = None) -> dict[str, Any]:
        """The answer of `worker.answer`; a crash, and more than `timeout` seconds, are {"error": ...} too."""
        child = self._started()
        assert child.stdin is not None
        try:
            pickle.dump(job, child.stdin)
            child.stdin.flush()
            found = self._answers.get(timeout=timeout)
        except queue.Empty:
            self.close()
            return {"error": f"it takes longer than {timeout:g} seconds to compile and measure", "timeout": timeout}
        except (BrokenPipeError, OSError):
            found = None
        if found is not None:
            return found
        status = child.wait()
        said = self._last_words()
        self.close()
        how = f"status {status}" if status >= 0 else signal.Signals(-status).name
        return {"error": f"the process that ran it ended with {how}" + (f": {said}" if said else "")}

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            self._said.close()
            self._child = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            places = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
            if _PACKAGE not in (*site.getsitepackages(), site.getusersitepackages()):
                places.append(_PACKAGE)
            env = {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(places))}
            self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the child)
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=self._said, env=env,
            )  # fmt: skip
            self._answers = queue.Queue()
            threading.Thread(target=_listen, args=(self._child.stdout, self._answers), daemon=True).start()
        return self._child

    def _last_words(self) -> str:
        """The first line that the child wrote as it died, such as faulthandler's."""
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return next((line for line in lines if line.startswith("Fatal")), lines[-1] if lines else "")


def _listen(stream: Any, answers: queue.Queue[dict[str, Any] | None]) -> None:
    """Puts what the child answers into a queue; None when it is gone."""
    while True:
        try:
            answers.put(pickle.load(stream))
        except (EOFError, OSError, ValueError, pickle.UnpicklingError):
            answers.put(None)
            return
