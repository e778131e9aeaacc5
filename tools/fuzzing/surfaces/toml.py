"""TOML of a project that came from somebody: options, targets, devices and recipes; Python's own pyproject.toml."""

from __future__ import annotations

import random
from pathlib import Path

from edgekit.compress import recipes
from edgekit.core import targets
from edgekit.core.config import Options
from fuzzing import commands
from fuzzing.mutators import texts
from fuzzing.surfaces import Plain

_OPTIONS = """
target = ["ort-int8", "tflite-int8"]
calib = "data.py:calibration"
samples = 64
max_drop = 0.01
exclude = ["head.*", "Softmax"]
speed_gate = false
set = {ort_format = true, pixels = "uint8"}
limit = {snr = 20.0, size = "300KB", latency = "5ms"}
shape = {x = "1x3x8x8"}
preprocessing = {resize = [8, 8], mean = [0.5, 0.5, 0.5], color = "rgb", layout = "NCHW"}
"""
_ROWS = """
backend = "onnxruntime"
runs_on = "cpu"
[[target]]
name = "ort-mine"
precision = "int8"
file = "model.onnx"
why = "mine"
runtime = {threads = 1}
options = [{name = "io", default = "float32", choices = ["float32", "int8"], help = "of inputs"}]
[target.scheme]
activation = "int8"
activation_symmetric = true
weight = "int8"
bias = "float32"
rules = "tensorrt"
[target.tolerance]
snr_db = 12.0
metric_drop = 0.01
[[target.on]]
arch = "x86_64"
lacks = ["vnni"]
weight_bits = 7
why = "saturates"
"""
_DEVICE = """
name = "board"
address = "user@board"
kind = "linux-ssh"
port = 22
python = "python3"
cool_down_celsius = 50.0
"""
_RECIPE = """
seed = 1
[[step]]
name = "prune"
sparsity = 0.5
[[step]]
name = "cluster"
values = 8
[ship]
target = "ort-fp32"
pack = true
"""

_FOLDERS = {"row.toml": "targets", "board.toml": "devices"}
"""Where a project keeps them, below ``.edgekit``."""


class Surface(Plain):
    def seeds(self, folder: Path) -> dict[str, bytes]:
        del folder
        project = "[project]\nname = 'x'\n[tool.edgekit]\n" + _OPTIONS
        found = {
            "edgekit.toml": _OPTIONS,
            "pyproject.toml": project,
            "row.toml": _ROWS,
            "board.toml": _DEVICE,
            "recipe.toml": _RECIPE,
        }
        return {name: text.encode() for name, text in found.items()}

    def mutate(self, rng: random.Random, name: str, data: bytes) -> bytes:
        del name
        return texts.toml(rng, data)

    def place(self, name: str, data: bytes, box: Path) -> None:
        super().place(name, data, box)
        if name in _FOLDERS:
            folder = box / ".edgekit" / _FOLDERS[name]
            folder.mkdir(parents=True)
            (folder / name).write_bytes(data)

    def consume(self, name: str, data: bytes, box: Path) -> None:
        del data
        if name == "row.toml":
            commands.each(
                lambda: targets.read_rows(box / name, "somebody"), lambda: commands.run("targets", "--why")
            )
            targets._targets.cache_clear()
        elif name == "board.toml":
            commands.each(
                lambda: commands.run("devices", "list"), lambda: commands.run("devices", "list", "--json")
            )
        elif name == "recipe.toml":
            recipes.read(str(box / name))
        else:
            Options.load(project=box)

    def command(self, name: str, data: bytes, box: Path) -> list[str]:
        del data
        if name == "recipe.toml":
            return [
                "compress",
                "nothing.py:nothing",
                "--recipe",
                str(box / name),
                "--out",
                str(box / "out" / "plan"),
            ]
        return {"row.toml": ["targets"], "board.toml": ["devices", "list"]}.get(
            name, ["build", "nothing.onnx"]
        )
