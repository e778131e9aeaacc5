"""A decoder language model as what it computes, read from its modules, not from the name of its class.

In comes a causal language model of transformers; out goes a :class:`Decoder`: embeddings, layers of attention and feed
forward, norms, rotary tables, head. Roles are told by the names that transformers gives its modules; what a module
computes (the scale of a norm, an activation, a factor on the embeddings) is found by calling it. A parameter that no
role explains is an error, so that nothing is left out in silence; that the whole is right is shown by comparing a
graph made of it with the model, token by token (:mod:`edgekit.pipeline.text`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import nn

from edgekit.errors import UnsupportedError

Roles: TypeAlias = Mapping[str, tuple[str, ...]]

_ATTENTION = ("self_attn", "attention", "attn")
_FEED = ("mlp", "feed_forward")
_PROJECTIONS: Roles = {
    "query": ("q_proj",),
    "key": ("k_proj",),
    "value": ("v_proj",),
    "joined": ("qkv_proj",),
    "output": ("o_proj", "dense", "out_proj"),
    "query_norm": ("q_norm", "q_layernorm"),
    "key_norm": ("k_norm", "k_layernorm"),
}
_FEEDS: Roles = {
    "gate": ("gate_proj",),
    "up": ("up_proj", "fc1"),
    "joined": ("gate_up_proj",),
    "down": ("down_proj", "fc2"),
    "activation": ("act_fn", "activation_fn", "act"),
}
_ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": nn.functional.silu,
    "gelu": nn.functional.gelu,
    "gelu-tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "relu": nn.functional.relu,
}
_TOLERANCE = 1e-5


@dataclass(frozen=True, kw_only=True, eq=False)
class Norm:
    """``x / rms(x) * scale``; with ``centred`` the mean is taken off first and ``bias`` added (LayerNorm).

    ``scale`` and ``bias`` are ``[width]``, float32.
    """

    name: str
    scale: torch.Tensor
    epsilon: float
    centred: bool = False
    bias: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Linear:
    """``x @ weight.T + bias``: ``weight`` is ``[outputs, inputs]``, ``name`` its path in the model.

    ``rows``: which rows of the module's weight these are, where one module holds several projections.
    """

    name: str
    weight: torch.Tensor
    bias: torch.Tensor | None = None
    rows: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Attention:
    """Grouped-query attention. ``window``: how many positions a token sees, itself counted; 0 for all before it.

    ``rotary`` names one of :attr:`Decoder.rotary`; ``softcap`` is 0 where scores are not capped.
    """

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    heads: int
    key_heads: int
    head_size: int
    scale: float
    rotary: str
    window: int = 0
    softcap: float = 0.0
    query_norm: Norm | None = None
    key_norm: Norm | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Feed:
    """``down(act(gate(x)) * up(x))``; without ``gate`` ``down(act(up(x)))``."""

    up: Linear
    down: Linear
    activation: str
    gate: Linear | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """One block. ``parallel``: attention and feed forward read the same norm, and both are added (Phi)."""

    attention: Attention
    feed: Feed
    before_attention: Norm | None
    after_attention: Norm | None = None
    before_feed: Norm | None = None
    after_feed: Norm | None = None
    parallel: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Rotary:
    """``frequencies`` ``[pairs]``: the angle of a pair at position p is ``p * frequency``; cosines and sines are
    multiplied by ``factor``. Fewer pairs than half a head: the rest of it is left as it is."""

    frequencies: torch.Tensor
    factor: float = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoder:
    """A whole model. ``embedding`` is ``[vocabulary, width]``; ``head`` is ``None`` where it is the same table.

    ``window`` is the longest text, in tokens; ``softcap`` is 0 where logits are not capped.
    """

    kind: str
    embedding: torch.Tensor
    embedding_name: str
    embedding_factor: float
    layers: tuple[Layer, ...]
    norm: Norm
    head: Linear | None
    rotary: Mapping[str, Rotary]
    window: int
    softcap: float = 0.0
    stop_tokens: tuple[int, ...] = ()
    begin_token: int | None = None
    pad_token: int | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return int(self.embedding.shape[0])

    @property
    def width(self) -> int:
        """The size of the hidden state."""
        return int(self.embedding.shape[1])

    def linears(self) -> Iterator[Linear]:
        """Every product with a constant weight but the head's."""
        for layer in self.layers:
            a, f = layer.attention, layer.feed
            yield from (a.query, a.key, a.value, a.output)
            yield from (p for p in (f.gate, f.up, f.down) if p is not None)

    def share(self, names: Collection[str]) -> float:
        """Of the numbers in matrices and tables, those of the modules ``names``."""
        heads = [] if self.head is None else [(self.head.name, self.head.weight)]
        matrices = [(p.name, p.weight) for p in self.linears()]
        tables = [*heads, (self.embedding_name, self.embedding)]
        sizes = [(name, weight.numel()) for name, weight in (*matrices, *tables)]
        return sum(size for name, size in sizes if name in names) / sum(size for _, size in sizes)


def read(model: nn.Module) -> Decoder:
    """The structure of a causal language model of transformers; its tensors are the model's own.

    Raises :class:`UnsupportedError` for what it has and this does not express, by the name of the module.
    """
    reader = _Reader(model)
    with torch.no_grad():
        return reader.decoder()


def layers(model: nn.Module) -> nn.ModuleList:
    """The list of a model's blocks: of all lists the one with the most parameters. Raises ``ValueError`` without."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)]
    return max(lists, key=lambda m: sum(p.numel() for p in m.parameters()))


def stop_tokens(model: object) -> tuple[int, ...]:
    """The tokens that end a text."""
    return _tokens(model, "eos_token_id")


class _Reader:
    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.config: Any = model.config
        self.names = {id(m): n for n, m in model.named_modules()}
        self.seen: set[int] = set()

    def decoder(self) -> Decoder:
        model: Any = self.model
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        blocks = self._layers()
        body = self.model.get_submodule(self.names[id(blocks)].rpartition(".")[0])
        rotary, by_layer = self._rotary(body, blocks)
        tied = head.weight.data_ptr() == embedding.weight.data_ptr()
        self.seen.add(id(embedding.weight))
        found = Decoder(
            kind=str(self.config.model_type),
            embedding=embedding.weight.detach(),
            embedding_name=self.names[id(embedding)],
            embedding_factor=self._embedding_factor(embedding),
            layers=tuple(self._layer(m, i, by_layer[i]) for i, m in enumerate(blocks)),
            norm=self._norm(self._one(body, ("norm", "final_layernorm"))),
            head=None if tied and head.bias is None else self._linear(head),
            rotary=rotary,
            window=self._window(),
            softcap=float(getattr(self.config, "final_logit_softcapping", None) or 0.0),
            stop_tokens=stop_tokens(model),
            begin_token=next(iter(_tokens(model, "bos_token_id")), None),
            pad_token=next(iter(_tokens(model, "pad_token_id")), None),
        )
        self._refuse_unexplained()
        return found

    def _layers(self) -> nn.ModuleList:
        try:
            return layers(self.model)
        except ValueError as error:
            raise self._unknown("", "it has no list of layers") from error

    def _layer(self, module: nn.Module, index: int, rotary: str) -> Layer:
        norms = {n: self._norm(m) for n, m in module.named_children() if "norm" in n.lower()}
        attention, feed = self._one(module, _ATTENTION), self._one(module, _FEED)
        before = norms.pop("input_layernorm", None)
        wrapped = "pre_feedforward_layernorm" in norms or "post_feedforward_layernorm" in norms
        after = norms.pop("post_attention_layernorm", None)
        before_feed = norms.pop("pre_feedforward_layernorm", None) if wrapped else after
        after_feed = norms.pop("post_feedforward_layernorm", None)
        if norms:
            raise self._unknown(self.names[id(module)], f"its norm {next(iter(norms))} has no known place")
        return Layer(
            attention=self._attention(attention, index, rotary),
            feed=self._feed(feed),
            before_attention=before,
            after_attention=after if wrapped else None,
            before_feed=before_feed,
            after_feed=after_feed,
            parallel=before_feed is None and not wrapped,
        )

    def _attention(self, module: nn.Module, index: int, rotary: str) -> Attention:
        parts = self._parts(module, _PROJECTIONS)
        config, output = self.config, self._linear(parts["output"])
        heads = int(config.num_attention_heads)
        size = int(getattr(module, "head_dim", 0) or output.weight.shape[1] // heads)
        key_heads = int(getattr(config, "num_key_value_heads", None) or heads)
        if "joined" in parts:
            whole = self._linear(parts["joined"])
            edges = (0, heads * size, (heads + key_heads) * size, (heads + 2 * key_heads) * size)
            query, key, value = (_rows(whole, a, b) for a, b in pairwise(edges))
        else:
            query, key, value = (self._linear(parts[n]) for n in ("query", "key", "value"))
        norms = {n: self._norm(parts[n]) for n in ("query_norm", "key_norm") if n in parts}
        return Attention(
            query=query,
            key=key,
            value=value,
            output=output,
            heads=heads,
            key_heads=key_heads,
            head_size=size,
            scale=float(getattr(module, "scaling", None) or size**-0.5),
            rotary=rotary,
            window=self._sliding(module, index),
            softcap=float(getattr(module, "attn_logit_softcapping", None) or 0.0),
            query_norm=norms.get("query_norm"),
            key_norm=norms.get("key_norm"),
        )

    def _sliding(self, module: Any, index: int) -> int:
        kinds = getattr(self.config, "layer_types", None)
        window = int(getattr(module, "sliding_window", getattr(self.config, "sliding_window", 0)) or 0)
        slides = kinds is None or kinds[index] == "sliding_attention"
        return window if slides and window < self._window() else 0

    def _feed(self, module: nn.Module) -> Feed:
        gate: Linear | None
        parts = self._parts(module, _FEEDS)
        if "joined" in parts:
            whole = self._linear(parts["joined"])
            half = whole.weight.shape[0] // 2
            gate, up = _rows(whole, 0, half), _rows(whole, half, 2 * half)
        else:
            gate = self._linear(parts["gate"]) if "gate" in parts else None
            up = self._linear(parts["up"])
        if "activation" not in parts:
            raise self._unknown(self.names[id(module)], "it has no activation")
        return Feed(
            gate=gate,
            up=up,
            down=self._linear(parts["down"]),
            activation=self._activation(parts["activation"]),
        )

    def _activation(self, module: Any) -> str:
        x = torch.linspace(-6, 6, 97)
        given = module(x)
        for name, function in _ACTIVATIONS.items():
            if torch.allclose(given, function(x), atol=_TOLERANCE):
                return name
        raise self._unknown(
            self.names.get(id(module), ""), f"{type(module).__name__} is none of {', '.join(_ACTIVATIONS)}"
        )

    def _norm(self, module: Any) -> Norm:
        """What a norm multiplies with, found by calling it: some hold ``scale - 1``."""
        weight, name = module.weight.detach(), self.names[id(module)]
        assert isinstance(weight, torch.Tensor)
        bias = getattr(module, "bias", None)
        self.seen |= {id(module.weight), id(bias)}
        epsilon = next(
            float(getattr(module, n)) for n in ("variance_epsilon", "eps", "epsilon") if hasattr(module, n)
        )
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(4, weight.shape[0], generator=generator) + 0.5
        given = module(x)
        for centred in (False, True):
            shifted = x - x.mean(-1, keepdim=True) if centred else x
            plain = shifted * torch.rsqrt(shifted.pow(2).mean(-1, keepdim=True) + epsilon)
            for scale in (weight, 1.0 + weight):
                wanted = plain * scale + (bias if bias is not None else 0.0)
                if torch.allclose(given, wanted, atol=_TOLERANCE * float(scale.abs().max() + 1)):
                    offset = None if bias is None else bias.detach()
                    return Norm(name=name, scale=scale, epsilon=epsilon, centred=centred, bias=offset)
        raise self._unknown(name, f"{type(module).__name__} is neither RMS norm nor layer norm")

    def _linear(self, module: nn.Module) -> Linear:
        if not isinstance(module, nn.Linear):
            raise self._unknown(self.names[id(module)], f"{type(module).__name__} is no nn.Linear")
        self.seen |= {id(module.weight), id(module.bias)}
        bias = None if module.bias is None else module.bias.detach()
        return Linear(name=self.names[id(module)], weight=module.weight.detach(), bias=bias)

    def _embedding_factor(self, module: Any) -> float:
        """Some embeddings come out multiplied."""
        ids = torch.arange(min(16, module.weight.shape[0]))
        table = module.weight.detach()[ids]
        given = module(ids)
        factor = float((given * table).sum() / table.pow(2).sum().clamp_min(1e-30))
        if not torch.allclose(given, table * factor, atol=_TOLERANCE * float(given.abs().max() + 1e-9)):
            raise self._unknown(self.names[id(module)], "it does more than look up and scale")
        return 1.0 if math.isclose(factor, 1.0, rel_tol=1e-6) else factor

    def _rotary(self, body: nn.Module, blocks: nn.ModuleList) -> tuple[dict[str, Rotary], list[str]]:
        """The rotary tables, and the one that each layer's attention is given, seen by running the model once."""
        given: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * len(blocks)

        def hook(index: int) -> Callable[..., None]:
            def seen(_: nn.Module, __: object, kwargs: Mapping[str, Any]) -> None:
                given[index] = kwargs.get("position_embeddings")

            return seen

        handles = [
            self._one(m, _ATTENTION).register_forward_pre_hook(hook(i), with_kwargs=True)
            for i, m in enumerate(blocks)
        ]
        try:
            self.model(input_ids=torch.zeros(1, _PROBE, dtype=torch.long), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        known = list(self._tables(body))
        used: dict[str, Rotary] = {}
        by_layer = []
        for table in given:
            if table is None:
                raise self._unknown("", "its positions are not rotary embeddings")
            name = next((n for n, r in known if _is(r, *table)), "")
            if not name:
                raise self._unknown("", "its rotary embedding changes with the length of the text")
            used[name] = dict(known)[name]
            by_layer.append(name)
        return used, by_layer

    def _tables(self, body: nn.Module) -> Iterator[tuple[str, Rotary]]:
        for path, module in body.named_modules():
            for name, buffer in module.named_buffers(recurse=False):
                if name.endswith("inv_freq") and "original" not in name:
                    stem = name.removesuffix("inv_freq")
                    factor = getattr(module, f"{stem}attention_scaling", 1.0)
                    label = f"{path}.{stem}".strip("._").replace(".", "_") or "rotary"
                    yield label, Rotary(frequencies=buffer.detach().float(), factor=float(factor))

    def _window(self) -> int:
        """Where frequencies change beyond the length that was trained on, the window ends there."""
        config = self.config
        longest = int(getattr(config, "max_position_embeddings", 0) or 2048)
        rope = getattr(config, "rope_parameters", None) or {}
        nested = [r for r in (rope, *rope.values()) if isinstance(r, Mapping)]
        if any(r.get("rope_type") in ("longrope", "dynamic") for r in nested):
            original = [int(r.get("original_max_position_embeddings", 0) or 0) for r in nested]
            original.append(int(getattr(config, "original_max_position_embeddings", 0) or 0))
            return min([longest, *filter(None, original)])
        return longest

    def _one(self, module: nn.Module, names: Sequence[str]) -> nn.Module:
        for name in names:
            child = getattr(module, name, None)
            if isinstance(child, nn.Module):
                return child
        raise self._unknown(self.names[id(module)], f"it has none of {', '.join(names)}")

    def _parts(self, module: nn.Module, roles: Roles) -> dict[str, nn.Module]:
        parts = {}
        for role, names in roles.items():
            child = next((c for n in names if isinstance(c := getattr(module, n, None), nn.Module)), None)
            if child is not None:
                parts[role] = child
        needed = {"output", "down"} & set(roles) | (
            {"query"} if "query" in roles and "joined" not in parts else set()
        )
        needed |= {"up"} if "up" in roles and "joined" not in parts else set()
        if missing := sorted(needed - set(parts)):
            raise self._unknown(self.names[id(module)], f"no {missing[0]} projection was found in it")
        return parts

    def _refuse_unexplained(self) -> None:
        left = [n for n, p in self.model.named_parameters() if id(p) not in self.seen]
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise self._unknown("", f"the parameter {left[0]}{more} has no place in a plain decoder")

    def _unknown(self, where: str, why: str) -> UnsupportedError:
        what = f"{type(self.model).__name__}{f' ({where})' if where else ''}"
        return UnsupportedError(
            f"{what} is no decoder that is understood: {why}",
            hint="Llama, Qwen 2 and 3, Gemma, Phi and what is built like them are; without a cache any model of "
            "transformers builds for ort-fp32 and its siblings",
        )


_PROBE = 5


def _rows(whole: Linear, first: int, end: int) -> Linear:
    bias = None if whole.bias is None else whole.bias[first:end]
    return Linear(name=whole.name, weight=whole.weight[first:end], bias=bias, rows=(first, end))


def _is(rotary: Rotary, cosines: torch.Tensor, sines: torch.Tensor) -> bool:
    pairs = rotary.frequencies.shape[0]
    if cosines.shape[-1] != 2 * pairs:
        return False
    angles = torch.arange(cosines.shape[-2]).float()[:, None] * rotary.frequencies
    wanted = (angles.cos() * rotary.factor, angles.sin() * rotary.factor)
    return all(
        torch.allclose(table.reshape(-1, 2 * pairs)[:, half], want, atol=1e-6)
        for table, want in zip((cosines, sines), wanted, strict=True)
        for half in (slice(0, pairs), slice(pairs, None))
    )


def _tokens(model: Any, name: str) -> tuple[int, ...]:
    """A token id, or several: of the generation settings, else of the configuration."""
    for settings in (getattr(model, "generation_config", None), model.config):
        value = getattr(settings, name, None)
        if value is not None:
            ids = value if isinstance(value, list | tuple) else [value]
            if not all(isinstance(i, int) and 0 <= i < 1 << 31 for i in ids):
                raise UnsupportedError(
                    f"{name} is {value!r}, which is no token id",
                    hint="correct generation_config.json or config.json",
                )
            return tuple(ids)
    return ()
