"""Literals and headers of arrays, where other threads make trees at the same time."""

from __future__ import annotations

import ast
import io

import numpy as np
import pytest

from edgekit.core.literal import literal, parse
from edgekit.load.array_files import read_npy, read_npz, read_record


def test_a_tree_that_another_thread_upset_is_made_again(monkeypatch):
    real, failures = ast.literal_eval, [SystemError("AST constructor recursion depth mismatch")] * 3

    def upset(text):
        if failures:
            raise failures.pop()
        return real(text)

    monkeypatch.setattr(ast, "literal_eval", upset)
    assert literal("{'a': (1, 2)}") == {"a": (1, 2)}
    assert not failures


def test_what_is_wrong_with_the_text_is_said_at_once():
    with pytest.raises(ValueError, match="malformed"):
        literal("open('x')")
    with pytest.raises(SyntaxError):
        parse("def", "a.py")


def test_a_record_is_read_where_another_thread_upset_its_header(monkeypatch):
    """As CPython 3.11 does about once in thousands of headers that threads read side by side."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.arange(6, dtype="f4").reshape(1, 2, 3))
    real, failures = ast.literal_eval, [SystemError("AST constructor recursion depth mismatch")]

    def upset(text):
        if failures:
            raise failures.pop()
        return real(text)

    monkeypatch.setattr(ast, "literal_eval", upset)
    file.seek(0)
    assert read_record(file, len(file.getvalue())).shape == (1, 2, 3)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype="<f4").reshape(2, 3, 4),
        np.asfortranarray(np.arange(24, dtype=">i8").reshape(2, 12)),
        np.float16(3),
        np.array(["a", "bc"]),
        np.zeros((0, 4), bool),
        np.arange(3) + 1j,
        np.array([1, 5], "datetime64[s]"),
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_what_numpy_writes_is_read_as_numpy_reads_it(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", x=array)
    for found in (read_npy(tmp_path / "a.npy"), read_npz(tmp_path / "a.npz")["x"]):
        np.testing.assert_array_equal(found, np.load(tmp_path / "a.npy"))
        assert found.dtype == np.asarray(array).dtype
