"""The entity report before and after quantization, on every runtime.

    EDGEKIT_DATA=DATA python examples/ner_int8/ner_int8.py --out OUT [--target ort-int8,openvino-int8,tflite-int8]

Fine-tunes (first time), builds each target through edgekit, runs the artifacts on the whole test set and prints
seqeval's report of PyTorch and of each artifact, then one line each: F1 and its change in points.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import data
import model
import numpy as np
import torch
import wnut
from seqeval.metrics import classification_report, f1_score

import edgekit

HERE = Path(__file__).parent
TARGETS = ("ort-int8", "openvino-int8", "tflite-int8")


def main() -> None:
    """Build, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("ner_int8"))
    parser.add_argument("--target", default=",".join(TARGETS))
    options = parser.parse_args()
    before = tagged(in_pytorch())
    print(f"PyTorch, float32\n{report(before)}")
    rows = []
    for artifact in build(options.out, options.target.split(",")):
        after = tagged(artifact.predict(inputs()))
        print(f"{artifact.target}\n{report(after)}")
        rows.append(row(artifact.target, before, after))
    print("\n".join(map(json.dumps, rows)))


def build(out: Path, targets: list[str]) -> tuple[edgekit.Artifact, ...]:
    """Every target through all of edgekit's gates."""
    result = edgekit.build(
        f"{HERE / 'model.py'}:tagger",
        targets=targets,
        calibration=f"{HERE / 'data.py'}:calibration",
        evaluation=f"{HERE / 'data.py'}:evaluation",
        out=out,
        options=edgekit.Options.load({"metric": f"{HERE / 'data.py'}:entity_f1"}),
    )
    return result.raise_for_failures().artifacts


Tags = tuple[list[list[str]], list[list[str]]]
"""Predicted and true tags by sentence and word."""


def tagged(outputs: Iterable[Mapping[str, np.ndarray]]) -> Tags:
    """The tags that logits stand for."""
    logits = [np.asarray(next(iter(named.values()))) for named in outputs]
    return wnut.spans(logits, list(wnut.read("test").labels[: len(logits)]))


def inputs() -> Iterable[dict[str, np.ndarray]]:
    """The test set's sentences, without their tags."""
    return (sample for sample, _ in data.evaluation())


def in_pytorch() -> Iterable[dict[str, np.ndarray]]:
    """What the source gives for them."""
    module = model.tagger().module
    with torch.no_grad():
        for sample in inputs():
            yield {"logits": module(**{k: torch.from_numpy(v) for k, v in sample.items()}).numpy()}


def report(tags: Tags) -> str:
    """Precision, recall and F1 by kind of entity."""
    predicted, true = tags
    return str(classification_report(true, predicted, digits=3, zero_division=0))


def row(target: str, before: Tags, after: Tags) -> dict[str, object]:
    """F1 in percent before and after, and how many words got another tag."""
    first, second = (100 * float(f1_score(true, found, zero_division=0)) for found, true in (before, after))
    words = [a == b for x, y in zip(before[0], after[0], strict=True) for a, b in zip(x, y, strict=True)]
    return {
        "target": target, "f1_fp32": round(first, 2), "f1": round(second, 2), "change": round(second - first, 2),
        "words_changed": f"{1 - sum(words) / len(words):.2%}",
    }  # fmt: skip


if __name__ == "__main__":
    main()
