"""Train, prune, share weights and code without loss: Deep Compression's LeNets, end to end.

    python examples/mnist_lossless/mnist_lossless.py --data MNIST --net lenet-5 --goal small --out OUT

MNIST is the folder with the four ``*-ubyte.gz`` files. OUT gets the plan (JSON and safetensors), the
weights as ``model.safetensors`` and coded as ``model.safetensors.ekz``. The ratio counts the whole .ekz
file against the parameters in float32.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from mnist import Digits, digits, lenet_5, lenet_300_100
from safetensors.torch import save_file

from edgekit import entropy
from edgekit.compress.plan import save
from edgekit.compress.run import run
from edgekit.compress.step import Context, Step
from edgekit.compress.steps.cluster import Cluster
from edgekit.compress.steps.prune import Prune
from edgekit.compress.training.settings import Training
from edgekit.compress.training.train import fit


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A recipe for one net: how long to train, what to prune and how many values to share."""

    net: Callable[[], torch.nn.Module]
    base: Training
    prune: Prune
    cluster: Cluster

    @property
    def steps(self) -> tuple[Step, ...]:
        """The recipe."""
        return self.prune, self.cluster


_BASE_300 = Training(epochs=10.0, rate=2e-3)
_BASE_5 = Training(epochs=5.0, rate=1.5e-3)
GOALS = {
    ("lenet-300-100", "accurate"): Goal(
        net=lenet_300_100,
        base=_BASE_300,
        prune=Prune(sparsity=0.95, ramp=0.5, training=Training(epochs=20.0, rate=3e-3)),
        cluster=Cluster(values=10, bias=0.03, bias_bits=4, training=Training(epochs=4.0, rate=5e-4)),
    ),
    ("lenet-300-100", "small"): Goal(
        net=lenet_300_100,
        base=_BASE_300,
        prune=Prune(sparsity=0.968, ramp=0.5, training=Training(epochs=20.0, rate=3e-3)),
        cluster=Cluster(values=8, bias=0.04, bias_bits=4, training=Training(epochs=4.0, rate=5e-4)),
    ),
    ("lenet-5", "accurate"): Goal(
        net=lenet_5,
        base=_BASE_5,
        prune=Prune(layers="0=0.4,2=0.85,5=0.982,7=0.85", ramp=0.5, training=Training(epochs=6.0, rate=2e-3)),
        cluster=Cluster(values=8, bias=0.02, bias_bits=4, training=Training(epochs=2.0, rate=5e-4)),
    ),
    ("lenet-5", "small"): Goal(
        net=lenet_5,
        base=_BASE_5,
        prune=Prune(
            layers="0=0.5,2=0.93,5=0.9925,7=0.92", ramp=0.5, training=Training(epochs=6.0, rate=2e-3)
        ),
        cluster=Cluster(values=8, bias=0.02, bias_bits=4, training=Training(epochs=2.0, rate=5e-4)),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """Errors in percent, sizes in bytes."""

    net: str
    goal: str
    base_error: float
    error: float
    parameters: int
    packed: int
    ratio: float
    seconds: float


def compress(task: Digits, net: str, goal: str, out: Path, *, seed: int = 0) -> Result:
    """Train the dense net, run the recipe, write plan, weights and container to ``out``."""
    begin = time.perf_counter()
    recipe = GOALS[net, goal]
    torch.manual_seed(seed)
    model = recipe.net()
    fit(model, task, recipe.base, seed=seed)
    base = task.metric(model)
    context = Context(task=task, example_inputs={"image": torch.zeros(1, 1, 28, 28)}, seed=seed)
    model, report = run(model, recipe.steps, context)
    save(out, model, recipe.steps, report, context)
    weights = out / "model.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, weights)
    packed = entropy.pack(weights, out / "model.safetensors.ekz")
    parameters = sum(p.numel() for p in model.parameters())
    return Result(
        net=net,
        goal=goal,
        base_error=round(100 * (1 - base), 2),
        error=round(100 * (1 - task.metric(model)), 2),
        parameters=parameters,
        packed=packed.packed,
        ratio=round(4 * parameters / packed.packed, 1),
        seconds=round(time.perf_counter() - begin, 1),
    )


def main() -> None:
    """Run one goal, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--net", choices=sorted({n for n, _ in GOALS}))
    parser.add_argument("--goal", choices=sorted({g for _, g in GOALS}))
    parser.add_argument("--out", type=Path, default=Path("mnist_lossless"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    task = digits(args.data)
    for net, goal in GOALS:
        if args.net in (None, net) and args.goal in (None, goal):
            result = compress(task, net, goal, args.out / f"{net}-{goal}", seed=args.seed)
            print(json.dumps(vars(result)), flush=True)


if __name__ == "__main__":
    main()
