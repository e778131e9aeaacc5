"""MediaPipe Tasks, in the virtual environment of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import package_tools as tools

CLASSIFY = """
import json, sys
import numpy as np
import mediapipe as mp
from mediapipe.tasks.python import BaseOptions, vision

options = vision.ImageClassifierOptions(base_options=BaseOptions(model_asset_path=sys.argv[1]))
with vision.ImageClassifier.create_from_options(options) as classifier:
    for name in sys.argv[2:]:
        pixels = np.load(name)
        found = classifier.classify(mp.Image(image_format=mp.ImageFormat.SRGB, data=pixels))
        print(json.dumps({c.category_name: c.score for c in found.classifications[0].categories}))
"""


def mediapipe_scores(model: Path, images: list[Path]) -> list[dict[str, float]]:
    """What ``ImageClassifier`` makes of images in ``.npy`` files: scores by label."""
    done = subprocess.run(
        [tools.MEDIAPIPE, "-c", CLASSIFY, model, *images], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]
