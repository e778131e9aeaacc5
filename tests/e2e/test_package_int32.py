"""LiteRT in JavaScript has no int64: token ids are int32 there, in a model that gives the same answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edgekit
from edgekit.artifact.manifest import Artifact
from edgekit.backends.tflite.narrow import int32_interface
from edgekit.errors import GateFailedError, UnsupportedError
from edgekit.package import PackageSpec, narrowed, package, verify_bundle

pytest.importorskip("ai_edge_litert")


class Tags(nn.Module):
    """Ids, and a mask that is no int64, to scores and the best tag of each token, which is int64 again."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, ids: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.head(self.words(ids) * weight[..., None])
        return scores, scores.argmax(-1)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    root = tmp_path_factory.mktemp("tags")
    torch.manual_seed(3)
    generator = np.random.default_rng(3)
    fed = [
        {"ids": generator.integers(0, 50, (1, 7)), "weight": generator.uniform(0.5, 1, (1, 7)).astype("f4")}
        for _ in range(8)
    ]
    result = edgekit.build(
        Tags().eval(),
        {k: torch.from_numpy(v) for k, v in fed[0].items()},
        targets=("tflite-fp32",),
        calibration=fed,
        out=root / "build",
        options=edgekit.Options(speed_gate=False),
    )
    return result.raise_for_failures().artifacts[0]


def spec(**fields: object) -> PackageSpec:
    return PackageSpec(**{"format": "web", "name": "com.example.tags", "version": "1.0.0", **fields})


def test_ids_are_int32_and_the_answers_the_same(artifact: Artifact, tmp_path: Path) -> None:
    made = package(artifact, spec(), tmp_path / "web").directory
    described = json.loads((made / "assets/edgekit.json").read_text())
    dtypes = {s["name"]: s["dtype"] for s in (*described["inputs"], *described["outputs"])}
    assert sorted(dtypes.values()) == ["float32", "float32", "int32", "int32"]
    assert dtypes["ids"] == "int32"
    case = described["golden"]["cases"][0]
    stored = next(t for t in case["inputs"] if t["name"] == "ids")
    assert stored["dtype"] == "int32"
    assert (made / "assets" / stored["file"]).stat().st_size == 7 * 4
    assert verify_bundle(made).passed
    # The other formats take the model as it is.
    other = package(artifact, spec(format="bundle"), tmp_path / "bundle").directory
    (plain,) = (p for p in other.iterdir() if p.is_dir())
    kept = json.loads((plain / "edgekit.json").read_text())
    assert {s["name"]: s["dtype"] for s in kept["inputs"]}["ids"] == "int64"
    tags = next(t for t in kept["golden"]["cases"][0]["outputs"] if t["dtype"] == "int64")
    same = next(t for t in case["outputs"] if t["name"] == tags["name"])
    wide = np.fromfile(plain / tags["file"], np.int64)
    np.testing.assert_array_equal(np.fromfile(made / "assets" / same["file"], np.int32), wide)


def test_the_rewritten_file_keeps_names_and_runs(artifact: Artifact, tmp_path: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    model = artifact.directory / artifact.manifest.files[0].name
    (tmp_path / "narrow.tflite").write_bytes(int32_interface(model.read_bytes()))
    plain, narrow = (Interpreter(model_path=str(p)) for p in (model, tmp_path / "narrow.tflite"))
    signatures = [next(iter(i.get_signature_list().values())) for i in (plain, narrow)]
    assert signatures[0] == signatures[1]
    ids, weight = np.array([[1, 2, 3, 49, 0, 5, 6]]), np.ones((1, 7), "f4")
    one = plain.get_signature_runner()(ids=ids, weight=weight)
    two = narrow.get_signature_runner()(ids=ids.astype(np.int32), weight=weight)
    for name, value in one.items():
        np.testing.assert_array_equal(two[name], value)
        assert two[name].dtype == (np.int32 if value.dtype == np.int64 else value.dtype)
    # Once is enough: there is nothing left to do.
    again = int32_interface((tmp_path / "narrow.tflite").read_bytes())
    assert again.count(b"/int64") == (tmp_path / "narrow.tflite").read_bytes().count(b"/int64")


def test_numbers_that_32_bits_do_not_hold_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="32 bits"):
        narrowed._narrowed("ids", np.array([2**31]))
    np.testing.assert_array_equal(narrowed._narrowed("ids", np.array([2**31 - 1])), [2**31 - 1])


def test_a_model_that_answers_otherwise_is_not_shipped(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no golden vectors go into the package: they are replayed all the same."""
    from edgekit.backends.tflite import narrow

    def wrong(model: bytes) -> bytes:
        data = bytearray(int32_interface(model))
        # The sign of one weight.
        torch.manual_seed(3)
        bias = Tags().head.bias.detach().numpy().tobytes()
        at = bytes(data).find(bias)
        assert at > 0
        data[at + 3] ^= 0x80
        return bytes(data)

    monkeypatch.setattr(narrow, "int32_interface", wrong)
    for golden in (True, False):
        with pytest.raises(GateFailedError, match="int32 in place of int64"):
            package(artifact, spec(golden=golden), tmp_path / f"out-{golden}")
        assert not (tmp_path / f"out-{golden}").exists()


def test_what_needs_nothing_is_left_alone(artifact: Artifact) -> None:
    from edgekit.package.contents import collect

    contents = collect(artifact, spec(format="bundle"))
    assert narrowed.fitted(contents, frozenset({"float32", "int32", "int64"})) is contents
    assert narrowed.fitted(contents, frozenset({"float32"})) is contents
    other = replace(contents, descriptor=replace(contents.descriptor, backend="openvino"))
    assert narrowed.fitted(other, frozenset({"int32"})) is other
