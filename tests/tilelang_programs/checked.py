"""What `--target numpy:checked` reports of TileLang programs, each with the kernel's line."""

import re

import pytest
import tilelang
import tilelang.language as T
import torch


def reported(kernel, message, *args):
    """Compiling or running it is refused, and the message names this file."""
    with pytest.raises(Exception, match=message) as e:
        tilelang.compile(kernel)(*args)
    assert re.search(r"checked\.py:\d+", str(e.value)), str(e.value)


def test_trap_7_a_neighbours_element():
    @T.prim_func
    def main(A: T.Tensor((8,), "int32")):
        with T.Kernel(1, threads=8):
            s = T.alloc_shared((8,), "int32")
            T.copy(A, s)
            for i in T.Parallel(8):
                s[i] = s[(i + 1) % 8]
            T.copy(s, A)

    reported(main, "s", torch.arange(8, dtype=torch.int32, device="cuda"))


def test_trap_7_two_writers_of_one_element():
    @T.prim_func
    def main(A: T.Tensor((8,), "int32"), B: T.Tensor((4,), "int32")):
        with T.Kernel(1, threads=8):
            for i in T.Parallel(8):
                B[i // 2] = A[i]

    a = torch.arange(8, dtype=torch.int32, device="cuda")
    reported(main, "B", a, torch.zeros(4, dtype=torch.int32, device="cuda"))
    b = torch.zeros(4, dtype=torch.int32, device="cuda")
    tilelang.compile(main)(torch.full_like(a, 7), b)  # the same value may be written twice
    assert b.tolist() == [7] * 4


def test_trap_12_a_barrier_that_some_threads_miss():
    @T.prim_func
    def main(A: T.Tensor((64,), "int32")):
        with T.Kernel(1, threads=64):
            tx = T.get_thread_binding()
            if tx < A[0]:
                T.sync_threads()
            A[tx] = tx

    reported(main, "barrier|sync", torch.full((64,), 40, dtype=torch.int32, device="cuda"))


def test_trap_6_shared_tiles_are_not_guarded():
    @T.prim_func
    def main(A: T.Tensor((8,), "int32"), B: T.Tensor((8,), "int32")):
        with T.Kernel(1, threads=8):
            s = T.alloc_shared((4,), "int32")
            T.copy(A[0:4], s)
            for i in T.Parallel(8):
                B[i] = s[A[i]]

    b = torch.zeros(8, dtype=torch.int32, device="cuda")
    reported(main, "out of range", torch.arange(8, dtype=torch.int32, device="cuda"), b)


@pytest.mark.parametrize("where", ["fragment", "shared", "output"])
def test_trap_20_what_nobody_has_written(where):
    @tilelang.jit(out_idx=[0])
    def made():
        @T.prim_func
        def main(B: T.Tensor((4,), "float32"), A: T.Tensor((4,), "float32")):
            with T.Kernel(1, threads=32):
                f = T.alloc_fragment((4,), "float32") if where == "fragment" else T.alloc_shared((4,), "float32")
                if where != "output":
                    for i in T.Parallel(3):
                        f[i] = 1.0
                    T.copy(f, A)
                else:
                    T.copy(B, A)
                T.fill(B, 1)

        return main

    with pytest.raises(Exception, match=r"(?s)(written|initiali|uninit).*checked\.py:\d+"):
        made()(torch.zeros(4, device="cuda"))
