"""Do streaming networks in INT8 decide the same? Over a minute of speech that no build has seen.

    python tools/stream_decisions.py [NAME…] [--targets ort-int8,openvino-int8,tflite-int8] [--steps 400]

Each network is trained, built as ``edgekit build`` does it, with calibration and evaluation streams of its own, and
what passes is run over another minute, each step with the states that it made itself, beside PyTorch doing the same. An
artifact that passes and decides otherwise in more than 1 % of the frames is a defect of the gates; the exit code is 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from stream_networks import NETWORKS, Speech, decisions, samples, trained
from torch import nn

import edgekit
from edgekit.artifact.gates import failed
from edgekit.artifact.manifest import read
from edgekit.artifact.run import runnable
from edgekit.devices.execute import run_artifact
from edgekit.types import Tolerance

LEAST = Tolerance(snr_db=0.0).decisions
TARGETS = "ort-int8,openvino-int8,tflite-int8"


@dataclass(frozen=True, kw_only=True)
class Row:
    """``agree``: the share of equal decisions over the minute; ``None`` where the artifact was ``refused``."""

    network: str
    target: str
    gated: float | None = None
    agree: float | None = None
    refused: str = ""


def rows(
    name: str, module: nn.Module, targets: Sequence[str], speech: Speech, seconds: float = 61.0
) -> Iterator[Row]:
    """The network built for ``targets``."""
    unseen = samples(module, speech.stream(seconds, 3, tested=True))
    wanted = decisions(module, list(_in_torch(module, unseen)))
    with tempfile.TemporaryDirectory() as folder:
        result = edgekit.build(
            module,
            {n: torch.zeros(s) for n, s in module.example.items()},
            targets=list(targets),
            calibration=samples(module, speech.stream(10, 1)),
            evaluation=samples(module, speech.stream(15, 2, tested=True)),
            options=edgekit.Options(out=Path(folder), speed_gate=False, device="local"),
        )
        for failure in result.failures:
            yield Row(network=name, target=failure.target, refused=failure.error.message)
        for artifact in result.artifacts:
            manifest = artifact.manifest
            assert not failed(manifest.gates)
            states = manifest.details["rollout"]["states"]
            got = decisions(module, list(_in_runtime(artifact, states, unseen)))
            yield Row(
                network=name,
                target=manifest.target.name,
                gated=manifest.details["rollout"]["decisions"],
                agree=float(np.mean(got == wanted)),
            )


def _in_torch(module: nn.Module, steps: Sequence[Mapping[str, np.ndarray]]) -> Iterator[np.ndarray]:
    names = list(module.example)
    states = [torch.from_numpy(steps[0][n]) for n in names[1:]]
    with torch.no_grad():
        for step in steps:
            first, *states = module(torch.from_numpy(step["frame"]), *states)
            yield first.numpy()


def _in_runtime(
    artifact: edgekit.Artifact, states: Mapping[str, str], steps: Sequence[Mapping[str, np.ndarray]]
) -> Iterator[np.ndarray]:
    made = runnable(read(artifact.directory / "manifest.json"))
    (output,) = (o.name for o in artifact.manifest.outputs if o.name not in states.values())
    with run_artifact(made, steps, states=states) as result:
        for row in result.outputs:
            yield row[output]


def main() -> int:
    """Print a line an artifact."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(NETWORKS))
    parser.add_argument("--targets", default=TARGETS)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    speech, bad = Speech(), 0
    for name in options.names:
        module = trained(name, speech, options.steps)
        for row in rows(name, module, options.targets.split(","), speech):
            bad += row.agree is not None and row.agree < LEAST
            if row.agree is None:
                print(f"{row.network:22} {row.target:20} refused: {row.refused}", flush=True)
                continue
            gated = "not judged" if row.gated is None else f"{row.gated:.2%} in the build"
            print(f"{row.network:22} {row.target:20} {row.agree:.2%} equal, {gated}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
