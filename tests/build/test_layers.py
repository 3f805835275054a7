"""Arrows point one way: no module imports from a layer above its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "robustfast"

# Lowest first. A module imports from its own layer and from those before it.
LAYERS = (
    ("errors", "registry", "seeds", "distributed", "together", "signals", "streams"),
    ("reference", "kernels", "_C"),
    ("ops",),
    ("attacks", "models", "data"),
    ("objectives",),
    ("__init__",),  # the front page: `import robustfast`
    ("training", "evaluation", "visualization"),
    ("command_line", "train", "evaluate", "reproduce", "report", "doctor"),
)
LAYER = {name: rank for rank, names in enumerate(LAYERS) for name in names}

FILES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])


def part(path: Path) -> str:
    """The package or module directly under robustfast that a file belongs to."""
    if not path.is_relative_to(PACKAGE):
        return "kernels"
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every import of robustfast, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(), path)):
        if isinstance(node, ast.Import):
            yield from (
                (node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "robustfast"
            )
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            if node.module == "robustfast":
                yield from ((node.lineno, f"robustfast.{alias.name}") for alias in node.names)
            elif node.module and node.module.startswith("robustfast."):
                yield node.lineno, node.module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_nothing_higher(path: Path) -> None:
    own = part(path)
    assert own in LAYER, f"robustfast/{own} is in no layer: add it to LAYERS"
    for line, name in imported(path):
        target = name.split(".")[1] if "." in name else "__init__"
        target = "__init__" if target == "__version__" else target
        assert target in LAYER, f"{path}:{line} imports {name}: import a name from the module that defines it"
        assert LAYER[target] <= LAYER[own], f"{path}:{line}: {own} imports {name} from a layer above it"


def test_kernels_are_never_imported_as_kernels() -> None:
    """`kernels` is another project's package, and a second copy of ours when imported from the root."""
    for path in [*FILES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "bench").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(), path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            assert not [name for name in names if name.split(".")[0] == "kernels"], f"{path}:{node.lineno}"
