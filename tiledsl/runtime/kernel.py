"""JITKernel: a traced function that runs on arrays, on any target, compiled when first needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tiledsl import config, ir
from tiledsl.analysis.evaluate import evaluate
from tiledsl.backend import Target, load_backend, resolve
from tiledsl.errors import TileTypeError, TileValueError, suggest
from tiledsl.frontend.builder import is_tracing
from tiledsl.frontend.location import error, here
from tiledsl.frontend.strictness import refuse
from tiledsl.ir.walk import walk, writes
from tiledsl.runtime import program
from tiledsl.runtime.arguments import Signature
from tiledsl.runtime.explain import Explanation, explain
from tiledsl.runtime.launch import Launch, Plan
from tiledsl.runtime.members import no_member
from tiledsl.runtime.quick import Quick, quick_of
from tiledsl.runtime.shown import Shown
from tiledsl.runtime.views import allocate, device_of, is_hollow, is_torch

__all__ = ["JITKernel", "call_key", "compile", "with_outputs"]

MOST_PLANS = 4096  # a kernel that meets more ways of being called starts anew; plans are cheap to make
SCALARS = frozenset([int, float, bool, np.bool_, np.int32, np.int64, np.float32, np.float64])
_torch_types: set[type] = set()  # learnt from arguments: torch is never imported here


class JITKernel:
    """A kernel ready to be called: `kernel(a, b)` binds, allocates outputs, launches and returns them.

    function  the traced `ir.Function` (tile stage)
    params    its parameters; out_idx: indices of those that are allocated and returned
    target    the target that calls use unless they name one (None: TILEDSL_TARGET, else auto)
    """

    def __init__(self, function: ir.Function, target: str | Target | None = None, single: bool | None = None) -> None:
        _check_outputs(function)
        self.function = function
        self.target = target
        self._signature = Signature(function)
        self._outputs = function.outputs
        self._single = len(function.outputs) == 1 if single is None else single
        self._keyed = _deciding_scalars(self._signature)
        self._plans: dict[Any, Plan] = {}
        self._programs: dict[Any, program.Program] = {}
        self._quick: Quick | None = None  # made when one plan is used twice running
        self._last: Plan | None = None

    @property
    def params(self) -> tuple[ir.Param, ...]:
        return self.function.params

    @property
    def out_idx(self) -> tuple[int, ...]:
        return self.function.outputs

    @property
    def written(self) -> tuple[str, ...]:
        """Names of the parameters, outputs included, that the kernel stores into."""
        return tuple(s.name for s in self._signature.slots if s.written)

    def __repr__(self) -> str:
        return f"<tiledsl kernel {self.function.name}({', '.join(p.name for p in self.params)})>"

    def __getattr__(self, name: str) -> Any:
        no_member(f"the kernel {self.function.name}" if "function" in vars(self) else "a kernel", type(self), name)

    # -- calling ------------------------------------------------------------------------------------------------

    def __call__(
        self, *args: Any, out: Any = None, target: str | Target | None = None, stream: Any = None, **unknown: Any
    ) -> Any:
        """Run on `args`: the parameters that are no outputs, in order. NumPy arrays, torch tensors and DLPack
        objects are used in place.

        out     arrays to write the outputs to (one array, or a sequence of them) instead of new ones
        Returns the outputs: one array, a list of several, None when there are none; new ones are of the kind of the
        first array argument. Raises TileTypeError and TileValueError for arguments that do not fit,
        TileRuntimeError when the kernel fails.
        """
        if unknown:
            raise self._unknown(next(iter(unknown)))
        asked = target or self.target or config.TARGET.get()
        quick = self._quick
        if quick is not None and quick.asked == asked and out is None:
            if not self._outputs:
                if quick(args):
                    return None
            elif quick(given := tuple(quick.plan.values(args, None))):
                return self._returned([given[i] for i in self._outputs])
        outs = None if out is None else list(out) if isinstance(out, (list, tuple)) else [out]
        key = call_key(args if outs is None else (*args, *outs), self._keyed)
        plan = self._plans.get((asked, key)) if key is not None else None
        if plan is None:
            hollow = next((x for x in args if is_hollow(x)), None)
            if hollow is not None:
                return self._outputs_of_shapes(hollow, args, outs)
            plan = self._plan(asked, args, outs)
            key = call_key(args if outs is None else (*args, *outs), self._keyed)  # torch's types are known by now
            if key is not None:
                if len(self._plans) >= MOST_PLANS:
                    self._plans.clear()
                self._plans[(asked, key)] = plan
        values = plan.values(args, outs)
        ready, words = plan.prepare(values)
        Launch(plan.slots, ready, values, words, outs is None).run(stream)
        again, self._last = plan is self._last and outs is None, plan
        self._quick = quick_of(asked, plan, ready, values) if again else None
        return self._returned([values[i] for i in self._outputs])

    def _returned(self, outputs: list[Any]) -> Any:
        if not outputs:
            return None
        return outputs[0] if self._single else outputs

    def _outputs_of_shapes(self, hollow: Any, args: Sequence[Any], outs: Sequence[Any] | None) -> Any:
        """What a call with tensors that have no memory gives: arguments are checked, outputs are made in the same
        way (also with torch's symbolic sizes), and nothing runs."""
        bound = self._signature.bind(args, device_of(hollow), outs)
        if outs is not None:
            return self._returned(list(outs))
        slots = self._signature.slots
        scalars = {s.param.var: v for s, v in zip(slots, bound.values, strict=True) if s.param.var is not None}
        env = {**scalars, **bound.env}
        made = [self.params[i].buffer for i in self.function.outputs]
        return self._returned(
            [allocate(tuple(evaluate(e, env) for e in b.shape), b.dtype, hollow) for b in made if b is not None]
        )

    def _unknown(self, keyword: str) -> TileTypeError:
        known = ("out", "target", "stream")
        help = f"pass {keyword} by its position" if keyword in {p.name for p in self.params} else None
        return TileTypeError(
            f"{self.function.name}: a call has no keyword {keyword!r}",
            here(),
            help=help or suggest(keyword, known) or f"keywords: {', '.join(known)}",
        )

    def _plan(self, asked: str | Target, args: Sequence[Any], outs: Sequence[Any] | None) -> Plan:
        if is_tracing():
            raise error(
                "kernel-in-kernel",
                TileTypeError,
                f"{self.function.name} is a compiled kernel, and cannot run inside another one",
                help="share a function decorated with @T.macro",
            )
        device = next((d for d in map(device_of, args) if d != "cpu"), "cpu")
        target = resolve(asked, device)
        runs_on = "cuda" if target.name == "cuda" else "cpu"
        bound = self._signature.bind(args, runs_on, outs)
        _torch_types.update(type(x) for x in args if is_torch(x) and type(x).__module__.startswith("torch"))
        facts = load_backend(target.name).capabilities(target).facts
        return Plan(self._signature, bound, facts, lambda found: self._program(target, found))

    # -- compiling ------------------------------------------------------------------------------------------------

    def _program(self, target: Target, facts: Mapping[str, Any]) -> program.Program:
        key = (target, tuple(sorted(facts.items())))
        if key not in self._programs:
            with program.COMPILING:
                if key not in self._programs:
                    self._programs[key] = program.compile_function(self.function, target, facts)
        return self._programs[key]

    def compile(self, target: str | Target | None = None) -> JITKernel:
        """Compile now, without facts about arguments, instead of at the first call."""
        self._program(resolve(target or self.target), {})
        return self

    def get_kernel_source(self, target: str | Target | None = None, kernel_only: bool = True) -> str:
        """The text that the target's backend made: LLVM IR for "llvm" (the default where llvmlite is), Python for
        "numba" (the same loops, to be read), tile IR for "numpy", CUDA C++ for "cuda" (also where there is no GPU)."""
        wanted = resolve(target or self.target, runs=False)
        for (made_for, _), found in self._programs.items():
            if made_for == wanted:
                return found.artifact.source
        return self._program(wanted, {}).artifact.source

    def text(self, stage: str = "tile", target: str | Target | None = None) -> str:
        """The IR as runnable text: "tile" is what the author wrote, "loop" what a CPU target makes of it."""
        from tiledsl.ir.printer import to_text

        if stage not in ("tile", "loop"):
            near = suggest(stage, ("tile", "loop")) or "kernel.get_kernel_source() is what the target's compiler gets"
            raise TileValueError(f"there is no stage {stage!r}; there are 'tile' and 'loop'", here(), help=near)
        if stage == "tile":
            return to_text(self.function)
        wanted = resolve(target or self.target)
        lowered = program.lower(self.function, wanted)
        if lowered.stage != stage:
            raise TileValueError(f"target {wanted} has no {stage} stage", help="use llvm or numba for the loop stage")
        return to_text(lowered)

    def show(self, stage: str = "tile", target: str | Target | None = None) -> Shown:
        """The kernel for reading: `print(kernel.show())`; a notebook shows it as a panel.

        stage: "tile", "loop" (`text` explains them) or "source" (what the target's compiler gets)
        """
        text = self.get_kernel_source(target) if stage == "source" else self.text(stage, target)
        return Shown(repr(self)[1:-1], stage, text)

    def explain(self, *args: Any, out: Any = None, target: str | Target | None = None) -> Explanation:
        """How a call with these arguments is done: for each operation its form in the compiled code, or why it has no
        better one; operations and bytes; the least time this machine needs for them (measured, about a second).

        Nothing runs, no argument is touched. `print(kernel.explain(a, b))`; a notebook shows a table. Raises what the
        call would raise for arguments that do not fit.
        """
        wanted = resolve(target or self.target or config.TARGET.get())
        outs = None if out is None else list(out) if isinstance(out, (list, tuple)) else [out]
        bound = self._signature.bind(args, "cpu", outs)
        return explain(self.function, self._signature, bound, wanted, lambda: program.lower(self.function, wanted))

    def _repr_html_(self) -> str:
        return self.show()._repr_html_()


def call_key(args: Sequence[Any], keyed: frozenset[int]) -> Any:
    """What a plan depends on, as a hashable value; None when an argument is of a kind that is looked at each time."""
    key: list[Any] = []
    for i, x in enumerate(args):
        t = type(x)
        if t is np.ndarray:
            key += (x.dtype, x.shape, x.strides, x.flags.num)
        elif t in SCALARS:
            key += (t, x if i in keyed else None)
        elif t in _torch_types:
            try:
                key += (t, x.dtype, x.shape, x.stride(), x.device, x.is_neg())
            except RuntimeError:  # no strided memory
                return None
        elif x is None:
            key.append(None)
        else:
            return None
    return tuple(key)


def _deciding_scalars(signature: Signature) -> frozenset[int]:
    """Positions (among the inputs) of the scalars that shapes, strides, grids and workspaces mention."""
    function = signature.function
    exprs: list[ir.Expr] = []
    for buffer in (*function.buffers, *function.workspaces):
        exprs += [*buffer.shape, *(buffer.strides or ())]
    for kernel in function.kernels:
        exprs += kernel.grid
    mentioned = {n for e in exprs for n in walk(e) if isinstance(n, ir.Var)}
    return frozenset(i for i, s in enumerate(signature.inputs) if s.param.var in mentioned)


def _check_outputs(function: ir.Function) -> None:
    """Refuses outputs that no statement gives a value: the memory that the runtime allocates holds nothing (0.21)."""
    given, updated = set[ir.Buffer](), set[ir.Buffer]()
    for s in (n for k in function.kernels if function.outputs for n in walk(k.body) if isinstance(n, ir.Stmt)):
        updates = isinstance(s, ir.Atomic) and s.op not in ("store", "exchange")
        (updated if updates else given).update(b.root for b in writes(s))
    for p in (function.params[i] for i in function.outputs):
        if p.buffer in given:
            continue
        what, help = "no statement writes it", f"store into {p.name}, or let it be no output of the kernel"
        if p.buffer in updated:
            what = "atomics update it before anything gives it a value"
            help = f"pass {p.name} as an argument that holds zeros, or fill it in a kernel of its own before this one"
        refuse(
            TileValueError(
                f"{function.name}: the output {p.name} is allocated without a value, and {what}", p.loc, (), help
            ),
            "it holds what was there before",
        )


def with_outputs(function: ir.Function, out_idx: int | Sequence[int] | None) -> ir.Function:
    """The function with its outputs set; negative indices count from the last parameter. Raises TileValueError or
    TileTypeError for indices that name no tensor parameter, or none twice."""
    if out_idx is None:
        return function
    if function.outputs:
        raise TileValueError(
            f"{function.name}: out_idx is given, and the kernel already returns arrays made by T.empty",
            function.loc,
            help="drop out_idx",
        )
    asked = [out_idx] if isinstance(out_idx, int) else list(out_idx)
    count, found = len(function.params), []
    for i in asked:
        if not isinstance(i, int) or not -count <= i < count:
            raise TileValueError(
                f"{function.name}: out_idx {i!r} names no parameter, there are {count}",
                function.loc,
                notes=(f"parameters: {', '.join(p.name for p in function.params)}",),
            )
        param = function.params[i % count]
        if param.buffer is None:
            raise TileTypeError(
                f"{function.name}: out_idx {i} names the scalar {param.name}; outputs are tensors", param.loc
            )
        if i % count in found:
            raise TileValueError(f"{function.name}: out_idx names {param.name} twice", function.loc)
        found.append(i % count)
    return function.replace(outputs=tuple(found))


def compile(
    func: Any, out_idx: int | Sequence[int] | None = None, target: str | Target | None = None, **options: Any
) -> JITKernel:
    """A kernel from a `@T.prim_func` (or an `ir.Function`).

    out_idx: parameters that are allocated and returned; target: "name[:arch]". Other options as in `tiledsl.jit`.
    """
    from tiledsl.runtime.options import check_options, check_place

    check_options("tiledsl.compile", options)
    check_place(target)
    function = func if isinstance(func, ir.Function) else getattr(func, "function", None)
    if not isinstance(function, ir.Function):
        raise TileTypeError(
            f"tiledsl.compile: expected a function made by @T.prim_func, got {type(func).__name__}",
            here(),
            help="a factory of kernels is called first: tiledsl.compile(factory(...))",
        )
    return JITKernel(
        with_outputs(function, out_idx), target, getattr(func, "single", None) if out_idx is None else None
    )
