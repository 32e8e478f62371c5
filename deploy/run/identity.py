"""What the settings of a run stand for: digests of the model, of files and of the training queries.

A setting names a place, and what is at that place may be replaced, or be moved to another. The digests are kept in the
run's folder, so that a resumed or an opened run is known to go on with what it was trained with.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import TypeAdapter

from common.config import RunConfig
from common.errors import UserError
from common.files import write_whole
from common.own_modules import module_sha256
from common.places import Kind, on_hub, places
from common.tasks import Task
from common.user_code import is_file

FILE = "identity.json"
QUERIES = "task.train_path"
"""The setting by which the training queries' digest goes; tasks that make their queries have it too."""
NOT_OF_THE_SAMPLER = (QUERIES, "seeds.file", "model.lora.start_from", "task.embedding_model")
"""What a trained sampler and the reward of its samples don't depend on any more."""
REFERENCE = "reference.adapter"
"""What an expectation maximisation replaces by its own."""
WHOLE_BYTES = 2**30
"""A model of more than this is read in samples."""
SAMPLE_BYTES = 4_096
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
_PASSING = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")
"""Of config.json: what saving a model anew may change."""


def identity_of(config: RunConfig, task: Task[Any]) -> dict[str, str]:
    """Digests by setting, of all that decides what the run is trained with."""
    return {QUERIES: queries_digest(task)} | files_identity(config)


def queries_digest(task: Task[Any]) -> str:
    """Of the training queries, in whatever order."""
    return _digest(*sorted(query.id for query in task.queries("train")))


def files_identity(config: RunConfig) -> dict[str, str]:
    """The part of it that needs no task: models, adapters and files; what can't be found here is left out."""
    found: dict[str, str] = {}
    for name, kind, text, path in named_paths(config):
        if kind is Kind.MODEL:
            digest = model_digest(str(text))
        elif (path / "adapter_config.json").is_file():
            digest = digest_of_files(sorted(path.glob("adapter_*")))
        elif kind is Kind.MODULE:
            digest = module_sha256(name, str(text))
        elif kind in (Kind.FILE, Kind.FUNCTION) and path.is_file():
            digest = digest_of_files([path])
        else:
            continue
        if digest is not None:
            found[name] = digest
    return found


def named_paths(config: RunConfig) -> Iterator[tuple[str, Kind, str | Path, Path]]:
    """Every place that settings name: the setting, what it names, its text, and the path, of a function its file's."""
    folders = {name: Path(text) for name, kind, text in places(config) if kind is Kind.FOLDER}
    for name, kind, text in places(config):
        is_function = kind is Kind.FUNCTION
        folder = f"{name.rpartition('.')[0]}.folder"
        yield name, kind, text, source_of(str(text), folders[folder]) if is_function else Path(text)


def source_of(function: str, folder: Path) -> Path:
    """The file that a user's function is in, found without running anything: its own, or its module's in `folder`.

    A module that is elsewhere on PYTHONPATH is not found: who installs packages replaces them now and then.
    """
    where = function.rpartition(":")[0]
    if is_file(where):
        return Path(where)
    path = folder.joinpath(*where.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def keep_identity(config: RunConfig, task: Task[Any]) -> None:
    """Keep it in the run's folder; a resumed run has been held against what it had."""
    path = config.run_folder / FILE
    if not path.exists():
        write_whole(path, json.dumps(identity_of(config, task), indent=2))


def load_identity(folder: Path) -> dict[str, str]:
    """What was kept; empty for a run of an amortis that kept nothing."""
    path = folder / FILE
    try:
        return TypeAdapter(dict[str, str]).validate_json(path.read_bytes()) if path.is_file() else {}
    except (OSError, ValueError) as error:
        problem = f"its {FILE} can't be read ({type(error).__name__})"
        raise UserError("RUN", str(folder), problem, "delete that file: what it says is then not looked at") from error


def check_models(config: RunConfig, folder: Path) -> None:
    """Raises UserError if a model, an adapter or a file is not that which the run in this folder was trained with."""
    kept, found = load_identity(folder), files_identity(config)
    values = {name: text for name, _, text in places(config)}
    for name in sorted(kept.keys() & found.keys() - set(NOT_OF_THE_SAMPLER)):
        if name == REFERENCE and has_own_reference(config):
            continue
        if kept[name] != found[name]:
            problem = "is not what the run was trained with, though it may be of the same shapes"
            raise UserError(name, str(values[name]), problem, f"give that by --{name}, or train a run with this one")


def has_own_reference(config: RunConfig) -> bool:
    """Whether the reference is what an expectation maximisation made itself: its last M step's model, which it is
    evaluated by, whatever adapter it was given to begin with."""
    adapter = config.reference.adapter
    return bool(config.em.iterations) and adapter is not None and adapter.is_relative_to(config.run_folder)


def model_digest(name: str) -> str | None:
    """Of a model's architecture and weights, by what they are and not by where, when or in how many files they lie.

    Covers config.json without what saving anew changes, and of every tensor its name, type, shape and content: all of
    it for a model of up to `WHOLE_BYTES`, else three samples of `SAMPLE_BYTES` (beginning, middle, end), in which a
    model that was trained further differs. It doesn't cover the tokenizer, whose ids the queries hold. None for an id
    on the hub that isn't in the cache yet, or not as a whole.
    """
    folder = _folder(name)
    if folder is None:
        return None
    try:
        files = _weights(folder)
        if not files or not all(path.is_file() for path in files):
            return None
        whole = sum(path.stat().st_size for path in files) <= WHOLE_BYTES
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kept = {key: value for key, value in config.items() if key not in _PASSING}
        tensors = sorted(part for path in files for part in _tensors(path, whole))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise UserError("model.name", name, f"can't be read ({error})", "mend the folder, or give another") from error
    return _digest(json.dumps(kept, sort_keys=True), *tensors)


def _folder(name: str) -> Path | None:
    path = Path(name)
    if not on_hub(Kind.MODEL, name):
        return path if path.is_dir() else None
    import huggingface_hub as hub

    cached = hub.try_to_load_from_cache(name, "config.json")
    return Path(cached).parent if isinstance(cached, str) else None


def _weights(folder: Path) -> list[Path]:
    """The files that a model's weights are read from; others may lie beside them, as those that Mistral AI's own
    programs read, and come into the hub's cache later."""
    index = folder / WEIGHTS_INDEX
    if not index.is_file():
        return [folder / WEIGHTS]
    found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    return [folder / name for name in sorted(set(found.values()))]


def _tensors(path: Path, whole: bool) -> Iterator[str]:
    """A line for each tensor of a safetensors file: an 8-byte length, a JSON header, then the tensors' bytes."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        if size > os.fstat(file.fileno()).st_size:
            raise ValueError(f"{path.name} is no safetensors file, or not whole")
        header = json.loads(file.read(size))
        for name, about in header.items():
            if name != "__metadata__":
                start, end = about["data_offsets"]
                content = _content(file, 8 + size + start, end - start, whole)
                yield f"{name} {about['dtype']} {about['shape']} {content}"


def _content(file: BinaryIO, start: int, length: int, whole: bool) -> str:
    hasher = hashlib.sha256()
    if whole or length <= 3 * SAMPLE_BYTES:
        file.seek(start)
        while length > 0:
            part = file.read(min(length, 2**20))
            if not part:
                raise ValueError(f"{Path(file.name).name} is not whole")
            hasher.update(part)
            length -= len(part)
    else:
        for place in (0, (length - SAMPLE_BYTES) // 2, length - SAMPLE_BYTES):
            file.seek(start + place)
            hasher.update(file.read(SAMPLE_BYTES))
    return hasher.hexdigest()


def digest_of_files(paths: Sequence[Path]) -> str:
    """Of what they hold, in this order."""
    return _digest(*(f"{path.suffix} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in paths))


def _digest(*parts: str) -> str:
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(f"{len(part)} {part}".encode())
    return hasher.hexdigest()
