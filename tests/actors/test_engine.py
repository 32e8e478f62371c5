"""The real vLLM engine on a tiny model, held against transformers: sampling, scoring, adapters, a pure reference."""

from __future__ import annotations

import itertools
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from actors import merging
from actors.drafting import Draft
from actors.engine import Engine, LoadedAdapter, Sampled, _one_at_a_time, _start
from actors.sampler import TrajectorySampler
from actors.scoring import Scored, ScoreText
from common.action_space import ActionSpace
from common.config import ActorSection, LoraSection
from common.errors import EngineDisturbed, EngineFault, UserError
from common.metrics import ActorMetrics, new_registry
from common.reward import RewardWeights
from common.tasks import SampleRequest, Split, Task, TaskConfig
from common.trajectory import Query
from learner.policy import Actions, LoraPolicy, load_base_model
from tests.tiny import VOCABULARY

TERMINATOR = 13
SPACE = ActionSpace(
    vocab_size=len(VOCABULARY), terminator_id=TERMINATOR, allowed_ids=(3, 4, 5, TERMINATOR), min_len=1, max_len=3
)
LORA = LoraSection(rank=4, target_modules=["q_proj", "v_proj"])
QUERY = Query(task="fixed", prompt_ids=[14, 15, 3, 7])
WITH_TARGET = Query(task="fixed", prompt_ids=[14, 9], target_ids=[8, 12])


class FixedTask(Task[TaskConfig]):
    """A task of fixed queries over the tiny vocabulary."""

    name = "fixed"
    Config = TaskConfig
    action_space = SPACE

    def __init__(self) -> None:
        pass

    def queries(self, split: Split) -> list[Query]:
        return [QUERY, WITH_TARGET]


@pytest.fixture(scope="module", params=["lora", "merged"])
def engine(request: pytest.FixtureRequest, digit_model: Path) -> Engine:
    given = {"adapters": request.param}
    section = ActorSection(num_gpus=0, enforce_eager=True, max_model_len=64, max_in_flight=32, **given)
    return Engine(str(digit_model), section, "float32", SPACE, LORA, seed=0, holds_one=True)


@pytest.fixture(scope="module")
def policy(digit_model: Path) -> LoraPolicy:
    return LoraPolicy.load(str(digit_model), LORA, SPACE, dtype="float32", device=torch.device("cpu"))


def perturbed(policy: LoraPolicy, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.trainable().items():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))


_versions = itertools.count(1)


def load(engine: Engine, policy: LoraPolicy, folder: Path) -> LoadedAdapter:
    version = next(_versions)
    policy.save_adapter(folder / f"v{version}")
    return engine.load_adapter(version, f"{version:064x}", folder / f"v{version}")


def sampler_of(engine: Engine) -> TrajectorySampler:
    return TrajectorySampler(FixedTask(), engine, engine, ActorMetrics(new_registry()))


def finish(engine: Engine) -> dict[str, Sampled | Scored]:
    results = []
    while engine.busy:
        results += engine.step()
    return {result.request_id: result for result in results}


def test_samples_follow_the_learners_masked_distribution(engine: Engine, policy: LoraPolicy, tmp_path: Path) -> None:
    perturbed(policy, seed=1)
    adapter = load(engine, policy, tmp_path)
    n = 2_000
    drawn = sampler_of(engine).collect([QUERY], SampleRequest("all", True, 1.0, n), adapter, 32)[QUERY.id]
    counts = Counter(tuple(item.action_ids.tolist()) for item in drawn)
    space = [z for k in range(1, 4) for z in itertools.product((3, 4, 5), repeat=k)]
    assert set(counts) <= set(space), "the mask, min_len or max_len was broken"
    q = np.exp(policy.log_prob(QUERY, space))
    found = np.array([counts[z] for z in space])
    likely = q * n >= 5
    statistic = float(((found - q * n)[likely] ** 2 / (q * n)[likely]).sum())
    assert statistic < likely.sum() + 4 * np.sqrt(2 * likely.sum()), "samples don't follow the policy"


def test_layers_that_adapters_can_not_be_merged_into_are_served_by_lora_and_the_log_says_so(
    policy: LoraPolicy,
    digit_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(layer: Any, weight: torch.Tensor) -> None:
        raise RuntimeError("packed in a way that isn't known here")

    monkeypatch.setattr(merging, "_replace", refuse)
    section = ActorSection(num_gpus=0, enforce_eager=True, max_model_len=64, adapters="merged")
    with caplog.at_level("WARNING", logger="amortis"):
        other = Engine(str(digit_model), section, "float32", SPACE, LORA, seed=0)
    assert "can't be merged" in caplog.text and "packed in a way" in caplog.text
    perturbed(policy, seed=5)
    adapter = load(other, policy, tmp_path)
    assert not other.takes_turns, "several adapters share a batch"
    for item in sampler_of(other).collect([QUERY], SampleRequest("some", True, 1.0, 8), adapter, 8)[QUERY.id]:
        found = item.behaviour.sampler_log_prob.sum() + item.behaviour.stop_log_prob
        assert found == pytest.approx(policy.log_prob(QUERY, [tuple(item.action_ids.tolist())])[0], abs=1e-3)


def test_vllm_takes_a_request_that_scores_by_token_id_as_on_a_gpu(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(engine, "_scores_by_id", True)
    monkeypatch.setattr(engine, "_add", lambda request_id, ids, params, adapter, **_: asked.append(params))
    engine.submit_score("by id", ScoreText((14, 15, 3, 7), first=2))
    del engine._scoring["by id"]
    (params,) = asked
    # The limits of this engine; the runner that computes it needs a GPU.
    params._validate_logprobs(engine._engine.model_config)
    assert params.prompt_logprob_token_ids.tolist() == [[3, TERMINATOR], [7, TERMINATOR]]
    assert params.prompt_logprob_start == 1


def test_threads_can_be_changed_though_vllm_forbids_it(engine: Engine) -> None:
    before = torch.get_num_threads()
    try:
        for count in (before + 1, before):
            engine.use_threads(count)
            assert torch.get_num_threads() == count
    finally:
        engine.use_threads(before)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_log_probs_are_the_learners_under_mask_and_temperature(
    engine: Engine, policy: LoraPolicy, tmp_path: Path, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    perturbed(policy, seed=2)
    adapter = load(engine, policy, tmp_path)
    request = SampleRequest("some", True, temperature, 16)
    for item in sampler_of(engine).collect([QUERY], request, adapter, 32)[QUERY.id]:
        # A colder policy is one whose last layer gives more.
        weight = policy._layer._weight
        monkeypatch.setattr(policy._layer, "_weight", weight / temperature)
        with torch.no_grad():
            found = policy.log_probs([Actions.of(item, QUERY)])
        monkeypatch.setattr(policy._layer, "_weight", weight)
        log_pf, log_pterm = found.log_pf, found.log_pterm
        k = len(item.action_ids)
        assert item.behaviour.sampler_log_prob == pytest.approx(log_pf[0, :k].numpy(), abs=1e-4)
        assert item.behaviour.stop_log_prob == pytest.approx(float(log_pterm[0, k]), abs=1e-4)
        assert item.behaviour.adapter_version == adapter.version


def test_components_are_the_unmasked_base_models_at_every_state(
    engine: Engine, policy: LoraPolicy, digit_model: Path, tmp_path: Path
) -> None:
    perturbed(policy, seed=3)
    adapter = load(engine, policy, tmp_path)
    base = load_base_model(str(digit_model), "float32")

    def log_p(ids: list[int], start: int) -> float:
        with torch.no_grad():
            table = base(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(float(table[i - 1, ids[i]]) for i in range(start, len(ids)))

    for query in (QUERY, WITH_TARGET):
        prompt, target = query.prompt_ids.tolist(), query.target_ids.tolist()
        for item in sampler_of(engine).collect([query], SampleRequest("s", True, 1.0, 4, every_state=True), adapter, 8)[
            query.id
        ]:
            actions = item.action_ids.tolist()
            for t in range(len(actions) + 1):
                head = [*prompt, *actions[:t], TERMINATOR]
                assert item.log_prior[t] == pytest.approx(log_p(head, len(prompt)), abs=1e-4)
                if target and t >= SPACE.min_len:
                    expected = log_p([*head, *target], len(head))
                    assert item.log_likelihood[t] == pytest.approx(expected, abs=1e-4)
            assert item.log_reward(RewardWeights())[-1] == pytest.approx(
                float(item.log_prior[-1] + item.log_likelihood[-1]), abs=1e-5
            )


def test_the_reference_never_feels_an_adapter_whatever_shares_its_batch(
    engine: Engine, policy: LoraPolicy, tmp_path: Path
) -> None:
    text = ScoreText((14, 15, 3, 4, 5, TERMINATOR), first=1)
    engine.submit_score("alone", text)
    alone = finish(engine)["alone"].scores.actual.sum()
    previous: LoadedAdapter | None = None
    for seed in range(5):
        perturbed(policy, seed=10 + seed)
        adapter = load(engine, policy, tmp_path)
        engine.submit_score("base", text)
        engine.submit_score("adapted", text, adapter)
        if previous is not None:
            engine.submit_score("previous", text, previous)
        found = {name: result.scores.actual.sum() for name, result in finish(engine).items()}
        assert found["base"] == pytest.approx(alone, abs=1e-5), f"load {seed + 1} leaks into the reference"
        assert abs(found["adapted"] - alone) > 1e-3
        previous = adapter


def test_requests_in_flight_finish_under_the_adapter_they_began_with(
    engine: Engine, policy: LoraPolicy, tmp_path: Path
) -> None:
    perturbed(policy, seed=20)
    old = load(engine, policy, tmp_path)
    sampler = sampler_of(engine)
    sampler.submit(QUERY, 8, 1.0, old)
    done = sampler.step()
    perturbed(policy, seed=21)
    new = load(engine, policy, tmp_path)
    assert engine._turns is not None or not engine.can_load or not sampler.in_flight
    sampler.submit(QUERY, 8, 1.0, new)
    while sampler.in_flight:
        done += sampler.step()
    assert Counter(item.behaviour.adapter_version for item in done) == {old.version: 8, new.version: 8}


def is_loaded(engine: Engine, version: int) -> bool | None:
    """Whether vLLM has it in a slot; None where versions are merged, and there are no slots."""
    return None if engine._turns is not None else version in engine._engine.list_loras()


def test_a_version_in_use_is_not_dropped_for_a_new_one(engine: Engine, policy: LoraPolicy, tmp_path: Path) -> None:
    if engine._turns is not None:
        pytest.skip("versions that are merged have no slots")
    first = load(engine, policy, tmp_path)
    engine.submit_sample("held", [14, 15], 1.0, first)
    load(engine, policy, tmp_path)
    with pytest.raises(RuntimeError, match="are in flight"):
        load(engine, policy, tmp_path)
    finish(engine)
    load(engine, policy, tmp_path)


def test_a_followed_sample_is_told_token_by_token_and_is_the_one_that_would_have_come_whole(
    engine: Engine, policy: LoraPolicy, tmp_path: Path
) -> None:
    perturbed(policy, seed=22)
    adapter, sampler = load(engine, policy, tmp_path), sampler_of(engine)

    def drawn(seed: str, *, follow: bool) -> tuple[list[Draft], list[tuple[int, int, bool]]]:
        heard: list[tuple[int, int, bool]] = []

        def tell(draft: Draft) -> None:
            heard.append((draft.number, len(draft.actions), draft.done))

        drafts = sampler.submit(QUERY, 24, 1.0, adapter, seed=seed, score=False, follow=follow, tell=tell)
        while sampler.in_flight:
            assert sampler.step() == []
        return drafts, heard

    (whole, once), (followed, steps), (other, _) = (
        drawn("a", follow=False),
        drawn("a", follow=True),
        drawn("b", follow=False),
    )
    assert [draft.actions for draft in followed] == [draft.actions for draft in whole]
    assert [draft.actions for draft in other] != [draft.actions for draft in whole]
    # Those of one request differ though their seed is one.
    assert len({tuple(draft.actions) for draft in whole}) > 4
    for draft, same in zip(followed, whole, strict=True):
        assert draft.log_prob == pytest.approx(same.log_prob, abs=1e-4) and draft.trajectory is None
        lengths = [length for number, length, _ in steps if number == draft.number]
        assert lengths == sorted(lengths) and set(range(1, len(draft.actions) + 1)) <= set(lengths)
    assert sorted(once) == [(draft.number, len(draft.actions), True) for draft in whole]
    assert sampler.metrics.scored_texts._value.get() == 0


def test_samples_that_are_aborted_leave_the_others_and_their_version_behind(
    engine: Engine, policy: LoraPolicy, tmp_path: Path
) -> None:
    adapter, sampler = load(engine, policy, tmp_path), sampler_of(engine)
    heard: list[Draft] = []
    left = sampler.submit(QUERY, 40, 1.0, adapter, score=False, follow=True, tell=heard.append)
    kept = sampler.submit(QUERY, 5, 1.0, adapter, tell=heard.append)
    sampler.step()
    sampler.abort(left)
    heard.clear()
    while sampler.in_flight:
        sampler.step()
    assert sorted(draft.number for draft in heard) == [0, 1, 2, 3, 4] and all(draft in kept for draft in heard)
    assert all(draft.trajectory is not None for draft in kept) and not engine.busy and engine.can_load


def test_a_call_that_is_interrupted_in_the_middle_of_a_step_leaves_the_engine_to_the_next(
    engine: Engine, policy: LoraPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, sampler = load(engine, policy, tmp_path), sampler_of(engine)
    core = engine._engine.engine_core.engine_core
    execute, calls = core.model_executor.execute_model, itertools.count(1)

    def interrupted(*arguments: Any, **options: Any) -> Any:
        # What vLLM has scheduled by then is never computed.
        if next(calls) == 3:
            raise KeyboardInterrupt
        return execute(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(core.model_executor, "execute_model", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sampler.collect([QUERY], SampleRequest("hot", True, 2.0, 40), adapter, 32)
    assert sampler.in_flight == 0 and not engine.busy and engine.can_load
    other = QUERY.model_copy(update={"prompt_ids": QUERY.prompt_ids[:1]})
    found = sampler.collect([other], SampleRequest("all", True, 1.0, 300), adapter, 32)[other.id]
    assert len(found) == 300 and {item.behaviour.temperature for item in found} == {1.0}
    for item in found[:40]:
        (expected,) = policy.log_prob(other, [item.action_ids.tolist()])
        assert item.behaviour.log_prob == pytest.approx(expected, abs=1e-3)


def test_a_length_of_one_s_own_cuts_off_and_says_so(engine: Engine, policy: LoraPolicy, tmp_path: Path) -> None:
    adapter, sampler = load(engine, policy, tmp_path), sampler_of(engine)
    ends: dict[int, set[tuple[int, bool]]] = {2: set(), 3: set(), 9: set()}
    for max_len, found in ends.items():
        drafts = sampler.submit(QUERY, 60, 1.0, adapter, score=False, max_len=max_len, tell=lambda draft: None)
        while sampler.in_flight:
            sampler.step()
        found |= {(len(draft.actions), draft.cut) for draft in drafts}
    assert ends == {2: {(1, False), (2, True)}, 3: ends[9], 9: {(1, False), (2, False), (3, False)}}


def hold(engine: Engine, policy: LoraPolicy, folder: Path) -> LoadedAdapter:
    version = next(_versions)
    policy.save_adapter(folder / f"v{version}")
    return engine.hold_adapter(version, f"{version:064x}", folder / f"v{version}")


def test_a_version_that_is_held_is_sampled_from_beside_all_newer_ones_and_holds_none_of_them_up(
    engine: Engine, policy: LoraPolicy, tmp_path: Path
) -> None:
    """As an evaluation has it, which takes longer than a version is the newest."""
    perturbed(policy, seed=30)
    held = hold(engine, policy, tmp_path)
    space = [z for k in range(1, 4) for z in itertools.product((3, 4, 5), repeat=k)]
    log_q = dict(zip(space, policy.log_prob(QUERY, space), strict=True))
    sampler, told, newer = sampler_of(engine), list[Draft](), [load(engine, policy, tmp_path)]
    for seed in range(31, 35):
        sampler.submit(QUERY, 8, 1.0, held, tell=told.append, aside=True)
        perturbed(policy, seed=seed)
        assert sampler.aside_in_flight == sampler.in_flight == 8 and engine.can_load
        newer.append(load(engine, policy, tmp_path))
        sampler.submit(QUERY, 8, 1.0, newer[-1])
        assert (sampler.aside_in_flight, sampler.in_flight) == (8, 16)
        done = []
        while sampler.in_flight:
            done += sampler.step()
        assert {item.behaviour.adapter_version for item in done} == {newer[-1].version} and len(done) == 8
    assert len(told) == 4 * 8 and sampler.aside_in_flight == 0
    samples = {labels: sampler.metrics.samples.labels(labels)._value.get() for labels in ("evaluation", "policy")}
    assert samples == {"evaluation": 32, "policy": 32}
    for item in (draft.trajectory for draft in told):
        assert item is not None
        assert item.behaviour.adapter_version == held.version
        assert item.behaviour.log_prob == pytest.approx(log_q[tuple(item.action_ids.tolist())], abs=1e-3)
    engine.release_adapter()
    engine.release_adapter()
    assert not is_loaded(engine, held.version)


def test_a_held_version_may_be_one_that_is_loaded_before_or_after(
    engine: Engine, policy: LoraPolicy, tmp_path: Path
) -> None:
    for held_first in (True, False):
        perturbed(policy, seed=40)
        version = next(_versions)
        policy.save_adapter(tmp_path / f"v{version}")
        arguments = (version, f"{version:064x}", tmp_path / f"v{version}")
        (engine.hold_adapter if held_first else engine.load_adapter)(*arguments)
        (engine.load_adapter if held_first else engine.hold_adapter)(*arguments)
        engine.release_adapter()
        assert is_loaded(engine, version) is not False, "it is the newest still"
        load(engine, policy, tmp_path)
        load(engine, policy, tmp_path)
        assert not is_loaded(engine, version)


def test_a_version_that_is_released_stays_until_training_s_requests_of_it_are_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where they take longer than two newer versions take to come, which do not wait for what is held."""
    served: list[int] = []

    def add(engine: Engine, version: int, sha256: str, folder: Path) -> LoadedAdapter:
        served.append(version)
        assert len(served) <= 3, "the last slot is never filled"
        return LoadedAdapter(version, sha256, None)

    monkeypatch.setattr(Engine, "_add_adapter", add)
    engine = Engine.__new__(Engine)
    engine._engine = SimpleNamespace(remove_lora=served.remove)
    engine._turns = engine._held = None
    engine._loaded, engine._is_released = [2, 3], False
    engine._versions_in_flight = {"training": 1, "evaluation": 1}
    served[:] = [2, 3]
    engine.hold_adapter(1, "", Path())
    del engine._versions_in_flight["evaluation"]
    engine.release_adapter()
    assert engine.is_letting_go and served == [2, 3, 1]
    with pytest.raises(RuntimeError, match="are in flight"):
        engine.hold_adapter(3, "", Path())
    engine.load_adapter(4, "", Path())
    assert served == [3, 1, 4]
    del engine._versions_in_flight["training"]
    assert not engine.is_letting_go
    engine.load_adapter(5, "", Path())
    assert served == [4, 5]
    # Of one that is loaded too, requests go on.
    engine._versions_in_flight["training"] = 5
    engine._held = LoadedAdapter(5, "", None)
    engine.release_adapter()
    engine.release_adapter()
    assert engine.hold_adapter(6, "", Path()).version == 6 and served == [4, 5, 6]


def test_a_known_text_is_not_scored_again(engine: Engine, policy: LoraPolicy, tmp_path: Path) -> None:
    adapter, sampler = load(engine, policy, tmp_path), sampler_of(engine)
    request = SampleRequest("all", True, 1.0, 400)
    drawn = sampler.collect([QUERY], request, adapter, 32)[QUERY.id]
    scored = sampler.metrics.scored_texts._value.get()
    assert len(drawn) == 400 and len({item.id for item in drawn}) <= 39
    assert scored < 400
    priors = {item.id: item.log_prior.tolist() for item in drawn}
    assert all(item.log_prior.tolist() == priors[item.id] for item in drawn)


def test_texts_that_share_their_start_are_scored_alike_from_the_prefix_cache(engine: Engine, digit_model: Path) -> None:
    base = load_base_model(str(digit_model), "float32")
    generator = np.random.default_rng(0)
    start = [14, *generator.integers(3, 13, 39).tolist()]
    # Blocks hold 32 tokens: the first text fills the cache, the others read it. Where wanted places lie in the cache,
    # as for the same text again with an earlier `first`, they are computed anew.
    wanted = [(4, 40), (5, 40), (6, 40), (4, 40), (4, 33), (4, 32), (4, 31), (4, 1)]
    for i, (token, first) in enumerate(wanted):
        ids = (*start, token, TERMINATOR)
        engine.submit_score(f"text-{i}", ScoreText(ids, first))
        found = finish(engine)[f"text-{i}"]
        assert isinstance(found, Scored)
        with torch.no_grad():
            table = base(torch.tensor([ids])).logits[0].log_softmax(-1)
        for k, place in enumerate(range(first, len(ids))):
            assert found.scores.actual[k] == pytest.approx(float(table[place - 1, ids[place]]), abs=1e-4)
            assert found.scores.terminator[k] == pytest.approx(float(table[place - 1, TERMINATOR]), abs=1e-4)


def test_the_same_rationale_is_scored_once_however_many_samples_give_it(engine: Engine) -> None:
    sampler = sampler_of(engine)
    drawn = sampler.collect([WITH_TARGET], SampleRequest("all", False, 1.0, 60), None, 32)[WITH_TARGET.id]
    distinct = {item.id for item in drawn}
    assert len(drawn) == 60 > len(distinct)
    metrics = sampler.metrics
    # One text each: X Z ⊤ Y.
    assert metrics.scored_texts._value.get() == len(distinct)
    assert metrics.score_cache_hits._value.get() == 60 - len(distinct)


def test_nucleus_and_top_k_sampling_leave_the_unlikely_out(engine: Engine) -> None:
    everything = {z for k in range(1, 4) for z in itertools.product((3, 4, 5), repeat=k)}
    seen = {}
    for label, options in {"all": {}, "k": {"top_k": 1}, "p": {"top_p": 1e-6}}.items():
        request = SampleRequest(label, False, 1.0, 40, **options)  # type: ignore[arg-type]
        drawn = sampler_of(engine).collect([QUERY], request, None, 32)[QUERY.id]
        seen[label] = {tuple(item.action_ids.tolist()) for item in drawn}
    assert len(seen["all"]) > 3 and seen["all"] <= everything
    assert len(seen["k"]) == 1 and seen["p"] == seen["k"]


def test_an_engine_whose_step_failed_names_the_first_cause_from_then_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise ValueError("Too many allowed token IDs: 47116")

    monkeypatch.setattr(engine, "_failure", None)
    engine.submit_sample("refused", [14, 15], 1.0, None)
    with monkeypatch.context() as broken:
        broken.setattr(engine._engine, "step", refuse)
        with pytest.raises(EngineFault, match="Too many allowed token IDs: 47116"):
            engine.step()
    for again in (engine.step, lambda: engine.submit_sample("next", [14, 15], 1.0, None)):
        with pytest.raises(EngineFault, match="Too many allowed token IDs: 47116"):
            again()
    monkeypatch.undo()
    finish(engine)


@pytest.mark.parametrize(
    "words", ["Error in memory profiling. Initial free memory 1", "No available memory for the cache blocks. Try"]
)
def test_a_start_that_another_process_may_have_disturbed_can_be_told_from_a_model_that_is_refused(
    digit_model: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    import vllm

    def start(error: Exception) -> None:
        monkeypatch.setattr(vllm.EngineArgs, "create_engine_config", lambda self: (_ for _ in ()).throw(error))
        _start({"model": str(digit_model)}, ActorSection(gpu_memory_utilization=0.3))

    kind = AssertionError if "profiling" in words else ValueError
    # Of a model that is spread over GPUs it comes from another process.
    for error in (kind(words), RuntimeError(f"Worker failed with error '{words}'")):
        with pytest.raises(EngineDisturbed, match=r"actor\.gpu_memory_utilization = 0\.3"):
            start(error)
    with pytest.raises(UserError, match=r"model\.name = .*no such architecture") as refused:
        start(ValueError("no such architecture"))
    assert not isinstance(refused.value, EngineDisturbed)
    with pytest.raises(AssertionError, match="another"):
        start(AssertionError("another"))


def test_engines_on_one_gpu_start_one_after_the_other_and_those_on_others_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    on_gpu = ActorSection(num_gpus=1.0)

    def starts(gpu: str, section: ActorSection = on_gpu) -> bool:
        """Whether an engine may start there at once, while one starts on GPU 0."""
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpu)
        done = threading.Event()

        def start() -> None:
            with _one_at_a_time(section):
                done.set()

        threading.Thread(target=start, daemon=True).start()
        return done.wait(0.3)

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with _one_at_a_time(on_gpu):
        assert not starts("0")
        assert starts("1") and starts("0", ActorSection(num_gpus=0))
    assert starts("0")


def test_a_start_does_not_wait_for_ever_for_one_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("actors.engine.LONGEST_QUEUE_S", 0.2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    section = ActorSection(num_gpus=1.0)
    with (
        _one_at_a_time(section),
        pytest.raises(EngineDisturbed, match=r"amortis-engine-.*-0\.lock is locked"),
        _one_at_a_time(section),
    ):
        pass
