"""One network built for several targets, and the truth about each artifact that a gate refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from edgekit.artifact.energy import SNR_CAP
from edgekit.artifact.gates import failed
from edgekit.artifact.parity import compare
from edgekit.core import targets as catalogue
from edgekit.core.config import Options
from edgekit.devices.execute import run_artifact
from edgekit.load.data import SampleSet
from edgekit.pipeline import api, build, stages
from edgekit.pipeline.build import Outcome, Request
from edgekit.pipeline.candidates import Candidate, plain_candidate
from edgekit.pipeline.verify import reference_of
from edgekit.types import Parity, TorchModel

Inputs = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A module and its samples; without ``evaluation`` it is verified on those of the calibration, as a build does."""

    model: TorchModel
    calibration: Sequence[Inputs]
    evaluation: Sequence[Inputs] | None = None


def zoo(name: str, samples: int) -> Network | str:
    """One of the zoo, with random weights and inputs; why not, if it cannot be made."""
    import torch
    from zoo_models import registry, settle

    torch.manual_seed(0)
    architecture = registry()[name]
    module = architecture.build().eval()
    settle(architecture, module)
    example = dict(architecture.inputs(module, 1))
    torch.manual_seed(1)
    drawn = [{k: v.numpy() for k, v in architecture.inputs(module, 1).items()} for _ in range(samples)]
    return Network(model=TorchModel(module=module, example_inputs=example), calibration=drawn)


def real(name: str, evaluated: int) -> Network:
    """One with real weights, on its data."""
    from real_networks import NETWORKS

    network = NETWORKS[name]()
    return Network(
        model=network.model, calibration=network.calibration, evaluation=network.evaluation[:evaluated]
    )


class Trial:
    """The network built for ``targets`` with default options, in the folder where this process is."""

    def __init__(self, network: Network, targets: Sequence[str], **options: object) -> None:
        self.network, self.names = network, targets
        chosen = {"out": Path.cwd() / "out", "target": ",".join(targets), "speed_gate": False}
        self.options = Options.load(chosen | options)
        self.context = api.context(self.options, None)
        asked = api.request(
            network.model, None, self.options, calibration=network.calibration, evaluation=network.evaluation
        )
        self.request: Request = replace(asked, targets=tuple(catalogue.find(n) for n in targets))

    def outcomes(self) -> tuple[Outcome, ...]:
        """What became of each target."""
        return build.run(self.request, self.context)

    def judged(self, outcome: Outcome) -> dict[str, Any]:
        """The fields of a row: the gates that failed, and of a refused artifact the truth."""
        assert outcome.artifact is not None
        manifest = outcome.artifact.manifest
        refused = failed(manifest.gates)
        message = "; ".join(g.message for g in manifest.gates if g.name in refused)
        parity = manifest.parity
        row: dict[str, Any] = {
            "refused": refused,
            "message": message,
            "snr": parity.snr_db if parity else np.nan,
        }
        if not refused:
            return row
        truth = self._in_float if outcome.target.scheme is not None else self._against_float64
        return row | truth(outcome)

    def _against_float64(self, outcome: Outcome) -> dict[str, Any]:
        """The largest error of the artifact, and of PyTorch in float32, against PyTorch in float64."""
        prepared = build.prepare(self.request, self.context)
        made = plain_candidate(self.context, prepared, outcome.target)
        graph, samples = prepared.graph, prepared.data.verification
        exact = list(stages.float64(self.context, graph.source, graph.exported, samples))
        own = reference_of(self.context, graph.source, graph.exported, samples, graph.pixels).outputs
        inputs = [s.inputs for s in samples][: len(exact)]
        with run_artifact(made.lowering.subject.runnable, inputs) as result:
            largest = compare(exact, result.outputs).relative_error
        rounded = compare(exact, [o for o, _ in zip(own, exact, strict=False)]).relative_error
        return {"largest": largest, "own": rounded}

    def _in_float(self, outcome: Outcome) -> dict[str, Any]:
        """The same Q/DQ graph computed in float, judged by the same gates; the artifact for this processor, where that
        passes and the runtime's does not."""
        prepared = build.prepare(self.request, self.context)
        made = plain_candidate(self.context, prepared, outcome.target)
        parity = self._emulated(prepared.data.verification, made, prepared)
        in_float = replace(made, verified=replace(made.verified, parity=parity))
        judged = build.judge(outcome.target, in_float, self.options, prepared)
        row: dict[str, Any] = {"emulated": parity.snr_db, "also": failed(judged)}
        if row["also"] or self.options.device:
            return row
        again = Trial(self.network, [outcome.target.name], device="local")
        (local,) = again.outcomes()
        gates = ("not built",) if local.artifact is None else failed(local.artifact.manifest.gates)
        return row | {"local": tuple(gates)}

    def _emulated(self, samples: SampleSet, made: Candidate, prepared: build.Prepared) -> Parity:
        graph = prepared.graph
        reference = reference_of(self.context, graph.source, graph.exported, samples, graph.pixels)
        parity = compare(
            reference.outputs,
            _in_float(made.lowering.subject.model.path, (s.inputs for s in samples)),
            noise=samples.noise,
        )
        assert parity.snr_db <= SNR_CAP
        return replace(parity, data=samples.origin)


def _in_float(path: Path, inputs: Iterator[Inputs]) -> Iterator[dict[str, np.ndarray]]:
    """Q/DQ as it is written, nothing fused to integers."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    taken = {i.name for i in session.get_inputs()}
    for item in inputs:
        yield dict(zip(names, session.run(None, {k: v for k, v in item.items() if k in taken}), strict=True))
