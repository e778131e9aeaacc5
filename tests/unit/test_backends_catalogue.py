"""The rows of data, and the parts of the backends that need no runtime."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from edgekit.backends.nvidia import profiles
from edgekit.backends.nvidia.recipe import Recipe, by_hand
from edgekit.backends.onnxruntime.artifact import minimum_runtime
from edgekit.core import plugins, targets
from edgekit.errors import ConfigError, UnknownNameError
from edgekit.types import Precision, TensorSpec

OURS = [t for t in targets.known().values() if t.owner == "edgekit"]


def test_names_say_backend_and_precision():
    for target in OURS:
        precision = str(target.precision).removesuffix("-weights" if target.task else "")
        assert target.name.endswith(f"-{precision}"), target.name


@pytest.mark.parametrize("target", OURS, ids=lambda t: t.name)
def test_a_row_says_why_and_what_it_tolerates(target):
    assert len(target.why) > 40
    losses = ("perplexity", "token_agreement") if target.task else ("snr_db", "metric_drop")
    assert all(getattr(target.tolerance, name) is not None for name in losses)
    assert target.platforms
    assert target.extra in _extras()


@pytest.mark.parametrize("target", [t for t in OURS if t.precision is Precision.INT8], ids=lambda t: t.name)
def test_int8_rows_need_calibration_and_gate_placement(target):
    assert target.needs_calibration
    assert target.tolerance.placement is not None


def test_tensorrt_schemes_are_what_its_parser_takes():
    for target in OURS:
        if target.backend.startswith("tensorrt") and target.scheme:
            assert target.scheme.activation_symmetric
            assert target.scheme.bias == "float32"


def test_every_backend_imports_without_its_runtime():
    modules = [module for module, _ in plugins.backends().values()]
    heavy = (
        "torch",
        "onnx",
        "onnxruntime",
        "openvino",
        "tensorrt_rtx",
        "tensorrt",
        "ai_edge_litert",
        "numpy",
    )
    code = (
        "import importlib, sys\n"
        f"for m in {modules!r}: importlib.import_module(m).available()\n"
        f"print(*(m for m in {heavy!r} if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_minimum_runtime_grows_with_the_opset():
    versions = [tuple(map(int, minimum_runtime(opset).split("."))) for opset in range(13, 30)]
    assert versions == sorted(versions)
    assert minimum_runtime(20) == "1.17"


STATIC = TensorSpec(name="x", dtype="float32", shape=(1, 3, 8, 8))
DYNAMIC = TensorSpec(name="ids", dtype="int64", shape=("batch", "sequence"))


def test_profiles_cover_dynamic_inputs_only():
    assert profiles.profiles((STATIC,), "") == {}
    assert profiles.profiles((STATIC, DYNAMIC), "") == {"ids": ((1, 1), (1, 128), (8, 512))}
    assert profiles.profiles((DYNAMIC,), "sequence=4:8:16, batch=2:2:2")["ids"] == ((2, 4), (2, 8), (2, 16))


@pytest.mark.parametrize(
    "text", ["sequence", "sequence=1:2", "sequence=a:b:c", "sequence=4:2:8", "sequence=0:1:2"]
)
def test_a_malformed_axis_says_how_to_write_it(text):
    with pytest.raises(ConfigError, match="sequence"):
        profiles.profiles((DYNAMIC,), text)


def test_an_axis_that_is_not_there_names_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        profiles.profiles((DYNAMIC,), "sequense=1:2:3")
    assert "sequence" in caught.value.hint


def test_compute_capabilities_are_read_in_both_spellings():
    assert profiles.compute_capabilities("SM86, 8.9,120") == ("SM86", "SM89", "SM120")
    assert profiles.compute_capabilities("") == ()
    with pytest.raises(ConfigError):
        profiles.compute_capabilities("ampere")


def test_the_recipe_spells_shapes_and_no_precision_flags():
    shapes = {"ids": ((1, 1), (1, 128), (8, 512))}
    argv = by_hand(Recipe(precision="int8", profiles=shapes))
    assert "--minShapes=ids:1x1" in argv
    assert "--optShapes=ids:1x128" in argv
    assert "--maxShapes=ids:8x512" in argv
    assert not {"--fp16", "--int8"} & set(argv)
    assert "--noTF32" in argv
    assert "--stronglyTyped" in argv


def _extras() -> set[str]:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    return set(tomllib.loads(text)["project"]["optional-dependencies"])
