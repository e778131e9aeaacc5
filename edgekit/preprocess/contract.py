"""The preprocessing contract: how an 8-bit RGB image becomes the tensor that a model reads.

It is declared once and kept by everything that gives the model inputs: calibration on image folders, golden
vectors, and the wrappers in the app packages, which state the same arithmetic in other languages. Every
step is exact: resizing is integer arithmetic (:mod:`edgekit.preprocess.resample`), and what follows depends on one
byte and its channel only, so it is a table of 256 values a channel, computed in IEEE double as
``(value * scale - mean) / std`` and rounded once to the tensor's dtype.

The order is: grey conversion (if any), resize, crop, colour order, table, layout, batch axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgekit.core.structure import to_builtins
from edgekit.errors import ConfigError, DataError
from edgekit.preprocess import resample
from edgekit.types import Json, TensorSpec

if TYPE_CHECKING:
    from edgekit.types import Array

LUMA = (19595, 38470, 7471)
"""The parts of red, green and blue in grey, of 65536 (ITU-R 601-2)."""

MOST_PIXELS = 1 << 15
"""The longest side of an image that a contract may ask for: contracts come from anybody."""

_SMALLEST = 1e-12

FILTERS = ("nearest", "box", "bilinear", "bicubic")
DTYPES = ("float32", "uint8", "int8")
_CHOICES = {
    "fit": ("stretch", "pad"),
    "filter": FILTERS,
    "crop_rounding": ("floor", "half-even"),
    "color": ("rgb", "bgr", "gray"),
    "layout": ("NCHW", "NHWC"),
    "dtype": DTYPES,
}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """One image input's contract.

    ``resize`` is ``(height, width)`` or one number, the shortest edge's length (the other follows,
    rounded down); ``None`` keeps the image's size. ``fit`` says how a pair is reached: ``"stretch"``, or
    ``"pad"`` (keep the aspect ratio, centre, fill with ``pad_value``). ``filter`` and ``antialias`` are
    those of :func:`edgekit.preprocess.resample.resize`; its result is always rounded to 8 bits. ``crop`` is the
    central ``(height, width)``, its odd pixel placed by ``crop_rounding`` (``"floor"`` as Hugging Face,
    ``"half-even"`` as torchvision). ``mean`` and ``std`` have one value, or one a channel in the order of
    ``color``, in units of ``value * scale``. ``dtype`` is the tensor's; an integer tensor with a scale and
    zero point is quantized from the real value. ``input`` names the model input (empty: its only
    image-like one). ``gray`` is ITU-R 601-2 luma in 16-bit fixed point, as Pillow's ``convert("L")``.
    """

    resize: int | tuple[int, int] | None = None
    fit: str = "stretch"
    filter: str = "bilinear"
    antialias: bool = True
    pad_value: int = 0
    crop: tuple[int, int] | None = None
    crop_rounding: str = "floor"
    color: str = "rgb"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: str = "NCHW"
    dtype: str = "float32"
    input: str = ""

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"preprocessing: {name} = {getattr(self, name)!r} is not possible",
                    hint=f"one of: {', '.join(choices)}",
                )
        self._check_sizes()
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise ConfigError(
                    f"preprocessing: {name} has {len(values)} values for {self.channels} channel(s)",
                    hint="give one value, or one for each channel in the order of color",
                )
        self._check_numbers()
        if not 0 <= self.pad_value <= 255:
            raise ConfigError("preprocessing: pad_value is not a byte", hint="give 0 to 255")

    def _check_numbers(self) -> None:
        for name, values in (("std", self.std), ("scale", (self.scale,))):
            # So small that what is divided by it, or multiplied with it, is none or no number: as good as 0.
            if any(abs(v) < _SMALLEST for v in values):
                raise ConfigError(f"preprocessing: {name} must not be 0", hint="use 1 for no scaling")
        for name, values in (("mean", self.mean), ("std", self.std), ("scale", (self.scale,))):
            if not all(math.isfinite(v) for v in values):
                raise ConfigError(f"preprocessing: {name} is not finite", hint="give numbers")
        self._check_range()

    def _check_range(self) -> None:
        """Bytes have to stay apart, and within what float32 holds."""
        scale, means, stds = float(self.scale), *(np.asarray(v, np.float64) for v in (self.mean, self.std))
        with np.errstate(over="ignore", invalid="ignore"):
            ends = ((np.array([[0.0], [255.0]]) * scale - means) / stds).astype(np.float32)
        if not np.isfinite(ends).all() or (ends[0] == ends[1]).any():
            raise ConfigError(
                f"preprocessing: with mean = {list(self.mean)}, std = {list(self.std)} and scale = {scale:g} the bytes "
                f"0 and 255 become {ends[0].min():g} and {ends[1].max():g}",
                hint="give mean and std in units of value * scale, as they were in training",
            )

    def _check_sizes(self) -> None:
        sizes = [self.resize] if isinstance(self.resize, int) else list(self.resize or ())
        sizes += self.crop or ()
        if any(s < 1 for s in sizes):
            raise ConfigError("preprocessing: sizes must be positive", hint="give height, width in pixels")
        if any(s > MOST_PIXELS for s in sizes):
            raise ConfigError(
                f"preprocessing: a side has more than {MOST_PIXELS:,} pixels",
                hint="give height, width in pixels",
            )
        if isinstance(self.resize, int) and self.crop is None:
            raise ConfigError(
                "preprocessing: resizing the shortest edge leaves the size open",
                hint="add crop = [height, width], or give resize = [height, width]",
            )
        if self.resize is None and self.crop is None:
            raise ConfigError(
                "preprocessing: neither resize nor crop is given, so the size is unknown",
                hint="add resize = [height, width]",
            )
        if self.crop is not None and self.resize is not None:
            edge = (self.resize, self.resize) if isinstance(self.resize, int) else self.resize
            if edge[0] < self.crop[0] or edge[1] < self.crop[1]:
                raise ConfigError(
                    f"preprocessing: the crop {self.crop} is larger than the resized image {edge}",
                    hint="make resize at least as large as crop",
                )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the model's input."""
        size = self.crop if self.crop is not None else self.resize
        assert isinstance(size, tuple)
        return size

    @property
    def channels(self) -> int:
        """1 for grey images, else 3."""
        return 1 if self.color == "gray" else 3

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of one input tensor, batch of 1 included."""
        height, width = self.size
        if self.layout == "NCHW":
            return (1, self.channels, height, width)
        return (1, height, width, self.channels)

    def table(self, spec: TensorSpec | None = None) -> Array:
        """The value of every byte in every channel, ``[channels, 256]``, in the dtype of ``spec``.

        ``spec`` is the model's input: integer dtypes are quantized with its scale and zero point,
        rounded half to even and saturated.
        """
        value = np.arange(256, dtype=np.float64)[None]
        mean = np.asarray(self.mean, np.float64).reshape(-1, 1)
        std = np.asarray(self.std, np.float64).reshape(-1, 1)
        real = np.broadcast_to((value * self.scale - mean) / std, (self.channels, 256))
        dtype = np.dtype(spec.dtype if spec is not None else self.dtype)
        if dtype.kind in "iu":
            # Rounded once, from the double: half to even, as QuantizeLinear of ONNX.
            if spec is not None and spec.scale is not None:
                real = np.rint(real / spec.scale) + (spec.zero_point or 0)
            limits = np.iinfo(dtype)
            real = np.clip(np.rint(real), limits.min, limits.max)
        return real.astype(dtype)

    def fit_image(self, image: Array) -> Array:
        """Grey conversion, resize, crop and colour order: uint8 ``[H, W, 3]`` RGB to uint8 ``[h, w, C]``.

        Raises :class:`DataError` for another dtype or shape, and for an image smaller than the crop.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise DataError(
                f"an image must be uint8 [height, width, 3], not {image.dtype}{list(image.shape)}",
                hint="convert it to RGB, 8 bits a channel",
            )
        if self.color == "gray":
            image = luma(image)
        image = self._resized(image)
        if self.crop is not None:
            image = _cropped(image, self.crop, self.crop_rounding)
        return np.ascontiguousarray(image[..., ::-1] if self.color == "bgr" else image)

    def apply(self, image: Array, spec: TensorSpec | None = None) -> Array:
        """The tensor that the model reads, batch of 1 included, for uint8 ``[H, W, 3]`` RGB."""
        return self._looked_up(self.fit_image(image)[None], self.table(spec))

    def invert(self, tensor: Array, spec: TensorSpec | None = None) -> Array | None:
        """An RGB image that :meth:`apply` turns into ``tensor``, bit for bit.

        It has the size at which resizing changes nothing; what the crop cuts away repeats the edge.
        ``None`` when ``tensor`` did not come from 8-bit pixels through this contract.
        """
        if tensor.shape != self.shape:
            return None
        planes = tensor[0] if self.layout == "NCHW" else tensor[0].transpose(2, 0, 1)
        pixels = np.stack([_lookup(t, p) for t, p in zip(self.table(spec), planes, strict=True)], axis=-1)
        rgb = np.repeat(pixels, 3, axis=-1) if self.color == "gray" else pixels
        image = self._uncropped(np.ascontiguousarray(rgb[..., ::-1] if self.color == "bgr" else rgb))
        return image if np.array_equal(self.apply(image, spec), tensor) else None

    def unapply(self, tensor: Array) -> Array:
        """The pixels behind a float tensor: float32 ``[N, h, w, 3]`` in RGB order, 0 to 255; greys are three times
        the same.

        For models whose preprocessing was folded into the graph. Values within a thousandth of a whole
        number become that number, so that tensors made of 8-bit pixels give these pixels back.
        """
        planes = tensor.transpose(0, 2, 3, 1) if self.layout == "NCHW" else tensor
        mean, std = np.asarray(self.mean, np.float64), np.asarray(self.std, np.float64)
        pixels = (planes.astype(np.float64) * std + mean) / self.scale
        whole = np.rint(pixels)
        # float32 keeps a byte's value to about 1e-5: nearer than a thousandth is the byte itself.
        pixels = np.where(np.abs(pixels - whole) < 1e-3, whole, pixels)
        pixels = pixels[..., ::-1] if self.color == "bgr" else pixels
        pixels = pixels.repeat(3, axis=-1) if self.color == "gray" else pixels
        return np.ascontiguousarray(pixels, dtype=np.float32)

    def feed(self, pixels: Array) -> Array:
        """What the model reads for pixels: ``[N, h, w, 3]`` in RGB order, 0 to 255, to float32 in its layout.

        The inverse of :meth:`unapply` for 8-bit pixels, and the second half of :meth:`apply`. Floats may lie
        between two bytes, or outside of them; greys become whole numbers all the same.
        """
        ordered = luma(pixels) if self.color == "gray" else pixels
        ordered = ordered[..., ::-1] if self.color == "bgr" else ordered
        if ordered.dtype == np.uint8:
            return self._looked_up(ordered, self.table().astype(np.float32))
        real = ordered.astype(np.float64) * self.scale - np.asarray(self.mean)
        return self._laid_out((real / np.asarray(self.std)).astype(np.float32))

    def _looked_up(self, pixels: Array, table: Array) -> Array:
        """The table's values of bytes ``[N, h, w, C]``, in the model's layout."""
        return self._laid_out(np.stack([table[c][pixels[..., c]] for c in range(self.channels)], axis=-1))

    def _laid_out(self, values: Array) -> Array:
        """``[N, h, w, C]`` in the model's layout."""
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2) if self.layout == "NCHW" else values)

    def folded(self, input_name: str, dtype: str = "float32") -> Preprocessing:
        """The contract that is left once colour, table and layout are part of the graph."""
        plain = replace(self, color="rgb", scale=1.0, mean=(0.0,), std=(1.0,), layout="NHWC")
        return replace(plain, input=input_name, dtype=dtype)

    @property
    def is_folded(self) -> bool:
        """Whether the model takes pixels 0 to 255 as they are, channels last."""
        plain = self.scale == 1 and set(self.mean) == {0.0} and set(self.std) == {1.0}
        return plain and self.layout == "NHWC" and self.color != "bgr"

    def to_mapping(self) -> dict[str, Json]:
        """All fields as JSON values; :func:`from_mapping` reads them back."""
        return dict(to_builtins(self))

    def _resized(self, image: Array) -> Array:
        height, width = image.shape[:2]
        if self.resize is None:
            return image
        target = self.scaled_size(height, width)
        scaled = resample.resize(image, *target, filter=self.filter, antialias=self.antialias)
        if self.fit != "pad" or isinstance(self.resize, int):
            return scaled
        canvas = np.full((*self.resize, image.shape[2]), self.pad_value, np.uint8)
        top, left = (self.resize[0] - target[0]) // 2, (self.resize[1] - target[1]) // 2
        canvas[top : top + target[0], left : left + target[1]] = scaled
        return canvas

    def _uncropped(self, image: Array) -> Array:
        """``image`` in the middle of one of the size that is cropped from."""
        if self.crop is None or self.resize is None:
            return image
        size = (self.resize, self.resize) if isinstance(self.resize, int) else self.resize
        margins = [(s - c, offset(s - c, self.crop_rounding)) for s, c in zip(size, self.crop, strict=True)]
        return np.pad(image, [*((first, all_ - first) for all_, first in margins), (0, 0)], mode="edge")

    def scaled_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image of this size is scaled to, before it is padded or cropped."""
        if self.resize is None:
            return height, width
        if isinstance(self.resize, int):
            edge = self.resize  # in integers, rounded down, as torchvision and transformers do
            return (edge, edge * width // height) if height <= width else (edge * height // width, edge)
        if self.fit == "stretch":
            return self.resize
        to_height, to_width = self.resize
        if to_width * height <= to_height * width:
            return max(1, (2 * height * to_width + width) // (2 * width)), to_width
        return to_height, max(1, (2 * width * to_height + height) // (2 * height))


def luma(pixels: Array) -> Array:
    """RGB ``[..., 3]`` to grey ``[..., 1]``, rounded to whole numbers: bytes to bytes, floats to float32."""
    if pixels.dtype == np.uint8:
        sums = np.full(pixels.shape[:-1], 0x8000, np.uint32)  # 255 * 65536 and a half fit
        for channel, part in enumerate(LUMA):
            sums += np.multiply(pixels[..., channel], part, dtype=np.uint32)
        return (sums >> 16).astype(np.uint8)[..., None]
    sums = (pixels.astype(np.float32) * (np.array(LUMA, np.float32) / (1 << 16))).sum(-1, dtype=np.float32)
    return np.asarray(np.floor(sums + np.float32(0.5)))[..., None]


def bound(contract: Preprocessing, inputs: Sequence[TensorSpec]) -> Preprocessing:
    """The contract with the name, layout and dtype of the model input that it is for.

    Raises :class:`ConfigError` where no input takes what it gives.
    """
    by_name = {s.name: s for s in inputs}
    if contract.input and contract.input not in by_name:
        raise no_input(contract.input, inputs)
    candidates = [by_name[contract.input]] if contract.input else list(by_name.values())
    for spec in candidates:
        # The layout that was stated, then both: the exported graph may have the other.
        for layout in (contract.layout, "NHWC", "NCHW"):
            tried = replace(contract, layout=layout, input=spec.name)
            if _takes(spec, tried.shape):
                return replace(tried, dtype=_dtype(spec))
    raise ConfigError(
        f"preprocessing gives {list(contract.shape)}, the model takes {', '.join(map(str, candidates))}",
        hint="make resize, crop and color those of the exported model",
    )


def no_input(name: str, inputs: Sequence[TensorSpec]) -> ConfigError:
    """What to raise for a contract of an input that the model does not have."""
    return ConfigError(
        f"preprocessing: the model has no input {name!r}", hint=f"one of: {', '.join(s.name for s in inputs)}"
    )


def _dtype(spec: TensorSpec) -> str:
    if spec.dtype not in DTYPES:
        raise ConfigError(
            f"the image input {spec} is {spec.dtype}; images are given as {', '.join(DTYPES)}",
            hint="export the model with a float32 input",
        )
    return spec.dtype


def _takes(spec: TensorSpec, shape: tuple[int, ...]) -> bool:
    return len(spec.shape) == len(shape) and all(
        isinstance(d, str) or d == s for d, s in zip(spec.shape, shape, strict=True)
    )


def _cropped(image: Array, size: tuple[int, int], rounding: str) -> Array:
    height, width = image.shape[:2]
    if height < size[0] or width < size[1]:
        raise DataError(
            f"an image of {height}x{width} is smaller than the crop of {size[0]}x{size[1]}",
            hint="use larger images, or resize before cropping",
        )
    top, left = offset(height - size[0], rounding), offset(width - size[1], rounding)
    return image[top : top + size[0], left : left + size[1]]


def offset(margin: int, rounding: str) -> int:
    """Half of the margin: down, or to even as ``round(margin / 2)`` does."""
    half = margin // 2
    return half + (half % 2 if rounding == "half-even" and margin % 2 else 0)


def _lookup(table: Array, plane: Array) -> Array:
    """For each value the byte whose table entry is nearest."""
    order = np.argsort(table, kind="stable")
    ordered = table[order].astype(np.float64)
    right = np.clip(np.searchsorted(ordered, plane), 1, 255)
    nearer = (plane - ordered[right - 1]) <= (ordered[right] - plane)
    return order[np.where(nearer, right - 1, right)].astype(np.uint8)
