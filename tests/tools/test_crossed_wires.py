"""The list of crossed wires follows the code, and what tries them tells caught from survived."""

import subprocess
import sys

import crossed_wires
import pytest
from helpers.commands import REPO
from wires import fault as trial
from wires.every import FAULTS
from wires.fault import Fault, Found, faulty, mark, try_fault

from justdubit_jax.errors import InputError

TESTED = Fault("add", "add.py", "a + b", "a - b", "test_add.py")
SOURCES = {
    "add.py": "def add(a, b):\n    return a + b\n\n\ndef twice(a):\n    return a * 2\n",
    "test_add.py": "from add import add\n\ndef test_add():\n    assert add(1, 2) == 3\n",
}


@pytest.fixture
def tree(tmp_path):
    for name, text in SOURCES.items():
        (tmp_path / name).write_text(text)
    # As the project's: its tests in one process, without what a plugin may add.
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    return tmp_path


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_its_words_stand_in_the_code_once(fault):
    assert faulty(fault, REPO) != (REPO / fault.file).read_text()
    for argument in fault.tests.split():
        assert (REPO / argument.partition("::")[0]).exists(), argument


def test_names_tell_faults_apart():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 60


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "caught"),
        ({"old": "a * 2", "new": "a * 3"}, "survived"),
        ({"new": "a - c"}, "not run"),  # a NameError proves nothing
        ({"tests": "test_sub.py"}, "not run"),
    ],
)
def test_a_fault_is_caught_by_a_test_that_fails(tree, change, verdict):
    found = try_fault(TESTED._replace(**change), tree, tree / "kept")
    assert found.verdict == verdict
    if verdict == "caught":
        assert found.by == "test_add.py::test_add"
    assert {name: (tree / name).read_text() for name in SOURCES} == SOURCES  # taken out again


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"old": "a ** b"}, "its words stand there 0 times"),
        ({"old": "a"}, "times, expected once"),
        ({"file": "sub.py"}, "its words stand there 0 times"),
    ],
)
def test_what_is_no_fault_is_told(tree, change, message):
    with pytest.raises(InputError, match=f"^add: .*{message}"):
        try_fault(TESTED._replace(**change), tree, tree / "kept")


def test_results_hold_until_something_changes(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(crossed_wires, "REPO", tree)
    path = tmp_path / "record.json"
    crossed_wires.Record(path).add(TESTED, Found("caught", "test_add.py::test_add"))
    assert crossed_wires.Record(path).of(TESTED) == ("caught", "test_add.py::test_add")
    assert crossed_wires.Record(path).of(TESTED._replace(new="b - a")) is None
    (tree / "test_add.py").write_text("")
    assert crossed_wires.Record(path).of(TESTED) is None
    assert mark(TESTED, tree) != mark(TESTED._replace(anew=True), tree)


def test_a_sample_follows_from_its_seed():
    first = crossed_wires.choose([], 10, "a")
    assert first == crossed_wires.choose([], 10, "a") != crossed_wires.choose([], 10, "b")
    assert len({fault.name for fault in first}) == 10


def test_an_unknown_name_is_one_line():
    command = [sys.executable, "tools/crossed_wires.py", "nothing"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: nothing: no such fault; --list shows them\n"


def test_the_tree_is_copied_as_it_stands(tmp_path):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / ".gitignore").write_text("made/\n")
    (tmp_path / "made").mkdir()
    (tmp_path / "made/x").write_text("not this")
    (tmp_path / "new.py").write_text("this")
    trial.copy_tree(tmp_path, tmp_path / "made/copy")
    copied = sorted(p.name for p in (tmp_path / "made/copy").rglob("*") if p.is_file())
    assert copied == [".gitignore", "new.py"]
