"""The house: which room may use which, read from the imports. A room uses only rooms below it."""

import ast
import graphlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "justdubit_jax"

# Every room may use errors. From the ground up; a command opens a room of its own name.
USES = {
    "errors": "",
    "files": "",
    "cli": "",
    "models": "",
    "devices": "models",
    "sampling": "models",
    "weights": "models files",
    "data": "models files",
    "clips": "models files",
    "lora": "weights models files",
    "latents": "weights models devices files",
    "training": "lora weights data devices models",
    "dubbing": "sampling latents lora clips weights devices models",
    "preprocessing": "latents data clips weights devices models files",
    "runs": "training lora clips devices files",
    "planning": "validation training dubbing sampling latents lora data weights devices models "
    "files",
    "validation": "runs training dubbing sampling latents lora data clips weights devices models "
    "files",
    "train": "*",
    "preprocess": "*",
    "dub": "*",
    "demo": "*",
}
COMMANDS = {"train", "preprocess", "dub", "demo"}

MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.stem != "__init__")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """The rooms that a file imports from, its own among them."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("justdubit_jax"):
            _, _, inside = (node.module or "").partition(".")
            names |= {inside.split(".")[0]} if inside else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            parts = [alias.name.split(".") for alias in node.names]
            names |= {p[1] for p in parts if p[0] == "justdubit_jax" and len(p) > 1}
    return names


def test_every_room_is_in_the_table():
    assert {room(path) for path in MODULES} == set(USES)


def test_no_room_uses_one_above_it():
    graph = {name: set(uses.split()) for name, uses in USES.items() if uses != "*"}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises on a circle
    assert not any(COMMANDS & uses for uses in graph.values())


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_room_uses_what_the_table_allows(path):
    here = room(path)
    allowed = set(USES) if USES[here] == "*" else set(USES[here].split())
    foreign = imported(path) - {here, "errors"}
    assert foreign <= allowed, foreign - allowed
    if here not in COMMANDS - {"demo"} | {"cli"}:
        assert "cli" not in foreign or here == "demo"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_file_is_one_subject(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*/__init__.py")), ids=room)
def test_a_room_says_what_lives_there_and_exports_nothing(path):
    (only,) = ast.parse(path.read_text()).body
    assert isinstance(only, ast.Expr) and "Start in" in ast.literal_eval(only.value)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_torch_is_no_dependency(path):
    source = ast.parse(path.read_text())
    names = {a.name for n in ast.walk(source) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module or "" for n in ast.walk(source) if isinstance(n, ast.ImportFrom)}
    assert not any(name.split(".")[0] == "torch" for name in names)
