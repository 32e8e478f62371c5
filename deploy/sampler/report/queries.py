"""What diagnosis.json says, query by query: figures, plots and samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.diagnostics.verdict import PARETO_K_LIMIT, pareto_k_limit
from deploy.sampler.report.found import is_of_another
from deploy.sampler.report.plots import (
    Interval,
    Kind,
    Plot,
    draw_intervals,
    draw_lengths,
    draw_prefixes,
    draw_queries,
    draw_scatter,
    draw_weights,
)
from deploy.sampler.report.words import (
    NOTHING,
    Verdict,
    between,
    estimate,
    interval_of,
    is_number,
    judgement_of,
    number,
    percent,
    shortened,
    when,
)

Floats = NDArray[np.float64]
_MOST_QUERIES, _MOST_LISTED = 20, 200
"""Queries that are shown with plots and samples, and those that are told in one line."""
_MOST_SAMPLES = 8
"""By weight, and by how often they were drawn, each."""
_LONGEST_PROMPT, _LONGEST_SAMPLE = 1_500, 600
"""Characters."""
_WORST_FIRST = {"refuse": 0, "correct": 1, "unknown": 2, "good": 3}


@dataclass(frozen=True)
class Figure:
    """A figure of a query's diagnosis, with the base model's beside it."""

    label: str
    value: str
    base: str
    meaning: str


@dataclass(frozen=True)
class Sample:
    """A rationale that was drawn, once or several times."""

    text: str
    times: int
    weight: str
    """Of all its draws together."""
    log_q: str
    log_r: str
    parts: str
    """What log R is made of."""


@dataclass(frozen=True)
class Samples:
    """Those that are shown of a sampler's draws."""

    rows: Sequence[Sample]
    drawn: int
    distinct: int
    left_out: int
    """Of the distinct ones."""


@dataclass(frozen=True)
class QueryShown:
    """One query's part of the page."""

    number: int
    prompt: str
    target: str
    truth: str
    """Where what is known of the posterior otherwise is from."""
    verdict: Verdict
    figures: Sequence[Figure]
    has_base: bool
    plots: Sequence[Plot]
    samples: Samples
    base_samples: Samples | None


@dataclass(frozen=True)
class Line:
    """A query in the table of all."""

    number: int
    prompt: str
    verdict: Verdict
    log_z: str
    ess: str
    pareto_k: str
    kl: str
    length_bias: str
    distinct: str
    is_shown: bool
    """Whether the page has more on it."""


@dataclass(frozen=True)
class DiagnosisShown:
    """The whole diagnosis, the worst queries first."""

    made: str
    samples: str
    trained_for: str
    """What the run's objective aims at; empty where the diagnosis doesn't say."""
    known: str
    """Where the known rationales are from."""
    not_scored: int
    """Queries of which no draws could be scored."""
    is_of_another_adapter: bool
    overview: Plot | None
    lines: Sequence[Line]
    lines_left_out: int
    queries: Sequence[QueryShown]
    queries_left_out: int


def diagnosis_shown(diagnosis: Mapping[str, Any], adapters: Set[str]) -> DiagnosisShown | None:
    """None where there is none; `adapters` are the digests of the one that the run has now."""
    if not diagnosis:
        return None
    every = list(enumerate(diagnosis.get("queries") or (), start=1))
    worst = (diagnosis.get("verdict") or {}).get("worst")
    every.sort(key=lambda item: (item[1].get("query_id") != worst, _badness(item[1])))
    made = diagnosis.get("made")
    return DiagnosisShown(
        made=when(made) if is_number(made) else str(made or ""),
        samples=number(diagnosis.get("samples")),
        trained_for=str(diagnosis.get("trained_for") or ""),
        known=str(diagnosis.get("known") or ""),
        not_scored=len(diagnosis.get("left_out") or ()),
        is_of_another_adapter=is_of_another(diagnosis, adapters),
        overview=_overview([query for _, query in every]),
        lines=[_line(i, query, place < _MOST_QUERIES) for place, (i, query) in enumerate(every[:_MOST_LISTED])],
        lines_left_out=max(0, len(every) - _MOST_LISTED),
        queries=[_query(i, query) for i, query in every[:_MOST_QUERIES]],
        queries_left_out=max(0, len(every) - _MOST_QUERIES),
    )


def figure_of(query: Mapping[str, Any], name: str) -> Any:
    """A figure of a query's diagnosis, None where there is none."""
    return (query.get("figures") or {}).get(name)


def _badness(query: Mapping[str, Any]) -> tuple[int, float]:
    ess = figure_of(query, "ess")
    return _WORST_FIRST[judgement_of(query.get("judgement") or {}).kind], ess if is_number(ess) else 0.0


def _overview(queries: Sequence[Mapping[str, Any]]) -> Plot | None:
    """Where they all stand, k̂ against the limit that the verdict has for the fewest draws that any of them made."""
    found = [(figure_of(query, "ess"), figure_of(query, "pareto_k"), figure_of(query, "n")) for query in queries]
    known = [(ess, k, n) for ess, k, n in found if is_number(ess) and is_number(k)]
    if len(known) < 2:
        return None
    n = min((n for _, _, n in known if isinstance(n, int)), default=None)
    return draw_queries([ess for ess, _, _ in known], [k for _, k, _ in known], _k_limit(n))


def _k_limit(n: object) -> float:
    """Of k̂, for so many draws; where a diagnosis doesn't say how many, for as many as it takes."""
    return pareto_k_limit(n) if isinstance(n, int) else PARETO_K_LIMIT


def _line(i: int, query: Mapping[str, Any], is_shown: bool) -> Line:
    return Line(
        number=i,
        prompt=shortened(str(query.get("prompt") or query.get("query_id") or ""), 90),
        verdict=judgement_of(query.get("judgement") or {}),
        log_z=estimate(figure_of(query, "log_z")),
        ess=percent(figure_of(query, "ess")),
        pareto_k=number(figure_of(query, "pareto_k"), 2),
        kl=between(figure_of(query, "kl_q_p")),
        length_bias=estimate(figure_of(query, "length_bias")),
        distinct=number(figure_of(query, "distinct")),
        is_shown=is_shown,
    )


def _query(i: int, query: Mapping[str, Any]) -> QueryShown:
    base = query.get("base") or {}
    figures, base_figures = query.get("figures") or {}, base.get("figures") or {}
    samples = [item for item in query.get("samples") or () if isinstance(item, Mapping)]
    base_samples = [item for item in base.get("samples") or () if isinstance(item, Mapping)]
    return QueryShown(
        number=i,
        prompt=shortened(str(query.get("prompt") or ""), _LONGEST_PROMPT),
        target=shortened(str(query.get("target") or ""), _LONGEST_PROMPT),
        truth=str(query.get("truth") or ""),
        verdict=judgement_of(query.get("judgement") or {}),
        figures=_figures(figures, base_figures),
        has_base=bool(base_figures),
        plots=_plots(figures, samples),
        samples=_samples(samples),
        base_samples=_samples(base_samples) if base_samples else None,
    )


def _figures(trained: Mapping[str, Any], base: Mapping[str, Any]) -> list[Figure]:
    k = trained.get("iwae_k")
    iwae = f"IWAE-{k} bound" if is_number(k) else "IWAE bound"
    k_limit = _k_limit(trained.get("n"))
    shown: list[tuple[str, str, Any, str]] = [
        ("log Z", "log_z", estimate, "of the importance weights, ± its standard error"),
        ("ELBO", "elbo", estimate, "a lower bound of log Z; as far below it as KL(q‖p)"),
        (iwae, "iwae", estimate, "a tighter lower bound"),
        ("Upper bound", "log_z_upper", estimate, "of log Z, from draws of the posterior"),
        ("log Z, exact", "log_z_exact", number, "known otherwise, by enumeration say"),
        ("log Z, at least", "log_z_floor", number, "log Σ R of all distinct rationales that were seen"),
        ("KL(q‖p)", "kl_q_p", between, "nats; how much q draws that the posterior wouldn't"),
        ("KL(p‖q)", "kl_p_q", between, "nats; how much of the posterior q misses"),
        ("Effective sample size", "ess", percent, "share of the draws that the weighted ones are worth"),
        (
            "Pareto k̂",
            "pareto_k",
            lambda value: number(value, 3),
            f"of the weights' tail; up to {k_limit:.2f} it can be relied on",
        ),
        ("Largest weight", "max_weight_share", percent, "of all weight, on a single draw"),
        ("Draws without a reward", "missing", number, "taken as R = 0"),
        ("Distinct draws", "distinct", number, ""),
        ("Most frequent draw", "largest_share", percent, "of the draws"),
        ("Unique mass", "unique_mass", percent, "of q's own mass, on the distinct draws"),
        ("First token's entropy under q", "first_token_entropy", lambda value: number(value, 3), "nats"),
        ("… under the weights", "first_token_entropy_weighted", lambda value: number(value, 3), "nats"),
        ("Prefix collapse", "prefix_collapse", estimate, "nats; by how much the second is above the first"),
        ("Mean length under q", "mean_length", number, "tokens"),
        ("Mean length under the weights", "mean_length_weighted", number, "tokens"),
        ("Length bias", "length_bias", estimate, "tokens; q's mean length less the weights'"),
    ]
    found = [
        Figure(label, form(trained.get(name)), form(base.get(name)), meaning)
        for label, name, form, meaning in shown
        if trained.get(name) is not None or base.get(name) is not None
    ]
    witness = trained.get("witness") or {}
    return [*found, *_modes(trained.get("modes") or {}, base.get("modes") or {}), *_witness(witness)]


def _modes(trained: Mapping[str, Any], base: Mapping[str, Any]) -> list[Figure]:
    shown: list[tuple[str, str, Any, str]] = [
        (
            "Best known rationales",
            "known",
            number,
            "the best distinct ones of the buffer and the data, and for held-out queries of the base model's draws",
        ),
        ("Their mass", "log_known_mass", number, "log Σ R of them: log Z is at least this"),
        ("Their mass under q", "mass_under_q", percent, ""),
        ("Their mass under the posterior", "mass_under_posterior", percent, "by the estimate of log Z"),
        ("Missed ones", "missed", number, "of them, that q is expected to draw less than once"),
        (
            "Mass that no draws show",
            "missed_mass",
            percent,
            "the posterior's, on those with p/q above the number of draws",
        ),
    ]
    return [
        Figure(label, form(trained.get(name)), form(base.get(name)), meaning)
        for label, name, form, meaning in shown
        if trained.get(name) is not None
    ]


def _witness(witness: Mapping[str, Any]) -> list[Figure]:
    """What the base model's draws say of the sampler."""
    shown: list[tuple[str, str, Any, str]] = [
        ("Draws of the base model", "n", number, "that the sampler is held against"),
        ("log Z by them, at least", "log_z_low", number, "a lower limit that holds in 99.85%, nearly"),
        ("Mass that they say is missed", "missed_mass", percent, "the posterior's, that no draws of q show"),
        ("… at least", "missed_mass_low", percent, "in 97.5%"),
    ]
    return [
        Figure(label, form(witness[name]), NOTHING, meaning)
        for label, name, form, meaning in shown
        if witness.get(name) is not None
    ]


def _plots(figures: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> list[Plot]:
    found = []
    intervals = _intervals(figures)
    if intervals:
        exact = figures.get("log_z_exact")
        caption = "Estimate with its 95 % interval, and bounds."
        caption += " The dashed line is the exact value." if is_number(exact) else ""
        found.append(draw_intervals("log Z", caption, intervals, exact if is_number(exact) else None))
    usable = [item for item in samples if is_number(item.get("log_q")) and is_number(item.get("log_r"))]
    if not usable:
        return found
    log_q = np.array([item["log_q"] for item in usable], np.float64)
    log_r = np.array([item["log_r"] for item in usable], np.float64)
    found.append(draw_weights(log_r - log_q))
    lengths = np.array([len(item.get("token_ids") or ()) for item in usable], np.float64)
    if lengths.any():
        shares = np.exp(log_r - log_q - np.max(log_r - log_q))
        found.append(draw_lengths(lengths, shares / shares.sum()))
    distinct = [count for count in figures.get("distinct_prefixes") or () if is_number(count)]
    if distinct:
        found.append(draw_prefixes(distinct, len(usable)))
    log_z = (figures.get("log_z") or {}).get("value")
    found.append(draw_scatter(log_q, log_r, log_z if is_number(log_z) else None))
    return found


def _intervals(figures: Mapping[str, Any]) -> list[Interval]:
    """Estimate and bounds of log Z, from the lowest to the highest as they should be."""
    found: list[Interval] = []
    named: list[tuple[str, str, Kind]] = [
        ("ELBO", "elbo", "lower"),
        ("IWAE", "iwae", "lower"),
        ("estimate", "log_z", "both"),
        ("upper bound", "log_z_upper", "upper"),
    ]
    for label, name, kind in named:
        ends = interval_of(figures.get(name))
        if ends is not None:
            found.append(Interval(label, figures[name]["value"], *ends, kind))
    floor = figures.get("log_z_floor")
    if is_number(floor):
        found.insert(0, Interval("rationales seen", floor, floor, floor, "lower"))
    return found


def _samples(drawn: Sequence[Mapping[str, Any]]) -> Samples:
    """The distinct ones with most weight and those drawn most often."""
    groups: defaultdict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for item in drawn:
        ids = item.get("token_ids")
        groups[tuple(ids) if isinstance(ids, list) else item.get("text")].append(item)
    weighed = [(_total_weight(group), group) for group in groups.values()]
    by_weight = sorted(weighed, key=lambda pair: -pair[0])
    by_times = sorted(weighed, key=lambda pair: -len(pair[1]))
    chosen = {id(group): (weight, group) for weight, group in (*by_weight[:_MOST_SAMPLES], *by_times[:_MOST_SAMPLES])}
    rows = [_sample(weight, group) for weight, group in sorted(chosen.values(), key=lambda pair: -pair[0])]
    return Samples(rows, len(drawn), len(groups), len(groups) - len(rows))


def _sample(weight: float, group: Sequence[Mapping[str, Any]]) -> Sample:
    item = group[0]
    parts = [
        f"{name.removeprefix('log_')} {number(item[name])}"
        for name in ("log_prior", "log_likelihood", "log_constraint")
        if is_number(item.get(name))
    ]
    return Sample(
        text=shortened(str(item.get("text", "")), _LONGEST_SAMPLE),
        times=len(group),
        weight=percent(weight) if weight else NOTHING,
        log_q=number(item.get("log_q")),
        log_r=number(item.get("log_r")),
        parts=", ".join(parts),
    )


def _total_weight(group: Sequence[Mapping[str, Any]]) -> float:
    return float(sum(item["weight"] for item in group if is_number(item.get("weight"))))
