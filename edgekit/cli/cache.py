"""``edgekit cache``."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path

import click

from edgekit.artifact.summary import size
from edgekit.cli._options import json_flag
from edgekit.cli._output import print_json, say, table
from edgekit.core import cache as entries
from edgekit.core.cache import Removed
from edgekit.core.store import Store


@click.group(invoke_without_command=True)
@json_flag
@click.pass_context
def cache(context: click.Context, as_json: bool) -> None:
    """Show what the cache of build steps holds, and remove what is no longer used.

    The cache is at $EDGEKIT_CACHE, else ~/.cache/edgekit. It holds at most $EDGEKIT_CACHE_LIMIT bytes (20GB where it is
    not set): what was used longest ago goes first. Nothing goes that a running build uses.
    """
    if context.invoked_subcommand is None:
        _info(as_json)


@cache.command()
@json_flag
def info(as_json: bool) -> None:
    """Show where the cache is, its limit, and how much of what it holds."""
    _info(as_json)


@cache.command()
@click.option(
    "--older-than", metavar="30d", help="Remove what was not used for so long: hours h, days d, weeks w."
)
@click.option("--limit", metavar="10GB", help="Remove what was used longest ago until so much is left.")
@json_flag
def prune(older_than: str | None, limit: str | None, as_json: bool) -> None:
    """Remove what was used longest ago, and what killed runs left: to the cache's limit if nothing else is said."""
    root = _root()
    used_before = time.time() - entries.parse_age(older_than, what="--older-than") if older_than else None
    most = entries.parse_size(limit, what="--limit") if limit else None if older_than else entries.limit()
    removed = entries.prune(root, size=most, used_before=used_before, kept=entries.UNFINISHED)
    _removed(root, removed, as_json)


@cache.command()
@json_flag
def clear(as_json: bool) -> None:
    """Remove everything that no running build uses, unfinished compressions and searches too."""
    root = _root()
    _removed(root, entries.prune(root, size=0), as_json)


def _root() -> Path:
    store = Store()
    store.refuse_others()
    return store.root


def _info(as_json: bool) -> None:
    root, most = _root(), entries.limit()
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for entry in entries.entries(root):
        counts[entry.kind][0] += 1
        counts[entry.kind][1] += entry.size
    total = sum(held for _, held in counts.values())
    if as_json:
        kinds = {kind: {"entries": number, "bytes": held} for kind, (number, held) in sorted(counts.items())}
        print_json({"cache": str(root), "limit": most, "bytes": total, "kinds": kinds})
        return
    largest = sorted(counts.items(), key=lambda item: -item[1][1])
    rows = [(kind, str(number), size(held)) for kind, (number, held) in largest]
    say(f"{root}: {size(total)} of at most {size(most)}")
    if rows:
        table("", ("what", "entries", "size"), rows)


def _removed(root: Path, removed: Removed, as_json: bool) -> None:
    left = sum(e.size for e in entries.entries(root))
    if as_json:
        print_json(
            {"cache": str(root), "removed": removed.entries, "removed_bytes": removed.bytes, "bytes": left}
        )
        return
    say(f"{removed.entries} entries removed ({size(removed.bytes)}); {size(left)} left at {root}")
