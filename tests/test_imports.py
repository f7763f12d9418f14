"""Imports point down only, and naming the library costs nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import aevb

ROOT = Path(aevb.__file__).parent
# What each room may import of the library, besides itself and the errors.
BELOW = {
    "__init__": set(),
    "errors": set(),
    "processes": set(),
    "networks": set(),
    "bounds": set(),
    "data": {"processes"},
    "checkpoints": {"processes"},
    "figures": set(),
    "models": {"networks", "bounds"},
    "learners": {"inference", "models", "networks", "bounds", "data"},
    "inference": {"models", "networks", "bounds"},
    "training": {"learners", "inference", "models", "networks", "bounds", "data", "processes"},
    "packing": {"training", "learners", "data"},
}
FORBIDDEN = {"absl", "ml_collections", "experiments", "launch"}


def imported_names(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_imports_point_down(path):
    for name in imported_names(path):
        top, _, rest = name.partition(".")
        assert top not in FORBIDDEN, f"{path} imports {name}"
        if top == "aevb":
            assert rest.split(".")[0] in BELOW[room(path)] | {"errors", room(path)}, f"{path} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT.parent / "experiments").rglob("*.py")), ids=lambda path: path.stem)
def test_experiments_launch_nothing(path):
    assert [name for name in imported_names(path) if name.partition(".")[0] == "launch"] == []


def test_every_room_is_known_and_named():
    assert {room(path) for path in FILES} == set(BELOW)
    assert set(aevb.__all__) == set(BELOW) - {"__init__"}
    for name in aevb.__all__:
        assert getattr(aevb, name).__name__ == f"aevb.{name}"
    with pytest.raises(AttributeError, match="no attribute 'trainings'"):
        _ = aevb.trainings


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import aevb", ["jax", "numpy", "flax", "numpyro"]),
        ("import aevb.errors", ["jax", "numpy"]),
        ("import aevb.data", ["tensorflow", "tensorflow_datasets", "grain", "matplotlib", "PIL", "sklearn"]),
        ("import aevb.training", ["tensorflow", "tensorflow_datasets", "grain", "matplotlib"]),
        ("import launch.sweep", ["jax", "ray", "optuna", "matplotlib", "scipy"]),
        ("import aevb.figures", ["matplotlib.pyplot", "jax", "sklearn", "scipy"]),
    ],
)
def test_importing_does_not_load(statement, absent):
    code = f"import sys; {statement}; print([name for name in {absent} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert result.stdout.strip() == "[]"
