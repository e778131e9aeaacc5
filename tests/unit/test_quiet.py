"""Silence in several threads: whoever ends last, the streams are what they were."""

from __future__ import annotations

import sys
from itertools import permutations

import pytest

from edgekit.core.quiet import silence


@pytest.mark.parametrize("ending", list(permutations(range(3))))
def test_levels_that_overlap_put_back_what_was_there(ending, capfd):
    streams = sys.stdout, sys.stderr
    inside = [silence(native=native) for native in (False, True, False)]
    for one in inside:
        one.__enter__()
    print("nobody hears it")
    for number in ending:
        assert not sys.stderr.closed
        inside[number].__exit__(None, None, None)
    assert (sys.stdout, sys.stderr) == streams
    print("this is heard")
    assert capfd.readouterr().out == "this is heard\n"
