"""What several capture tests share."""

import importlib.util
from collections.abc import Iterator
from types import ModuleType

import pytest

from jouletrace.resources import folder


@pytest.fixture(scope="module")
def e2train() -> Iterator[ModuleType]:
    """The workload, on one thread: so small a network only waits for further ones."""
    torch = pytest.importorskip("torch", reason="capture tests need PyTorch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("e2train", folder("workloads") / "e2train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    torch.set_num_threads(threads)
