"""How a batch is split into passes of like length."""

from __future__ import annotations

import itertools
import random

import pytest

from learner.passes import gpu_overhead, passes


def cost(split: list[list[int]], lengths: list[int], queries: list[str], prompts: dict[str, int], overhead: int) -> int:
    """Tokens that are computed, padding included, and the overhead of each pass."""
    tokens = 0
    for part in split:
        tokens += len(part) * max(lengths[i] for i in part) + overhead
        tokens += sum(prompts[query] for query in {queries[i] for i in part})
    return tokens


@pytest.mark.parametrize("seed", range(20))
def test_no_other_split_by_length_computes_fewer_tokens(seed: int) -> None:
    generator = random.Random(seed)
    lengths = [generator.randint(1, 12) for _ in range(8)]
    queries = [generator.choice("abc") for _ in lengths]
    prompts = {query: generator.randint(0, 6) for query in "abc"}
    overhead = generator.randint(0, 8)
    found = passes(lengths, queries, prompts, overhead)
    assert sorted(i for part in found for i in part) == list(range(8)), "each row in one pass"
    order = sorted(range(8), key=lengths.__getitem__)
    changes = [i for i in range(1, 8) if lengths[order[i]] != lengths[order[i - 1]]]
    every = (
        [order[a:b] for a, b in itertools.pairwise([0, *cuts, 8])]
        for n in range(len(changes) + 1)
        for cuts in itertools.combinations(changes, n)
    )
    given = (lengths, queries, prompts, overhead)
    assert cost(found, *given) == min(cost(split, *given) for split in every)


def test_rows_of_one_length_stay_in_one_pass() -> None:
    assert passes([4, 4, 4], ["a", "b", "a"], {"a": 9, "b": 9}, 0) == [[0, 1, 2]]


def test_a_long_row_among_short_ones_has_a_pass_of_its_own() -> None:
    assert passes([5, 60, 5, 5], ["a", "a", "b", "b"], {"a": 10, "b": 10}, 48) == [[0, 2, 3], [1]]


def test_a_long_shared_prompt_is_not_computed_twice_to_save_little_padding() -> None:
    assert passes([5, 30, 5, 5], ["a", "a", "a", "a"], {"a": 500}, 48) == [[0, 2, 3, 1]]


@pytest.mark.parametrize(("parameters", "float32", "count"), [(135e6, True, 1), (7e9, True, 4), (7e9, False, 3)])
def test_a_gpu_splits_a_batch_only_where_computing_its_padding_takes_longer_than_starting_another_pass(
    parameters: float, float32: bool, count: int
) -> None:
    lengths = [16] * 16 + [32] * 16 + [64] * 16 + [128] * 16
    found = passes(lengths, ["a"] * 64, {"a": 10}, gpu_overhead(int(parameters), float32=float32))
    assert len(found) == count
