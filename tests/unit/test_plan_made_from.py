"""A plan belongs to one source: edited code and other weights are told, what is not the model is not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from edgekit.compress import made_from, plan
from edgekit.compress.registry import from_options
from edgekit.compress.run import run
from edgekit.compress.step import Context
from edgekit.core.store import Store
from edgekit.errors import ConfigError, SourceError
from edgekit.load import parse
from edgekit.load.source import Source
from edgekit.types import Permit

CODE = """
import torch
from part import pooled


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, x):
        return pooled(self.layer(x))


def net():
    model = Net()
    model.load_state_dict(torch.load("w.pt"))
    return model, torch.ones(2, 4)


def samples():
    yield torch.ones(2, 4)
"""
PART = "def pooled(x):\n    return x.mean(0)\n\n\ndef unused(x):\n    return x\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a source, and a plan of it."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "net.py").write_text(CODE)
    (folder / "part.py").write_text(PART)
    weights(folder, 0)
    spec = parse("net.py:net")
    source = Source(spec, Store(tmp_path / "cache"))
    model = source.torch()
    steps, context = (from_options("prune", {"sparsity": 0.5}),), Context(example_inputs=model.example_inputs)
    made = made_from.of(spec, model.module, source.read)
    pruned, report = run(source.torch().module, steps, context)
    out = folder / "plan"
    plan.save(out, pruned, steps, report, context, origin=plan.origin(spec, out), made=made)
    return folder


def weights(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    torch.save(torch.nn.Linear(4, 4).state_dict(), folder / "w.pt")
    state = torch.load(folder / "w.pt")
    torch.save({f"layer.{k}": v for k, v in state.items()}, folder / "w.pt")


def loaded(tmp_path):
    return Source(parse("plan"), Store(tmp_path / "other cache"), trust=True).torch()


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("net.py", "pooled(self.layer(x))", "pooled(self.layer(x)) * 2"),
        ("part.py", "x.mean(0)", "x.amax(0)"),
        ("net.py", "import torch\n", "import torch\ntorch.set_printoptions(precision=2)\n"),
        ("net.py", "    model = Net()\n", "    model = Net().double()\n"),
    ],
)
def test_edited_code_is_another_source(tmp_path, project, file, old, new):
    edit(project / file, old, new)
    with pytest.raises(SourceError, match=rf"its code changed \({file}\)") as error:
        loaded(tmp_path)
    assert error.value.exit_code == 3
    assert "compress it again" in error.value.hint


def test_other_weights_are_another_source(tmp_path, project):
    weights(project, 1)
    with pytest.raises(SourceError, match="its weights changed"):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("net.py", "return pooled(", "# a comment\n        return  pooled("),
        ("net.py", "    def forward(self, x):\n", '    def forward(self, x):\n        """What it does."""\n'),
        ("net.py", "yield torch.ones(2, 4)", "yield torch.zeros(2, 4)"),
        ("net.py", "import torch\n", "import torch\nimport math\n"),
        ("net.py", "def samples", "def more():\n    return math.pi\n\n\ndef samples"),
        ("net.py", "def samples", 'if __name__ == "__main__":\n    print(net())\n\n\ndef samples'),
        ("part.py", "    return x\n", "    return x + 1\n"),
    ],
)
def test_what_is_not_the_model_may_change(tmp_path, project, file, old, new):
    before = loaded(tmp_path).module.state_dict()
    edit(project / file, old, new)
    after = loaded(tmp_path).module.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before)


def test_a_copy_in_another_folder_is_the_same_source(tmp_path, project, monkeypatch):
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(project, copy)
    monkeypatch.chdir(copy)
    shutil.rmtree(project)
    assert not any("not checked" in note for note in loaded(tmp_path).notes)
    edit(copy / "part.py", "x.mean(0)", "x.amax(0)")
    with pytest.raises(SourceError, match="part"):
        loaded(tmp_path)


def test_a_plan_without_the_record_is_said_to_be_unchecked(tmp_path, project):
    document = plan.read_document(project / "plan")
    assert set(document.pop("made_from")["code"]) == {"net.py", "part.py"}
    plan.write_document(project / "plan", document)
    weights(project, 1)
    assert any("not checked" in note for note in loaded(tmp_path).notes)


@pytest.mark.parametrize("record", [3, {}, {"weights": "0", "code": {"net.py": 1}}, None])
def test_a_record_that_is_none(project, record):
    document = plan.read_document(project / "plan")
    plan.write_document(project / "plan", document | {"made_from": record})
    with pytest.raises(ConfigError):
        plan.read(project / "plan")


def test_names_that_lead_elsewhere_are_not_read(tmp_path, project):
    """A plan of somebody's says which files are looked at: those of its source alone."""
    pipe = tmp_path / "pipe.py"
    os.mkfifo(pipe)
    document = plan.read_document(project / "plan")
    code = {"sha256": "0", "meaning": "0"}
    document["made_from"]["code"] |= {str(pipe): code, "../pipe.py": code, "": code, "\0": code}
    plan.write_document(project / "plan", json.loads(json.dumps(document)))
    assert plan.load(parse("plan"), Permit(trust=True)).module is not None
