"""One of the processes that train together."""

from __future__ import annotations

import os
from pathlib import Path

from edgekit.compress import recipes
from edgekit.compress.training.settings import is_first_process
from edgekit.core.progress import Listener
from edgekit.errors import DefectError, EdgekitError
from edgekit.pipeline import api, compress, several
from edgekit.pipeline.several import Made


def take_part(order: Path, listener: Listener | None) -> None:
    """Run the compress stage that ``order`` tells, or leave its error. Raises it, too."""
    asked = several.read(order)
    os.environ["EDGEKIT_CACHE"] = str(asked.cache)
    try:
        context = api.context(asked.options, listener)
        source = compress.named(context, asked.source)
        compressed = compress.compress(context, source, recipes.read(str(asked.recipe)))
        if is_first_process():
            several.deliver(Made(folder=compressed.folder, seconds=compressed.step.seconds), order)
    except Exception as raised:
        several.leave(
            raised if isinstance(raised, EdgekitError) else DefectError.of(raised, "training"), order
        )
        raise
