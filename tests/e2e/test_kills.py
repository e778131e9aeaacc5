"""kill -9 at random and after a step: the same bytes in the end, and nothing left (more often: tools/kills.py)."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import kills

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("interruption")]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["build", "package"])
def test_a_killed_run_goes_on_to_the_same_bytes(command, tmp_path):
    if command == "package":
        place = kills.Place(tmp_path, "build")
        place.finish()
        (place.folder / "out").rename(tmp_path / kills.ARTIFACTS)
    figures = kills.torture(tmp_path, command, 4, random.Random(1), every=6)
    assert figures.kills >= 4
    assert figures.left_in_the_end == []
    assert figures.other_bytes == []
