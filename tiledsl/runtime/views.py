"""What an argument is: NumPy arrays, torch CPU tensors and DLPack objects, seen without copying.

torch is never imported here: a tensor can only exist where somebody else has imported it.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from tiledsl.analysis.symbols import row_major
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import TileTypeError, TileValueError

__all__ = [
    "View",
    "address_of",
    "allocate",
    "allocator",
    "as_numpy",
    "is_array",
    "is_hollow",
    "is_torch",
    "kind_of",
    "view",
]

_UNPACKED = {np.dtype(getattr(ml_dtypes, n)).name for n in ("int4", "uint4", "float4_e2m1fn")}
_KDL_CPU = (1, 3)  # DLPack device types: CPU, and CUDA's page-locked host memory
_DEVICES = {2: "cuda", 4: "opencl", 7: "vulkan", 8: "metal", 10: "rocm", 13: "cuda"}


@dataclass(frozen=True, slots=True)
class View:
    """An array argument. storage: its own element type by name; shape, strides: in its elements; array: the
    NumPy array behind a DLPack object (None for others until it is asked for)."""

    obj: Any
    kind: str
    storage: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    address: int
    writable: bool
    array: Any = None

    def text(self) -> str:
        return f"{self.storage}[{', '.join(map(str, self.shape))}]"


def is_torch(x: Any) -> bool:
    if type(x) is np.ndarray:
        return False
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, getattr(torch, "Tensor", ()))


def is_hollow(x: Any) -> bool:
    """True for a torch tensor without memory: on the meta device, or a fake one of a tracer such as torch.compile."""
    return is_torch(x) and (x.is_meta or any(t.__name__ == "FakeTensor" for t in type(x).__mro__))


def kind_of(x: Any) -> str | None:
    """ "numpy", "torch", "cuda" (memory of a GPU by `__cuda_array_interface__`: CuPy, Numba), "dlpack", or None when x
    is no array."""
    if isinstance(x, np.ndarray):
        return "numpy"
    if is_torch(x):
        return "torch"
    if hasattr(x, "__cuda_array_interface__"):
        return "cuda"
    return "dlpack" if hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__") else None


def is_array(x: Any) -> bool:
    """True for what a tensor parameter may be given."""
    return kind_of(x) is not None


def device_of(x: Any) -> str:
    """ "cpu", "cuda" ... where an argument lies; scalars lie on the CPU."""
    if is_torch(x):
        return str(x.device.type)
    if isinstance(x, np.ndarray) or not hasattr(x, "__dlpack_device__"):
        return "cuda" if kind_of(x) == "cuda" else "cpu"
    device = int(x.__dlpack_device__()[0])
    return "cpu" if device in _KDL_CPU else _DEVICES.get(device, f"DLPack device {device}")


def _probe_address() -> Callable[[Any], int]:
    """The quickest way to an array's address that is right in this interpreter.

    CPython keeps it in the array object behind its header (0.2 us instead of 1.1 us); tried on an array first.
    """

    def slow(x: Any) -> int:
        return int(x.__array_interface__["data"][0])

    def quick(x: Any) -> int:
        return read(id(x) + offset).value or 0

    read, offset = ctypes.c_size_t.from_address, object.__basicsize__
    if sys.implementation.name == "cpython":
        samples = (np.zeros(3), np.zeros((4, 5), np.int8)[1:, 2:])
        if np.ndarray.__basicsize__ > offset + 8 and all(quick(s) == slow(s) for s in samples):
            return quick
    return slow


address_of = _probe_address()


def view(x: Any, name: str, device: str) -> View:
    """x as a View for a kernel that runs on `device`. Raises TileTypeError or TileValueError, naming `name`."""
    kind = kind_of(x)
    if kind is None:
        raise TileTypeError(
            f"{name}: expected an array, got {describe(x)}",
            help="pass a NumPy array, a torch tensor or an object with __dlpack__",
        )
    where = device_of(x)
    if where != device:
        raise TileValueError(
            f"{name}: lies on {where}, and the kernel runs on {device}",
            help=f"move it to {device}, or choose a target that runs on {where}",
        )
    if kind == "numpy":
        return _numpy_view(x, name, "numpy", x)
    if kind == "torch":
        return _torch_view(x, name)
    if kind == "cuda":
        return _cuda_view(x, name)
    if where == "cuda":
        return _cuda_dlpack_view(x, name)
    try:
        array = np.from_dlpack(x)
    except (BufferError, RuntimeError, TypeError) as e:
        raise _unshared(x, name, e) from None
    return _numpy_view(array, name, "dlpack", x)


def _unshared(x: Any, name: str, why: Exception) -> TileTypeError:
    help = "convert it to a NumPy array or a torch tensor"
    return TileTypeError(f"{name}: {type(x).__name__} cannot be shared through DLPack: {why}", help=help)


def _numpy_view(x: np.ndarray[Any, Any], name: str, kind: str, obj: Any) -> View:
    dtype, size = x.dtype, x.dtype.itemsize
    if dtype.name in _UNPACKED:
        raise TileTypeError(
            f"{name}: unpacked {dtype.name} arrays hold one element per byte, and kernels read two",
            help="pack it first: tiledsl.pack(x) gives uint8 with half as many columns",
        )
    if not dtype.isnative or not x.flags.aligned or any(s % size for s in x.strides):
        raise TileValueError(
            f"{name}: the memory of this {dtype} array is byte-swapped or not aligned to its elements",
            help="pass a copy in native layout: np.array(x, dtype=x.dtype.newbyteorder('='))",
        )
    strides = tuple(s // size for s in x.strides)
    return View(obj, kind, dtype.name, x.shape, strides, address_of(x), x.flags.writeable, x)


def _torch_view(x: Any, name: str) -> View:
    if str(x.layout) != "torch.strided" or x.is_neg() or x.is_conj():
        raise TileValueError(
            f"{name}: this torch tensor is not plain strided memory (layout {x.layout})",
            help="pass x.to_dense() or x.resolve_neg()",
        )
    storage = str(x.dtype).removeprefix("torch.")
    address = 0 if is_hollow(x) else x.data_ptr()
    return View(x, "torch", storage, tuple(x.shape), tuple(x.stride()), address, True)


def _cuda_view(x: Any, name: str) -> View:
    """What `__cuda_array_interface__` says (version 2 and later)."""
    facts = x.__cuda_array_interface__
    dtype = np.dtype(facts["typestr"])
    steps = facts.get("strides")
    if not dtype.isnative or (steps and any(s % dtype.itemsize for s in steps)):
        raise TileValueError(f"{name}: the memory of this {dtype} array is byte-swapped or not aligned to its elements")
    shape = tuple(facts["shape"])
    strides = tuple(s // dtype.itemsize for s in steps) if steps else row_major(shape)
    address, readonly = facts["data"]
    return View(x, "cuda", dtype.name, shape, strides, int(address or 0), not readonly)


def _cuda_dlpack_view(x: Any, name: str) -> View:
    """A GPU array of a library that shares through DLPack only."""
    try:
        from cuda.core.utils import StridedMemoryView
    except ImportError:
        raise TileTypeError(
            f"{name}: reading a {type(x).__name__} on a GPU through DLPack takes the package cuda-core",
            help="pip install cuda-core, or pass a torch tensor or a CuPy array",
        ) from None
    try:
        seen = StridedMemoryView.from_any_interface(x, stream_ptr=-1)
        storage = np.dtype(seen.dtype).name
    except (BufferError, RuntimeError, TypeError) as e:  # a type that cuda-core does not know
        raise _unshared(x, name, e) from None
    strides = tuple(seen.strides) if seen.strides else row_major(seen.shape)
    return View(x, "dlpack", storage, tuple(seen.shape), strides, int(seen.ptr), not seen.readonly, seen)


def describe(x: Any) -> str:
    """A value for an error message: its type, and itself where that is short."""
    kind = kind_of(x)
    if kind in ("numpy", "torch"):
        return f"{str(x.dtype).removeprefix('torch.')}[{', '.join(map(str, x.shape))}]"
    if x is None:
        return "None"
    text = repr(x)
    return f"{type(x).__name__} {text}" if isinstance(x, (int, float, str)) and len(text) <= 40 else type(x).__name__


def as_numpy(x: Any, dtype: DType) -> np.ndarray[Any, Any]:
    """The memory of an accepted argument as a NumPy array of the parameter's type (packed types: bytes)."""
    wanted = np.dtype(np.uint8) if dtype.is_packed else dtype.numpy
    if is_torch(x):
        torch = sys.modules["torch"]
        x = x.detach()
        if wanted.isbuiltin != 1 or dtype.is_packed:  # types that torch does not hand to NumPy
            x = x.view(getattr(torch, {1: "uint8", 2: "int16", 4: "int32"}[wanted.itemsize]))
        x = x.numpy()
    elif not isinstance(x, np.ndarray):
        x = np.from_dlpack(x)
    array: np.ndarray[Any, Any] = x if x.dtype == wanted else x.view(wanted)
    return array


def allocate(shape: tuple[int, ...], dtype: DType, like: Any) -> Any:
    """An uninitialised row-major array of the kind and on the device of `like` (NumPy for None and scalars).

    Packed types are given as uint8 with half as many columns.
    """
    return allocator(shape, dtype, kind_of(like))(like)


def allocator(shape: tuple[int, ...], dtype: DType, kind: str | None) -> Callable[[Any], Any]:
    """`allocate` for arrays of one kind: a function of `like` alone."""
    name = dtype.name
    if dtype.is_packed:
        shape, name = (*shape[:-1], -(-shape[-1] // 2)), "uint8"
    if kind == "torch":
        torch = sys.modules["torch"]
        torch_type = getattr(torch, name)
        return lambda like: torch.empty(shape, dtype=torch_type, device=like.device)
    if kind == "cuda":
        return lambda like: _like_cuda(shape, name, like)
    numpy_type, empty = as_dtype(name).numpy, np.empty
    if kind == "dlpack":
        return lambda like: _from_numpy(empty(shape, numpy_type), like)
    return lambda like: empty(shape, numpy_type)


def _like_cuda(shape: tuple[int, ...], name: str, like: Any) -> Any:
    """An array of CuPy, or of what else names its package's `empty`."""
    package = type(like).__module__.partition(".")[0]
    try:
        return sys.modules[package].empty(shape, dtype=name)
    except (AttributeError, KeyError, TypeError):  # CuPy has no bfloat16 and no float8
        raise _makes_none(package, name) from None


def _makes_none(package: str, name: str) -> TileTypeError:
    return TileTypeError(f"{package} makes no arrays of {name}", help="use torch tensors, or pass the output as out=")


def _from_numpy(array: np.ndarray[Any, Any], like: Any) -> Any:
    """The array as the kind of a DLPack object, where that kind says how; else as it is. Raises TileTypeError for an
    object on a GPU: NumPy's memory is not there."""
    if device_of(like) != "cpu":
        raise _makes_none(type(like).__name__, array.dtype.name)
    return like.__array_namespace__().from_dlpack(array) if hasattr(like, "__array_namespace__") else array
