"""How labels go through operators: one short rule for each, by the name of the ATen operator.

A rule reads the labels of the arguments, joins what must be cut together, and labels the result.
What has no rule is frozen: it stays as it is, and the analysis names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np

from edgekit.compress.structured.labels import Dims, Ids, Labels, fixed
from edgekit.compress.structured.trace import Call, Ref

Rule: TypeAlias = Callable[[Labels, Call], None]
RULES: dict[str, Rule] = {}


def rule(names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators of ``aten``, named with spaces between."""

    def register(function: Rule) -> Rule:
        for name in names.split():
            if name in RULES:
                raise ValueError(f"two rules for {name}")
            RULES[name] = function
        return function

    return register


def walk(labels: Labels) -> None:
    """Take every call of the trace through its rule; freeze inputs and outputs."""
    for call in labels.trace.calls:
        found = _rule(call)
        try:
            (found or _unknown)(labels, call)
        except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError):
            _unknown(labels, call)  # a form of the operator that its rule does not know: nothing of it is cut
    for ref in labels.trace.outputs:
        for ids in labels.of(ref):
            labels.freeze(ids)  # output


def _rule(call: Call) -> Rule | None:
    name = call.op.removeprefix("aten.")
    found = RULES.get(name) or RULES.get(name.rstrip("_"))
    if found is None and call.pointwise:
        return pointwise
    return found


def refs(value: Any) -> Iterator[int]:
    """The tensors in nested arguments."""
    if isinstance(value, Ref):
        yield value.id
    elif isinstance(value, tuple):
        for item in value:
            yield from refs(item)
    elif isinstance(value, dict):
        yield from refs(tuple(value.values()))


def _unknown(labels: Labels, call: Call) -> None:
    touched = any(labels.is_free(ids) for ref in refs(call.args) for ids in labels.of(ref))
    if touched:
        labels.unknown[call.op] = labels.unknown.get(call.op, 0) + 1
    labels.freeze_all(refs(call.args))
    labels.set_fixed(refs(call.out))


def join_dims(labels: Labels, one: Dims, two: Dims) -> Dims:
    """Labels of a broadcast of two tensors."""
    longer, shorter = (one, two) if len(one) >= len(two) else (two, one)
    out = list(longer)
    for i, ids in enumerate(shorter, len(longer) - len(shorter)):
        if len(out[i]) == 1:
            out[i] = ids
        elif len(ids) != 1:
            labels.unify(out[i], ids)
    return tuple(out)


@rule(
    "add sub mul div where hardswish mish _prelu_kernel masked_fill lerp addcmul leaky_relu elu softplus "
    "hardtanh threshold copy fill rrelu_with_noise clamp clone detach alias _to_copy contiguous "
    "lift_fresh bernoulli to view_as_real_copy zeros_like ones_like full_like empty_like rand_like "
    "randn_like native_dropout zero"
)
def pointwise(labels: Labels, call: Call) -> None:
    """Entry by entry, with broadcasting; each entry of the result is that of the arguments."""
    dims: Dims = ()
    for ref in refs(call.args):
        dims = join_dims(labels, dims, labels.of(ref))
    for ref in refs(call.out):
        labels.set(ref, dims)


@rule(
    "zeros ones full empty new_zeros new_ones new_full new_empty empty_strided new_empty_strided scalar_tensor"
)
def constants(labels: Labels, call: Call) -> None:
    """A constant of some shape: follows what it is combined with, if its size in the code can."""
    for ref in refs(call.out):
        dims = [labels.fresh(n) if n > 1 else fixed(n) for n in labels.size(ref)]
        for ids in dims:
            labels.constant(call, ids)
        labels.set(ref, dims)


@rule("arange linspace randn rand tril_indices eye randperm randint")
def values(labels: Labels, call: Call) -> None:
    """Values that depend on the place: nothing of them can be left out."""
    labels.set_fixed(refs(call.out))


# --- products -----------------------------------------------------------------------------------------


def _product(labels: Labels, call: Call, a: Ref, b: Ref, bias: Ref | None = None) -> None:
    one, two = labels.of(a.id), labels.of(b.id)
    batch = join_dims(labels, one[:-2], two[:-2])
    labels.unify(one[-1], two[-2])
    out = (*batch, one[-2], two[-1])
    labels.macs.append((1, (*out, one[-1])))
    if bias is not None:
        join_dims(labels, out, labels.of(bias.id))
    labels.set(call.out.id, out)


@rule("mm bmm")
def product(labels: Labels, call: Call) -> None:
    """``[…, m, k] @ […, k, n]``."""
    _product(labels, call, call.args[0], call.args[1])


@rule("addmm baddbmm")
def product_and_sum(labels: Labels, call: Call) -> None:
    """A bias and a product."""
    _product(labels, call, call.args[1], call.args[2], call.args[0])


@rule("mv dot")
def vector_product(labels: Labels, call: Call) -> None:
    """Matrix or vector by vector."""
    one, two = labels.of(call.args[0].id), labels.of(call.args[1].id)
    labels.unify(one[-1], two[-1])
    labels.macs.append((1, one))
    labels.set(call.out.id, one[:-1])


@rule("convolution _convolution")
def convolution(labels: Labels, call: Call) -> None:
    """Any number of spatial dimensions; grouped and depthwise; transposed."""
    x, weight, bias, *_ = call.args
    transposed, groups = call.args[6], call.args[8]
    ids, w = labels.of(x.id), labels.of(weight.id)
    into, out = (w[0], w[1]) if transposed else (w[1], w[0])
    shape = labels.size(x.id) if transposed else labels.size(call.out.id)
    kernel = labels.size(weight.id)[2:]
    labels.macs.append((shape[0] * _count(shape[2:]) * _count(kernel), (w[0], w[1])))
    for kernel_ids in w[2:]:
        labels.freeze(kernel_ids)  # kernel
    channel = ids[1]
    if groups == 1:
        labels.unify(channel, into)
    elif transposed:
        out = _grouped(labels, call, channel, into, out, groups)
    else:
        out = _grouped(labels, call, channel, out, into, groups)
    if bias is not None:
        labels.unify(out, labels.of(bias.id)[0])
    labels.set(call.out.id, (ids[0], out, *(fixed(n) for n in labels.size(call.out.id)[2:])))


def _grouped(labels: Labels, call: Call, x: Ids, long: Ids, short: Ids, groups: int) -> Ids:
    """Labels of a grouped convolution's output.

    The weight's ``long`` dimension has all channels of one side, its ``short`` one those of one group of the
    other. Either whole groups are cut, or the same channels in each group.
    """
    transposed = call.args[6]
    out = labels.fresh(len(short) * groups) if transposed else long
    near = out if transposed else x  # the side whose channels the short dimension counts
    a, b = long.reshape(groups, -1), near.reshape(groups, -1)
    if transposed:
        labels.unify(long, x)
    depthwise = len(short) == 1
    if depthwise or labels.choose(("groups", groups, len(short), a.shape[1]), 2) == 0:
        labels.unify(a, a[:, :1])
        labels.unify(b, b[:, :1])
        labels.unify(a[:, 0], b[:, 0])
        labels.constant(call, b[:, 0])
        if not depthwise:
            labels.freeze(short)  # width of a group
    else:
        labels.unify(a, a[:1])
        labels.unify(b, short[None])
    return out


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


@rule(
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention "
    "_scaled_dot_product_attention_math _scaled_dot_product_flash_attention "
    "_scaled_dot_product_attention_math_for_mps _scaled_dot_product_fused_attention_overrideable"
)
def attention(labels: Labels, call: Call) -> None:
    """``softmax(q kᵀ) v`` over ``[batch, heads, positions, width]``; the scale counts the width of q."""
    q, k, v = (labels.of(r.id) for r in call.args[:3])
    if len(q) != 4 or len(q[1]) % len(k[1]):
        _unknown(labels, call)
        return
    labels.unify(k[1], v[1])  # a head's keys and values
    labels.unify(q[1].reshape(len(k[1]), -1), k[1][:, None])  # queries that share keys go with them
    for d in (k, v):
        labels.unify(q[0], d[0])
    labels.unify(q[3], k[3])
    labels.unify(k[2], v[2])
    labels.freeze(k[2])  # attended positions
    labels.inexact(q[3])
    for ref in refs(call.args[3:]):
        join_dims(labels, (q[0], q[1], q[2], k[2]), labels.of(ref))
    labels.macs += [(1, (q[0], q[1], q[2], k[2], d)) for d in (q[3], v[3])]
    outs = list(refs(call.out))
    labels.set(outs[0], (q[0], q[1], q[2], v[3]))
    labels.set_fixed(outs[1:])


@rule("embedding")
def embedding(labels: Labels, call: Call) -> None:
    """Rows of a table. Which rows the data asks for is not known, so that they stay."""
    table, index = labels.of(call.args[0].id), labels.of(call.args[1].id)
    labels.freeze(table[0])  # vocabulary
    labels.set(call.out.id, (*index, table[1]))


@rule("recurrent")
def recurrent(labels: Labels, call: Call) -> None:
    """LSTM, GRU, RNN: a unit is a row of every gate, in every layer and both directions (one ``hidden_size``)."""
    x, state, weights, hidden, both = call.args
    unit = labels.fresh(hidden)
    data = next(refs(x))
    width = labels.of(data)[-1]
    ways = 2 if both else 1
    projected = "weight_hr_l0" in weights
    given = labels.fresh(labels.size(weights["weight_hr_l0"].id)[0]) if projected else unit
    rows = labels.size(data)[:-1]
    for name, ref in weights.items():
        ids = labels.of(ref.id)
        first = name.split("_l")[-1].removesuffix("_reverse") == "0"
        if name.startswith("weight_hr"):
            labels.unify(ids[0], given)
            labels.unify(ids[1], unit)
        else:
            labels.unify(ids[0], np.tile(unit, len(ids[0]) // hidden))
        if name.startswith("weight_ih"):
            labels.unify(ids[1], width if first else np.tile(given, ways))
        if name.startswith("weight_hh"):
            labels.unify(ids[1], given)
        if name.startswith("weight"):
            labels.macs.append((_count(rows), ids))
    # The first state is what comes out, the second (of an LSTM) the cell's own.
    for position, ref in enumerate(refs(state)):
        labels.unify(labels.of(ref)[-1], unit if position else given)
    for position, ref in enumerate(refs(call.out)):
        last = labels.size(ref)[-1:]
        others = [fixed(n) for n in labels.size(ref)[:-1]]
        if position == 0:
            labels.set(ref, (*others, np.tile(given, ways)))
        elif last in ((hidden,), (len(given),)) and others:
            cell = position == len(list(refs(call.out))) - 1 and last == (hidden,)
            labels.set(ref, (*others, unit if cell else given))
        else:  # a packed sequence's batch sizes and orders
            labels.set(ref, [fixed(n) for n in labels.size(ref)])


@rule("_pack_padded_sequence _pad_packed_sequence")
def packed(labels: Labels, call: Call) -> None:
    """Features are last on both sides."""
    last = labels.of(call.args[0].id)[-1]
    for position, ref in enumerate(refs(call.out)):
        shape = labels.size(ref)
        labels.set(ref, [fixed(n) for n in shape] if position else (*(fixed(n) for n in shape[:-1]), last))
