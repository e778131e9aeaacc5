"""What a cluster's node answers with, and what the driver makes of it: no cluster, no process."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgekit.core import dependency, versions
from edgekit.core.config import Options
from edgekit.core.targets import find
from edgekit.errors import ConfigError
from edgekit.sweep import cluster, node
from edgekit.sweep.cells import Cell
from edgekit.sweep.journal import CellResult, Failure
from edgekit.sweep.storage import Storage
from edgekit.sweep.tasks import Task


@pytest.fixture
def cell():
    return Cell(
        name="a", source="m.onnx", recipe="", variant="", target=find("ort-fp32"), device="",
        options=Options(target=("ort-fp32",)),
    )  # fmt: skip


def answer(cell, tmp_path, run, monkeypatch, says, attempt=1):
    """The failure that a node reports for ``run``, where its process would end with ``says``."""
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))

    def attempted(asked):
        failure = Failure(type="T", message=says, hint="", exit_code=3)
        return replace(CellResult.failed(asked.task.cell, asked._key, failure), attempts=asked.task.attempt)

    class Asked:
        def __init__(self, task, out, folder, key=""):
            self.task, self._key = task, key

    monkeypatch.setattr(node, "Attempt", Asked)
    monkeypatch.setattr(node, "_attempt", attempted)
    asked = node.Assignment(
        task=Task(cell=cell, attempt=attempt), key="k" * 64, storage=f"file://{tmp_path}/storage", folder=tmp_path,
        code=versions.code(), run=run,
    )  # fmt: skip
    data = node.work(node.encode(asked), tmp_path / "base", tmp_path)
    return node.msgspec.json.decode(data, type=CellResult).failure.message


def test_a_result_of_this_run_is_not_made_again(cell, tmp_path, monkeypatch):
    assert answer(cell, tmp_path, "one", monkeypatch, "first") == "first"
    assert answer(cell, tmp_path, "one", monkeypatch, "second") == "first"
    assert answer(cell, tmp_path, "one", monkeypatch, "second", attempt=2) == "second"


def test_a_result_of_another_run_is_no_answer(cell, tmp_path, monkeypatch):
    """The driver knows it, and asks again: a file that the code reads was edited."""
    assert answer(cell, tmp_path, "one", monkeypatch, "before the edit") == "before the edit"
    assert answer(cell, tmp_path, "two", monkeypatch, "after it") == "after it"
    assert node.stored(Storage(f"file://{tmp_path}/storage"), cell, "k" * 64).run == "two"


@pytest.mark.parametrize(
    ("processes", "device", "nodes", "says"),
    [
        (3, "", [{"CPU": 2}, {"CPU": 2}], "no node of the cluster has more than 2"),
        (2, "", [{"CPU": 2}, {}], ""),
        (2, "pi", [{"CPU": 8}, {"CPU": 1, "device:pi": 1}], "that reaches pi has more than 1"),
        (1, "pi", [{"CPU": 1, "device:pi": 1}], ""),
    ],
)
def test_what_no_node_can_do_is_not_waited_for(cell, processes, device, nodes, says):
    options = replace(cell.options, processes=processes)
    task = Task(cell=replace(cell, options=options, recipe="fold" if processes > 1 else "", device=device))
    has = {"CPU": 10.0, "device:pi": 1.0}
    if not says:
        cluster._refuse([task], has, nodes)
        return
    with pytest.raises(ConfigError, match=says):
        cluster._refuse([task], has, nodes)


def test_variables_that_a_node_has_otherwise_are_named(cell, monkeypatch):
    monkeypatch.setenv("SEED_OF_MINE", "9")
    monkeypatch.setenv("SAME", "x")
    seen = {"SEED_OF_MINE": None, "SAME": "x", "UNSET": None, "HOME": "/elsewhere", "RAY_JOB": "3"}
    reads = tuple(dependency.of_variable(name, value) for name, value in seen.items())
    assert cluster._other_variables(replace(CellResult.failed(cell, "k", None), reads=reads)) == [
        "SEED_OF_MINE"
    ]
