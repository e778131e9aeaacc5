"""Recipes are read, and plans found, without PyTorch: a cached compression starts as quickly as any other command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.compress import recipes
from edgekit.compress.registry import registry
from edgekit.core import plugins
from edgekit.core.plugins import Plugin
from edgekit.errors import PluginError

_CHECK = """
import sys
from edgekit.compress import recipes
from edgekit.compress.registry import registry
import edgekit.compress.plan, edgekit.pipeline.compress
line = recipes.read(";".join(registry())).line
heavy = {"torch", "onnx", "safetensors.torch", "lightning_fabric"} & set(sys.modules)
assert not heavy, heavy
print(line)
"""


def test_reading_a_recipe_of_every_step_imports_no_torch() -> None:
    result = subprocess.run([sys.executable, "-c", _CHECK], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().split(";") == sorted(registry())


def test_a_plugin_brings_a_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "acme_step.py").write_text(
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "from edgekit.compress.step import Step\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Halve(Step):\n"
        "    NAME: ClassVar[str] = 'halve'\n"
        "    IMPLEMENTATION: ClassVar[str] = 'acme_step'\n"
        "    times: int = 1\n"
        "STEP = Halve\n"
        "def apply(step, model, context):\n"
        "    return [x / 2**step.times for x in model]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    extra = Plugin(name="acme", data=tmp_path, steps={"halve": "acme_step", "double": "acme_step"})
    own = plugins.plugins()
    monkeypatch.setattr(plugins, "plugins", lambda: (*own, extra))
    with pytest.raises(PluginError, match="no step 'double'"):
        registry()
    extra = Plugin(name="acme", data=tmp_path, steps={"halve": "acme_step"})
    (step,) = recipes.read("halve(times=3)").steps
    assert step.apply([8.0], None) == [1.0]  # type: ignore[arg-type, comparison-overlap]
    assert step.restore([8.0], {}) == [8.0]  # type: ignore[arg-type, comparison-overlap]
