"""The report: one file with all that manifests say, and nothing that they could do to who opens it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

import edgekit  # noqa: E402
from edgekit import report  # noqa: E402
from edgekit.errors import SourceError, UsageError  # noqa: E402

VOID = {"meta", "br", "link", "input", "img", "hr"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    rows = [np.random.default_rng(k).normal(size=(1, 8)).astype(np.float32) for k in range(60)]
    labels = [int(module(torch.from_numpy(r)).argmax()) for r in rows]
    out = tmp_path_factory.mktemp("report") / "build"
    result = edgekit.build(
        module,
        targets=["ort-fp32", "ort-int8", "tflite-int8"],
        calibration=rows[:30],
        evaluation=list(zip(rows, labels, strict=True)),
        options=edgekit.Options(out=out, speed_gate=False, device="local", limit={"metric-drop": "10%"}),
    )
    result.raise_for_failures()
    settings = edgekit.BenchSettings(processes=2, seconds=0.05)
    result.artifacts[0].bench(settings=settings)
    return out


class _Parsed(HTMLParser):
    """Which elements there are, that they nest, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _page(folder: Path, html: Path) -> _Parsed:
    report.write([folder], html)
    return _Parsed(html.read_text(encoding="utf-8"))


def test_every_figure_of_the_manifests_is_there(built: Path, tmp_path: Path) -> None:
    page = _page(built, tmp_path / "r.html")
    for folder in sorted(built.iterdir()):
        manifest = edgekit.open(folder).manifest
        assert manifest.target.name in page.text
        for gate in manifest.gates:
            assert gate.message in page.text or not gate.message
        assert f"edgekit verify {folder}" in page.text
        for measured in manifest.measurements:
            assert f"{measured.p50_ms:.4g}" in page.text
    assert "Not measured." in page.text
    titles = [a["aria-label"] for tag, a in page.tags if tag == "svg"]
    assert len(titles) == len(set(titles)) >= 2
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(ids) == len(set(ids))


def test_the_page_needs_nothing_and_runs_nothing(built: Path, tmp_path: Path) -> None:
    page = _page(built, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed", "link", "form", "base"}
    assert not re.search(r"(src|href)=\"(?!#|data:)", re.sub(r'xmlns(:\w+)?="[^"]*"', "", text))
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text
    regions = [a for tag, a in page.tags if a.get("class") == "scroll"]
    assert regions
    assert all(
        a.get("tabindex") == "0" and (a.get("aria-label") or a.get("aria-labelledby")) for a in regions
    )


def test_the_same_artifacts_give_the_same_bytes(built: Path, tmp_path: Path) -> None:
    for name in ("one.html", "two.html"):
        report.write([built], tmp_path / name)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


EVIL = '<script>alert(1)</script>"onload="x $\\frac{' + "\x1b[2J\u202e"


def _evil(value: Any) -> Any:
    """Every free text of a manifest is somebody's."""
    if isinstance(value, dict):
        return {k: _evil(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_evil(v) for v in value]
    return EVIL if isinstance(value, str) and " " in value else value


def test_a_manifest_of_a_stranger_does_nothing(built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "build" / "ort-int8"
    folder.mkdir(parents=True)
    for file in (built / "ort-int8").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    document = _evil(json.loads((folder / "manifest.json").read_text()))
    document["source"]["text"] = EVIL
    document["details"]["quantization"]["nodes"] = [
        {"node": EVIL, "op": EVIL, "module_path": EVIL, "macs": 1e9, "quantized": False, "reason": EVIL},
        {"node": 1, "macs": "many"},
        "nothing",
    ]
    document["details"]["rollout"] = {"states": {EVIL: EVIL}, "steps": 3, "explained": 0.5}
    (folder / "manifest.json").write_text(json.dumps(document))
    (folder / "measurements.json").write_text(json.dumps({EVIL: [[1.0, 2.0, 3.0], ["x"], 4], "b": {"c": 1}}))
    page = _page(tmp_path / "build", tmp_path / "r.html")
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object"}
    assert not any("onload" in attributes for _, attributes in page.tags)
    assert "alert(1)" in page.text
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "\x1b" not in text
    assert "\u202e" not in text


@pytest.mark.parametrize(
    "raw",
    [
        '{"local": [[1e308, 1e999, 0]]}',
        f'{{"local": [[{"9" * 400}]]}}',
        "",
        "[",
        "[]",
        '{"local": 3}',
        '{"local": [[-1, true, null]]}',
        "[" * 5000,
    ],
)
def test_raw_times_that_are_none(built: Path, tmp_path: Path, raw: str) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    for file in (built / "ort-fp32").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "measurements.json").write_text(raw)
    entries = report.write([folder], tmp_path / "r.html").entries
    assert entries[0].times == {}


def test_changed_files_and_folders_that_cannot_be_read_are_said(built: Path, tmp_path: Path) -> None:
    for name in ("ort-fp32", "ort-int8"):
        (tmp_path / "b" / name).mkdir(parents=True)
        for file in (built / name).iterdir():
            (tmp_path / "b" / name / file.name).write_bytes(file.read_bytes())
    (tmp_path / "b" / "ort-fp32" / "model.onnx").write_bytes(b"other")
    (tmp_path / "b" / "ort-int8" / "manifest.json").write_text("{}")
    page = _page(tmp_path / "b", tmp_path / "r.html")
    assert "files changed" in page.text
    assert "cannot be read" in page.text
    with pytest.raises(SourceError, match="holds no artifact"):
        report.write([tmp_path / "b" / "nothing"], tmp_path / "r.html")
    with pytest.raises(UsageError, match="cannot write"):
        report.write([built], tmp_path / "r.html" / "below.html")


def test_two_hundred_artifacts_are_small_enough(built: Path, tmp_path: Path) -> None:
    many = tmp_path / "many"
    for number in range(200):
        folder = many / f"copy-{number:03d}"
        folder.mkdir(parents=True)
        for file in (built / "tflite-int8").iterdir():
            (folder / file.name).hardlink_to(file)
    entries = report.write([many], tmp_path / "r.html").entries
    assert len(entries) == 200
    assert (tmp_path / "r.html").stat().st_size < 5_000_000
