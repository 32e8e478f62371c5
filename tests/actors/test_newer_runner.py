"""vLLM's newer model runner, which GPUs use: its own checks of our requests, and our mask in its sampler's place.

Its kernels need a GPU; its bookkeeping of requests, and with it every limit on them, is built here on the CPU.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm import SamplingParams
from vllm.v1.worker.gpu.sample.logit_bias import MAX_NUM_ALLOWED_TOKEN_IDS
from vllm.v1.worker.gpu.sample.logits_processor import (
    LogitsContext,
    LogitsProcRequestState,
    build_custom_logits_processors_params_validator,
)
from vllm.v1.worker.gpu.sample.sampler import Sampler
from vllm.v1.worker.gpu.states import RequestState

from actors.batch_mask import BatchMask
from actors.engine import sampling_params
from actors.worker_extension import TAKEN, NewRunnersMask, WorkerExtension
from common.action_space import ActionSpace
from common.grammar import Grammar

CPU = torch.device("cpu")
V, STOP, SLOTS = 4_096, 3, 4
LARGE = ActionSpace(
    vocab_size=V, terminator_id=STOP, allowed_ids=tuple(range(3, 3_000)), min_len=2, max_len=6, trigger_ids=(9, 10)
)


@pytest.fixture(autouse=True)
def _no_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM believes that this machine has it, as those with a GPU do; it has another way for those that don't."""
    monkeypatch.setattr("vllm.v1.worker.gpu.buffer_utils.is_uva_available", lambda: False)


class Runner:
    """The newer runner's sampler and its states of requests, as its model runner holds them."""

    def __init__(self, space: ActionSpace) -> None:
        self.states = RequestState(SLOTS, 64, 256, 0, V, CPU)
        self.processor = NewRunnersMask(None, LogitsProcRequestState.from_request_state(self.states))
        self.processor.mask = BatchMask(space, V, CPU)
        self.sampler = Sampler(
            SimpleNamespace(reasoning_config=None, speculative_config=None, scheduler_config=None),
            SLOTS,
            V,
            CPU,
            self.states,
            "processed_logprobs",
            custom_logits_processors=[self.processor],
        )

    def add(self, name: str, prompt: list[int], params: SamplingParams, output: tuple[int, ...] = ()) -> int:
        """A request, of which `output` was sampled before it had to make room."""
        tokens = [*prompt, *output]
        self.states.add_request(name, len(prompt), tokens, 0, 8)
        slot = self.states.req_id_to_index[name]
        self.write(slot, tokens)
        self.sampler.add_request(slot, params)
        return slot

    def write(self, slot: int, tokens: list[int]) -> None:
        """What the runner's kernels do on a GPU."""
        self.states.all_token_ids.gpu[slot, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
        self.states.total_len.gpu[slot] = len(tokens)

    def step(self, slots: list[int]) -> list[list[int]]:
        """Tokens that each row of a step's batch may take."""
        self.processor.apply_staged_writes()
        lengths = self.states.total_len.gpu[slots].numpy()
        nothing: Any = torch.zeros(len(slots), dtype=torch.int64)
        ctx = LogitsContext(nothing, nothing, np.asarray(slots), nothing, nothing, nothing, lengths)
        logits = self.processor.apply(torch.zeros(len(slots), V), ctx)
        return [torch.isfinite(row).nonzero()[:, 0].tolist() for row in logits]


def test_the_limit_that_a_list_of_allowed_tokens_would_meet_is_there() -> None:
    assert len(LARGE.allowed_ids or ()) > MAX_NUM_ALLOWED_TOKEN_IDS
    with pytest.raises(ValueError, match="Too many allowed token IDs"):
        Runner(LARGE).add("listed", [1, 2], SamplingParams(allowed_token_ids=list(LARGE.allowed_ids or ())))


@pytest.mark.parametrize("taken", [(), (5, 9)])
@pytest.mark.parametrize("options", [{}, {"top_p": 0.9, "top_k": 5}])
def test_vllms_own_checks_take_our_sampling_requests_whatever_the_mask(
    taken: tuple[int, ...], options: dict[str, Any]
) -> None:
    params = sampling_params(LARGE, 0.7, taken, **options)
    validate = build_custom_logits_processors_params_validator(["actors.worker_extension:NewRunnersMask"])
    validate(params)
    runner = Runner(LARGE)
    slot = runner.add("ours", [1, 2], params)
    assert runner.sampler.needs_logits_processing[slot], "else the mask would never be applied"
    assert params.allowed_token_ids is None and params.min_tokens == 0


def test_rows_that_sample_are_masked_by_their_length_and_rows_that_score_are_not() -> None:
    runner = Runner(LARGE)
    first = runner.add("first", [1, 2], sampling_params(LARGE, 1.0, ()))
    scores = runner.add("scores", [1, 2, 7], SamplingParams(max_tokens=1))
    on = runner.add("on", [1, 2, 5, 9, 30], sampling_params(LARGE, 1.0, (5, 9)))
    allowed = list(range(3, 3_000))
    early = [token for token in allowed if token != STOP]
    assert runner.step([scores, on, first]) == [list(range(V)), allowed, early]
    runner.write(first, [1, 2, 40])
    assert runner.step([first]) == [early]
    runner.write(first, [1, 2, 40, 41])
    assert runner.step([first]) == [allowed]


def test_a_slot_forgets_the_request_that_it_held_before() -> None:
    runner = Runner(LARGE)
    slot = runner.add("first", [1, 2], sampling_params(LARGE, 1.0, ()))
    runner.states.remove_request("first")
    assert runner.add("scores", [1, 2, 7], SamplingParams(max_tokens=1)) == slot
    assert runner.step([slot]) == [list(range(V))]


def test_under_a_grammar_rows_follow_the_tokens_that_were_sampled_on_the_device() -> None:
    texts = {20: "a", 21: "b", 22: "ab"}
    allowed = np.asarray([STOP, 20, 21, 22])
    grammar = Grammar.of("task.regex", "(ab)+", texts, allowed, STOP, 0, 6)
    space = ActionSpace(
        vocab_size=V, terminator_id=STOP, allowed_ids=tuple(allowed.tolist()), max_len=6, grammar=grammar
    )
    runner = Runner(space)
    slot = runner.add("walks", [1, 2], sampling_params(space, 1.0, ()))
    resumed = runner.add("resumed", [1, 2], sampling_params(space, 1.0, ()), output=(20, 21, 20))
    text = [1, 2]
    expected = {(): [20, 22], (20,): [21], (20, 21): [STOP, 20, 22], (20, 21, 22): [STOP, 20, 22]}
    for taken, following in expected.items():
        runner.write(slot, [*text, *taken])
        assert runner.step([resumed, slot]) == [[21], following]
    # Its next step may already have been asked for.
    runner.write(slot, [*text, 20, 21, 22, STOP])
    assert runner.step([resumed, slot]) == [[21], list(range(V))]


def test_the_extension_finds_the_mask_in_the_newer_runners_sampler() -> None:
    runner = Runner(LARGE)
    worker = WorkerExtension()
    worker.model_runner = SimpleNamespace(
        sampler=runner.sampler, device=CPU, model_config=SimpleNamespace(get_vocab_size=lambda: V)
    )
    other = LARGE.model_copy(update={"min_len": 0})
    worker.use_action_space(other)
    assert runner.processor.mask is not None and runner.processor.mask.space is other


def test_a_request_says_what_was_taken_before_it() -> None:
    params = sampling_params(LARGE, 1.0, (5, 9))
    assert params.extra_args == {TAKEN: [5, 9]} and params.max_tokens == LARGE.max_len - 2
