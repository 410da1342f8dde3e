"""Cases and comparisons."""

import itertools

import torch


def cases():
    return list(itertools.product([0, 1, 33, 129], [128, 512], [True, False]))


def assert_equal(a: torch.Tensor, b: torch.Tensor) -> None:
    assert (a.dtype, a.shape, a.device) == (b.dtype, b.shape, b.device)
    if a.numel():
        assert a.stride() == b.stride()
        different = (a.contiguous().view(torch.uint8) != b.contiguous().view(torch.uint8)).sum().item()
        assert different == 0, f"{different} bytes differ"


def count_bytes(*tensors) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
