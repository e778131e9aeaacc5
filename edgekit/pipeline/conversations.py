"""What language models are asked in every build: prompts, texts for the tokenizer, conversations for the template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgekit.types import Json

PROMPTS = ("What is the capital of France?", "Write two sentences about the sea.")
"""Each is continued greedily."""

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "  two spaces, a tab\tand a line\n\nbreak ",
    "Zürich, naïve café, Ελλάδα, Москва, 東京, العربية, हिन्दी",
    "👩‍🚀 emoji 🎉🎉, maths ∑ x² ≤ ∞, quotes “like” ‘these’",
    "def f(x):\n    return x ** 2  # 3.14159, 1,000,000, 0x7f",
    "don't we'll I'm they've she's",
    "",
)
"""Texts whose ids must be the source's."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Messages as transformers takes them; ``prompt``: the answer is to begin."""

    messages: tuple[Mapping[str, Json], ...]
    tools: tuple[Mapping[str, Json], ...] = ()
    prompt: bool = True


def _says(*turns: tuple[str, str]) -> tuple[Mapping[str, Json], ...]:
    return tuple({"role": role, "content": content} for role, content in turns)


_WEATHER: Mapping[str, Json] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Its name."}},
            "required": ["city"],
        },
    },
}
_CALL: Mapping[str, Json] = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}],
}
_ASKED = ("user", "What is the weather in Paris?")

CONVERSATIONS = (
    Conversation(messages=_says(("user", "What is the capital of France?"))),
    Conversation(messages=_says(("system", "Answer in one word."), ("user", "Capital of France?"))),
    Conversation(
        messages=_says(("user", "Hello"), ("assistant", "Hi! How can I help?"), ("user", "Tell a joke."))
    ),
    Conversation(messages=_says(("user", "Hello"), ("assistant", "Hi!")), prompt=False),
    Conversation(messages=_says(("user", "Grüße aus Zürich, 東京 🎉"))),
    Conversation(messages=_says(("user", "  spaces around  \n\nand lines\n"))),
    Conversation(messages=_says(("system", ""), ("user", "An empty system message."))),
    Conversation(
        messages=_says(("user", "Quotes \"double\" and 'single', a \\ and {{ braces }} and <tags>"))
    ),
    Conversation(messages=_says(_ASKED), tools=(_WEATHER,)),
    Conversation(
        messages=(
            *_says(_ASKED),
            _CALL,
            {"role": "tool", "name": "get_weather", "content": '{"celsius": 18}'},
        ),
        tools=(_WEATHER,),
    ),
)
"""Ten, two of them with tools."""
