"""``edgekit cache``."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgekit.core.cache import Removed

_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


@click.group(invoke_without_command=True)
@_JSON
@click.pass_context
def cache(context: click.Context, as_json: bool) -> None:
    """Show what the cache of build steps holds, and remove what is no longer used.

    The cache is at $EDGEKIT_CACHE, else ~/.cache/edgekit. It holds at most $EDGEKIT_CACHE_LIMIT bytes (20GB where it is
    not set): what was used longest ago goes first. Nothing goes that a running build uses.
    """
    if context.invoked_subcommand is None:
        _info(as_json)


@cache.command()
@_JSON
def info(as_json: bool) -> None:
    """Show where the cache is, its limit, and how much of what it holds."""
    _info(as_json)


@cache.command()
@click.option(
    "--older-than", metavar="30d", help="Remove what was not used for so long: hours h, days d, weeks w."
)
@click.option(
    "--limit", "size", metavar="10GB", help="Remove what was used longest ago until so much is left."
)
@_JSON
def prune(older_than: str | None, size: str | None, as_json: bool) -> None:
    """Remove what was used longest ago, and what killed runs left: to the cache's limit if nothing else is said."""
    from edgekit.core import cache as entries

    root = _root()
    used_before = time.time() - entries.parse_age(older_than, what="--older-than") if older_than else None
    most = entries.parse_size(size, what="--limit") if size else None if older_than else entries.limit()
    removed = entries.prune(root, size=most, used_before=used_before, kept=entries.UNFINISHED)
    _removed(root, removed, as_json)


@cache.command()
@_JSON
def clear(as_json: bool) -> None:
    """Remove everything that no running build uses, unfinished compressions and searches too."""
    from edgekit.core import cache as entries

    root = _root()
    _removed(root, entries.prune(root, size=0), as_json)


def _root() -> Path:
    from edgekit.core.store import Store

    store = Store()
    store.refuse_others()
    return store.root


def _info(as_json: bool) -> None:
    from edgekit.cli._output import print_json, size, table
    from edgekit.core import cache as entries

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
    click.echo(f"{root}: {size(total)} of at most {size(most)}")
    if rows:
        table("", ("what", "entries", "size"), rows)


def _removed(root: Path, removed: Removed, as_json: bool) -> None:
    from edgekit.cli._output import print_json, size
    from edgekit.core import cache as entries

    left = sum(e.size for e in entries.entries(root))
    if as_json:
        print_json(
            {"cache": str(root), "removed": removed.entries, "removed_bytes": removed.bytes, "bytes": left}
        )
        return
    click.echo(f"{removed.entries} entries removed ({size(removed.bytes)}); {size(left)} left at {root}")
