"""The folder that OpenVINO GenAI loads: the model, the tokenizer's two models, and ``generation_config.json``."""

from __future__ import annotations

import functools
import importlib
import json
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from edgekit.backends.openvino_genai import graph
from edgekit.core.foreign import translated
from edgekit.errors import BackendError, MissingExtraError
from edgekit.types import Json, Lowered, Option, Precision, Target, TensorSpec

if TYPE_CHECKING:
    from edgekit.load.decoder import Decoder
    from edgekit.quantize.block_weights import BlockWeights

CONFIG = "generation_config.json"
TOKENIZER, DETOKENIZER = "openvino_tokenizer.xml", "openvino_detokenizer.xml"

_CACHES = {"f32": 4, "f16": 2, "u8": 1}


@functools.cache
def runtime() -> ModuleType:
    """The module ``openvino``, imported without its telemetry, which writes a client id into the home directory."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise MissingExtraError("OpenVINO", "openvino-genai") from error


def lower(
    decoder: Decoder,
    weights: Mapping[str, BlockWeights],
    target: Target,
    options: Mapping[str, Option],
    out: Path,
) -> Lowered:
    """Raises :class:`BackendError` for a tokenizer that OpenVINO Tokenizers does not express."""
    ov = runtime()
    cache = str(options["cache"])
    model = graph.build(decoder, weights, ov, half=target.precision is not Precision.FP32)
    # The plug-in's own choice is INT8 for the cache, whatever the weights are: it reads this from the model.
    model.set_rt_info(cache, ["runtime_options", "KV_CACHE_PRECISION"])
    if target.precision not in (Precision.INT8_WEIGHTS, Precision.INT4_WEIGHTS):
        model.set_rt_info("0", ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
    operators = sorted({op.get_type_name() for op in model.get_ops()})
    _save(ov, model, out / target.file)
    for name, made in zip((TOKENIZER, DETOKENIZER), _tokenizer(out), strict=True):
        _save(ov, made, out / name)
    (out / CONFIG).write_text(json.dumps(_config(decoder), indent=2) + "\n", encoding="utf-8")
    models = (target.file, TOKENIZER, DETOKENIZER)
    return Lowered(
        files=(*models, *(str(Path(n).with_suffix(".bin")) for n in models), CONFIG),
        inputs=(TensorSpec(name="input_ids", dtype="int64", shape=(1, "sequence_length")),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=(1, 1, decoder.vocabulary)),),
        runtime=dict(target.runtime),
        minimum_runtime="2025.1",
        notes=(*decoder.notes, f"the cache is held in {cache}"),
        details={
            "nodes": len(model.get_ops()),
            "operators": list(operators),
            "cache_bytes_per_token": cache_bytes(decoder, cache),
        },
        integer_weights=decoder.share(weights),
    )


def cache_bytes(decoder: Decoder, cache: str) -> int:
    """Bytes that the cache grows by with each token: keys and values of every layer; scales of INT8 not counted."""
    sizes = (2 * layer.attention.key_heads * layer.attention.head_size for layer in decoder.layers)
    return _CACHES[cache] * sum(sizes)


def _tokenizer(folder: Path) -> tuple[Any, Any]:
    """Models that encode and decode, made of the tokenizer's files in ``folder``."""
    runtime()
    import openvino_tokenizers
    import transformers

    words = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    with translated(
        "OpenVINO Tokenizers does not take this tokenizer",
        hint="build ort-genai-int4 and its siblings, which read tokenizer.json",
        kind=BackendError,
    ):
        made: tuple[Any, Any] = openvino_tokenizers.convert_tokenizer(words, with_detokenizer=True)
    return made


_MADE_UP = re.compile(r"[A-Z][A-Za-z0-9]*_\d+(\.\d+)?")


def _name(model: Any) -> None:
    """Names that count up in the process are replaced by ones that count in the model: the same bytes every time."""
    for position, op in enumerate(model.get_ordered_ops()):
        if _MADE_UP.fullmatch(op.get_friendly_name()):
            op.set_friendly_name(f"{op.get_type_name()}#{position}")
        for port in op.outputs():
            names = set(port.get_names())
            if counted := {n for n in names if _MADE_UP.fullmatch(n)}:
                port.get_tensor().set_names(names - counted or {op.get_friendly_name()})


def _save(ov: ModuleType, model: Any, path: Path) -> None:
    """Weights first, then the description: whoever sees the ``.xml`` sees a complete model."""
    _name(model)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        part = Path(folder) / path.name
        ov.save_model(model, part, compress_to_fp16=False)
        _mark(part)
        for file in (part.with_suffix(".bin"), part):
            file.replace(path.with_name(file.name))


def _mark(path: Path) -> None:
    """Mark conversions of float16 matrices as OpenVINO's compression does, so that the plug-in keeps them in
    float16 and widens them in the product. Its own would take the frequencies of rotary positions, too."""
    tree = ElementTree.parse(path)  # noqa: S314 - OpenVINO has just written it
    marked = [x for x in tree.iter("layer") if x.get("name", "").endswith(graph.WIDE)]
    for layer in marked:
        info = layer.find("rt_info")
        info = ElementTree.SubElement(layer, "rt_info") if info is None else info
        ElementTree.SubElement(info, "attribute", name="decompression", version="0")
    if marked:
        tree.write(path)


def _config(decoder: Decoder) -> Mapping[str, Json]:
    """``max_length`` is the window: a longer text is an error, and an answer ends there."""
    ids = {"bos_token_id": decoder.begin_token, "pad_token_id": decoder.pad_token}
    return {
        **{k: v for k, v in ids.items() if v is not None},
        "eos_token_id": list(decoder.stop_tokens),
        "do_sample": False,
        "max_length": decoder.window,
    }
