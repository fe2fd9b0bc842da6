"""Hypothesis profiles, and one closing line for whoever runs the tests without PyTorch.

``ci`` is the default: the same examples on every machine and in every run. JOULETRACE_PROFILE=nightly draws
many random ones; a failure is printed with its example.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

TORCH_TESTS = sorted((Path(__file__).parent / "capture").glob("test_torch_*.py"))

# No test may read or fill the cache of whoever runs it. Workers of pytest-xdist share that of their run.
if "PYTEST_XDIST_WORKER" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="jouletrace-cache-")
    os.environ["JOULETRACE_CACHE"] = CACHE.name
    os.environ.pop("JOULETRACE_CACHE_SIZE", None)

settings.register_profile("ci", derandomize=True, deadline=None, database=None,
                          suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
settings.register_profile("nightly", settings.get_profile("ci"), derandomize=False, max_examples=5000)
settings.load_profile(os.environ.get("JOULETRACE_PROFILE", "ci"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Wraps all others, pytest's own summary among them, so that what it prints comes last."""
    result = yield
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = len(_skipped(session.config))
    if reporter is not None and skipped and not hasattr(session.config, "workerinput"):
        files = "1 test file" if skipped == 1 else f"{skipped} test files"
        reporter.write_line(f"capture tests skipped: PyTorch is not installed here ({files})")
    return result


def _skipped(config: pytest.Config) -> list[Path]:
    """The test files of this run that need PyTorch, if it is missing."""
    if find_spec("torch") is not None:
        return []
    chosen = [(config.invocation_params.dir / arg.partition("::")[0]).resolve() for arg in config.args]
    return [path for path in TORCH_TESTS if any(place in (path, *path.parents) for place in chosen)]
