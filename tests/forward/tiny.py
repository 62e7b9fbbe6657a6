"""Any config of transformers, shrunk by the names of its fields, and a tiny model of it with random weights.

A field that several architectures share is shrunk by its name; what one architecture needs beyond that stands in
`OVERRIDES`, found by trying.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

LAYERS = 3
HIDDEN = 32
VOCABULARY = 96
# Special tokens have the ids below this one, so that any other id is plain text.
FIRST_PLAIN_ID = 20

LAYER_FIELDS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "decoder_layers",
    "encoder_layers",
    "num_encoder_layers",
    "num_decoder_layers",
    "num_layers_per_stack",
    "num_blocks",
    "depth",
    "conf_num_hidden_layers",
)


def _fields(value: int, names: str) -> dict[str, int]:
    return dict.fromkeys(names.split(), value)


SIZES: dict[str, int] = {
    **dict.fromkeys(LAYER_FIELDS, LAYERS),
    # Fewer, so that the layers of an encoder cannot be taken for those of the decoder.
    **_fields(LAYERS - 1, "encoder_layers num_encoder_layers"),
    **_fields(
        HIDDEN,
        """hidden_size d_model n_embd embed_dim emb_dim dim word_embed_proj_dim embedding_size embedding_dim
        attention_hidden_size input_embedding_size output_embedding_size lru_width out_hidden_size backbone_hidden_size
        hidden_size_global pronunciation_embed_dim shape_embed_dim input_size""",
    ),
    **_fields(
        4,
        """num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads attention_heads
        num_encoder_attention_heads num_decoder_attention_heads conf_num_attention_heads swa_num_attention_heads
        linear_num_heads index_n_heads linear_num_value_heads""",
    ),
    **_fields(8, "mamba_n_heads mamba_num_heads"),
    **_fields(2, "num_key_value_heads num_kv_heads kv_n_heads swa_num_key_value_heads linear_num_key_heads"),
    **_fields(
        8,
        """head_dim d_kv dim_head d_head attention_head_size v_head_dim qk_nope_head_dim swa_head_dim kv_channels
        linear_key_head_dim linear_value_head_dim linear_head_dim index_head_dim global_head_dim""",
    ),
    # Half of a head is rotated, where a part is.
    **_fields(4, "rotary_dim qk_rope_head_dim"),
    **_fields(12, "qk_head_dim"),
    **_fields(16, "kv_lora_rank q_lora_rank o_lora_rank hc_lowrank laurel_rank gated_norm_rank adapter_rank"),
    **_fields(
        48,
        """intermediate_size decoder_ffn_dim encoder_ffn_dim ffn_dim ffn_hidden_size d_ff d_inner dff dim_ff mlp_dim
        moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size
        moe_shared_expert_intermediate_size dense_intermediate_size feed_forward_size intermediate_size_mlp
        shared_experts_intermediate_size""",
    ),
    **_fields(
        VOCABULARY,
        """vocab_size decoder_vocab_size vocab_size_per_layer_input audio_vocab_size unpadded_vocab_size
        pronunciation_vocab_size shape_vocab_size encoder_hash_byte_group_vocab ngram_vocab_size_base""",
    ),
    **_fields(
        64,
        """max_position_embeddings n_positions n_ctx max_seq_len context_length model_max_length max_target_positions
        max_source_positions""",
    ),
    # As many experts as there are blocks: a list of experts is then as long as the list of blocks.
    **_fields(LAYERS, "num_experts moe_num_experts num_local_experts"),
    **_fields(4, "n_routed_experts zero_expert_num"),
    **_fields(2, "num_experts_per_tok num_experts_per_token moe_topk moe_k moe_top_k"),
    **_fields(1, "n_group num_expert_group topk_group n_shared_experts num_shared_experts moe_num_shared_experts"),
    # Shorter than the survey's sequences, so that it matters.
    **_fields(4, "sliding_window attention_window_size local_attention sliding_window_size attention_chunk_size"),
    **_fields(4, "index_topk keep_window_size chunk_size mamba_chunk_size"),
    **_fields(4, "mamba_d_state state_size ssm_state_size time_step_rank mamba_dt_rank d_rel"),
    **_fields(8, "mamba_d_head mamba_head_dim mamba_headdim hidden_size_per_layer_input ple_embed_dim"),
    **_fields(16, "rel_extent router_hidden_size prompt_mid_dim"),
    **_fields(1, "first_k_dense_replace num_dense_layers moe_layer_start_index num_kv_shared_layers"),
    **_fields(LAYERS - 1, "moe_layer_end_index"),
    # What text never reaches is only made small.
    **_fields(16, "image_size crop_size vision_output_dim projector_input_dim projector_output_dim codebook_size"),
    **_fields(8, "base_channels num_filters output_channels"),
}

# What the names of the fields do not say, found by trying.
OVERRIDES: dict[str, dict[str, Any]] = {
    # Twice the width is eight heads of eight.
    "Mamba2Config": {"num_heads": 8, "head_dim": 8, "n_groups": 2},
    "NemotronHConfig": {"mamba_num_heads": 8, "n_groups": 2},
    "ZambaConfig": {
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],  # what two share is tied
    },
    "Zamba2Config": {"attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4},
    "FalconH1Config": {"mamba_d_ssm": 64},
    # The adapters of towers are as wide as the towers.
    "Dots3NoteVisionConfig": {"adapter_in_dim": HIDDEN, "adapter_out_dim": HIDDEN},
    "Dots3NoteAudioConfig": {"adapter_input_size": HIDDEN, "adapter_out_dim": HIDDEN},
    # The attention type of the last block only comes with a longer stack.
    "JambaConfig": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "Lfm2MoeConfig": {"layer_types": ["conv", "conv", "full_attention"], "num_dense_layers": 1},
    # Blocks that share keys and values need one of each kind before them.
    "Gemma3nTextConfig": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0],
        "intermediate_size": [48] * 4,
    },
    # Defaults that do not build.
    "DbrxAttentionConfig": {"rope_theta": 10000.0, "clip_qkv": 8.0},
    "Dots1Config": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "DeepseekV2Config": {"num_experts_per_tok": 2},
    "NemotronConfig": {"num_key_value_heads": 2},
    "CohereCompassTextConfig": {
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in ("sliding_attention", "full_attention")
        },
    },
    "Qwen4ExpTextConfig": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
    },
    # Two codebooks: a row of ids for each, so that two rows are a batch of one.
    "MusicgenDecoderConfig": {"num_codebooks": 2},
    "MusicgenMelodyDecoderConfig": {"num_codebooks": 2},
    "ReformerConfig": {
        "is_decoder": True,
        "hash_seed": 0,  # else every forward draws its own hashes
        "attn_layers": ["local", "lsh", "local"],
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [8, 24],
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "num_buckets": 2,
    },
    "xLSTMConfig": {"hidden_size": 64, "embedding_dim": 64, "chunk_size": 16, "ffn_round_up_to_multiple_of": 8},
    "XmodConfig": {"default_language": "en_XX"},
}


def tiny(config_class: type[PretrainedConfig]) -> PretrainedConfig:
    """The config of that class with three layers, a width of 32 and a vocabulary of 96, or near to it."""
    if config_class is transformers.Gemma4AssistantConfig:  # its own default does not pass its own validation
        text = transformers.Gemma4TextConfig(hidden_size_per_layer_input=0, vocab_size_per_layer_input=0)
        return _shrunk(config_class(text_config=text))
    config = _shrunk(config_class())
    if config_class is transformers.Gemma3nConfig:
        vars(config)["vision_config"] = _without_timm(config.vision_config)
    return config


def _without_timm(vision_config: PretrainedConfig) -> PretrainedConfig:
    """Another tower in the place of one that needs timm: text reaches neither."""
    tower = transformers.ViTConfig(hidden_size=HIDDEN, num_attention_heads=4, num_hidden_layers=1)
    vars(tower).update({name: value for name, value in vars(vision_config).items() if name not in vars(tower)})
    return tower


def named(name: str) -> nn.Module:
    """A tiny model of the architecture of that name in the causal-LM mapping."""
    config_class = CONFIG_MAPPING[name]
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    return make(model_class, tiny(config_class))


def make(model_class: type[nn.Module], config: PretrainedConfig) -> nn.Module:
    """A model with random weights, in eval mode and frozen, as `probekit.load` leaves one: on some processors the
    kernel of a convolution depends on it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(_of_class(config, getattr(model_class, "config_class", None)))
        for parameter in model.parameters():  # initial zeros and ones hide what a part does
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


def _of_class(config: PretrainedConfig, wanted: type | None) -> PretrainedConfig:
    """The config or, as AutoModelForCausalLM does, the part of a composite one that the model is made for."""
    parts = [config, *(value for value in vars(config).values() if isinstance(value, PretrainedConfig))]
    return next((part for part in parts if type(part) is wanted), config)


def _shrunk(config: PretrainedConfig) -> PretrainedConfig:
    fields = vars(config)
    layers = next((fields[name] for name in LAYER_FIELDS if isinstance(fields.get(name), int)), None)
    smaller: dict[str, Any] = {}
    for name, value in fields.items():
        small = _smaller(name, value, layers)
        if small is not None:
            smaller[name] = small
    if "head_dim" in fields and fields["head_dim"] is None:  # some classes fill it in, some fail without it
        smaller["head_dim"] = SIZES["head_dim"]
    smaller |= _latent_attention(fields) | _special_tokens(fields)
    return type(config)(**{**smaller, **OVERRIDES.get(type(config).__name__, {})})


def _latent_attention(fields: dict[str, Any]) -> dict[str, Any]:
    """Attention through a low rank has as many heads of keys as of queries, and its `head_dim` is the rotated part."""
    if "kv_lora_rank" not in fields:
        return {}
    rotated = {"head_dim": SIZES["qk_rope_head_dim"]} if fields.get("head_dim") == fields["qk_rope_head_dim"] else {}
    heads = {"num_key_value_heads": SIZES["num_attention_heads"]} if "num_key_value_heads" in fields else {}
    return heads | rotated


def _smaller(name: str, value: Any, layers: int | None) -> Any:
    """What a field is set to; None to leave it alone."""
    if isinstance(value, PretrainedConfig):
        return _shrunk(value)
    if isinstance(value, int) and not isinstance(value, bool) and name in SIZES:
        if name == "num_kv_shared_layers" and value == layers:
            return LAYERS
        return min(value, SIZES[name])  # zero and less mean that something is not there
    if isinstance(value, list | tuple) and len(value) == layers and layers > LAYERS:
        return _every_kind(value)
    return None


def _every_kind(kinds: Sequence[Any]) -> list[Any]:
    """Three entries with every kind among them, in the order in which they first come."""
    distinct = [kind for index, kind in enumerate(kinds) if kind not in kinds[:index]][:LAYERS]
    return [distinct[0]] * (LAYERS - len(distinct)) + distinct


def _special_tokens(fields: dict[str, Any]) -> dict[str, Any]:
    """Ids inside the small vocabulary, each its own."""
    known = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    tokens: dict[str, Any] = {}
    following = 3
    for name, value in fields.items():
        if not name.endswith(("token_id", "token_index")) or value is None:
            continue
        if name in known:
            tokens[name] = known[name]
        elif isinstance(value, int) and value >= 0:
            tokens[name] = following
            following += 1
    assert following <= FIRST_PLAIN_ID
    return tokens
