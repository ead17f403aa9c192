"""What README, CONTRIBUTING and docs/ name is there: files, commands, tools, config keys, rooms."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.commands import REPO
from ml_collections import ConfigDict

from justdubit_jax import cli

PACKAGE = REPO / "justdubit_jax"
ROOMS = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted(REPO.glob("docs/*.md"))]
of_every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)

LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`]+`", re.DOTALL)


def code(page: Path) -> str:
    """The blocks of commands, and what stands between backticks."""
    return "\n".join(CODE.findall(page.read_text()))


def keys(tree: ConfigDict, prefix: str = "") -> Iterator[str]:
    """The keys of a config, without those of its sections themselves."""
    for name, value in tree.items():
        if isinstance(value, ConfigDict):
            yield from keys(value, f"{prefix}{name}.")
        else:
            yield prefix + name


@pytest.fixture(scope="module")
def known_keys() -> set[str]:
    return set(keys(cli.parse_config(["train", "--config", str(REPO / "configs/dub.py")])))


@of_every_page
def test_links_lead_to_a_file(page):
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    missing = [link for link in links if not (page.parent / link.partition("#")[0]).exists()]
    assert not missing


@of_every_page
def test_commands_and_tools_are_there(page):
    text = code(page)
    commands = re.findall(r"-m justdubit_jax\.(\w+)", text)
    homes = {name: (PACKAGE / f"{name}.py", PACKAGE / name / "__main__.py") for name in commands}
    assert not [name for name, files in homes.items() if not any(f.exists() for f in files)]
    paths = re.findall(r"(?<![\w/])(?:tools|tests|configs|docs|\.ci)/[\w./-]*", text)
    assert not [path for path in paths if not (REPO / path).exists()]
    rooms = "|".join(sorted(ROOMS))
    files = re.findall(rf"(?<![\w/])(?:{rooms})/\w+\.py", text)
    assert not [file for file in files if not (PACKAGE / file).exists()]


@of_every_page
def test_config_keys_are_those_of_the_config(page, known_keys):
    text, sections = code(page), {key.partition(".")[0] for key in known_keys if "." in key}
    named = set(re.findall(r"--config\.([a-z_.]+)", text))
    named |= set(re.findall(rf"`((?:{'|'.join(sections)})\.\w[\w.]*)", text))
    assert named <= known_keys, named - known_keys


def test_the_readme_maps_every_room():
    missing = {name for name in ROOMS if f"`{name}/`" not in code(REPO / "README.md")}
    assert not missing


def test_a_page_is_linked_from_the_readme():
    linked = {(REPO / link).resolve() for link in LINK.findall((REPO / "README.md").read_text())}
    assert set(PAGES[1:]) <= linked
