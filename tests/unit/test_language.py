"""What is said of language models without running any."""

from __future__ import annotations

import pytest

from edgekit.artifact import summary
from edgekit.artifact.manifest import Manifest, Status
from edgekit.core import targets
from edgekit.types import SourceRecord


def manifest(target: str, task: str) -> Manifest:
    source = SourceRecord(text="hf:x", kind="hf", sha256="0" * 64)
    return Manifest(edgekit="1", status=Status.PASSED, target=targets.find(target), source=source, task=task)


@pytest.mark.parametrize(
    ("target", "task", "said"),
    [
        ("ort-int4-weights", "text-generation", "passed; no cache: ort-genai-int4 has one"),
        ("tflite-int8-weights", "text-generation", "passed; no cache: ort-genai-int8 has one"),
        ("ort-fp16", "text-generation", "passed; no cache: ort-genai-fp32 has one"),
        ("openvino-int4-weights", "text-generation", "passed; no cache: openvino-genai-int4 has one"),
        ("ort-int4-weights", "fill-mask", "passed"),
        ("ort-genai-int4", "text-generation", "passed"),
    ],
)
def test_a_decoder_without_a_cache_says_so_and_which_target_has_one(
    target: str, task: str, said: str
) -> None:
    assert summary.verdict(manifest(target, task)) == said
