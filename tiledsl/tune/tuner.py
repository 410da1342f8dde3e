"""The tuner: compile every configuration, check it, measure it, keep the fastest."""

from __future__ import annotations

import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tiledsl import config as knobs
from tiledsl.errors import TileError, TileRuntimeError, TileValueError
from tiledsl.tune.measure import milliseconds
from tiledsl.tune.store import Store, key_of

__all__ = ["Result", "Trial", "expand", "tune"]

Config = dict[str, Any]


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
) -> Result:
    """The fastest of `factory(*args, **kwargs, **config)` over the configurations.

    inputs      kernel -> the arguments to call it with (kept by the caller if they shall be the same ones)
    check       (kernel, arguments) -> None; an exception refuses the configuration
    warmup, rep milliseconds to spend on each
    early_stop  a configuration whose first call takes more than this many times the best so far is not measured on
    store       where measurements lie (default: beside the compiled kernels); a stored one is not made again
    progress    a line per configuration on standard error (default: when that is a terminal)
    Raises TileValueError when there is no configuration, TileRuntimeError when all of them fail.
    """
    wanted = expand(configs)
    if not wanted:
        raise TileValueError("nothing to tune: there are no configurations", help="configs=[{...}, {...}]")
    store, trials = store or Store(), list[Trial]()
    show = sys.stderr.isatty() if progress is None else progress
    best: Trial | None = None
    for number, config in enumerate(wanted, 1):
        limit = None if early_stop is None or best is None or best.latency is None else early_stop * best.latency
        trial = _trial(
            functools.partial(factory, *args, **{**(kwargs or {}), **config}),
            config,
            inputs,
            check,
            (warmup, rep),
            limit,
            store,
        )
        trials.append(trial)
        if trial.latency is not None and (best is None or best.latency is None or trial.latency < best.latency):
            best = trial
        if show:
            said = (
                trial.error.splitlines()[0] if trial.error else f"{trial.latency:.4f} ms" + " (stored)" * trial.stored
            )
            print(f"tiledsl: {number}/{len(wanted)} {config}: {said}", file=sys.stderr)
    if best is None or best.latency is None:
        raise TileRuntimeError(
            f"none of the {len(wanted)} configurations works",
            notes=tuple(f"{t.config}: {(t.error or '').splitlines()[0]}" for t in trials[:6]),
        )
    return Result(best.config, best.latency, best.kernel, tuple(trials))


def _trial(
    make: Callable[[], Any],
    config: Config,
    inputs: Callable[[Any], Sequence[Any]],
    check: Callable[[Any, Sequence[Any]], None] | None,
    spend: tuple[float, float],
    limit: float | None,
    store: Store,
) -> Trial:
    kernel: Any = None
    try:
        kernel = make()
        given = inputs(kernel)
        key = key_of(kernel.text(), getattr(kernel, "target", None), knobs.TARGET.get(), *map(_shape, given))
        known = store.get(key)
        if known is not None and known.get("checked", False) >= (check is not None):
            return Trial(config, known["latency"], None, kernel, stored=True)
        if check is not None:
            check(kernel, given)
        kernel(*given)
        start = time.perf_counter()
        kernel(*given)
        latency = (time.perf_counter() - start) * 1e3
        if limit is not None and latency > limit:
            return Trial(config, latency, None, kernel)
        latency = milliseconds(lambda: kernel(*given), *spend)
        store.put(key, {"config": config, "latency": latency, "checked": check is not None})
        return Trial(config, latency, None, kernel)
    except (TileError, AssertionError, ValueError, TypeError, RuntimeError) as e:  # what kernels and checks raise
        return Trial(config, None, str(e) or type(e).__name__, kernel)


def _shape(x: Any) -> object:
    """What decides about time: an array's shape and dtype, a number's value."""
    return (tuple(x.shape), str(x.dtype)) if hasattr(x, "shape") else x
