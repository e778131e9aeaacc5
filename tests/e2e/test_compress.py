"""``edgekit compress``: recipes, plans as sources, the compress stage of a build, and the search under a budget."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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
    *arguments: str, cwd: Path, launcher: tuple[str, ...] = ("-m", "edgekit")
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
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

    built = edgekit("build", "a", "-t", "ort-fp32", "--eval", evaluation, "--out", "one", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    staged = edgekit(
        "build", source, "--recipe", "a/recipe.toml", *task, "-t", "ort-fp32", "--out", "two", cwd=tmp_path
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
    limits = ("--budget", "drop<=1pt,size<=60KB", "--time", "1h", "-t", "ort-fp32,ort-int8")
    done = edgekit("compress", source, *limits, "--trials", "14", *data, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["winner"]["exact"]
    assert found["winner"]["size"] <= 60_000
    assert max(found["winner"]["drop"], found["unseen"]["drop"]) <= 0.01 + 1e-9
    journal = [json.loads(x) for x in (tmp_path / "out" / "search.jsonl").read_text().splitlines()[1:]]
    assert len(journal) == 14
    holding = [p for p in journal if p["line"].count("(") <= 1 and p["exact"] and p["drop"] <= 0.01]
    assert found["winner"]["size"] <= min(p["size"] for p in holding)
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
    assert not (tmp_path / "build" / "compressed" / "plan.json").exists()
