"""Which commands go on in a process of their own, and within which limits."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from edgekit.cli import _ending
from edgekit.core import cache, contained
from edgekit.core.config import Options
from edgekit.core.contained import Ended, Job, Limits
from edgekit.core.store import default_root
from edgekit.errors import UsageError
from edgekit.types import SourceSpec

_FILES = ("onnx", "pt2", "pt", "savedmodel", "keras", "hf", "gguf")
"""Kinds of sources that a file's bytes decide on, not the user's own Python."""

_BASE_BYTES = 1792 << 20
"""A small model takes 250 MB, with PyTorch 600 MB; programs and libraries come to it, all of it below 2 GiB."""
_COPIES = 32
"""Sizes of the model: float weights, quantized ones and those of sessions, for several targets at once."""
_STACK_BYTES = 16 << 20
"""What a runtime's thread takes before it does anything; there is one for each processor."""

_QUICK_S = 40.0
_QUICK_S_PER_MB = 2.0
"""Reading, checking, simplifying and lowering take a second on a processor, and one for each 10 MB."""

_MOST_FILES = 10_000


def contain_source(source: SourceSpec, options: Options) -> None:
    """Go on in a child where the source is a file, or where there is a time limit."""
    if source.kind in _FILES and source.path is not None:
        contain(source.text, options, source.path)
    elif options.timeout is not None:
        contain(source.text, options)


def contain(
    what: str,
    options: Options,
    *files: Path,
    seconds: float | None = None,
    parts: tuple[str, ...] = (),
) -> None:
    """Go on in a child: the code after this call runs there. The parent ends with the child's exit code.

    ``files`` are those that nobody vouches for; their size decides how much time and memory is much. ``seconds``: for
    all of it, where the user gave no limit. ``parts``: the names that ``what`` is made of; an error that names one is
    about that alone. Raises what :func:`edgekit.core.contained.contain` does.
    """
    memory = cache.parse_memory(options.memory, what="--memory") if options.memory else None
    if not contained.possible():
        if options.timeout is not None and not hasattr(os, "fork"):
            raise UsageError("this system cannot limit the time", hint="leave --timeout out")
        return
    size = sum(map(size_of, files))
    if memory is None and files:
        memory = _BASE_BYTES + _COPIES * size + _STACK_BYTES * (os.cpu_count() or 1)
    quick = _QUICK_S + _QUICK_S_PER_MB * size / 1e6 if files else float("inf")
    folders = (options.out, *(path if os.path.isdir(path) else path.parent for path in files))  # noqa: PTH112 - never raises
    job = Job(
        what=what,
        limits=Limits(whole=options.timeout or seconds, quick=quick, memory=memory or 0),
        prepare=_ending.prepare,
        parts=parts,
        places=(default_root() / cache.PARTS, Path(tempfile.gettempdir()), *folders),
    )
    try:
        contained.contain(job)
    except Ended as end:
        raise click.exceptions.Exit(end.code) from None


def size_of(path: Path) -> int:
    """Bytes of a file, or of those in a folder; 0 where there is none."""
    total = 0
    for number, file in enumerate(_below(path)):
        if number >= _MOST_FILES:
            break
        with contextlib.suppress(OSError):  # a name that no file can have: whoever opens it says so
            total += file.stat().st_size if file.is_file() else 0
    return total


def _below(path: Path) -> Iterator[Path]:
    try:
        yield from path.rglob("*") if path.is_dir() else (path,)
    except OSError:
        return
