"""``hf:DIR``: a Hugging Face model directory, read from disk only and without its own code unless trusted."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, cast

import torch

from edgekit.core.foreign import translated
from edgekit.errors import MissingExtraError, SourceError, UntrustedSourceError
from edgekit.load import module as modules
from edgekit.load.huggingface_sizes import refuse_hollow, refuse_missing
from edgekit.load.shapes import PADDING
from edgekit.load.usercode import guarded
from edgekit.preprocess.declared import from_mapping
from edgekit.types import Json, Permit, SourceSpec, TorchModel

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
"""Task by the end of the class's name; the first that fits, so longer endings come first."""

_IMAGE_TASKS = ("image-classification", "object-detection", "semantic-segmentation", "depth-estimation")
_SENTENCE = "The quick brown fox jumps over the lazy dog."
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
_PICKLES = ("pytorch_model.bin", "model.ckpt", "tf_model.h5", "flax_model.msgpack")


@dataclass(frozen=True, kw_only=True)
class _Hub:
    """How transformers is asked for the parts of one model: a directory, or a name on the hub."""

    transformers: ModuleType
    name: str
    permit: Permit

    @property
    def limits(self) -> dict[str, bool]:
        """The arguments of ``from_pretrained`` that keep it from the network and from the model's own code."""
        return {"local_files_only": not self.permit.network, "trust_remote_code": self.permit.trust}


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
    with offline(not permit.network):
        try:
            import transformers  # inside: it reads the environment when it is imported
        except ImportError as error:
            raise MissingExtraError("transformers", "huggingface") from error
        transformers.utils.logging.disable_progress_bar()
        hub = _Hub(transformers=transformers, name=str(spec.path or spec.attribute), permit=permit)
        config = _config(hub, spec)
        with translated(f"{spec.text} cannot be loaded", hint="download the model again"):
            module = _module(hub, config)
            inputs, padding = _example(hub, config, module)
            labels = _labels(config)
    model = modules.bind(module, inputs, what=spec.text)
    axes = {
        key: {0: "batch", 1: "sequence"} if tensor.dim() == 2 and _is_text(key) else {0: "batch"}
        for key, tensor in model.example_inputs.items()
    }
    task = _task(type(module).__name__)
    return modules.complete(
        model,
        task=task,
        dynamic_axes=axes,
        labels=labels if "classification" in task else (),
        preprocessing={**_preprocessing(spec.path, task), **padding},
    )


def _labels(config: object) -> tuple[str, ...]:
    names = getattr(config, "id2label", None) or {}
    return tuple(str(names[i]) for i in sorted(names))


def _task(architecture: str) -> str:
    return next((task for suffix, task in _TASKS.items() if architecture.endswith(suffix)), "")


def _config(hub: _Hub, spec: SourceSpec) -> object:
    """The model's ``PretrainedConfig``. Raises where it names Python code of its own that is not trusted."""
    own_code = _json(spec.path / "config.json").get("auto_map") if spec.path is not None else None
    if own_code and not hub.permit.trust:
        names = sorted(own_code) if isinstance(own_code, Mapping) else [str(own_code)]
        raise UntrustedSourceError(
            f"{spec.text} brings its own Python code ({', '.join(names)})",
            hint="pass --trust to let it run, after you have read it",
        )
    if spec.path is not None and not hub.permit.trust:
        _refuse_pickles(spec.path)
        refuse_hollow(spec.path, _json(spec.path / "config.json"))
    with translated(
        f"the config of {spec.text} cannot be read", hint="is it a model directory of transformers?"
    ):
        config: object = hub.transformers.AutoConfig.from_pretrained(hub.name, **hub.limits)
    return config


def _json(path: Path) -> dict[str, Json]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path} cannot be read: {error}", hint="download the model again") from error
    if not isinstance(document, dict):
        raise SourceError(f"{path} is not a configuration", hint="download the model again")
    return document


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


def _module(hub: _Hub, config: object) -> torch.nn.Module:
    named = [getattr(hub.transformers, str(a), None) for a in getattr(config, "architectures", None) or []]
    # A config names whatever it likes; what is loaded is a model.
    models = hub.transformers.PreTrainedModel
    classes: list[Any] = [c for c in named if isinstance(c, type) and issubclass(c, models)]
    # The key-value cache would become an output of the graph; named results give the outputs their names.
    for key, value in (("use_cache", False), ("return_dict", True)):
        if hasattr(config, key):
            setattr(config, key, value)
    # The traceback is worth showing where it may be that of the model's own code.
    what = f"loading hf:{hub.name}"
    with guarded(what) if hub.permit.trust else translated(f"{what} failed", hint="download the model again"):
        module, found = (classes or [hub.transformers.AutoModel])[0].from_pretrained(
            hub.name,
            output_loading_info=True,
            config=config,
            use_safetensors=None if hub.permit.trust else True,
            dtype=torch.float32,
            # Fused attention is exported as operators that runtimes do not have.
            attn_implementation="eager",
            **hub.limits,
        )
        refuse_missing(f"hf:{hub.name}", found)
    return cast("torch.nn.Module", module)


def _example(
    hub: _Hub, config: object, module: torch.nn.Module
) -> tuple[dict[str, torch.Tensor], dict[str, Json]]:
    """Example inputs, and how the tokenizer pads them (see :mod:`edgekit.load.shapes`) where they are text."""
    parameters = inspect.signature(module.forward).parameters
    main = getattr(module, "main_input_name", "input_ids")
    if main == "pixel_values":
        return {main: _image(config)}, {}
    tokenizer = _tokenizer(hub) if main == "input_ids" else None
    inputs = _tokens(tokenizer, config) if main == "input_ids" else getattr(module, "dummy_inputs", None)
    if isinstance(inputs, Mapping) and main in inputs:
        taken = {k: v for k, v in inputs.items() if k in parameters}
        return taken, _padding(tokenizer, config, [k for k in taken if _is_text(k)])
    raise SourceError(
        f"no example inputs are known for {type(module).__name__} (its main input is {main!r})",
        hint="write a factory that returns (model, {name: tensor, …})",
    )


class _Tokenizer(Protocol):
    """What is asked of a tokenizer of transformers."""

    def __call__(self, text: str, *, return_tensors: str) -> Mapping[str, torch.Tensor]: ...


def _tokenizer(hub: _Hub) -> _Tokenizer | None:
    folder = Path(hub.name)
    # Without its files transformers makes an empty tokenizer up, whose ids mean nothing to the model.
    if folder.is_dir() and not any((folder / n).is_file() for n in _TOKENIZER_FILES):
        return None
    with translated(
        f"the tokenizer of {hub.name} cannot be loaded",
        hint="install what it needs, or remove its files to use random token ids as example inputs",
    ):
        tokenizer: _Tokenizer = hub.transformers.AutoTokenizer.from_pretrained(hub.name, **hub.limits)
        return tokenizer


def _tokens(tokenizer: _Tokenizer | None, config: object) -> dict[str, torch.Tensor]:
    """The tokenizer's output for a sentence; seeded ids with a full mask where there is no tokenizer."""
    if tokenizer is not None:
        return dict(tokenizer(_SENTENCE, return_tensors="pt"))
    size = int(getattr(config, "vocab_size", 0) or 2)
    ids = torch.randint(0, size, (1, 16), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _padding(tokenizer: _Tokenizer | None, config: object, names: list[str]) -> dict[str, Json]:
    """What the tokenizer fills each of the inputs ``names`` with: its padding token, and zeros in masks."""
    if "attention_mask" not in names:  # the model would read the padding as text
        return {}
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is None:
        pad = getattr(config, "pad_token_id", None)
    values = dict.fromkeys(names, 0)
    values |= {
        "input_ids": int(pad or 0),
        "token_type_ids": int(getattr(tokenizer, "pad_token_type_id", 0) or 0),
    }
    side = str(getattr(tokenizer, "padding_side", "right"))
    return {PADDING: {"values": {k: values[k] for k in names}, "side": side}}


def _image(config: object) -> torch.Tensor:
    """A seeded ``[1, channels, height, width]`` image of the size that the config states, else of 224."""
    size = getattr(config, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    channels = int(getattr(config, "num_channels", 3))
    return torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(0))


def _is_text(name: str) -> bool:
    return name.endswith(("_ids", "_mask"))


def _preprocessing(folder: Path | None, task: str) -> dict[str, Json]:
    if folder is None or task not in _IMAGE_TASKS or not (folder / "preprocessor_config.json").is_file():
        return {}
    contract = from_mapping({"huggingface": str(folder)})
    return contract.to_mapping() if contract is not None else {}


@contextlib.contextmanager
def offline(offline: bool) -> Iterator[None]:
    """Keep the hub client from the network and transformers from its chatter."""
    settings = {"HF_HUB_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
    if offline:
        settings |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    before = {k: os.environ.get(k) for k in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
