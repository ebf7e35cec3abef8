"""The package names nothing of the standard library that Windows lacks."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "itrd_nlp"
SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.fixture(scope="module")
def stubs():
    """typeshed's stubs of the standard library, which say what each platform has."""
    mypy = pytest.importorskip("mypy", reason="needs typeshed: pip install '.[dev]'")
    return Path(mypy.__file__).parent / "typeshed" / "stdlib"


def names_on(platform: str, body: list[ast.stmt]) -> Iterator[str]:
    """The names that a stub defines on a platform."""
    for node in body:
        if isinstance(node, ast.If):
            here = SimpleNamespace(platform=platform, version_info=sys.version_info)
            holds = eval(compile(ast.Expression(node.test), "<stub>", "eval"), {"sys": here, "TYPE_CHECKING": True})
            yield from names_on(platform, node.body if holds else node.orelse)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


@cache
def lacking_on_windows(stubs: Path, module: str) -> set[str]:
    """The names of a module of the standard library that Linux has and Windows has not."""
    paths = [stubs / f"{module}.pyi", stubs / module / "__init__.pyi"]
    stub = next((path for path in paths if path.is_file()), None)
    if stub is None:
        return set()
    body = ast.parse(stub.read_text(encoding="utf-8")).body
    return {*names_on("linux", body)} - {*names_on("win32", body)}


def faults(tree: ast.Module, stubs: Path) -> list[str]:
    """What a source takes from modules of the standard library that Windows lacks; not what it tries to import."""
    tried = {id(node) for block in ast.walk(tree) if isinstance(block, ast.Try) for node in block.body}
    found, modules = [], {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and id(node) not in tried:
            lacking = lacking_on_windows(stubs, node.module)
            found += [f"{node.module}.{alias.name}" for alias in node.names if alias.name in lacking]
        elif isinstance(node, ast.Import) and id(node) not in tried:
            modules |= {alias.asname or alias.name: alias.name for alias in node.names}
    lacking = {name: lacking_on_windows(stubs, module) for name, module in modules.items()}
    for node in ast.walk(tree):
        owner = node.value.id if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) else ""
        if owner in lacking and node.attr in lacking[owner]:
            found.append(f"{modules[owner]}.{node.attr}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_it_runs_on_windows(path, stubs):
    assert not faults(ast.parse(path.read_text(encoding="utf-8")), stubs)


@pytest.mark.parametrize(
    "source,found",
    [
        ("import os\nos.open('x', os.O_RDWR | os.O_CLOEXEC)", ["os.O_CLOEXEC"]),
        ("import signal as s\nprint(s.SIGTERM, s.SIGKILL)", ["signal.SIGKILL"]),
        ("import fcntl\nfcntl.flock(0, fcntl.LOCK_EX)", ["fcntl.LOCK_EX", "fcntl.flock"]),
        ("from os import getuid, getpid", ["os.getuid"]),
        ("try:\n    import fcntl\nexcept ImportError:\n    fcntl = None\nelse:\n    fcntl.flock", []),
    ],
)
def test_what_windows_lacks_is_named(source, found, stubs):
    assert sorted(faults(ast.parse(source), stubs)) == found
