"""TFLite Metadata, read back by its schema and by MediaPipe Tasks itself."""

from __future__ import annotations

import io
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import package_support as support
import package_tools as tools
import pytest
from package_mediapipe import mediapipe_scores

from edgekit.artifact import manifest
from edgekit.artifact.manifest import Artifact
from edgekit.errors import UnsupportedError
from edgekit.package import PackageSpec, package, verify_bundle
from edgekit.package.tflite_metadata import ENTRY, with_metadata

pytest.importorskip("ai_edge_litert")

SPEC = PackageSpec(format="tflite-metadata", name="com.example.digits", version="1.2.0", license="MIT")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return support.tflite_artifact(tmp_path_factory.mktemp("tflite") / "artifact")


@pytest.fixture(scope="module")
def written(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package(artifact, SPEC, tmp_path_factory.mktemp("out") / "package").directory


def test_the_file_is_still_the_model_and_replays(written: Path) -> None:
    report = verify_bundle(written)
    assert report.passed
    assert report.descriptor.files == ("digits.tflite",)
    assert max(c.error for c in report.cases) == 0.0


def test_labels_are_in_the_file_uncompressed(written: Path) -> None:
    data = (written / "digits.tflite").read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        (entry,) = archive.infolist()
        assert (entry.filename, entry.compress_type) == ("labels.txt", zipfile.ZIP_STORED)
        assert archive.read(entry).decode().splitlines() == list(support.LABELS)


def test_metadata_is_replaced_not_doubled(written: Path) -> None:
    from ai_edge_litert import schema_py_generated as schema

    from edgekit.package import tflite_metadata
    from edgekit.package.descriptor import read

    data = (written / "digits.tflite").read_bytes()
    again = with_metadata(data, tflite_metadata.model_info(read(written / "edgekit.json")))
    tree = schema.ModelT.InitFromPackedBuf(again, 0)
    assert [m.name for m in tree.metadata].count(ENTRY.encode()) == 1
    buffer = bytes(tree.buffers[next(m.buffer for m in tree.metadata if m.name == ENTRY.encode())].data)
    assert buffer[4:8] == b"M001"


def test_a_model_that_takes_channels_first_is_refused(tmp_path: Path) -> None:
    plain = support.tflite_artifact(tmp_path / "artifact", folded=False)
    with pytest.raises(UnsupportedError) as raised:
        package(plain, SPEC, tmp_path / "out")
    assert "fold_preprocessing" in raised.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "why"),
    [({"labels": ()}, "no output has labels"), ({"preprocessing": {}}, "no input is an image")],
)
def test_the_readme_promises_mediapipe_only_what_it_takes(
    artifact: Artifact, tmp_path: Path, fields: dict[str, object], why: str
) -> None:
    copied = tmp_path / "artifact"
    shutil.copytree(artifact.directory, copied)
    made = package(support.changed(manifest.read(copied), **fields), SPEC, tmp_path / "out").directory
    readme = (made / "README.md").read_text()
    assert why in readme
    assert "ImageClassifier" not in readme
    assert verify_bundle(made).passed


def test_the_readme_shows_the_classifier(written: Path) -> None:
    assert "vision.ImageClassifier.create_from_options" in (written / "README.md").read_text()


def test_other_backends_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError) as raised:
        package(support.onnx_artifact(tmp_path / "artifact"), SPEC, tmp_path / "out")
    assert "bundle" in raised.value.hint


def test_mediapipe_gives_the_golden_scores(written: Path, tmp_path: Path) -> None:
    tools.need(tools.MEDIAPIPE)
    pixels = support.images(6)[0]
    files = [tmp_path / f"{i}.npy" for i in range(6)]
    for file, image in zip(files, pixels, strict=True):
        np.save(file, image)
    want = support.reference(support.feed(pixels))
    for scores, expected in zip(mediapipe_scores(written / "digits.tflite", files), want, strict=True):
        assert set(scores) == set(support.LABELS)
        got = np.array([scores[label] for label in support.LABELS])
        np.testing.assert_allclose(got, expected, atol=2e-5)


def test_mediapipe_applies_a_normalisation_that_was_not_folded(written: Path, tmp_path: Path) -> None:
    """The same model told that its input is ``(value - 10) / 2``: MediaPipe must do just that."""
    tools.need(tools.MEDIAPIPE)
    from edgekit.package import tflite_metadata
    from edgekit.package.descriptor import read

    described = read(written / "edgekit.json")
    assert described.preprocessing is not None
    shifted = replace(described.preprocessing, scale=0.5, mean=(5.0,), std=(1.0,))
    info = tflite_metadata.model_info(replace(described, preprocessing=shifted))
    model = with_metadata((written / "digits.tflite").read_bytes(), info)
    labels = (written / "labels.txt").read_bytes()
    (tmp_path / "m.tflite").write_bytes(tflite_metadata.with_files(model, {"labels.txt": labels}))
    # 2 v + 10 is undone by the normalisation.
    dark = (support.images(1)[0][0] // 3).astype(np.uint8)
    np.save(tmp_path / "x.npy", 2 * dark + 10)
    (scores,) = mediapipe_scores(tmp_path / "m.tflite", [tmp_path / "x.npy"])
    expected = support.reference(support.feed(dark[None]))[0]
    np.testing.assert_allclose([scores[label] for label in support.LABELS], expected, atol=2e-5)
