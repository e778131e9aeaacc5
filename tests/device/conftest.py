"""The test-bed's devices as fixtures; a test skips, saying why, where this machine cannot have one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))


@pytest.fixture
def make_sshd():
    """Start an sshd with these settings; it ends with the test."""
    from testbed.sshd import MissingToolError, Sshd

    running = []

    def start(**settings):
        server = Sshd(**settings)
        try:
            running.append(server.__enter__())
        except MissingToolError as error:
            pytest.skip(str(error))
        return server

    yield start
    for server in running:
        server.__exit__()


@pytest.fixture
def sshd(make_sshd):
    """A plain device."""
    return make_sshd()
