"""A module that comes in training mode is built in evaluation mode, and that is said where it makes a difference."""

from __future__ import annotations

import pytest
import torch

from edgekit.load.factory import from_result


@pytest.mark.parametrize(
    ("layer", "mode", "said"),
    [
        (torch.nn.Dropout(0.5), True, ("Dropout",)),
        (torch.nn.BatchNorm1d(4), True, ("BatchNorm1d",)),
        (torch.nn.ReLU(), True, ()),
        (torch.nn.Dropout(0.5), False, ()),
    ],
)
def test_it_is_said_of_layers_that_training_changes(layer, mode, said):
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), layer).train(mode)
    model = from_result((module, torch.randn(2, 4)), "a module", None)
    assert not model.module.training
    assert len(model.notes) == len(said)
    assert all(name in note for name, note in zip(said, model.notes, strict=True))
