"""What the stages of a language model do: the source's own answers, integers for its weights, the files of a target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import nn

from edgekit.artifact.language import Answers, Chat, Continuation, Passage, Words
from edgekit.core import plugins
from edgekit.core.foreign import attempted, translated
from edgekit.core.progress import Progress
from edgekit.errors import DataError, SourceError, UnsupportedError
from edgekit.load import decoder as decoders
from edgekit.load.decoder import Decoder, Linear
from edgekit.load.source import Source
from edgekit.load.texts import Text
from edgekit.load.tokenizer import Tokenizer, save, tokenizer
from edgekit.pipeline.conversations import CONVERSATIONS, PROMPTS, TEXTS
from edgekit.quantize import gguf_blocks
from edgekit.quantize.block_weights import BLOCK, BlockWeights, rounded, whole_block
from edgekit.types import Lowered, Option, Precision, Target

PASSAGE = 256
"""Tokens of one passage, at most; the window is less in tests."""
PROMPT = 32
"""Tokens of a passage that are read at once; the others come one by one."""
SHORTEST = 16
"""A window of fewer tokens holds no text that says anything."""
NEW = 64
"""Tokens of a greedy continuation."""
_TOGETHER = 8
"""Passages of calibration text that go through a layer at once."""


class LanguageBackend(Protocol):
    """What a backend's module has that takes language models."""

    def lower_decoder(
        self,
        decoder: Decoder,
        weights: Mapping[str, BlockWeights],
        target: Target,
        options: Mapping[str, Option],
        out: Path,
    ) -> Lowered:
        """Write the artifact's files into ``out``; what is not in ``weights`` stays float32."""
        ...


def answers(source: Source, text: Text, tokens: int, progress: Progress) -> Answers:
    """What the source says of ``tokens`` tokens of ``text`` (about so many are scored), and to a few prompts."""
    with progress.task(f"load {source.spec.text}"):
        model, words = language_model(source), tokenizer(source.spec)
        decoder = decoders.read(model)
    if decoder.window < SHORTEST:
        raise UnsupportedError(
            f"{source.spec.text} has a window of {decoder.window} tokens",
            hint="a language model has thousands",
        )
    length = min(PASSAGE, decoder.window - 1)
    prompt = min(PROMPT, length // 2)
    passages = list(_passages(words, text, length, max(1, round(tokens / (length - prompt)))))
    _refuse_strangers(passages, decoder)
    with progress.task("score the text in PyTorch", total=len(passages)) as task:
        scored = []
        for ids in passages:
            scored.append(_scored(model, ids, prompt))
            task.advance()
    new = min(NEW, decoder.window // 2)
    with progress.task("continue prompts in PyTorch"):
        starts = [_encoded(words, prompt)[: decoder.window - new] for prompt in _prompts(words)]
        _refuse_strangers(starts, decoder)
        spoken = tuple(Continuation(tokens=ids, continuation=_greedy(model, ids, new)) for ids in starts)
    chats, refused = _chats(words)
    return Answers(
        passages=tuple(scored),
        continuations=spoken,
        words=tuple(_words(words, t) for t in TEXTS),
        chats=chats,
        refused=refused,
        stop_tokens=decoder.stop_tokens,
        window=decoder.window,
        text=text.name,
    )


def _refuse_strangers(texts: Sequence[Sequence[int]], decoder: Decoder) -> None:
    """Tokens that the model has no embedding of. (A tokenizer may know such ones: Gemma 3's has one for pictures.)"""
    most = max(max(ids) for ids in texts)
    if most >= decoder.vocabulary:
        raise SourceError(
            f"the tokenizer gives token {most}, and the table of embeddings has {decoder.vocabulary} rows",
            hint="the tokenizer is another model's: put the one that belongs to it into the folder",
        )


def language_model(source: Source) -> Any:
    """The causal language model of transformers that a source is. Raises :class:`SourceError` for another."""
    module: Any = source.torch().module
    if not hasattr(module, "get_output_embeddings") or module.get_output_embeddings() is None:
        raise SourceError(
            f"{source.spec.text} is no language model: {type(module).__name__} has no head over a vocabulary",
            hint="name a folder whose config.json has an architecture that ends in ForCausalLM, or a .gguf file",
        )
    for name, weight in module.named_parameters():
        if not torch.isfinite(weight).all():
            raise SourceError(
                f"{source.spec.text}: {name} has weights that are no numbers, or infinite",
                hint="download it again; a training that diverged leaves such weights, too",
            )
    return module


def _passages(words: Tokenizer, text: Text, length: int, count: int) -> Iterator[tuple[int, ...]]:
    """Stretches of the text that do not overlap, spread over the whole of it."""
    with translated(f"the tokenizer cannot encode {text.name}", hint="download the model again"):
        ids = words.encode(text.content, add_special_tokens=False)
    fitting = len(ids) // length
    if fitting == 0:
        raise DataError(
            f"{text.name} has {len(ids)} tokens, and a passage has {length}", hint="give a longer text"
        )
    for i in range(min(count, fitting)):
        start = (i * fitting // min(count, fitting)) * length
        yield tuple(ids[start : start + length])


@torch.no_grad()
def _scored(model: Any, ids: tuple[int, ...], prompt: int) -> Passage:
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
    if not torch.isfinite(logits).all():
        raise SourceError(
            "the model's logits are no numbers, or infinite", hint="its weights are too large for float32"
        )
    logprobs = torch.log_softmax(logits[prompt - 1 : -1], -1)
    following = torch.tensor(ids[prompt:])
    return Passage(
        tokens=ids,
        prompt=prompt,
        logprob=tuple(round(float(x), 6) for x in logprobs.gather(1, following[:, None])[:, 0]),
        best=tuple(int(i) for i in logits[prompt - 1 :].argmax(-1)),
    )


@torch.no_grad()
def _greedy(model: Any, ids: tuple[int, ...], new: int) -> tuple[int, ...]:
    """The most likely token each time, with a cache, until a stop token."""
    stops = set(decoders.stop_tokens(model))
    found: list[int] = []
    state = model(input_ids=torch.tensor([ids]), use_cache=True)
    while len(found) < new:
        found.append(int(state.logits[0, -1].argmax()))
        if found[-1] in stops:
            break
        state = model(
            input_ids=torch.tensor([[found[-1]]]), past_key_values=state.past_key_values, use_cache=True
        )
    return tuple(found)


def _prompts(words: Tokenizer) -> Iterator[str]:
    for prompt in PROMPTS:
        messages = [{"role": "user", "content": prompt}]
        with translated("the model's chat template cannot write a question", hint="correct the template"):
            yield _chat(words, messages, (), True) if words.chat_template else prompt


def _encoded(words: Tokenizer, text: str) -> tuple[int, ...]:
    with translated("the tokenizer cannot encode what the chat template writes", hint="correct the template"):
        ids = tuple(words.encode(text, add_special_tokens=not words.chat_template))
    if not ids:
        raise SourceError("the chat template writes nothing for a question", hint="correct the template")
    return ids


def _words(words: Tokenizer, text: str) -> Words:
    with translated(f"the tokenizer cannot encode {text!r}", hint="download the model again"):
        ids = words.encode(text)
        return Words(text=text, ids=tuple(ids), back=words.decode(ids, skip_special_tokens=True))


def _chat(words: Tokenizer, messages: Any, tools: Any, prompt: bool) -> str:
    return words.apply_chat_template(
        messages, tools=list(tools) or None, add_generation_prompt=prompt, tokenize=False
    )


def _chats(words: Tokenizer) -> tuple[tuple[Chat, ...], int]:
    """The conversations as the template writes them, and how many it refuses, as some do a system message, or leaves
    the tools of out: there runtimes write something of their own."""
    if not words.chat_template:
        return (), 0
    found = []
    for conversation in CONVERSATIONS:
        messages, tools, prompt = conversation.messages, conversation.tools, conversation.prompt
        text = attempted(partial(_chat, words, messages, tools, prompt))
        if isinstance(text, Exception):  # templates raise what they like: it is how they refuse
            continue
        if tools and not any(name in text for name in _names(tools)):
            continue
        found.append(
            Chat(messages=messages, tools=tools, prompt=prompt, text=text, ids=_encoded(words, text))
        )
    return tuple(found), len(CONVERSATIONS) - len(found)


def _names(tools: Sequence[Any]) -> Iterator[str]:
    for tool in tools:
        yield str(tool["function"]["name"])


def lower(
    source: Source, target: Target, options: Mapping[str, Option], text: Text, out: Path, progress: Progress
) -> Lowered:
    """The target's files in ``out``: tokenizer, weights as its precision wants them, and what the backend writes."""
    with progress.task(f"load {source.spec.text}"):
        model, words = language_model(source), tokenizer(source.spec)
        decoder = decoders.read(model)
    files = save(words, out)
    weights, notes = integers(source, model, decoder, words, target, options, text, progress)
    backend = plugins.backend(target.backend)
    if not hasattr(backend, "lower_decoder"):
        raise UnsupportedError(f"{target.backend} takes no language models", hint="edgekit targets")
    with progress.task(f"lower to {target.name}"):
        lowered = cast("LanguageBackend", backend).lower_decoder(decoder, weights, target, options, out)
    return replace(lowered, files=(*lowered.files, *files), notes=(*lowered.notes, *notes))


def integers(
    source: Source,
    model: nn.Module,
    decoder: Decoder,
    words: Tokenizer,
    target: Target,
    options: Mapping[str, Option],
    text: Text,
    progress: Progress,
) -> tuple[dict[str, BlockWeights], tuple[str, ...]]:
    """The integers of each module that the precision wants, and what is to be said of them."""
    tokens = int(options["calib_tokens"])
    most = int(options.get("group", 0))

    def block(weight: torch.Tensor) -> int:
        return whole_block(int(weight.shape[1]), most) if most else BLOCK

    bits = {Precision.INT8_WEIGHTS: 8, Precision.INT4_WEIGHTS: 4}.get(target.precision)
    if bits is None:
        return {}, ()
    names = list(dict.fromkeys(p.name for p in decoder.linears()))
    matrices = {n: _matrix(model, n) for n in names}
    head = () if decoder.head is None else (decoder.head.name,)
    tables = {n: _matrix(model, n) for n in (decoder.embedding_name, *head)}
    found: dict[str, BlockWeights] = {}
    notes = []
    if source.spec.kind == "gguf" and source.spec.path is not None:
        carried = gguf_blocks.read(source.spec.path, matrices | tables)
        found = {n: b for n, b in carried.items() if b.bits <= bits or n in tables}
        notes.append(
            f"{len(found)} of {len(matrices) + len(tables)} matrices have the blocks of the GGUF file as they are"
        )
    # A table is looked up and multiplied with; where one is both, its products decide how it is rounded.
    small = tables if int(options.get("table_bits", bits)) == 4 else {}
    left = {n: w for n, w in (matrices | small).items() if n not in found}
    if left and bits == 4:
        with progress.task("round the weights", total=len(decoder.layers)) as task:
            found |= calibrated(
                model,
                decoder,
                _calibration(words, text, decoder.window, tokens),
                left,
                str(options["blocks"]),
                block,
                task.advance,
            )
        notes.append(f"{len(left)} matrices rounded by GPTQ on {tokens} tokens of {text.name}")
    for name, weight in {**left, **tables}.items():
        if name not in found:
            wide = 8 if name in tables and name not in small else bits
            form = "symmetric" if wide == 8 else "zeros"
            found[name] = rounded(weight, wide, form=form, block=block(weight))
    return found, tuple(notes)


def _matrix(model: nn.Module, name: str) -> torch.Tensor:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, torch.Tensor)
    return weight.detach()


def _calibration(words: Tokenizer, text: Text, window: int, tokens: int) -> list[torch.Tensor]:
    length = min(PASSAGE, window)
    return [torch.tensor([ids]) for ids in _passages(words, text, length, max(1, tokens // length))]


class _Seen(Exception):  # noqa: N818 - it is no error: the first layer was reached
    pass


@torch.no_grad()
def calibrated(
    model: nn.Module,
    decoder: Decoder,
    passages: Sequence[torch.Tensor],
    wanted: Mapping[str, torch.Tensor],
    form: str,
    block: Callable[[torch.Tensor], int],
    advance: Callable[[], None],
) -> dict[str, BlockWeights]:
    """``wanted`` rounded to four bits by the inputs that they see on ``passages``; one layer of the model is at work at
    a time, so that memory does not grow with the depth."""
    layers = decoders.layers(model)
    states, around = _entry(model, layers, passages)
    states = [torch.cat(states[i : i + _TOGETHER]) for i in range(0, len(states), _TOGETHER)]
    found: dict[str, BlockWeights] = {}
    for index, layer in enumerate(layers):
        projections = [p for p in _projections(decoder, index) if p.name in wanted]
        modules = {p.name: model.get_submodule(p.name) for p in projections}
        with _moments(modules) as moments:
            states = [_first(layer(state, **around[index])) for state in states]
        for names in _alike(modules, moments):
            stacked = torch.cat([wanted[n] for n in names])
            whole = rounded(stacked, 4, moments[names[0]], form=form, block=block(stacked))
            start = 0
            for name in names:
                rows = int(wanted[name].shape[0])
                found[name] = whole.selected(slice(start, start + rows))
                start += rows
        advance()
    head = decoder.embedding_name if decoder.head is None else decoder.head.name
    if head in wanted:
        norm = model.get_submodule(decoder.norm.name)
        seen = torch.cat([norm(state).reshape(-1, decoder.width) for state in states])
        found[head] = rounded(wanted[head], 4, seen.T @ seen, block=block(wanted[head]))
    return found


def _projections(decoder: Decoder, index: int) -> Iterator[Linear]:
    layer = decoder.layers[index]
    a, f = layer.attention, layer.feed
    yield from (a.query, a.key, a.value, a.output)
    yield from (p for p in (f.gate, f.up, f.down) if p is not None)


def _entry(
    model: nn.Module, layers: nn.ModuleList, passages: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    """What the first layer is given for each passage, and what each layer is given beside it."""
    states: list[torch.Tensor] = []
    around: list[dict[str, Any]] = [{} for _ in layers]

    def entered(_: nn.Module, given: tuple[Any, ...], beside: dict[str, Any]) -> None:
        states.append(given[0] if given else beside["hidden_states"])
        raise _Seen

    def beside(index: int) -> Callable[..., None]:
        def look(_: nn.Module, __: object, given: dict[str, Any]) -> None:
            around[index] = {k: v for k, v in given.items() if k not in ("hidden_states", "past_key_values")}

        return look

    handles = [m.register_forward_pre_hook(beside(i), with_kwargs=True) for i, m in enumerate(layers)]
    model(input_ids=passages[0], use_cache=False)
    for handle in handles:
        handle.remove()
    handle = layers[0].register_forward_pre_hook(entered, with_kwargs=True)
    try:
        for ids in passages:
            try:
                model(input_ids=ids, use_cache=False)
            except _Seen:
                continue
    finally:
        handle.remove()
    return states, around


@contextmanager
def _moments(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, torch.Tensor]]:
    """The sums of the outer products of each module's inputs while the block lasts; of equal inputs one is computed."""
    moments: dict[str, torch.Tensor] = {}
    last: list[
        torch.Tensor
    ] = []  # inputs and their product: modules that read one tensor come one after the other

    def hook(name: str) -> Callable[..., None]:
        def look(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            if not last or last[0] is not given[0]:
                rows = given[0].reshape(-1, given[0].shape[-1])
                last[:] = [given[0], rows.T @ rows]
            moments[name] = moments[name] + last[1] if name in moments else last[1]

        return look

    handles = [m.register_forward_pre_hook(hook(n)) for n, m in modules.items()]
    try:
        yield moments
    finally:
        for handle in handles:
            handle.remove()


def _alike(modules: Mapping[str, nn.Module], moments: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """Modules that see the same inputs, together: their rows are rounded at once."""
    groups: list[list[str]] = []
    for name in modules:
        for group in groups:
            one, other = moments[name], moments[group[0]]
            if one.shape == other.shape and torch.equal(one, other):
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def _first(given: Any) -> torch.Tensor:
    found: torch.Tensor = given[0] if isinstance(given, tuple) else given
    return found
