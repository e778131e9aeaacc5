"""``edgekit chat``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from edgekit.artifact import manifest
from edgekit.artifact.talk import Voice, opened, spoken
from edgekit.cli._contained import contain
from edgekit.cli._output import say
from edgekit.core.config import Options


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--prompt", default="", metavar="TEXT", help="Answer this, and end.")
@click.option("--system", default="", metavar="TEXT", help="What the model is told before the conversation.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1, max=1 << 20),
    default=256,
    show_default=True,
    help="Length of an answer, at most.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1, max=1024),
    help="Threads of the runtime. (default: all processors)",
)
def chat(artifact: Path, prompt: str, system: str, max_tokens: int, threads: int | None) -> None:
    """Talk to the language model in ARTIFACT, a folder that edgekit build made.

    It runs on the artifact's own runtime, with its tokenizer and chat template, and always says the most
    likely word. Each line that is typed is a turn; an empty one, or the end of the input, ends it.
    """
    contain(str(artifact), Options(), artifact)
    voice = opened(manifest.read(artifact), threads=threads or 0)
    messages = [{"role": "system", "content": system}] if system else []
    if prompt:
        _turn(voice, messages, prompt, max_tokens)
        return
    while True:
        if sys.stdin.isatty():
            click.echo("> ", nl=False, err=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        _turn(voice, messages, line, max_tokens)


def _turn(voice: Voice, messages: list[dict[str, str]], text: str, new: int) -> None:
    messages.append({"role": "user", "content": text})
    pieces: list[str] = []
    start, first = time.perf_counter(), 0.0
    for piece in spoken(voice, messages, new):
        first = first or time.perf_counter() - start
        pieces.append(piece)
        click.echo("".join(c for c in piece if c.isprintable() or c in "\n\t"), nl=False)
    click.echo()
    rest = time.perf_counter() - start - first
    if len(pieces) > 1:
        say(f"first word after {first:.2f} s, then {(len(pieces) - 1) / rest:.1f} tokens/s", err=True)
    messages.append({"role": "assistant", "content": "".join(pieces).strip()})
