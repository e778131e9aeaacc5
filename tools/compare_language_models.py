"""Language models side by side: size, perplexity on real text, CPU time of prompt and new tokens.

    python tools/compare_language_models.py --reference HF_DIR edgekit=build/ort-genai-int4 builder=PEER_DIR \\
        openvino=build/openvino-genai-int4 llama=model.gguf --node-modules DIR

A folder is onnxruntime-genai's, or OpenVINO GenAI's; a ``.gguf`` file is run by llama.cpp, which the npm package
``node-llama-cpp`` in ``--node-modules`` carries. Its perplexity is not measured here.

Every figure is taken in a fresh process with one thread; the folders take turns (ABBA), so that a busy machine is busy
for all. CPU time is the process's own, not the clock's. Perplexity is of ``--tokens`` tokens in passages of 256, after
32 of each: by the runtime on each graph with the logits of all positions (a graph that gives the last alone is given
the rest of its rows), and in PyTorch. New tokens are those of the text, whatever the model says: in OpenVINO through
the stateful model, which is what ``LLMPipeline`` runs with ``ATTENTION_BACKEND="SDPA"``. The text is what edgekit
measures on: every other topic of Python's manual.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PASSAGE, PROMPT = 256, 32
ASKED, NEW = 37, 64
LONG = 128
OPENVINO = "openvino_model.xml"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", metavar="NAME=PATH")
    parser.add_argument("--node-modules", default="", help="has node-llama-cpp in it, for .gguf files")
    parser.add_argument(
        "--reference", type=Path, required=True, help="the model's folder, for PyTorch and its tokenizer"
    )
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=2, help="of two processes a folder each")
    parser.add_argument("--child", choices=("perplexity", "torch", "speed"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        work = {"perplexity": perplexity, "torch": torch_perplexity, "speed": speed}[asked.child]
        print(json.dumps(work(asked)))
        return
    named = dict(f.split("=", 1) for f in asked.folders)
    timed: dict[str, list[dict[str, float]]] = {name: [] for name in named}
    for _ in range(asked.rounds):
        for name in (*named, *reversed(named)):
            timed[name].append(child("speed", asked, named[name]))
    reference = child("torch", asked, "")["perplexity"]
    print(f"PyTorch: perplexity {reference:.3f} on {asked.tokens} tokens\n")
    print(
        "| | model files, MB | perplexity | to PyTorch | CPU ms a new token | CPU ms, prompt of 128 | after 1,024 |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, folder in named.items():
        size = sum(p.stat().st_size for p in files(Path(folder))) / 1e6
        cpu = {k: statistics.median(t[k] for t in timed[name]) for k in timed[name][0]}
        times = " | ".join(f"{cpu[k]:.1f}" for k in ("decode", "prefill", "late"))
        lost = "– | –"
        if not folder.endswith(".gguf"):
            found = child("perplexity", asked, folder)["perplexity"]
            lost = f"{found:.3f} | {found / reference - 1:+.2%}"
        print(f"| {name} | {size:.1f} | {lost} | {times} |", flush=True)


def files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return [p for p in path.iterdir() if p.name.startswith(("model.onnx", "openvino_model."))]


def child(what: str, asked: argparse.Namespace, folder: str) -> dict[str, float]:
    argv = [sys.executable, __file__, "--child", what, "--reference", str(asked.reference)]
    argv += ["--node-modules", asked.node_modules]
    argv += ["--tokens", str(asked.tokens), *([f"x={folder}"] if folder else [])]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def passages(asked: argparse.Namespace) -> list[list[int]]:
    import transformers

    from edgekit.load import texts

    words = transformers.AutoTokenizer.from_pretrained(asked.reference, local_files_only=True)
    ids = words.encode(texts.given(None, part=1).content, add_special_tokens=False)
    count = math.ceil(asked.tokens / (PASSAGE - PROMPT))
    step = max(PASSAGE, len(ids) // count)
    return [ids[i : i + PASSAGE] for i in range(0, len(ids) - PASSAGE, step)][:count]


def summed(rows: list[float]) -> dict[str, float]:
    return {"perplexity": math.exp(-statistics.fmean(rows))}


def torch_perplexity(asked: argparse.Namespace) -> dict[str, float]:
    import torch
    import transformers

    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(asked.reference, dtype=torch.float32).eval()
    rows: list[float] = []
    with torch.no_grad():
        for ids in passages(asked):
            logits = model(input_ids=torch.tensor([ids])).logits[0, PROMPT - 1 : -1]
            rows += (
                torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[PROMPT:])[:, None])[:, 0].tolist()
            )
    return summed(rows)


def perplexity(asked: argparse.Namespace) -> dict[str, float]:
    import numpy as np

    folder = Path(asked.folders[0].split("=", 1)[1])
    logits = openvino_logits(folder) if (folder / OPENVINO).is_file() else onnx_logits(folder)
    rows: list[float] = []
    for ids in passages(asked):
        found = logits(ids)[PROMPT - 1 : -1].astype(np.float64)
        top = found.max(-1, keepdims=True)
        whole = np.log(np.exp(found - top).sum(-1)) + top[:, 0]
        rows += (found[np.arange(len(found)), ids[PROMPT:]] - whole).tolist()
    return summed(rows)


def openvino_request(folder: Path) -> Any:
    sys.modules.setdefault("openvino_telemetry", None)
    import openvino

    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(folder / OPENVINO, "CPU", settings).create_infer_request()


def openvino_given(ids: list[int], done: int) -> dict[str, Any]:
    import numpy as np

    return {
        "input_ids": np.asarray([ids]),
        "attention_mask": np.ones((1, done + len(ids)), np.int64),
        "position_ids": np.arange(done, done + len(ids))[None],
        "beam_idx": np.zeros(1, np.int32),
    }


def openvino_logits(folder: Path) -> Any:
    request = openvino_request(folder)

    def logits(ids: list[int]) -> Any:
        request.reset_state()
        return request.infer(openvino_given(ids, 0))["logits"][0]

    return logits


def onnx_logits(folder: Path) -> Any:
    import numpy as np
    import onnx
    import onnxruntime

    graph = onnx.load(folder / "model.onnx")
    rename = {n.output[0]: n.input[0] for n in graph.graph.node if n.name == "/last"}
    for node in graph.graph.node:  # past the choice of the last position: its product gets all rows
        for i, name in enumerate(node.input):
            node.input[i] = rename.get(name, name)
    logits = next(o for o in graph.graph.output if o.name == "logits")
    logits.type.tensor_type.shape.dim[1].dim_param = "sequence_length"
    with tempfile.TemporaryDirectory() as place:
        onnx.save(graph, f"{place}/model.onnx", save_as_external_data=True, location="data")
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.log_severity_level = 1, 3
        session = onnxruntime.InferenceSession(f"{place}/model.onnx", settings)
    state = {
        i.name: np.zeros((1, i.shape[1], 0, _head(folder)), np.float32)
        for i in session.get_inputs()
        if i.name.startswith("past")
    }

    def of(ids: list[int]) -> Any:
        given = {"input_ids": np.asarray([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
        return session.run(["logits"], given | state)[0][0]

    return of


def _head(folder: Path) -> int:
    return int(json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]["head_size"])


def speed(asked: argparse.Namespace) -> dict[str, float]:
    path = Path(asked.folders[0].split("=", 1)[1])
    ids = [i for row in passages(asked)[:8] for i in row]
    if path.is_file():
        return llama_speed(path, ids, asked.node_modules)
    steps = (openvino_steps if (path / OPENVINO).is_file() else genai_steps)(path)

    def run(prompt: int, new: int) -> tuple[float, float]:
        step = steps(prompt + new + 1)
        start = time.process_time()
        step(ids[:prompt])
        read = time.process_time()
        for i in range(new):  # the text goes on as it does: what the model says decides nothing
            step(ids[prompt + i : prompt + i + 1])
        return 1e3 * (read - start), 1e3 * (time.process_time() - read) / max(new, 1)

    run(ASKED, 4)
    return {"decode": run(ASKED, NEW)[1], "prefill": run(LONG, 0)[0], "late": run(1024, 16)[1]}


def genai_steps(folder: Path) -> Any:
    import numpy as np
    import onnxruntime_genai as genai

    config = genai.Config(str(folder))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": 1}}}}))
    model = genai.Model(config)

    def begun(length: int) -> Any:
        params = genai.GeneratorParams(model)
        params.set_search_options(max_length=length, do_sample=False)
        generator = genai.Generator(model, params)
        return lambda ids: generator.append_tokens(np.asarray(ids, np.int32))

    return begun


def openvino_steps(folder: Path) -> Any:
    """The pipeline cuts the logits to the last position; here that is done to the model in the same way."""
    sys.modules.setdefault("openvino_telemetry", None)
    import numpy as np
    import openvino
    from openvino import opset15 as ops

    core = openvino.Core()
    model = core.read_model(folder / OPENVINO)
    node = model.get_results()[0].input_value(0).get_node()
    while node.get_type_name() != "MatMul":
        node = node.input_value(0).get_node()
    ends = [ops.constant(np.asarray([n])) for n in (-1, np.iinfo(np.int64).max, 1, 1)]
    node.input(0).replace_source_output(ops.slice(node.input_value(0), *ends).output(0))
    model.validate_nodes_and_infer_types()
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(model, "CPU", settings).create_infer_request()

    def begun(length: int) -> Any:
        del length
        request.reset_state()
        done = 0

        def step(ids: list[int]) -> None:
            nonlocal done
            request.infer(openvino_given(ids, done), share_outputs=True)
            done += len(ids)

        return step

    return begun


LLAMA = """
import {pathToFileURL} from "node:url";
const {modules, file, tokens, asked, news, long} = JSON.parse(process.argv[2]);
const {getLlama} = await import(pathToFileURL(modules + "/node-llama-cpp/dist/index.js"));
const llama = await getLlama({gpu: false, build: "never", maxThreads: 1, logLevel: "error"});
const model = await llama.loadModel({modelPath: file});
const context = await model.createContext({contextSize: 2048, threads: 1, batchSize: 2048, sequences: 1});
const sequence = context.getSequence();
const cpu = () => { const used = process.cpuUsage(); return (used.user + used.system) / 1e3; };
const one = {generateNext: {token: true, options: {temperature: 0}}};
async function run(prompt, count) {
  await sequence.clearHistory();
  const start = cpu();
  await sequence.evaluateWithoutGeneratingNewTokens(tokens.slice(0, prompt));
  const read = cpu();
  for (let i = 0; i < count; i++) await sequence.controlledEvaluate([[tokens[prompt + i], one]]);
  return [read - start, (cpu() - read) / Math.max(count, 1)];
}
await run(asked, 4);
const found = {decode: (await run(asked, news))[1], prefill: (await run(long, 0))[0], late: (await run(1024, 16))[1]};
console.log(JSON.stringify(found));
process.exit(0);
"""


def llama_speed(file: Path, ids: list[int], modules: str) -> dict[str, float]:
    told = {"modules": str(Path(modules).resolve()), "file": str(file.resolve()), "tokens": ids}
    told |= {"asked": ASKED, "news": NEW, "long": LONG}
    with tempfile.TemporaryDirectory() as place:
        script = Path(place) / "speed.mjs"
        script.write_text(LLAMA)
        argv = ["node", str(script), json.dumps(told)]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
