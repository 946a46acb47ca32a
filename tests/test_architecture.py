"""Imports go one way: a module imports only from what stands before it (docs/architecture.md)."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "preresnet"

# Low to high. Names of one line are siblings, which never import each other.
LAYERS = [
    {"fields"},
    {"spec"},
    {"recipe"},
    {"changes"},
    {"paper"},
    {"pictures", "terminal"},
    {"kernels", "signals"},
    {"model", "data", "device"},
    {"inference"},
    {"trained"},
    {"train"},
    {"propagation"},
    {"study", "bench"},
    {"report"},
    {"display"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
TORCH_FREE = ["fields.py", "spec.py", "recipe.py", "changes.py", "paper"]

FILES = sorted(SOURCE.rglob("*.py"))


def layer(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    """Dotted names of everything a file imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import; name the package"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_file_has_a_layer() -> None:
    assert {layer(path) for path in FILES} == RANK.keys() | {"__init__"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_only_from_below(path: Path) -> None:
    if layer(path) == "__init__":
        return  # the public list may name anything
    for name in imported_modules(path):
        package, _, rest = name.partition(".")
        if package != "preresnet":
            continue
        target = rest.split(".")[0]
        if target == "__version__":
            continue
        same = target == layer(path)
        assert same or RANK[target] < RANK[layer(path)], f"{path.relative_to(SOURCE)} imports {name}"


@pytest.mark.parametrize("place", TORCH_FREE)
def test_data_does_not_import_torch(place: str) -> None:
    start = SOURCE / place
    for path in [start] if start.is_file() else sorted(start.rglob("*.py")):
        assert not any(name.split(".")[0] == "torch" for name in imported_modules(path)), path.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_every_file_says_what_it_answers(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))
