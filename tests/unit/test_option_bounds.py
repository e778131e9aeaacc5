"""Numbers that a target's options may have: one declaration, asked before anything is done, wherever they come from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgekit.artifact import manifest
from edgekit.artifact.manifest import FileRecord, Manifest, Status
from edgekit.backends.nvidia import asked
from edgekit.backends.nvidia.recipe import Recipe
from edgekit.core import config, settings, targets
from edgekit.core.config import Options
from edgekit.errors import ConfigError, EdgekitError, SourceError, UnsupportedError
from edgekit.pipeline import api
from edgekit.sweep import cells
from edgekit.sweep import plan as sweeps
from edgekit.types import Option, OptionSpec, SourceRecord

TENSORRT = targets.find("tensorrt-int8")
NUMBERS = [
    (t.name, o)
    for t in targets.known().values()
    for o in t.options
    if isinstance(o.default, int | float) and not isinstance(o.default, bool)
]


@pytest.mark.parametrize(("target", "spec"), NUMBERS, ids=lambda v: v if isinstance(v, str) else v.name)
def test_every_number_of_every_target_has_bounds(target: str, spec: OptionSpec) -> None:
    assert spec.choices or None not in (spec.minimum, spec.maximum)
    wrong: list[Option] = [-(1 << 40), 1 << 62, float("nan"), float("inf"), 1.5, True, "many"]
    for value in wrong:
        with pytest.raises(ConfigError) as caught:
            config.target_options(targets.find(target), {spec.name: value})
        assert spec.allowed in (caught.value.hint or "")
        assert caught.value.exit_code == 2


NONSENSE = [
    ("dla", "99"),
    ("dla", "-2"),
    ("workspace_mib", "-1"),
    ("workspace_mib", "1" * 20),
    ("minutes", "0"),
    ("minutes", "-5"),
    ("minutes", "1e11"),
    ("minutes", "nan"),
    ("axes", "batch=4:2:8"),
    ("axes", "batch=1:1:99999999999"),
    ("axes", "=1:2:3"),
    ("axes", "batch=1:1:2,batch=1:1:4"),
    ("axes", "batch"),
    ("typing", "odd"),
    ("cuda_graph", "2"),
]


def options(project: Path, **more: Any) -> Options:
    return Options.load({"target": ("tensorrt-fp16",), **more}, project=project)


def source(folder: Path) -> str:
    """A file that is there; it is not read."""
    (folder / "model.onnx").write_bytes(b"")
    return str(folder / "model.onnx")


@pytest.mark.parametrize(("name", "text"), NONSENSE)
def test_a_dry_run_refuses_what_a_build_would(name: str, text: str, tmp_path: Path) -> None:
    parsed = config.declared_options(Options)["set"].from_text(f"{name}={text}", where="--set")
    with pytest.raises(ConfigError, match=name):
        api.checked(source(tmp_path), options(tmp_path, set=parsed))


@pytest.mark.parametrize(
    "more",
    [
        {"method": "odd"},
        {"corrections": ("odd",)},
        {"recipe": "missing.toml"},
        {"recipe": "prune(0.5"},
        {"memory": "5XB"},
        {"calib": "missing.py:samples"},
        {"eval": "missing"},
        {"metric": "missing.py:f:lower"},
    ],
    ids=str,
)
def test_a_dry_run_looks_at_every_option(
    more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    api.checked(source(tmp_path), options(tmp_path))
    with pytest.raises(EdgekitError) as caught:
        api.checked(source(tmp_path), options(tmp_path, **more))
    assert caught.value.exit_code in (2, 3)


@pytest.mark.parametrize(("line", "name"), [("minutes = 0", "minutes"), (f"axes = {10**30}", "axes")])
def test_a_projects_file_is_read_with_the_same_bounds(line: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "edgekit.toml").write_text(f"set = {{ {line} }}\n")
    with pytest.raises(ConfigError, match=name):
        api.checked(source(tmp_path), options(tmp_path))


@pytest.mark.parametrize("place", ["options", "variant"])
def test_a_sweep_is_refused_before_its_first_cell(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    row = "[options]\n" if place == "options" else '[[variants]]\nname = "odd"\n[variants.options]\n'
    (tmp_path / "sweep.toml").write_text(
        f'sources = ["model.onnx"]\ntargets = ["tensorrt-fp16"]\n{row}set = {{ dla = 99 }}\n'
    )
    with pytest.raises(ConfigError, match="dla=99"):
        cells.cells(sweeps.read(tmp_path / "sweep.toml"))


@pytest.mark.parametrize(
    ("capabilities", "error"),
    [
        ("SM99", ConfigError),
        ("SM90", ConfigError),
        ("SM", ConfigError),
        ("SM86,9", ConfigError),
        ("SM75", UnsupportedError),
    ],
)
def test_compute_capabilities_are_looked_at_first(capabilities: str, error: type[EdgekitError]) -> None:
    target = targets.find("tensorrt-rtx-bf16")
    with pytest.raises(error):
        asked.check_options(target, {"compute_capabilities": capabilities}, builder="1.7.1")
    asked.check_options(target, {"compute_capabilities": "SM86,SM89"}, builder="1.7.1")


def test_a_later_builder_may_have_more() -> None:
    target = targets.find("tensorrt-rtx-fp32")
    asked.check_options(target, {"compute_capabilities": "SM90"}, builder="2.0")


def test_what_a_target_does_not_know_is_another_targets() -> None:
    settings.check([targets.find("ort-fp32")], {"minutes": -5})


def test_the_recipe_has_the_targets_bounds() -> None:
    """It is read on its own, where an artifact is altered."""
    schema = msgspec.json.schema(Recipe)["$defs"]["Recipe"]["properties"]
    for spec in TENSORRT.options:
        if spec.minimum is not None:
            bounds = schema[spec.name]
            assert (bounds["minimum"], bounds["maximum"]) == (spec.minimum, spec.maximum)


def test_a_row_whose_default_is_not_allowed_is_refused() -> None:
    with pytest.raises(ConfigError, match="0 by default, and a whole number of 1 or more"):
        OptionSpec(name="many", default=0, help="", minimum=1)
    assert OptionSpec(name="share", default=0.5, help="", maximum=1).takes(1)
    assert OptionSpec(name="share", default=0.5, help="", maximum=1).allowed == "a number of 1 or less"


def test_a_manifest_with_a_setting_that_is_not_allowed_contradicts_itself() -> None:
    source = SourceRecord(text="m.onnx", kind="onnx", sha256="0" * 64)
    file = FileRecord(name="model.onnx", size=1, sha256="0" * 64)
    made = Manifest(
        edgekit="1",
        status=Status.NOT_RUN,
        target=TENSORRT,
        source=source,
        files=(file,),
        settings={"minutes": 30, "axes": 7},
    )
    assert manifest.parse(manifest.encoded(made), "m").settings["minutes"] == 30
    wrong = replace(made, settings={"minutes": -5})
    with pytest.raises(SourceError, match=r"minutes=-5, and a whole number from 1 to 10,000"):
        manifest.parse(manifest.encoded(wrong), "m")
    for key, value in (("default", 0), ("minimum", 61), ("maximum", "many")):
        damaged = json.loads(manifest.encoded(made))
        next(o for o in damaged["target"]["options"] if o["name"] == "minutes")[key] = value
        with pytest.raises(SourceError):
            manifest.parse(json.dumps(damaged).encode(), "m")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8"])
def test_a_dla_is_refused_for_what_it_does_not_compute_in(precision: str) -> None:
    from edgekit.backends.nvidia import tensorrt

    row = targets.find(f"tensorrt-{precision}")
    with pytest.raises(ConfigError, match=f"dla=0: a DLA does not compute in {precision}") as caught:
        tensorrt.check_options(row, {"dla": 0})
    assert caught.value.exit_code == 2
    tensorrt.check_options(row, {"dla": -1})
    tensorrt.check_options(targets.find("tensorrt-int8"), {"dla": 0})
