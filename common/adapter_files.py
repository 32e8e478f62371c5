"""A PEFT adapter as files: its digest, and what it is made for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from common.config import LoraSection
from common.errors import UserError


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


def check_adapter(setting: str, folder: Path, lora: LoraSection, *, same_rank: bool) -> None:
    """Raises UserError naming `setting` for a folder that holds no adapter such as `model.lora` describes."""
    try:
        found = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        rank, modules = int(found["r"]), set(found["target_modules"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            setting, str(folder), f"holds no PEFT adapter ({type(error).__name__})", "give a folder such as RUN/adapter"
        ) from error
    if rank > lora.served_rank or (same_rank and rank != lora.rank):
        raise UserError(setting, str(folder), f"has rank {rank}, model.lora.rank is {lora.rank}", "set that rank")
    if not modules <= set(lora.target_modules) or (same_rank and modules != set(lora.target_modules)):
        shown = ", ".join(sorted(modules))
        raise UserError(setting, str(folder), f"adapts {shown}", "set model.lora.target_modules to these")
