"""A build is recognised while nothing that it depends on changed, and made again when any one thing did.

Each input of a build is changed alone: the second build must give what a build with an empty cache gives.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from edgekit.core import targets  # noqa: E402
from edgekit.core.config import Options  # noqa: E402
from edgekit.core.progress import Silent  # noqa: E402
from edgekit.core.store import Store  # noqa: E402
from edgekit.load import known, parse  # noqa: E402
from edgekit.load.data import Example, user_samples  # noqa: E402
from edgekit.load.source import Source  # noqa: E402
from edgekit.pipeline.build import run  # noqa: E402
from edgekit.pipeline.request import Request  # noqa: E402
from edgekit.pipeline.stages import BuildContext  # noqa: E402
from edgekit.types import TensorSpec  # noqa: E402

MODEL = """
import os
from pathlib import Path
import numpy as np
import torch
from mine_layers import width
HERE = Path(__file__).parent

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(4, width(), bias=False)
        self.outer = torch.nn.Linear(width(), 3, bias=False)
    def forward(self, x):
        return self.outer(torch.relu(self.inner(x)))

def net():
    made = Net()
    with torch.no_grad():
        made.outer.weight += float(np.load(HERE / "shift.npy"))
        made.outer.weight *= float(os.environ.get("MINE_GAIN", "1"))
        if (HERE / "negative").exists():
            made.outer.weight *= -1
    return made, torch.ones(1, 4)

def bare():
    return net()[0]
"""
LAYERS = "from mine_sizes import WIDTH\ndef width():\n    return WIDTH\n"
SIZES = "WIDTH = 8\n"
DATA = """
import functools
import os
from pathlib import Path
import numpy as np
from mine_noise import noise
HERE = Path(__file__).parent

@functools.cache
def shared():
    return np.load(HERE / "offset.npy")

def _rows(count):
    scale = float(os.environ.get("MINE_SCALE", "1"))
    extra = len(list((HERE / "listed").iterdir()))
    for row in noise(count):
        yield ((row + shared()) * scale + extra).astype(np.float32)

def calibration():
    yield from _rows(8)

def evaluation():
    for number, row in enumerate(_rows(6)):
        yield row, [number % 3] * len(row)
"""
NOISE = "import numpy as np\ndef noise(count):\n    return np.random.default_rng(0).normal(size=(count, 1, 4)) * 1\n"
METRIC = """
from pathlib import Path
from mine_judge import judge
def score(outputs, labels):
    wanted = float((Path(__file__).parent / "wanted.txt").read_text())
    return judge(outputs, labels) * wanted
"""
JUDGE = "def judge(outputs, labels):\n    return 0.5\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "project"
    (folder / "listed").mkdir(parents=True)
    (folder / "listed" / "one").write_text("")
    (folder / "arrays" / "below").mkdir(parents=True)
    for name, text in {
        "model": MODEL, "mine_layers": LAYERS, "mine_sizes": SIZES, "data": DATA, "mine_noise": NOISE,
        "metric": METRIC, "mine_judge": JUDGE,
    }.items():  # fmt: skip
        (folder / f"{name}.py").write_text(text)
    (folder / "wanted.txt").write_text("1.0")
    np.save(folder / "shift.npy", np.float32(0.5))
    np.save(folder / "offset.npy", np.float32(0.25))
    generator = np.random.default_rng(1)
    for number in range(4):
        np.savez(
            folder / "arrays" / "below" / f"{number}.npz", x=generator.normal(size=(1, 4)).astype(np.float32)
        )
    monkeypatch.chdir(tmp_path)
    for name in ("MINE_GAIN", "MINE_SCALE"):
        monkeypatch.delenv(name, raising=False)
    yield folder
    for name in [n for n in sys.modules if n.startswith("mine_")]:
        del sys.modules[name]


def graph(folder: Path, scale: float = 1.0) -> Path:
    """An ONNX source with a dynamic axis: its example is the first sample."""
    import onnx
    from onnx import TensorProto, helper

    weight = (np.random.default_rng(3).normal(size=(4, 3)) * scale).astype(np.float32)
    onnx.save(
        helper.make_model(
            helper.make_graph(
                [helper.make_node("MatMul", ["x", "w"], ["y"])],
                "g",
                [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
                [helper.make_tensor("w", TensorProto.FLOAT, [4, 3], weight.tobytes(), raw=True)],
            ),
            opset_imports=[helper.make_opsetid("", 18)],
            ir_version=9,
        ),
        folder / "graph.onnx",
    )
    return folder / "graph.onnx"


@dataclass(frozen=True)
class Seen:
    """What the stages of a build have in their keys, and what had to be run to know it."""

    keys: tuple[str, ...]
    ran: tuple[str, ...]


def look(root: Path, source: str, calib: str, evaluation: str = "") -> Seen:
    """As a build does: the source with its example, then the samples, each in one process after the other."""
    store, ran = Store(root), []
    remember = known.remember

    def remembered(store: Store, name: str, *args: object) -> None:
        ran.append(name)
        remember(store, name, *args)

    specs = (TensorSpec(name="x", dtype="float32", shape=("n", 4)),)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known, "remember", remembered)
        keys = [Source(parse(source), store, example=Example(calib)).sha256]
        for name, text in (("calibration", calib), ("evaluation", evaluation)):
            if text:
                keys.append(user_samples(store, text, specs, origin=name, preprocessing={}).fingerprint)
    return Seen(tuple(keys), tuple(ran))


def check(tmp_path: Path, change: Callable[[], object], *texts: str) -> tuple[Seen, Seen]:
    """Look twice, change one thing, look twice, and compare with a look that knows of nothing."""
    first = look(tmp_path / "cache", *texts)
    assert first.ran
    assert look(tmp_path / "cache", *texts) == Seen(first.keys, ())
    change()
    second = look(tmp_path / "cache", *texts)
    assert second.ran, "the change was not noticed"
    assert look(tmp_path / "cache", *texts) == Seen(second.keys, ())
    assert look(tmp_path / "fresh", *texts).keys == second.keys
    assert second.keys != first.keys
    return first, second


def rewrite(path: Path, old: str, new: str) -> None:
    """The same length, and the same time stamp: only the content tells."""
    status = path.stat()
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def array(path: Path, value: float) -> None:
    status = path.stat()
    np.save(path, np.float32(value))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


Change = Callable[[Path, pytest.MonkeyPatch], None]

MODEL_CHANGES: dict[str, Change] = {
    "factory": lambda p, m: (
        rewrite(p / "model.py", "*= -1", "*= -1") or rewrite(p / "model.py", '"1"', '"2"')
    ),
    "module of a module": lambda p, m: rewrite(p / "mine_sizes.py", "8", "6"),
    "weights": lambda p, m: array(p / "shift.npy", 0.75),
    "variable": lambda p, m: m.setenv("MINE_GAIN", "3"),
    "a file that was looked for": lambda p, m: (p / "negative").write_text("") and None,
}
DATA_CHANGES: dict[str, Change] = {
    "callable": lambda p, m: rewrite(p / "data.py", '"1"', '"5"'),
    "module": lambda p, m: rewrite(p / "mine_noise.py", "* 1", "* 9"),
    "file": lambda p, m: array(p / "offset.npy", 2.0),
    "variable": lambda p, m: m.setenv("MINE_SCALE", "7"),
    "folder": lambda p, m: (p / "listed" / "two").write_text("") and None,
    "shape": lambda p, m: rewrite(p / "mine_noise.py", "(count, 1, 4)", "(count, 2, 4)"),
}
METRIC_CHANGES: dict[str, Change] = {
    "callable": lambda p, m: rewrite(p / "metric.py", "* wanted", "/ wanted"),
    "module": lambda p, m: rewrite(p / "mine_judge.py", "0.5", "0.7"),
    "file": lambda p, m: rewrite(p / "wanted.txt", "0.8", "0.9"),
}


def texts(project: Path) -> tuple[str, str]:
    return f"{project}/data.py:calibration", f"{project}/data.py:evaluation"


@pytest.mark.parametrize("name", MODEL_CHANGES)
def test_what_a_factory_reads(project, tmp_path, monkeypatch, name):
    change = lambda: MODEL_CHANGES[name](project, monkeypatch)  # noqa: E731
    first, second = check(tmp_path, change, f"{project}/model.py:net", *texts(project))
    assert second.ran == ("source",)
    assert first.keys[1:] == second.keys[1:]


@pytest.mark.parametrize("name", DATA_CHANGES)
def test_what_a_data_callable_reads(project, tmp_path, monkeypatch, name):
    change = lambda: DATA_CHANGES[name](project, monkeypatch)  # noqa: E731
    first, second = check(tmp_path, change, f"{project}/model.py:net", *texts(project))
    assert second.ran == ("samples", "samples")
    assert all(a != b for a, b in zip(first.keys[1:], second.keys[1:], strict=True))


@pytest.mark.parametrize("name", DATA_CHANGES)
@pytest.mark.parametrize("source", ["graph.onnx", "model.py:bare"])
def test_the_example_is_part_of_a_source_that_has_none(project, tmp_path, monkeypatch, source, name):
    graph(project)
    change = lambda: DATA_CHANGES[name](project, monkeypatch)  # noqa: E731
    first, second = check(tmp_path, change, f"{project}/{source}", *texts(project))
    assert second.ran == ("source", "samples", "samples")
    assert all(a != b for a, b in zip(first.keys, second.keys, strict=True))


@pytest.mark.parametrize("change", ["content", "added", "first"])
@pytest.mark.parametrize("source", ["graph.onnx", "model.py:bare"])
def test_a_folder_of_arrays(project, tmp_path, source, change):
    graph(project)
    folder = project / "arrays" / "below"

    def changed() -> None:
        name = {"content": "3", "added": "4", "first": "0"}[change]
        np.savez(folder / f"{name}.npz", x=np.full((1, 4), 5, np.float32))

    first, second = check(tmp_path, changed, f"{project}/{source}", str(project / "arrays"))
    assert first.keys[1] != second.keys[1]


def test_the_graph_itself(project, tmp_path):
    check(tmp_path, lambda: graph(project, 2.0), str(graph(project)), *texts(project))


def test_forked_readers_are_seen(project, tmp_path):
    """The workers of a data loader read the files, not this process."""
    (project / "loader.py").write_text(LOADER)
    check(
        tmp_path,
        lambda: array(project / "offset.npy", 2.0),
        str(graph(project)),
        f"{project}/loader.py:rows",
    )


LOADER = """
from pathlib import Path
import numpy as np
import torch

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return np.full(4, index, np.float32) + np.load(Path(__file__).parent / "offset.npy")

def rows():
    return torch.utils.data.DataLoader(Rows(), num_workers=1)
"""


def test_another_program_is_not_believed(project, tmp_path):
    (project / "program.py").write_text(
        "import subprocess, sys\nimport numpy as np\n"
        "def rows():\n    subprocess.run(['true'])\n    yield np.zeros((1, 4), np.float32)\n"
    )
    arguments = str(graph(project)), f"{project}/program.py:rows"
    first, second = (look(tmp_path / "cache", *arguments) for _ in range(2))
    assert "source" in second.ran
    assert first.keys[0] != second.keys[0]
    assert first.keys[1] == second.keys[1]
    assert not list((tmp_path / "cache" / "notes").rglob("*.json"))


def build(root: Path, project: Path, out: Path) -> tuple[str, list[str]]:
    """Everything that an INT8 build of the graph says, and the steps that ran for it."""
    names = {"calib": f"{project}/data.py:calibration", "eval": f"{project}/data.py:evaluation"}
    options = Options(out=out, speed_gate=False, metric=f"{project}/metric.py:score", **names)
    request = Request(
        source=parse(str(graph(project))),
        targets=targets.select("ort-int8"),
        options=options,
        calibration=options.calib,
        evaluation=options.eval,
    )
    before = written_steps(root)
    (outcome,) = run(request, BuildContext(store=Store(root), options=options, progress=Silent()))
    assert outcome.artifact is not None, outcome.error
    ran = [path.parent.name for path in written_steps(root) - before]
    folder, manifest = outcome.artifact.directory, outcome.artifact.manifest
    files = sorted(p for p in folder.iterdir() if p.name != "manifest.json")
    digests = [hashlib.sha256(p.read_bytes()).hexdigest() for p in files]
    return f"{digests} {manifest.parity} {manifest.calibration.fingerprint}", sorted(ran)


def written_steps(root: Path) -> set[Path]:
    return {p for p in (root / "steps").glob("*/*") if not p.name.startswith(".")}


def test_a_build_follows_its_data_and_its_metric(project, tmp_path, monkeypatch):
    cache, out = tmp_path / "cache", tmp_path / "out"
    rewrite(project / "wanted.txt", "1.0", "0.8")
    first, ran = build(cache, project, out)
    assert {"calibrate", "verify"} <= set(ran)
    assert build(cache, project, out) == (first, [])
    DATA_CHANGES["module"](project, monkeypatch)
    second, ran = build(cache, project, out)
    assert "calibrate" in ran
    assert second != first
    for change in METRIC_CHANGES.values():
        change(project, monkeypatch)
        third, _ = build(cache, project, out)
        assert third != second
        second = third
    assert build(tmp_path / "fresh", project, tmp_path / "anew")[0] == second
