"""The examples of docstrings are true."""

import doctest
import importlib
from pathlib import Path

import pytest

import itrd_nlp

PACKAGE = Path(itrd_nlp.__file__).parent
EXTRAS = {"timm", "torchvision", "onnx", "onnxruntime", "matplotlib"}  # libraries that need not be there


def modules_with_examples():
    for path in sorted(PACKAGE.rglob("*.py")):
        lines = path.read_text(encoding="utf-8").splitlines()
        if any(">>>" in line and "+SKIP" not in line for line in lines):
            yield ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_print_what_they_say(name):
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in EXTRAS:
            raise
        pytest.skip(f"needs {error.name}")
    results = doctest.testmod(module)
    assert results.attempted > 0 and results.failed == 0
