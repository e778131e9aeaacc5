"""``edgekit verify`` takes nothing that it is given for a proof: not a failed build, not an artifact's own limits, not
golden vectors that say nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_process import edgekit

import edgekit as api
from edgekit.package import PackageSpec, package
from edgekit.types import sha256_file

pytestmark = [pytest.mark.e2e]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    import torch

    torch.manual_seed(1)
    module = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    rows = [np.random.default_rng(k).normal(size=(1, 6)).astype(np.float32) for k in range(40)]
    options = api.Options(speed_gate=False)
    out = tmp_path_factory.mktemp("verify")
    result = api.build(module, targets=["ort-fp32"], evaluation=rows, out=out, options=options)
    assert not result.failures
    return out / "ort-fp32"


@pytest.fixture
def copy(built, tmp_path) -> Path:
    shutil.copytree(built, tmp_path / "copy")
    return tmp_path / "copy"


def edited(folder: Path, change: Callable[[dict], None]) -> Path:
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return folder


def with_golden(folder: Path, change: Callable[[dict], dict]) -> Path:
    """Golden vectors changed, their checksum too."""
    path = folder / "golden.npz"
    with np.load(path) as stored:
        arrays = change(dict(stored))
    np.savez(path, **arrays)
    return edited(folder, lambda d: d["golden"].update(sha256=sha256_file(path)))


def test_the_artifact_as_it_is_passes_and_says_what_was_not_repeated(built):
    result = edgekit("verify", built)
    assert result.code == 0, result.err
    assert "(not repeated)" in result.out
    assert "slices" in result.out


def test_a_failed_build_does_not_pass_here_either(copy):
    def failed(document):
        document["status"] = "failed"
        document["gates"][0].update(verdict="fail", name="latency")

    result = edgekit("verify", edited(copy, failed), "--json")
    assert result.code == 5, result.err
    assert "latency (failed when built)" in result.err
    assert result.json["artifacts"][0]["status"] == "failed"


def test_limits_come_from_the_targets_row(copy):
    def weak(document):
        document["target"]["tolerance"]["snr_db"] = 1.0
        document["target"]["tolerance"]["relative_error"] = 100.0

    def off(arrays):
        return {n: a * 1.2 if n.startswith("output") else a for n, a in arrays.items()}

    result = edgekit("verify", with_golden(edited(copy, weak), off))
    assert result.code == 5
    assert "snr db, relative error are weaker than those of ort-fp32" in result.err


def test_a_target_that_is_not_known_here_vouches_for_nothing(copy):
    def renamed(document):
        document["target"].update(name="acme-row")
        document["target"]["tolerance"].update(snr_db=-500.0, relative_error=1e9)

    def off(arrays):
        return {n: a * 1.2 if n.startswith("output") else a for n, a in arrays.items()}

    edited(copy, renamed)
    known = edgekit("verify", copy)
    assert known.code == 0
    assert "unproven" in known.out
    assert edgekit("verify", copy, "--strict").code == 5
    result = edgekit("verify", with_golden(copy, off))
    assert result.code == 5, result.err
    assert "no weaker than those of any fp32 target" in result.err


@pytest.mark.parametrize("left", [[], ["finite", "snr"]], ids=["none", "some"])
def test_gates_that_were_taken_out_are_missed(copy, left):
    def emptied(document):
        document["gates"] = [g for g in document["gates"] if g["name"] in left]

    result = edgekit("verify", edited(copy, emptied), "--strict")
    assert result.code == 5, result.err
    assert ("placement" if left else "records no gate") in result.err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: {n: x for n, x in a.items() if n.startswith("input")}, "no golden vectors"),
        (lambda a: {n.replace("output/0/", "output/0/other_"): x for n, x in a.items()}, "golden vector 0"),
        (lambda a: {n: x[:0] if n.startswith("output") else x for n, x in a.items()}, "golden vector 0"),
    ],
    ids=["no outputs", "an unknown name", "empty outputs"],
)
def test_golden_vectors_that_say_nothing_are_refused(copy, change, words):
    result = edgekit("verify", with_golden(copy, change))
    assert result.code == 3, result.err
    assert words in result.err


def test_changed_golden_vectors_are_seen(copy):
    path = copy / "golden.npz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    result = edgekit("verify", copy)
    assert result.code == 3
    assert "golden.npz missing or changed" in result.err


def test_a_key_for_what_cannot_be_signed_is_a_wrong_command(copy, tmp_path):
    (tmp_path / "key.pem").write_text("a key")
    result = edgekit("verify", copy, "--public-key", tmp_path / "key.pem")
    assert result.code == 2
    assert "cannot be signed" in result.err


def bundle(folder: Path, out: Path, **options) -> Path:
    from edgekit.artifact import manifest

    spec = PackageSpec(format="bundle", name="com.example.small", version="1.0.0", **options)
    return package(manifest.read(folder), spec, out).directory / "com.example.small-1.0.0"


def test_a_bundle_of_a_failed_artifact_does_not_pass(copy, tmp_path):
    edited(copy, lambda d: (d.update(status="failed"), d["gates"][0].update(verdict="fail")))
    result = edgekit("verify", bundle(copy, tmp_path / "out", allow_failed=True))
    assert result.code == 5
    assert "(fail when built)" in result.err


def test_a_bundle_without_signature_says_so(copy, tmp_path):
    result = edgekit("verify", bundle(copy, tmp_path / "out"))
    assert result.code == 0, result.err
    assert "it is not signed" in result.err


def test_a_status_of_failure_counts_whatever_the_gates_say(copy):
    edited(copy, lambda d: d.update(status="failed"))
    result = edgekit("verify", copy)
    assert result.code == 5
    assert "status" in result.err


def test_inputs_that_the_golden_vectors_do_not_have_are_refused(copy):
    edited(copy, lambda d: d["inputs"][0].update(name="hello"))
    result = edgekit("verify", copy)
    assert result.code == 3
    assert "hello" in result.err


def test_one_that_is_not_there_does_not_keep_the_others_from_their_verdict(built, copy, tmp_path):
    def failed(document):
        document["status"] = "failed"
        document["gates"][0].update(verdict="fail", name="latency", message="twice as slow as float")

    edited(copy, failed)
    result = edgekit("verify", built, tmp_path / "missing", copy, "--json")
    assert result.code == 3, result.err
    assert [(a["artifact"], a["status"]) for a in result.json["artifacts"]] == [
        (str(built), "passed"),
        (str(copy), "failed"),
    ]
    assert [e["exit_code"] for e in result.json["errors"]] == [3, 5]
    assert f"{copy}: latency: twice as slow as float" in result.err


@pytest.mark.parametrize(
    ("side", "change", "says"),
    [
        ("inputs", {"shape": [1, 12]}, "[1, 12]; the file has [1, 6]"),
        ("inputs", {"shape": [6, 1]}, "[6, 1]; the file has [1, 6]"),
        ("inputs", {"shape": ["n", 6]}, "[n, 6]; the file has [1, 6]"),
        ("inputs", {"shape": [6]}, "[6]; the file has [1, 6]"),
        ("inputs", {"dtype": "uint8"}, "uint8; the file has float32"),
        ("outputs", {"shape": [1, 1000]}, "[1, 1000]; the file has [1, 3]"),
        ("outputs", {"dtype": "int8", "scale": 0.1, "zero_point": 3}, "int8; the file has float32"),
    ],
)
def test_what_an_app_is_told_to_feed_is_what_the_file_takes(copy, side, change, says):
    result = edgekit("verify", edited(copy, lambda d: d[side][0].update(change)))
    assert result.code == 3, result.out
    assert says in result.err


def test_a_rounding_that_the_manifest_claims_proves_nothing(copy):
    """Limits give way to how far the source's float32 is from its float64; only the source can show that."""

    def worse(arrays):
        return {k: v * 1.002 if k.startswith("output/") else v for k, v in arrays.items()}

    def claim(snr_db):
        figures = {"snr_db": snr_db, "sample_snr_db": snr_db, "relative_error": 0.01}
        return lambda d: d["parity"].update(rounding=figures)

    with_golden(copy, worse)
    assert edgekit("verify", copy).code == 5
    assert edgekit("verify", edited(copy, claim(-500.0))).code == 5
    possible = edgekit("verify", edited(copy, claim(55.0)), "--json")
    assert (possible.code, possible.json["artifacts"][0]["status"]) == (0, "unproven")
    assert edgekit("verify", copy, "--strict").code == 5


@pytest.mark.parametrize("data", ["random", "calibration", "golden"])
def test_vectors_that_are_noise_by_the_manifests_word_prove_nothing(copy, data):
    """Of noise and of random inputs classes are only shown; who made the vectors is nobody's word to take."""

    def other_class(arrays):
        rolled = {
            k: v + 30 * np.roll(np.eye(3), 1, 0)[v.argmax(1)] for k, v in arrays.items() if "output" in k
        }
        return arrays | {k: v.astype(np.float32) for k, v in rolled.items()}

    with_golden(copy, other_class)
    limits = (
        "--limit",
        "snr=-100",
        "--limit",
        "relative-error=1000",
        "--limit",
        "slices=0",
        "--limit",
        "agreement=90%",
    )

    def claim(d):
        d["parity"]["noise"] = True
        d["golden"]["parity"]["data"] = data

    result = edgekit("verify", edited(copy, claim), *limits, "--json")
    verdicts = {g["name"]: g["verdict"] for g in result.json["artifacts"][0]["replay"]["gates"]}
    assert verdicts["top1-agreement"] in ("fail", "unproven")
    assert result.json["artifacts"][0]["status"] != "passed"


def test_vectors_that_were_taken_away(copy):
    with_golden(copy, lambda arrays: {k: v for k, v in arrays.items() if "/0/" in k})
    result = edgekit("verify", copy)
    assert result.code == 3
    assert "1 golden vectors" in result.err


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["files"][0].update(size=10),
        lambda d: d["files"][0].update(size=-(10**6)),
        lambda d: d["files"].insert(0, dict(d["files"][0], sha256="0" * 64)),
    ],
)
def test_every_row_of_a_file_has_to_be_true(copy, change):
    result = edgekit("verify", edited(copy, change), "--limit", "size=100B")
    assert result.code == 3, result.out
    assert "missing or changed" in result.err


@pytest.mark.parametrize("kind", ["complex64", "U8"])
def test_golden_vectors_are_numbers(copy, kind):
    def changed(arrays):
        return {k: v.astype(kind) if k.startswith("output/") else v for k, v in arrays.items()}

    result = edgekit("verify", with_golden(copy, changed))
    assert result.code == 3, result.out
    assert "holds no golden vectors" in result.err


def test_golden_outputs_of_another_shape_are_the_artifacts_fault(copy):
    result = edgekit(
        "verify", with_golden(copy, lambda a: {k: v[..., :2] if "output" in k else v for k, v in a.items()})
    )
    assert result.code == 3, result.out


def claimed(document, *, value):
    """A gate that nobody can repeat without the source's data, as a build would have written it."""
    document["gates"].append(
        {
            "name": "metric-drop",
            "verdict": "pass",
            "limit": 0.01,
            "value": value,
            "message": "",
            "enough": None,
        }
    )


def test_verdicts_that_their_figures_contradict(copy):
    """Two words of the manifest, and a failure was a pass."""
    edited(copy, lambda d: claimed(d, value=0.4))
    assert "contradicts itself" in edgekit("report", copy, "--html", copy.parent / "r.html").err
    for command in (("verify", copy), ("bench", copy)):
        result = edgekit(*command)
        assert result.code == 3, result.err
        assert "metric-drop passed with 0.4 at a limit of 0.01" in result.err
    edited(copy, lambda d: (d["gates"].pop(), d["gates"][0].update(verdict="fail")))
    result = edgekit("verify", copy)
    assert result.code == 3
    assert "contradicts itself" in result.err


def test_what_nobody_here_has_built_is_a_claim(built, copy):
    edited(copy, lambda d: claimed(d, value=0.0))
    result = edgekit("verify", copy)
    assert result.code == 0, result.err
    assert "metric-drop" in result.out
    assert "claimed: not built here" in result.out
    assert result.out.splitlines()[-1].split()[-1] == "unproven"
    result = edgekit("verify", copy, "--strict")
    assert result.code == 5
    assert "metric-drop (not repeated, and not built here)" in result.err
    assert "claimed" not in edgekit("verify", built).out


def test_where_the_cache_is_another_it_is_a_claim_too(built, tmp_path):
    result = edgekit("verify", built, env={"EDGEKIT_CACHE": str(tmp_path / "cache")})
    assert result.code == 0
    assert "claimed: not built here" in result.out


def test_what_is_claimed_says_what_would_repeat_it(copy, tmp_path):
    edited(copy, lambda d: claimed(d, value=0.0))
    way = "--eval DATA with --source SOURCE"
    result = edgekit("verify", copy, "--json")
    (entry,) = result.json["artifacts"]
    assert (result.code, entry["status"]) == (0, "unproven")
    assert any("metric-drop" in note and way in note for note in entry["notes"])
    assert way in result.err
    strict = edgekit("verify", copy, "--strict", "--json")
    (error,) = strict.json["errors"]
    assert strict.code == 5
    assert way in error["hint"]
    assert "processor" not in error["hint"]

    rows = tmp_path / "rows.npy"
    np.save(rows, np.random.default_rng(5).normal(size=(12, 6)).astype(np.float32))
    half = edgekit("verify", copy, "--eval", rows, "--strict", "--json")
    assert half.code == 5, half.err
    assert "--source SOURCE compares" in half.json["errors"][0]["hint"]


def test_a_limit_of_ones_own_is_named_as_the_cause(built):
    result = edgekit("verify", built, "--limit", "snr=199", "--json")
    if result.code == 0:
        pytest.skip("this machine rounds as the source does")
    (error,) = result.json["errors"]
    assert "--limit" in error["hint"]
    assert "processor" not in error["hint"]


def test_weaker_limits_of_recorded_gates_are_said(copy):
    def weak(document):
        (gate,) = (g for g in document["gates"] if g["name"] == "snr")
        gate["limit"] = 1.0

    result = edgekit("verify", edited(copy, weak))
    assert "snr at 1, not" in result.err
    assert "weaker limits" not in edgekit("verify", copy.parent / "none", copy).out


def test_as_built_no_weaker_limits_are_said(built):
    assert "weaker" not in edgekit("verify", built).err


def test_golden_vectors_alone_are_no_bundle(copy):
    (copy / "manifest.json").unlink()
    result = edgekit("verify", copy)
    assert result.code == 3, result.err
    assert "golden.npz" not in result.err


def test_each_of_several_is_named_alone(copy):
    (copy / "golden.npz").write_bytes(b"damaged")
    other = copy.parent / "nothing"
    other.mkdir()
    result = edgekit("verify", copy, other, "--json")
    assert [f"{copy}, {other}" in e["message"] for e in result.json["errors"]] == [False, False]
