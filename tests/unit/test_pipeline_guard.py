"""``--max-drop``: what the search for layers to take out of integers is run with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgekit.core import targets
from edgekit.core.config import Options
from edgekit.core.progress import Silent
from edgekit.core.store import Store
from edgekit.pipeline import guard
from edgekit.pipeline.stages import BuildContext
from edgekit.quantize.options import QuantizeOptions


@pytest.mark.parametrize("name", ["ort-int8", "tflite-int8"])
def test_layers_are_ranked_and_measured_with_the_targets_own_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Ranked with 8-bit weights, layers of a 7-bit artifact come in another order."""
    target = targets.find(name)
    assert target.scheme is not None
    target = replace(target, scheme=replace(target.scheme, weight_bits=7))
    settings = {"io_dtype": "int8"} if name == "tflite-int8" else {}
    context = BuildContext(store=Store(tmp_path), options=Options(set=settings), progress=Silent())
    ranked: list[QuantizeOptions] = []

    def sensitivities(*arguments: Any) -> tuple[()]:
        ranked.append(arguments[-1])
        return ()

    monkeypatch.setattr(guard, "sensitivities", sensitivities)
    measured: list[QuantizeOptions] = []

    def measure(options: QuantizeOptions) -> Any:
        measured.append(options)
        return SimpleNamespace(nonfinite=0, metric_drop=0.5, metric_name="accuracy")

    model: Any = None
    outcome = guard.search(context, model, target, model, 0.01, measure)
    wanted = QuantizeOptions.of(context.options, target)
    assert wanted.weight_bits == 7
    assert wanted.float_outputs is not bool(settings)
    assert ranked == measured == [wanted]
    assert outcome.choice == wanted
