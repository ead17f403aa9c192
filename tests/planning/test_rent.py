"""A dry run for a card that is not there: what it says where it cannot, and of what it compiled."""

import json
import sys

import pytest
from rich.console import Console

from justdubit_jax import train
from justdubit_jax.errors import InputError
from justdubit_jax.planning import described
from justdubit_jax.planning.cards import read_card
from justdubit_jax.planning.estimate import estimate
from justdubit_jax.planning.rent import Other, Rented, advised, write_json
from justdubit_jax.planning.show import show_advice, show_estimate, show_other

CARD = read_card("h100-sxm")


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(described, "has_plugin", lambda: False)
    with (
        pytest.raises(InputError, match="needs the extra: uv sync --extra cuda12"),
        described.described(CARD, 1),
    ):
        pass


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--device", "h100-sxm"), "--device is of --dry-run"),
        (("--dry-run", "--json", "x.json"), "--json is of --device"),
        (("--dry-run", "--advise"), "--advise is of --device"),
        (("--dry-run", "--device", "h100"), "h100: no such card; there are h100-sxm"),
        (("--dry-run", "--device", "h100-sxm", "--phase", "all", "x"), "invalid choice: 'x'"),
    ],
)
def test_flags_that_do_not_go_together(monkeypatch, flags, message):
    monkeypatch.setattr(sys, "argv", ["train", "--config", "configs/dub.py", *flags])
    with pytest.raises(InputError, match=message):
        train.command()


@pytest.fixture(scope="module")
def rented(toy_plan, text_of_two_cards):
    return Rented(toy_plan, estimate(text_of_two_cards, CARD, 2))


def test_figures_are_all_there(rented, tmp_path):
    other = Other(10**9, rented.estimate)
    write_json(rented, {"heldout": other}, tmp_path / "x.json")
    figures = json.loads((tmp_path / "x.json").read_text())
    assert figures["compiled_not_run"] and figures["fits"] and figures["devices"] == 2
    memory = figures["memory"]
    assert memory["total"] == sum(value for key, value in memory.items() if key != "total")
    parts = sum(kind["seconds"] for kind in figures["kinds"])
    assert figures["seconds"] == pytest.approx(parts)
    want = rented.plan.flops.model / (figures["seconds"] * CARD.peak_bf16 * 2)
    assert figures["mfu"] == pytest.approx(want)
    assert figures["phases"]["heldout"]["bytes"] == 10**9
    (sent,) = figures["collectives"]
    assert sent["kind"] == "all-gather" and sent["exposed"] == pytest.approx(sent["seconds"])


def test_what_a_person_reads(rented):
    console = Console(record=True, width=200)
    show_estimate(console, rented, count=2)
    show_other(console, "heldout", Other(90 * 10**9, rented.estimate))

    def step(setting: str) -> Rented:
        if "nf4" in setting:
            raise RuntimeError("no room\nsecond line")
        return rented

    show_advice(console, advised(step))
    printed = console.export_text()
    assert "2 x NVIDIA H100 80GB HBM3, compiled and not run" in printed
    assert "all-gather" in printed and "between the cards" in printed
    assert "heldout: 90.0 GB, does not fit" in printed
    assert "acceleration.quantization=nf4 (the base in half bytes): no room\n" in printed
    assert "lora.rank=32 (a quarter of the adapters): " in printed
