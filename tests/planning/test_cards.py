"""The table of cards, and a person's own."""

import dataclasses
import tomllib

import pytest

from justdubit_jax.errors import InputError
from justdubit_jax.planning.cards import TABLE, card_of, read_card

ALL = tomllib.loads(TABLE.read_text())


@pytest.mark.parametrize("name", ALL)
def test_a_card_of_the_table(name):
    card = read_card(name)
    assert 14e9 < card.limit < card.memory
    assert card.flash_gradient < card.flash < card.products < card.peak_bf16
    assert card.memory_rate < card.bandwidth
    assert card.has_flash == (name != "v100")
    text = card.target_config()
    assert f"core_count: {card.cores}" in text and text.count("{") == text.count("}")


def test_the_rates_of_an_h100_are_those_that_were_measured():
    card = read_card("h100-sxm")
    rates = card.products, card.flash, card.flash_gradient, card.convolutions
    assert rates == pytest.approx((740e12, 600e12, 470e12, 500e12))
    assert card.memory_rate == pytest.approx(2.816e12, rel=0.001)
    assert card.rate_of("f8e4m3fn") == 2 and card.rate_of("f32") == 0.5


@pytest.mark.parametrize(
    "kind, name",
    [
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H200", "h200"),  # as its driver names it; XLA's facts have more words
        ("NVIDIA L40S", "l40s"),
    ],
)
def test_the_card_of_a_device(kind, name):
    assert card_of(kind) == read_card(name)
    assert card_of("cpu") is card_of("NVIDIA H") is None


@pytest.mark.parametrize("head", ["", "[mine]\n"])
def test_ones_own_card(tmp_path, head):
    path = tmp_path / "mine.toml"
    values = ALL["rtx-4090"] | {"name": "RTX 4090 with 48 GB", "memory": 51_000_000_000}
    path.write_text(head + "\n".join(f"{key} = {value!r}" for key, value in values.items()))
    assert dataclasses.asdict(read_card(str(path))) == values


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "No such file"),
        ("memory = ", "not a description of a card"),
        ("memory = 1", "cores is missing|is missing"),
        ("\n".join(f"{k} = {v!r}" for k, v in (ALL["h200"] | {"memory": -1}).items()), "memory is"),
        ("\n".join(f"{k} = {v!r}" for k, v in (ALL["h200"] | {"bus": 1}).items()), "bus is no fi"),
    ],
)
def test_a_file_that_is_wrong_is_named(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message) as raised:
        read_card(str(path))
    assert str(path) in str(raised.value)


def test_an_unknown_name_is_answered_with_those_there_are():
    with pytest.raises(InputError, match=r"h100: no such card; there are h100-sxm, h100-pcie"):
        read_card("h100")
