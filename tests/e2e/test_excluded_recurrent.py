"""A layer that stays float is named as ``--exclude`` takes it, and following the hint builds."""

from __future__ import annotations

import re

import pytest
from cli_process import edgekit

pytestmark = [pytest.mark.e2e]


@pytest.mark.parametrize("target", ["ort-int8", "openvino-int8"])
def test_the_hint_of_a_placement_can_be_followed(root, tmp_path, target):
    source = f"{root}/tests/e2e/sources.py"
    data = ("--calib", f"{source}:tagged_words", "-o", tmp_path, "--no-speed-gate")
    argv = ("build", f"{source}:tagger", "-t", target, *data)
    refused = edgekit(*argv)
    assert refused.code == 5
    (named,) = re.findall(r"--exclude '([^']+)'", refused.err)
    followed = edgekit(*argv, "--exclude", named)
    assert followed.code == 0, followed.err


def test_tflite_multiplies_integers_in_it(root, tmp_path):
    source = f"{root}/tests/e2e/sources.py"
    data = ("--calib", f"{source}:tagged_words", "-o", tmp_path, "--no-speed-gate")
    done = edgekit("build", f"{source}:tagger", "-t", "tflite-int8", *data)
    assert done.code == 0, done.err
