"""Whether a model can be trained and served, found from its configuration and its modules' names, without weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from common.errors import UserError
from common.models import causal_lm_without_weights, load_config
from deploy.run.vllm_registry import is_installed, serves_lora

SERVED = "Llama, Mistral, Qwen 2 and 3, Gemma 2 and 3, Phi, Phi-3, OPT, GPT-NeoX"
"""Families that are tested through sampling, scoring and learning; others may work as well."""
_SENSES = ("vision", "visual", "image", "video", "audio", "speech")


@dataclass(frozen=True)
class ModelCheck:
    """A model's configuration, found to be that of a causal language model that vLLM serves with LoRA adapters."""

    name: str
    config: Any

    @classmethod
    def of(cls, name: str) -> ModelCheck:
        """Raises UserError naming `model.name`, with what it is and what would work."""
        config = load_config(name)
        problem = _why_not(name, config)
        if problem is not None:
            raise UserError("model.name", name, *problem)
        return cls(name, config)

    @property
    def context_length(self) -> int | None:
        """Tokens that the model was made for; None where its configuration doesn't say."""
        found = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return int(found) if found else None

    @cached_property
    def _model(self) -> Any:
        return causal_lm_without_weights(self.name, self.config)

    @property
    def n_parameters(self) -> int:
        """Of the base model."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    @cached_property
    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs of every linear layer by its name, but for the output layer, which is never adapted."""
        import torch

        model, head = self._model, self._model.get_output_embeddings()
        return {
            name: (module.out_features, module.in_features)
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not head
        }

    def check_target_modules(self, targets: Sequence[str]) -> None:
        """Raises UserError for a name that no linear layer has: it would show much later."""
        known = sorted({name.rpartition(".")[2] for name in self.linear_layers})
        for target in targets:
            if target not in known:
                raise UserError(
                    "model.lora.target_modules",
                    target,
                    "is no linear layer of this model that can be adapted",
                    f"choose among {', '.join(known)}",
                )

    def check_tensor_parallel(self, n: int) -> None:
        """Raises UserError where the model can't be cut into so many parts."""
        if n == 1:
            return
        model = self.config.get_text_config()
        heads = int(model.num_attention_heads)
        sizes = {
            "attention heads": heads,
            "entries in the feed-forward layers": getattr(model, "intermediate_size", None),
        }
        key_heads = int(getattr(model, "num_key_value_heads", None) or heads)
        if key_heads >= n:
            # Of fewer, each part has one, which several parts then share.
            sizes["key-value heads"] = key_heads
        for what, size in sizes.items():
            if size and size % n:
                good = [
                    i for i in range(2, n) if not any(other and other % i for other in (*sizes.values(), key_heads))
                ]
                raise UserError(
                    "actor.tensor_parallel_size",
                    n,
                    f"does not divide the {size} {what} of this model",
                    f"give {' or '.join(map(str, good[::-1]))}" if good else "leave it at 1",
                )
        if n > key_heads and n % key_heads:
            raise UserError(
                "actor.tensor_parallel_size",
                n,
                f"is no multiple of the {key_heads} key-value heads of this model, nor their divisor",
                f"give {key_heads}" if key_heads > 1 else "leave it at 1",
            )


def _why_not(name: str, config: Any) -> tuple[str, str] | None:
    """What keeps a model from being used, and what to do; None for nothing."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    choose = f"choose a causal language model, such as one of {SERVED}"
    kind, architectures = config.model_type, config.architectures or []
    if not isinstance(architectures, list) or not all(isinstance(item, str) for item in architectures):
        return f"its config.json has architectures = {architectures!r}, no list of names", 'write it as ["NAME"]'
    own = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    shown = architectures[0] if architectures else f"a {kind}"
    if config.is_encoder_decoder:
        return f"is {shown}, an encoder with a decoder, which continues no prompt", choose
    text = config.get_text_config()
    if text is not config or _reads_more(config):
        save = "save its text part as a model of its own, as docs/models.md shows"
        return (
            f"is {shown}, which reads more than text: only models of text alone are served",
            save
            if text is not config and getattr(text, "model_type", None) in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
            else choose,
        )
    if own is None or (getattr(config, "is_decoder", None) is False and _reads_both_ways(name, config)):
        return f"is {shown}, no causal language model", choose
    if not architectures:
        return "names no architecture in its config.json", f'add "architectures": ["{own}"]'
    if own not in architectures:
        return f"is {shown}, no causal language model such as {own}", "give the model with its output layer"
    if not _served(own):
        return f"is {own}, which vLLM can't serve with LoRA adapters", choose
    state = _unshared_state(own, config)
    if state is not None:
        return f"is {own}, whose layers keep a state ({state}) that rationales of one prompt can't share", choose
    return None


def _served(architecture: str) -> bool:
    """By vLLM, with adapters: what its registry doesn't name it runs through transformers' code, if that can be run."""
    known = serves_lora(architecture)
    if known is not None or not is_installed():
        return known is not False
    import transformers

    model_class = getattr(transformers, architecture)
    return bool(model_class.is_backend_compatible() or model_class._can_set_attn_implementation())


def _reads_more(config: Any) -> bool:
    """Whether a part that reads no text has settings of its own, such as vision_config or audio_encoder_config."""
    parts = [name for name, value in config.to_dict().items() if name.endswith("_config") and value]
    return any(sense in name for name in [*parts, *config.sub_configs] for sense in _SENSES)


def _reads_both_ways(name: str, config: Any) -> bool:
    """Whether a layer looks at the tokens to come: GPT-NeoX isn't called a decoder either, and is one."""
    modules = causal_lm_without_weights(name, config).modules()
    return any(getattr(module, "is_causal", None) is False for module in modules)


def _unshared_state(architecture: str, config: Any) -> str | None:
    """A kind of cached layer that can't be repeated by trajectory, as the learner repeats a prompt's; None for none."""
    import transformers
    from transformers.cache_utils import LinearAttentionCacheLayerMixin

    if getattr(transformers, architecture)._is_stateful:
        return "a recurrent one"
    try:
        layers = transformers.DynamicCache(config=config).layers
    except (AttributeError, ValueError, TypeError) as error:
        return f"or none, as its config.json doesn't tell: {type(error).__name__}"
    for layer in layers:
        # A layer of both kinds repeats the keys and values alone.
        if isinstance(layer, LinearAttentionCacheLayerMixin) or not hasattr(layer, "batch_select_indices"):
            return type(layer).__name__
    return None
