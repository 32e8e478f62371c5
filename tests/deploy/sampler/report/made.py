"""Runs with a diagnosis, made on the spot: nothing is trained or sampled."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from common.diagnostics.diagnosis import QueryDiagnosis, diagnose
from common.diagnostics.draws import Draws
from common.diagnostics.importance import normalized_weights
from common.diagnostics.verdict import judge, judge_run
from common.json_text import dumps

NASTY = "</script><img src=x onerror=alert(1)>]]>&amp;\"'`${7*7}{{7*7}}<!--\x00\x1b[31m\ud800\u202etxt.exe"
"""What a model or a data set may hold: markup, templates, orders to a terminal, half a character."""


def made_run(folder: Path, *, text: str = "a cat", steps: int = 40, **summary: Any) -> Path:
    """What `amortis train` leaves that a report reads; every text in it is `text`."""
    folder.mkdir(parents=True)
    config = {
        "task": {"name": "jsonl", "train_path": text, "prompt": text},
        "run": {"name": text, "folder": str(folder.parent), "seed": 3},
        "model": {"name": f"models/{text}", "lora": {"rank": 8}},
        "learner": {"objective": "subtb", "steps": steps, "lr": 0.0003},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    rows = [
        {
            **{"time": 1.8e9 + step, "step": step, "loss": 30.0 * 0.8**step, "log_z": 4.0 - 1 / step},
            **{"log_reward": -3.0 + step / 40, "effective_sample_size": min(1.0, step / 40), "wait_s": 0.1},
            **({"eval/total_variation": 1 / step, f"eval/{text}": 0.5} if step % 10 == 0 else {}),
            **({"diagnose/log_z": 4.1, "diagnose/log_z_se": 0.1, "diagnose/ess": 0.7} if step % 20 == 0 else {}),
        }
        for step in range(1, steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    found = {
        **{"task": "jsonl", "run": text, "model": f"models/{text}", "objective": "subtb", "steps": steps},
        **{"training_s": 61.0, "wall_s": 125.0, "sampler_gap_max": 2e-6, "stopped_because": None},
        **{"accuracy_before": 0.4, "accuracy": 0.9, "interrupted": False, "fault": None, "plots": []},
        "samplers": {"base": {"diversity": 0.31, text: 1.5}, "trained": {"diversity": 0.62, text: 2.5}},
        **summary,
    }
    (folder / "summary.json").write_text(json.dumps(found), encoding="utf-8")
    return folder


def diagnosed(run: Path, *, queries: int = 1, n: int = 64, text: str = "a cat", base: bool = True) -> Path:
    """Put a diagnosis into a run's folder, of `queries` queries with `n` draws each, the first of them the worst."""
    generator = np.random.default_rng(0)
    made = [_query(i, n, text, generator, base=base) for i in range(queries)]
    judged = judge_run({query["query_id"]: figures for query, figures in made})
    whole = {
        "made": 1.8e9,
        "adapter_sha256": None,
        "samples": n,
        "trained_for": f"the posterior; {text}",
        "verdict": asdict(replace(judged, remedy=f"train for longer; {text}")),
        "reward_precision": {"dtype": "bfloat16", "sequences": 32, "mean_nats": 0.21, "max_nats": 0.75},
        "known": f"12, for 2 of 3 queries; {text}",
        "queries": [query for query, _ in made],
        "left_out": [],
    }
    (run / "diagnosis.json").write_text(dumps(whole), encoding="utf-8")
    return run


def _query(
    i: int, n: int, text: str, generator: np.random.Generator, *, base: bool
) -> tuple[dict[str, Any], QueryDiagnosis]:
    figures, samples = _drawn(n, text, generator, spread=(4.0, 0.9, 0.1)[min(i, 2)])
    judgement = judge(figures)
    judgement = replace(judgement, reasons=[*judgement.reasons, text], remedy=f"resample; {text}")
    base_figures, base_samples = _drawn(max(8, n // 4), text, generator, spread=3.5)
    return {
        **{"query_id": f"query-{i}", "prompt": f"{text} {i}:", "target": text, "truth": text},
        **{"figures": asdict(figures), "judgement": asdict(judgement), "samples": samples},
        "base": {"figures": asdict(base_figures), "samples": base_samples} if base else None,
    }, figures


def _drawn(
    n: int, text: str, generator: np.random.Generator, *, spread: float
) -> tuple[QueryDiagnosis, list[dict[str, Any]]]:
    """Draws whose log weights have that standard deviation about log 101."""
    kinds = generator.integers(0, 23, n)
    lengths = 1 + kinds % 8
    log_q = -1.1 * lengths - 0.01 * kinds
    log_r = log_q + math.log(101) - spread**2 / 2 + generator.normal(0, spread, 23)[kinds]
    actions = tuple((int(kind),) * int(length) for kind, length in zip(kinds, lengths, strict=True))
    draws = Draws(log_q, log_r, actions)
    known = Draws(log_q[: n // 8], log_r[: n // 8], actions[: n // 8])
    samples = [
        {
            **{"text": f"{text} {kinds[k]}", "token_ids": list(actions[k])},
            **{"log_q": log_q[k], "log_r": log_r[k], "weight": weight},
            **{"log_prior": -3.0, "log_likelihood": -2.0, "log_constraint": 0.0},
        }
        for k, weight in enumerate(normalized_weights(draws.log_weights).tolist())
    ]
    return diagnose(draws, log_z_exact=math.log(101), modes=known), samples
