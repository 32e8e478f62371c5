"""Which figures of metrics.jsonl are drawn, in which order, and what the page says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.evaluation import PREFIX as EVALUATION
from common.stop_rule import NARROW
from deploy.sampler.report.plots import Plot, curve_of, draw_curves
from deploy.sampler.report.words import is_number

DIAGNOSIS = "diagnose/"
_MOST = 24
_FIRST = {
    "loss": "the objective on a batch",
    "log_z": "estimated on the learner's batches, in nats",
    "log_reward": "mean log R of a batch, in nats",
    "effective_sample_size": "of a batch, as a share",
    "mean_actions": "tokens of a rationale, on average",
}
_BOOKKEEPING = {
    *("time", "step", "gradient_norm", "learning_rate", "reward_temperature", "trajectories", "adapter_version"),
    *("staleness", "wait_s", "step_s", "buffer_size", "trajectories_pushed", "elapsed_s", "sampler_gap"),
    *("sampler_gap_tokens", "actor", "samples", "samples_missing", "queries_trained_on", "evaluation_share"),
    *("diagnosis_samples", "diagnosis_samples_missing", NARROW),
}
"""What says how the run went, and nothing of the sampler."""
_WRITTEN = {"log z": "log Z", "log reward": "log R", "ess": "ESS", "elbo": "ELBO", "pareto k": "Pareto k̂"}
"""Names as the rest of the page has them."""
Labelled = tuple[str, Sequence[Mapping[str, Any]]]
"""A label, and lines of metrics.jsonl."""


def curve_plots(series: Sequence[Labelled], notes: list[str]) -> list[Plot]:
    """Every figure that any of them has, one plot each; what is left out is added to the notes."""
    names = _names(series)
    if len(names) > _MOST:
        notes.append(f"{len(names) - _MOST} more figures are in metrics.jsonl: {', '.join(names[_MOST:])}.")
    found = []
    for name in names[:_MOST]:
        curves = [curve_of(rows, name) for _, rows in series]
        found.append(draw_curves(_title(name), _caption(name), curves, positive=name == "loss"))
    return found


def _names(series: Sequence[Labelled]) -> list[str]:
    every = dict.fromkeys(
        name
        for _, rows in series
        for row in rows
        for name, value in row.items()
        if name not in _BOOKKEEPING and is_number(value)
    )
    # A standard error is drawn about its figure.
    every = {name: None for name in every if not (name.endswith("_se") and name.removesuffix("_se") in every)}
    own = [name for name in every if name not in _FIRST and not name.startswith((EVALUATION, DIAGNOSIS))]
    groups = [[name for name in _FIRST if name in every], own]
    groups += [[name for name in every if name.startswith(prefix)] for prefix in (EVALUATION, DIAGNOSIS)]
    return [name for group in groups for name in group]


def _title(name: str) -> str:
    words = name.removeprefix(EVALUATION).removeprefix(DIAGNOSIS).replace("_", " ")
    for plain, written in _WRITTEN.items():
        words = f"{written}{words.removeprefix(plain)}" if words == plain or words.startswith(f"{plain} ") else words
    return words


def _caption(name: str) -> str:
    if name.startswith(EVALUATION):
        return "evaluated on samples while it trained"
    if name.startswith(DIAGNOSIS):
        return "diagnosed while it trained"
    return _FIRST.get(name, "exact, by the learner")
