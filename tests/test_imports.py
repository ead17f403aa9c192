"""Modules import only from rows above their own, so that the house can be read from the top."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "justdubit_jax"

ROWS = (
    {"errors"},
    {"cli", "distributed", "files", "fingerprint", "interrupt", "keys", "tokens"},
    {"adam8bit", "buckets", "media", "models.layers", "models.mel", "schedules"},
    {
        *("models.audio_vae", "models.connector", "models.gemma", "models.quant"),
        *("models.transformer", "models.video_vae", "models.vocoder"),
    },
    {"arrays", "sharding", "stand_in"},
    {
        *("clips", "dataset", "denoise", "flops", "lora"),
        *("objective", "optim", "report", "tiling", "weights"),
    },
    {"checkpoint", "codec", "data", "settings"},
    {"evaluate", "metrics", "prompts", "sample", "step"},
    {"plan", "validate"},
    {"dub", "preprocess", "train"},
    {"demo_assets", "demo_checkpoint"},
    {"demo"},
)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("justdubit_jax"):
            base = (node.module or "").removeprefix("justdubit_jax").strip(".")
            names |= (
                {f"{base}.{alias.name}".strip(".") for alias in node.names}
                if not base or (base == "models")
                else {base}
            )
        elif isinstance(node, ast.Import):
            names |= {
                alias.name.removeprefix("justdubit_jax.")
                for alias in node.names
                if alias.name.startswith("justdubit_jax.")
            }
    return names


MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_upwards(path):
    row = next(i for i, names in enumerate(ROWS) if module_name(path) in names)
    above = set().union(*ROWS[:row])
    assert imported(path) <= above, imported(path) - above


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_torch_is_no_dependency(path):
    source = ast.parse(path.read_text())
    names = {a.name for n in ast.walk(source) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module or "" for n in ast.walk(source) if isinstance(n, ast.ImportFrom)}
    assert not any(name.split(".")[0] == "torch" for name in names)
