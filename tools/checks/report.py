"""What was found, as JSON and as a table in Markdown."""

import json
from collections.abc import Iterator, Sequence

from checks.result import Row, Section


def as_json(sections: Sequence[Section]) -> str:
    return json.dumps(
        [
            section._asdict()
            | {"rows": [row._asdict() for row in section.rows], "failed": section.failed}
            for section in sections
        ],
        indent=1,
    )


def read_json(text: str) -> list[Section]:
    """What `as_json` wrote."""
    return [
        Section(
            name=found["name"],
            seconds=found["seconds"],
            rows=tuple(Row(**row) for row in found["rows"]),
            trouble=found["trouble"],
        )
        for found in json.loads(text)
    ]


def markdown(sections: Sequence[Section]) -> str:
    """The three estimates that are furthest off first, then everything."""
    return "\n".join([*_furthest(sections), *_table(sections)]) + "\n"


def _furthest(sections: Sequence[Section]) -> Iterator[str]:
    rows = [(section.name, row) for section in sections for row in section.rows if row.distance]
    rows.sort(key=lambda one: -one[1].distance)
    if rows:
        yield "Furthest from what the planner expects:"
        yield ""
        for name, row in rows[:3]:
            yield f"* {name}, {row.what}: {row.ratio:.2f} of it"
        yield ""


def _table(sections: Sequence[Section]) -> Iterator[str]:
    yield "| part | what | found | expected or limit | |"
    yield "|---|---|---|---|---|"
    for section in sections:
        for row in section.rows:
            yield f"| {section.name} | {row.what} | {_found(row)} | {_wanted(row)} | {_said(row)} |"
        ended = f"**{section.trouble}**" if section.trouble else f"{section.seconds:.0f} s"
        yield f"| {section.name} | in all | {ended} | | {'FAIL' if section.trouble else ''} |"


def _found(row: Row) -> str:
    return row.got if isinstance(row.got, str) else f"{row.got:.4g} {row.unit}".strip()


def _wanted(row: Row) -> str:
    if row.limit is not None:
        return f"at most {row.limit:.3g}"
    return "" if row.expected is None else f"{row.expected:.4g} {row.unit}".strip()


def _said(row: Row) -> str:
    if row.limit is not None:
        return "**FAIL**" if row.failed else "ok"
    ratio = f"{row.ratio:.2f}" if row.ratio is not None else ""
    return " ".join(word for word in (ratio, row.note) if word)
