"""Figures of samples: frontiers and sentence embeddings."""

from __future__ import annotations

import pytest

from common.tasks.embeddings import mean_similarity, semantic_diversity
from common.tasks.figures import on_hull


def test_the_hull_is_what_mixing_two_points_gives_and_ends_with_them() -> None:
    points = [(0.0, 0.0), (1.0, 1.0), (2.0, 0.0), (1.0, -5.0)]
    assert on_hull(points, 0.5) == pytest.approx(0.5) and on_hull(points, 1.0) == 1.0
    # The low point in the middle doesn't pull the hull down, and nothing is said outside.
    assert on_hull([(0.0, 0.0), (1.0, -1.0), (2.0, 0.0)], 1.0) == pytest.approx(0.0)
    assert on_hull(points, -0.1) is None and on_hull(points, 2.1) is None


def test_diversity_is_nothing_for_the_same_text_and_grows_with_the_meanings() -> None:
    same = [["the cat sat on the mat"] * 3]
    close = [["the cat sat on the mat", "a cat was sitting on a mat"]]
    apart = [["the cat sat on the mat", "interest rates rose again in March"]]
    found = [semantic_diversity(groups) for groups in (same, close, apart)]
    assert found[0] == pytest.approx(0.0, abs=1e-6) and found[0] < found[1] < found[2]
    assert semantic_diversity([*same, *apart]) == pytest.approx(found[2] / 2, abs=1e-6)
    with pytest.raises(ValueError, match="no group has two texts"):
        semantic_diversity([["alone"]])


def test_similarity_is_one_for_a_text_with_itself() -> None:
    assert mean_similarity([("a dog", "a dog")]) == pytest.approx(1.0)
    assert mean_similarity([("a dog", "a puppy")]) > mean_similarity([("a dog", "interest rates rose")])
