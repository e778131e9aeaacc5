"""``hf:DIR``: a Hugging Face model directory, read from disk only and without its own code unless trusted."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgekit.errors import MissingExtraError, SourceError, UntrustedSourceError
from edgekit.load import module as modules
from edgekit.load.usercode import guarded
from edgekit.types import Permit, SourceSpec, TorchModel

_TASKS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForImageClassification": "image-classification",
    "ForObjectDetection": "object-detection",
    "ForSemanticSegmentation": "semantic-segmentation",
    "ForAudioClassification": "audio-classification",
    "ForCTC": "automatic-speech-recognition",
    "ForMultipleChoice": "multiple-choice",
    "ForNextSentencePrediction": "next-sentence-prediction",
    "ForDepthEstimation": "depth-estimation",
    "EncoderModel": "feature-extraction",
    "Model": "feature-extraction",
}
_SENTENCE = "The quick brown fox jumps over the lazy dog."
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
_PICKLES = ("pytorch_model.bin", "model.ckpt", "tf_model.h5", "flax_model.msgpack")


def load(spec: SourceSpec, permit: Permit) -> TorchModel:
    """Load the class that the config names, in float32 and without its key-value cache.

    See :func:`edgekit.load.load`. Example inputs come from the tokenizer, else from the model's own
    ``dummy_inputs`` or its image size.
    """
    if spec.path is None and not permit.network:
        raise SourceError(
            f"{spec.text} is no directory here, and the network is not to be used",
            hint="give the directory of a downloaded model, or pass --network",
        )
    name = str(spec.path) if spec.path is not None else spec.attribute
    with _offline(not permit.network):
        try:
            import transformers
        except ImportError as error:
            raise MissingExtraError("transformers", "huggingface") from error
        transformers.utils.logging.disable_progress_bar()
        config = _config(transformers, name, spec, permit.trust, permit.network)
        if spec.path is not None and not permit.trust:
            _refuse_pickles(spec.path)
        module = _module(transformers, name, config, permit.trust, permit.network)
        inputs = _example(transformers, name, config, module, permit.trust, permit.network)
    model = modules.bind(module, inputs, what=spec.text)
    axes = {
        key: {0: "batch", 1: "sequence"} if tensor.dim() == 2 and _is_text(key) else {0: "batch"}
        for key, tensor in model.example_inputs.items()
    }
    labels = getattr(config, "id2label", None) or {}
    task = _task(type(module).__name__)
    return modules.complete(
        model,
        task=task,
        dynamic_axes=axes,
        labels=tuple(str(labels[i]) for i in sorted(labels)) if "classification" in task else (),
        preprocessing=_preprocessing(spec.path, task),
    )


def _task(architecture: str) -> str:
    return next((task for suffix, task in _TASKS.items() if architecture.endswith(suffix)), "")


def _config(transformers: Any, name: str, spec: SourceSpec, trust: bool, network: bool) -> Any:
    raw = _json(Path(name) / "config.json") if spec.path is not None else {}
    if raw.get("auto_map") and not trust:
        raise UntrustedSourceError(
            f"{spec.text} brings its own Python code ({', '.join(sorted(raw['auto_map']))})",
            hint="pass --trust to let it run, after you have read it",
        )
    try:
        return transformers.AutoConfig.from_pretrained(
            name, local_files_only=not network, trust_remote_code=trust
        )
    except Exception as error:
        raise SourceError(
            f"the config of {spec.text} cannot be read: {_line(error)}",
            hint="is it a model directory of transformers?",
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read: {error}", hint="download the model again") from error
    if not isinstance(read, dict):
        raise SourceError(f"{path} is not a configuration", hint="download the model again")
    return read


def _refuse_pickles(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickles = [n for n in _PICKLES if (folder / n).is_file()]
    if pickles:
        raise UntrustedSourceError(
            f"{folder} has no safetensors weights, only {pickles[0]}, which can execute code when loaded",
            hint="convert it to safetensors, or pass --trust",
        )
    raise SourceError(f"{folder} has no weights (*.safetensors)", hint="download the model completely")


def _module(transformers: Any, name: str, config: Any, trust: bool, network: bool) -> Any:
    architectures = list(getattr(config, "architectures", None) or [])
    chosen = next((getattr(transformers, a) for a in architectures if hasattr(transformers, a)), None)
    for key in ("use_cache", "return_dict"):
        if hasattr(config, key):
            setattr(config, key, key == "return_dict")
    import torch

    with guarded(f"loading hf:{name}"):
        return (chosen or transformers.AutoModel).from_pretrained(
            name,
            config=config,
            local_files_only=not network,
            trust_remote_code=trust,
            use_safetensors=None if trust else True,
            dtype=torch.float32,
            attn_implementation="eager",
        )


def _example(
    transformers: Any, name: str, config: Any, module: Any, trust: bool, network: bool
) -> dict[str, Any]:
    import inspect

    accepted = set(inspect.signature(module.forward).parameters)
    main = getattr(module, "main_input_name", "input_ids")
    if main == "input_ids":
        return {k: v for k, v in _tokens(transformers, name, config, trust, network).items() if k in accepted}
    if main == "pixel_values":
        return {"pixel_values": _image(config)}
    dummy = getattr(module, "dummy_inputs", None)
    if isinstance(dummy, Mapping) and main in dummy:
        return {k: v for k, v in dummy.items() if k in accepted}
    raise SourceError(
        f"no example inputs are known for {type(module).__name__} (its main input is {main!r})",
        hint="write a factory that returns (model, {name: tensor, …})",
    )


def _tokens(transformers: Any, name: str, config: Any, trust: bool, network: bool) -> dict[str, Any]:
    """The tokenizer's output for a sentence; seeded ids with a full mask where there is no tokenizer."""
    import torch

    folder = Path(name)
    # Without its files transformers makes an empty tokenizer up, whose ids mean nothing to the model.
    if not folder.is_dir() or any((folder / n).is_file() for n in _TOKENIZER_FILES):
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                name, local_files_only=not network, trust_remote_code=trust
            )
            return dict(tokenizer(_SENTENCE, return_tensors="pt"))
        except Exception as error:
            raise SourceError(
                f"the tokenizer of {name} cannot be loaded: {_line(error)}",
                hint="install what it needs, or remove its files to use random token ids as example inputs",
            ) from error
    size = int(getattr(config, "vocab_size", 0) or 2)
    ids = torch.randint(0, size, (1, 16), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _image(config: Any) -> Any:
    import torch

    size = getattr(config, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    channels = int(getattr(config, "num_channels", 3))
    return torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(0))


def _is_text(name: str) -> bool:
    return name.endswith(("_ids", "_mask"))


def _preprocessing(folder: Path | None, task: str) -> dict[str, Any]:
    if folder is None or not (folder / "preprocessor_config.json").is_file():
        return {}
    if task not in ("image-classification", "object-detection", "semantic-segmentation", "depth-estimation"):
        return {}
    from edgekit.preprocess.declared import from_mapping

    contract = from_mapping({"huggingface": str(folder)})
    return contract.to_mapping() if contract is not None else {}


@contextlib.contextmanager
def _offline(offline: bool) -> Iterator[None]:
    """Keep the hub client from the network and transformers from its chatter."""
    wanted = {"HF_HUB_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
    if offline:
        wanted |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    before = {k: os.environ.get(k) for k in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
