"""What no build writes: gates that passed beyond their limits."""

from __future__ import annotations

from edgekit.types import Gate, Verdict

_AT_MOST = frozenset(
    {"finite", "relative-error", "metric-drop", "size", "latency", "memory", "range", "perplexity"}
    | {"paged-attention"}
)
_AT_LEAST = frozenset(
    {"snr", "slices", "samples", "integers", "top1-agreement", "boxes", "masks", "placement", "graph"}
    | {
        "integer-weights",
        "coverage",
        "rollout",
        "decisions",
        "token-agreement",
        "greedy",
        "tokenizer",
        "chat-template",
    }
)
_ROUNDED = 1e-9


def contradicts(gate: Gate) -> bool:
    """Whether a gate that passed has a value beyond its limit: no build writes that."""
    if gate.verdict is not Verdict.PASS or gate.limit is None or gate.value is None:
        return False
    slack = _ROUNDED * max(1.0, abs(gate.limit))
    if gate.name in _AT_MOST:
        return not gate.value <= gate.limit + slack  # of what is no number, too
    return gate.name in _AT_LEAST and not gate.value >= gate.limit - slack
