"""Tables fit the terminal, and no word of them is broken."""

from __future__ import annotations

import io
import random

import pytest

from edgekit.cli import _tables
from edgekit.cli._tables import lines, span, wrapped

COLUMNS = ("target", "verdict", "artifact", "why")
ROWS = [
    (
        "openvino-int4-weights",
        "passed",
        "build/a-folder/with-a-long-name/openvino-int4-weights",
        "as it was asked",
    ),
    (
        "ort-int8",
        "slower (1.08×)",
        "build/ort-int8",
        "it is what the runtime does on processors of this kind, measured",
    ),
    ("-", "", "-", "-"),
]


def words(text: str) -> list[str]:
    return [word for word in text.split() if word != "-"]


@pytest.mark.parametrize("room", [20, 40, 60, 80, 120, 240])
def test_no_word_is_broken_and_no_line_is_wider_than_its_words(room):
    shown = list(lines(COLUMNS, ROWS, room=room))
    text = words("\n".join(shown))
    for row in ROWS:
        for cell in row:
            assert set(words(cell)) <= set(text), (cell, shown)
    longest = max(span(word) for row in ROWS for cell in row for word in cell.split())
    assert all(span(line) <= max(room, longest + 14) for line in shown), shown


def test_where_there_is_room_a_row_is_a_line():
    head, *rows = lines(COLUMNS, ROWS, room=240)
    assert len(rows) == len(ROWS)
    assert head.split() == list(COLUMNS)
    assert rows[0].index("passed") == rows[1].index("slower")


def test_sentences_give_way_first_and_stay_in_their_column():
    cells = [("tflite-int8", "this is a sentence of many words that can be wrapped anywhere between them")]
    head, *rows = lines(("target", "why"), cells, room=40)
    assert len(rows) > 1
    assert rows[0].startswith("tflite-int8  this")
    assert all(row.startswith(" " * head.index("why")) for row in rows[1:])
    assert all(span(row) <= 40 for row in rows)


def test_where_there_is_none_a_row_is_a_block():
    first, *rest = lines(COLUMNS, ROWS[:1], room=30)
    assert first == "openvino-int4-weights"
    assert [line.split()[0] for line in rest if line.startswith("  ") and line[2] != " "] == list(COLUMNS[1:])
    assert any(line.endswith(ROWS[0][2]) for line in rest)


def test_figures_are_set_to_the_right():
    _, one, two = lines(("a", "n"), [("x", "7"), ("y", "12,345")], room=80)
    assert (one, two) == ("x       7", "y  12,345")


def test_wide_characters_take_two_columns():
    assert [span(text) for text in ("ab", "日本", "e\u0301", "×")] == [2, 4, 1, 1]
    _, one, two = lines(("a", "b"), [("日本", "x"), ("abcd", "x")], room=80)
    assert span(one) == span(two)


def test_messages_are_broken_between_words():
    text = "pip install 'edgekit-deploy[tensorrt]' --extra-index-url https://pypi.nvidia.com"
    for room in (10, 30, 60):
        assert wrapped(text, room, "  ").split() == text.split()
    assert wrapped("short", 60) == "short"


def test_any_table_at_any_width():
    draw = random.Random(0)
    for _ in range(300):
        columns = tuple("c" * draw.randint(0, 9) for _ in range(draw.randint(1, 7)))
        rows = [
            tuple(" ".join("w" * draw.randint(1, 30) for _ in range(draw.randint(0, 9))) for _ in columns)
            for _ in range(draw.randint(0, 5))
        ]
        room = draw.randint(20, 120)
        shown = list(lines(columns, rows, room=room))
        found = sorted(w for line in shown for w in line.split() if set(w) == {"w"})
        assert found == sorted(w for row in rows for cell in row for w in cell.split())
        label = max(map(len, columns))
        longest = max((len(w) for row in rows for cell in row for w in cell.split()), default=0)
        assert all(span(line) <= max(room, label + 4 + max(longest, 16)) for line in shown)


def test_the_width_is_the_terminals_and_a_pipe_has_none(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("COLUMNS", "60")
    assert _tables.width(io.StringIO()) == _tables.PIPE_WIDTH
    assert _tables.width(Terminal()) == 60
    monkeypatch.setenv("COLUMNS", "nonsense")
    assert 20 <= _tables.width(Terminal()) != _tables.PIPE_WIDTH


def test_many_rows_that_do_not_fit_take_two_lines_each():
    columns = ("run", "when", "target", "source")
    rows = [
        (str(i), "2026-12-01", "openvino-int4-weights", "a/long/path/to/model.py:factory") for i in range(9)
    ]
    head, head2, *shown = lines(columns, rows, room=50)
    assert head.split() + head2.split() == list(columns)
    assert len(shown) == 2 * len(rows)
    assert shown[0].endswith("openvino-int4-weights")
    assert shown[1].strip() == "a/long/path/to/model.py:factory"
    assert shown[1].startswith("    ")
