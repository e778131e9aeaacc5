"""The versions that edgekit was tested with: those of ``constraints.txt``, which the wheel carries."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from edgekit.core import plugins

FILE = "constraints.txt"
"""In the wheel's data, or at the root of the source tree: what the tests ran with is what users are told of."""


@functools.cache
def versions() -> Mapping[str, str]:
    """By normalized name of the distribution; empty where the file is missing."""
    try:
        text = (plugins.data_dir() / FILE).read_text(encoding="utf-8")
    except OSError:
        return {}
    return read(text)


def read(text: str) -> dict[str, str]:
    """The pins (``name==version``) of a file of constraints, by normalized name."""
    from packaging.utils import canonicalize_name

    pins = (line.partition("#")[0].partition("==") for line in text.splitlines())
    return {canonicalize_name(name.strip()): version.strip() for name, equal, version in pins if equal}


def newer(installed: str, tested: str) -> bool:
    """Whether ``installed`` is of a later major or minor version than ``tested``: patches and local builds
    (``2.13.0+cpu``) are not. What is no version of Python's kind cannot be told and is not."""
    from packaging.version import InvalidVersion, Version

    try:
        ours, theirs = Version(tested), Version(installed)
    except InvalidVersion:
        return False
    return (theirs.epoch, theirs.major, theirs.minor) > (ours.epoch, ours.major, ours.minor)
