"""transformers' architectures from small configurations: text, speech, vision, both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from zoo_models import Architecture, Inputs

_VOCABULARY = 500
_LENGTH = 24
_SMALL = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
}
_DECODER = _SMALL | {"use_cache": False}


def _model(model: str, config: str, options: dict[str, Any]) -> Callable[[], torch.nn.Module]:
    def build() -> torch.nn.Module:
        import transformers

        settings = getattr(transformers, config)(**options)
        module: torch.nn.Module = getattr(transformers, model)(settings)
        return module

    return build


def _tokens(_: torch.nn.Module, batch: int) -> Inputs:
    mask = torch.ones(batch, _LENGTH, dtype=torch.int64)
    mask[:, _LENGTH - 5 :] = 0
    return {"input_ids": torch.randint(3, _VOCABULARY, (batch, _LENGTH)), "attention_mask": mask}


def _ids(_: torch.nn.Module, batch: int) -> Inputs:
    return {"input_ids": torch.randint(3, _VOCABULARY, (batch, _LENGTH))}


def _pair(_: torch.nn.Module, batch: int) -> Inputs:
    tokens = torch.randint(3, _VOCABULARY, (2, batch, _LENGTH))
    return {"input_ids": tokens[0], "decoder_input_ids": tokens[1][:, :12].contiguous()}


def _pixels(size: int) -> Callable[[torch.nn.Module, int], Inputs]:
    return lambda _, batch: {"pixel_values": torch.randn(batch, 3, size, size)}


def _wave(_: torch.nn.Module, batch: int) -> Inputs:
    return {"input_values": torch.randn(batch, 4000)}


def _mel(name: str, *shape: int) -> Callable[[torch.nn.Module, int], Inputs]:
    return lambda _, batch: {name: torch.randn(batch, *shape)}


def _text_and_pixels(_: torch.nn.Module, batch: int) -> Inputs:
    return dict(_tokens(_, batch)) | {"pixel_values": torch.randn(batch, 3, 32, 32)}


def _entry(name: str, model: str, config: str, options: dict[str, Any], inputs: Any) -> Architecture:
    return Architecture(name=f"transformers/{name}", build=_model(model, config, options), inputs=inputs)


_T5 = {
    "vocab_size": _VOCABULARY, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4,
    "use_cache": False, "decoder_start_token_id": 0,
}  # fmt: skip
_BART = {
    "vocab_size": _VOCABULARY, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
    "max_position_embeddings": 64, "use_cache": False,
}  # fmt: skip
_GPT = {
    "vocab_size": _VOCABULARY,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "use_cache": False,
}
_VIT = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
_SPEECH = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "vocab_size": 32, "conv_dim": (32, 32, 32), "conv_stride": (5, 4, 2), "conv_kernel": (10, 6, 3),
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "num_feat_extract_layers": 3,
}  # fmt: skip
_GROUPED = _DECODER | {"num_key_value_heads": 2}

ARCHITECTURES = (
    _entry("bert", "BertForSequenceClassification", "BertConfig", _SMALL, _tokens),
    _entry("bert-qa", "BertForQuestionAnswering", "BertConfig", _SMALL, _tokens),
    _entry(
        "distilbert",
        "DistilBertForTokenClassification",
        "DistilBertConfig",
        {"vocab_size": _VOCABULARY, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128},
        _tokens,
    ),
    _entry("roberta", "RobertaModel", "RobertaConfig", _SMALL, _tokens),
    _entry("albert", "AlbertModel", "AlbertConfig", _SMALL | {"embedding_size": 32}, _tokens),
    _entry("electra", "ElectraModel", "ElectraConfig", _SMALL | {"embedding_size": 32}, _tokens),
    _entry(
        "mobilebert",
        "MobileBertModel",
        "MobileBertConfig",
        _SMALL | {"true_hidden_size": 32, "intra_bottleneck_size": 32, "embedding_size": 32},
        _tokens,
    ),
    _entry(
        "deberta-v2",
        "DebertaV2Model",
        "DebertaV2Config",
        _SMALL | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 16},
        _tokens,
    ),
    _entry("mpnet", "MPNetModel", "MPNetConfig", _SMALL, _tokens),
    _entry(
        "modernbert",
        "ModernBertModel",
        "ModernBertConfig",
        _SMALL
        | {
            "reference_compile": False,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "cls_token_id": 1,
            "sep_token_id": 2,
        },
        _tokens,
    ),
    _entry(
        "funnel",
        "FunnelModel",
        "FunnelConfig",
        {
            "vocab_size": _VOCABULARY,
            "d_model": 64,
            "n_head": 4,
            "d_head": 16,
            "d_inner": 128,
            "block_sizes": [1, 1],
            "num_decoder_layers": 1,
        },
        _tokens,
    ),
    _entry("gpt2", "GPT2LMHeadModel", "GPT2Config", _GPT, _ids),
    _entry("gpt-neox", "GPTNeoXForCausalLM", "GPTNeoXConfig", _DECODER, _ids),
    _entry(
        "opt",
        "OPTForCausalLM",
        "OPTConfig",
        {
            "vocab_size": _VOCABULARY,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 128,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 64,
            "use_cache": False,
        },
        _tokens,
    ),
    _entry(
        "bloom",
        "BloomForCausalLM",
        "BloomConfig",
        {"vocab_size": _VOCABULARY, "hidden_size": 64, "n_layer": 2, "n_head": 4, "use_cache": False},
        _tokens,
    ),
    _entry("llama", "LlamaForCausalLM", "LlamaConfig", _GROUPED, _ids),
    _entry("qwen2", "Qwen2ForCausalLM", "Qwen2Config", _GROUPED, _ids),
    _entry("qwen3", "Qwen3ForCausalLM", "Qwen3Config", _GROUPED | {"head_dim": 16}, _ids),
    _entry("gemma", "GemmaForCausalLM", "GemmaConfig", _GROUPED | {"head_dim": 16}, _ids),
    _entry("phi", "PhiForCausalLM", "PhiConfig", _DECODER, _ids),
    _entry("mistral", "MistralForCausalLM", "MistralConfig", _GROUPED | {"sliding_window": 8}, _ids),
    _entry("mixtral", "MixtralForCausalLM", "MixtralConfig", _GROUPED | {"num_local_experts": 4}, _ids),
    _entry("t5-encoder", "T5EncoderModel", "T5Config", _T5, _tokens),
    _entry("t5", "T5Model", "T5Config", _T5, _pair),
    _entry("bart", "BartModel", "BartConfig", _BART, _pair),
    _entry(
        "mamba",
        "MambaModel",
        "MambaConfig",
        {
            "vocab_size": _VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "state_size": 8,
            "use_cache": False,
        },
        _ids,
    ),
    _entry(
        "whisper-encoder",
        "WhisperForAudioClassification",
        "WhisperConfig",
        {
            "d_model": 64,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "num_mel_bins": 40,
            "max_source_positions": 100,
            "decoder_layers": 1,
            "decoder_attention_heads": 4,
        },
        _mel("input_features", 40, 200),
    ),
    _entry("wav2vec2", "Wav2Vec2ForCTC", "Wav2Vec2Config", _SPEECH, _wave),
    _entry("hubert", "HubertModel", "HubertConfig", _SPEECH, _wave),
    _entry("wavlm", "WavLMModel", "WavLMConfig", _SPEECH, _wave),
    _entry(
        "audio-spectrogram",
        "ASTForAudioClassification",
        "ASTConfig",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "max_length": 64,
            "num_mel_bins": 32,
        },
        _mel("input_values", 64, 32),
    ),
    _entry("vit", "ViTForImageClassification", "ViTConfig", _VIT, _pixels(32)),
    _entry("deit", "DeiTModel", "DeiTConfig", _VIT, _pixels(32)),
    _entry("beit", "BeitModel", "BeitConfig", _VIT | {"use_relative_position_bias": True}, _pixels(32)),
    _entry("dinov2", "Dinov2Model", "Dinov2Config", _VIT, _pixels(32)),
    _entry(
        "segformer",
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "decoder_hidden_size": 32},
        _pixels(64),
    ),
    _entry(
        "yolos",
        "YolosForObjectDetection",
        "YolosConfig",
        _VIT | {"image_size": [64, 64], "num_detection_tokens": 10},
        _pixels(64),
    ),
    _entry(
        "mobilevit", "MobileViTForImageClassification", "MobileViTConfig", {"image_size": 64}, _pixels(64)
    ),
    _entry(
        "swin",
        "SwinModel",
        "SwinConfig",
        {"image_size": 64, "embed_dim": 16, "depths": [1, 1, 1], "num_heads": [2, 2, 4], "window_size": 4},
        _pixels(64),
    ),
    _entry(
        "dpt",
        "DPTForDepthEstimation",
        "DPTConfig",
        _VIT
        | {
            "image_size": 64,
            "patch_size": 16,
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [8, 16, 32, 32],
            "fusion_hidden_size": 16,
        },
        _pixels(64),
    ),
    _entry(
        "clip",
        "CLIPModel",
        "CLIPConfig",
        {"text_config": _SMALL, "vision_config": _VIT, "projection_dim": 32},
        _text_and_pixels,
    ),
    _entry(
        "siglip",
        "SiglipModel",
        "SiglipConfig",
        {"text_config": _SMALL | {"projection_size": 64}, "vision_config": _VIT},
        _text_and_pixels,
    ),
    _entry(
        "patchtst",
        "PatchTSTForPrediction",
        "PatchTSTConfig",
        {
            "num_input_channels": 3,
            "context_length": 48,
            "patch_length": 8,
            "patch_stride": 8,
            "d_model": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 64,
            "prediction_length": 12,
        },
        _mel("past_values", 48, 3),
    ),
)
