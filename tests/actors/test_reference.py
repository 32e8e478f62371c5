"""The reference in a precision of its own, held against transformers in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import actors.reference as reference
from actors.reference import ReferenceScorer, exact_products
from actors.scoring import Scored, ScoreText, TokenScores
from common.config import LoraSection
from learner.policy import LoraPolicy, load_base_model
from tests.actors.test_engine import SPACE, perturbed
from tests.tiny import VOCABULARY

CPU = torch.device("cpu")
TERMINATOR = 13


@pytest.fixture(scope="module")
def scorer(digit_model: Path) -> ReferenceScorer:
    return ReferenceScorer(str(digit_model), "float32", TERMINATOR, CPU)


def texts(n: int) -> dict[str, ScoreText]:
    generator = np.random.default_rng(0)
    lengths = generator.integers(2, 40, n)
    return {
        f"text-{i}": ScoreText(
            tuple(generator.integers(0, len(VOCABULARY), length).tolist()), int(generator.integers(1, length))
        )
        for i, length in enumerate(lengths.tolist())
    }


def score(scorer: ReferenceScorer, wanted: dict[str, ScoreText]) -> tuple[dict[str, Scored], int]:
    """What comes of the texts, and in how many passes."""
    for name, text in wanted.items():
        scorer.submit_score(name, text)
    found: dict[str, Scored] = {}
    passes = 0
    while scorer.busy:
        passes += 1
        found.update({scored.request_id: scored for scored in scorer.step()})
    return found, passes


def largest_error(model: object, wanted: dict[str, ScoreText], found: dict[str, Scored]) -> float:
    errors = []
    for name, text in wanted.items():
        with torch.no_grad():
            table = model(torch.tensor([text.ids])).logits[0].double().log_softmax(-1).numpy()  # type: ignore[operator]
        places = np.arange(text.first, len(text.ids))
        scores = found[name].scores
        assert len(scores.actual) == len(scores.terminator) == len(places)
        errors += [
            np.abs(scores.actual - table[places - 1, np.asarray(text.ids)[places]]).max(),
            np.abs(scores.terminator - table[places - 1, TERMINATOR]).max(),
        ]
    return float(max(errors))


@pytest.mark.parametrize("tokens_a_pass", [16_384, 100, 1])
def test_every_wanted_token_is_scored_as_in_float64_whatever_shares_its_pass(
    scorer: ReferenceScorer, digit_model: Path, monkeypatch: pytest.MonkeyPatch, tokens_a_pass: int
) -> None:
    monkeypatch.setattr(scorer, "_tokens_a_pass", tokens_a_pass)
    wanted = texts(40)
    found, passes = score(scorer, wanted)
    assert found.keys() == wanted.keys()
    assert largest_error(load_base_model(str(digit_model), "float32").double(), wanted, found) < 1e-5
    assert (passes == 1) == (tokens_a_pass == 16_384), "one pass where they fit"
    assert tokens_a_pass != 1 or passes == 40


def test_logits_are_bounded_too_where_they_must_be_made(digit_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "LOGITS_A_PASS", 1)
    monkeypatch.setattr("common.output_layer._is_last_and_frozen", lambda *_: False)
    assert score(ReferenceScorer(str(digit_model), "float32", TERMINATOR, CPU), texts(7))[1] == 7


def test_a_reference_with_an_adapter_is_scored_through_it(digit_model: Path, tmp_path: Path) -> None:
    lora = LoraSection(rank=4, target_modules=["q_proj", "v_proj"])
    policy = LoraPolicy.load(str(digit_model), lora, SPACE, dtype="float32", device=CPU)
    perturbed(policy, seed=1)
    policy.save_adapter(tmp_path)
    wanted = texts(10)
    found, _ = score(ReferenceScorer(str(digit_model), "float32", TERMINATOR, CPU, tmp_path), wanted)
    assert largest_error(policy.model.double(), wanted, found) < 1e-5
    assert largest_error(load_base_model(str(digit_model), "float32").double(), wanted, found) > 1e-3


def test_products_are_exact_in_a_pass_and_as_before_behind_it() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with exact_products():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_oldest_text_is_in_the_next_pass_with_those_that_begin_as_it_does(
    scorer: ReferenceScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorer, "_tokens_a_pass", 60)
    ours, theirs = (1,) * 40, (2,) * 40
    scorer.submit_score("oldest", ScoreText((*ours, 3), 40))
    for i in range(5):
        scorer.submit_score(f"another {i}", ScoreText((*theirs, i), 40))
        scorer.submit_score(f"ours {i}", ScoreText((*ours, 4 + i), 40))
    assert {scored.request_id for scored in scorer.step()} == {"oldest", *(f"ours {i}" for i in range(5))}
    assert {scored.request_id for scored in scorer.step()} == {f"another {i}" for i in range(5)}
    assert not scorer.busy


def test_what_texts_begin_with_is_read_once(scorer: ReferenceScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    model = scorer._model

    def reading(**inputs: torch.Tensor) -> object:
        read.append(inputs["input_ids"].numel())
        return model(**inputs)

    reading.config, reading.dtype = model.config, model.dtype  # type: ignore[attr-defined]
    monkeypatch.setattr(scorer, "_model", reading)
    prompt, rationale, target = (1,) * 20, tuple(range(2, 12)), (3, 3, 4)
    wanted = {
        f"state {t}": ScoreText((*prompt, *rationale[:t], TERMINATOR, *target), 20 + t)
        for t in range(len(rationale) + 1)
    }
    found, _ = score(scorer, wanted)
    # Of eleven texts of 24 to 34 tokens, with ⊤ and the target behind each of eleven states but for its last token.
    assert read == [20 + 10 + 11 * 3]
    assert largest_error(model.to(torch.float64), wanted, found) < 1e-5
    model.to(torch.float32)


@pytest.mark.parametrize(("pass_s", "wait_s"), [(0.02, 0.02), (60.0, reference.LONGEST_WAIT_S)])
def test_a_pass_waits_for_more_texts_but_no_longer_than_the_last_one_took(
    scorer: ReferenceScorer, monkeypatch: pytest.MonkeyPatch, pass_s: float, wait_s: float
) -> None:
    now, score = [100.0], scorer._score

    def scored(*given: Any) -> list[TokenScores]:
        now[0] += pass_s
        return score(*given)

    monkeypatch.setattr(reference.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(scorer, "_score", scored)
    text = ScoreText((1, 2, 3), 1)
    assert not scorer.worth_a_pass
    scorer.submit_score("a", text)
    scorer.step()
    scorer.submit_score("b", text)
    now[0] += 0.9 * wait_s
    assert not scorer.worth_a_pass
    now[0] += 0.2 * wait_s
    assert scorer.worth_a_pass
    scorer.step()
    for i in range(reference.WORTH_A_PASS):
        scorer.submit_score(f"c{i}", text)
    assert scorer.worth_a_pass
    while scorer.busy:
        scorer.step()
