"""transformers.js takes the folder as it is, in a browser: its answers are those of transformers in Python."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import package_models as models
import package_tools as tools
import pytest
from package_browser import browse, served

import edgekit
from edgekit.artifact.manifest import Artifact
from edgekit.errors import SourceError, UnsupportedError, UsageError
from edgekit.package import PackageSpec, package, verify_bundle

transformers = pytest.importorskip("transformers")

TEXT = "the quick brown fox jump ##s ##ed over lazy dog a cat sat on mat . , good bad"
WORDS = TEXT.split(" ")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = ("The quick brown fox jumps over the lazy dog.", "a good cat sat on the bad mat, a dog jumped", "fox")
NAME = "com.example.encoder"


def tokenizer() -> object:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {w: i for i, w in enumerate([*SPECIAL, *WORDS])}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(
        zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True)
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)


def folder(out: Path, kind: str) -> Path:
    """A small BERT with random weights, and its tokenizer."""
    import torch

    torch.manual_seed(5)
    config = transformers.BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64, initializer_range=0.3,
        id2label={0: "calm", 1: "glad", 2: "sad"}, label2id={"calm": 0, "glad": 1, "sad": 2},
    )  # fmt: skip
    made = transformers.BertForSequenceClassification if kind == "classes" else transformers.BertModel
    made(config).eval().save_pretrained(out)
    tokenizer().save_pretrained(out)
    return out


@pytest.fixture(scope="module", params=["embeddings", "classes"])
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, tuple[Artifact, ...]]:
    root = tmp_path_factory.mktemp(request.param)
    source = folder(root / "source", request.param)
    options = edgekit.Options(speed_gate=False)
    targets = ("ort-fp32", "ort-int8-dynamic")
    result = edgekit.build(f"hf:{source}", targets=targets, out=root / "build", options=options)
    return request.param, source, tuple(result.raise_for_failures().artifacts)


def spec(**fields: object) -> PackageSpec:
    return PackageSpec(**{"format": "transformers-js", "name": NAME, "version": "1.0.0", **fields})


PAGE = """<!doctype html><html><pre id="said"></pre><script type="module">
try {
  const { env, pipeline } = await import("/js/dist/transformers.min.js");
  Object.assign(env, { allowRemoteModels: false, allowLocalModels: true, useBrowserCache: false });
  env.localModelPath = "/models/";
  env.backends.onnx.wasm.wasmPaths = new URL("/ort/dist/", location.href).href;
  env.backends.onnx.wasm.numThreads = 1;
  const run = await pipeline("TASK", "NAME");
  const said = [];
  for (const text of TEXTS) {
    const found = await run(text OPTIONS);
    said.push(found.data ? Array.from(found.data) : found);
  }
  document.getElementById("said").textContent = JSON.stringify(said);
} catch (error) {
  document.getElementById("said").textContent = JSON.stringify(String(error?.stack ?? error));
}
document.documentElement.dataset.passed = "true";
</script></html>"""


def in_browser(made: Path, kind: str, work: Path) -> list:
    work.mkdir()
    for part in ("js", "ort"):
        (work / part).symlink_to(tools.TRANSFORMERS / part)
    shutil.copytree(made, work / "models" / NAME)
    task, options = "feature-extraction", ', { pooling: "mean", normalize: true }'
    if kind == "classes":
        task, options = "text-classification", ", { top_k: null }"
    page = PAGE.replace("TASK", task).replace("NAME", NAME).replace("OPTIONS", options)
    (work / "page.html").write_text(page.replace("TEXTS", json.dumps(TEXTS)))
    with served(work) as site:
        dom = browse(site, "page.html", work / "profile")
    found = re.search(r'<pre id="said">(.*?)</pre>', dom, re.DOTALL)
    assert found, dom
    said = json.loads(found[1])
    assert isinstance(said, list), said
    return said


def expected(source: Path, kind: str) -> list[np.ndarray]:
    import torch

    words = transformers.AutoTokenizer.from_pretrained(source)
    found = []
    with torch.no_grad():
        if kind == "classes":
            model = transformers.AutoModelForSequenceClassification.from_pretrained(source).eval()
            return [model(**words(t, return_tensors="pt")).logits.softmax(-1)[0].numpy() for t in TEXTS]
        model = transformers.AutoModel.from_pretrained(source).eval()
        for text in TEXTS:
            mean = model(**words(text, return_tensors="pt")).last_hidden_state[0].mean(0).numpy()
            found.append(mean / np.linalg.norm(mean))
    return found


@pytest.mark.parametrize("index", [0, 1], ids=["fp32", "int8"])
def test_the_pipelines_answers_are_those_of_python(
    built: tuple[str, Path, tuple[Artifact, ...]], index: int, tmp_path: Path
) -> None:
    tools.need(tools.TRANSFORMERS / "complete", "chromium")
    kind, source, artifacts = built
    made = package(artifacts[index], spec(tokenizer=source), tmp_path / "out").directory
    file = ("onnx/model.onnx", "onnx/model_quantized.onnx")[index]
    assert (made / file).is_file()
    config = json.loads((made / "config.json").read_text())
    assert config["transformers.js_config"]["dtype"] == ("fp32", "q8")[index]
    assert verify_bundle(made).passed
    said, wanted = in_browser(made, kind, tmp_path / "site"), expected(source, kind)
    for one, want in zip(said, wanted, strict=True):
        if kind == "classes":
            scores = {row["label"]: row["score"] for row in one}
            one = [scores[label] for label in ("calm", "glad", "sad")]
        np.testing.assert_allclose(one, want, atol=(1e-4, 5e-2)[index])
    assert not np.allclose(wanted[0], wanted[1], atol=0.1)


def test_the_command_line_writes_it(built: tuple[str, Path, tuple[Artifact, ...]], tmp_path: Path) -> None:
    from cli_process import edgekit as command

    _, source, artifacts = built
    common = ["package", artifacts[0].directory, "--name", NAME, "--version", "1.0.0"]
    done = command(*common, "--format", "transformers-js", "--out", tmp_path / "a", "--tokenizer", source)
    assert done.code == 0, done.err
    assert command("verify", tmp_path / "a").code == 0
    (tmp_path / "a" / "config.json").write_text("{}")
    assert command("verify", tmp_path / "a").code == 3
    missing = command(*common, "--format", "transformers-js", "--out", tmp_path / "b")
    assert missing.code == 2
    assert "--tokenizer DIR" in missing.err
    other = command(*common, "--format", "web", "--out", tmp_path / "c", "--tokenizer", source)
    assert other.code == 2
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("change", "error", "why"),
    [
        (lambda d: (d / "tokenizer.json").unlink(), UsageError, r"tokenizer\.json"),
        (lambda d: (d / "config.json").write_text("no"), SourceError, "no configuration"),
        (lambda d: (d / "config.json").write_text("{}"), SourceError, "model_type"),
        (
            lambda d: (d / "config.json").write_text('{"model_type": "t5", "is_encoder_decoder": true}'),
            UnsupportedError,
            "decoder",
        ),
    ],
)
def test_folders_that_are_no_encoders(
    built: tuple[str, Path, tuple[Artifact, ...]], change, error: type[Exception], why: str, tmp_path: Path
) -> None:
    _, source, artifacts = built
    shutil.copytree(source, tmp_path / "source")
    change(tmp_path / "source")
    with pytest.raises(error, match=why):
        package(artifacts[0], spec(tokenizer=tmp_path / "source"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "why"), [("text", "one length"), ("two", "feeds an encoder")])
def test_models_that_the_pipelines_cannot_feed(
    name: str, why: str, built: tuple[str, Path, tuple[Artifact, ...]], tmp_path: Path
) -> None:
    artifact = models.build(name, tmp_path / name, ("ort-fp32",))
    with pytest.raises(UnsupportedError, match=why):
        package(artifact, spec(tokenizer=built[1]), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == [name]
