"""The folder that transformers.js loads an encoder from: ``config.json``, the tokenizer's files, ``onnx/model….onnx``.

Its pipelines tokenize, feed ``input_ids`` and the like at whatever length a text has, and read ``last_hidden_state`` or
``logits``. What they need of a model is checked here; the folder is a bundle, too, and was replayed.
"""

from __future__ import annotations

import json
from pathlib import Path

from edgekit.core import files
from edgekit.errors import SourceError, UnsupportedError, UsageError
from edgekit.package import rewritten
from edgekit.package.contents import Content, Contents
from edgekit.package.descriptor import Descriptor
from edgekit.package.formats import Format
from edgekit.types import Json, Precision

FORMAT = Format(
    help="the folder that transformers.js loads an encoder from (--tokenizer DIR)",
    backends=("onnxruntime",),
    bundle=True,
    tokenizer=True,
)

DTYPES = {
    Precision.FP32: ("fp32", ""),
    Precision.FP16: ("fp16", "_fp16"),
    Precision.INT8: ("q8", "_quantized"),
    Precision.INT8_DYNAMIC: ("q8", "_quantized"),
    Precision.INT8_WEIGHTS: ("q8", "_quantized"),
    Precision.INT4_WEIGHTS: ("q4", "_q4"),
}
"""What transformers.js calls a precision, and what it appends to the file's name."""

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_OUTPUTS = ("last_hidden_state", "logits", "token_embeddings")
_NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json")
_MORE = ("special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt", "added_tokens.json")
_TASKS = {
    "text-classification",
    "token-classification",
    "fill-mask",
    "question-answering",
    "feature-extraction",
}
_MOST = 64 << 20

_USAGE = """
```sh
npm install @huggingface/transformers
```

```js
import {{ env, pipeline }} from "@huggingface/transformers";

env.allowRemoteModels = false;
env.localModelPath = "/models/";            // where this folder is served as /models/{name}/
const run = await pipeline("{task}", "{name}");
const output = await run("Some text"{options});
```

`config.json` says which file is loaded ({dtype}). It was run with transformers.js 4.3 in a browser when this format was
tested; it says less about errors than the `web` package does, and has no self-test: `edgekit verify .` is one."""


def write(contents: Contents, out: Path) -> None:
    """The folder, with a bundle's description, golden vectors and checksums beside what transformers.js reads."""
    described = contents.descriptor
    folder = contents.spec.tokenizer
    if folder is None:
        raise UsageError(
            "transformers.js needs the model's config.json and tokenizer.json",
            hint="--tokenizer DIR, the Hugging Face folder that the model was built from",
        )
    _check(described)
    dtype, suffix = DTYPES[described.precision]
    config = _config(folder, dtype)
    beside: dict[str, Content] = {name: _read(folder / name) for name in _NEEDED[1:]}
    beside |= {name: _read(folder / name) for name in _MORE if (folder / name).is_file()}
    beside["config.json"] = json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"
    task = contents.artifact.manifest.task
    task = task if task in _TASKS else "feature-extraction"
    options = ', { pooling: "mean", normalize: true }' if task == "feature-extraction" else ""
    usage = _USAGE.format(name=contents.spec.name, task=task, options=options, dtype=dtype)
    rewritten.write(
        contents,
        f"onnx/model{suffix}.onnx",
        contents.model.read_bytes(),
        out,
        usage=usage,
        beside=beside,
    )


def _check(described: Descriptor) -> None:
    """Raise :class:`UnsupportedError` for what the pipelines cannot feed or read."""
    if described.precision not in DTYPES:
        raise UnsupportedError(
            f"transformers.js has no name for {described.precision}",
            hint="build ort-fp32, ort-fp16 or ort-int8",
        )
    wrong = [i for i in described.inputs if i.name not in _INPUTS or i.dtype != "int64"]
    if wrong or not described.inputs:
        raise UnsupportedError(
            f"transformers.js feeds an encoder {', '.join(_INPUTS)} of int64, and this model takes "
            + ", ".join(map(str, described.inputs)),
            hint="build it from hf:DIR; the web format takes any inputs",
        )
    fixed = [i for i in described.inputs if len(i.shape) != 2 or isinstance(i.shape[1], int)]
    if fixed:
        raise UnsupportedError(
            f"transformers.js feeds texts as long as they are, and {fixed[0]} has one length",
            hint="build it with dynamic axes: hf:DIR on an ort- target without --shape has them",
        )
    if not any(o.name in _OUTPUTS for o in described.outputs):
        raise UnsupportedError(
            f"transformers.js reads {', '.join(_OUTPUTS)}, and this model gives "
            + ", ".join(o.name for o in described.outputs),
            hint="build it from hf:DIR, which keeps the outputs' names; the web format takes any",
        )


def _config(folder: Path, dtype: str) -> dict[str, Json]:
    try:
        config = json.loads(_read(folder / "config.json"))
    except (ValueError, RecursionError) as e:
        raise SourceError(
            f"{folder / 'config.json'} is no configuration: {e}", hint="download it again"
        ) from e
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise SourceError(f"{folder / 'config.json'} names no model_type", hint="give the model's own folder")
    if config.get("is_encoder_decoder") or config.get("is_decoder"):
        raise UnsupportedError(
            f"{config['model_type']} in {folder} is a decoder, and this is a format for encoders",
            hint="language models have packages of their own: docs/language-models.md",
        )
    own = config.get("transformers.js_config")
    return {**config, "transformers.js_config": {**(own if isinstance(own, dict) else {}), "dtype": dtype}}


def _read(path: Path) -> bytes:
    try:
        return files.read(path, most=_MOST)
    except OSError as e:
        raise UsageError(
            f"cannot read {path}: {e.strerror or e}",
            hint="--tokenizer DIR has config.json, tokenizer.json and tokenizer_config.json",
        ) from e
