"""What a surface of one's own is built on: other spellings of the language, other meanings where it refuses.

`tiledsl.compat` is one, of TileLang's programs. Beside this it takes `tiledsl.language`, `tiledsl.jit`,
`tiledsl.compile`, `tiledsl.tune`, `tiledsl.backend` (which targets there are), errors, dtypes and knobs.

    trace_prim_func(pyfunc, names)  what T.prim_func does, with the names of another frame
    lenient(report)                 context manager: what language.md 0.3 and 0.6 refuse has TileLang's meaning in
                                    kernels traced inside; report(error, meaning) is called for each
    CONTROL, BufferRef              what rewritten statements call; what tensors and tiles are in a traced kernel
    count_work(function, env)       operations and bytes of a function's kernels
    evaluate(expression, env)       the value of an extent, from those of variables
    is_array(x)                     whether a kernel takes x as an array
"""

from __future__ import annotations

from tiledsl.frontend import CONTROL, BufferRef, lenient, trace_prim_func
from tiledsl.runtime import count_work, evaluate, is_array

__all__ = ["BufferRef", "CONTROL", "count_work", "evaluate", "is_array", "lenient", "trace_prim_func"]
