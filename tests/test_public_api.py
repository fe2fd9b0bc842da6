"""What `import jouletrace` promises: every public name exists, is documented, and is typed for editors."""

import ast
import inspect
from pathlib import Path

import pytest

import jouletrace

# capture_recipe and record need PyTorch and are documented in tests/capture.
NAMES = sorted({*jouletrace.__all__} - {"MODEL_VERSION", "__version__", "capture_recipe", "record"})


@pytest.mark.parametrize("name", NAMES)
def test_public_name_is_documented(name: str) -> None:
    thing = getattr(jouletrace, name)
    assert inspect.getdoc(thing), f"{name} has no docstring"
    assert thing.__module__.startswith("jouletrace.")


def test_editors_see_the_same_names_as_programs() -> None:
    tree = ast.parse(Path(jouletrace.__file__).read_text())
    typed = {a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
    assert set(jouletrace.__all__) <= typed
    assert dir(jouletrace) == sorted(jouletrace.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'simulat'"):
        _ = jouletrace.simulat
