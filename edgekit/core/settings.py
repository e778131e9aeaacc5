"""The options of targets, checked before anything is done: by their declaration, and by their backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgekit.core import config, plugins
from edgekit.types import ChecksOptions, Option, Target


def check(targets: Sequence[Target], settings: Mapping[str, Option]) -> None:
    """Raise what each target has to say of ``settings``; of names that it does not know, nothing.

    Raises:
        ConfigError: a value is not allowed, or says nothing that can be read.
        UnsupportedError: the target's precision is not what the named GPUs compute in.
    """
    for target in targets:
        options = config.target_options(target, settings)
        backend = plugins.backend(target.backend)
        if isinstance(backend, ChecksOptions):
            backend.check_options(target, options)
