"""Values of a config: what each reader takes, and the sentence it refuses the rest with."""

import math
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from justdubit_jax.errors import InputError
from justdubit_jax.training.values import Values

KEY = "part.key"


def values(value):
    return Values(ConfigDict({"part": {"key": value}}))


@pytest.mark.parametrize(
    ("read", "taken"),
    [
        (lambda v: v.flag(KEY), False),
        (lambda v: v.text(KEY), ""),
        (lambda v: v.texts(KEY), ("a", "b")),
        (lambda v: v.one_of(KEY, ("a", "b")), "b"),
        (lambda v: v.at_least(1, KEY), 1.5),
        (lambda v: v.within(0, 1, KEY), 1),
        (lambda v: v.below(1, KEY), 0.999),
        (lambda v: v.whole(1, KEY), 10**400),
        (lambda v: v.whole(0, KEY, 9), 9),
        (lambda v: v.whole_numbers(KEY), (1, -2)),
        (lambda v: v.pairs(KEY), (("a", 1.0), ("b", -2.0))),
        (lambda v: tuple(v.known_pairs(KEY, ("a", "b")).items()), (("b", 2.0),)),
        (lambda v: v.optional(v.whole, 1, KEY), 2),
    ],
)
def test_what_is_taken(read, taken):
    assert read(values(taken)) == taken


@pytest.mark.parametrize(
    ("read", "refused", "expected"),
    [
        (lambda v: v.flag(KEY), [1, "True", None], "True or False"),
        (lambda v: v.text(KEY), [None, 3], "a text"),
        (lambda v: v.texts(KEY), ["ab", ("a", 3), None], "a tuple of texts"),
        (lambda v: v.one_of(KEY, ("a", "b")), ["c", "", None, []], "one of a, b"),
        (lambda v: v.at_least(1, KEY), [0.5, "2", None, True], "a number of at least 1"),
        (lambda v: v.within(0, 1, KEY), [1.1, -0.1, None], "a number from 0 to 1"),
        (lambda v: v.below(1, KEY), [1, -0.1, None], "a number from 0 to below 1"),
        (lambda v: v.whole(1, KEY), [0, 1.5, 2.0, True], "a whole number of at least 1"),
        (lambda v: v.whole(0, KEY, 9), [-1, 10, 1.5], "a whole number from 0 to 9"),
        (lambda v: v.whole_numbers(KEY), [(1.5,), ("1",), 3], "a tuple of whole numbers"),
        (lambda v: v.pairs(KEY), [(1, 2), (("a", "b"),), 3], "pairs of a name and a number, "),
        (lambda v: v.known_pairs(KEY, ("a",)), [(("b", 1.0),)], "no other names than a"),
        (lambda v: v.must_be(KEY, 3), [4, None], "3"),
        (lambda v: v.must_be(KEY, "a", "the only one"), ["b"], "'a': the only one"),
        (lambda v: v.optional(v.whole, 1, KEY), [0], "a whole number of at least 1"),
    ],
)
def test_what_is_refused(read, refused, expected):
    for value in refused:
        with pytest.raises(InputError) as error:
            read(values(value))
        assert str(error.value).startswith(f"config: part.key is {value!r}, expected {expected}")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "read",
    [
        lambda v: v.at_least(-1, KEY),
        lambda v: v.within(-math.inf, math.inf, KEY),
        lambda v: v.below(math.inf, KEY),
        lambda v: v.whole(-1, KEY),
        lambda v: Values(ConfigDict({"x": (v[KEY],)})).whole_numbers("x"),
        lambda v: Values(ConfigDict({"x": (("a", v[KEY]),)})).pairs("x"),
        lambda v: Values(ConfigDict({"x": (("a", v[KEY]),)})).known_pairs("x", ("a",)),
    ],
)
def test_numbers_are_finite(read, number):
    with pytest.raises(InputError, match=r"^config: \S+ is .*(nan|inf).*, expected .*number"):
        read(values(number))


def test_paths_exist(tmp_path):
    file, lost = tmp_path / "file", tmp_path / "lost"
    file.touch()
    assert values(str(file)).existing_path(KEY) == file
    assert values("~").existing_path(KEY) == Path.home()
    assert values((str(file),) * 2).existing_paths(KEY) == (file, file)
    there = "expected a file or folder that exists"
    with pytest.raises(InputError, match=f"^config: part.key is '{lost}', {there}$"):
        values(str(lost)).existing_path(KEY)
    with pytest.raises(InputError, match=rf"^config: part\.key\[1\] is '{lost}', {there}$"):
        values((str(file), str(lost))).existing_paths(KEY)
    for value in (None, ""):
        with pytest.raises(InputError, match=r"is not given, expected --config\.part\.key=PATH$"):
            values(value).existing_path(KEY)


def test_what_is_optional_may_be_none_or_empty():
    for value in (None, ""):
        v = values(value)
        assert v.optional(v.existing_path, KEY) is None
        assert v.optional(v.within, 0, 1, KEY) is None


def test_a_choice_is_read_as_what_it_stands_for():
    assert values(True).meaning(KEY, {True: "full", "x": "y"}) == "full"
    with pytest.raises(InputError, match=r"is 'y', expected one of True, x$"):
        values("y").meaning(KEY, {True: "full", "x": "y"})


@pytest.mark.parametrize("key", ["part.other", "other.key", "part.key.more"])
def test_a_key_that_is_not_there_is_named(key):
    with pytest.raises(InputError, match=f"^config: {key} is missing, "):
        values(1).flag(key)
