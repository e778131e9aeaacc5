"""docs/architecture.md names files and rooms: each is there, and each room is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PATH = re.compile(r"`((?:[\w.-]+/)+(?:[\w-]+\.\w+)?|\w+\.(?:py|toml|md|json))`")
USERS = (".edgekit/targets/", "manifest.json", "package/")
"""What lies with the user or in an artifact."""


def named() -> list[str]:
    return sorted({path for path in PATH.findall(TEXT) if path not in USERS})


def test_enough_is_named() -> None:
    assert len(named()) > 70


@pytest.mark.parametrize("path", named())
def test_what_is_named_is_there(path: str) -> None:
    assert any((base / path).exists() for base in (ROOT / "edgekit", ROOT)), path


def test_every_room_is_in_the_tree() -> None:
    tree = TEXT[TEXT.index("## The tree") : TEXT.index("## Words")]
    rooms = {p.name for p in (ROOT / "edgekit").iterdir() if (p / "__init__.py").is_file()}
    assert {room for room in rooms if f"| `{room}/` |" not in tree} == set()


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([\w.-]+\.md)\)", TEXT):
        assert (ROOT / "docs" / link).is_file(), link
