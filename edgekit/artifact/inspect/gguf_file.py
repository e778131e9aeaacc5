"""``.gguf``: settings and tensors of a language model, by the gguf package, which maps the file and runs nothing."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact.inspect.inspection import Inspection, Scales, StoredWeight, Tally
from edgekit.core.foreign import translated
from edgekit.errors import MissingExtraError
from edgekit.load.gguf_reader import open_gguf
from edgekit.types import Json

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_INTEGERS = {"I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"}
_SETTINGS = (
    "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "expert_count",
)  # fmt: skip
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_NO_GRAPH = "GGUF has weights and settings, no graph: operators, inputs and outputs are the architecture's"


def read(path: Path) -> Inspection:
    """Raises :class:`SourceError` for a damaged file, :class:`MissingExtraError` without gguf."""
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError("gguf", "genai")
    with translated(f"{path} cannot be read", hint="it is damaged, or of a newer version of GGUF"):
        reader = open_gguf(path)
        facts = _facts(reader)
        tally = Tally()
        for tensor in reader.tensors:
            _add(tally, tensor)
        macs = None if facts.get("expert_count") else _macs(tally)
    notes: tuple[str, ...] = (_NO_GRAPH,)
    if macs is None:
        notes += ("of experts only some compute for a token: the multiply-accumulates are not counted",)
    else:
        notes += (
            "multiply-accumulates are of one token's matrices; attention to what came before adds to them",
        )
    return Inspection(
        path=path,
        format="GGUF",
        size=path.stat().st_size,
        inputs=(),
        outputs=(),
        operators={},
        weights=dict(tally.weights.most_common()),
        macs=macs,
        facts=facts,
        parameters=tally.parameters,
        layers=tuple(tally.layers),
        notes=notes,
    )


def _facts(reader: GGUFReader) -> dict[str, Json]:
    architecture = _setting(reader, "general.architecture")
    facts: dict[str, Json] = {
        "version": _setting(reader, "GGUF.version"),
        "architecture": architecture,
        "name": _setting(reader, "general.name"),
    }
    for name in _SETTINGS:
        facts[name.rpartition(".")[2]] = _setting(reader, f"{architecture}.{name}")
    tokens = reader.fields.get("tokenizer.ggml.tokens")
    facts["vocabulary"] = len(tokens.data) if tokens is not None else None
    return {name: value for name, value in facts.items() if value not in (None, "")}


def _setting(reader: GGUFReader, name: str) -> Json:
    field = reader.fields.get(name)
    value = None if field is None else field.contents()
    return value if isinstance(value, bool | int | float | str) else None


def _add(tally: Tally, tensor: ReaderTensor) -> None:
    import gguf

    kind = tensor.tensor_type.name
    block, _ = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
    dtype = _FLOATS.get(kind) or _INTEGERS.get(kind) or kind
    shape = tuple(int(d) for d in reversed(tensor.shape))
    tally.weights[dtype] += int(tensor.n_bytes)
    tally.add(
        StoredWeight(
            name=tensor.name,
            layer=tensor.name.removesuffix(".weight"),
            op="",
            dtype=dtype,
            shape=shape,
            count=math.prod(shape),
            size=int(tensor.n_bytes),
            scales=Scales.BLOCK if block > 1 else None,
            block=int(block) if block > 1 else 0,
        )
    )


def _macs(tally: Tally) -> int:
    """Every matrix multiplies one vector a token; the table of words is only looked up, unless it is the head too."""
    names = {layer.name for layer in tally.layers}
    return sum(layer.count for layer in tally.layers if layer.name != _EMBEDDING or _HEAD not in names)
