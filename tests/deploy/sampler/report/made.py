"""Runs with a diagnosis, made on the spot: nothing is trained or sampled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

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


def diagnosed(run: Path, *, queries: int = 3, n: int = 64, text: str = "a cat", base: bool = True) -> Path:
    """Put a diagnosis into a run's folder, of `queries` queries with `n` draws each."""
    generator = np.random.default_rng(0)
    verdicts = ["not to be trusted", "usable with correction", "good"]
    made = [_query(i, n, text, verdicts[min(i, 2)], generator, base=base) for i in range(queries)]
    whole = {
        "made": 1.8e9,
        "adapter_sha256": None,
        "samples": n,
        "verdict": {
            "verdict": verdicts[0],
            "worst": made[0]["query_id"] if made else "",
            "counts": {"good": max(0, queries - 2), "usable with correction": 1, "not to be trusted": 1},
            "remedy": f"train for longer; {text}",
        },
        "reward_precision": {"dtype": "bfloat16", "mean_nats": 0.21, "max_nats": 0.75},
        "queries": made,
    }
    (run / "diagnosis.json").write_text(json.dumps(whole), encoding="utf-8")
    return run


def _query(i: int, n: int, text: str, verdict: str, generator: np.random.Generator, *, base: bool) -> dict[str, Any]:
    return {
        "query_id": f"query-{i}",
        "prompt": f"{text} {i}:",
        "target": text,
        "judgement": {"verdict": verdict, "reasons": [f"ESS 0.04 is below 0.1; {text}"], "remedy": f"resample; {text}"},
        **_drawn(n, text, generator, spread=0.4 * (3 - min(i, 2))),
        "base": _drawn(n, text, generator, spread=3.0) if base else None,
    }


def _drawn(n: int, text: str, generator: np.random.Generator, *, spread: float) -> dict[str, Any]:
    lengths = generator.integers(1, 9, n)
    log_q = -1.1 * lengths + generator.normal(0, 0.3, n)
    log_r = log_q + 4.6 + generator.normal(0, spread, n)
    weights = np.exp(log_r - log_q - np.max(log_r - log_q))
    weights /= weights.sum()

    def about(value: float, se: float) -> dict[str, float]:
        return {"value": value, "se": se}

    samples = [
        {
            **{"text": f"{text} {k % 23}", "token_ids": [k % 23] * int(lengths[k % 23])},
            **{"log_q": float(log_q[k]), "log_r": float(log_r[k]), "weight": float(weights[k])},
            **{"log_prior": -3.0, "log_likelihood": -2.0, "log_constraint": 0.0},
        }
        for k in range(n)
    ]
    figures = {
        **{"n": n, "log_z": about(4.61, 0.05), "elbo": about(4.2, 0.06), "iwae": about(4.5, 0.04), "iwae_k": 8},
        **{"log_z_upper": about(4.8, 0.07), "log_z_exact": 4.615, "kl_q_p": [0.3, 0.6], "kl_p_q": None},
        **{"ess": 0.4, "pareto_k": 0.55, "max_weight_share": 0.06, "distinct": min(n, 23), "unique_mass": 0.8},
        **{"first_token_entropy": 2.1, "distinct_prefixes": [5, 12, 20, 23], "mean_length": 4.4},
        **{"mean_length_weighted": 5.0, "length_bias": -0.6},
        "modes": {
            **{"known": 12, "log_known_mass": 3.9, "mass_under_q": 0.5, "mass_under_posterior": 0.6, "missed": 2}
        },
    }
    return {"figures": figures, "samples": samples}
