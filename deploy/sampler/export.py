"""A finished run made into files that other programs take: a merged model, an adapter with its card, a GGUF file.

Each appears whole or not at all, and never in the place of something that is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.devices import GAP_LIMITS, torch_dtype
from common.errors import RunFault, UserError
from common.files import check_writable
from common.models import load_config, load_tokenizer
from common.trajectory import Query
from deploy.sampler.finished_run import FinishedRun
from deploy.sampler.gguf_file import check_exportable, write_gguf
from deploy.sampler.model_card import public_name, write_card

TEXTS, TOKENS, PROMPTS = 16, 256, 2
"""Of the sampler's own, that merged model and adapter are compared on; at most, and of how many test queries.

Texts of one prompt are written together, a token of each at a time, so that few prompts cost least."""
Say = Callable[[str], None]
"""Is told of each stage of the work before it begins."""


def _silent(_: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Agreement:
    """How close the merged model is to base model + adapter: mean |Δ log p| on the sampler's texts, in nats a token."""

    gap: float
    effect: float
    """The same between base model and base model + adapter: what the adapter changes."""
    limit: float
    tokens: int

    def problem(self, dtype: str) -> str | None:
        """Why the merged model is not the trained sampler; None if it is."""
        if self.effect == 0:
            return "the adapter changes nothing: the merged model would be the base model"
        if self.gap <= self.limit and self.gap < self.effect / 2:
            return None
        found = f"{self.gap:.2g} nats a token from base model + adapter on {self.tokens} tokens of its own samples"
        why = (
            f"the limit is {self.limit:g}" if self.gap > self.limit else f"the adapter itself changes {self.effect:.2g}"
        )
        advice = "" if dtype == "float32" else "; --dtype float32 rounds less"
        return f"the merged model in {dtype} is {found}, and {why}{advice}"


@dataclass(frozen=True)
class Merged:
    """Base model and adapter in one, and how well it was found to agree with the two."""

    model: Any
    tokenizer: Any
    dtype: str
    agreement: Agreement


@dataclass(frozen=True)
class Places:
    """Where to make what; None for what isn't wanted."""

    merged: Path | None = None
    adapter: Path | None = None
    gguf: Path | None = None

    def check(self) -> None:
        """Raises UserError for a place that is taken or can't be written."""
        for name, path in (("merged", self.merged), ("adapter", self.adapter), ("gguf", self.gguf)):
            if path is not None:
                check_new(f"--{name}", path, is_file=name == "gguf")


def export(
    run: FinishedRun, places: Places, dtype: str = "auto", prompt: str | None = None, say: Say = _silent
) -> dict[str, Any]:
    """Make all that is wanted; where it is, and how close merged weights are. Raises UserError and RunFault."""
    if dtype not in ("auto", *GAP_LIMITS):
        raise UserError(
            "--dtype", dtype, "is none that weights are written in", f"give auto or {', '.join(GAP_LIMITS)}"
        )
    places.check()
    if places.gguf is not None:
        check_exportable(load_config(run.model), load_tokenizer(run.model))
    found: dict[str, Any] = {}
    if places.adapter is not None:
        say(f"writing {places.adapter}")
        write_adapter(run, places.adapter, prompt)
        found["adapter"] = str(places.adapter)
    if places.merged is None and places.gguf is None:
        return found
    merged = merge(run, dtype, prompt, say)
    agreement = merged.agreement
    found |= {
        "dtype": merged.dtype,
        "nats a token from base + adapter": agreement.gap,
        "limit": agreement.limit,
        "nats a token the adapter changes": agreement.effect,
        "tokens compared": agreement.tokens,
    }
    if places.merged is not None:
        say(f"writing {places.merged}")
        write_merged(run, merged, places.merged, prompt)
        found["merged"] = str(places.merged)
    if places.gguf is not None:
        say(f"writing {places.gguf}")
        write_merged_gguf(run, merged, places.gguf)
        found["gguf"] = str(places.gguf)
    return found


def check_new(setting: str, path: Path, *, is_file: bool = False) -> None:
    """Raises UserError unless a folder or file can be made there; an empty folder may stand in a folder's place."""
    target = path.expanduser()
    if is_file and target.is_dir() and not any(target.iterdir()):
        raise UserError(setting, str(path), "is a folder", f"give a file's name, e.g. {path / 'model.gguf'}")
    if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
        raise UserError(setting, str(path), "is there already", "give another place, or move it away")
    check_writable(setting, str(path), target.resolve().parent, "give a place that can be written")


def merge(run: FinishedRun, dtype: str = "auto", prompt: str | None = None, say: Say = _silent) -> Merged:
    """Base model + adapter as one model, in the base model's own precision or another; rounded once, at the end.

    Compared on texts that the sampler itself continues its test queries, or `prompt`, with. Raises RunFault if the
    merged model is not close to base model + adapter.
    """
    name = _own_dtype(run) if dtype == "auto" else dtype
    queries, n = _compared_on(run, prompt)
    say(f"loading {public_name(run)} and the adapter")
    policy = run.policy()
    model = policy.model
    say(f"sampling {n * len(queries)} texts to compare on")
    texts = [text for query in queries for text in _continued(run, model, query, n)]
    with_adapter = _log_probs(model, texts)
    with model.disable_adapter():
        without = _log_probs(model, texts)
    say("merging")
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise RunFault(f"the adapter can't be merged: {error}") from error
    computed = merged.dtype
    for parameter in merged.parameters():
        parameter.data = parameter.data.to(torch_dtype(name)).to(computed)
    say(f"comparing {len(texts)} texts of {len(with_adapter)} tokens")
    gap = float((_log_probs(merged, texts) - with_adapter).abs().mean())
    limit = max(GAP_LIMITS[name], GAP_LIMITS[run.config.learner.dtype])
    agreement = Agreement(gap, float((without - with_adapter).abs().mean()), limit, len(with_adapter))
    problem = agreement.problem(name)
    if problem is not None:
        raise RunFault(f"{problem}; nothing was written")
    for parameter in merged.parameters():
        # Buffers stay as they are: what they hold is computed, and not saved.
        parameter.data = parameter.data.to(torch_dtype(name))
    merged.config.dtype = torch_dtype(name)
    merged.config._name_or_path = public_name(run)
    given = merged.generation_config
    # The base model's may hold a temperature or a penalty, under which it is another sampler.
    merged.generation_config = type(given)(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        **{key: getattr(given, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )
    return Merged(merged, _tokenizer(run), name, agreement)


def _tokenizer(run: FinishedRun) -> Any:
    """The base model's, with the chat template that was trained on."""
    tokenizer, chat = load_tokenizer(run.model), run.task.chat
    if chat is not None and chat.own_template is not None:
        tokenizer.chat_template = chat.own_template
    return tokenizer


def write_merged(run: FinishedRun, merged: Merged, folder: Path, prompt: str | None = None) -> None:
    """A Hugging Face model folder with tokenizer, card and mask; `prompt` is the one of the card's example."""

    def fill(draft: Path) -> None:
        merged.model.save_pretrained(draft)
        merged.tokenizer.save_pretrained(draft)
        found = merged.agreement
        write_card(
            run,
            draft,
            kind="merged",
            merge={
                "dtype": merged.dtype,
                "nats_a_token_from_base_and_adapter": found.gap,
                "limit_nats_a_token": found.limit,
                "nats_a_token_that_the_adapter_changes": found.effect,
                "compared_tokens": found.tokens,
            },
            prompt=prompt,
        )

    _appear("--merged", folder, fill)


def write_adapter(run: FinishedRun, folder: Path, prompt: str | None = None) -> None:
    """The run's PEFT adapter with card and mask; no path of this machine is left in it."""

    def fill(draft: Path) -> None:
        for path in run.adapter_folder.iterdir():
            if path.is_file() and not path.name.startswith("."):
                shutil.copyfile(path, draft / path.name)
        settings = draft / "adapter_config.json"
        found = json.loads(settings.read_text(encoding="utf-8"))
        found["base_model_name_or_path"] = public_name(run)
        settings.write_text(json.dumps(found, indent=2), encoding="utf-8")
        write_card(run, draft, kind="adapter", merge=None, prompt=prompt)

    _appear("--adapter", folder, fill)


def write_merged_gguf(run: FinishedRun, merged: Merged, file: Path) -> None:
    """The merged model as one GGUF file, its tokenizer in it."""
    with _draft_beside("--gguf", file) as draft:
        opens_with_bos = merged.tokenizer.bos_token_id in run.codec.opening_ids
        part = draft / "model.gguf"
        write_gguf(part, merged.model, merged.tokenizer, merged.dtype, public_name(run), opens_with_bos=opens_with_bos)
        part.chmod(0o644)
        _move("--gguf", part, file, is_file=True)


def _own_dtype(run: FinishedRun) -> str:
    """The precision that the base model is stored in."""
    config = load_config(run.model)
    found = str(getattr(config, "dtype", None) or torch.float32).removeprefix("torch.")
    return found if found in GAP_LIMITS else "float32"


def _compared_on(run: FinishedRun, prompt: str | None) -> tuple[list[Query], int]:
    """Prompts, and how many texts of each: so many that the longest possible ones have `TOKENS` in all."""
    texts = max(1, min(TEXTS, TOKENS // (run.task.action_space.max_len + 1)))
    queries = [run.query(prompt)] if prompt is not None else run.task.queries("test")[: min(PROMPTS, texts)]
    return queries, texts // len(queries)


def _continued(run: FinishedRun, model: Any, query: Query, n: int) -> list[tuple[list[int], int]]:
    """Texts of a query that the policy itself writes under the task's mask, with the length of their prompts."""
    from transformers import GenerationConfig

    space, prompt = run.task.action_space, query.prompt_ids.tolist()
    start = len(prompt)

    def allowed(_: int, ids: Tensor) -> Tensor:
        actions = ids[start:].tolist()
        if space.terminator_id in actions:
            return torch.tensor([space.terminator_id])
        return torch.as_tensor(space.allowed_array[space.mask(actions)])

    settings = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
        num_return_sequences=n,
        # One that is longer is compared on its beginning.
        max_new_tokens=min(space.max_len + 1, TOKENS),
        eos_token_id=space.terminator_id,
        pad_token_id=space.terminator_id,
    )
    ids = torch.tensor([prompt], device=model.device)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(run.config.run.seed)
        found = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=settings,
            prefix_allowed_tokens_fn=allowed,
        )
    texts = []
    for row in found.tolist():
        end = row.index(space.terminator_id, start) if space.terminator_id in row[start:] else len(row) - 1
        texts.append((row[: end + 1], start))
    return texts


def _log_probs(model: Any, texts: list[tuple[list[int], int]]) -> Tensor:
    """Log-probability of every token behind the prompts, whatever the mask, in nats."""
    parts = []
    with torch.no_grad():
        for row, start in texts:
            ids = torch.tensor([row], device=model.device)
            log_p = model(input_ids=ids).logits[0, start - 1 : -1].float().log_softmax(-1)
            parts.append(log_p.gather(1, ids[0, start:, None])[:, 0].double().cpu())
    return torch.cat(parts)


def _appear(setting: str, folder: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder's content beside it, then put it in place in one step."""
    with _draft_beside(setting, folder) as draft:
        whole = draft / "whole"
        whole.mkdir()
        fill(whole)
        for path in whole.iterdir():
            path.chmod(0o644)
        _move(setting, whole, folder)


@contextlib.contextmanager
def _draft_beside(setting: str, target: Path) -> Iterator[Path]:
    """A folder for what isn't whole yet, on the target's file system; gone at the end."""
    parent = target.expanduser().resolve().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=parent) as name:
            yield Path(name)
    except OSError as error:
        if not _is_of(error, parent):
            # Of what was to be read: the place is in order.
            raise
        raise UserError(setting, str(target), f"can't be written ({error.strerror})", "give another place") from error


def _is_of(error: OSError, folder: Path) -> bool:
    """Whether the system raised it about something in a folder, or about no file in particular, such as a full disk."""
    if error.errno is None:
        return False
    return error.filename is None or any(
        Path(os.fsdecode(name)).is_relative_to(folder)
        for name in (error.filename, error.filename2)
        if isinstance(name, str | bytes | os.PathLike)
    )


def _move(setting: str, draft: Path, target: Path, *, is_file: bool = False) -> None:
    """Raises UserError for what has come there meanwhile."""
    check_new(setting, target, is_file=is_file)
    draft.rename(target.expanduser())
