"""Beam search under the action space, held against all rationales."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.beam import BeamSearch
from common.action_space import ActionSpace
from common.config import ActorSection
from common.trajectory import Query
from learner.policy import load_base_model
from tests.tiny import VOCABULARY

STOP = 13
TOKENS = (3, 4, 5)
SPACE = ActionSpace(vocab_size=len(VOCABULARY), terminator_id=STOP, allowed_ids=(*TOKENS, STOP), min_len=1, max_len=3)
QUERY = Query(task="t", prompt_ids=[14, 15, 3, 7])


@pytest.fixture(scope="module")
def search(digit_model: Path) -> BeamSearch:
    return BeamSearch(str(digit_model), ActorSection(num_gpus=0, dtype="float32"), SPACE)


def log_p(model_path: Path, z: tuple[int, ...]) -> float:
    """log p(z⊤|X) of the model without mask."""
    ids = [*QUERY.prompt_ids.tolist(), *z, STOP]
    with torch.no_grad():
        logits = load_base_model(str(model_path), "float32")(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    first = len(QUERY.prompt_ids)
    return sum(float(logits[i - 1, ids[i]]) for i in range(first, len(ids)))


def test_a_beam_as_wide_as_the_space_finds_the_likeliest_rationales_in_order(
    search: BeamSearch, digit_model: Path
) -> None:
    space = [z for k in (1, 2, 3) for z in itertools.product(TOKENS, repeat=k)]
    scores = np.array([log_p(digit_model, z) for z in space])
    best = [list(space[i]) for i in np.argsort(-scores)[:5]]
    assert search.search(QUERY, beams=len(space))[:5] == best


def test_beams_obey_the_mask_and_diverse_ones_differ_from_the_start(search: BeamSearch) -> None:
    plain, diverse = search.search(QUERY, beams=3), search.search(QUERY, beams=3, diversity_penalty=1e6)
    for z in (*plain, *diverse):
        assert SPACE.why_invalid(np.asarray(z, np.int32)) is None
    assert len({tuple(z) for z in plain}) == 3
    # A penalty above all differences of log p: no two groups begin alike.
    assert {z[0] for z in diverse} == set(TOKENS)
