"""To and from `transformers`: the same weights as a `LlamaForCausalLM`."""

from typing import Any

import torch
from torch import Tensor

from shared.errors import BitlawError
from shared.model.shape import Shape
from shared.model.transformer import NORM_EPSILON, ROTARY_BASE, Decoder


def llama_name(name: str) -> str:
    """The name of one of our tensors in a LlamaForCausalLM state."""
    for projections, module in (
        (("q_proj", "k_proj", "v_proj", "o_proj"), "self_attn"),
        (("gate_proj", "up_proj", "down_proj"), "mlp"),
    ):
        for projection in projections:
            name = name.replace(f".{projection}.", f".{module}.{projection}.")
    return name if name.startswith("lm_head.") else f"model.{name}"


def to_transformers(model: Decoder) -> Any:
    """A LlamaForCausalLM with the same weights in FP32; its logits agree to 1e-5."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = model.shape
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.d_model,
        intermediate_size=shape.d_ff,
        num_hidden_layers=shape.n_layer,
        num_attention_heads=shape.d_model // shape.head_size,
        num_key_value_heads=shape.d_model // shape.head_size,
        max_position_embeddings=shape.context,
        rms_norm_eps=NORM_EPSILON,
        rope_parameters={"rope_type": "default", "rope_theta": ROTARY_BASE},
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    llama = LlamaForCausalLM(config).to(torch.float32)
    llama.load_state_dict({llama_name(name): value for name, value in model.state_dict().items()})
    return llama.eval()


def from_transformers(llama: Any) -> Decoder:
    """Our model from a LlamaForCausalLM of a form we have.

    Raises BitlawError when the configuration has what our model has not (grouped heads, biases, tied head,
    another activation or rotary scaling).
    """
    config = llama.config
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = getattr(config, "rope_parameters", None) or {}
    for found, wanted, what in (
        (config.model_type, "llama", "model type"),
        (config.num_key_value_heads, config.num_attention_heads, "key and value heads"),
        (config.tie_word_embeddings, False, "tied head"),
        (bool(config.attention_bias or config.mlp_bias), False, "biases"),
        (config.hidden_act, "silu", "activation"),
        (config.rms_norm_eps, NORM_EPSILON, "norm epsilon"),
        (rope.get("rope_type", "default"), "default", "rotary scaling"),
        (float(rope.get("rope_theta", ROTARY_BASE)), ROTARY_BASE, "rotary base"),
        (head_size * config.num_attention_heads, config.hidden_size, "width of all heads"),
    ):
        if found != wanted:
            raise BitlawError(f"this Llama cannot be imported: its {what} is {found!r}, ours is {wanted!r}")
    model = Decoder(
        Shape(
            n_layer=config.num_hidden_layers,
            d_model=config.hidden_size,
            d_ff=config.intermediate_size,
            head_size=head_size,
            vocabulary=config.vocab_size,
            context=config.max_position_embeddings,
        )
    )
    state: dict[str, Tensor] = llama.state_dict()
    model.load_state_dict({name: state[llama_name(name)].float() for name in model.state_dict()})
    return model
