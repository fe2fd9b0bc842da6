"""The stand-in for PyTorch's compiler: spares its import during a capture, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ..command import SOURCES

torch = pytest.importorskip("torch", reason="capture tests need PyTorch")


def run(program: str) -> str:
    """What a program prints in a fresh process, where nothing has imported the compiler yet."""
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": SOURCES, "PATH": ""}, capture_output=True, text=True, check=True
    )  # fmt: skip
    return done.stdout.strip()


CAPTURE = """
import sys, torch
from torch import nn
from jouletrace.capture.torch import capture_step

def tiny(batch):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    images, labels = torch.randn(batch, 3, 8, 8), torch.randint(10, (batch,))
    def step():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model, step

trace = capture_step(tiny, 2)
"""


def test_a_capture_does_not_import_the_compiler() -> None:
    assert run(CAPTURE + "print('torch._dynamo' in sys.modules)") == "False"


def test_the_compiler_works_after_a_capture() -> None:
    compiled = "f = torch.compile(lambda x: 2 * x, backend='eager'); print(f(torch.ones(2)).tolist())"
    assert run(CAPTURE + compiled) == "[2.0, 2.0]"


def test_whoever_needs_the_compiler_during_a_capture_gets_it() -> None:
    program = """
from jouletrace.capture.uncompiled import uncompiled
with uncompiled():
    import torch._dynamo.utils
    print(torch._dynamo.utils.__name__)
"""
    assert run(program) == "torch._dynamo.utils"
