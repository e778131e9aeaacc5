"""An artifact beside its own layers: what it gives when nobody looks between them."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from edgekit.cli.diff import _failure
from edgekit.diff import Walk, shipped
from edgekit.errors import NotRunnableError

REFERENCE = tuple((np.full((1, 4), k, np.float32),) for k in (1.0, 2.0, 3.0))


def as_it_ships(monkeypatch, outputs, walked_db=55.0, artifact="an artifact", error=None):
    @contextmanager
    def run(_runnable, _samples):
        if error is not None:
            raise error
        yield SimpleNamespace(outputs=[{"y": o} for o in outputs])

    monkeypatch.setattr(shipped, "run_artifact", run)
    monkeypatch.setattr(shipped, "runnable", lambda *_, **__: None)
    stage = SimpleNamespace(source_db=walked_db, wrong=())
    walk = Walk(stages=(stage,), samples=3, reference=REFERENCE)
    chain = SimpleNamespace(artifact=artifact, samples=({},) * 3)
    return walk, shipped.as_it_ships(chain, walk, trust=False)


def test_an_artifact_that_gives_what_its_layers_give(monkeypatch):
    _, found = as_it_ships(monkeypatch, [r * np.float32(1.001) for (r,) in REFERENCE])
    assert found.db == pytest.approx(60, abs=0.1)
    assert not found.fused


def test_wrong_only_in_one_piece_is_a_failure_though_no_layer_is_off(monkeypatch):
    walk, found = as_it_ships(monkeypatch, [r * np.float32(0.5) for (r,) in REFERENCE])
    assert found.db == pytest.approx(6.02, abs=0.01)
    assert found.fused
    error = _failure(SimpleNamespace(walk=walk, starts_at=None, shipped=found), None)
    assert error.exit_code == 5
    assert "what it fuses" in error.message


@pytest.mark.parametrize("walked_db", [62.0, 8.0])
def test_what_is_as_far_layer_by_layer_is_no_fusion(monkeypatch, walked_db):
    """Beyond 45 dB nothing is lost; and a loss that the walk has too is that of a layer, or of rounding."""
    wrong = 0.999 if walked_db > 50 else 0.5
    _, found = as_it_ships(monkeypatch, [r * np.float32(wrong) for (r,) in REFERENCE], walked_db)
    assert not found.fused


def test_what_cannot_be_run_says_why(monkeypatch):
    _, found = as_it_ships(monkeypatch, [], error=NotRunnableError("no GPU", hint=""))
    assert (found.db, found.why) == (None, "no GPU")
    assert as_it_ships(monkeypatch, [], artifact=None)[1] is None
