"""A third-party wheel: built, installed beside edgekit, its target built for; its runtime may crash."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from cli_process import edgekit

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("plugin")]


@pytest.fixture(scope="session")
def acme(root, tmp_path_factory):
    """The environment of a process that has the plug-in installed."""
    work = tmp_path_factory.mktemp("acme")
    shutil.copytree(root / "tests/e2e/acme_plugin", work / "source")
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        work / "dist",
        work / "source",
    ]
    subprocess.run([str(a) for a in build], check=True, capture_output=True)
    (wheel,) = (work / "dist").glob("*.whl")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        work / "site",
    ]
    subprocess.run([str(a) for a in (*install, wheel)], check=True, capture_output=True)
    return {"PYTHONPATH": str(work / "site")}


def build(root, out, env, *more, target="acme-fp32"):
    source = f"{root}/tests/e2e/sources.py:tiny"
    return edgekit("build", source, "-t", target, "-o", out, "--json", *more, env=env)


def test_its_target_is_listed_with_its_owner(acme):
    rows = {t["name"]: t for t in edgekit("targets", "--json", env=acme).json["targets"]}
    assert rows["acme-fp32"]["owner"] == "acme"
    assert rows["ort-fp32"]["owner"] == "edgekit"
    assert "acme-fp32" not in {t["name"] for t in edgekit("targets", "--json").json["targets"]}


def test_its_target_is_built_run_and_gated(root, acme, tmp_path):
    result = build(root, tmp_path, acme)
    assert result.code == 0, result.err
    assert result.json["targets"][0]["status"] == "passed"
    assert edgekit("verify", tmp_path / "acme-fp32", env=acme).code == 0


@pytest.fixture(scope="session")
def artifact(root, acme, tmp_path_factory):
    """An artifact of the plug-in's."""
    out = tmp_path_factory.mktemp("artifact")
    assert build(root, out, acme).code == 0
    return out / "acme-fp32"


def test_its_own_placement_rules_quantize(root, acme, tmp_path):
    data = f"{root}/tests/e2e/sources.py:wide"
    result = build(root, tmp_path, acme, "--calib", data, "--no-speed-gate", target="acme-int8")
    assert result.code == 0, result.err
    manifest = json.loads((tmp_path / "acme-int8" / "manifest.json").read_text())
    (step,) = [s for s in manifest["steps"] if s["name"] == "quantize"]
    assert step["output_sha256"]


def test_what_its_check_refuses_is_not_built(root, acme, tmp_path):
    source, data = f"{root}/tests/e2e/sources.py:with_erf", f"{root}/tests/e2e/sources.py:wide"
    result = edgekit("build", source, "-t", "acme-int8", "-o", tmp_path, "--calib", data, env=acme)
    assert result.code == 4, result.err
    assert "the engine has no table for it" in result.err
    assert "calibrate" not in result.err


def test_doctor_says_what_it_knows(acme):
    findings = edgekit("doctor", "--json", env=acme).json["findings"]
    assert "plug-in 1.0: the engine runs on one thread" in {f["detail"] for f in findings}


def test_its_own_tool_times_its_artifacts(acme, artifact, tmp_path):
    tool = tmp_path / "acme_bench"
    tool.write_text("#!/bin/sh\ntest -f $1 && echo acme: 1.5 ms\n")
    tool.chmod(0o700)
    result = edgekit("bench", artifact, "--binary", tool, "--json", env=acme)
    assert result.code == 0, result.err
    measured = result.json["measurements"][0]["measurement"]
    assert measured["p50_ms"] == 1.5
    assert "acme_bench feeds zeros" in measured["reasons"]


def test_its_runtime_can_be_compared_layer_by_layer(acme, artifact):
    result = edgekit("diff", artifact, "--json", env=acme)
    assert result.code == 0, result.err
    assert result.json["stages"][-1]["after"] == "Acme Engine"


def test_its_own_package_is_written_and_others_say_what_fits(acme, artifact, tmp_path):
    named = ("--name", "com.example.tiny", "--version", "1.0.0")
    out = tmp_path / "box"
    done = edgekit("package", artifact, "--format", "acme-box", *named, "--out", out, env=acme)
    assert done.code == 0, done.err
    assert (out / "LABEL").read_text() == "com.example.tiny for Acme Engine\n"
    refused = edgekit("package", artifact, "--format", "web", *named, "--out", tmp_path / "web", env=acme)
    assert refused.code == 4
    assert "formats for this artifact: bundle, acme-box" in refused.err


@pytest.mark.parametrize(("crash", "words"), [("segfault", ["SIGSEGV"]), ("abort", ["SIGABRT", "kernel 7"])])
def test_a_runtime_that_crashes_costs_only_its_own_target(root, acme, tmp_path, crash, words):
    result = build(root, tmp_path, acme, "--set", f"crash={crash}", target="acme-fp32,ort-fp32")
    assert result.code == 6, result.err
    for word in ("Acme Engine", *words):
        assert word in result.err
    assert [t["status"] for t in result.json["targets"]] == ["error", "passed"]
    assert [p.name for p in tmp_path.iterdir()] == ["ort-fp32"]


def test_an_int8_artifact_that_is_slower_than_fp32_fails_the_speed_gate(root, acme, tmp_path):
    env = acme | {"EDGEKIT_SPEED_GATE": "true"}
    result = build(root, tmp_path, env, "--calib", f"{root}/tests/e2e/sources.py:wide", target="acme-int8")
    assert result.code == 5, result.err
    assert result.json["targets"][0]["error"]["message"].startswith("acme-int8 failed 1 of")
    assert "acme-fp32 is the faster target" in result.err


def test_a_plugin_can_be_left_out(acme):
    env = acme | {"EDGEKIT_DISABLE_PLUGINS": "acme"}
    assert "acme-fp32" not in {t["name"] for t in edgekit("targets", "--json", env=env).json["targets"]}


def test_a_name_that_two_claim_names_both(acme, tmp_path):
    site = tmp_path / "site"
    shutil.copytree(acme["PYTHONPATH"], site)
    row = site / "edgekit_acme/targets/acme/target.toml"
    row.write_text(row.read_text().replace("acme-fp32", "ort-fp32"))
    result = edgekit("targets", env={"PYTHONPATH": str(site)})
    assert result.code == 6
    for word in ("ort-fp32", "'edgekit'", "'acme'", "EDGEKIT_DISABLE_PLUGINS"):
        assert word in result.err


def test_a_plugin_that_cannot_be_loaded_is_named(acme, tmp_path):
    site = tmp_path / "site"
    shutil.copytree(acme["PYTHONPATH"], site)
    (site / "edgekit_acme/__init__.py").write_text("import a_module_that_is_not_there\n")
    result = edgekit("targets", env={"PYTHONPATH": str(site)})
    assert result.code == 6
    assert "a_module_that_is_not_there" in result.err
    assert "acme" in result.err


def test_help_works_without_plugins():
    result = edgekit("--help", env={"PYTHONPATH": os.devnull})
    assert result.code == 0
