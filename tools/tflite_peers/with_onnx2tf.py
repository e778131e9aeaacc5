"""Runs in onnx2tf's environment: ``with_onnx2tf.py FOLDER`` turns FOLDER/model.onnx into fp32 and int8 files.

Its default back end writes the flatbuffer itself; the older one goes through TensorFlow's converter. Both are
asked: ``onnx2tf`` and ``onnx2tf-tf`` (which needs its extra ``tensorflow``).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

SECONDS = 900
BACKENDS = {"onnx2tf": "flatbuffer_direct", "onnx2tf-tf": "tf_converter"}


def main() -> None:
    folder = Path(sys.argv[1])
    samples = np.load(folder / "calibration.npz")
    floats = [n for n in samples.files if samples[n].dtype.kind == "f"]
    for label, backend in BACKENDS.items():
        for precision in ("fp32", "int8"):
            convert(folder, label, backend, precision, samples, floats)


def convert(
    folder: Path, label: str, backend: str, precision: str, samples: object, floats: list[str]
) -> None:
    """One run of the command; its own errors are told and leave no file."""
    out = folder / f"{label}-{precision}"
    argv = [str(Path(sys.executable).with_name("onnx2tf")), "-i", str(folder / "model.onnx"), "-o", str(out)]
    argv += ["-tb", backend, "-nuo", "-v", "error"]
    if precision == "int8":
        argv += ["-oiqt", "-qt", "per-channel"]
        for name in floats:
            array = samples[name]  # type: ignore[index]
            last = array.transpose(0, 2, 3, 1) if array.ndim == 4 else array
            np.save(folder / f"{name}.npy", last)
            shape = [1] * (last.ndim - 1) + [last.shape[-1]]
            mean, std = np.zeros(shape).tolist(), np.ones(shape).tolist()
            argv += ["-cind", name, str(folder / f"{name}.npy"), str(mean), str(std)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, cwd=folder)
    except subprocess.TimeoutExpired:
        print(f"{label} {precision}: no file after {SECONDS} s", flush=True)
        return
    pattern = "*_integer_quant.tflite" if precision == "int8" else "*_float32.tflite"
    made = [p for p in sorted(out.glob(pattern)) if "full_integer" not in p.name]
    if done.returncode or not made:
        tail = " | ".join((done.stdout + done.stderr).strip().splitlines()[-3:])
        print(f"{label} {precision}: no file: {tail[-400:]}", flush=True)
        return
    shutil.copyfile(made[0], folder / f"{label}-{precision}.tflite")
    print(f"{label} {precision}: {made[0].stat().st_size} bytes", flush=True)


if __name__ == "__main__":
    main()
