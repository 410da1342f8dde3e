"""The IR of all stages: node definitions, tools over them, and the tables of operations."""

from tiledsl.ir.buffer import BLOCK_SCOPES, SCOPES, Buffer, Region
from tiledsl.ir.expr import (
    BINARY_OPS,
    BOOL,
    COMPARISONS,
    UNARY_OPS,
    Binary,
    Broadcast,
    Call,
    Cast,
    Const,
    Expr,
    Fma,
    IfThenElse,
    Load,
    Ramp,
    Select,
    Unary,
    Var,
)
from tiledsl.ir.node import Field, Node, fields_of
from tiledsl.ir.stmt import (
    Alloc,
    Atomic,
    Break,
    Continue,
    Copy,
    Debug,
    Fill,
    For,
    Function,
    Gemm,
    If,
    Kernel,
    Let,
    MicroCall,
    Parallel,
    Param,
    Participants,
    Reduce,
    ReducerOp,
    Return,
    Scan,
    Stmt,
    Store,
    Sync,
    While,
)

__all__ = [
    "Alloc", "Atomic", "BINARY_OPS", "BLOCK_SCOPES", "BOOL", "Binary", "Break", "Broadcast", "Buffer", "COMPARISONS",
    "Call", "Cast", "Const", "Continue", "Copy", "Debug", "Expr", "Field", "Fill", "Fma", "For", "Function", "Gemm",
    "If", "IfThenElse", "Kernel", "Let", "Load", "MicroCall", "Node", "Parallel", "Param", "Participants", "Ramp",
    "Reduce", "ReducerOp", "Region", "Return", "SCOPES", "Scan", "Select", "Stmt", "Store", "Sync", "UNARY_OPS",
    "Unary", "Var", "While", "fields_of",
]  # fmt: skip
