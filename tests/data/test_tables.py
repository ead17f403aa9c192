"""Tables as people have them: separators, encodings, line breaks, headings, kinds of JSON."""

import json

import pytest

from justdubit_jax.data.rows import Columns, MissingColumn, read_rows, read_table
from justdubit_jax.errors import InputError

COLUMNS = Columns("caption", "media_path", None, None)
WORDS = "Elle dit: ça va, déjà"


def write(tmp_path, name: str, text: str | bytes):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def captions(path, columns=COLUMNS):
    return [row.caption for row in read_rows(path, columns)]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("cell", "want"),
    [
        ('"First line.\nSecond line."', "First line.\nSecond line."),
        ('"one\u2028two"', "one\u2028two"),
        ('"one\x85two\x0bthree\x1cfour"', "one\x85two\x0bthree\x1cfour"),
        ('"She says: ""ku, be; mo"", twice."', 'She says: "ku, be; mo", twice.'),
        ("He's 6' 2\" tall", "He's 6' 2\" tall"),
        (' "after, a space"', "after, a space"),
    ],
)
def test_captions_arrive_whole(tmp_path, cell, want, end):
    text = f"media_path,caption\na.mp4,{cell}\nb.mp4,next\n".replace("\n", end)
    assert captions(write(tmp_path, "d.csv", text)) == [want, "next"]


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@pytest.mark.parametrize("first", ["", "sep=;\r\n"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_what_separates_and_how_it_is_encoded(tmp_path, encoding, separator, first, suffix):
    first = first.replace(";", separator)
    text = f'{first}caption{separator}media_path\r\n"{WORDS}"{separator}a.mp4\r\n'
    path = write(tmp_path, f"d.{suffix}", text.encode(encoding))
    table = read_table(path, COLUMNS)
    assert [(row.caption, row.name) for row in table.rows] == [(WORDS, "a")] and not table.faults
    # The word that shows whether the guess is right.
    noted = [f"{path}: not UTF-8, taken as Windows-1252: 'ça' in line {3 if first else 2} is right"]
    assert [note[: len(noted[0])] for note in table.notes] == noted * (encoding == "cp1252")


@pytest.mark.parametrize(
    "data",
    [
        b"caption,media_path\n\xcf\xf0\xe8\xe2\xe5\xf2,a.mp4\n",
        "caption,media_path\n你好世界,a.mp4\n".encode("gbk"),
        "caption,media_path\nça,a.mp4\n".encode() + "déjà,b.mp4\n".encode("cp1252"),
        b"\xff\xfec\x00a\x00p\x00\xd8",
    ],
    ids=["cp1251", "gbk", "of two", "cut off"],
)
def test_another_encoding_is_not_guessed(tmp_path, data):
    with pytest.raises(InputError, match=r"d\.csv: line \d: not UTF-(8|16); save the table as"):
        read_rows(write(tmp_path, "d.csv", data), COLUMNS)


@pytest.mark.parametrize("heading", ["Caption, media_path", "CAPTION,Media Path", " caption ,x"])
def test_headings_with_capitals_and_spaces(tmp_path, heading):
    columns = Columns("caption", "x" if heading.endswith("x") else "media_path", None, None)
    assert captions(write(tmp_path, "d.csv", f"{heading}\nwords,a.mp4\n"), columns) == ["words"]


def test_the_exact_heading_goes_before_a_like_one(tmp_path):
    path = write(tmp_path, "d.csv", "Caption,caption,media_path\nno,yes,a.mp4\n")
    assert captions(path) == ["yes"]
    with pytest.raises(InputError, match="2 columns are named 'CAPTION'"):
        captions(path, Columns("CAPTION", "media_path", None, None))


def test_a_missing_column_is_said_with_those_there_are(tmp_path):
    path = write(tmp_path, "d.csv", "prompt;video\nwords;a.mp4\n")
    with pytest.raises(
        MissingColumn, match=r"no column 'caption'; it has 'prompt', 'video', sep"
    ) as e:
        read_rows(path, COLUMNS)
    assert e.value.role == "caption" and "a semicolon" in str(e.value)
    named = Columns("prompt", "video", None, None)
    assert captions(path, named) == ["words"]


ROWS = [{"caption": "one\u2028two\n\tthree", "media_path": "a.mp4"}]
ROWS += [{"caption": "b", "media_path": "b.mp4"}]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)


@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.ndjson"])
@pytest.mark.parametrize(
    "text",
    [
        LINES,
        LINES.replace("\n", "\r\n\r\n") + "\r\n",
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        json.dumps({"data": ROWS}),
        json.dumps({"version": 1, "splits": [], "rows": ROWS}),
        "\ufeff" + LINES,
    ],
    ids=["lines", "crlf", "list", "indented", "data", "other lists", "mark"],
)
def test_json_of_every_form(tmp_path, name, text):
    assert captions(write(tmp_path, name, text)) == ["one\u2028two\n\tthree", "b"]


def test_one_line_of_json_is_one_row(tmp_path):
    assert captions(write(tmp_path, "d.json", json.dumps(ROWS[1]))) == ["b"]


def test_a_raw_line_break_in_a_json_string_is_kept(tmp_path):
    path = write(tmp_path, "d.json", '[{"caption": "one\ntwo", "media_path": "a.mp4"}]')
    assert captions(path) == ["one\ntwo"]


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("d.csv", "caption,media_path\nHello, you,b.mp4\nc,c.mp4\n", "line 2: 3 cells under 2"),
        ("d.csv", "caption,media_path\nc,c.mp4\nHello you,b.mp4,\n", "line 3: 3 cells under 2"),
        ("d.csv", "caption,media_path\nc,c.mp4\n,b.mp4\n", "line 3: no text in column 'caption'"),
        ("d.csv", "caption,media_path\nc,c.mp4\nonly words\n", "line 3: no text in column 'media"),
        ("d.csv", 'caption,media_path\n"He said "hi",b.mp4\nc,c.mp4\n', "line 2: quotes that do"),
        ("d.csv", 'caption,media_path\nc,c.mp4\n"open,b.mp4\nd,d.mp4\n', "lines 3 to 4: quotes"),
        ("d.jsonl", f'{LINES.split(chr(10))[0]}\n{{"caption": }}\n', "line 2: not JSON: Expecting"),
        ("d.jsonl", '{"caption": "c", "media_path": "c.mp4"}\n5\n', "line 2: expected an object"),
        ("d.json", '[{"caption": "c", "media_path": "c.mp4"}, {"media_path": "b.mp4"}]', "row 2:"),
        (
            "d.json",
            '[{"caption": "c", "media_path": "c"}, {"caption": 5, "media_path": "b"}]',
            "row 2",
        ),
        (
            "d.json",
            '[{"caption": "c", "media_path": "c"}, {"caption": "\\ud800", "media_path": "b"}]',
            "row 2: half a",
        ),
    ],
)
def test_a_faulty_row_costs_itself(tmp_path, name, text, fault):
    path = write(tmp_path, name, text)
    table = read_table(path, COLUMNS)
    assert len(table.rows) == 1 and len(table.faults) == 1
    assert table.faults[0].startswith(f"{path}: {fault}")
    with pytest.raises(InputError, match=fault):
        read_rows(path, COLUMNS)


def test_a_caption_is_not_taken_from_within_broken_quotes(tmp_path):
    text = 'caption,media_path\n"He said "hi"\nand left.",b.mp4\n"two\nlines",c.mp4\n'
    table = read_table(write(tmp_path, "d.csv", text), COLUMNS)
    assert [row.caption for row in table.rows] == ["two\nlines"]
    assert [fault.split(": ")[1] for fault in table.faults] == ["line 2", "line 3"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.json", '[{"caption": "x",\n}]', "line 2: not JSON"),
        ("d.json", '{"caption": "x"}', "expected a list of objects"),
        ("d.json", json.dumps({"train": ROWS, "test": ROWS}), "one list of objects, found 'train'"),
        ("d.json", "[1, 2]", "expected a list of objects"),
        ("d.jsonl", "nothing\n", "line 1: not JSON"),
        ("d.csv", "caption,media_path\n", "no rows"),
        ("d.csv", "", "no rows"),
        ("d.parquet", "", "a .json, .jsonl, .csv or .tsv file"),
    ],
)
def test_a_table_that_is_none(tmp_path, name, text, message):
    with pytest.raises(InputError, match=message):
        read_rows(write(tmp_path, name, text), COLUMNS)


def test_a_folder_is_no_table(tmp_path):
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(InputError, match="not a readable data set: Is a directory"):
        read_rows(tmp_path / "d.csv", COLUMNS)
