"""safetensors: weights and records of a plan folder, calibrations, a Hugging Face model, a file to pack."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import torch

from edgekit import entropy
from edgekit.compress import plan, recipes
from edgekit.compress.run import run
from edgekit.compress.step import Context
from edgekit.graph import io
from edgekit.load import load, parse
from edgekit.load.samples import from_iterable
from edgekit.quantize.calibrate.calibration import Calibration
from edgekit.quantize.calibrate.collect import calibrate
from fuzzing import commands
from fuzzing.mutators import containers, documents, raw
from fuzzing.seeds import dense
from fuzzing.surfaces import Plain

_BERT = {
    "architectures": ["BertForSequenceClassification"], "model_type": "bert", "hidden_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 20, "max_position_embeddings": 16, "num_labels": 2,
    "type_vocab_size": 2, "id2label": {"0": "a", "1": "b"},
}  # fmt: skip


def _net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.ReLU(), torch.nn.Linear(12, 4)).eval()


class Surface(Plain):
    def seeds(self, folder: Path) -> dict[str, bytes]:
        made = _plan(folder / "plan")
        made["calibration.safetensors"] = _calibration(folder)
        self._bert = _bert(folder / "bert")
        made |= {
            "hf-config.json": json.dumps(_BERT).encode(),
            "hf-model.safetensors": self._bert["model.safetensors"],
        }
        self._plan = {n: d for n, d in made.items() if n in (plan.PLAN, plan.WEIGHTS, plan.TENSORS)}
        return made

    def mutate(self, rng: random.Random, name: str, data: bytes) -> bytes:
        if not name.endswith(".json"):
            return containers.safetensors(rng, data)
        if rng.random() < 0.1:
            return raw.mutate(rng, data)
        return documents.dump(rng, documents.mutate(rng, json.loads(data)))

    def place(self, name: str, data: bytes, box: Path) -> None:
        super().place(name, data, box)
        beside = {} if name.startswith("calibration") else self._plan | {name: data}
        if name.startswith("hf-"):
            beside = self._bert | {name.removeprefix("hf-"): data}
        for file, content in beside.items():
            (box / file).write_bytes(content)

    def consume(self, name: str, data: bytes, box: Path) -> None:
        del data
        path = box / name
        if name.startswith("hf-"):
            load(parse(f"hf:{box}"))
            return
        if name.startswith("calibration"):
            commands.each(
                lambda: Calibration.load(path),
                lambda: entropy.pack(path, box / "out" / "x.ekz", coder="huffman"),
            )
            return
        commands.each(
            lambda: plan.restore(_net(), plan.read(box)),
            lambda: load(parse(str(box))),
            lambda: entropy.pack(path, box / "out" / "x.ekz", coder="huffman"),
        )

    def command(self, name: str, data: bytes, box: Path) -> list[str]:
        del data
        if name.startswith("hf-"):
            return ["build", f"hf:{box}", "--target", "ort-fp32", "--out", str(box / "out" / "built")]
        return ["pack", str(box / name), "--out", str(box / "out" / "x.ekz")]


def _plan(folder: Path) -> dict[str, bytes]:
    """As ``edgekit compress`` leaves it, with a source that is somebody's code."""
    folder.mkdir()
    (folder / "evil.py").write_text("def model(): ...\n")
    steps = recipes.read("cluster(values=4)").steps
    context = Context()
    model, report = run(_net(), steps, context)
    plan.save(
        folder, model, steps, report, context, origin=plan.origin(parse(f"{folder}/evil.py:model"), folder)
    )
    return {n: (folder / n).read_bytes() for n in (plan.PLAN, plan.WEIGHTS, plan.TENSORS)}


def _calibration(folder: Path) -> bytes:
    (folder / "dense.onnx").write_bytes(dense())
    model = io.describe(folder / "dense.onnx")
    rows = [{"x": np.random.default_rng(i).normal(size=(1, 8)).astype(np.float32)} for i in range(4)]
    calibrate(model, from_iterable(rows, model.inputs), out=folder / "c.safetensors")
    return (folder / "c.safetensors").read_bytes()


def _bert(folder: Path) -> dict[str, bytes]:
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        **{k: v for k, v in _BERT.items() if k not in ("architectures", "model_type")}
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(_BERT))
    return {p.name: p.read_bytes() for p in folder.iterdir()}
