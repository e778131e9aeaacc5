"""Folders of onnxruntime-genai side by side: size, perplexity on real text, CPU time of prompt and new tokens.

    python tools/compare_language_models.py --reference HF_DIR edgekit=build/ort-genai-int4 builder=PEER_DIR

Every figure is taken in a fresh process with one thread; the folders take turns (ABBA), so that a busy machine is busy
for all. CPU time is the process's own, not the clock's. Perplexity is of ``--tokens`` tokens in passages of 256, after
32 of each: by ONNX Runtime on each graph with the logits of all positions (a graph that gives the last alone is
given the rest of its rows), and in PyTorch. The text is what edgekit measures on: every other topic of Python's manual.
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

PASSAGE, PROMPT = 256, 32
ASKED, NEW = 37, 64
LONG = 128


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", metavar="NAME=DIR")
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
        size = sum(p.stat().st_size for p in Path(folder).glob("model.onnx*")) / 1e6
        found = child("perplexity", asked, folder)["perplexity"]
        cpu = {k: statistics.median(t[k] for t in timed[name]) for k in timed[name][0]}
        times = " | ".join(f"{cpu[k]:.1f}" for k in ("decode", "prefill", "late"))
        print(f"| {name} | {size:.1f} | {found:.3f} | {found / reference - 1:+.2%} | {times} |")


def child(what: str, asked: argparse.Namespace, folder: str) -> dict[str, float]:
    argv = [sys.executable, __file__, "--child", what, "--reference", str(asked.reference)]
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
    import onnx
    import onnxruntime

    folder = Path(asked.folders[0].split("=", 1)[1])
    graph = onnx.load(folder / "model.onnx")
    rename = {n.output[0]: n.input[0] for n in graph.graph.node if n.name == "/last"}
    for node in graph.graph.node:  # past the choice of the last position: its product gets all rows
        for i, name in enumerate(node.input):
            node.input[i] = rename.get(name, name)
    logits = next(o for o in graph.graph.output if o.name == "logits")
    logits.type.tensor_type.shape.dim[1].dim_param = "sequence_length"
    rows: list[float] = []
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
    for ids in passages(asked):
        given = {"input_ids": np.asarray([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
        found = session.run(["logits"], given | state)[0][0, PROMPT - 1 : -1].astype(np.float64)
        top = found.max(-1, keepdims=True)
        whole = np.log(np.exp(found - top).sum(-1)) + top[:, 0]
        rows += (found[np.arange(len(found)), ids[PROMPT:]] - whole).tolist()
    return summed(rows)


def _head(folder: Path) -> int:
    return int(json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]["head_size"])


def speed(asked: argparse.Namespace) -> dict[str, float]:
    import numpy as np
    import onnxruntime_genai as genai

    folder = asked.folders[0].split("=", 1)[1]
    config = genai.Config(folder)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": 1}}}}))
    model = genai.Model(config)
    ids = [i for row in passages(asked)[:8] for i in row]

    def run(prompt: int, new: int) -> tuple[float, float]:
        params = genai.GeneratorParams(model)
        params.set_search_options(max_length=prompt + new + 1, do_sample=False)
        generator = genai.Generator(model, params)
        start = time.process_time()
        generator.append_tokens(np.asarray(ids[:prompt], np.int32))
        read = time.process_time()
        for i in range(new):  # the text goes on as it does: what the model says decides nothing
            generator.append_tokens(np.asarray(ids[prompt + i : prompt + i + 1], np.int32))
        return 1e3 * (read - start), 1e3 * (time.process_time() - read) / max(new, 1)

    run(ASKED, 4)
    return {"decode": run(ASKED, NEW)[1], "prefill": run(LONG, 0)[0], "late": run(1024, 16)[1]}


if __name__ == "__main__":
    main()
