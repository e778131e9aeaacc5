"""Runs in litert-torch's environment: ``with_litert_torch.py NAME FOLDER`` converts the module itself, then
quantizes the file with litert-quantizer (ai-edge-quantizer's new name), float inputs and outputs kept."""

from __future__ import annotations

import sys
from pathlib import Path

import litert_torch
import networks
import numpy as np
import torch
from litert_quantizer import recipe
from litert_quantizer.quantizer import Quantizer
from safetensors.torch import load_file


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    module, inputs = networks.build(name)
    module.load_state_dict(load_file(folder / "state.safetensors"))
    module.eval()
    lite = folder / "litert-torch-fp32.tflite"
    with torch.no_grad():
        litert_torch.convert(module, sample_kwargs=inputs).export(str(lite))
    print(f"litert-torch fp32: {lite.stat().st_size} bytes", flush=True)

    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(lite))
    key = next(iter(interpreter.get_signature_list()))
    taken = {n: d["dtype"] for n, d in interpreter.get_signature_runner(key).get_input_details().items()}
    samples = np.load(folder / "calibration.npz")
    count = len(samples[samples.files[0]])
    order = {n: next((f for f in samples.files if f in n), samples.files[i]) for i, n in enumerate(taken)}
    data = [{n: samples[f][i : i + 1].astype(taken[n]) for n, f in order.items()} for i in range(count)]
    quantizer = Quantizer(str(lite))
    quantizer.load_quantization_recipe(recipe.static_wi8_ai8())
    made = quantizer.quantize(quantizer.calibrate({key: data}, num_threads=2)).quantized_model
    (folder / "litert-torch-int8.tflite").write_bytes(bytes(made))
    print(f"litert-torch int8: {len(made)} bytes", flush=True)


if __name__ == "__main__":
    main()
