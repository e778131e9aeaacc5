"""Einsum's equations."""

from __future__ import annotations

import string

import onnx_ir as ir

from edgekit.graph.edit import attribute, nodes


class LowerCaseEinsum(ir.passes.InPlacePass):
    """Write equations with lower-case letters, and implicit outputs explicitly.

    The specification allows both cases; TensorRT's parser refuses upper-case letters, and torch's
    exporter writes them. An equation of more than 26 letters stays as it is.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rewrite."""
        modified = False
        for node in nodes(model, "Einsum"):
            equation = attribute(node, "equation", "")
            legal = legalize(equation)
            if legal != equation:
                node.attributes["equation"] = ir.AttrString("equation", legal)
                modified = True
        return ir.passes.PassResult(model, modified=modified)


def legalize(equation: str) -> str:
    """The same equation in lower-case letters; letters that are lower-case already keep theirs."""
    if not any(c.isupper() for c in equation):
        return equation
    plain = equation.replace(" ", "")
    if "->" not in plain:  # the implicit output is in alphabetical order, which renaming would change
        labels = [c for c in plain if c.isalpha()]
        once = sorted(c for c in set(labels) if labels.count(c) == 1)
        plain += "->" + ("..." if "..." in plain else "") + "".join(once)
    used = [c for c in dict.fromkeys(plain) if c.isalpha()]
    free = iter(c for c in string.ascii_lowercase if c not in used)
    names = {c: c if c.islower() else next(free, "") for c in used}
    if not all(names.values()):
        return equation
    return "".join(names.get(c, c) for c in plain)
