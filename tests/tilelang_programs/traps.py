"""What a naive implementation gets wrong, and what only TileLang accepts."""

import pytest
import tilelang
import tilelang.language as T
import torch


def run(func, *args, **kw):
    return tilelang.compile(func, **kw)(*args)


def test_a_layout_of_a_global_tensor_permutes_its_memory():
    def layout():
        return T.Layout((4, 8), lambda i, j: [j, i])

    @T.prim_func
    def store(A: T.Tensor((4, 8), "int32"), B: T.Tensor((4, 8), "int32")):
        with T.Kernel(1, threads=32):
            T.annotate_layout({B: layout()})
            T.copy(A, B)

    @T.prim_func
    def load(B: T.Tensor((4, 8), "int32"), C: T.Tensor((4, 8), "int32")):
        with T.Kernel(1, threads=32):
            T.annotate_layout({B: layout()})
            T.copy(B, C)

    a = torch.arange(32, dtype=torch.int32, device="cuda").reshape(4, 8)
    b, c = torch.empty_like(a), torch.empty_like(a)
    run(store, a, b)
    run(load, b, c)
    assert torch.equal(c, a) and torch.equal(b.reshape(8, 4), a.T)


def test_out_of_range_indices():
    @T.prim_func
    def main(A: T.Tensor((10,), "float32"), I: T.Tensor((4,), "int32"), B: T.Tensor((16,), "float32")):
        with T.Kernel(1, threads=32):
            for i in T.Parallel(8):
                B[i] = A[i - 3]
            for i in T.Parallel(4):
                B[8 + i] = A[I[i]]
            B[12] = A[-1]
            for i in T.Parallel(64):
                B[13 + i] = 5.0

    a = torch.arange(1, 11, device="cuda").float()
    b = torch.zeros(16, device="cuda")
    run(main, a, torch.tensor([-1, 3, 10, 9], dtype=torch.int32, device="cuda"), b)
    assert b.tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 0, 4, 0, 10, 10, 5, 5, 5]


def test_promotion_and_rounding():
    @T.prim_func
    def main(A: T.Tensor((3,), "bfloat16"), B: T.Tensor((3,), "float32"), C: T.Tensor((3,), "int32")):
        with T.Kernel(1, threads=32):
            for i in T.Parallel(3):
                B[i] = A[i] * 1.1  # float32, not bfloat16
            C[0] = T.cast(T.cast(-7, "int32") // 2, "int32")
            C[1] = T.truncdiv(T.cast(-7, "int32"), 2)
            C[2] = T.cast(T.cast(200, "uint8") + 100, "int32")

    a = torch.tensor([1.0, 3.0, 7.0], dtype=torch.bfloat16, device="cuda")
    b, c = torch.empty(3, device="cuda"), torch.empty(3, dtype=torch.int32, device="cuda")
    run(main, a, b, c)
    assert torch.equal(b, a.float() * 1.1) and c.tolist() == [-4, -3, 300]


def test_none_for_an_absent_tensor():
    @tilelang.jit(out_idx=[2])
    def add(n, has_bias):
        @T.prim_func
        def main(A: T.Tensor((n,), "float32"), bias: T.Tensor((n,), "float32"), B: T.Tensor((n,), "float32")):
            with T.Kernel(1, threads=32):
                for i in T.Parallel(n):
                    B[i] = A[i] + (bias[i] if has_bias else 0.0)

        return main

    a = torch.ones(5, device="cuda")
    assert add(5, False)(a, None).tolist() == [1] * 5
    assert add(5, True)(a, a).tolist() == [2] * 5


def test_symbols_that_only_an_absent_tensor_mentions():
    @tilelang.jit
    def cast(has_sf):
        n, m, sf_stride = T.dynamic("n"), T.dynamic("m"), T.dynamic("sf_stride")

        @T.prim_func
        def main(x: T.Tensor[(n,), "float32"], sf: T.StridedTensor[(m, n), (sf_stride, 1), "float32"]):
            with T.Kernel(T.ceildiv(n, 32), threads=32) as b:
                for i in T.Parallel(32):
                    x[b * 32 + i] *= sf[m - 1, b * 32 + i] if has_sf else 2.0

        return main

    x = torch.ones(37, device="cuda")
    cast(False)(x, None)
    cast(True)(x, torch.full((3, 40), 3.0, device="cuda")[:, :37])
    assert x.tolist() == [6] * 37


def test_a_table_of_pointers():
    @T.prim_func
    def main(table: T.Tensor((3,), T.ptr), B: T.Tensor((3, 4), "float32")):
        with T.Kernel(3, threads=32) as bx:
            part = T.make_tensor(table[bx], (4,), "float32")
            T.copy(part, B[bx, 0])

    parts = [torch.full((4,), float(i), device="cuda") for i in range(3)]
    table = torch.tensor([p.data_ptr() for p in parts], dtype=torch.int64, device="cuda")
    b = torch.empty(3, 4, device="cuda")
    run(main, table, b)
    assert torch.equal(b, torch.stack(parts))


def test_rebinding_restarts_silently():
    @T.prim_func
    def main(A: T.Tensor((6,), "int32"), n: T.int32):
        with T.Kernel(1, threads=1):
            k = 0
            for i in T.serial(4):
                k = k + 1
                A[i] = k
            A[4] = k
            if n > 0:
                which = 1
            else:
                which = 2
            A[5] = which

    a = torch.zeros(6, dtype=torch.int32, device="cuda")
    run(main, a, 3)
    assert a.tolist() == [1, 1, 1, 1, 1, 2]


def test_every_thread_does_a_bare_atomic():
    @T.prim_func
    def main(A: T.Tensor((2,), "int32")):
        with T.Kernel(3, threads=64):
            T.atomic_add(A[0], 1)
            if T.get_thread_binding() == 0:
                T.atomic_add(A[1], 1)

    a = torch.zeros(2, dtype=torch.int32, device="cuda")
    run(main, a)
    assert a.tolist() == [192, 3]


def test_a_bare_update_happens_once():
    @T.prim_func
    def main(A: T.Tensor((2,), "int32")):
        with T.Kernel(2, threads=64) as bx:
            s = T.alloc_shared((1,), "int32")
            s[0] = 5
            s[0] = s[0] + 2
            A[bx] = s[0]

    a = torch.zeros(2, dtype=torch.int32, device="cuda")
    run(main, a)
    assert a.tolist() == [7, 7]


def test_old_shuffles_and_hints():
    @T.prim_func
    def main(A: T.Tensor((32,), "int32"), B: T.Tensor((32,), "int32")):
        with T.Kernel(1, threads=32, new_hint=1):
            tx = T.get_thread_binding()
            v = A[tx]
            B[tx] = T.shfl_sync(v, 3) + T.shfl_sync(0xFFFFFFFF, v, 4)

    a = torch.arange(32, dtype=torch.int32, device="cuda")
    b = torch.empty_like(a)
    run(main, a, b)
    assert b.tolist() == [7] * 32


def test_device_assert_names_the_line():
    @T.prim_func
    def main(A: T.Tensor((4,), "int32")):
        with T.Kernel(1, threads=32):
            for i in T.Parallel(4):
                T.device_assert(A[i] > 0, "positive")

    with pytest.raises(RuntimeError, match="traps.py"):
        run(main, torch.zeros(4, dtype=torch.int32, device="cuda"))


def test_what_only_some_gpus_have_is_refused_in_one_sentence():
    with pytest.raises(NotImplementedError, match="hardware-only"):

        @T.prim_func
        def main(A: T.Tensor((4,), "int32")):
            with T.Kernel(1, threads=32):
                T.alloc_tmem([128, 128], "float32")
