"""A small private Numba target that knows the dialect and nothing else: text -> LLVM IR.

Numba reads the bytecode, infers types and lowers control flow; every operation goes to `dialect.py`. Because none of
Numba's own registries, rewrites, runtime or code generation is loaded, compilation is several times faster than
`njit`, integers do not widen by themselves, and the object code depends on nothing of Numba.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir as ll
from numba.core import compiler, errors, types, typing
from numba.core.compiler_machinery import LoweringPass, PassManager, register_pass
from numba.core.cpu import CPUContext
from numba.core.datamodel import models
from numba.core.datamodel.registry import register_default
from numba.core.funcdesc import PythonFunctionDescriptor
from numba.core.lowering import Lower
from numba.core.typed_passes import NopythonTypeInference
from numba.core.untyped_passes import FixupArgs, TranslateByteCode

from tiledsl.backends.cpu.emit import values
from tiledsl.backends.cpu.emit.entry import emit_entry
from tiledsl.backends.cpu.native import Cpu
from tiledsl.backends.numba_cpu.dialect import OPERATORS, VOID, Kind, Literal, LoopOver, Op, Pointer, next_of_range
from tiledsl.dtypes import DType, as_dtype

__all__ = ["to_llvm"]

_Pair: Any = getattr(types, "Pair")  # noqa: B009  (Numba's stubs lack it)
_NATIVE = {as_dtype("int64"): types.int64, as_dtype("bool"): types.boolean, as_dtype("float64"): types.float64}
_NATIVE_KINDS = {t: d for d, t in _NATIVE.items()}


class KindType(types.Type):
    """A dialect type that Numba only passes around."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        super().__init__(name=f"tiledsl({kind})")


class OpType(types.Callable, types.Opaque):
    """The type of a dialect function."""

    def __init__(self, op: Op) -> None:
        self.op = op
        super().__init__(name=f"tiledsl.{op.name}@{id(op)}")

    def get_call_type(self, context: Any, args: Sequence[Any], kws: Any) -> Any:
        if kws:
            raise errors.TypingError("the dialect has no keyword arguments")
        try:
            result = self.op.rule([_kind(a) for a in args])
        except (TypeError, AttributeError, IndexError) as e:
            raise errors.TypingError(f"{self.op.name}({', '.join(map(str, args))}): {e}") from e
        return typing.signature(_numba_type(result), *args)

    def get_call_signatures(self) -> Any:
        return (), False

    def get_impl_key(self, sig: Any) -> Any:
        return self.op


@register_default(KindType)
class _KindModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: KindType) -> None:
        kind = fe_type.kind
        super().__init__(dmm, fe_type, values.value_type(kind) if isinstance(kind, DType) else values.PTR)


register_default(OpType)(models.OpaqueModel)

_TYPES: dict[Kind, Any] = dict(_NATIVE)
_OP_TYPES: dict[Op, OpType] = {}


def _numba_type(kind: Kind) -> Any:
    if kind is VOID:
        return types.void
    found = _TYPES.get(kind)
    if found is None:
        found = _TYPES[kind] = KindType(kind)
    return found


def _kind(t: Any) -> Kind:
    if isinstance(t, KindType):
        return t.kind
    if isinstance(t, types.IntegerLiteral):
        return Literal(t.literal_value)
    if isinstance(t, types.BooleanLiteral):
        return as_dtype("bool")
    return _NATIVE_KINDS[t]


def _op_type(op: Op) -> OpType:
    found = _OP_TYPES.get(op)
    if found is None:
        found = _OP_TYPES[op] = OpType(op)
    return found


class _Typing(typing.BaseContext):  # type: ignore[misc]
    """Typing rules: the dialect and the protocol of for loops."""

    def _load_builtins(self) -> None:
        pass

    def resolve_value_type(self, val: Any) -> Any:
        try:
            op = val if isinstance(val, Op) else OPERATORS.get(val)
        except TypeError:
            op = None
        return _op_type(op) if op is not None else super().resolve_value_type(val)

    def resolve_function_type(self, func: Any, args: Sequence[Any], kws: dict[str, Any]) -> Any:
        if func == "getiter":
            return typing.signature(args[0], args[0])
        if func == "iternext":
            return typing.signature(_Pair(_numba_type(_kind(args[0]).dtype), types.boolean), args[0])
        if isinstance(func, OpType):
            return func.get_call_type(self, args, kws)
        op = OPERATORS.get(func)
        return _op_type(op).get_call_type(self, args, kws) if op is not None else None


class _Lowering(CPUContext):  # type: ignore[misc]
    """Code generation: every operation is the dialect's."""

    enable_nrt = False
    register_bytes, byte_products = 64, "plain"  # of the CPU that code is made for

    def load_additional_registries(self) -> None:
        pass

    def refresh(self) -> None:
        pass

    def post_lowering(self, mod: Any, library: Any) -> None:
        pass

    def get_function(self, fn: Any, sig: Any, _firstcall: bool = True) -> Callable[..., Any]:
        kinds = [_kind(a) for a in sig.args]
        if fn == "getiter":
            return lambda b, args, loc=None: args[0]
        if fn == "iternext":
            return lambda b, args, loc=None: self._next(b, sig.return_type, kinds[0], args[0])
        if not isinstance(fn, OpType):
            raise NotImplementedError(str(fn))
        result = VOID if sig.return_type == types.void else _kind(sig.return_type)

        def implementation(b: Any, args: Sequence[Any], loc: Any = None) -> Any:
            value = fn.op.emit(b, kinds, result, args)
            return self.get_dummy_value() if value is None else value

        return implementation

    def _next(self, b: Any, pair_type: Any, kind: LoopOver, slot: Any) -> Any:
        pair = self.make_helper(b, pair_type)
        pair.first, pair.second = next_of_range(b, kind.dtype, slot)
        return pair._getvalue()

    def cast(self, builder: Any, val: Any, fromty: Any, toty: Any) -> Any:
        if fromty == toty or not isinstance(fromty, (types.IntegerLiteral, types.BooleanLiteral)):
            return val
        return self.get_constant_generic(builder, toty, fromty.literal_value)

    def get_constant_generic(self, builder: Any, ty: Any, val: Any) -> Any:
        if isinstance(ty, OpType) or val is None:
            return self.get_dummy_value()
        kind = _kind(ty)
        return values.constant(as_dtype("int64") if isinstance(kind, Literal) else kind, val)


class _Variables(Lower):  # type: ignore[misc]
    """Numba's lowering with plain variables: nothing is counted, cleared or deleted, and pointers are opaque."""

    def loadvar(self, name: str) -> Any:
        if name in self._blk_local_varmap:
            return self._blk_local_varmap[name]
        return self.builder.load(self.getvar(name), typ=self.context.get_value_type(self.typeof(name)))

    def storevar(self, value: Any, name: str, argidx: int | None = None) -> None:
        if name in self._singly_assigned_vars:
            self._blk_local_varmap[name] = value
        else:
            self.builder.store(value, self.getvar(name))

    def delvar(self, name: str) -> None:
        pass


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerToLlvm(LoweringPass):  # type: ignore[misc]
    """Numba's lowering without its code generation: leaves the llvmlite module in the state."""

    _name = "tiledsl_lower_to_llvm"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        library = state.targetctx.codegen().create_library(state.func_id.func_qualname)
        fndesc = PythonFunctionDescriptor.from_specialized_function(
            state.func_ir, state.typemap, state.return_type, state.calltypes,
            mangler=state.targetctx.mangler, inline=False, noalias=False, abi_tags=[],
        )  # fmt: skip
        library.add_ir_module = lambda module: None  # the text of the module is all that is wanted
        with state.targetctx.push_code_library(library):
            lower = _Variables(state.targetctx, library, fndesc, state.func_ir, metadata=state.metadata)
            lower.module.register_bytes = state.targetctx.register_bytes
            lower.module.byte_products = state.targetctx.byte_products
            lower.lower()
        state["cr"] = (lower.module, fndesc)
        return True


class _Pipeline(compiler.CompilerBase):  # type: ignore[misc]
    """The passes that straight bytecode with static types needs."""

    def define_pipelines(self) -> list[Any]:
        pm = PassManager("tiledsl")
        for step in (TranslateByteCode, FixupArgs, NopythonTypeInference, _LowerToLlvm):
            pm.add_pass(step, step.__name__)
        pm.finalize()
        return [pm]


_LOCK = threading.Lock()  # the contexts are shared
_contexts: tuple[Any, Any] | None = None


def _targets() -> tuple[Any, Any]:
    global _contexts
    if _contexts is None:
        typing_context = _Typing()
        _contexts = typing_context, _Lowering(typing_context)
    return _contexts


def to_llvm(function: Callable[..., Any], symbol: str, cpu: Cpu) -> Any:
    """The llvmlite module of a printed kernel `f(first, last, args, context)` with the C entry `symbol`.

    cpu: what the code will run on; decides the blocking of micro-kernels and the shape of some instructions.

    Raises numba.core.errors.NumbaError when the text is not in the dialect (a bug of the printer).
    """
    flags = compiler.Flags()
    flags.no_cpython_wrapper = flags.no_cfunc_wrapper = flags.no_compile = True
    flags.error_model = "numpy"
    flags.enable_ssa = False
    words = _numba_type(Pointer(as_dtype("int64")))
    args = (types.int64, types.int64, words, words)
    with _LOCK:
        typing_context, target_context = _targets()
        target_context.register_bytes, target_context.byte_products = cpu.register_bytes, cpu.byte_products
        module, fndesc = compiler.compile_extra(
            typing_context, target_context, function, args, types.int64, flags, {}, pipeline_class=_Pipeline
        )
    for g in module.globals.values():
        if isinstance(g, ll.GlobalVariable):  # Numba's environment, which nothing here uses
            g.linkage, g.initializer = "internal", ll.Constant(g.value_type, None)
    emit_entry(module, module.globals[fndesc.llvm_func_name], symbol, cpu.triple)
    return module
