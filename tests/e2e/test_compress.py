"""``edgekit compress``: recipes, plans as sources, the compress stage of a build, and the search under a budget."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

pytestmark = pytest.mark.e2e

RECIPE = "prune(sparsity=0.7;training.epochs=1);cluster(values=32)"


@pytest.fixture(scope="module")
def digits(root: Path) -> Path:
    return root / "examples" / "digits"


@pytest.fixture
def labelled(tmp_path: Path, digits: Path) -> str:
    """Training digits with their labels."""
    file = tmp_path / "train_digits.py"
    file.write_text(
        f"import sys\nsys.path.insert(0, {str(digits)!r})\nfrom digits_split import split\n\n\n"
        "def train():\n    images, labels = split()[0]\n"
        "    for image, label in zip(images[:512], labels):\n        yield {'image': image[None]}, int(label)\n"
    )
    return f"{file}:train"


def edgekit(
    *arguments: str, cwd: Path, launcher: tuple[str, ...] = ("-m", "edgekit"), cache: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if cache is not None:
        environment["EDGEKIT_CACHE"] = str(cache)
    return subprocess.run(
        [sys.executable, *launcher, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=environment,
    )


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_a_recipe_gives_a_plan_that_builds(tmp_path: Path, digits: Path, labelled: str) -> None:
    source, evaluation = f"{digits}/model.py:digits", f"{digits}/data.py:evaluation"
    task = ("--task", "classification(batch=64)", "--train", labelled, "--eval", evaluation)
    done = edgekit("compress", source, "--recipe", RECIPE, *task, "--out", "a", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    first, second = document["steps"]
    assert first["after"]["nonzero"] < 0.4 * first["before"]["nonzero"]
    assert second["after"]["metric"] > 0.95
    assert document["metric"] == "accuracy"

    # The recipe file that was written gives the same bytes, without any cache.
    again = subprocess.run(
        [
            sys.executable,
            "-m",
            "edgekit",
            "compress",
            source,
            "--recipe",
            "a/recipe.toml",
            *task,
            "--out",
            "b",
        ],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "EDGEKIT_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert files(tmp_path / "a") == files(tmp_path / "b")

    plain = ("build", "a", "-t", "ort-fp32", "--eval", evaluation, "--out", "one")
    refused = edgekit(*plain, cwd=tmp_path)
    assert refused.returncode == 5, "what the recipe lost of the source's accuracy counts"
    assert "by the recipe" in refused.stderr
    built = edgekit(*plain, "--max-drop", "3%", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    staged = edgekit(
        "build",
        source,
        "--recipe",
        "a/recipe.toml",
        *task,
        "-t",
        "ort-fp32",
        "--max-drop",
        "3%",
        "--out",
        "two",
        cwd=tmp_path,
    )
    assert staged.returncode == 0, staged.stderr
    model = (tmp_path / "one" / "ort-fp32" / "model.onnx").read_bytes()
    assert model == (tmp_path / "two" / "ort-fp32" / "model.onnx").read_bytes()
    weights = (tmp_path / "a" / "weights.safetensors").stat().st_size
    assert len(model) <= 1.05 * weights
    manifest = json.loads((tmp_path / "two" / "ort-fp32" / "manifest.json").read_text())
    step = next(s for s in manifest["steps"] if s["name"] == "compress")
    assert "accuracy" in step["notes"][0]

    foreign = subprocess.run(
        [sys.executable, "-m", "edgekit", "build", "a", "-t", "ort-fp32", "--out", "three"],
        cwd=tmp_path,
        env=os.environ | {"EDGEKIT_CACHE": str(tmp_path / "other")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert foreign.returncode == 3
    assert "--trust" in foreign.stderr


def test_two_processes_give_one_plan(tmp_path: Path, digits: Path, labelled: str) -> None:
    pytest.importorskip("lightning_fabric")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "edgekit")
    done = edgekit(
        "compress",
        f"{digits}/model.py:digits",
        "--recipe",
        RECIPE,
        "--task",
        "classification(batch=64)",
        "--train",
        labelled,
        "--eval",
        f"{digits}/data.py:evaluation",
        "--out",
        "a",
        "--json",
        cwd=tmp_path,
        launcher=launcher,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["steps"][1]["after"]["metric"] > 0.95
    assert (tmp_path / "a" / "plan.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--recipe", "prnue"), 2, "did you mean prune"),
        (("--recipe", "prune(training.epochs=1)"), 2, "nothing to train on"),
        (("--recipe", "prune", "--budget", "drop<=1pt"), 2, "exactly one"),
        ((), 2, "exactly one"),
        (("--budget", "weight<=1"), 2, "is no limit"),
        (("--budget", "drop<=1pt"), 2, "needs a task"),
        (("--budget", "drop<=1pt", "--time", "soon"), 2, "no quantity"),
        (("--budget", "drop<=1pt", "--steps", "prnue"), 2, "did you mean prune"),
        (("--budget", "drop<=1pt@20%"), 2, "a confidence of 20%"),
        (("--recipe", "prune", "--time", "5m"), 2, "--time limits a search"),
        (("--recipe", "missing.toml"), 2, "cannot be read"),
        (("--analyze", "--log", "paper"), 0, ""),
    ],
)
def test_what_cannot_be_meant_is_said(
    tmp_path: Path, digits: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    done = edgekit("compress", f"{digits}/model.py:digits", *arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_the_analysis_is_one_document(tmp_path: Path, digits: Path) -> None:
    done = edgekit(
        "compress",
        f"{digits}/model.py:digits",
        "--analyze",
        "--calib",
        f"{digits}/data.py:calibration",
        "--json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    layers = json.loads(done.stdout)["layers"]
    assert layers[-1]["name"] == "classifier"
    assert all(layer["activations"]["channels"] == layer["shape"][0] for layer in layers)
    assert all(layer["advice"][0]["why"] for layer in layers)


@pytest.mark.slow
def test_a_budget_is_held_and_its_recipe_gives_the_same_bytes(
    tmp_path: Path, digits: Path, labelled: str
) -> None:
    pytest.importorskip("optuna")
    source, evaluation = f"{digits}/model.py:digits", f"{digits}/data.py:evaluation"
    data = ("--task", "classification(batch=64)", "--train", labelled, "--eval", evaluation, "--out", "out")
    limits = ("--budget", "drop<=2pt,size<=60KB", "--time", "1h", "-t", "ort-fp32,ort-int8")
    done = edgekit("compress", source, *limits, "--trials", "14", *data, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["winner"]["exact"]
    assert found["winner"]["size"] <= 60_000
    assert max(found["winner"]["drop"], found["unseen"]["drop"]) <= 0.02 + 1e-9
    journal = [json.loads(x) for x in (tmp_path / "out" / "search.jsonl").read_text().splitlines()[1:]]
    assert len(journal) == 14
    singles = [p for p in journal if p["line"].count("(") <= 1 and p["exact"]]
    holding = [p["size"] for p in singles if p["drop"] + p["margin"] <= 0.02]
    rejected = {line.split(" → ")[0] for line in found["rejected"]}
    assert found["winner"]["size"] <= min(holding) or rejected
    pareto = json.loads((tmp_path / "out" / "pareto.json").read_text())
    assert pareto["winner"] == found["winner"]
    assert found["winner"] in found["front"]
    assert pareto["why"] == found["why"]
    sizes = [p["size"] for p in found["front"]]
    assert sizes == sorted(sizes)
    assert not (tmp_path / "out" / ".search").exists()

    packed = Path(tmp_path / found["packed"])
    bytes_before = packed.read_bytes()
    assert len(bytes_before) == found["winner"]["size"]
    again = edgekit("compress", source, "--recipe", "out/recipe.toml", *data[:-1], "again", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again" / packed.name).read_bytes() == bytes_before
    # A second search reads its journal and measures nothing anew.
    second = edgekit("compress", source, *limits, "--trials", "14", *data, "--json", cwd=tmp_path)
    assert json.loads(second.stdout)["winner"] == found["winner"]
    # So does one into another folder: the journal is in the cache.
    elsewhere = edgekit(
        "compress", source, *limits, "--trials", "14", *data[:-1], "else", "--json", cwd=tmp_path
    )
    assert json.loads(elsewhere.stdout)["winner"] == found["winner"]
    assert (tmp_path / "else" / packed.name).read_bytes() == bytes_before
    journals = [(tmp_path / name / "search.jsonl").read_bytes() for name in ("out", "else")]
    assert journals[0] == journals[1]


@pytest.mark.slow
def test_ctrl_c_keeps_the_best_and_the_search_goes_on_to_the_same_end(
    tmp_path: Path, digits: Path, labelled: str
) -> None:
    pytest.importorskip("optuna")
    limits = ("--budget", "drop<=2pt", "--trials", "9", "--epochs", "0.5", "--steps", "prune,cluster")
    data = (
        "--task",
        "classification(batch=64)",
        "--train",
        labelled,
        "--eval",
        f"{digits}/data.py:evaluation",
    )
    command = ("compress", f"{digits}/model.py:digits", *limits, *data, "-t", "ort-fp32", "--json", "--out")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "EDGEKIT_CACHE": str(tmp_path / "cache")}
    journal = tmp_path / "cut" / "search.jsonl"
    with subprocess.Popen(
        [sys.executable, "-m", "edgekit", *command, "cut"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        while running.poll() is None and not (journal.is_file() and len(_lines(journal)) > 4):
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGINT)
        out, err = running.communicate(timeout=300)
    assert running.returncode == 0, err[-3000:]
    first = json.loads(out)
    assert first["interrupted"]
    assert 4 <= first["tried"] < 9
    assert Path(tmp_path / first["packed"]).is_file()
    assert not [p for p in _lines(journal)[1:] if json.loads(p)["error"]]
    assert re.search(r"\d candidates left", err)

    went_on = edgekit(*command, "cut", cwd=tmp_path, cache=tmp_path / "cache")
    whole = edgekit(*command, "whole", cwd=tmp_path, cache=tmp_path / "other")
    ends = [json.loads(done.stdout) for done in (went_on, whole)]
    assert not ends[0]["interrupted"]
    assert [end["tried"] for end in ends] == [9, 9]
    assert (tmp_path / ends[0]["packed"]).read_bytes() == (tmp_path / ends[1]["packed"]).read_bytes()
    assert (tmp_path / "cut" / "recipe.toml").read_bytes() == (
        tmp_path / "whole" / "recipe.toml"
    ).read_bytes()


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_a_source_that_knows_nothing_holds_every_budget_and_is_refused(tmp_path: Path, digits: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(
        f"import sys\nsys.path.insert(0, {str(digits)!r})\nfrom data import evaluation\n\n\n"
        "def shifted():\n    for inputs, label in evaluation():\n        yield inputs, (int(label) + 1) % 10\n"
    )
    done = edgekit(
        "compress", f"{digits}/model.py:digits", "--budget", "drop<=2pt", "--task", "classification",
        "--eval", f"{file}:shifted", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "anything holds" in done.stderr


@pytest.mark.slow
def test_a_budget_that_nothing_holds_is_a_failed_gate(tmp_path: Path, digits: Path) -> None:
    done = edgekit(
        "compress",
        f"{digits}/model.py:digits",
        "--budget",
        "drop<=0.1pt,size<=1KB",
        "--task",
        "classification",
        "--eval",
        f"{digits}/data.py:evaluation",
        "--trials",
        "2",
        "-t",
        "ort-fp32",
        cwd=tmp_path,
    )
    assert done.returncode == 5
    assert "holds" in done.stderr
    # Said before the search, and in its end's hint.
    assert done.stderr.count("evaluation samples are held out: with not one of them lost") == 2
    assert not (tmp_path / "build" / "compressed" / "plan.json").exists()


@pytest.mark.parametrize(
    ("ship", "said"),
    [
        ('target = "../x"', "target"),
        ('target = "ort-fp32"\nmethod = "nope"', "method"),
        ('target = "ort-fp32,ort-int8"', "2 targets"),
        ('target = "ort-genai-int4"', "language models"),
    ],
)
def test_what_a_recipe_ships_is_looked_at_before_it_is_run(
    tmp_path: Path, digits: Path, ship: str, said: str
) -> None:
    (tmp_path / "recipe.toml").write_text(f'[[step]]\nname = "fold"\n[ship]\n{ship}\n')
    done = edgekit(
        "compress", f"{digits}/model.py:digits", "--recipe", "recipe.toml", "-o", "out", cwd=tmp_path
    )
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


def test_weights_that_were_exchanged_are_not_the_plans(tmp_path: Path, digits: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = f"{digits}/model.py:digits"
    done = edgekit("compress", source, "--recipe", "fold;prune(sparsity=0.5)", "-o", "plan", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    weights = load_file(tmp_path / "plan" / "weights.safetensors")
    save_file({k: v + 0.01 for k, v in weights.items()}, tmp_path / "plan" / "weights.safetensors")
    for command in (("build", "plan", "-t", "ort-fp32"), ("compress", "plan", "--recipe", "fold")):
        done = edgekit(*command, "-o", "out", cwd=tmp_path)
        assert done.returncode == 3, done.stderr
        assert "is not the file that plan.json was written with" in done.stderr


@pytest.mark.parametrize("name", ["plan.json", "recipe.toml", "weights.safetensors", "pareto.json"])
def test_files_of_the_users_own_are_not_replaced(tmp_path: Path, digits: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text('{"mine": 1}')
    done = edgekit("compress", f"{digits}/model.py:digits", "--recipe", "fold", "-o", "out", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "was not written by edgekit compress" in done.stderr
    assert [p.name for p in (tmp_path / "out").iterdir()] == [name]
    assert (tmp_path / "out" / name).read_text() == '{"mine": 1}'


def test_a_folder_where_the_artifact_will_be_is_said_before_the_search(tmp_path: Path, digits: Path) -> None:
    """It was a candidate that does not hold, and another won."""
    pytest.importorskip("optuna")
    (tmp_path / "out" / "ort-fp32").mkdir(parents=True)
    (tmp_path / "out" / "ort-fp32" / "mine.txt").write_text("mine")
    source, data = f"{digits}/model.py:digits", f"{digits}/data.py:evaluation"
    search = ("--budget", "drop<=3pt", "--trials", "4", "--steps", "prune", "-t", "ort-fp32,ort-int8")
    done = edgekit(
        "compress", source, *search, "--task", "classification", "--eval", data, "-o", "out", cwd=tmp_path
    )
    assert done.returncode == 2, done.stderr
    assert "is no artifact" in done.stderr
    assert not (tmp_path / "out" / "search.jsonl").exists()


COPIED = """
import torch
from edgekit import TorchModel


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(x)


def net():
    return TorchModel(module=Net().eval(), example_inputs={"x": torch.zeros(1, 8)})
"""


def test_a_recipe_in_a_copy_of_a_project_takes_the_copys_files(tmp_path):
    """The cache has the plan from the first folder, whose code is edited, and then goes."""
    answers, digests = {}, {}
    first, second = tmp_path / "first", tmp_path / "second"

    def build(folder, run):
        out = tmp_path / run
        edgekit(
            "build",
            "net.py:net",
            "-t",
            "ort-fp32",
            "--recipe",
            "prune(sparsity=0.5)",
            "--out",
            str(out),
            cwd=folder,
        )
        manifest = json.loads((out / "ort-fp32" / "manifest.json").read_text())
        digests[run] = (manifest["source"]["sha256"], manifest["status"])
        import onnxruntime

        session = onnxruntime.InferenceSession(
            out / "ort-fp32" / "model.onnx", providers=["CPUExecutionProvider"]
        )
        (answers[run],) = session.run(None, {"x": np.ones((1, 8), np.float32)})

    for folder in (first, second):
        folder.mkdir()
        (folder / "net.py").write_text(COPIED)
        build(folder, folder.name)
    assert digests["first"] == digests["second"]
    (first / "net.py").write_text(COPIED.replace("self.layer(x)", "self.layer(x) * 100"))
    build(second, "beside an edited one")
    shutil.rmtree(first)
    build(second, "alone")
    for run, answer in answers.items():
        np.testing.assert_array_equal(answer, answers["first"], err_msg=run)
