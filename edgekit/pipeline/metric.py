"""``--metric file.py:function``: the user's own metric, which way of it is better, and what it raises."""

from __future__ import annotations

import re
from typing import cast

from edgekit.artifact.task import Metric
from edgekit.errors import EdgekitError, MetricError, SourceError, UsageError
from edgekit.load import Recorder, usercode

DIRECTIONS = {"higher": True, "lower": False}
"""``--metric file.py:function:lower``: which way is better, said on the command line."""

_ERRORS = frozenset(
    (
        "error",
        "errors",
        "err",
        "mse",
        "rmse",
        "rmsle",
        "msle",
        "mae",
        "mape",
        "smape",
        "mase",
        "medae",
        "loss",
        "losses",
        "nll",
        "bce",
        "crossentropy",
        "perplexity",
        "ppl",
        "wer",
        "cer",
        "eer",
        "epe",
        "rmsd",
        "mpjpe",
        "fid",
        "kid",
        "lpips",
        "kld",
        "divergence",
        "distance",
        "deviation",
        "residual",
        "residuals",
        "hinge",
        "brier",
        "misclassification",
        "chamfer",
        "hausdorff",
        "emd",
    )
)
_NEGATED = frozenset(("neg", "negative", "negated", "minus", "inverse", "inverted"))


def named(text: str) -> tuple[str, bool | None]:
    """The function, and which way is better where the text says so: ``"m.py:f:lower"`` → ``("m.py:f", False)``."""
    rest, _, word = text.rpartition(":")
    if word in DIRECTIONS and usercode.split(rest) is not None:
        return rest, DIRECTIONS[word]
    return text, None


def opened(text: str, reads: Recorder) -> Metric:
    """The metric that ``--metric`` names; what it reads is noted in ``reads``.

    Raises :class:`UsageError` for one that is called like an error and does not say which way is better.
    """
    name, higher = named(text)
    with reads:
        return usercode.run(name, lambda function: _metric(function, name, higher, reads))


def _metric(function: object, text: str, higher: bool | None, reads: Recorder) -> Metric:
    if not callable(function):
        raise SourceError(f"{text} is no function", hint="name a function of (outputs, label)")

    def score(outputs: object, label: object) -> float:
        try:
            with reads, usercode.session(text):
                return cast(float, function(outputs, label))
        except EdgekitError:
            raise
        except (Exception, SystemExit) as error:  # whatever the user's function raises is theirs
            raise MetricError(
                f"the metric {text} {usercode.deed(error)}",
                hint="the error is in that function or what it calls; the traceback shows where",
                user_traceback=usercode.user_traceback(error),
            ) from error

    name = str(getattr(function, "__name__", usercode.split(text) or text))
    return Metric(
        name=name,
        score=score,
        whole=bool(getattr(function, "whole", False)),
        higher_is_better=_direction(function, name, text) if higher is None else higher,
    )


def _direction(function: object, name: str, text: str) -> bool:
    declared = getattr(function, "higher_is_better", None)
    if declared is not None:
        return bool(declared)
    words = set(_words(name))
    if words & _ERRORS and not words & _NEGATED:
        raise UsageError(
            f"the metric {name} is called like an error, of which less is better, and does not say so",
            hint=f"set {name}.higher_is_better = False beside the function (or True), or write --metric {text}:lower",
        )
    return True


def _words(name: str) -> list[str]:
    """``"valMSE_loss"`` → ``["val", "mse", "loss"]``."""
    return [w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
