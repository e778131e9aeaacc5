"""The manifest as a file: what is read, what is refused, and that nothing of it is lost."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from enum import StrEnum

import pytest

from edgekit.artifact import manifest, wire
from edgekit.artifact.manifest import Manifest, Status
from edgekit.errors import SourceError
from edgekit.types import Gate, Scheme, Verdict

SMALL = {
    "schema": 1,
    "edgekit": "0.1.0",
    "status": "passed",
    "target": {
        "name": "ort-fp32", "backend": "onnxruntime", "precision": "fp32", "runs_on": "cpu", "file": "model.onnx",
    },
    "source": {"text": "model.py:net", "kind": "factory", "sha256": "0" * 64},
    "files": [{"name": "model.onnx", "size": 4, "sha256": "0" * 64}],
}  # fmt: skip


def put(folder, changes=None, **more):
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({**SMALL, **(changes or {}), **more}))
    (folder / "model.onnx").write_bytes(b"onnx")
    return folder


def named(*names):
    return [{"name": n, "size": 4, "sha256": "0" * 64} for n in names]


def test_a_manifest_is_read_from_its_folder_and_by_its_own_path(tmp_path):
    folder = put(tmp_path / "a")
    by_folder, by_file = manifest.read(folder), manifest.read(folder / "manifest.json")
    assert by_folder == by_file
    assert by_folder.model == folder / "model.onnx"
    assert by_folder.passed


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd", "../secret", "a/../../secret", "a\\..\\..\\secret", "C:secret", "C:/secret", "", ".", "a\0b",
        "//server/share", "a/..",
    ],
)  # fmt: skip
def test_no_name_leaves_the_folder(tmp_path, name):
    folder = put(tmp_path / "a")
    (tmp_path / "secret").write_text("mine")
    for changes in (
        {"files": named(name)},
        {"files": named("model.onnx", name)},
        {"golden": {"file": name, "samples": 1}},
    ):
        with pytest.raises(SourceError, match="outside its folder"):
            manifest.read(put(folder, changes))


def test_no_link_leaves_the_folder(tmp_path):
    folder = put(tmp_path / "a", files=named("model.onnx", "more/weights.bin"))
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "weights.bin").write_text("mine")
    (folder / "more").symlink_to(tmp_path / "outside")
    with pytest.raises(SourceError, match=r"outside its folder.*weights\.bin"):
        manifest.read(folder)
    (folder / "more").unlink()
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to(tmp_path / "outside" / "weights.bin")
    with pytest.raises(SourceError, match=r"outside its folder.*model\.onnx"):
        manifest.read(folder)


def test_files_in_folders_and_links_within_are_fine(tmp_path):
    folder = put(tmp_path / "a", files=named("model.onnx", "more/weights.bin"))
    (folder / "more").mkdir()
    (folder / "more" / "weights.bin").write_bytes(b"onnx")
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to("more/weights.bin")
    (tmp_path / "link").symlink_to(folder)
    assert manifest.read(tmp_path / "link").model.read_bytes() == b"onnx"


def test_keys_of_a_later_edgekit_are_ignored_wherever_they_are(tmp_path):
    target = {**SMALL["target"], "cooling": "fan", "tolerance": {"snr_db": 3.0, "beauty": 1}}
    files = [{**named("model.onnx")[0], "compressed": True}]
    artifact = manifest.read(put(tmp_path / "a", target=target, files=files, colour="blue"))
    assert artifact.manifest.target.tolerance.snr_db == 3.0
    assert artifact == manifest.read(put(tmp_path / "a", target={**target, "cooling": "none"}))


def test_a_later_schema_names_the_edgekit_that_wrote_it(tmp_path):
    with pytest.raises(
        SourceError, match=r"newer edgekit \(7.1; schema 2, this one reads up to 1\)"
    ) as caught:
        manifest.read(put(tmp_path / "a", schema=2, edgekit="7.1", target="something else"))
    assert "upgrade" in caught.value.hint


@pytest.mark.parametrize("schema", [0, -1, "1", None, 1.5])
def test_a_schema_that_never_was(tmp_path, schema):
    with pytest.raises(SourceError, match="schema"):
        manifest.read(put(tmp_path / "a", schema=schema))


def test_a_precision_that_this_edgekit_does_not_know(tmp_path):
    with pytest.raises(SourceError, match="fp2") as caught:
        manifest.read(put(tmp_path / "a", target={**SMALL["target"], "precision": "fp2"}))
    assert "upgrade" in caught.value.hint


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", '{"schema": 1}', "\xff"])
def test_what_is_no_manifest(tmp_path, text):
    put(tmp_path / "a")
    (tmp_path / "a" / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(SourceError):
        manifest.read(tmp_path / "a")


def test_no_manifest_and_no_model_file(tmp_path):
    with pytest.raises(SourceError, match="no artifact at"):
        manifest.read(tmp_path)
    with pytest.raises(SourceError, match="no artifact at"):
        manifest.read(put(tmp_path / "a") / "model.onnx")
    with pytest.raises(SourceError, match="names no model file"):
        manifest.read(put(tmp_path / "a", files=[]))


def test_a_file_that_is_missing_or_changed_is_named(tmp_path):
    folder = put(tmp_path / "a")
    records = manifest.file_records(folder, ("model.onnx",))
    artifact = manifest.read(put(folder, files=[dataclasses.asdict(r) for r in records]))
    manifest.check_files(artifact)
    (folder / "model.onnx").write_bytes(b"onnX")
    with pytest.raises(SourceError, match=r"model\.onnx missing or changed"):
        manifest.check_files(artifact)
    (folder / "model.onnx").unlink()
    with pytest.raises(SourceError, match=r"model\.onnx missing or changed"):
        manifest.check_files(artifact)


def test_every_field_is_written_and_read_back(tmp_path):
    """A field that the form on disk lacks would be lost without a word."""
    whole = dataclasses.replace(filled(Manifest), schema=wire.SCHEMA)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "text").write_bytes(b"")
    manifest.write(whole, tmp_path / "a")
    assert manifest.read(tmp_path / "a").manifest == whole


def test_an_artifact_read_back_is_equal_to_itself(tmp_path):
    """Else a second identical build would write it again, and its measurements would be gone."""
    gate = Gate(name="finite", verdict=Verdict.PASS, limit=0, value=0)
    before = dataclasses.replace(
        manifest.read(put(tmp_path / "a")).manifest, gates=(gate,), details={"n": (1, 2)}
    )
    manifest.write(before, tmp_path / "a")
    assert manifest.read(tmp_path / "a").manifest.digest == before.digest


def filled(kind):
    """A value of ``kind`` in which nothing is as it is by default."""
    if kind is Scheme:  # its fields are checked
        return Scheme(activation="int8", weight="int8", bias="int32", rules="text", weight_bits=7, why="text")
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return filled(next(a for a in args if a is not type(None)))
    if origin is tuple:
        return tuple(filled(a) for a in args if a is not ...)
    if origin is not None and issubclass(origin, typing.Mapping):
        return {"text": filled(args[1])}
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        fields = [f.name for f in dataclasses.fields(kind)]
        return kind(**{n: "int8" if n == "dtype" else filled(hints[n]) for n in fields})
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return list(kind)[-1]
    return {str: "text", int: 3, float: 0.5, bool: True}.get(kind, "anything")


def test_what_the_gates_come_to():
    def status(*verdicts):
        return manifest.status_of(tuple(Gate(name="g", verdict=v) for v in verdicts))

    assert status() is Status.NOT_RUN
    assert status(Verdict.PASS, Verdict.PASS) is Status.PASSED
    assert status(Verdict.PASS, Verdict.SHOWN) is Status.PASSED
    assert status(Verdict.SHOWN) is Status.NOT_RUN
    assert status(Verdict.PASS, Verdict.UNPROVEN) is Status.UNPROVEN
    assert status(Verdict.UNPROVEN, Verdict.NOT_RUN) is Status.NOT_RUN
    assert status(Verdict.NOT_RUN, Verdict.FAIL, Verdict.UNPROVEN) is Status.FAILED
