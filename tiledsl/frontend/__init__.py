"""Tracing: an author's Python function becomes an `ir.Function`.

For the runtime room (everything else goes through `tiledsl.language`):

    trace_prim_func(pyfunc) -> PrimFunc
        What `T.prim_func` does. PrimFunc has `.function: ir.Function`, `.pyfunc`, `.name`,
        and `.single: bool`
        (eager kernels: `return C`, not `return C, D`).
    is_lazy(pyfunc) -> bool
        True: a factory that returns a PrimFunc when called with Python values.
        False: the body is the kernel (eager style).
    EagerTemplate(pyfunc)
        .name, .pyfunc
        .arguments: tuple[str, ...]   run-time parameters (annotated with a T type in signature or body), in order
        .options: tuple[str, ...]     all other parameters: compile-time values; `.defaults: dict[str, object]`
        .signature: inspect.Signature of the Python function
        .bind(arguments: Mapping[str, ArgInfo | None], options: Mapping[str, object], consts: Mapping[str, int] = {})
            -> PrimFunc
        ArgInfo(shape, dtype, strides) describes an array argument: shape and strides (in elements) as Python ints,
        dtype a DType; None stands for a scalar argument or one that is not known (then `consts` gives T.const values).
        The PrimFunc's parameters are `.arguments` in order, then the `T.empty` outputs in the order of `return`;
        `function.outputs` holds the indices of the outputs. T.const values are Python ints of the trace: two bindings
        that differ in one are two functions. `PrimFunc.consts: dict[str, int]` tells which values were used.
    captures(pyfunc) -> dict[str, object]
        The globals and closure variables (by qualified name) that the function, and helpers it names, may read:
        part of an in-process cache key.
    lenient(report)
        A context manager: kernels traced inside may do what language.md 0.3 and 0.6 refuse, with TileLang's meaning.
    BufferRef, CONTROL
        What a kernel's tensors and tiles are while it is traced, and what its rewritten statements call.
"""

from tiledsl.frontend import uncaught
from tiledsl.frontend.control import CONTROL
from tiledsl.frontend.eager import ArgInfo, EagerTemplate, is_lazy
from tiledsl.frontend.storage import BufferRef
from tiledsl.frontend.strictness import lenient
from tiledsl.frontend.trace import Macro, PrimFunc, captures, trace_prim_func

__all__ = [
    "ArgInfo", "BufferRef", "CONTROL", "EagerTemplate", "Macro", "PrimFunc", "captures", "is_lazy",
    "lenient", "trace_prim_func",
]  # fmt: skip

uncaught.install()
