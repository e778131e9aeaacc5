"""What compression without training costs a ResNet-20: the table of docs/compression.md.

    python tools/check_untrained.py [RECIPE ...]

``EDGEKIT_DATA`` names the data's folder. The network is that of ``tools/check_search.py`` (the published weights,
tuned to the JPEGs for two epochs, once). Accuracy in percent on the 10,000 test images, in PyTorch.
"""

from __future__ import annotations

import copy
import sys
import time

import torch
from search_networks import _objects, resnet20

from edgekit.compress import recipes
from edgekit.compress.run import run
from edgekit.compress.step import Context

RECIPES = (
    "qat(weights=4;refit=false)",
    "qat(weights=4)",
    *(f"prune(sparsity={s};refit={r})" for s in (0.5, 0.7, 0.8) for r in ("false", "true")),
    "prune(sparsity=0.5;criterion=wanda)",
    "shrink(macs=0.5;criterion=taylor;refit=false)",
    "shrink(macs=0.5;criterion=taylor)",
)


def main() -> None:
    """One line for each recipe."""
    source, task = resnet20(), _objects()
    print(f"{'the network':50} {100 * task.metric(source.module):.2f}", flush=True)
    for line in sys.argv[1:] or RECIPES:
        context = Context(task=task, example_inputs=source.example_inputs)
        begin = time.process_time()
        model, _ = run(copy.deepcopy(source.module), recipes.read(line).steps, context, judged=False)
        seconds = time.process_time() - begin
        with torch.no_grad():
            print(f"{line:50} {100 * task.metric(model):.2f}  {seconds:.0f} s of CPU", flush=True)


if __name__ == "__main__":
    main()
