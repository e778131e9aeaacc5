"""Precisions that a runtime does not have: a typed error with the reason, not an unknown name."""

from __future__ import annotations

import pytest

from edgekit.core import targets
from edgekit.errors import UnknownNameError, UnsupportedError


@pytest.mark.parametrize("name", ["ort-bf16", "ort-fp8", "openvino-fp8", "tflite-bf16", "tflite-fp8"])
def test_the_reason_and_what_to_use_instead_are_told(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{name} is not possible: ") as raised:
        targets.select(f"ort-fp32,{name}")
    assert raised.value.exit_code == 4
    assert raised.value.hint.startswith("use ")


def test_no_row_is_both_possible_and_not() -> None:
    rows = targets.known()
    for row in targets.impossible():
        assert row.name not in rows
        mentioned = [w for w in row.instead.replace(",", " ").split() if "-" in w]
        assert set(mentioned) <= set(rows), row.name


def test_other_names_are_unknown_as_ever() -> None:
    with pytest.raises(UnknownNameError):
        targets.find("ort-int9")
