"""Tiny decoders with random weights and a tokenizer trained on the spot: no download."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="language models need the extra genai")

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 384
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message.tool_calls %}{{ message.tool_calls[0].function | tojson }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""A template that knows tools and calls of them."""
_COMMON = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 96,
    "bos_token_id": 1,
    "eos_token_id": 3,
    "pad_token_id": 0,
}


def made(name: str) -> Any:
    """A model in evaluation mode; its logits are spread enough that the most likely token is no matter of rounding."""
    t, common = transformers, _COMMON
    makers = {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**common, tie_word_embeddings=True)),
        "llama-biased": lambda: t.LlamaForCausalLM(
            t.LlamaConfig(**common, attention_bias=True, mlp_bias=True)
        ),
        "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**common, sliding_window=16)),
        "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**common, max_window_layers=2)),
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**common, head_dim=32, max_window_layers=2)),
        "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**common, head_dim=32, sliding_window=16)),
        "gemma3": lambda: t.Gemma3ForCausalLM(
            t.Gemma3TextConfig(
                **common, head_dim=32, sliding_window=16, layer_types=["sliding_attention", "full_attention"]
            )
        ),
        "phi": lambda: t.PhiForCausalLM(
            t.PhiConfig(**common | {"num_attention_heads": 2, "num_key_value_heads": 2})
        ),
        "phi3": lambda: t.Phi3ForCausalLM(t.Phi3Config(**common, sliding_window=16)),
        "olmo2": lambda: t.Olmo2ForCausalLM(t.Olmo2Config(**common)),
        "gpt2": lambda: t.GPT2LMHeadModel(
            t.GPT2Config(n_embd=64, n_layer=1, n_head=4, vocab_size=VOCABULARY)
        ),
        "mixtral": lambda: t.MixtralForCausalLM(t.MixtralConfig(**common)),
    }
    torch.manual_seed(0)
    model = makers[name]().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 4
        elif "bias" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@functools.cache
def _words() -> Tokenizer:
    from pydoc_data.topics import topics

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    words.train_from_iterator([topics[k] for k in sorted(topics)[:20]], trainer)
    return words


def folder(name: str, out: Path, *, template: str = TEMPLATE) -> Path:
    """A folder as ``hf:DIR`` takes it."""
    made(name).save_pretrained(out)
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=_words(), bos_token="<s>", eos_token="<|im_end|>", pad_token="<pad>"
    )
    words.chat_template = template or None
    words.save_pretrained(out)
    return out
