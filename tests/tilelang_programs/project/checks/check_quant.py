"""Bit-exact checks of casts, by fixtures and parameters."""

import pytest
import tilelang.testing
import torch
from rowlib import quant
from rowlib.config import is_blackwell, multiprocessors, set_multiprocessors

from .utils import assert_equal, cases, count_bytes


@pytest.mark.parametrize("num_tokens,hidden,round_scale", cases(), ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "f32"])
def test_cast(num_tokens, hidden, round_scale, dtype, device):
    x = torch.randn(num_tokens, hidden, dtype=dtype, device=device)
    out, sf = quant.cast(x, round_scale=round_scale)
    want_out, want_sf = quant.cast_reference(x, round_scale=round_scale)
    assert_equal(sf, want_sf)
    assert_equal(out, want_out)


@pytest.mark.benchmark
@pytest.mark.parametrize("num_tokens", [64])
def test_speed(num_tokens, microseconds):
    x = torch.randn(num_tokens, 256, dtype=torch.bfloat16, device="cuda")
    found = microseconds(lambda: quant.cast(x))
    print(f"{found:.1f} us, {count_bytes(x, *quant.cast(x)) / found / 1e3:.2f} GB/s")
    assert found > 0


class TestDevice:
    @pytest.fixture(autouse=True)
    def stream(self):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            yield stream

    def test_stream(self, stream, device):
        assert torch.cuda.current_stream() == stream and stream.device == device
        kernel = quant.get_cast_kernel(128, 128, "bfloat16", False, 1)
        with pytest.raises((RuntimeError, ValueError, TypeError)):
            kernel(torch.zeros(3, 100, device=device), None, None)

    def test_multiprocessors(self, monkeypatch):
        monkeypatch.setattr("rowlib.config._multiprocessors", 0)
        assert multiprocessors() == 132
        set_multiprocessors(3)
        x = torch.randn(70, 256, device="cuda")
        assert_equal(quant.cast(x)[0], quant.cast_reference(x)[0])
        with pytest.raises(AssertionError):
            set_multiprocessors(1000)

    def test_source(self, monkeypatch, capsys):
        monkeypatch.setenv("ROWLIB_PRINT_KERNEL_SOURCE", "1")
        quant.cast(torch.randn(2, 128, device="cuda"))
        assert "cast_kernel" in capsys.readouterr().out

    @tilelang.testing.requires_cuda_compute_version_ge(10, 0)
    def test_newer(self):
        assert is_blackwell()

    @pytest.mark.skipif(torch.cuda.get_device_capability() < (9, 0), reason="needs Hopper")
    def test_hopper(self):
        assert not is_blackwell()


if __name__ == "__main__":
    tilelang.testing.main()
