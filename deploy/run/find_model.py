"""The model that a setting names: whether it is there and can be used, as far as can be told without loading it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import check_writable
from common.models import cant_load
from common.places import is_folder, looks_like_path
from common.rows import HUB_LIMIT_S

QUANTIZED = ("quantization_config", "compression_config", "quantization", "hf_quant_config")
"""Keys under which a model's config.json says how its weights were quantized: transformers', MLX', ModelOpt's."""
QUANTIZED_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
"""What GPTQ and AWQ wrote before there was a place for it in config.json, and ModelOpt still does."""


def find_model(name: str | None) -> str:
    """A local folder or hub id that exists as far as can be told without loading it; the default model for None."""
    if name is None:
        from common.default_model import default_model_path, verify_default_model

        path = default_model_path()
        problems = verify_default_model(path)
        if problems:
            raise UserError("model.name", None, f"the default model is not ready ({problems[0]})", "run `make setup`")
        return str(path)
    if is_folder(name):
        path = Path(name).expanduser()
        _check_no_adapter(name, str(path))
        for pattern in ("config.json", "*.safetensors"):
            if not any(path.glob(pattern)):
                raise UserError("model.name", name, f"the folder has no {pattern}", "give a Hugging Face model folder")
        _check_not_quantized(name, path)
        return str(path.resolve())
    if looks_like_path(name):
        raise UserError("model.name", name, "no such folder", "give an existing folder or a Hugging Face id")
    check_hub("model.name", name)
    _check_no_adapter(name, name)
    _check_not_quantized(name, None)
    return name


def _check_no_adapter(name: str, model: str) -> None:
    """Refuse a model with an adapter beside it: transformers puts it into the model unasked, and vLLM doesn't."""
    if _file(model, "adapter_config.json") is not None:
        raise UserError(
            "model.name",
            name,
            "holds an adapter (adapter_config.json), which the learner would load into the model and the actors not",
            "give a folder of the model alone, and the adapter by model.lora.start_from",
        )


def _file(model: str, name: str) -> Path | None:
    """One of the files of a folder or hub id, as transformers itself would find it; None where there is none."""
    from transformers.utils import cached_file

    found = cached_file(
        model,
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def _check_not_quantized(name: str, folder: Path | None) -> None:
    """Refuse weights of few bits: the reward would be another model's than the one they were made from."""
    if folder is None:
        from transformers import PretrainedConfig

        try:
            found, _ = PretrainedConfig.get_config_dict(name)
        except Exception as error:
            raise cant_load(name, "model", error) from error
    else:
        found = _read_config(folder / "config.json", name)
    text = found.get("text_config")
    parts = [found, text if isinstance(text, dict) else {}]
    for file in QUANTIZED_FILES:
        path = _file(name if folder is None else str(folder), file)
        if path is not None:
            parts.append({QUANTIZED[0]: {**_read_config(path, name), "quant_method": file}})
    for part in parts:
        settings = next((part[key] for key in QUANTIZED if part.get(key)), None)
        if settings is not None:
            raise UserError(
                "model.name",
                name,
                f"its weights are quantized ({_quantization(settings)}), and so its probabilities, which the reward is "
                "made of, are not those of the model it was made from",
                "give the model that is not quantized; to save the learner's memory set learner.dtype: bfloat16",
            )


def _quantization(settings: Any) -> str:
    """What a config says of its quantization, e.g. "bitsandbytes, 4 bits"."""
    if not isinstance(settings, dict):
        return "says its config.json"
    bits = settings.get("bits") or settings.get("w_bit")
    bits = bits or next((n for n in (4, 8) if settings.get(f"load_in_{n}bit")), None)
    said = [str(settings.get("quant_method", "")), f"{bits} bits" if bits else ""]
    return ", ".join(filter(None, said)) or "says its config.json"


def _read_config(path: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        remedy = "give a complete Hugging Face model folder"
        raise UserError("model.name", name, f"its {path.name} can't be read ({error})", remedy) from error
    if not isinstance(found, dict):
        raise UserError("model.name", name, f"its {path.name} holds no object", "give a Hugging Face model folder")
    return found


def check_hub(setting: str, name: str) -> None:
    """Ask the hub once: transformers would try for half a minute before it says that a model can't be had. Raises
    UserError naming the setting."""
    import huggingface_hub as hub

    try:
        cached = isinstance(hub.try_to_load_from_cache(name, "config.json"), str)
    except hub.errors.HFValidationError as error:
        remedy = "give an existing folder, or an id written as OWNER/NAME"
        raise UserError(setting, name, "is no folder, and can't be an id on the hub", remedy) from error
    if os.environ.get("HF_HUB_OFFLINE") and cached:
        return
    try:
        hub.HfApi().model_info(name, timeout=HUB_LIMIT_S)
    except Exception as error:
        if not cached:
            reason = type(error).__name__
            raise UserError(
                setting,
                name,
                f"is no local folder, and the hub gave no such model ({reason})",
                "give a local folder, or a Hugging Face id that can be reached",
            ) from error
        # Known from an earlier run, and the hub can't be reached: the processes of this run need not try either.
        os.environ["HF_HUB_OFFLINE"] = "1"
        hub.constants.HF_HUB_OFFLINE = True
        return
    if not cached:
        cache = Path(hub.constants.HF_HUB_CACHE)
        remedy = "set HF_HOME to a folder that can be written"
        check_writable("HF_HUB_CACHE", str(cache), cache, remedy, f"for {name} ")
