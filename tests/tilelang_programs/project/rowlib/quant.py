"""Rows as float8 with a scale per group, and back."""

import os

import tilelang
import torch
from tilelang import language as T

from rowlib.config import is_blackwell, multiprocessors

PASSES = {
    tilelang.PassConfigKey.TL_DISABLE_WARP_SPECIALIZED: True,
    tilelang.PassConfigKey.TL_PTXAS_REGISTER_USAGE_LEVEL: 10,
    tilelang.PassConfigKey.TL_DISABLE_VECTORIZE_256: not is_blackwell(),
}


@tilelang.jit(pass_configs=PASSES)
def get_cast_kernel(hidden: int, group: int, in_dtype: T.dtype, round_scale: bool, num_sms: int):
    num_tokens = T.dynamic("num_tokens")
    rows, groups = 8, hidden // group

    @T.prim_func
    def cast_kernel(
        x: T.Tensor[(num_tokens, hidden), in_dtype],
        out: T.Tensor[(num_tokens, hidden), T.float8_e4m3fn],
        sf: T.Tensor[(num_tokens, groups), T.float32],
    ):
        with T.Kernel(num_sms, threads=128) as pid:
            tile = T.alloc_fragment((rows, group), in_dtype)
            amax = T.alloc_fragment((rows,), T.float32)
            inverse = T.alloc_fragment((rows,), T.float32)
            narrow = T.alloc_fragment((rows, group), T.float8_e4m3fn)
            for work in T.serial(pid, T.ceildiv(num_tokens, rows) * groups, num_sms):
                m, g = work // groups * rows, work % groups
                T.copy(x[m, g * group], tile)
                T.reduce_absmax(tile, amax, dim=1)
                for i in T.Parallel(rows):
                    scale = T.alloc_var(T.float32)
                    scale = T.max(amax[i], 1e-4) / 448.0
                    if round_scale:
                        exponent = ((T.reinterpret(scale, T.uint32) - 1) >> 23) + 1 - 127
                        scale = T.reinterpret((exponent + 127) << 23, T.float32)
                        inverse[i] = T.reinterpret((127 - exponent) << 23, T.float32)
                    else:
                        inverse[i] = 448.0 / T.max(amax[i], 1e-4)
                    if m + i < num_tokens:
                        sf[m + i, g] = scale
                for i, j in T.Parallel(rows, group):
                    narrow[i, j] = tile[i, j] * inverse[i]
                T.copy(narrow, out[m, g * group])

    return cast_kernel


def cast(x: torch.Tensor, group: int = 128, round_scale: bool = False, out: torch.Tensor | None = None):
    assert x.is_cuda and x.is_contiguous() and x.dim() == 2 and x.shape[1] % group == 0
    num_tokens, hidden = x.shape
    kernel = get_cast_kernel(hidden, group, T.dtype(x.dtype), round_scale, multiprocessors())
    if int(os.getenv("ROWLIB_PRINT_KERNEL_SOURCE", "0")):
        print(kernel.get_kernel_source())
    out = torch.empty_like(x, dtype=torch.float8_e4m3fn) if out is None else out
    sf = torch.empty((num_tokens, hidden // group), dtype=torch.float32, device="cuda")
    if num_tokens > 0:
        kernel(x, out, sf)
    return out, sf


def cast_reference(x: torch.Tensor, group: int = 128, round_scale: bool = False):
    rows, hidden = x.shape
    parts = x.float().view(rows, hidden // group, group)
    amax = parts.abs().amax(dim=-1).clamp(1e-4)
    scale, inverse = amax / 448.0, torch.full_like(amax, 448.0) / amax
    if round_scale:
        scale = torch.exp2(torch.ceil(torch.log2(scale)))
        inverse = 1 / scale
    return (parts * inverse.unsqueeze(-1)).to(torch.float8_e4m3fn).view(rows, hidden), scale
