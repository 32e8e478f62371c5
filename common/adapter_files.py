"""A PEFT adapter as files: its digest, and what it is made for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Set
from pathlib import Path

from common.config import SERVED_RANKS, LoraSection
from common.errors import UserError

_PREFIX = "base_model.model."
"""What PEFT puts before a layer's name."""
_DESCRIBING = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "r", "lora_alpha", "lora_dropout", "target_modules", "loftq_config", "eva_config"),
    *("corda_config", "lora_ga_config", "megatron_core", "qalora_group_size"),
}
"""Settings of an adapter that are checked for themselves, or say nothing of what it computes."""
_FLOATS = ("F32", "BF16", "F16", "F64")
"""Types of an adapter's weights, as safetensors calls them, whose values are taken as they are."""
MERGED_PARTS = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "o_proj": ("o_proj",),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "down_proj": ("down_proj",),
}
"""Layers of vLLM's that an adapter can be merged into, and the model's own that each is, one behind the other."""


def can_merge(target_modules: Collection[str]) -> bool:
    """Whether an adapter of these modules can be merged into vLLM's layers."""
    return set(target_modules) <= {part for parts in MERGED_PARTS.values() for part in parts}


def files_sha256(files: Mapping[str, bytes]) -> str:
    """One digest over names and contents, in the order of names."""
    hasher = hashlib.sha256()
    for name in sorted(files):
        hasher.update(f"{name}\0{len(files[name])}\0".encode())
        hasher.update(files[name])
    return hasher.hexdigest()


def changes_something(files: Mapping[str, bytes]) -> bool:
    """Whether any of an adapter's second factors is not all zero, as those of an untrained one are."""
    from safetensors.numpy import load

    tensors = [load(data) for name, data in files.items() if name.endswith(".safetensors")]
    return any(bool(values.any()) for found in tensors for name, values in found.items() if "lora_B" in name)


def check_adapter(
    setting: str,
    folder: Path,
    lora: LoraSection,
    model: str,
    linear_layers: Mapping[str, tuple[int, int]],
    *,
    same_rank: bool,
) -> None:
    """Hold a folder against what `model.lora` describes: a plain LoRA adapter of this model.

    `linear_layers` are the model's, with their outputs and inputs. Raises UserError naming `setting`.
    """
    try:
        found = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        kind = found.get("peft_type", "LORA")
        rank, modules = (0, "") if kind != "LORA" else (int(found["r"]), found["target_modules"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            setting, str(folder), f"holds no PEFT adapter ({type(error).__name__})", "give a folder such as RUN/adapter"
        ) from error
    if kind != "LORA":
        raise UserError(setting, str(folder), f"holds a {kind} adapter", "give a LoRA adapter")
    for name, value in found.items():
        if not _is_plain(name, value):
            raise UserError(
                setting,
                str(folder),
                f"its adapter_config.json has {name} = {json.dumps(value)}, which is no part of a plain LoRA adapter",
                "give an adapter without it",
            )
    if isinstance(modules, str):
        names = ", ".join(sorted({name.rpartition(".")[2] for name in linear_layers}))
        raise UserError(
            setting,
            str(folder),
            f"its target_modules are the pattern {modules!r}",
            f"name the modules one by one in its adapter_config.json, of {names}",
        )
    parts = _adapted_parts(setting, folder, modules, linear_layers)
    if not 1 <= rank <= SERVED_RANKS[-1]:
        raise UserError(setting, str(folder), f"has rank {rank}", f"give an adapter of rank 1 to {SERVED_RANKS[-1]}")
    if rank > lora.served_rank or (same_rank and rank != lora.rank):
        raise UserError(setting, str(folder), f"has rank {rank}, model.lora.rank is {lora.rank}", "set that rank")
    alpha = found.get("lora_alpha", lora.alpha)
    if not isinstance(alpha, int | float) or not 0 < alpha < float("inf"):
        raise UserError(setting, str(folder), f"has alpha {alpha}", "give an adapter with an alpha above 0")
    if same_rank and alpha != lora.alpha:
        raise UserError(
            setting, str(folder), f"has alpha {alpha}, model.lora.alpha is {lora.alpha:g}", "set model.lora.alpha to it"
        )
    if not parts <= set(lora.target_modules) or (same_rank and parts != set(lora.target_modules)):
        shown = ", ".join(sorted(parts))
        raise UserError(setting, str(folder), f"adapts {shown}", "set model.lora.target_modules to these")
    base = found.get("base_model_name_or_path")
    if base and Path(str(base)).name != Path(model).name:
        raise UserError(
            setting,
            str(folder),
            f"was trained on {base}, model.name is {model}",
            "give that model; if it is the same one, write so into base_model_name_or_path of its adapter_config.json",
        )
    _check_weights(setting, folder, rank, parts, linear_layers)


def _adapted_parts(
    setting: str, folder: Path, modules: object, linear_layers: Mapping[str, tuple[int, int]]
) -> set[str]:
    """Last parts of the names of the layers that an adapter's target_modules name, be it by whole names."""
    known = sorted({name.rpartition(".")[2] for name in linear_layers})
    remedy = f"give an adapter of {', '.join(known)}, on all layers of each that it has"
    if not isinstance(modules, list) or not modules or not all(isinstance(item, str) for item in modules):
        problem = f"its adapter_config.json has target_modules = {json.dumps(modules)}, no list of names"
        raise UserError(setting, str(folder), problem, remedy)
    adapted: set[str] = set()
    for module in modules:
        found = {name for name in linear_layers if name == module or name.endswith(f".{module}")}
        if not found:
            problem = f"adapts {module}, which is no linear layer of this model that can be adapted"
            raise UserError(setting, str(folder), problem, remedy)
        adapted |= found
    parts = {name.rpartition(".")[2] for name in adapted}
    left = sorted(name for name in linear_layers if name.rpartition(".")[2] in parts and name not in adapted)
    if left:
        raise UserError(setting, str(folder), f"adapts some layers of a kind alone, and not {left[0]}", remedy)
    return parts


def _is_plain(name: str, value: object) -> bool:
    """Whether a setting of an adapter leaves it what it is without the setting: B·A·alpha/rank on linear layers."""
    if name == "init_lora_weights":
        # Others put a part of the base model's weights into the adapter.
        return isinstance(value, bool) or value in ("gaussian", "eva", "orthogonal")
    return name in _DESCRIBING or value in (None, "none", [], {}) or value is False


def _check_weights(
    setting: str, folder: Path, rank: int, modules: Set[str], linear_layers: Mapping[str, tuple[int, int]]
) -> None:
    """Both factors of every such layer, in the layer's shape, of finite real numbers, and nothing else."""
    import torch
    from safetensors import SafetensorError, safe_open

    path = folder / "adapter_model.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            kinds = {name: file.get_slice(name).get_dtype() for name in shapes}
    except (OSError, SafetensorError) as error:
        raise UserError(
            setting, str(folder), f"its {path.name} can't be read ({type(error).__name__})", "give a whole adapter"
        ) from error
    expected = {}
    for name, (outputs, inputs) in linear_layers.items():
        if name.rpartition(".")[2] in modules:
            expected[f"{_PREFIX}{name}.lora_A.weight"] = (rank, inputs)
            expected[f"{_PREFIX}{name}.lora_B.weight"] = (outputs, rank)
    wrong = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
    if wrong:
        first = wrong[0]
        raise UserError(
            setting,
            str(folder),
            f"does not fit this model: {first.removeprefix(_PREFIX)} is {_shown(shapes.get(first), 'missing')}, "
            f"expected is {_shown(expected.get(first), 'none')}",
            "give an adapter of this model",
        )
    for name, kind in kinds.items():
        if kind not in _FLOATS:
            problem = f"its {name.removeprefix(_PREFIX)} is of type {kind}"
            raise UserError(setting, str(folder), problem, f"give an adapter in {', '.join(_FLOATS)}")
    with safe_open(path, framework="pt") as file:
        for name in shapes:
            if not torch.isfinite(file.get_tensor(name)).all():
                problem = f"its {name.removeprefix(_PREFIX)} holds numbers that are not finite"
                raise UserError(setting, str(folder), problem, "give an adapter from before its training diverged")


def _shown(shape: tuple[int, ...] | None, absent: str) -> str:
    return absent if shape is None else " x ".join(map(str, shape))
