"""The table of ONNX operators: ``@op("Conv")`` on a short function adds a row.

A handler is called as ``handler(g, *inputs, **attributes)``: ``g`` is the :class:`Builder`, the inputs are
:class:`View` objects in ONNX order (``None`` for an omitted optional input), the keyword parameters are the
ONNX attributes by their ONNX names (what several operators share comes as ``**attributes: Unpack[…]`` of a
``TypedDict``). It returns a :class:`View`, or a sequence of them, one an output.
What it cannot express it refuses with :class:`Refusal` and a reason that a user can act on.

See docs/tflite-compiler.md for how to add an operator.
"""

from __future__ import annotations

import enum
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from edgekit.backends.tflite.view import View

Handler: TypeAlias = Callable[..., "View | Sequence[View | None]"]
H = TypeVar("H", bound=Handler)


class Refusal(Exception):  # noqa: N818 - it is control flow inside the compiler, users see UnsupportedOperatorsError
    """A handler cannot express this node; the text is the reason."""


class Rule(enum.Enum):
    """What TFLite's quantization specification demands of an operator's integer form.

    https://ai.google.dev/edge/litert/models/quantization_spec
    """

    FLOAT = "float"
    """No integer kernel (or a composition): computed in float between DEQUANTIZE and QUANTIZE."""
    FREE = "free"
    """Inputs and outputs have parameters of their own."""
    SAME = "same"
    """The output has the parameters of the (first) input."""
    FIXED = "fixed"
    """The output's parameters are prescribed."""
    ANY = "any"
    """Indifferent: shape computations and operators on integers or booleans."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One operator from one opset on."""

    domain: str
    name: str
    since: int
    rule: Rule
    quantized: frozenset[str]
    handler: Handler
    attributes: frozenset[str]
    hybrid: frozenset[int] = frozenset()
    delegated: bool = True
    fixed: Mapping[str, tuple[float, int]] | None = None


_TABLE: dict[tuple[str, str], list[Row]] = {}


def op(
    name: str,
    *,
    since: int = 1,
    domain: str = "",
    rule: Rule = Rule.FLOAT,
    quantized: Sequence[str] = ("int8", "uint8", "int16"),
    hybrid: Sequence[int] = (),
    delegated: bool = True,
    fixed: Mapping[str, tuple[float, int]] | None = None,
) -> Callable[[H], H]:
    """Register a handler for ``name`` from opset ``since`` on, until a row with a higher ``since``.

    ``quantized`` lists the activation types that the integer kernel takes (if ``rule`` allows one);
    ``fixed`` maps each of them to the output's ``(scale, zero_point)`` under :attr:`Rule.FIXED`;
    ``delegated`` says whether XNNPACK has its integer kernel;
    ``hybrid`` lists the inputs that may stay quantized weights while the activations are float. A second
    row for the same operator and opset raises ``ValueError``.
    """

    def register(handler: H) -> H:
        row = Row(
            domain=domain,
            name=name,
            since=since,
            rule=rule,
            quantized=frozenset(quantized),
            handler=handler,
            attributes=frozenset(_attributes(handler)),
            hybrid=frozenset(hybrid),
            delegated=delegated,
            fixed=fixed,
        )
        rows = _TABLE.setdefault((domain, name), [])
        # The second would silently win or lose by the order of imports.
        for other in rows:
            if other.since == since:
                raise ValueError(
                    f"{domain or 'ai.onnx'}::{name} since {since} is registered twice: "
                    f"{_where(other.handler)} and {_where(handler)}"
                )
        rows.append(row)
        rows.sort(key=lambda r: r.since)
        return handler

    return register


def lookup(domain: str, name: str, opset: int) -> Row | None:
    """The row in force at ``opset``, or None."""
    best = None
    for row in _TABLE.get(("" if domain == "ai.onnx" else domain, name), ()):
        if row.since <= opset:
            best = row
    return best


def rows() -> tuple[Row, ...]:
    """Every row, sorted by domain, operator and opset (for docs and tests)."""
    return tuple(sorted((r for rs in _TABLE.values() for r in rs), key=lambda r: (r.domain, r.name, r.since)))


def _attributes(handler: Handler) -> Iterator[str]:
    """Its keyword parameters, those of a ``**attributes: Unpack[…]`` included."""
    for parameter in inspect.signature(handler).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            yield parameter.name
        elif parameter.kind is parameter.VAR_KEYWORD:
            (shared,) = typing.get_args(typing.get_type_hints(handler)[parameter.name])
            yield from typing.get_type_hints(shared)


def _where(handler: Any) -> str:
    function = getattr(handler, "func", handler)
    return f"{function.__module__}.{function.__qualname__}"
