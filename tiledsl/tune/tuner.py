"""The tuner: compile every configuration, check it, measure it, keep the fastest."""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tiledsl import backend
from tiledsl import config as knobs
from tiledsl.errors import TileRuntimeError, TileValueError
from tiledsl.tune.process import Elsewhere, Worker, arguments, portable
from tiledsl.tune.progress import Progress
from tiledsl.tune.store import Store, key_of
from tiledsl.tune.worker import Job, measured

__all__ = ["Result", "Trial", "expand", "tune"]

Config = dict[str, Any]
_FAILURES = Exception  # a program's own factories and checks raise anything


@dataclass(frozen=True)
class Trial:
    """One configuration: its time, or why it has none. stored: the time was read from disk."""

    config: Config
    latency: float | None = None
    error: str | None = None
    kernel: Any = None
    stored: bool = False


@dataclass(frozen=True)
class Result:
    """The fastest configuration, its kernel and milliseconds; all trials in the order in which they were made."""

    config: Config
    latency: float
    kernel: Any
    trials: tuple[Trial, ...]

    @property
    def failures(self) -> tuple[Trial, ...]:
        return tuple(t for t in self.trials if t.error is not None)


def expand(configs: Iterable[Mapping[str, Any]] | Mapping[str, Sequence[Any]]) -> list[Config]:
    """A list of configurations; a dict of lists means all combinations."""
    if isinstance(configs, Mapping):
        return [dict(zip(configs, values, strict=True)) for values in itertools.product(*configs.values())]
    return [dict(c) for c in configs]


def tune(
    factory: Callable[..., Any],
    configs: Iterable[Mapping[str, Any]] | Mapping[str, Sequence[Any]],
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    inputs: Callable[[Any], Sequence[Any]],
    check: Callable[[Any, Sequence[Any]], None] | None = None,
    warmup: float = 25,
    rep: float = 100,
    early_stop: float | None = None,
    store: Store | None = None,
    progress: bool | None = None,
    workers: int | None = None,
    timeout: float | None = None,
) -> Result:
    """The fastest of `factory(*args, **kwargs, **config)` over the configurations.

    Kernels are traced here, and compiled, run and measured in processes of their own, which get the kernel's IR and
    copies of the inputs: a configuration that crashes or hangs is a failed one. Compiling is done ahead in all workers,
    measuring in one of them alone. Kernels that get addresses (T.ptr) or arrays of a GPU run here, and so do callables
    that are no kernels.

    inputs      kernel -> the arguments to call it with; asked more than once, so the caller keeps large ones
    check       (kernel, arguments) -> None, called here when the kernel has run elsewhere, or was stored; an exception
                refuses it
    warmup, rep milliseconds to spend on each
    early_stop  a configuration whose first three calls all take more than this many times the best so far is not
                measured on
    store       where measurements lie (default: beside the compiled kernels), one file for each configuration; a stored
                one is not made again, a failed one is kept with its diagnostic and tried again
    progress    True: a line per configuration on standard error; None: that on a terminal, elsewhere a line every few
                seconds and one at the end; False: nothing
    workers     processes that compile (default: half the cores, at most 8); 0: everything happens in this process
    timeout     seconds for compiling a configuration, and again for measuring it; None: no limit
    Raises TileValueError when there is no configuration, TileRuntimeError when all of them fail.
    """
    wanted = expand(configs)
    if not wanted:
        raise TileValueError("nothing to tune: there are no configurations", help="configs=[{...}, {...}]")
    count = max(1, min(8, knobs.usable_cores() // 2)) if workers is None else workers
    bench = _Bench(inputs, check, (warmup, rep), store or Store(), count, timeout)
    makers = [functools.partial(factory, *args, **{**(kwargs or {}), **config}) for config in wanted]
    show = Progress(progress, len(wanted))
    trials, best = list[Trial](), None
    try:
        made = [bench.make(config, maker) for config, maker in zip(wanted, makers, strict=True)]
        bench.compile_ahead([t for t in made if t.kernel is not None], show)
        for number, candidate in enumerate(made, 1):
            limit = None if early_stop is None or best is None or best.latency is None else early_stop * best.latency
            trial = candidate if candidate.kernel is None else bench.trial(candidate, limit)
            trials.append(trial)
            if trial.latency is not None and (best is None or best.latency is None or trial.latency < best.latency):
                best = trial
            show.tried(number, trial)
    finally:
        bench.close()
    if best is None or best.latency is None:
        raise TileRuntimeError(
            f"none of the {len(wanted)} configurations works",
            notes=tuple(f"{t.config}: {(t.error or '').splitlines()[0]}" for t in trials[:6]),
        )
    result = Result(best.config, best.latency, best.kernel, tuple(trials))
    show.found(result.config, result.latency, len(result.failures))
    return result


@dataclass
class _Bench:
    """Where candidates are compiled, checked and measured."""

    inputs: Callable[[Any], Sequence[Any]]
    check: Callable[[Any, Sequence[Any]], None] | None
    spend: tuple[float, float]
    store: Store
    workers: int
    timeout: float | None

    def __post_init__(self) -> None:
        self.crew = [Worker() for _ in range(self.workers)]
        self.failed: dict[int, str] = {}  # by identity of the kernel: what compiling ahead said

    def close(self) -> None:
        for worker in self.crew:
            worker.close()

    def make(self, config: Config, maker: Callable[[], Any]) -> Trial:
        """The traced kernel, or why there is none."""
        try:
            return Trial(config, kernel=maker())
        except _FAILURES as e:
            return Trial(config, error=str(e) or type(e).__name__)

    def compile_ahead(self, candidates: Sequence[Trial], show: Progress) -> None:
        """Every kernel runs once, as many at a time as there are workers; its code is on disk then."""
        todo = [t.kernel for t in candidates if _cached(t.kernel)]
        if self.workers < 2 or len(todo) < 2:
            return
        idle = list(self.crew)
        room = threading.Semaphore(self.workers)  # so many sets of inputs exist at a time

        def compile(kernel: Any, given: Sequence[Any]) -> None:
            worker = idle.pop()
            try:
                with contextlib.suppress(Elsewhere):
                    answer = self._elsewhere(worker, kernel, given, None, None)
                    if "error" in answer:
                        self.failed[id(kernel)] = answer["error"]
            finally:
                idle.append(worker)
                room.release()

        with ThreadPoolExecutor(self.workers) as pool:
            done = []
            for kernel in todo:
                try:
                    given = self.inputs(kernel)
                    known = self.store.get(_key(kernel, given)) or {}
                except _FAILURES:  # said when its turn comes
                    continue
                if "latency" not in known:
                    room.acquire()
                    done.append(pool.submit(compile, kernel, given))
            for number, future in enumerate(done, 1):
                future.result()
                show.compiled(number, len(done))

    def trial(self, made: Trial, limit: float | None) -> Trial:
        """Run, check, measure and store one candidate."""
        config, kernel, key, known = made.config, made.kernel, "", dict[str, Any]()
        try:
            given = self.inputs(kernel)
            key = _key(kernel, given)
            known = self.store.get(key) or {}
            latency, error = known.get("latency"), None
            if latency is None:
                latency, error = self._measure(kernel, given, limit)
            if error is None and self.check is not None:
                self.check(kernel, given)
        except _FAILURES as e:
            latency, error = 0.0, str(e) or type(e).__name__
        if error is not None:
            if key and "latency" not in known:
                self.store.put(key, {"config": config, "error": error})
            return Trial(config, None, error, kernel)
        stored = "latency" in known
        if not stored and (limit is None or latency <= limit):
            self.store.put(key, {"config": config, "latency": latency})
        return Trial(config, latency, None, kernel, stored)

    def _measure(self, kernel: Any, given: Sequence[Any], limit: float | None) -> tuple[float, str | None]:
        if id(kernel) in self.failed:
            return 0.0, self.failed[id(kernel)]
        if self.crew and portable(kernel) is not None:
            with contextlib.suppress(Elsewhere):
                answer = self._elsewhere(self.crew[0], kernel, given, self.spend, limit)
                return answer.get("latency", 0.0), answer.get("error")
        return measured(lambda: kernel(*given), self.spend, limit), None

    def _elsewhere(
        self, worker: Worker, kernel: Any, given: Sequence[Any], spend: tuple[float, float] | None, limit: float | None
    ) -> dict[str, Any]:
        native = portable(kernel)
        assert native is not None
        with arguments(native, given) as sent:
            target = str(native.target or knobs.TARGET.get())
            return worker.run(Job(native.text(), target, sent, spend, limit), self.timeout)


def _key(kernel: Any, given: Sequence[Any]) -> str:
    return key_of(kernel.text(), getattr(kernel, "target", None), knobs.TARGET.get(), *map(_shape, given))


def _cached(kernel: Any) -> bool:
    """Another process can compile it, and this and later ones find the code on disk."""
    native = portable(kernel)
    if native is None or knobs.DISABLE_CACHE.get():
        return False
    target = backend.resolve(native.target)
    return backend.load_backend(target.name).capabilities(target).cacheable


def _shape(x: Any) -> object:
    """What decides about time: an array's shape and dtype, a number's value."""
    return (tuple(x.shape), str(x.dtype)) if hasattr(x, "shape") else x
