"""A model's configuration and weights, as every process reads them. No code that comes with a model is ever run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from common.errors import UserError

_REMEDY = "give a local folder with config.json, weights and tokenizer, or a Hugging Face id that can be reached"


@contextmanager
def hidden(*packages: str) -> Iterator[None]:
    """While these are not there for whoever asks Python for them; what was imported before stays."""
    names = [name for name in packages if name not in sys.modules]
    for name in names:
        # What Python takes for a package that isn't there.
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


@cache
def spare_imports() -> None:
    """Keep transformers from importing what serves assisted generation and losses of object detection alone.

    That is scikit-learn, pandas with it, and SciPy: more than a second of each process' start.
    """
    with hidden("sklearn", "scipy"):
        from transformers.utils import is_scipy_available, is_sklearn_available

        # They remember what they find.
        is_scipy_available(), is_sklearn_available()


def load_config(name: str) -> Any:
    """The configuration of a local folder or Hugging Face id; raises UserError naming `model.name`."""
    spare_imports()
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        raise _unusable_config(name, error) or cant_load(name, "model", error) from error


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a local folder or Hugging Face id; raises UserError naming `model.name`."""
    spare_imports()
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        raise cant_load(name, "tokenizer", error) from error


def load_causal_lm(name: str, dtype: Any) -> Any:
    """A causal language model with its weights, in evaluation mode; raises UserError naming `model.name`."""
    config = load_config(name)
    from transformers import AutoModelForCausalLM

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            dtype=dtype,
            attn_implementation=_attention(config),
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:
        raise UserError(
            "model.name", name, f"its weights can't be loaded ({type(error).__name__})", "give a complete model folder"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        # transformers fills them with random numbers and goes on.
        raise UserError(
            "model.name",
            name,
            f"its weights lack {len(missing)} of the model's tensors, {missing[0]} among them",
            "give a complete model folder",
        )
    return model.eval()


def causal_lm_without_weights(name: str, config: Any) -> Any:
    """The model's modules by name and shape, nothing stored in them; raises UserError naming `model.name`."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise _no_model(name, error) from error


def vocabulary_size(name: str, config: Any) -> int:
    """Size of the output distribution, of the text part where there are others; raises UserError."""
    size = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    if not size:
        raise UserError(
            "model.name", name, "is no language model: it has no vocabulary", "give a causal language model"
        )
    return int(size)


def _attention(config: Any) -> str | None:
    """transformers' own choice, but for soft-capped scores, as Gemma 2's: its fused attention leaves the cap out."""
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else None


def _unusable_config(name: str, error: Exception) -> UserError | None:
    """What to say of a configuration that is there, and that transformers can't use; None for others."""
    import transformers

    try:
        found, _ = transformers.PretrainedConfig.get_config_dict(name)
    except Exception:
        # There is no configuration: the first error says so.
        return None
    kind = found.get("model_type")
    if not found or found.get("auto_map"):
        return None
    if isinstance(kind, str) and kind in transformers.CONFIG_MAPPING:
        return _no_model(name, error)
    return UserError(
        "model.name",
        name,
        f"its config.json has model_type = {kind!r}, which transformers {transformers.__version__} doesn't know",
        "give a model of an architecture that this version has",
    )


def _no_model(name: str, error: Exception) -> UserError:
    return UserError(
        "model.name",
        name,
        f"no model can be made from its config.json ({type(error).__name__}: {error})",
        "give a model whose settings transformers knows",
    )


def cant_load(name: str, part: str, error: Exception) -> UserError:
    """What to say of a model that transformers can't load a part of."""
    if "trust_remote_code" in str(error):
        return UserError(
            "model.name",
            name,
            f"its {part} comes with code of its own (auto_map), which is never run here",
            "give a model of an architecture that transformers itself has",
        )
    return UserError("model.name", name, f"no {part} can be loaded from it ({type(error).__name__})", _REMEDY)
