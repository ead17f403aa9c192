"""How a data set's files were taken: for the files that are made of them, and as a table."""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Mapping

from rich.table import Table

from justdubit_jax.preprocessing.load import Loaded

_MOST = 40  # lines of the table; a data set of one camera has one or two


def source_metadata(item: Loaded, role: str) -> dict[str, str]:
    """What was decided about the file that a role's tensor is made of, as JSON."""
    own = "reference" if role.startswith("reference") else "mask" if role == "masks" else "media"
    facts = dict(item.facts.get(own, {}))
    path = {"media": item.row.clip, "reference": item.row.reference, "mask": item.row.mask}[own]
    named = [finding.text for finding in item.findings if finding.path == path]
    return {"source": json.dumps(facts | ({"findings": named} if named else {}))} if facts else {}


@dataclasses.dataclass
class Decisions:
    """Of all rows that were read: files that were taken alike stand in one line."""

    groups: dict[tuple[str, ...], list[str]] = dataclasses.field(
        default_factory=lambda: defaultdict(list)
    )

    def add(self, item: Loaded) -> None:
        paths = {"media": item.row.clip, "reference": item.row.reference, "mask": item.row.mask}
        for role, facts in item.facts.items():
            path = paths[role]
            assert path is not None
            self.groups[(role, *_cells(facts))].append(path.name)

    def table(self) -> Table:
        """One line for the files of a kind: how many, how they were taken, the first of them."""
        table = Table(title="how the files were taken", title_justify="left")
        for heading in ("role", "rate", "picture", "cropped", "colour", "tracks", "files", "first"):
            table.add_column(heading, justify="right" if heading == "files" else "left")
        lines = sorted(self.groups.items(), key=lambda line: -len(line[1]))
        for cells, names in lines[:_MOST]:
            table.add_row(*cells, str(len(names)), names[0])
        if len(lines) > _MOST:
            rest = sum(len(names) for _, names in lines[_MOST:])
            table.add_row("others", *[""] * 5, str(rest), "see the metadata of their files")
        return table


def _cells(facts: Mapping[str, str]) -> tuple[str, ...]:
    """Rate, picture, crop, colour and tracks in words."""
    own, rate = (f"{float(_ratio(facts[key])):.5g}" for key in ("own_rate", "rate"))
    changed = facts["resampled"] == "yes"
    picture = [facts["stored"]]
    if facts["pixel_aspect"] != "1:1":
        picture.append(f"pixels {facts['pixel_aspect']}")
    picture += [word for word in ("deinterlaced", "mirrored") if facts[word] == "yes"]
    if facts["turned"] != "0":
        picture.append(f"turned {facts['turned']}")
    sound = [f"{facts['sound_track']} {facts['sound_layout']}"] if "sound_track" in facts else []
    if changed:
        rate = f"{'variable' if facts['variable'] == 'yes' else own} -> {rate}"
    return (
        "still" if facts["frames"] == "1" else rate,
        ", ".join(picture),
        "" if facts["cropped"].startswith("0.0 %") else facts["cropped"],
        facts["colour"],
        "; ".join([facts["track"], *sound]),
    )


def _ratio(text: str) -> float:
    numerator, denominator = text.split("/")
    return int(numerator) / int(denominator)
