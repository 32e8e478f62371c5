"""Which tasks simulation-based calibration can be done for, and what it draws; no model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from common.config import RunConfig
from common.config_loading import load_config
from common.errors import RunFault, UserError
from common.tasks import make_task
from common.tokens import codec_of
from deploy.sampler.simulation import POOL, Pool, Variants, grown, variants_of

TOLD = {
    "name": "jsonl",
    "prompt": "{y} {x} :",
    "reference_prompt": "{x} :",
    "target": "{y}",
    "choices": ["4", "7"],
    "max_len": 4,
    "allowed_characters": "[0-9]",
}


def config(folder: Path, model: Path, task: dict[str, Any], **settings: Any) -> RunConfig:
    rows = [{"x": f"number {i}", "y": "7"} for i in range(4)] + [{"x": "number 0", "y": "4"}, {"y": "4"}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.py").write_text("def score(prompts, texts, rows):\n    return [0.0 for _ in texts]\n")
    path = folder / "config.yaml"
    given = {**TOLD, "train_path": str(folder / "rows.jsonl"), "on_bad_row": "skip", **task}
    path.write_text(yaml.safe_dump({"task": given, "model": {"name": str(model)}, **settings}))
    return load_config(path)


def variants(found: RunConfig, most: int = 100) -> list[Variants]:
    return variants_of(make_task(found.task, codec_of(found.model), 64), found, most)


def test_each_row_is_made_with_each_choice_once(tmp_path: Path, digit_model: Path) -> None:
    made = config(tmp_path, digit_model, {"target": "0 {y}", "choices": ["0 4", "0 7"]})
    codec, found = codec_of(made.model), variants(made)
    # The fifth row is the first with another target, the sixth has no x.
    assert len(found) == 4 and len(variants(made, most=2)) == 2
    for i, each in enumerate(found):
        four, seven = each.queries
        assert codec.decode_prompt(four.prompt_ids) == codec.decode_prompt(codec.encode_prompt(f"4 number {i} :"))
        assert codec.decode_prompt(seven.prompt_ids) == codec.decode_prompt(codec.encode_prompt(f"7 number {i} :"))
        assert four.target_ids.tolist() == codec.encode("0 4") and seven.target_ids.tolist() == codec.encode("0 7")
        assert np.array_equal(four.alternatives[0], seven.target_ids)
        assert np.array_equal(four.scored_prompt_ids, seven.scored_prompt_ids)


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ({"choices": []}, {}, r"--sbc.*needs a task with target and choices"),
        ({"prompt": "{x} :", "reference_prompt": None}, {}, r"task.prompt.*doesn't tell the sampler which choice Y is"),
        ({"reference_prompt": None}, {}, r"task.reference_prompt.*shows the target to the reference"),
        ({"target": "{x} {y}", "choices": ["number 0 4"]}, {}, r"--sbc.*a target of one column"),
        ({"misleading_penalty": 1.0}, {}, r"task.misleading_penalty.*1.0.*depends on all choices.*leave it out"),
        ({"reward": "mine.py:score"}, {}, r"task.reward.*may depend on Y"),
        ({}, {"learner": {"reward": {"likelihood_weight": 0.5}}}, r"--sbc.*weight 0.5 at temperature 1"),
        ({}, {"learner": {"reward": {"temperature": {"end": 2.0}}}}, r"--sbc.*weight 1 at temperature 2"),
    ],
)
def test_what_cannot_be_simulated_is_refused(
    tmp_path: Path, digit_model: Path, task: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        variants(config(tmp_path, digit_model, task, **settings))


def test_a_task_of_another_kind_is_refused(tmp_path: Path, digit_model: Path) -> None:
    path = tmp_path / "rng.yaml"
    path.write_text(yaml.safe_dump({"task": {"name": "rng"}, "model": {"name": str(digit_model)}}))
    with pytest.raises(UserError, match=r"--sbc.*rng here has none"):
        variants(load_config(path))


def pool(generator: np.random.Generator, spread: float) -> Pool:
    """Draws of g = N(0, 1) for the prior N(`spread`, 1): each counts for exp(-spread²) of a draw."""
    z = generator.normal(size=POOL)
    log_priors = spread * z - spread**2 / 2
    return Pool(np.zeros(POOL), log_priors, np.full((POOL, 2), np.log(0.5)), (z > spread).astype(np.int64))


@pytest.mark.parametrize("repeats", [1, 20, 200])
def test_repeats_from_one_pool_vary_as_independent_ones_do(repeats: int) -> None:
    # With 120 effective draws of 512: 200 repeats of a single such pool would vary 2.6 times as much.
    generator = np.random.default_rng(0)
    shares = []
    for _ in range(200):
        found = grown(lambda: pool(generator, 1.2), repeats, "")
        assert found.size >= 20 * repeats
        shares.append(np.mean([found.lengths[z] for z, _ in found.draw(repeats, generator)]))
    # Half of the prior is above its middle. The ratio of 200 samples' variance has a standard error of 0.1.
    assert np.var(shares) * 4 * repeats == pytest.approx(1.05, abs=0.35)
    assert np.mean(shares) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(200 * repeats) + 0.01)


def test_a_pool_that_is_worth_too_little_for_its_repeats_is_refused_with_the_remedy() -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(RunFault, match=r"of 2048 draws .* query aaaaaaaa, 60 are needed for 3 of .* give more rows"):
        grown(lambda: pool(generator, 3.0), 3, "a" * 32)
