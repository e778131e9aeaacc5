"""Options: one declaration, four spellings, each read strictly."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from edgekit.cli import cli
from edgekit.cli._options import declared
from edgekit.core import config
from edgekit.core.config import Options
from edgekit.core.declared import declared_options, parse_fraction, parse_settings, parse_value
from edgekit.errors import ConfigError, UnknownNameError, UnknownOptionError, UsageError
from edgekit.types import OptionSpec, Precision, Target


@pytest.fixture(autouse=True)
def nobody(tmp_path, monkeypatch):
    """No options but the test's own: neither the user's nor those of the tests' environment."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for field in declared_options(Options).values():
        monkeypatch.delenv(field.variable, raising=False)


@pytest.fixture
def command():
    """``options(arguments)`` gives what a command of the command line makes of them."""
    given: list[Options] = []

    @click.command()
    @declared("build")
    def build(options):
        given.append(options)

    def options(*arguments):
        result = CliRunner().invoke(build, arguments, catch_exceptions=False, standalone_mode=False)
        if result.exception:
            raise result.exception
        return given[-1]

    return options


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
    options = Options.load({"calib": "flag"}, project=tmp_path)
    assert (options.out, options.method, options.calib) == (Path("file"), "env", "flag")


def test_pyproject_is_read_when_there_is_no_edgekit_toml(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[tool.edgekit]\ntarget = "ort-int8"\n[tool.other]\nx = 1\n')
    assert Options.load(project=tmp_path).target == ("ort-int8",)


def test_an_unknown_key_offers_the_nearest(tmp_path):
    (tmp_path / "edgekit.toml").write_text('tagret = "ort-int8"\n')
    with pytest.raises(UnknownNameError) as error:
        Options.load(project=tmp_path)
    assert error.value.nearest[0] == "target"


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("3", 3), ("0.5", 0.5), ("nhwc", "nhwc"), ("", ""), ("1e-3", 1e-3)]
)
def test_values_are_typed(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "value"), [("1%", 0.01), ("0.5pt", 0.005), ("0.02", 0.02), ("2 points", 0.02)]
)
def test_fractions(text, value):
    assert parse_fraction(text, what="--max-drop") == pytest.approx(value)


@pytest.mark.parametrize("text", ["one", "200%", "-1%", "", "nan", "inf", "1000"])
def test_what_is_no_fraction_is_refused(text):
    with pytest.raises(ConfigError, match="--max-drop"):
        parse_fraction(text, what="--max-drop")


@pytest.mark.parametrize("item", ["io_layout", "=nhwc"])
def test_a_setting_needs_key_and_value(item):
    with pytest.raises(ConfigError, match="key=value"):
        parse_settings([item])


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


def test_an_option_that_is_on_can_be_switched_off_and_on_from_python(tmp_path):
    (tmp_path / "edgekit.toml").write_text("allow_not_run = true\n")
    settings = Options.load({"speed_gate": False, "allow_not_run": False}, project=tmp_path)
    assert not settings.speed_gate
    assert not settings.allow_not_run


# --- one declaration --------------------------------------------------------------------------------------


def test_every_option_has_every_spelling(command, tmp_path, monkeypatch):
    """The command line, a TOML file, the environment and Python give the same options."""
    spelled = {
        "target": ("a,b", ("a", "b")),
        "out": ("there", Path("there")),
        "set": ("io_layout=nhwc", {"io_layout": "nhwc"}),
        "samples": ("7", 7),
        "shape": ("ids=1x128", {"ids": "1x128"}),
        "sequence_length": ("7", 7),
        "timeout": ("7", 7),
        "max_drop": ("2%", 0.02),
        "limit": ("snr=30", {"snr": 30}),
        "bind": ("sr=16000", {"sr": 16000}),
        "state": ("h0=hn", {"h0": "hn"}),
        "accelerator": ("cpu", "cpu"),
        "processes": ("2", 2),
        "exclude": ("conv*", ("conv*",)),
    }
    monkeypatch.chdir(tmp_path)
    for name, field in declared_options(Options).items():
        text, value = spelled.get(name, ("one", ("one",) if field.is_list else "one"))
        if field.is_switch or not field.flags or not field.declared.commands:
            continue
        in_python = Options(**{name: value})
        assert command(field.flags[0], text) == in_python
        monkeypatch.setenv(field.variable, text)
        assert Options.load() == in_python
        monkeypatch.delenv(field.variable)
        toml = {"set": "{io_layout = 'nhwc'}", "samples": "7", "exclude": "['conv*']", "limit": "{snr = 30}"}
        toml |= {"shape": "{ids = '1x128'}", "sequence_length": "7", "timeout": "7", "bind": "{sr = 16000}"}
        toml |= {"state": "{h0 = 'hn'}", "processes": "2"}
        written = f"['{text}']" if field.is_list and not field.declared.split else f"'{text}'"
        (tmp_path / "edgekit.toml").write_text(f"{name} = {toml.get(name, written)}\n")
        assert Options.load() == in_python
        (tmp_path / "edgekit.toml").unlink()


@pytest.mark.parametrize("name", ["speed_gate", "allow_not_run", "network"])
def test_a_flag_switches_on_and_off_what_the_file_says(command, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    on, off = declared_options(Options)[name].flags
    for value in (True, False):
        (tmp_path / "edgekit.toml").write_text(f"{name} = {str(value).lower()}\n")
        assert getattr(command(), name) is value
        assert getattr(command(on), name) is True
        assert getattr(command(off), name) is False


def test_an_empty_text_takes_back_what_the_file_says(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edgekit.toml").write_text('exclude = ["conv*"]\nrecipe = "prune"\n')
    options = command("--exclude", "", "--recipe", "")
    assert (options.exclude, options.recipe) == ((), "")


def test_settings_are_merged_by_name(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edgekit.toml").write_text("[set]\nthreads = 2\nio_layout = 'nhwc'\n")
    assert command("--set", "threads=4").set == {"threads": 4, "io_layout": "nhwc"}


# --- strictly ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["false", "0", "no", "off", "No", "OFF"])
def test_words_for_off(monkeypatch, word):
    monkeypatch.setenv("EDGEKIT_SPEED_GATE", word)
    assert Options.load().speed_gate is False


@pytest.mark.parametrize("word", ["true", "1", "yes", "on", "Yes"])
def test_words_for_on(monkeypatch, word):
    monkeypatch.setenv("EDGEKIT_NETWORK", word)
    assert Options.load().network is True


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("EDGEKIT_SAMPLES", "abc"),
        ("EDGEKIT_SAMPLES", "0"),
        ("EDGEKIT_SAMPLES", "1.5"),
        ("EDGEKIT_NETWORK", "maybe"),
        ("EDGEKIT_ACCELERATOR", "gpu"),
        ("EDGEKIT_MAX_DROP", "1"),
        ("EDGEKIT_SET", "io_layout"),
    ],
)
def test_a_variable_that_cannot_be_meant_is_named(monkeypatch, variable, text):
    monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigError, match=variable):
        Options.load()


@pytest.mark.parametrize(
    "line",
    [
        'samples = "7"',
        "samples = 1.5",
        "samples = true",
        'network = "yes"',
        "network = 1",
        'exclude = "conv*"',
        "exclude = [1]",
        "max_drop = 1",
        "max_drop = 1.0",
        "max_drop = -0.1",
        "max_drop = true",
        "method = 3",
        "set = 3",
        "out = ''",
    ],
)
def test_a_value_of_the_wrong_type_in_a_file_is_named(tmp_path, line):
    (tmp_path / "edgekit.toml").write_text(line + "\n")
    with pytest.raises(ConfigError, match=rf"edgekit\.toml: {line.split()[0]}"):
        Options.load(project=tmp_path)


@pytest.mark.parametrize("text", ["[tool]\nedgekit = 3\n", "tool = 3\n", "[[tool.edgekit]]\nout = 'a'\n"])
def test_a_table_that_is_none_is_an_error(tmp_path, text):
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(ConfigError, match="not a table"):
        Options.load(project=tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"samples": "7"},
        {"samples": None},
        {"max_drop": "1%"},
        {"max_drop": 1},
        {"max_drop": 1.5},
        {"max_drop": True},
        {"trust": 1},
        {"exclude": "conv*"},
        {"set": {"a": [1]}},
        {"out": 3},
        {"accelerator": "gpu"},
    ],
)
def test_python_values_have_their_type(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Options(**wrong)


def test_an_unknown_name_in_python_offers_the_nearest():
    with pytest.raises(UnknownOptionError) as error:
        Options(max_dorp=0.1)
    assert isinstance(error.value, ConfigError)
    assert error.value.nearest == ("max_drop",)
    with pytest.raises(ConfigError):
        Options("ort-int8")


@pytest.mark.parametrize("text", ["1", "1.0", "2", "100"])
def test_a_bare_number_is_asked_about(command, text):
    with pytest.raises(ConfigError, match=rf"mean {float(text):g}% or {float(text) / 100:g}\?"):
        command("--max-drop", text)
    assert command("--max-drop", "100%").max_drop == 1.0


# --- trust ------------------------------------------------------------------------------------------------


def test_a_project_cannot_allow_code_to_be_executed(tmp_path, monkeypatch):
    (tmp_path / "edgekit.toml").write_text("trust = true\n")
    with pytest.raises(ConfigError, match="neither a project's nor the environment's") as error:
        Options.load(project=tmp_path)
    assert "--trust" in error.value.hint
    (tmp_path / "edgekit.toml").unlink()
    (tmp_path / "pyproject.toml").write_text("[tool.edgekit]\ntrust = true\n")
    with pytest.raises(ConfigError, match="trust = true"):
        Options.load(project=tmp_path)


def test_the_environment_cannot_allow_code_to_be_executed(monkeypatch):
    monkeypatch.setenv("EDGEKIT_TRUST", "no")
    assert Options.load().trust is False
    monkeypatch.setenv("EDGEKIT_TRUST", "yes")
    with pytest.raises(ConfigError, match="EDGEKIT_TRUST=yes"):
        Options.load()


def test_the_user_can(tmp_path, command):
    assert command("--trust").trust
    (tmp_path / "config" / "edgekit").mkdir(parents=True)
    (tmp_path / "config" / "edgekit" / "edgekit.toml").write_text("trust = true\n")
    assert command().trust
    assert not command("--no-trust").trust
    (tmp_path / "edgekit.toml").write_text("trust = false\n")
    assert not Options.load(project=tmp_path).trust


def test_what_differs_from_the_defaults_is_shown():
    assert repr(Options(samples=7, exclude=("a",))) == "Options(samples=7, exclude=('a',))"


@pytest.mark.parametrize(
    ("words", "repeated"),
    [
        (["build", "m.py:f", "--out", "a", "-o", "b"], "--out"),
        (["bench", "a", "--device", "x", "--device", "y"], "--device"),
        (["devices", "add", "n", "--ssh", "x", "--ssh", "y"], "--ssh"),
    ],
)
def test_an_option_of_one_value_is_not_given_twice(words, repeated):
    result = CliRunner().invoke(cli, words)
    assert isinstance(result.exception, UsageError)
    assert str(result.exception).startswith(f"{repeated} is given 2 times")


def test_targets_may_be_given_one_by_one(command):
    assert command("--target", "a,b", "-t", "c").target == ("a", "b", "c")


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("compute_capabilities=SM86,SM89", {"compute_capabilities": "SM86,SM89"}),
        ("axes=batch=1:2:4,time=1:8:32,dla=0", {"axes": "batch=1:2:4,time=1:8:32", "dla": 0}),
        ("threads=2, io_layout=nhwc", {"threads": 2, "io_layout": "nhwc"}),
    ],
)
def test_commas_in_a_setting(text: str, settings: dict[str, object]) -> None:
    from edgekit.core.declared import pairs, parse_settings

    assert parse_settings(pairs(text)) == settings
