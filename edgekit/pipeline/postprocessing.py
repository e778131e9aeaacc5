"""The post-processing contract of a build: the project's, or the source's own. One of another model is refused."""

from __future__ import annotations

from itertools import islice

from edgekit.core.config import Options
from edgekit.graph.records import ModelRecord
from edgekit.load.data import SampleSet
from edgekit.pipeline.lower import Graph
from edgekit.pipeline.stages import BuildContext
from edgekit.pipeline.verify import reference_of
from edgekit.preprocess.postprocessing import Postprocessing, declared, refuse_second

_ROWS = 16
"""Answers of the source that are looked at: a softmax shows in each."""


def stated(options: Options, record: ModelRecord) -> Postprocessing | None:
    """What is declared for the exported model: ``[postprocessing]`` before the source's own; ``None`` where nothing is.

    Raises as :func:`edgekit.preprocess.postprocessing.declared` does.
    """
    return declared(options.postprocessing or record.postprocessing, record.model.outputs, record.labels)


def refuse_wrong(context: BuildContext, graph: Graph, samples: SampleSet) -> None:
    """Raise :class:`UsageError` where the source's answers to ``samples`` show that the contract is wrong: a softmax or
    sigmoid of what is probabilities already."""
    contract = stated(context.options, graph.exported.record)
    # The answers are what artifacts are verified with later: only then are they worth their time.
    if contract is None or (contract.activation if contract.is_boxes else contract.kind) == "none":
        return
    reference = reference_of(context, graph.source, graph.exported, samples, graph.pixels)
    refuse_second(contract, list(islice(reference.outputs, _ROWS)))
