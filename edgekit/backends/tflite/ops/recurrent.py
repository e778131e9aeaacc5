"""LSTM, GRU and RNN, unrolled over time; long sequences as a loop (:mod:`.recurrent_loop`).

The input's share of all gates is one FULLY_CONNECTED over the whole sequence; a step adds the state's share,
splits and applies the activations. LiteRT's own UNIDIRECTIONAL_SEQUENCE_LSTM is not used: its state lives in
variable tensors that survive from one inference to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgekit.backends.tflite.builder import Builder
from edgekit.backends.tflite.ir import FLOAT32, INT32, Quant, Tensor
from edgekit.backends.tflite.ops.recurrent_loop import LOOP_FROM, Direction, Step, lengths_column, looped
from edgekit.backends.tflite.registry import Refusal, op
from edgekit.backends.tflite.view import View

MAX_STEPS = 2048
"""Longer sequences would make a file of more than a hundred thousand operators."""


class Attributes(TypedDict, total=False):
    """The attributes that the three operators share. ``hidden_size`` is what the weights say anyway."""

    activations: Sequence[str]
    activation_alpha: Sequence[float]
    activation_beta: Sequence[float]
    clip: float
    direction: str
    hidden_size: int
    layout: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    """:class:`Attributes` with their defaults."""

    activations: tuple[str, ...]
    alphas: tuple[float, ...]
    betas: tuple[float, ...]
    clip: float | None
    direction: str
    batch_first: bool

    def functions(self, direction: int, count: int) -> list[tuple[str, float | None, float | None]]:
        """Name, alpha and beta of a direction's ``count`` activations."""
        start = direction * count
        return [
            (
                name,
                self.alphas[start + i] if start + i < len(self.alphas) else None,
                self.betas[start + i] if start + i < len(self.betas) else None,
            )
            for i, name in enumerate(self.activations[start : start + count])
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Weights:
    """One direction's weights: ``w`` [gates·H, I], ``r`` [gates·H, H], biases [gates·H]."""

    w: Tensor
    r: Tensor
    wb: Tensor | None
    rb: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inputs:
    """The node's inputs. ``merge_bias``: the two biases are only ever added."""

    x: View
    w: View
    r: View
    b: View | None
    lengths: View | None
    initial: tuple[View | None, ...]
    p: View | None = None
    merge_bias: bool = True


@op("LSTM", hybrid=(1, 2))
def lstm(
    g: Builder,
    x: View,
    w: View,
    r: View,
    b: View | None = None,
    sequence_lens: View | None = None,
    initial_h: View | None = None,
    initial_c: View | None = None,
    p: View | None = None,
    *,
    input_forget: int = 0,
    **attributes: Unpack[Attributes],
) -> Sequence[View | None]:
    """Gates in ONNX's order: input, output, forget, cell."""
    settings = _settings(attributes, ("Sigmoid", "Tanh", "Tanh"))

    def make_step(weights: _Weights, d: int) -> Step:
        outer, inner, last = settings.functions(d, 3)
        peep = None if p is None else _peepholes(g, p, d)

        def step(share: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            h, c = states
            gates = _clipped(g, g.binary("ADD", share, _linear(g, h, weights.r, None)), settings.clip)
            # ONNX's order; PyTorch has i, f, g, o, which its exporter has reordered.
            i, o, f, t = _split(g, gates, 4)
            if peep is not None:
                i, f = (g.binary("ADD", v, g.binary("MUL", c, k)) for v, k in ((i, peep[0]), (f, peep[2])))
            i = _activate(g, i, outer)
            forget = g.subtract_from(1.0, i) if input_forget else _activate(g, f, outer)
            c = g.binary("ADD", g.binary("MUL", forget, c), g.binary("MUL", i, _activate(g, t, inner)))
            if peep is not None:
                o = g.binary("ADD", o, g.binary("MUL", c, peep[1]))
            return g.binary("MUL", _activate(g, o, outer), _activate(g, c, last)), c

        return step

    inputs = _Inputs(x=x, w=w, r=r, b=b, lengths=sequence_lens, initial=(initial_h, initial_c), p=p)
    return _run(g, settings, inputs, make_step)


@op("GRU", hybrid=(1, 2))
def gru(
    g: Builder,
    x: View,
    w: View,
    r: View,
    b: View | None = None,
    sequence_lens: View | None = None,
    initial_h: View | None = None,
    *,
    linear_before_reset: int = 0,
    **attributes: Unpack[Attributes],
) -> Sequence[View | None]:
    """Gates in ONNX's order: update, reset, hidden."""
    settings = _settings(attributes, ("Sigmoid", "Tanh"))

    def make_step(weights: _Weights, d: int) -> Step:
        outer, inner = settings.functions(d, 2)
        hidden = weights.r.shape[1]
        # Gates apart: the reset gate comes before or behind the third product.
        parts = [_rows(g, weights.r, k * hidden, hidden) for k in range(3)]
        biases = None if weights.rb is None else [_rows(g, weights.rb, k * hidden, hidden) for k in range(3)]

        def recurrent(h: Tensor, k: int) -> Tensor:
            return _linear(g, h, parts[k], None if biases is None else biases[k])

        def step(share: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            (h,) = states
            xz, xr, xh = _split(g, share, 3)
            z = _activate(g, _clipped(g, g.binary("ADD", xz, recurrent(h, 0)), settings.clip), outer)
            reset = _activate(g, _clipped(g, g.binary("ADD", xr, recurrent(h, 1)), settings.clip), outer)
            if linear_before_reset:
                memory = g.binary("MUL", reset, recurrent(h, 2))
            else:
                memory = recurrent(g.binary("MUL", reset, h), 2)
            new = _activate(g, _clipped(g, g.binary("ADD", xh, memory), settings.clip), inner)
            # (1 - z) n + z h = n + z (h - n)
            return (g.binary("ADD", new, g.binary("MUL", z, g.binary("SUB", h, new))),)

        return step

    inputs = _Inputs(x=x, w=w, r=r, b=b, lengths=sequence_lens, initial=(initial_h,), merge_bias=False)
    return _run(g, settings, inputs, make_step)


@op("RNN", hybrid=(1, 2))
def rnn(
    g: Builder,
    x: View,
    w: View,
    r: View,
    b: View | None = None,
    sequence_lens: View | None = None,
    initial_h: View | None = None,
    **attributes: Unpack[Attributes],
) -> Sequence[View | None]:
    """One gate."""
    settings = _settings(attributes, ("Tanh",))

    def make_step(weights: _Weights, d: int) -> Step:
        (function,) = settings.functions(d, 1)

        def step(share: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            total = g.binary("ADD", share, _linear(g, states[0], weights.r, None))
            return (_activate(g, _clipped(g, total, settings.clip), function),)

        return step

    inputs = _Inputs(x=x, w=w, r=r, b=b, lengths=sequence_lens, initial=(initial_h,))
    return _run(g, settings, inputs, make_step)


# --- the sequence -----------------------------------------------------------------------------------


def _settings(attributes: Attributes, default: tuple[str, ...]) -> _Settings:
    """``default`` are the activations of one direction."""
    direction = attributes.get("direction", "forward")
    names = attributes.get("activations") or default * (2 if direction == "bidirectional" else 1)
    return _Settings(
        activations=tuple(names),
        alphas=tuple(attributes.get("activation_alpha", ())),
        betas=tuple(attributes.get("activation_beta", ())),
        clip=attributes.get("clip"),
        direction=direction,
        batch_first=bool(attributes.get("layout", 0)),
    )


def _run(
    g: Builder, settings: _Settings, given: _Inputs, make_step: Callable[[_Weights, int], Step]
) -> list[View | None]:
    """All directions over the whole sequence: ``[Y, Y_h]`` and, for an LSTM, ``Y_c``."""
    x = given.x
    if x.dtype != FLOAT32:
        raise Refusal(f"a recurrent network over {x.dtype}")
    # A view: nothing moves unless a step needs it.
    if settings.batch_first:
        x = g.transpose_view(x, (1, 0, 2))
    steps = x.shape[0]
    used_outputs = (
        [bool(o.name) and bool(list(o.uses()) or o.is_graph_output()) for o in g.node.outputs]
        if g.node
        else []
    )
    want_sequence = not used_outputs or used_outputs[0]
    mask = _masks(g, given.lengths, steps)
    sequences, whole, finals = [], [], []
    for d in range(2 if settings.direction == "bidirectional" else 1):
        backwards = settings.direction == "reverse" or d == 1
        weights = _direction(g, given, d)
        states = tuple(_initial(g, s, d, x.shape[1], weights.r.shape[1], settings) for s in given.initial)
        order = range(steps - 1, -1, -1) if backwards else range(steps)
        gates = _input_gates(g, x, weights)
        step = make_step(weights, d)
        if steps >= LOOP_FROM and _constant(weights) and (given.p is None or given.p.const is not None):
            work = Direction(
                gates=gates, steps=steps, states=states, backwards=backwards, want_all=want_sequence,
                lengths=lengths_column(g, given.lengths, steps),
            )  # fmt: skip
            every, states = looped(g, step, work)
            whole.append(every)
        else:
            if steps > MAX_STEPS:
                raise Refusal(f"a recurrent network over {steps} steps with weights that are no constants")
            hidden, states = _unrolled(g, step, _at(g, gates, x.shape), states, order, mask)
            sequences.append(hidden)
        finals.append(states)
    outputs: list[View | None] = [None]
    if want_sequence:
        outputs = [_joined(g, whole, settings) if whole else _sequence(g, sequences, settings)]
    for k in range(len(given.initial)):
        outputs.append(_final(g, [states[k] for states in finals], settings))
    return outputs


def _unrolled(
    g: Builder,
    step: Step,
    shares: Callable[[int], Tensor],
    states: tuple[Tensor, ...],
    order: Sequence[int],
    mask: Callable[[int], Tensor] | None,
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """The hidden states by time, and the states after the last step."""
    hidden: dict[int, Tensor] = {}
    for t in order:
        new = step(shares(t), states)
        out = new[0]
        if mask is not None:
            # Past the end of its sequence an item keeps its state and gives zeros.
            valid = mask(t)
            out = g.select(valid, new[0], g.constant(np.zeros(new[0].shape, FLOAT32)))
            new = tuple(g.select(valid, n, s) for n, s in zip(new, states, strict=True))
        states = new
        hidden[t] = out
    return [hidden[t] for t in sorted(hidden)], states


def _input_gates(g: Builder, x: View, weights: _Weights) -> Tensor:
    """The input's share of all gates [T·B, gates·H]: one product over the sequence."""
    steps, batch, size = x.shape
    flat = g.reshape(g.plain(x), (steps * batch, size))
    return _linear(g, flat, weights.w, weights.wb)


def _at(g: Builder, gates: Tensor, shape: Sequence[int]) -> Callable[[int], Tensor]:
    """``t →`` the gates' share [B, gates·H]."""
    steps, batch, _ = shape
    width = gates.shape[1]

    def at(t: int) -> Tensor:
        return g.slice(gates, (t * batch, 0), (batch, width))

    return at if steps > 1 else lambda _: gates


def _sequence(g: Builder, sequences: Sequence[Sequence[Tensor]], settings: _Settings) -> View:
    """Y: [T, D, B, H], or [B, T, D, H] with the batch first."""
    batch, size = sequences[0][0].shape
    steps = len(sequences[0])
    if settings.batch_first:
        rows = [g.reshape(h, (batch, 1, 1, size)) for s in zip(*sequences, strict=True) for h in s]
        joined = g.concat(rows, 1)
        return View.of(g.reshape(joined, (batch, steps, len(sequences), size)))
    rows = [h for s in zip(*sequences, strict=True) for h in s]
    joined = g.concat(rows, 0)
    return View.of(g.reshape(joined, (steps, len(sequences), batch, size)))


def _joined(g: Builder, directions: Sequence[Tensor | None], settings: _Settings) -> View:
    """Y out of [T, B, H] a direction."""
    parts = [g.reshape(t, (t.shape[0], 1, *t.shape[1:])) for t in directions if t is not None]
    out = View.of(g.concat(parts, 1))
    return g.transpose_view(out, (2, 0, 1, 3)) if settings.batch_first else out


def _constant(weights: _Weights) -> bool:
    """Whether a step reads nothing that is computed at run time."""
    return weights.r.data is not None and (weights.rb is None or weights.rb.data is not None)


def _final(g: Builder, states: Sequence[Tensor], settings: _Settings) -> View:
    """Y_h or Y_c: [D, B, H], or [B, D, H] with the batch first."""
    batch, size = states[0].shape
    if settings.batch_first:
        joined = g.concat([g.reshape(s, (batch, 1, size)) for s in states], 1)
        return View.of(joined)
    joined = g.concat(list(states), 0)
    return View.of(g.reshape(joined, (len(states), batch, size)))


# --- parameters and states --------------------------------------------------------------------------


def _direction(g: Builder, given: _Inputs, d: int) -> _Weights:
    wb = rb = None
    if given.b is not None:
        both = _pick(g, given.b, d)
        half = both.shape[0] // 2
        wb, rb = _rows(g, both, 0, half), _rows(g, both, half, half)
        if given.merge_bias:
            wb, rb = _added(g, wb, rb), None
    return _Weights(w=_matrix(g, given.w, d), r=_matrix(g, given.r, d), wb=wb, rb=rb)


def _initial(g: Builder, state: View | None, d: int, batch: int, size: int, settings: _Settings) -> Tensor:
    if state is None:
        return g.constant(np.zeros((batch, size), FLOAT32))
    if settings.batch_first:
        state = g.transpose_view(state, (1, 0, 2))
    return _pick(g, state, d)


def _peepholes(g: Builder, p: View, d: int) -> list[Tensor]:
    flat = _pick(g, p, d)
    size = flat.shape[0] // 3
    return [_rows(g, flat, k * size, size) for k in range(3)]


def _pick(g: Builder, view: View, index: int) -> Tensor:
    """``view[index]`` along the first axis."""
    t = g.plain(view)
    return g.reshape(_rows(g, t, index, 1), t.shape[1:])


def _matrix(g: Builder, view: View, d: int) -> Tensor:
    """A direction's ``[gates·H, …]``; integers stay what they are, with the scales of its rows."""
    t = g.plain(view)
    if t.data is None or t.quant is None:
        return _pick(g, view, d)
    if t.quant.per_channel and t.quant.axis != 1:
        return _pick(g, g.dequantize(view), d)
    return Tensor(t.shape[1:], t.dtype, t.name, t.data[d], t.quant.along(0))


def _rows(g: Builder, t: Tensor, first: int, count: int) -> Tensor:
    if count == t.shape[0]:
        return t
    shape = (count, *t.shape[1:])
    if t.data is not None:
        rows = slice(first, first + count)
        quant = t.quant
        if quant is not None and quant.per_channel:  # a scale a row
            quant = Quant(quant.scale[rows], quant.zero_point[rows], 0)
        return Tensor(shape, t.dtype, t.name, t.data[rows], quant)
    return g.slice(t, (first, *(0 for _ in t.shape[1:])), shape)


def _added(g: Builder, a: Tensor, b: Tensor) -> Tensor:
    if a.data is not None and b.data is not None:
        return Tensor(a.shape, a.dtype, a.name, a.data + b.data)
    return g.binary("ADD", a, b)


# --- arithmetic of a step ---------------------------------------------------------------------------


def _linear(g: Builder, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    shape = (x.shape[0], w.shape[0])
    inputs = [x, w] if bias is None else [x, w, bias]
    return g.emit("FULLY_CONNECTED", inputs, shape, FLOAT32, schema.FullyConnectedOptionsT())


def _split(g: Builder, x: Tensor, count: int) -> list[Tensor]:
    shape = (x.shape[0], x.shape[1] // count)
    options = schema.SplitOptionsT(numSplits=count)
    return g.emit_many("SPLIT", [g.constant(1, INT32), x], [(shape, FLOAT32)] * count, options)


def _masks(g: Builder, lengths: View | None, steps: int) -> Callable[[int], Tensor] | None:
    """``t → bool [B, 1]``: whether step ``t`` is inside each sequence; None where all are full."""
    column = lengths_column(g, lengths, steps)
    if column is None:
        return None

    def at(t: int) -> Tensor:
        return g.compare("GREATER", column, t)

    return at


def _clipped(g: Builder, x: Tensor, limit: float | None) -> Tensor:
    return x if limit is None else g.clamp(x, -limit, limit)


_PLAIN = {"sigmoid": "LOGISTIC", "tanh": "TANH", "relu": "RELU", "elu": "ELU"}


def _activate(g: Builder, x: Tensor, function: tuple[str, float | None, float | None]) -> Tensor:
    """ONNX's activation functions of recurrent networks, with their alphas and betas."""
    name, alpha, beta = function
    kind = name.lower()
    if kind in _PLAIN and not (kind == "elu" and alpha not in (None, 1.0)):
        return g.unary(_PLAIN[kind], x)
    if kind == "affine":
        scaled = g.binary("MUL", x, 1.0 if alpha is None else alpha)
        return g.binary("ADD", scaled, beta or 0.0)
    if kind == "leakyrelu":
        return g.unary(
            "LEAKY_RELU", x, options=schema.LeakyReluOptionsT(alpha=0.01 if alpha is None else alpha)
        )
    if kind == "scaledtanh":
        return g.binary(
            "MUL", g.unary("TANH", g.binary("MUL", x, beta or 1.0)), 1.0 if alpha is None else alpha
        )
    if kind == "hardsigmoid":
        line = g.binary(
            "ADD", g.binary("MUL", x, 0.2 if alpha is None else alpha), 0.5 if beta is None else beta
        )
        return g.unary("RELU_0_TO_1", line)
    if kind == "thresholdedrelu":
        above = g.compare("GREATER", x, 1.0 if alpha is None else alpha)
        return g.select(above, x, g.constant(np.zeros(x.shape, FLOAT32)))
    if kind == "softsign":
        return g.binary("DIV", x, g.binary("ADD", g.unary("ABS", x), 1.0))
    raise Refusal(f"the activation {name}")
