"""Spoken digits in INT8 on every runtime: the whole test set, in PyTorch and in each artifact.

    EDGEKIT_DATA=DATA python examples/kws/kws.py --out OUT [--target ort-int8,openvino-int8,tflite-int8]

Trains (first time), builds each target through edgekit, which runs the artifact on the test set, and prints one
line each.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import edgekit

HERE = Path(__file__).parent
TARGETS = ("ort-int8", "openvino-int8", "tflite-int8")


def main() -> None:
    """Build, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("kws"))
    parser.add_argument("--target", default=",".join(TARGETS))
    options = parser.parse_args()
    for artifact in build(options.out, options.target.split(",")):
        print(json.dumps(row(artifact)))


def build(out: Path, targets: list[str]) -> tuple[edgekit.Artifact, ...]:
    """Every target through all of edgekit's gates."""
    result = edgekit.build(
        f"{HERE / 'model.py'}:digits",
        targets=targets,
        calibration=f"{HERE / 'data.py'}:calibration",
        evaluation=f"{HERE / 'data.py'}:evaluation",
        out=out,
    )
    return result.raise_for_failures().artifacts


def row(artifact: edgekit.Artifact) -> dict[str, object]:
    """Accuracy before and after in percent, clips that got another digit, kilobytes."""
    parity = artifact.manifest.parity
    return {
        "target": artifact.target,
        "accuracy_fp32": round(100 * parity.reference_metric, 2),
        "accuracy": round(100 * parity.metric, 2),
        "changed": round((1 - parity.top1_agreement) * parity.rows),
        "clips": parity.rows,
        "snr_db": round(parity.snr_db, 1),
        "kB": round(
            sum((artifact.directory / f.name).stat().st_size for f in artifact.manifest.files) / 1000, 1
        ),
    }


if __name__ == "__main__":
    main()
