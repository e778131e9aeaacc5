from __future__ import annotations

import pytest

from edgekit.core import config
from edgekit.errors import ConfigError, UnknownNameError
from edgekit.types import OptionSpec, Precision, Target


def target(*options):
    return Target(
        name="t-fp32", backend="t", precision=Precision.FP32, runs_on="cpu", file="model", options=options
    )


LAYOUT = OptionSpec(name="io_layout", default="nchw", help="", choices=("nchw", "nhwc"))
FLAG = OptionSpec(name="ort_format", default=False, help="")


def test_flags_win_over_environment_and_environment_over_file(tmp_path, monkeypatch):
    (tmp_path / "edgekit.toml").write_text('out = "file"\nmethod = "file"\ncalib = "file"\n')
    monkeypatch.setenv("EDGEKIT_METHOD", "env")
    monkeypatch.setenv("EDGEKIT_CALIB", "env")
    options = config.load({"calib": "flag", "out": None}, project=tmp_path)
    assert (options.out, options.method, options.calib) == ("file", "env", "flag")


def test_pyproject_is_read_when_there_is_no_edgekit_toml(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[tool.edgekit]\ntarget = "ort-int8"\n[tool.other]\nx = 1\n')
    assert config.load({}, project=tmp_path).target == "ort-int8"


def test_an_unknown_key_offers_the_nearest(tmp_path):
    (tmp_path / "edgekit.toml").write_text('tagret = "ort-int8"\n')
    with pytest.raises(UnknownNameError) as error:
        config.load({}, project=tmp_path)
    assert error.value.nearest[0] == "target"


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("3", 3), ("0.5", 0.5), ("nhwc", "nhwc"), ("", ""), ("1e-3", 1e-3)]
)
def test_values_are_typed(text, value):
    parsed = config.parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "value"), [("1%", 0.01), ("0.5pt", 0.005), ("0.02", 0.02), ("2 points", 0.02)]
)
def test_fractions(text, value):
    assert config.parse_fraction(text, what="--max-drop") == pytest.approx(value)


@pytest.mark.parametrize("text", ["one", "200%", "-1%", ""])
def test_what_is_no_fraction_is_refused(text):
    with pytest.raises(ConfigError, match="--max-drop"):
        config.parse_fraction(text, what="--max-drop")


@pytest.mark.parametrize("item", ["io_layout", "=nhwc"])
def test_a_setting_needs_key_and_value(item):
    with pytest.raises(ConfigError, match="key=value"):
        config.parse_settings([item])


def test_target_options_take_what_they_know():
    assert config.target_options(target(LAYOUT, FLAG), {"io_layout": "nhwc", "else": 1}) == {
        "io_layout": "nhwc",
        "ort_format": False,
    }


@pytest.mark.parametrize("settings", [{"io_layout": "hwcn"}, {"ort_format": "maybe"}, {"ort_format": 1}])
def test_impossible_values_are_refused(settings):
    with pytest.raises(ConfigError):
        config.target_options(target(LAYOUT, FLAG), settings)


def test_a_setting_that_no_target_knows_is_refused():
    with pytest.raises(UnknownNameError) as error:
        config.refuse_unknown_settings([target(LAYOUT)], {"io_layuot": "nhwc"})
    assert error.value.nearest == ("io_layout",)


def test_an_option_that_is_on_can_be_switched_off_from_python(tmp_path):
    (tmp_path / "edgekit.toml").write_text("accept_data = true\n")
    settings = config.load({"speed_gate": False, "accept_data": False}, project=tmp_path)
    assert not settings.speed_gate
    assert settings.accept_data
