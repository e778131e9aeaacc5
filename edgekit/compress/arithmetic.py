"""What decides in which order sums are taken: the number of threads and the processor. Part of every key and plan.

Sums of floats depend on how many threads share them and on which vectors the processor has; after some hundred steps
of training the weights are others. Nothing here imports torch: a recipe that was run before is found without it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

from edgekit.core import versions

_VARIABLE = "OMP_NUM_THREADS"


def threads() -> int:
    """How many threads compute a step: ``OMP_NUM_THREADS``, else one for each processor that may be used."""
    text = os.environ.get(_VARIABLE, "").split(",")[0].strip()
    return int(text) if text.isdigit() and int(text) else int(versions.machine()["cpus"])


def described() -> Mapping[str, str]:
    """What weights depend on besides recipe, seed, source and data, for keys and plans."""
    machine = versions.machine()
    return {
        "threads": str(threads()),
        "processor": str(machine["processor"]),
        "machine": str(machine["machine"]),
    }


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """PyTorch computes with :func:`threads` inside the block, whatever was set before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads())
    try:
        yield
    finally:
        torch.set_num_threads(before)
