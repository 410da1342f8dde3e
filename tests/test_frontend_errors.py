"""Every diagnostic of the frontend and the language: its rendered text is a golden, and no diagnostic lacks one."""

# ruff: noqa: E501  (one snippet, one line)

from __future__ import annotations

import ast
import linecache
import pickle
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tiledsl.frontend
import tiledsl.language as T
from tiledsl.dtypes import as_dtype
from tiledsl.errors import MAX_LINES, TileError
from tiledsl.frontend import ArgInfo, EagerTemplate

BODY = """\
import tiledsl.language as T
import math, numpy as np
table = np.arange(64, dtype=np.float32)
@T.prim_func
def kernel(A: T.Tensor((128, 64), T.float32), n: T.int32):
    with T.Kernel(4, threads=128) as bx:
        s = T.alloc_shared((64, 32), T.float16)
        f = T.alloc_fragment((64, 64), T.float32)
        r = T.alloc_fragment((64,), T.float32)
        v = T.alloc_var(T.int32, 0)
"""

# ident -> statements inside the kernel of BODY. "ident:variant" for a second text of one diagnostic.
IN_KERNEL = {
    "python-value-needed:array-index": "for i in T.Parallel(64):\n    r[i] = table[i]",
    "python-value-needed:array-store": "for i in T.Parallel(64):\n    table[i] = r[i]",
    "python-value-needed:list-index": "sizes = [1, 2, 3]\nv = sizes[bx]",
    "python-value-needed:made-an-array": "a = np.array([r[0], 1.0])",
    "python-value-needed:max": "r[0] = max(r[0], 0.0)",
    "python-value-needed:min-of-three": "v = min(v, n, 7)",
    "python-value-needed:in": "if bx in (0, 1):\n    T.clear(f)",
    "python-value-needed:not-in": "if n not in (0, 1):\n    T.clear(f)",
    "python-value-needed:math": "r[0] = math.exp(r[1])",
    "python-value-needed:numpy-function": "r[0] = np.sqrt(r[1])",
    "python-value-needed:numpy-where": "r[0] = np.where(r[1] > 0, 1.0, 2.0)",
    "python-value-needed:numpy-reduction": "r[0] = np.max(r[1])",
    "python-value-needed:int": "v = int(r[1])",
    "no-attribute": "r[0] = r[1].max()",
    "no-attribute:tile": "total = f.sum(axis=1)",
    "no-attribute:slice": "total = f[0, :].mean()",
    "no-attribute:transposed": "T.gemm(f, f.T, f)",
    "no-attribute:cast": "h = f.to(T.float16)",
    "no-attribute:misspelt": "m = f.shap[0]",
    "no-attribute:scalar": "m = bx.x",
    "index-tuple": "for i in T.Parallel(64, 64):\n    r[i * 2] = 0.0",
    "index-tuple:comparison": "for i in T.Parallel(64, 64):\n    if i == 3:\n        T.clear(f)",
    "rank-mismatch:index-tuple": "for i in T.Parallel(64, 64):\n    r[i] = 0.0",
    "not-a-value:index-tuple": "for i in T.grid(64, 64):\n    v = T.max(i, 0)",
    "not-a-value:tile": "x = T.exp(f)",
    "not-a-value:array": "x = T.exp(table)",
    "not-a-value:dtype-first": "x = T.alloc_shared(T.float16, (64, 64))",
    "loop-targets": "for i, j in T.Parallel(64):\n    f[i, j] = 0.0",
    "buffer-arithmetic:sum": "x = abs(f)",
    "buffer-arithmetic:comparison": "if f == 0:\n    T.clear(f)",
    "buffer-arithmetic:in": "if n in f:\n    T.clear(f)",
    "buffer-iteration:sum": "x = sum(r)",
    "python-error": "x, y = divmod(bx, 2)",
    "python-error:format": "x = '%d' % bx",
    "python-error:list": "sizes = [1, 2]\nx = sizes[2]",
    "python-error:helper": "def pick(sizes):\n    return sizes.first\nx = pick([1, 2])",
    "index-dtype:python-float": "x = T.alloc_shared((64 / 2, 4), T.float16)",
    "index-dtype:loop": "for k in range(64 / 32):\n    T.clear(f)",
    "unknown-dtype:misspelt": "x = T.alloc_shared((64, 64), 'flaot16')",
    "unknown-dtype:of-triton": "x = T.alloc_shared((64, 64), 'bf16')",
    "unknown-name:load": "x = T.load(A, bx)",
    "unknown-name:arange": "x = T.arange(0, 64)",
    "unknown-name:softmax": "T.softmax(f)",
    "unknown-name:dtype": "x = T.alloc_shared((64, 64), T.fp16)",
    "unknown-name:program-id": "x = T.program_id(0)",
    "unknown-keyword:axis": "T.reduce_max(f, r, axis=1)",
    "unknown-keyword:stages": "for k in T.Pipelined(4, stages=3):\n    T.clear(f)",
    "argument-count:out": "x = T.reduce_max(f, dim=1)",
    "argument-count:gemm": "x = T.gemm(f, f)",
    "not-a-value:operand": "x = T.ceildiv('64', 2)",
    "not-a-value:list": "for k in T.serial([1, 2]):\n    T.clear(f)",
    "not-a-value:gather": "T.copy(A[r, :], s)",
    "not-a-tile:array": "T.copy(A, np.zeros((128, 64)))",
    "not-a-scalar:tile": "T.fill(f, s)",
    "rank-mismatch:twice": "f[0][0] = 1.0",
    "rank-mismatch:slice": "T.copy(A[0:4], s)",
    "python-value-needed:any": "if any(r[i] > 0 for i in range(4)):\n    T.clear(f)",
    "python-value-needed:sorted": "x = sorted([r[0], r[1]])",
    "python-error:called": "r[0] = f(0, 0)",
    "python-error:none": "r[0] = r[1] + None",
    "loop-carried:float": "total = 0.0\nfor k in T.serial(64):\n    total += r[k]\nr[0] = total",
    "stale-load": "def twice(x):\n    f[0, 0] = 7.0\n    return x + x\nr[0] = twice(f[0, 0])",
    "stale-load:loop": "def add(x):\n    r[0] += 1.0\n    f[0, 0] = x\npair = {}\npair['x'] = r[0]\nfor i in range(4):\n    add(pair['x'])",
    "statement-in-operand": "@T.macro\ndef fetch(i):\n    T.clear(r)\n    return r[i]\nv = 1 if fetch(0) > 0 and fetch(1) > 0 else 2",
    "outside-region": "kept = []\nfor i in T.serial(4):\n    kept.append(i)\nr[kept[0]] = 1.0",
    "outside-region:buffer": "kept = []\nif n > 0:\n    kept.append(T.alloc_local((4,), T.float32))\nkept[0][0] = 1.0",
    "declaration": "B: T.Tensor[(4,), T.float32]",
    "tensor-of-data": "B = T.Tensor((4,), T.float32, f[0, 0:4])",
    "unpack-scalar": "a, b = n",
    "unpack-count": "a, b, c = n, 2",
    "undefined-after-region": "for i in T.serial(4):\n    x = r[i]\nr[0] = x",
    "undefined-after-region:branch": "x = 1.0\nif n > 3:\n    x = 2.0\nr[0] = x",
    "undefined-after-region:unassigned": "if len('ab') == 3:\n    y = 1.0\nr[0] = y",
    "undefined-after-region:loop-variable": "for i in range(4):\n    r[i] = 0.0\nv = i",
    "range-arguments": "for i in range(1, 2, 3, 4):\n    v += i",
    "break-nest": "for i, j in T.Parallel(4, 4):\n    break",
    "kernel-returns-value": "return v",
    "return-from-region": "@T.macro\ndef find():\n    for i in range(4):\n        if r[i] > 0:\n            return i\n    return 0\nv = find()",
    "return-in-parallel": "for i in T.Parallel(64):\n    if r[i] > 0:\n        return",
    "choose-objects": "T.clear(s if n > 0 else f)",
    "rounding-mode": "r[0] = T.ieee_add(r[0], r[1], 'up')",
    "rounding-mode-dtype": "r[0] = T.ieee_add(T.float64(r[0]), T.float64(r[1]), 'rz')",
    "power-exponent": "r[0] = T.pow_of_int(r[0], -1)",
    "round-mode": "r[0] = T.round(r[0], 'up')",
    "bits-dtype": "v = T.popcount(r[0])",
    "byte-perm": "v = T.byte_perm(T.int64(v), v, v)",
    "fp8-format": "T.determine_fp8_type('e3m4')",
    "loop-break": "for k in [1, 2]:\n    T.loop_break()",
    "any-all-operand": "v = T.any_of(n > 0)",
    "extern-name": "v = T.call_extern('int32', '__popd', v)",
    "extern-arguments": "v = T.call_extern('int32', '__popc', v, v)",
    "address": "w = T.make_tensor(n, (4,), T.float32)",
    "make-tensor-in-parallel": "for i in T.Parallel(4):\n    w = T.make_tensor(T.int64(n), (4,), T.float32)",
    "layout-shape": "T.Layout((n, 4), lambda i, j: i)",
    "layout-function": "T.Layout((4, 4), lambda i: i)",
    "layout-function:operation": "T.Layout((4,), lambda i: T.max(i, 2))",
    "view-address": "w = T.make_tensor(T.int64(n), (4, 4), T.float32)\nu = T.reshape(w, (16,))",
    "thread-axis": "t = T.get_thread_binding(3)",
    "warp-size": "t = T.get_lane_idx(n)",
    "thread-tag": "t = T.launch_thread('threadIdx', 128)",
    "thread-extent": "for t in T.thread_binding(64, 'threadIdx.x'):\n    r[t] = 0.0",
    "thread-start": "t = T.thread_binding(1, 128, 'threadIdx.x')",
    "barrier-constant": "T.sync_threads(1, n)",
    "return-in-parallel:thread": "for i in T.Parallel(64):\n    T.thread_return()",
    "collective-operand": "t = T.warp_reduce_sum(r)",
    "collective-bits": "t = T.warp_reduce_bitand(r[0])",
    "shuffle-width": "t = T.shfl_sync(r[0], 1, width=5)",
    "reducer-function": "T.comm_reducer(lambda x, y: x * y, [T.float32(1)])",
    "attribute-key": "with T.attr(r, 'pragma_unroll', 1):\n    pass",
    "no-reducer": "T.tvm_thread_allreduce(T.uint32(1), r[0], True, r[0])",
    "allreduce-out": "with T.attr(T.comm_reducer(lambda x, y: x + y, [T.float32(0)]), 'reduce_scope', 0):\n    T.tvm_thread_allreduce(1, r[0], True, r)",
    "allreduce-axis": "with T.attr(T.comm_reducer(lambda x, y: x + y, [T.float32(0)]), 'reduce_scope', 0):\n    T.tvm_thread_allreduce(1, r[0], True, r[0], 'x')",
    "barrier-count": "bar = T.alloc_barrier(n)",
    "barrier-count:huge": "bar = T.alloc_barrier([2**63] * 2)",
    "barrier-operand": "bars = T.alloc_barrier([128, 128])\nT.barrier_arrive(bars)",
    "no-barriers": "T.barrier_arrive(T.get_mbarrier(0))",
    "warp-group": "with T.ws(n):\n    v = 1",
    "barrier-store": "bar = T.alloc_barrier(128)\nbar[0] = 1",
    "barrier-parity": "bar = T.alloc_barrier(128)\nT.barrier_wait(bar, r)",
    "loop-carried": "k = 0\nfor i in T.serial(n):\n    k = k + 1\n    r[k] = 0.0",
    "loop-carried:augmented": "total = n * 2\nwhile v < 8:\n    total += v\n    v += 1",
    "endless-loop": "while True:\n    v += 1",
    "endless-python-while": "running = [1]\nwhile running:\n    pass",
    "jump-from-python-loop": "for size in [1, 2]:\n    if n > size:\n        break",
    "nested-kernel": "with T.Kernel(2) as by:\n    pass",
    "loop-not-in-for": "values = [r[i] for i in T.serial(4)]",
    "parallel-nesting": "for i in T.Parallel(64):\n    r[i] = 0.0\n    for j in T.Parallel(64):\n        f[i, j] = 0.0",
    "parallel-nesting-after": "for i in T.Parallel(64):\n    for j in T.Parallel(64):\n        f[i, j] = 0.0\n    r[i] = 0.0",
    "ragged-parallel": "for i in T.Parallel(64):\n    for j in T.Parallel(i + 1):\n        f[i, j] = 0.0",
    "not-a-scalar:panel": "T.use_swizzle('10')",
    "layout-key:no-dict": "T.annotate_layout([s])",
    "safe-value-key:no-dict": "T.annotate_safe_value(1.0)",
    "pass-configs": "T.annotate_pass_configs(1.0)",
    "compile-flags": "T.annotate_compile_flags(['-O3', 4])",
    "negative-extent:wide": "T.alloc_shared((2**63, 4), 'float32')",
    "not-iterable:number": "for i in 3:\n    v += i",
    "literal-range:loop": "for i in T.serial(2**63):\n    v += 1",
    "zero-step": "for i in T.serial(0, 8, 0):\n    v += i",
    "no-extents": "for i in T.Parallel():\n    pass",
    "literal-range": "v = n + 2**70",
    "dtype-not-yet": "w = T.alloc_shared((4, 4), 'handle')",
    "vector-dtype": "w = T.alloc_var('float32x2')",
    "vector-as-scalar": "x = T.float32x2(1.0, 2.0)\nr[0] = x",
    "vector-lane": "x = T.float32x2(1.0, 2.0)\nr[0] = x[2]",
    "vector-lanes": "x = T.float32x2(1.0, 2.0) + T.float32x4(1.0)",
    "no-vector": "x = T.add2(r[0], r[1])",
    "no-lanes": "x = T.extract_lane(r[0], 0)",
    "cast-lanes": "x = T.cast(T.float32x2(1.0, 2.0), 'float16x4')",
    "cast-rounding": "r[0] = T.cast(r[1], 'float16', round='rp')",
    "cast-rounding-types": "r[0] = T.cast(r[1], 'float8_e8m0fnu', round='rz')",
    "unknown-dtype": 'w = T.alloc_shared((4, 4), "float31")',
    "unsupported-construct": "try:\n    v += 1\nfinally:\n    v += 2",
    "unsupported-construct:walrus": "v = (k := 3) + k",
    "loop-else": "for i in range(4):\n    v += i\nelse:\n    v = 0",
    "attribute-assignment": "f.name = 'other'",
    "non-uniform-effect": "s[0, 0] += T.float16(1)",
    "non-uniform-effect:through-a-name": "old = A[bx, 0]\nA[bx, 0] = old + 1.0",
    "slice-iteration": "for x in s[0, 0:4]:\n    pass",
    "buffer-as-bool": "if s:\n    v += 1",
    "buffer-iteration": "for x in r:\n    v += 1",
    "buffer-length": "v = len(r)",
    "not-iterable:unpack": "x, *y = 3",
    "not-a-value:comparison": "if 0 <= None < 3:\n    v += 1",
    "buffer-arithmetic:numpy": "import numpy as np\nT.copy(np.exp(f), f)",
    "unknown-keyword:annotation": "B: T.Tensor((4,), dype=T.float32)",
    "buffer-arithmetic": "T.copy(f + f, f)",
    "store-value": "r[0] = s",
    "var-index": "v[1] = 3",
    "slice-store": "f[0, 0:4] = 0.0",
    "rank-mismatch": "f[0] = 1.0",
    "empty-slice": "T.clear(f[4:4, 0:8])",
    "slice-step": "T.copy(f[0:8:-2, 0:8], f[0:4, 8:16])",
    "stepped-slice": "T.clear(f[0:8:2, 0:8])",
    "slice-arithmetic": "r[0] = f[0, 0:8] + 1.0",
    "word-place": "v = T.ldg32(n)",
    "constant-index": "r[64] = 0.0",
    "constant-index:negative": "r[-65] = 0.0",
    "nested-prim-func": "@T.prim_func\ndef inner(B: T.Tensor((4,), T.float32)):\n    pass",
    "macro-ref": "@T.macro\ndef bump(x: T.Ref):\n    x += 1\nbump(3)",
    "macro-arguments": "@T.macro\ndef bump(x, by):\n    x += by\nbump(v)",
    "undefined-name": "T.copy(sharde, f)\nshared = s",
    "undefined-name:suggestion": "T.clear(ff)\nfff = s",
    "unbound-local": "r[0] = y\ny = 1.0",
    "not-a-value": "v = T.max(s, 1)",
    "power": "r[0] = r[1] ** 2",
    "python-value-needed": "def pick(x):\n    return 1 if x > 0 else 2\nv = pick(n)",
    "python-value-needed:index": "tiles = [s, f]\nT.clear(tiles[n])",
    "python-value-needed:hash": "seen = {n: 1}",
    "python-value-needed:numpy": "import numpy as np\nr[0] = np.exp(r[1])",
    "python-value-needed:float": "r[0] = float(n)",
    "range-shadowed": "range = r\nfor i in range(4):\n    v += 1",
    "augmented-operand": "part = {}\npart *= r[0]",
    "message-text": "T.device_assert(n > 0, 0.5)",
    "message-text:print": "T.print(n, msg=n)",
    "text-of-values": "T.print(f'first {r[0]:.2f}')",
    "text-of-values:print": "print(f'{n}')",
    "text-of-values:message": "T.print(r[0], msg=f'at {bx}')",
    "tile-product": "product = s @ s",
    "tile-product:slice": "product = f[0:32, :] @ s",
    "print-arguments": "print(n, 'rows')",
    "print-arguments:slice": "print(f[0, :])",
    "print-arguments:option": "print(n, sep=', ')",
    "python-division:ceildiv": "v = T.ceildiv(n, 0)",
    "python-division:mod": "v = T.floormod(n, 0)",
    "annotation-called": 'v = T.PrimExpr("int32", 0)',
    "not-iterable": "for x in n:\n    v += 1",
    "index-dtype": "r[r[0]] = 1.0",
    "integer-division": "v = n / 2",
    "float-floordiv": "r[0] = r[1] // 2",
    "bitwise-float": "v = r[0] & 1",
    "bitwise-float-not": "v = ~r[0]",
    "not-a-value:not": "v = T.bitwise_not(T.serial(3))",
    "unknown-name": "T.alloc_sharde((4,), T.float32)",
    "gemm-inner": "B_s = T.alloc_shared((64, 128), T.float16)\nC_l = T.alloc_fragment((64, 128), T.float32)\nT.gemm(s, B_s, C_l)",
    "gemm-inner:transposed": "B_s = T.alloc_shared((64, 32), T.float16)\nT.gemm(s, B_s, f)",
    "gemm-inner:transposed-twice": "B_s = T.alloc_shared((32, 64), T.float16)\nT.gemm(s, B_s, f, transpose_B=True)",
    "gemm-rows": "B_s = T.alloc_shared((32, 64), T.float16)\nC_l = T.alloc_fragment((32, 64), T.float32)\nT.gemm(s, B_s, C_l)",
    "gemm-columns": "B_s = T.alloc_shared((32, 16), T.float16)\nT.gemm(s, B_s, f)",
    "gemm-alias": "w = T.alloc_fragment((64, 64), T.float32)\nT.gemm(w, f, f)",
    "gemm-rank": "T.gemm(r, s, f)",
    "gemm-scope": "T.gemm(A[0:64, 0:32], s, f)",
    "gemm-dynamic": "T.gemm(s[0:n, 0:32], s, f)",
    "gemm-operand-dtypes": "B_s = T.alloc_shared((32, 64), T.float32)\nT.gemm(s, B_s, f)",
    "gemm-dtype": "a = T.alloc_shared((64, 64), T.int32)\nb = T.alloc_shared((64, 64), T.int32)\nc = T.alloc_fragment((64, 64), T.int32)\nT.gemm(a, b, c)",
    "gemm-precision": 'T.gemm(s, s, f, transpose_B=True, precision="tf23")',
    "gemm-precision:halves": 'T.gemm(s, s, f, transpose_B=True, precision="tf32")',
    "gemm-result-dtype": "B_s = T.alloc_shared((32, 64), T.float16)\nC_l = T.alloc_fragment((64, 64), T.int32)\nT.gemm(s, B_s, C_l)",
    "reduce-dim": "T.reduce_sum(f, r, dim=2)",
    "reduce-shape": "T.reduce_max(f, s)",
    "reduce-bits": "T.reduce_bitand(f, r)",
    "reduce-alias": "T.reduce_sum(f, f[:, 0:1])",
    "reduce-scope": "T.reduce_sum(A, r)",
    "layout-key": "T.annotate_layout({3: None})",
    "safe-value-key": "T.annotate_safe_value({s: 1.0})",
    "safe-value": "T.annotate_safe_value({A: r[0]})",
    "safe-value:text": "T.annotate_safe_value({A: 'float99'})",
    "hardware-only:prelude": 'with T.Kernel(2, prelude="#include <x>") as by:\n    pass',
    "select-dtypes": "r[0] = T.Select(n > 0, r[1], n)",
    "math-dtype": "r[0] = T.exp2(n)",
    "dtype-call": "r[0] = T.float32(1, 2)",
    "reinterpret-width": "v = T.reinterpret(s[0, 0], T.int32)",
    "python-division": "w = T.alloc_shared((T.ceildiv(64, 0),), T.float32)",
    "not-a-scalar": "T.fill(f, s)",
    "not-a-tile": "T.cumsum(f[0, 0])",
    "alloc-in-parallel": "for i in T.Parallel(4):\n    w = T.alloc_shared((4,), T.float32)",
    "view-operand": "w = T.reshape(f[0, 0:4], (2, 2))",
    "view-size": "w = T.view(f, (64, 64), T.float16)",
    "view-size:symbol": "w = T.reshape(A, (n, 7))",
    "copy-rank": "T.copy(f, r[0])",
    "copy-shape": "T.copy(f, r)",
    "copy-extent": "T.copy(A[0:64, 0:32], f)",
    "dynamic-alloc": "w = T.alloc_shared((n, 4), T.float32)",
    "empty-alloc": "w = T.alloc_shared((0, 4), T.float32)",
    "not-yet": "T.gemm_sp(s, s, f)",
    "hardware-only": "T.tcgen05_mma(s, s, f)",
    "hardware-only:cluster": "T.cluster_sync()",
    "hardware-only:tma": "T.tma_load(T.create_tma_descriptor(1), s)",
    "random-generator": "T.rng_init(7, generator='curandStateXORWOW_t')",
    "no-random": "r[0] = T.rng_rand()",
    "random-float": "T.rng_init(7)\nr[0] = T.rng_rand_float(dist='cauchy')",
    "reducer-op": "T.alloc_reducer(4, op='mean')",
    "reducer-dtype": "T.alloc_reducer(4, T.float32, op='bitor')",
    "not-a-reducer": "T.finalize_reducer(f)",
    "not-a-reducer:element": "T.reducer_update(r, 1.0)",
    "reducer-store": "q = T.alloc_reducer(64, T.float32, op='max')\nT.clear(q)\nfor i in T.Parallel(64):\n    q[i] = r[i]",
    "reducer-store:view": "q = T.reshape(T.alloc_reducer(64, T.float32), (8, 8))\nfor i in T.Parallel(8):\n    q[i, i] += r[i]",
    "reducer-read": "q = T.alloc_reducer(64, T.float32)\nT.clear(q)\nT.copy(q, r)",
    "reducer-fill": "q = T.alloc_reducer(64, T.float32)\nT.fill(q, 1)",
    "repeated-atomic:reducer": "q = T.alloc_reducer(64, T.float32)\nT.clear(q)\nq[0] += 1.0",
    "scan-shape": "T.cumsum(f, s)",
    "scan-alias": "T.cumsum(f[0:8, :], f[8:16, :])",
    "scan-dtype": "w = T.alloc_shared((4,), T.bool)\nT.cumsum(w)",
    "transpose-shape": "T.transpose(s, f)",
    "transpose-rank": "T.transpose(r, f)",
    "im2col-tile": "T.im2col(A, r, 0, 0, 3, 1, 1, 0)",
    "im2col-image": "T.im2col(A, f, 0, 0, 3, 1, 1, 0)",
    "persistent-domain": "for i in T.Persistent([], 4, bx):\n    T.clear(f)",
    "host-value:workspace": "w = T.alloc_global((4, bx), T.float32)",
    "repeated-atomic": "T.atomic_add(A[0, 0], 1.0)",
    "memory-order": "T.atomic_add(A[0, 0], 1.0, memory_order='acq')",
    "memory-order:load": "v = T.atomic_load(s[0, 0], memory_order=3)",
    "atomic-prev": "T.atomic_add(A[0:64, 0:64], f, return_prev=True)",
    "atomic-place": "T.atomic_max(A, 1.0)",
    "atomic-scope": "T.atomic_add(r[0], 1.0)",
    "atomic-dtype": "T.atomic_xor(A[0, 0], 1)",
    "not-a-scalar:atomic": "T.atomic_add(A[0, 0], None)",
    "hardware-only:keyword": "T.gemm(s, s, f, mbar=3)",
    "ldexp-exponent": "r[0] = T.ldexp(r[1], r[2])",
    "no-address": "T.address_of(r[0] + 1)",
    "scheduler-size": "tiles = T.PersistentTileScheduler(4, n, swizzle_size=0)",
    "tile-op-in-parallel": "for i in T.Parallel(4):\n    T.clear(f)",
    "unknown-keyword": "for k in T.Pipelined(4, num_stage=2):\n    pass",
    "argument-count": "T.copy(f)",
    "eager-only": 'M = T.const("M")',
    "limit-kind": "v = T.max_value(T.float32x4)",
    "limit-of": 'v = T.max_value("float31")',
    "no-infinity": "v = T.infinity(T.int32)",
    "dtype-of": 'd = T.dtype("float31")',
}

PRIM = "import tiledsl.language as T\n\n\n@T.prim_func\ndef kernel({parameters}):\n{body}"
LAUNCH = "with T.Kernel(4) as bx:\n    A[bx] = 0.0"


def prim(parameters: str, body: str = LAUNCH) -> str:
    return PRIM.format(parameters=parameters, body=textwrap.indent(body, "    "))


VECTOR = "A: T.Tensor((64,), T.float32)"

# ident -> a whole module.
MODULES = {
    "with-names": prim(VECTOR, "with T.Kernel(2, 2) as bx, by:\n    A[bx] = 0.0"),
    "not-a-value:grid-tuple": prim(VECTOR, "with T.Kernel((2, 2)) as (bx, by):\n    A[bx] = 0.0"),
    "not-a-value:symbol": prim("A: T.Tensor(('m', 4), T.float32)"),
    "param-unannotated:method": "import tiledsl.language as T\n\n\nclass Kernels:\n    @T.prim_func\n    def kernel(self, A: T.Tensor((64,), T.float32)):\n        pass",
    "index-tuple:grid": prim(VECTOR, "with T.Kernel(2, 2) as bx:\n    A[bx * 32] = 0.0"),
    "not-a-value:grid": prim(VECTOR, "with T.Kernel(2, 2) as bx:\n    A[bx] = 0.0").replace("A[bx]", "A[T.min(bx, 3)]"),
    "rank-mismatch:grid": prim(VECTOR, "with T.Kernel(2, 2) as bx:\n    A[bx] = 0.0"),
    "unpack-scalar:grid": prim(VECTOR, "with T.Kernel(2) as (bx, by):\n    A[bx] = 0.0"),
    "unpack-count:grid": prim(VECTOR, "with T.Kernel(2, 2, 2) as (bx, by):\n    A[bx] = 0.0"),
    "not-a-value:no-with": prim(VECTOR, "bx = T.Kernel(4)\nA[bx] = 1.0"),
    "unknown-dtype:extent": prim("A: T.Tensor(64, 64)"),
    "param-annotation:no-shape": prim("A: T.Tensor"),
    "unknown-name:constexpr": prim(f"{VECTOR}, block: T.constexpr"),
    "param-annotation": prim("A: 3"),
    "symbol-dtype": 'import tiledsl.language as T\n\nm = T.dynamic("m", "float32")',
    "symbol-name:no-text": "import tiledsl.language as T\n\nm = T.dynamic(3)",
    "host-value": prim(f"{VECTOR}, x: T.float32", "with T.Kernel(T.cast(T.exp2(x), T.int32)) as bx:\n    A[bx] = 0.0"),
    "im2col-window": prim(
        "A: T.Tensor((1, 8, 8, 4), T.float32)",
        "with T.Kernel(1) as bx:\n    s = T.alloc_shared((8, 8), T.float32)\n    T.im2col(A, s, 0, 0, 3, 0, 1, 1)",
    ),
    "host-value:threads": prim(VECTOR, "with T.Kernel(1, threads=T.cast(A[0], T.int32)) as bx:\n    A[bx] = 0.0"),
    "host-value:shape": 'import tiledsl.language as T\n\nn = T.dynamic("n")\nA = T.Tensor((n, T.cast(T.exp2(T.cast(n, T.float32)), T.int32)), T.float32)',
    "symbol-name": 'import tiledsl.language as T\n\nm = T.dynamic("2m")',
    "negative-extent": prim("A: T.Tensor((-4,), T.float32)"),
    "stride-count": prim("A: T.StridedTensor((4, 4), (1,), T.float32)"),
    "not-tracing": "import tiledsl.language as T\n\nT.clear(None)",
    "foreign-buffer": prim(VECTOR, "with T.Kernel(1) as bx:\n    kept.append(A)").replace(
        "@T.prim", "kept = []\n\n\n@T.prim", 1
    )
    + "\n\n\n@T.prim_func\ndef second(B: T.Tensor((64,), T.float32)):\n    with T.Kernel(1) as bx:\n        T.copy(kept[0], B)",
    "foreign-value": prim(VECTOR, "with T.Kernel(1) as bx:\n    kept.append(bx)").replace(
        "@T.prim", "kept = []\n\n\n@T.prim", 1
    )
    + "\n\n\n@T.prim_func\ndef second(B: T.Tensor((64,), T.float32)):\n    with T.Kernel(1) as bx:\n        B[kept[0]] = 1.0",
    "outside-kernel": prim(VECTOR, "T.clear(A)"),
    "outside-kernel:between": prim(VECTOR, f"{LAUNCH}\nx = A[0]\n{LAUNCH}"),
    "outside-region:kernel": prim(VECTOR, f"{LAUNCH}\nwith T.Kernel(2):\n    A[bx] = 1.0"),
    "if-outside-kernel": prim(f"{VECTOR}, n: T.int32", f"if n > 3:\n    pass\n{LAUNCH}"),
    "loop-outside-kernel": prim(f"{VECTOR}, n: T.int32", f"for i in range(n):\n    pass\n{LAUNCH}"),
    "grid-rank": prim(VECTOR, "with T.Kernel(1, 2, 3, 4) as bx:\n    pass"),
    "grid-negative": prim(VECTOR, "with T.Kernel(-1) as bx:\n    pass"),
    "thread-rank": prim(VECTOR, "with T.Kernel(1, threads=(1, 2, 3, 4)) as bx:\n    pass"),
    "thread-count": prim(VECTOR, "with T.Kernel(1, threads=2048) as bx:\n    pass"),
    "no-source": 'import tiledsl.language as T\n\nexec("def kernel(): pass")\nT.prim_func(kernel)',
    "not-a-function": "import tiledsl.language as T\n\nT.prim_func(lambda: 0)",
    "call-prim-func": prim(VECTOR) + "\n\n\nkernel(None)",
    "decorates-function": "import tiledsl.language as T\n\n\n@T.prim_func\nclass kernel:\n    pass",
    "no-kernel": prim(VECTOR, "pass"),
    "param-kind": prim("A: T.Tensor((64,), T.float32) = None"),
    "param-unannotated": prim("A"),
    "unbound-symbol": prim(VECTOR, 'm = T.dynamic("m")\nwith T.Kernel(m) as bx:\n    A[bx] = 0.0'),
    "annotation-name": "from __future__ import annotations\n\n" + prim("A: T.Tensor((rows,), T.float32)"),
    "promotion": prim(f"{VECTOR}, x: T.float32", "with T.Kernel(1) as bx:\n    A[0] = x + pointer").replace(
        "\n\n\n@T",
        "\nfrom tiledsl import ir\nfrom tiledsl.frontend.values import Value\n\n"
        'pointer = Value(ir.Var("p", T.dtype("handle")))\n\n\n@T',
        1,
    ),
    "view-strided": prim(
        "A: T.StridedTensor((64,), (2,), T.float32)", "with T.Kernel(1) as bx:\n    w = T.reshape(A, (8, 8))"
    ),
    "layout-global": prim(VECTOR, "with T.Kernel(1) as bx:\n    T.annotate_layout({A: None})"),
    "layout-not-one-to-one": prim(VECTOR, "with T.Kernel(1) as bx:\n    T.annotate_layout({A: lambda i: i // 2})"),
    "layout-tensor": prim(
        "A: T.StridedTensor((64,), (2,), T.float32)", "with T.Kernel(1) as bx:\n    T.annotate_layout({A: lambda i: i})"
    ),
    "layout-twice": prim(
        VECTOR,
        "with T.Kernel(1) as bx:\n    T.annotate_layout({A: lambda i: i})\n    T.annotate_layout({A: lambda i: i ^ 1})",
    ),
    "strided-arguments": prim("A: T.StridedTensor[4]"),
}

EAGER = """\
import tiledsl.language as T


def kernel(A, B, block=64, *, scale):
    M = T.const("M")
    A: T.Tensor[(M,), T.float32]
    B: T.Tensor[(M,), T.float32]
    C = T.empty((M,), T.float32)
    with T.Kernel(T.ceildiv(M, block)) as bx:
        for i in T.Parallel(block):
            C[bx * block + i] = A[bx * block + i] + B[bx * block + i] * scale
    return C
"""

# ident -> (text to replace in EAGER, its replacement)
EAGERS = {
    "const-without-array": ("", ""),
    "index-dtype:option": ("block=64", "block=64.0"),
    "undeclared-argument": ("    A: T.Tensor", "    n = A.shape[0]\n    A: T.Tensor"),
    "unbound-const": ('M = T.const("M")', 'M, K = T.const("M, K")'),
    "symbol-name:const-no-text": ('T.const("M")', "T.const(3)"),
    "declare-unknown": ("    C = T.empty", "    D: T.Tensor[(M,), T.float32]\n    C = T.empty"),
    "declare-twice": ("    C = T.empty", "    A: T.Tensor[(M,), T.float32]\n    C = T.empty"),
    "return-not-empty": ("return C", "return C, A"),
    "empty-not-returned": ("return C", "return"),
    "missing-option": ("", ""),
    "argument-not-declared": ("scale):\n", "scale, D):\n    if block < 0:\n        D: T.Tensor[(4,), T.float32]\n"),
    "scalar-in-shape": ('block=64, *, scale):\n    M = T.const("M")\n', "M: T.int32, block=64, *, scale):\n"),
    "unbound-symbol:output": ("C = T.empty((M,)", 'C = T.empty((T.dynamic("rows"),)'),
    "const-rank": ("A: T.Tensor[(M,)", "A: T.Tensor[(1, M)"),
}


def load(source: str, file: str) -> dict[str, Any]:
    """Runs a module whose source is known to linecache only, as in a notebook."""
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    names: dict[str, Any] = {"__name__": "kernels"}
    exec(compile(source, file, "exec", dont_inherit=True), names)
    return names


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Another test's file may have that name."""
    yield
    linecache.cache.pop("kernels.py", None)


def indented(statements: str) -> str:
    return BODY + textwrap.indent(statements, "        ") + "\n"


def raised(run: Callable[[], Any]) -> TileError:
    with pytest.raises(TileError) as info:
        run()
    return info.value


def check(case: str, error: TileError, golden: Callable[[str, str], None]) -> None:
    text = str(error)
    assert error.ident == case.split(":")[0]  # type: ignore[attr-defined]
    assert len(text.splitlines()) <= MAX_LINES
    assert error.loc is not None and error.loc.file.endswith("kernels.py"), "names the author's file"
    assert str(pickle.loads(pickle.dumps(error))) == text
    golden(f"errors/{case.replace(':', '-')}", f"{type(error).__name__}: {text}")


@pytest.mark.parametrize("case", IN_KERNEL)
def test_in_kernel(case: str, golden: Callable[[str, str], None]) -> None:
    check(case, raised(lambda: load(indented(IN_KERNEL[case]), "kernels.py")), golden)


@pytest.mark.parametrize("case", MODULES)
def test_module(case: str, golden: Callable[[str, str], None]) -> None:
    check(case, raised(lambda: load(MODULES[case] + "\n", "kernels.py")), golden)


@pytest.mark.parametrize("case", EAGERS)
def test_eager(case: str, golden: Callable[[str, str], None]) -> None:
    old, new = EAGERS[case]
    assert old in EAGER
    kernel = load(EAGER.replace(old, new), "kernels.py")["kernel"]
    array = ArgInfo((100,), as_dtype("float32"))
    first = None if case == "const-without-array" else array
    options = {} if case == "missing-option" else {"scale": 2.0}
    check(case, raised(lambda: EagerTemplate(kernel).bind({"A": first, "B": array}, options)), golden)


def test_every_diagnostic_has_a_golden() -> None:
    rooms = [Path(tiledsl.frontend.__file__).parent, Path(T.__file__).parent]
    idents = set()
    for path in [p for room in rooms for p in room.glob("*.py") if p.name not in ("reader.py", "strictness.py")]:
        for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.args:
                first = n.args[0]
                if n.func.id in ("error", "_error", "_check_equal") and isinstance(first, ast.Constant):
                    idents.add(first.value)
    assert len(idents) > 100
    assert idents - {case.split(":")[0] for case in [*IN_KERNEL, *MODULES, *EAGERS]} == set()


def test_no_other_raise() -> None:
    """The two rooms raise diagnostics through `error` only (else the count above would miss them)."""
    allowed = {"error", "_error", "not_yet", "AssertionError", "AttributeError", "_Learned", "self._stale", "failed"}
    allowed.add("refused")  # made by `error`; strictness.py raises it unless the compatibility layer gives a meaning
    rooms = [Path(tiledsl.frontend.__file__).parent, Path(T.__file__).parent]
    for path in [p for room in rooms for p in room.glob("*.py") if p.name not in ("reader.py", "strictness.py")]:
        for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(n, ast.Raise) and n.exc is not None:
                what = n.exc.func if isinstance(n.exc, ast.Call) else n.exc
                assert ast.unparse(what) in allowed, f"{path.name}:{n.lineno}"
