"""Fixtures as a library of kernels has them: devices by worker, seeds, a timer, an option of its own."""

import gc
import os
import random

import numpy as np
import pytest
import tilelang
import torch


def pytest_addoption(parser):
    parser.addoption("--run-benchmark", action="store_true", default=False)


def pytest_configure(config):
    assert torch.cuda.is_available() and torch.version.cuda
    torch.backends.cuda.matmul.allow_tf32 = False
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker:
        torch.cuda.set_device(int(worker.removeprefix("gw")) % torch.cuda.device_count())


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--run-benchmark"):
        for item in items:
            if "benchmark" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs --run-benchmark"))


@pytest.fixture(autouse=True)
def seeds():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.cuda.manual_seed_all(0)
    yield
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture(scope="session")
def device():
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def microseconds(device):
    flushed = torch.empty(1 << 12, dtype=torch.int, device=device)

    def measure(fn):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        fn()
        torch.cuda.synchronize()
        flushed.zero_()
        torch.cuda._sleep(1000)
        start.record()
        fn()
        end.record()
        torch.cuda.synchronize()
        assert start.elapsed_time(end) > 0
        return tilelang.profiler.do_bench(fn, warmup=1, rep=2, backend="cupti") * 1e3

    return measure
