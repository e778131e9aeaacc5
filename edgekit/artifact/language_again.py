"""A language model's artifact again: its golden answers, and how quick it speaks."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.artifact import golden, language
from edgekit.artifact import manifest as manifests
from edgekit.artifact.golden import Replay
from edgekit.artifact.limits import Limits
from edgekit.artifact.manifest import Artifact
from edgekit.artifact.run import received, runnable
from edgekit.errors import SourceError
from edgekit.types import Device, Json, Verdict

if TYPE_CHECKING:
    from edgekit.types import Array

LENGTHS = (16, 128, 512)
"""Tokens of the prompts whose speed is measured; those that the window does not hold are left out."""
NEW = 32
"""Tokens that are written after each."""
_TIMED_PROMPT = 32


def is_language(artifact: Artifact) -> bool:
    """Whether the artifact is asked questions instead of given arrays."""
    return artifact.manifest.target.task == language.TASK


def replay(artifact: Artifact, *, device: Device, limits: Limits | None = None) -> Replay:
    """Ask the runtime again what the golden answers know, and gate it by the target's row, or ``limits`` in its place.

    Raises :class:`SourceError` for files that have changed, and what running the artifact raises."""
    answers, manifest = answers_of(artifact), artifact.manifest
    with received(str(artifact.directory)):
        evidence, versions = language.examine(runnable(artifact), answers, device=device)
    row, notes = golden.row_limits(manifest.target)
    template = any(f.name == language.TEMPLATE for f in manifest.files)
    found = language.gates(evidence, row, limits or Limits(), manifest.size, None, template=template)
    found = (*found, *golden.never_measured(manifest, {g.name for g in found}, None))
    names = {g.name for g in found}
    return Replay(
        parity=None,
        gates=found,
        runtime_versions=versions,
        device=device.name,
        recorded=None,
        failed_before=tuple(g for g in manifest.gates if g.verdict is Verdict.FAIL),
        not_repeated=tuple(g.name for g in manifest.gates if g.name not in names),
        claimed=golden.claims(manifest, names),
        notes=notes,
    )


def answers_of(artifact: Artifact) -> language.Answers:
    """The golden answers of an artifact whose files are as they were built."""
    manifests.check_files(artifact)
    record = artifact.manifest.golden
    if record is None:
        raise SourceError(f"{artifact.directory} has no golden answers", hint="build the artifact again")
    return language.read(artifact.directory / record.file)


def question(artifact: Artifact) -> dict[str, Array]:
    """What a benchmark times: a prompt of 32 tokens of the golden text and as many new ones."""
    answers = answers_of(artifact)
    tokens = _prompt(answers, min(_TIMED_PROMPT, answers.window // 2))
    return next(language.asks([_generate(tokens, min(NEW, answers.window - len(tokens)))]))


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Milliseconds to the first token after a prompt of ``prompt`` tokens, and tokens a second: of the prompt, and of
    what is written after it. ``resident`` and ``peak`` are bytes of the process."""

    prompt: int
    first_ms: float
    prefill: float
    decode: float
    resident: int
    peak: int


def speed(artifact: Artifact, *, device: Device, repeats: int = 3) -> tuple[Speed, ...]:
    """Medians over ``repeats`` of each length, in one fresh process, after one prompt that counts for nothing."""
    answers = answers_of(artifact)
    lengths = [n for n in LENGTHS if n + NEW <= answers.window] or [answers.window // 2]
    new = min(NEW, answers.window - lengths[-1])
    asked = [_generate(_prompt(answers, n), new) for n in (lengths[0], *lengths * repeats)]
    given, _ = language.ask(runnable(artifact), asked, device=device)
    return tuple(_speed(n, given[1 + i :: len(lengths)]) for i, n in enumerate(lengths))


def _prompt(answers: language.Answers, length: int) -> list[int]:
    text = [t for passage in answers.passages for t in passage.tokens]
    return (text * (length // len(text) + 1))[:length]


def _generate(tokens: Sequence[int], new: int) -> Mapping[str, Json]:
    return {"kind": "generate", "tokens": list(tokens), "new": new, "stop": None}


def _speed(prompt: int, given: Sequence[language.Reply]) -> Speed:
    times = [[float(t) for t in answer["ms"]] for answer in given]
    first = statistics.median(t[0] for t in times)
    steps = [statistics.median(t[1:]) for t in times if len(t) > 1]
    return Speed(
        prompt=prompt,
        first_ms=first,
        prefill=1e3 * prompt / first,
        decode=1e3 / statistics.median(steps) if steps else 0.0,
        resident=max(int(a["rss"]) for a in given),
        peak=max(int(a["peak"]) for a in given),
    )


def with_speed(facts: Mapping[str, Json], found: Sequence[Speed]) -> dict[str, Json]:
    """A measurement's facts with these figures among them."""
    rows: list[Json] = [{k: getattr(s, k) for k in s.__dataclass_fields__} for s in found]
    return {**facts, "language": rows}
