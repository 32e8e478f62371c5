"""A reward function of the user's own: batches, what is kept, and what each kind of failure costs."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from common.config_loading import load_config
from common.errors import UserError
from common.own_reward import OwnRewardSection
from common.reward_calls import FIRST_ROLLOUTS, FIRST_TEXTS, NoValue, OwnReward, Subject, Valued, check_own_reward

SOURCE = """
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

CALLS = Path(__file__).with_name("calls.jsonl")


def note(prompts, texts, rows):
    with CALLS.open("a") as file:
        file.write(json.dumps([prompts, texts, rows]) + "\\n")


def lengths(prompts, texts, rows):
    note(prompts, texts, rows)
    return [float(len(text)) for text in texts]


def of_rows(prompts, texts, rows):
    for row in rows:
        row["n"] += 1  # of no consequence for the others
    return np.array([row["n"] + len(prompt) for row, prompt in zip(rows, prompts)], np.float32)


def kinds(prompts, texts, rows):
    given = {"int": 3, "numpy": np.float32(2.5), "nan": float("nan"), "inf": float("inf"), "minus inf": -float("inf"),
             "huge": 1e9, "text": "7", "bool": True, "none": None, "list": [1.0], "array": np.array([1.5])}
    return [given[text] for text in texts]


def poisoned(prompts, texts, rows):
    note(prompts, texts, rows)
    if "raise" in texts:
        raise KeyError("poison")
    if "die" in texts:
        os._exit(1)
    if "hang" in texts:
        time.sleep(600)
    if "leave" in texts:
        sys.exit()
    if "few" in texts:
        return [1.0] * (len(texts) - 1)
    if "many" in texts:
        return [1.0] * 10_000_000
    if "dict" in texts:
        return {text: 1.0 for text in texts}
    return [1.0] * len(texts)


def broken(prompts, texts, rows):
    raise ValueError("never right")


def stuck(prompts, texts, rows):
    time.sleep(600)


def slow(prompts, texts, rows):
    time.sleep(0.3)
    return [1.0] * len(texts)


def slow_for_each(prompts, texts, rows):
    note(prompts, texts, rows)
    time.sleep(0.05 * len(texts))
    return [1.0] * len(texts)


def needs_a_digit(prompts, texts, rows):
    return [float(int(text)) for text in texts]


def needs_an_end(prompts, texts, rows):
    if not all(text.endswith(".") for text in texts):
        raise ValueError("no answer yet")
    return [1.0] * len(texts)
"""


@pytest.fixture
def rewards(tmp_path: Path) -> Iterator[Callable[..., OwnReward]]:
    (tmp_path / "mine.py").write_text(SOURCE)
    made: list[OwnReward] = []

    def make(name: str, **settings: object) -> OwnReward:
        made.append(OwnReward(section(tmp_path, name, **settings)))
        return made[-1]

    yield make
    for reward in made:
        reward.close()


def section(folder: Path, name: str, **settings: object) -> OwnRewardSection:
    return OwnRewardSection.model_validate({"function": f"{folder / 'mine.py'}:{name}", **settings})


def subject(query_id: str = "q", prompt: str = "X", **row: object) -> Subject:
    return Subject(query_id, prompt, row)


def calls(folder: Path) -> list[tuple[list[str], list[str], list[dict[str, object]]]]:
    return [tuple(json.loads(line)) for line in (folder / "calls.jsonl").read_text().splitlines()]


def settle(reward: OwnReward, n: int, limit_s: float = 30.0) -> dict[str, list[float] | NoValue]:
    """Poll until so many tickets are settled."""
    found: list[Valued] = []
    deadline = time.monotonic() + limit_s
    while len(found) < n:
        assert time.monotonic() < deadline, f"{len(found)} of {n} tickets"
        found += reward.poll(0.5)
    return {valued.ticket: valued.found for valued in found}


def ask(reward: OwnReward, texts: Sequence[str], of: Subject | None = None) -> list[list[float] | NoValue]:
    """One ticket for each text."""
    for i, text in enumerate(texts):
        reward.submit(str(i), of or subject(), [text])
    found = settle(reward, len(texts))
    return [found[str(i)] for i in range(len(texts))]


def test_it_is_given_prompts_texts_and_rows_and_its_values_come_back_in_order(
    tmp_path: Path, rewards: Callable[..., OwnReward]
) -> None:
    reward = rewards("lengths")
    reward.submit("a", subject("q1", "X1", n=1, name="é"), ["", "one", "three"])
    reward.submit("b", subject("q2", "X2", n=2), ["one"])
    assert settle(reward, 2) == {"a": [0.0, 3.0, 5.0], "b": [3.0]}
    seen = [item for call in calls(tmp_path) for item in zip(*call, strict=True)]
    row = {"n": 1, "name": "é"}
    assert seen == [("X1", "", row), ("X1", "one", row), ("X1", "three", row), ("X2", "one", {"n": 2})]


def test_each_text_is_asked_about_once_while_it_is_under_way_and_when_it_is_known(
    tmp_path: Path, rewards: Callable[..., OwnReward]
) -> None:
    reward = rewards("lengths")
    reward.submit("a", subject(), ["one", "two", "one"])
    reward.submit("b", subject(), ["two", "three"])
    assert settle(reward, 2) == {"a": [3.0, 3.0, 3.0], "b": [3.0, 5.0]}
    reward.submit("c", subject(), ["three", "one"])
    assert reward.poll() == [Valued("c", [5.0, 3.0])]
    assert sorted(text for _, texts, _ in calls(tmp_path) for text in texts) == ["one", "three", "two"]
    # Another query's value of the same text may be another.
    reward.submit("d", subject("other"), ["one"])
    assert reward.poll() == [] and settle(reward, 1) == {"d": [3.0]}


def test_what_is_kept_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SOURCE)
    reward = OwnReward(section(tmp_path, "lengths"), cache=2)
    ask(reward, ["a", "b", "c"])
    ask(reward, ["b", "c"])
    assert sum(len(texts) for _, texts, _ in calls(tmp_path)) == 3
    ask(reward, ["a"])
    assert sum(len(texts) for _, texts, _ in calls(tmp_path)) == 4
    reward.close()


def test_batches_are_of_what_waits_up_to_their_size(tmp_path: Path, rewards: Callable[..., OwnReward]) -> None:
    reward = rewards("lengths", batch_size=10)
    assert all(isinstance(found, list) for found in ask(reward, [str(i) for i in range(45)]))
    sizes = [len(texts) for _, texts, _ in calls(tmp_path)]
    assert max(sizes) == 10 and sum(sizes) == 45 and len(sizes) <= 6


def test_a_change_to_one_row_is_none_to_another_and_arrays_are_values(rewards: Callable[..., OwnReward]) -> None:
    reward = rewards("of_rows")
    assert ask(reward, ["a", "b", "c"], subject(prompt="four", n=1)) == [[6.0], [6.0], [6.0]]


def test_what_is_no_finite_number_costs_its_own_text_alone(rewards: Callable[..., OwnReward]) -> None:
    reward = rewards("kinds")
    given = ["int", "numpy", "array", "nan", "inf", "minus inf", "huge", "text", "bool", "none", "list"]
    good, bad = ask(reward, given)[:3], ask(reward, given)[3:]
    assert good == [[3.0], [2.5], [1.5]]
    said = [found.message for found in bad if isinstance(found, NoValue) and found.kind == "unusable"]
    assert len(said) == 8
    assert said[0] == "returned NaN for a text" and "give -100" in said[2] and "a str '7'" in said[4]
    assert "a bool True" in said[5] and "NoneType" in said[6] and "a list" in said[7]
    assert reward.outcomes == {"valued": 3, "unusable": 8} and reward.last_failure == said[-1]


@pytest.mark.parametrize(
    ("poison", "kind", "most_calls"),
    [
        ("raise", "raised", 9),
        ("leave", "raised", 9),
        ("die", "ended", 9),
        ("few", "unusable", 9),
        ("many", "unusable", 9),
        ("dict", "unusable", 9),
        ("hang", "timed_out", 17),
    ],
)
def test_one_bad_text_costs_the_others_of_its_batch_nothing(
    tmp_path: Path, rewards: Callable[..., OwnReward], poison: str, kind: str, most_calls: int
) -> None:
    reward = rewards("poisoned", batch_size=16, timeout_s=1.0)
    texts = [poison if i == 5 else str(i) for i in range(16)]
    found = ask(reward, texts)
    failed = found.pop(5)
    assert isinstance(failed, NoValue) and failed.kind == kind
    assert found == [[1.0]] * 15
    n = len(calls(tmp_path))
    assert n <= most_calls
    # For a while it isn't asked about again.
    assert isinstance(ask(reward, [poison])[0], NoValue) and len(calls(tmp_path)) == n


def test_a_text_that_failed_is_asked_about_again_later(
    tmp_path: Path, rewards: Callable[..., OwnReward], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.reward_calls.AGAIN_S", 0.0)
    reward = rewards("poisoned")
    ask(reward, ["raise", "1"])
    n = len(calls(tmp_path))
    ask(reward, ["raise"])
    assert len(calls(tmp_path)) == n + 1


def test_a_ticket_fails_by_any_of_its_texts_and_the_others_values_are_kept(rewards: Callable[..., OwnReward]) -> None:
    reward = rewards("poisoned")
    reward.submit("a", subject(), ["1", "raise", "2"])
    (found,) = settle(reward, 1).values()
    assert isinstance(found, NoValue) and found.kind == "raised" and "KeyError: 'poison'" in found.message
    reward.submit("b", subject(), ["2", "1"])
    assert reward.poll() == [Valued("b", [1.0, 1.0])]


def test_there_is_no_hope_for_one_that_never_gives_a_value(rewards: Callable[..., OwnReward]) -> None:
    reward = rewards("broken")
    ask(reward, [str(i) for i in range(FIRST_TEXTS - 1)])
    assert reward.hopeless is None
    ask(reward, ["x"])
    assert reward.hopeless is not None
    wanted = rf"task\.reward = .*first {FIRST_TEXTS} texts.*ValueError: never right \(mine\.py, line \d+\); mend it"
    assert re.match(wanted, reward.hopeless)


def test_there_is_no_hope_for_one_that_hangs_from_the_start_after_a_few_calls(
    rewards: Callable[..., OwnReward],
) -> None:
    reward = rewards("stuck", timeout_s=0.3)
    for i in range(40):
        reward.submit(str(i), subject(), [str(i)])
    start = time.monotonic()
    while reward.hopeless is None:
        assert time.monotonic() - start < 10
        reward.poll(0.5)
    assert re.match(r"task\.reward = .*first 3 calls failed.*longer than its limit of 0\.3 s", reward.hopeless)


def test_there_is_no_hope_for_one_that_can_not_be_found_where_the_actor_is(tmp_path: Path) -> None:
    reward = OwnReward(OwnRewardSection(function=str(tmp_path / "gone.py:score")))
    assert all(isinstance(found, NoValue) and found.kind == "ended" for found in ask(reward, ["1", "2"]))
    assert reward.hopeless is not None and "there is no such file; name one that is there" in reward.hopeless


def test_one_that_has_given_values_may_fail_for_long(rewards: Callable[..., OwnReward]) -> None:
    reward = rewards("needs_a_digit")
    assert ask(reward, ["3"]) == [[3.0]]
    assert all(isinstance(found, NoValue) for found in ask(reward, ["x" * i for i in range(1, 60)]))
    assert reward.hopeless is None
    assert ask(reward, ["4"]) == [[4.0]]


def submit_rollouts(reward: OwnReward, numbers: range, *, aside: bool = False) -> None:
    """Each of a text that is over, and of one that leads to it unless it is of an evaluation."""
    for i in numbers:
        reward.submit(str(i), subject(), [f"{i}."] if aside else [f"{i}", f"{i}."], aside=aside)
    settle(reward, len(numbers))


def test_there_is_no_hope_for_one_that_values_whole_texts_and_completes_no_rollout(
    rewards: Callable[..., OwnReward],
) -> None:
    reward = rewards("needs_an_end")
    # That an evaluation gets whole texts valued is of no use to training.
    submit_rollouts(reward, range(3), aside=True)
    submit_rollouts(reward, range(FIRST_ROLLOUTS - 1))
    submit_rollouts(reward, range(3))
    assert reward.hopeless is None and reward.outcomes["valued"] >= FIRST_ROLLOUTS - 1
    submit_rollouts(reward, range(FIRST_ROLLOUTS, FIRST_ROLLOUTS + 1))
    assert reward.hopeless is not None
    wanted = rf"task\.reward = .*none of the first {FIRST_ROLLOUTS} rollouts.*no answer yet.*unfinished.*vargrad or tb"
    assert re.match(wanted, reward.hopeless)


def test_one_that_has_completed_a_rollout_may_fail_for_long(rewards: Callable[..., OwnReward]) -> None:
    reward = rewards("needs_an_end")
    reward.submit("x", subject(), [".", ".."])
    settle(reward, 1)
    submit_rollouts(reward, range(FIRST_ROLLOUTS + 1))
    assert reward.hopeless is None


def test_nobody_waits_for_a_slow_one_who_only_looks(rewards: Callable[..., OwnReward]) -> None:
    reward = rewards("slow")
    ask(reward, ["0"])
    reward.submit("a", subject(), ["1"])
    start = time.monotonic()
    looks = 0
    while not (found := reward.poll()):
        looks += 1
    assert found == [Valued("a", [1.0])] and looks > 100 and time.monotonic() - start >= 0.3


def test_several_processes_have_a_batch_each(rewards: Callable[..., OwnReward]) -> None:
    reward = rewards("slow", processes=3, batch_size=1)
    ask(reward, ["0", "1", "2"])
    start = time.monotonic()
    ask(reward, ["3", "4", "5"])
    assert time.monotonic() - start < 0.8


def test_batches_that_take_too_long_are_followed_by_smaller_ones_and_cost_no_value(
    tmp_path: Path, rewards: Callable[..., OwnReward]
) -> None:
    reward = rewards("slow_for_each", processes=3, batch_size=64, timeout_s=1.0)
    # Several processes' first batches take too long together.
    assert ask(reward, [str(i) for i in range(256)]) == [[1.0]] * 256
    assert reward.hopeless is None and reward.outcomes == {"valued": 256}
    ask(reward, [str(i) for i in range(256, 320)])
    too_long = [len(texts) for _, texts, _ in calls(tmp_path) if 0.05 * len(texts) > 1.0]
    assert 3 <= len(too_long) <= 7, too_long


def test_batches_grow_again_when_they_are_quick(tmp_path: Path, rewards: Callable[..., OwnReward]) -> None:
    reward = rewards("poisoned", batch_size=16, timeout_s=1.0)
    ask(reward, ["hang", *map(str, range(15))])
    n = len(calls(tmp_path))
    ask(reward, [str(i) for i in range(15, 63)])
    assert [len(texts) for _, texts, _ in calls(tmp_path)][n:] == [8, 16, 16, 8]


def test_a_quick_one_costs_next_to_nothing(rewards: Callable[..., OwnReward], tell: Callable[[str], None]) -> None:
    reward = rewards("needs_a_digit")
    ask(reward, ["0"])
    start = time.perf_counter()
    ask(reward, [str(i) for i in range(1, 5_001)])
    each = (time.perf_counter() - start) / 5_000
    tell(f"{1e6 * each:.0f} µs a text")
    assert each < 1e-3


def test_the_check_tries_it_and_tells_the_first_text_that_fails(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SOURCE)
    check_own_reward(section(tmp_path, "needs_a_digit"), subject(), [["a"], ["1"]])
    with pytest.raises(
        UserError, match=r"^task\.reward = .*tried on the text 'a': ValueError: invalid literal.*; mend"
    ):
        check_own_reward(section(tmp_path, "needs_a_digit"), subject(), [["a"], ["b"]])
    start = time.monotonic()
    with pytest.raises(UserError, match=r"tried on the text '1': took longer than its limit of 0\.3 s"):
        check_own_reward(section(tmp_path, "stuck", timeout_s=0.3), subject(), [["1"], ["2"], ["3"]])
    assert time.monotonic() - start < 10
    with pytest.raises(UserError, match=r"task\.reward = .*there is no 'score'.*name one of "):
        check_own_reward(section(tmp_path, "score"), subject(), [["1"]])


def test_the_check_tries_unfinished_texts_of_every_rollout_that_is_asked_about_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(SOURCE)
    check_own_reward(section(tmp_path, "needs_an_end"), subject(), [[".", ".."], ["a", "b"], [".", "a."]])
    with pytest.raises(UserError, match=r"unfinished text 'a': ValueError: no answer yet.*; learner\.objective subtb"):
        check_own_reward(section(tmp_path, "needs_an_end"), subject(), [[".", ".."], [".", "a", "a."]])
    # A slow one isn't waited for long.
    monkeypatch.setattr("common.reward_calls.TRIED_S", 0.5)
    start = time.monotonic()
    check_own_reward(section(tmp_path, "slow"), subject(), [[str(i) for i in range(100)]])
    assert time.monotonic() - start < 5


CONFIG = "task: {{name: jsonl, train_path: rows.jsonl, prompt: '{{x}}'{}}}\n"


@pytest.mark.parametrize(
    ("written", "overrides"),
    [
        (", reward: 'mine.py:score'", []),
        (", reward: {function: 'mine.py:score'}", []),
        ("", ["--task.reward", "mine.py:score"]),
        ("", ["--task.reward=mine.py:score"]),
        (", reward: 'other.py:f'", ["--task.reward", "mine.py:score"]),
        (", reward: {function: 'mine.py:score', processes: 1}", ["--task.reward.function", "mine.py:score"]),
        ("", ["--task.reward", '{"function": "mine.py:score"}']),
    ],
)
def test_it_may_be_written_as_the_function_alone(tmp_path: Path, written: str, overrides: list[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(written))
    plain = load_config(path, overrides).task.reward  # type: ignore[attr-defined]
    assert plain == OwnRewardSection(function="mine.py:score")
    more = load_config(path, [*overrides, "--task.reward.timeout_s", "3"]) if "{" not in "".join(overrides) else None
    assert more is None or more.task.reward == plain.model_copy(update={"timeout_s": 3.0})  # type: ignore[attr-defined]


@pytest.mark.parametrize("given", ["mine.py", "mine.py:", ":score", "mine.py:1", "score", "mine.py:a b"])
def test_what_names_no_function_is_refused_as_it_is_read(tmp_path: Path, given: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(f", reward: {json.dumps(given)}"))
    with pytest.raises(UserError, match=r"task\.reward.* names no function: write my_file\.py:function"):
        load_config(path)


def test_what_was_withdrawn_is_asked_about_no_more_unless_another_waits_for_it(
    tmp_path: Path, rewards: Callable[..., OwnReward]
) -> None:
    reward = rewards("poisoned", batch_size=4)
    reward.submit("a", subject(), ["raise", "1"])
    reward.submit("b", subject(), ["1", "2"])
    reward.poll()
    # The batch is under way, so that only its parts can be left out.
    reward.submit("c", subject(), ["3"])
    reward.submit("d", subject(), ["4"])
    reward.withdraw(["a", "c"])
    found = settle(reward, 2)
    assert sorted(found) == ["b", "d"]
    asked = [text for _, texts, _ in calls(tmp_path)[1:] for text in texts]
    assert sorted(asked) == ["1", "2", "4"]
