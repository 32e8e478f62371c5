"""The mask on a batch of logits: which rows it touches, and that it is the action space's own."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from actors.batch_mask import BatchMask
from common.action_space import ActionSpace
from common.grammar import Grammar

V, STOP = 12, 3
CPU = torch.device("cpu")
PLAIN = ActionSpace(vocab_size=V, terminator_id=STOP, allowed_ids=(STOP, 5, 7, 8), min_len=2, max_len=4)
TEXTS = {5: "a", 7: "b", 8: "ab"}


def with_grammar(pattern: str) -> ActionSpace:
    allowed = np.asarray(sorted((STOP, *TEXTS)))
    grammar = Grammar.of("task.regex", pattern, TEXTS, allowed, STOP, 0, 4)
    return PLAIN.model_copy(update={"grammar": grammar, "min_len": 0})


def kept(logits: torch.Tensor) -> list[list[int]]:
    return [torch.isfinite(row).nonzero()[:, 0].tolist() for row in logits]


@pytest.mark.parametrize("rows", [(0, 1, 2), (0, 2), (1,), ()])
def test_rows_that_sample_keep_what_the_action_space_allows_and_others_keep_all(rows: tuple[int, ...]) -> None:
    actions = [[5], [5, 7], [8, 8, 7]]
    logits = torch.randn(3, V)
    masked = BatchMask(PLAIN, V, CPU).apply(logits.clone(), rows, [actions[row] for row in rows])
    for row in range(3):
        allowed = PLAIN.allowed_array[PLAIN.mask(actions[row])].tolist() if row in rows else list(range(V))
        assert kept(masked)[row] == allowed
        assert torch.equal(masked[row, allowed], logits[row, allowed]), "what is allowed must not move"


def test_without_a_mask_only_stopping_early_is_forbidden() -> None:
    space = ActionSpace(vocab_size=V, terminator_id=STOP, allowed_ids=None, min_len=1, max_len=3)
    early, late = kept(BatchMask(space, V, CPU).apply(torch.zeros(2, V), [0, 1], [[], [4]]))
    assert early == [token for token in range(V) if token != STOP] and late == list(range(V))


def test_a_vocabulary_padded_beyond_the_model_is_forbidden_there() -> None:
    masked = BatchMask(PLAIN, V + 4, CPU).apply(torch.zeros(1, V + 4), [0], [[5, 5]])
    assert kept(masked) == [[STOP, 5, 7, 8]]


@pytest.mark.parametrize("rows", [(0, 1, 2), (2, 0)])
def test_under_a_grammar_every_row_has_its_own_states_mask(rows: tuple[int, ...]) -> None:
    space = with_grammar("(ab)+")
    actions = [[], [5], [8, 5, 7]]
    masked = BatchMask(space, V, CPU).apply(torch.zeros(3, V), rows, [actions[row] for row in rows])
    for row in range(3):
        expected = space.allowed_array[space.mask(actions[row])].tolist() if row in rows else list(range(V))
        assert kept(masked)[row] == expected


def test_a_step_behind_the_end_of_a_sample_stops_nothing() -> None:
    space = with_grammar("(ab)+")
    masked = BatchMask(space, V, CPU).apply(torch.zeros(2, V), [0, 1], [[5, 7, STOP], [5]])
    assert kept(masked) == [list(range(V)), [7]]


def test_masks_of_a_grammar_stay_right_when_more_are_met_than_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.batch_mask._ROWS_KEPT", 2)
    space = with_grammar("a?b?a?b?")
    mask = BatchMask(space, V, CPU)
    walks = [list(z) for k in range(3) for z in itertools.product(TEXTS, repeat=k) if valid(space, z)]
    for taken in walks * 2:
        expected = space.allowed_array[space.mask(taken)].tolist()
        assert kept(mask.apply(torch.zeros(1, V), [0], [taken])) == [expected]


def valid(space: ActionSpace, actions: tuple[int, ...]) -> bool:
    try:
        space.mask(actions)
    except ValueError:
        return False
    return True
