"""Compile gates: what NVRTC and ptxas make of the library's kernels, for four architectures, without a GPU."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sass
from library_calls import CALLS

import tiledsl
from tiledsl import kernels
from tiledsl.backend import load_backend
from tiledsl.backends.cuda_nvrtc import compile as nvrtc
from tiledsl.backends.simt.launching import joined
from tiledsl.backends.simt.lower import lower
from tiledsl.backends.simt.shared import shared_limit
from tiledsl.dtypes import as_dtype
from tiledsl.errors import TileNotImplementedError
from tiledsl.kernels.decode import head_tile
from tiledsl.kernels.tiles import GEMM_K, KV_TILE, product_tile, tiles_for

ARCHS = ("sm_80", "sm_90a", "sm_100a", "sm_120a")
pytestmark = [
    pytest.mark.skipif(bool(nvrtc.missing()), reason=f"NVRTC: {nvrtc.missing()}"),
    pytest.mark.skipif(not load_backend("cuda-emulator").probe().ok, reason="no C++ compiler"),
]

SPILLS: dict[tuple[str, str], int] = {}  # bytes of stack that a kernel may have on an architecture

# What calls of the library have to come down to, somewhere.
USED = {
    "matmul": {"HMMA", "LDSM", "LDGSTS", "STG"},
    "matmul_float64": {"STG"},
    "int8_matmul": {"IMMA", "LDGSTS"},
    "grouped_gemm": {"HMMA", "LDSM", "LDGSTS"},
    "flash_attention": {"HMMA", "LDSM", "LDGSTS"},
    "mla_decode": {"HMMA", "LDSM"},
}

# Names of the prelude, and the instruction that each of them is
PRELUDE = {
    r"tl_mma_m16n8k(16|8)_f32_(f16|bf16|tf32)\(": {"HMMA"},
    r"tl_mma_m16n8k32_i32_": {"IMMA"},
    r"tl_mma_m16n8k32_f32_e\dm": {"QMMA", "HMMA"},  # HMMA behind conversions: sm_90 and sm_100 have others for 8 bits
    r"tl_ldmatrix_x": {"LDSM"},
    r"tl_cp_async_(4|8|16)": {"LDGSTS"},
    r"tl_sync\(\)": {"BAR"},
}


def gate(function: Any, arch: str) -> set[str]:
    """Compiles and checks a kernel's text; the instructions it has."""
    text = joined(lower(function, arch))
    made = nvrtc.compile_text(text, arch)
    assert made.kernels and not made.warnings, made.warnings
    for name, used in made.kernels.items():
        assert max(used.stack, used.spill_stores, used.spill_loads) <= SPILLS.get((name, arch), 0), (
            f"{name} on {arch}: {used}"
        )
    found: set[str] = set().union(*sass.instructions(made.cubin).values())
    for pattern, one_of in PRELUDE.items():
        assert not re.search(pattern, text) or found & one_of, f"{pattern} on {arch}: {sorted(found)}"
    return found


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", CALLS)
def test_kernels_of_the_library_compile(name: str, arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kernel that a call of the library launches, with the tiles of that architecture, keeps its arrays in
    registers, fits into shared memory, and has the instructions that its text names."""
    seen: set[tiledsl.JITKernel] = set()
    found: set[str] = set()
    run = tiledsl.JITKernel.__call__

    def compiled(kernel: tiledsl.JITKernel, *args: Any, **kw: Any) -> Any:
        if kernel not in seen:
            seen.add(kernel)
            found.update(gate(kernel.function, arch))
        return run(kernel, *args, **{**kw, "target": "numpy"})

    monkeypatch.setattr(tiledsl.JITKernel, "__call__", compiled)
    CALLS[name](np.random.default_rng(1), f"cuda-emulator:{arch}")
    assert seen, "a call launches a kernel"
    assert USED.get(name, set()) <= found


BF16 = as_dtype("bfloat16")


def large(name: str, arch: str) -> tiledsl.JITKernel:
    """A kernel of the bench with the tiles that it has at full size."""
    tiles = tiles_for(f"cuda-emulator:{arch}")
    rows, columns = product_tile(tiles, 8192, 8192, GEMM_K, 2)
    grouped = product_tile(tiles, 4096, 4096, GEMM_K, 2, grouped=True)
    heads, threads = head_tile(tiles, 128, 576, 512, 2)
    makers: dict[str, Callable[[], Any]] = {
        "gemm": lambda: kernels.matmul_kernel(rows, columns, GEMM_K, BF16, BF16),
        "attention": lambda: kernels.flash_attention_kernel(max(tiles.attention), KV_TILE, 128, True, BF16),
        "mla-decode": lambda: kernels.attention_decode_kernel("split", heads, 576, 512, BF16, threads=threads),
        "grouped": lambda: kernels.grouped_gemm_kernel(*grouped, GEMM_K, BF16, BF16, as_dtype("int32")),
        "rms-norm": lambda: kernels.rms_norm_kernel(4, 512, BF16, BF16),
    }
    made: tiledsl.JITKernel = makers[name]()
    return made


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", ["gemm", "attention", "mla-decode", "grouped", "rms-norm"])
def test_kernels_of_the_bench_compile(name: str, arch: str) -> None:
    if (name, arch) == ("mla-decode", "sm_120a"):
        with pytest.raises(TileNotImplementedError, match=r"sm_120a has 101376 per block: .*K_s 64x576 bfloat16"):
            gate(large(name, arch).function, arch)
        return
    found = gate(large(name, arch).function, arch)
    assert {"HMMA", "LDSM"} <= found or name == "rms-norm"


@pytest.mark.parametrize("arch", ARCHS)
def test_tiles_fit_whatever_is_multiplied(arch: str) -> None:
    """Products of large matrices of any type, with the architecture's own tiles."""
    tiles = tiles_for(f"cuda-emulator:{arch}")
    for dtype in ("float64", "float32", "float16"):
        d = as_dtype(dtype)
        sizes = product_tile(tiles, 4096, 4096, GEMM_K, d.bytes)
        program = lower(kernels.matmul_kernel(*sizes, GEMM_K, d, d).function, arch)
        assert program.kernels[0].shared_bytes <= shared_limit(arch)


# -- the numbers of instructions --------------------------------------------------------------------------------------

SINGLE = {
    "HMMA": "tl_mma_m16n8k16_f32_bf16(d, a, b);",
    "IMMA": "tl_mma_m16n8k32_i32_s8_s8(i, a, b);",
    "DMMA": "tl_mma_m8n8k4_f64(w, w + 2, w + 3);",
    "LDSM": "tl_ldmatrix_x4(a, tl_shared() + 16 * threadIdx.x);",
    "LDGSTS": "tl_cp_async_16(tl_shared() + 16 * threadIdx.x, x + 4 * threadIdx.x);",
    "BAR": "tl_sync();",
}


def single(statement: str) -> str:
    return f"""extern "C" __global__ void __launch_bounds__(32) k(tl_u32* x) {{
  tl_u32 a[4], b[2];
  float d[4];
  int i[4];
  double w[4];
  for (int e = 0; e < 4; ++e) {{ a[e] = x[e]; d[e] = tl_f32_bits(x[8 + e]); }}
  for (int e = 0; e < 4; ++e) {{ i[e] = x[20 + e]; w[e] = ((double*)x)[20 + e]; }}
  b[0] = x[5]; b[1] = x[6];
  {statement}
  for (int e = 0; e < 4; ++e)
    x[e * 32 + threadIdx.x] = a[e] + tl_bits_f32(d[e]) + i[e] + b[e / 2] + (tl_u32)tl_bits_f64(w[e]);
}}"""


@pytest.mark.parametrize("arch", ARCHS)
def test_numbers_of_instructions(arch: str) -> None:
    """Each is in the kernel that has its statement, and not in the kernel without."""
    without = sass.instructions(nvrtc.compile_text(single(""), arch).cubin)["k"]
    assert without["LDG"] and without["STG"] and not without.keys() & SINGLE.keys()
    for name, statement in SINGLE.items():
        found = sass.instructions(nvrtc.compile_text(single(statement), arch).cubin)["k"]
        assert found[name] >= 1, f"{name} on {arch}: {found}"
        assert not (found.keys() & SINGLE.keys()) - {name}
