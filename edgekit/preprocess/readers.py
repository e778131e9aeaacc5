"""Preprocessing contracts from the files that model hubs ship: Hugging Face processors and timm."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path

from edgekit.core import files
from edgekit.errors import ConfigError
from edgekit.preprocess.contract import MOST_PIXELS, Preprocessing
from edgekit.types import Json

# PIL.Image.Resampling, which processor configurations store by number.
_PIL_FILTERS: dict[object, str] = {0: "nearest", 2: "bilinear", 3: "bicubic", 4: "box"}
_TIMM_FILTERS: dict[object, str] = {
    "nearest": "nearest",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
    "box": "box",
}
_FILES = {"huggingface": "preprocessor_config.json", "timm": "config.json"}
_MOST_BYTES = 1 << 20
_LARGEST = 1e6
"""No mean, deviation or factor of 8-bit pixels is larger."""
_LEAST_FRACTION = 0.01


def file_in(path: Path, kind: str) -> Path:
    """The file that a key of :data:`READERS` names: itself, or by its usual name in a folder."""
    try:
        return path / _FILES[kind] if path.is_dir() else path
    except OSError:  # a name that no file can have
        return path


def from_huggingface(path: Path) -> Preprocessing:
    """The contract of a ``preprocessor_config.json`` (or the directory that holds it).

    Follows transformers' image processors: resize, centre crop, rescale, normalise, flip of the channel
    order. Raises :class:`ConfigError` for steps that the contract cannot say (padding to a batch,
    Lanczos, a longest edge).
    """
    file = file_in(path, "huggingface")
    config = _read(file)
    resize, crop = _hf_resize(config, file), None
    if config.get("do_center_crop"):
        crop = _pair(config.get("crop_size", config.get("size")), file)
    if isinstance(resize, int) and crop is None:
        if config.get("crop_pct") is None:
            raise _cannot(file, "resizes the shortest edge and does not crop: the size stays open")
        fraction = _fraction(config["crop_pct"], file)
        # ConvNeXt's processor: from 384 pixels on it stretches, without a crop.
        crop = (resize, resize)
        resize = _size(int(resize / fraction), "crop_pct", file) if resize < 384 else (resize, resize)
    rescale = config.get("do_rescale", True)
    normalise = config.get("do_normalize", True)
    # EfficientNet's and ViViT's "offset" subtracts 1 after rescaling, before the mean.
    shift = 1.0 if rescale and (config.get("offset") or config.get("rescale_offset")) else 0.0
    mean = _floats(config.get("image_mean", [0.0]), "image_mean", file) if normalise else (0.0,)
    flip = bool(config.get("do_flip_channel_order"))
    return Preprocessing(
        resize=resize,
        filter=_filter(config.get("resample", 2), _PIL_FILTERS, file),
        crop=crop,
        color="bgr" if flip else "rgb",
        scale=_number(config.get("rescale_factor", 1 / 255), "rescale_factor", file) if rescale else 1.0,
        mean=tuple(m + shift for m in mean),
        std=_floats(config.get("image_std", [1.0]), "image_std", file) if normalise else (1.0,),
    )


def from_timm(path: Path) -> Preprocessing:
    """The evaluation transform of a timm ``config.json`` (``pretrained_cfg``), as ``timm.data`` builds it.

    ``crop_mode`` ``center`` and ``squash`` are understood; ``border`` raises :class:`ConfigError`.
    """
    file = file_in(path, "timm")
    document = _read(file)
    config = document.get("pretrained_cfg", document)
    if not isinstance(config, Mapping) or "input_size" not in config:
        raise _cannot(file, "has no input_size")
    size = config["input_size"]
    if not isinstance(size, list | tuple) or len(size) != 3:
        raise _cannot(file, f"has the input_size {_shown(size)}")
    channels, height, width = (_size(n, "input_size", file) for n in size)
    fraction = _fraction(config.get("crop_pct") or 0.875, file)
    scaled = tuple(_size(int(n / fraction), "crop_pct", file) for n in (height, width))
    mode = config.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise _cannot(file, f"uses crop_mode {_shown(mode)}")
    if mode == "center" and height != width:
        raise _cannot(file, "crops a size that is not square from the centre")
    return Preprocessing(
        resize=(scaled[0], scaled[1]) if mode == "squash" else scaled[0],
        filter=_filter(config.get("interpolation", "bicubic"), _TIMM_FILTERS, file),
        crop=(height, width),
        crop_rounding="half-even",  # torchvision's center_crop uses Python's round()
        color="rgb" if channels == 3 else "gray",
        mean=_floats(config.get("mean", [0.485, 0.456, 0.406]), "mean", file),
        std=_floats(config.get("std", [0.229, 0.224, 0.225]), "std", file),
    )


READERS: Mapping[str, Callable[[Path], Preprocessing]] = {
    "huggingface": from_huggingface,
    "timm": from_timm,
}
"""Keys of a preprocessing table that name a file to read."""


def named(mapping: Mapping[str, object]) -> tuple[str, ...]:
    """What a preprocessing table names of files: each place, and the file in it where it is a folder."""
    places = [(str(mapping[kind]), _FILES[kind]) for kind in READERS if kind in mapping]
    return tuple(text for place, file in places for text in (place, str(Path(place, file))))


def _hf_resize(config: Mapping[str, Json], file: Path) -> int | tuple[int, int] | None:
    if not config.get("do_resize", True) or config.get("size") is None:
        return None
    size = config["size"]
    if isinstance(size, Mapping) and "shortest_edge" in size:
        if "longest_edge" in size:
            raise _cannot(file, "limits the longest edge: the tensor's size depends on the image")
        return _size(size["shortest_edge"], "shortest_edge", file)
    if isinstance(size, int) and config.get("do_center_crop"):
        return _size(size, "size", file)
    return _pair(size, file)


def _pair(size: Json, file: Path) -> tuple[int, int]:
    if isinstance(size, int):
        edge = _size(size, "size", file)
        return edge, edge
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        return _size(size["height"], "height", file), _size(size["width"], "width", file)
    if isinstance(size, Mapping) and "shortest_edge" in size:
        edge = _size(size["shortest_edge"], "shortest_edge", file)
        return edge, edge
    raise _cannot(file, f"has the size {_shown(size)}")


def _size(value: Json, name: str, file: Path) -> int:
    """Pixels, or channels: so many as an image has."""
    size = int(_number(value, name, file))
    if not 1 <= size <= MOST_PIXELS:
        raise _cannot(file, f"has the {name} {_shown(value)}")
    return size


def _floats(value: Json, name: str, file: Path) -> tuple[float, ...]:
    return tuple(_number(v, name, file) for v in (value if isinstance(value, list | tuple) else [value]))


def _number(value: Json, name: str, file: Path) -> float:
    """A finite number. The file comes from a model's author, and may hold anything."""
    # Compared before it is made a float: an integer may be larger than any.
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST <= value <= _LARGEST:
        raise _cannot(file, f"has the {name} {_shown(value)}")
    return float(value)


def _shown(value: object) -> str:
    return reprlib.repr(value)


def _fraction(value: Json, file: Path) -> float:
    """The part of the resized image that the crop keeps."""
    fraction = _number(value, "crop_pct", file)
    if fraction < _LEAST_FRACTION:
        raise _cannot(file, f"has the crop_pct {_shown(value)}")
    return fraction


def _filter(value: Json, table: Mapping[object, str], file: Path) -> str:
    if not isinstance(value, int | str) or value not in table:
        raise _cannot(file, f"resamples with {_shown(value)}")
    return table[value]


def _read(file: Path) -> dict[str, Json]:
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ConfigError(
                f"{file} has more than {_MOST_BYTES >> 20} MiB", hint="name a processor's configuration file"
            )
        document = json.loads(files.read(file))
    except OSError as e:
        raise ConfigError(
            f"cannot read {file}: {e.strerror}", hint="name the model's directory or the file"
        ) from e
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"{file} is not JSON: {e}", hint="name a processor's configuration file") from e
    if not isinstance(document, dict):
        raise ConfigError(f"{file} is not a JSON object", hint="name a processor's configuration file")
    return document


def _cannot(file: Path, what: str) -> ConfigError:
    return ConfigError(
        f"{file}: {what}, which the preprocessing contract cannot express",
        hint="write the [preprocessing] table by hand for the size that the model is exported with",
    )
