"""``sweep.toml``: what is taken, what is refused with its place, and what stays inside of the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgekit.errors import ConfigError, EdgekitError, UnknownNameError, UntrustedSourceError
from edgekit.sweep import cells as grid
from edgekit.sweep import plan

HEAD = 'sources = ["m.onnx"]\ntargets = ["ort-fp32"]\n'


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def written(project: Path, text: str) -> Path:
    path = project / "sweep.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


def cells(project: Path, text: str, **how: bool) -> tuple[grid.Cell, ...]:
    return grid.cells(plan.read(written(project, text), **how), **how)


def test_the_grid_is_the_product_of_its_axes(project):
    text = """
    targets = ["ort-fp32", "ort-fp16"]
    devices = ["", "local"]
    [options]
    samples = 32
    [[sources]]
    source = "a.onnx"
    options = { calib = "a" }
    [[sources]]
    source = "b.onnx"
    [[recipes]]
    [[recipes]]
    recipe = "prune(sparsity=0.5)"
    [[variants]]
    name = "plain"
    [[variants]]
    name = "few"
    options = { samples = 8 }
    """
    found = cells(project, text)
    assert len(found) == 2 * 2 * 2 * 2 * 2
    assert len({c.name for c in found}) == len({c.key for c in found}) == len(found)
    first = found[0]
    assert (first.options.calib, first.options.samples, first.options.target) == ("a", 32, ("ort-fp32",))
    assert {c.options.samples for c in found if c.variant == "few"} == {8}
    assert {c.options.calib for c in found if c.source == "b.onnx"} == {""}


def test_settings_of_several_rows_are_merged_by_name(project):
    text = 'targets = ["ort-fp32"]\n[options.limit]\nsnr = 20\n[[sources]]\nsource = "a.onnx"\n'
    text += "[sources.options.limit]\nsize = 100\n"
    (cell,) = cells(project, text)
    assert dict(cell.options.limit) == {"snr": 20, "size": 100}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "names no sources"),
        ('sources = ["m.onnx"]', "names no targets"),
        ('targets = ["ort-fp32"]\nsources = []', "names no sources"),
        (HEAD + "surces = 1", "surces"),
        ('surces = ["m.onnx"]', "surces"),
        (HEAD + "[limits]\nmemory = 'much'", "limits: memory"),
        (HEAD + "[limits]\nthreads = 0", "limits: threads"),
        (HEAD + "[limits]\nretries = -1", "limits: retries"),
        (HEAD + "[bench]\nseconds = nan", "bench: seconds"),
        (HEAD + "[options]\ntrust = true", "trust"),
        (HEAD + "[options]\nout = '/etc'", "out"),
        (HEAD + "[options]\ntarget = 'all'", "target"),
        (HEAD + "[options]\nsampels = 3", "sampels"),
        (HEAD + "[options]\nsamples = 'many'", "samples"),
        (HEAD + "[options]\nmax_drop = 2.0", "max_drop"),
        (HEAD + "[[variants]]\nname = 'a'\n[[variants]]\nname = 'a'", "two variants"),
        (HEAD + "[[variants]]\nname = 3", "variants"),
        (HEAD + "recipes = 3", "recipes"),
        ("sources = [3]\ntargets = ['ort-fp32']", "sources"),
        ('sources = ["a\\u0000b.onnx"]\ntargets = ["ort-fp32"]', "characters"),
        ("sources = {}\ntargets = ['ort-fp32']", "sources"),
        ("sources = ['a']\ntargets = " + "[" * 3000 + "]" * 3000, "sweep.toml"),
        (HEAD + "x = " + "9" * 6000, "sweep.toml"),
        ("\udcff", "sweep.toml"),
        (HEAD + "recipes = []", "names no recipes"),
        (HEAD + "variants = []", "names no variants"),
        (HEAD + "devices = []", "names no devices"),
        (HEAD + "[options.limit]\nsnr = nan", "limit snr"),
        (HEAD + "[options.limit]\nsnrr = 3", "snrr"),
        (HEAD + "[[variants]]\nname = 'a'\n[variants.options]\nmemory = 'much'", "memory"),
        (HEAD + "[limits]\nmemory = '99999999999999999GB'", "limits: memory"),
        ("sources = [" + "'a'," * 400 + "]\ntargets = [" + "'b'," * 400 + "]", "160,000 cells"),
    ],
)
def test_what_cannot_be_meant_is_exit_2_and_says_where(project, text, says):
    with pytest.raises(EdgekitError) as raised:
        plan.read(written(project, text))
    assert raised.value.exit_code == 2
    assert says in str(raised.value)
    assert len(str(raised.value)) < 2000


def test_a_file_that_is_none_is_said(project):
    os.mkfifo(project / "pipe.toml")
    for path in (project / "none.toml", project / "pipe.toml", project):
        with pytest.raises(ConfigError):
            plan.read(path)


@pytest.mark.parametrize(
    "row",
    [
        'sources = ["/etc/model.onnx"]',
        'sources = ["../other/model.py:net"]',
        'sources = ["os:abort"]',
        'sources = ["hf:../model"]',
        'sources = ["link.py:net"]',
        'sources = ["m.onnx"]\nrecipes = ["../r.toml"]',
        'sources = ["m.onnx"]\n[options]\ncalib = "../data.py:all"',
        'sources = ["m.onnx"]\n[options]\nmetric = "shutil:rmtree"',
        'sources = ["m.onnx"]\n[options]\nmetric = "this:s:lower"',
        'sources = ["m.onnx"]\n[options]\nmetric = "link.py:f:lower"',
        'sources = ["m.onnx"]\n[options]\nmetric = "../m.py:f:higher"',
        'sources = ["m.onnx"]\nrecipes = ["../(r).toml"]',
        'sources = ["m.onnx"]\nrecipes = ["distill(teacher=this:s)"]',
        'sources = ["m.onnx"]\nrecipes = ["fold();distill(student=link.py:f;soft=0.5)"]',
        'sources = ["m.onnx"]\nrecipes = ["distill.toml"]',
        'sources = ["m.onnx"]\n[options.preprocessing]\nhuggingface = "../model"',
        'sources = ["m.onnx"]\n[options.preprocessing]\ntimm = "processor"',
        'sources = ["m.onnx"]\n[options]\ntask = "/tmp/task.py:mine"',
        'sources = ["m.onnx"]\n[[variants]]\nname = "a"\noptions = { bind = { x = "/etc/x.npy" } }',
    ],
)
def test_what_lies_elsewhere_needs_trust(project, row):
    (project / "link.py").symlink_to("/etc/passwd")
    (project / "distill.toml").write_text('[[step]]\nname = "distill"\nteacher = "../elsewhere.py:net"\n')
    (project / "processor").mkdir()
    (project / "processor" / "config.json").symlink_to("/etc/passwd")
    path = written(project, 'targets = ["ort-fp32"]\n' + row)
    with pytest.raises(UntrustedSourceError):
        plan.read(path)
    plan.read(path, trust=True)


def test_every_option_that_leads_to_files_or_code_is_looked_at():
    """A new option of texts is either here, or one of those that name none."""
    from edgekit.core.config import Options
    from edgekit.core.declared import declared_options

    found = {
        name
        for name in declared_options(Options)
        for value in ("os:abort", {"huggingface": "x", "input": "x.npy"})
        if list(plan.leading(name, value))
    }
    assert found == {"calib", "eval", "train", "task", "metric", "bind", "preprocessing"}
    named = {
        "source",
        "recipe",
        "target",
        "device",
        "out",
    }  # axes, each looked at by itself, and the command line's
    words = {
        "set",
        "shape",
        "state",
        "limit",
        "memory",
        "method",
        "accept_data",
        "log",
        "accelerator",
        "postprocessing",
    }
    patterns = {"exclude", "int16", "corrections"}
    texts = {n for n, f in declared_options(Options).items() if f.kind not in (bool, int, float)}
    assert texts <= found | named | words | patterns


def test_the_folders_own_options_are_looked_at_too(project):
    (project / "edgekit.toml").write_text('metric = "this:s:lower"\n')
    path = written(project, HEAD)
    with pytest.raises(UntrustedSourceError, match=r"edgekit\.toml"):
        plan.read(path)
    plan.read(path, trust=True)


@pytest.mark.parametrize("source", ["sub/m.onnx", "model.py:net", "sub/../m.onnx", "hf:sub/model"])
def test_what_lies_in_the_project_needs_none(project, source):
    plan.read(
        written(project, f'sources = ["{source}"]\ntargets = ["ort-fp32"]\n[options]\ncalib = "random"')
    )


def test_names_that_do_not_exist_are_said_before_anything_runs(project):
    with pytest.raises(UnknownNameError, match="ort-fp23"):
        cells(project, 'sources = ["m.onnx"]\ntargets = ["ort-fp23"]')
    with pytest.raises(UnknownNameError, match="pi9"):
        cells(project, HEAD + 'devices = ["pi9"]')
    with pytest.raises(ConfigError, match="twice"):
        cells(project, 'sources = ["m.onnx", "m.onnx"]\ntargets = ["ort-fp32"]')


def test_the_key_is_of_all_that_decides_on_the_result(project):
    def key(text: str) -> str:
        return cells(project, text)[0].key

    base = key(HEAD)
    (project / "r.toml").write_text('[[step]]\nname = "prune"\n')
    assert key(HEAD) == base
    assert key(HEAD + "[limits]\ntimeout = 5\nmemory = '4GB'\nretries = 3") == base
    others = [
        HEAD + "[options]\nsamples = 3",
        HEAD + "[limits]\nthreads = 2",
        HEAD + 'devices = ["local"]',
        HEAD + "[bench]",
        HEAD + 'recipes = ["r.toml"]',
        'sources = ["n.onnx"]\ntargets = ["ort-fp32"]',
        'sources = ["m.onnx"]\ntargets = ["ort-fp16"]',
    ]
    found = {key(text) for text in others}
    assert len(found) == len(others)
    assert base not in found
    before = key(HEAD + 'recipes = ["r.toml"]')
    (project / "r.toml").write_text('[[step]]\nname = "cluster"\n')
    assert key(HEAD + 'recipes = ["r.toml"]') != before
