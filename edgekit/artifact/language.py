"""What a language model's artifact must show: questions to its runtime, the source's answers, and gates.

The source's answers (:class:`Answers`) are ``golden.json`` beside the artifact: tokens of real text with the
log-probability that the source gives each, greedy continuations, texts with their token ids, and conversations as the
chat template writes them. The runtime is asked the same in a fresh process (``targets/<backend>/runner.py``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from edgekit.artifact.limits import Limits
from edgekit.core import files
from edgekit.core.structure import structure, to_builtins
from edgekit.devices.execute import run_artifact
from edgekit.devices.runnable import Runnable
from edgekit.errors import ConfigError, DeviceError, SourceError, UnsupportedError
from edgekit.types import TEXT_GENERATION, Device, Gate, Json, Target, Tolerance, Verdict

if TYPE_CHECKING:
    from edgekit.types import Array

FILE = "golden.json"
TASK = TEXT_GENERATION
TEMPLATE = "chat_template.jinja"
"""The chat template's file, where a model has one."""
OUTPUTS = ("answer", "logits")
"""What a runner of language models gives for a question, instead of the model's own outputs."""

Reply: TypeAlias = Mapping[str, Any]
"""A runner's answer to one question; :func:`examine` refuses what is none."""

_MOST_BYTES = 256 << 20
_STOP_AFTER = 3
_LARGEST = 1 << 31
"""No vocabulary is larger."""
_WIDEST = 1 << 24
"""No model's window is longer."""
_LEAST = -1e4
"""No model in float32 gives a token a smaller log-probability."""
_HIGHEST = 300.0
"""Logarithm of the largest perplexity that is told: a float holds it, and its multiples."""
_BETTER = 0.5
"""No rounding halves a perplexity."""
_FEW = 32
"""Fewer scored tokens prove nothing of a perplexity."""


@dataclass(frozen=True, kw_only=True)
class Passage:
    """Tokens of real text. ``logprob``: what the source gives each from ``prompt`` on; ``best``: its most likely token
    after the prompt and after each of the others."""

    tokens: tuple[int, ...]
    prompt: int
    logprob: tuple[float, ...]
    best: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """What the source says to ``tokens``, the most likely token each time."""

    tokens: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Words:
    """A text, its ids, and what they are decoded to."""

    text: str
    ids: tuple[int, ...]
    back: str


@dataclass(frozen=True, kw_only=True)
class Chat:
    """A conversation and what the template makes of it; ``prompt``: with the beginning of the answer."""

    messages: tuple[Mapping[str, Json], ...]
    prompt: bool
    text: str
    ids: tuple[int, ...]
    tools: tuple[Mapping[str, Json], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the source answers. ``text`` says where the passages are from, ``refused`` counts the conversations that the
    template itself refuses; ``window`` is the longest text in tokens."""

    passages: tuple[Passage, ...]
    continuations: tuple[Continuation, ...]
    words: tuple[Words, ...]
    chats: tuple[Chat, ...]
    stop_tokens: tuple[int, ...]
    window: int
    text: str
    refused: int = 0

    @property
    def perplexity(self) -> float:
        """Of the source, over all passages."""
        return perplexity(p.logprob for p in self.passages)

    @property
    def tokens(self) -> int:
        """How many tokens are scored."""
        return sum(len(p.logprob) for p in self.passages)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the runtime answered, beside the source.

    ``rise``: how much its perplexity is above the source's, as a share; ``rise_error``: the standard error of that;
    ``largest``: the largest difference of two log-probabilities. ``agreement``: the share of positions with the same
    most likely token, the text being given. ``same``: tokens of the greedy continuations before the first difference,
    of ``asked``. Texts and chats: how many came out equal. ``wrong`` names what did not, for people. ``paged``: as
    ``rise``, of a runtime's second kind of attention, where it has one.
    """

    tokens: int
    perplexity: float
    reference_perplexity: float
    rise: float
    rise_error: float
    largest: float
    agreement: float
    same: int
    asked: int
    texts: tuple[int, int]
    chats: tuple[int, int]
    stops: str
    window: str
    wrong: Mapping[str, str] = field(default_factory=dict)
    decode_ms: float = 0.0
    resident: int = 0
    paged: float | None = None


def refuse(target: Target, what: str) -> None:
    """Raise :class:`UnsupportedError` for what takes arrays, where ``target`` is one of language models."""
    if target.task == TASK:
        raise UnsupportedError(
            f"{what} is for models that take arrays, and {target.name} is a language model",
            hint="its folder is what the runtime loads as it is; edgekit chat, verify and bench take it",
        )


def perplexity(logprobs: Iterable[Sequence[float] | Array]) -> float:
    """``exp`` of the mean negative log-probability of all tokens."""
    rows = [np.asarray(row, np.float64) for row in logprobs]
    return math.exp(min(_HIGHEST, -float(np.concatenate(rows).mean()))) if rows else math.nan


def write(answers: Answers, path: Path) -> None:
    """``golden.json``; the same answers give the same bytes. Keys stay in their order: templates write tools in it."""
    files.write(path, json.dumps(to_builtins(answers), ensure_ascii=False).encode() + b"\n")


def read(path: Path) -> Answers:
    """Raises :class:`SourceError` for what is none."""
    try:
        document = json.loads(files.read(path, most=_MOST_BYTES))
        found = structure(Answers, document, where=str(path))
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        raise SourceError(
            f"{path} has no answers of a language model: {str(error)[:200]}", hint="build the artifact again"
        ) from error
    if wrong := _says_nothing(found):
        raise SourceError(f"{path} {wrong}", hint="build the artifact again")
    return found


def _says_nothing(answers: Answers) -> str:
    """Why nothing can be held against these answers; "" where something can."""
    if not answers.passages or any(
        p.prompt < 1 or len(p.tokens) - p.prompt != len(p.logprob) or len(p.best) != len(p.logprob) + 1
        for p in answers.passages
    ):
        return "has no passages to compare"
    if not answers.continuations or not all(c.tokens and c.continuation for c in answers.continuations):
        return "has no continuations to compare"
    longest = max(len(c.tokens) + len(c.continuation) for c in answers.continuations)
    if not max(longest, *(len(p.tokens) for p in answers.passages)) <= answers.window <= _WIDEST:
        return f"speaks of a window of {answers.window} tokens"
    tokens = [t for p in answers.passages for t in (*p.tokens, *p.best)]
    tokens += [t for c in answers.continuations for t in (*c.tokens, *c.continuation)]
    if not all(0 <= t < _LARGEST for t in tokens):
        return "has tokens that no vocabulary has"
    if not all(_LEAST <= x <= 1e-3 for p in answers.passages for x in p.logprob):
        return "has log-probabilities that no model gives"
    return ""


def asks(questions: Iterable[Mapping[str, Json]]) -> Iterator[dict[str, Array]]:
    """Questions as the samples that runners take."""
    for question in questions:
        yield {"ask": np.frombuffer(json.dumps(question).encode(), np.uint8)}


def ask(
    runnable: Runnable, questions: Sequence[Mapping[str, Json]], *, device: Device, timeout: float = 3600.0
) -> tuple[list[Reply], Mapping[str, str]]:
    """The runtime's answers, and the versions of what gave them. Raises what running an artifact raises."""
    with run_artifact(runnable, asks(questions), device=device, timeout=timeout) as run:
        answers = [_document(row["answer"], device) for row in run.outputs]
        return answers, run.versions


def _document(raw: Array, device: Device) -> Reply:
    try:
        document = json.loads(raw.tobytes().decode("utf-8"))
    except ValueError as error:
        raise DeviceError(
            f"{device.name} answers in a form that cannot be read",
            hint="run it again; if it stays so, report it",
        ) from error
    assert isinstance(document, dict)
    return document


def examine(runnable: Runnable, answers: Answers, *, device: Device) -> tuple[Evidence, Mapping[str, str]]:
    """Ask the runtime everything that ``answers`` knows; also the versions of what ran."""
    given, versions = ask(runnable, list(_questions(answers)), device=device)
    try:
        return _compared(answers, given), versions
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DeviceError(
            f"{device.name} answers something else than was asked: {error!r}"[:300],
            hint="run it again; if it stays so, report it",
        ) from error


def _questions(answers: Answers) -> Iterator[Mapping[str, Json]]:
    for passage in answers.passages:
        yield {"kind": "score", "tokens": passage.tokens, "prompt": passage.prompt, "keep": 0}
    for wanted in answers.continuations:
        yield {"kind": "generate", "tokens": wanted.tokens, "new": len(wanted.continuation), "stop": None}
    chats = [{"messages": c.messages, "tools": c.tools or None, "prompt": c.prompt} for c in answers.chats]
    yield {"kind": "text", "texts": [w.text for w in answers.words], "chats": chats}
    yield {"kind": "window", "window": answers.window}
    yield {"kind": "facts"}
    passages: list[Json] = [{"tokens": p.tokens, "prompt": p.prompt} for p in answers.passages]
    yield {"kind": "paged", "passages": passages}
    first = answers.continuations[0]
    yield {"kind": "stops", "tokens": first.tokens, "new": len(first.continuation), "after": _STOP_AFTER}


def _compared(answers: Answers, given: Sequence[Reply]) -> Evidence:
    scores, rest = given[: len(answers.passages)], given[len(answers.passages) :]
    spoken, rest = rest[: len(answers.continuations)], rest[len(answers.continuations) :]
    text, window, facts, paged, stops = rest
    ours = [np.asarray(s["logprob"], np.float64) for s in scores]
    lost = _lost(answers, ours)
    same = [
        np.asarray(s["best"]) == np.asarray(p.best) for s, p in zip(scores, answers.passages, strict=True)
    ]
    wrong: dict[str, str] = {}
    equal = _equal_start(answers.continuations, spoken)
    texts = _texts(answers.words, text, wrong)
    chats = _chats(answers.chats, text, wrong)
    rise = math.expm1(min(_HIGHEST, float(lost.mean())))
    return Evidence(
        tokens=int(lost.size),
        perplexity=perplexity(ours),
        reference_perplexity=answers.perplexity,
        rise=rise,
        rise_error=(1 + rise) * float(lost.std(ddof=1) / math.sqrt(lost.size)) if lost.size > 1 else 0.0,
        largest=float(np.abs(lost).max()),
        agreement=float(np.concatenate(same).mean()),
        same=equal,
        asked=sum(len(c.continuation) for c in answers.continuations),
        texts=(texts, len(answers.words)),
        chats=(chats, len(answers.chats)),
        stops=_stops(answers.stop_tokens, facts, stops),
        window=_window(window),
        wrong=wrong,
        decode_ms=float(np.median(np.concatenate([np.asarray(s["ms"], np.float64)[1:] for s in scores]))),
        resident=int(spoken[-1].get("rss", 0)),
        paged=None
        if paged["logprob"] is None
        else math.expm1(min(_HIGHEST, float(_lost(answers, paged["logprob"]).mean()))),
    )


def _lost(answers: Answers, given: Sequence[Sequence[float] | Array]) -> Array:
    """How much less the runtime gives each token of the passages, in logarithms."""
    ours = [np.asarray(row, np.float64) for row in given]
    theirs = [np.asarray(p.logprob, np.float64) for p in answers.passages]
    if any(a.shape != b.shape or not np.isfinite(a).all() for a, b in zip(ours, theirs, strict=True)):
        raise ValueError("log-probabilities are missing or no numbers")
    return np.concatenate([b - a for a, b in zip(ours, theirs, strict=True)])


def _equal_start(wanted: Sequence[Continuation], spoken: Sequence[Reply]) -> int:
    equal = 0
    for reference, answer in zip(wanted, spoken, strict=True):
        made = list(answer["tokens"])
        for a, b in zip(reference.continuation, made, strict=False):
            if a != b:
                break
            equal += 1
    return equal


def _texts(words: Sequence[Words], given: Reply, wrong: dict[str, str]) -> int:
    equal = 0
    for word, ids, back in zip(words, given["ids"], given["back"], strict=True):
        if tuple(ids) == word.ids and back == word.back:
            equal += 1
        else:
            what = "is decoded to" if tuple(ids) == word.ids else "has the ids"
            wrong.setdefault(
                "tokenizer", f"{word.text!r} {what} {back if tuple(ids) == word.ids else ids}"[:300]
            )
    return equal


def _chats(chats: Sequence[Chat], given: Reply, wrong: dict[str, str]) -> int:
    equal = 0
    for chat, answer in zip(chats, given["chats"], strict=True):
        if answer.get("text") == chat.text and tuple(answer.get("ids", ())) == chat.ids:
            equal += 1
        else:
            said = answer.get("error") or answer.get("text")
            what = "other ids for the same text" if answer.get("text") == chat.text else repr(said)
            wrong.setdefault("chat-template", f"{chat.messages[-1]}: {what}"[:300])
    return equal


def _stops(wanted: Sequence[int], facts: Reply, given: Reply) -> str:
    """What is wrong with how the runtime ends a text; "" where nothing is."""
    known = sorted(facts["stop"])
    if known != sorted(wanted):
        return f"the runtime's stop tokens are {known}, the source's {sorted(wanted)}"
    free, stopped, stop = list(given["free"]), list(given["stopped"]), given["stop"]
    end = free.index(stop)
    if stopped != free[: end + 1] or not given["ended"]:
        return f"with the stop token {stop}, which comes after {end} tokens, it wrote {len(stopped)}"
    return ""


def _window(given: Reply) -> str:
    """What is wrong past the window."""
    errors = list(given["errors"])
    return (
        ""
        if errors and all(errors)
        else "the runtime takes a text that is longer than the window, and says nothing"
    )


def gates(
    evidence: Evidence,
    tolerance: Tolerance,
    limits: Limits,
    size: int,
    share: float | None,
    *,
    template: bool = False,
) -> tuple[Gate, ...]:
    """Every gate of a language model, in a fixed order. ``size`` in bytes; ``share``: of weights that are integers;
    ``template``: it has a chat template, so that nothing to compare with is not for want of one."""
    tolerance = limits.applied(tolerance)
    e, found = evidence, []
    message = (
        f"{e.perplexity:.4g} over {e.tokens} tokens, {e.reference_perplexity:.4g} in PyTorch: {e.rise:+.2%} "
        f"(standard error {e.rise_error:.2%})"
    )
    if tolerance.perplexity is not None:
        found.append(_perplexity(e, tolerance.perplexity, message))
    if tolerance.perplexity is not None and e.paged is not None:
        message = f"{e.paged:+.2%} where the runtime pages its cache, as it does unless told otherwise"
        good = e.paged <= tolerance.perplexity
        found.append(_gate("paged-attention", good, e.paged, tolerance.perplexity, message))
    if tolerance.token_agreement is not None:
        message = f"{e.agreement:.2%} of {e.tokens} positions have the same most likely token"
        enough = e.agreement >= tolerance.token_agreement
        found.append(_gate("token-agreement", enough, e.agreement, tolerance.token_agreement, message))
    found.append(_greedy(e, tolerance))
    for name, (equal, asked), what in (
        ("tokenizer", e.texts, "texts have the source's ids and come back as they do there"),
        ("chat-template", e.chats, "conversations are written byte for byte as by the source's template"),
    ):
        if asked:
            message = f"{equal} of {asked} {what}" + (f"; {e.wrong[name]}" if name in e.wrong else "")
            found.append(_gate(name, equal == asked, equal / asked, 1.0, message))
        elif name == "tokenizer" or template:
            found.append(Gate(name=name, verdict=Verdict.UNPROVEN, message="there is nothing to compare"))
    found.append(_gate("stop", not e.stops, float(not e.stops), 1.0, e.stops or "it ends at the stop tokens"))
    longer = e.window or "a text longer than the window is refused with an error"
    found.append(_gate("window", not e.window, float(not e.window), 1.0, longer))
    if tolerance.integer_weights is not None and share is not None:
        message = f"{share:.1%} of the weights are integers"
        enough = share >= tolerance.integer_weights
        found.append(_gate("integer-weights", enough, share, tolerance.integer_weights, message))
    if limits.size_bytes is not None:
        message = f"{size:,} bytes, at most {limits.size_bytes:,} wanted"
        found.append(_gate("size", size <= limits.size_bytes, size, limits.size_bytes, message))
    return tuple(found)


def _perplexity(e: Evidence, limit: float, message: str) -> Gate:
    if e.rise < -_BETTER:
        what = f"{message}: so much better than its source that these answers are another's"
        return _gate("perplexity", False, e.rise, limit, what)
    gate = _gate("perplexity", e.rise <= limit, e.rise, limit, message)
    if gate.verdict is Verdict.PASS and e.tokens < _FEW:
        return replace(gate, verdict=Verdict.UNPROVEN, message=f"{message}; {_FEW} tokens are the least")
    return gate


def _greedy(e: Evidence, tolerance: Tolerance) -> Gate:
    """The same text as PyTorch's: asked of float32 alone, as one other token makes another text."""
    share = e.same / e.asked if e.asked else 0.0
    message = f"{e.same} of {e.asked} tokens of the greedy continuations before the first difference"
    if tolerance.greedy is None:
        return Gate(name="greedy", verdict=Verdict.SHOWN, value=share, message=message)
    return _gate("greedy", share >= tolerance.greedy, share, tolerance.greedy, message)


def _gate(name: str, good: bool, value: float, limit: float, message: str) -> Gate:
    verdict = Verdict.PASS if good else Verdict.FAIL
    return Gate(name=name, verdict=verdict, value=float(value), limit=float(limit), message=message)
