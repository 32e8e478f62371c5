"""Texts with their common beginnings once, and that a model reads them as it reads each alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from common.models import load_causal_lm
from common.token_tree import TokenTree, tree_inputs
from tests.architectures import ARCHITECTURES, WINDOW, save_model

A, B, C = 7, 8, 9


def test_a_tree_has_what_texts_begin_with_once_and_each_text_s_own_path() -> None:
    tree = TokenTree()
    paths = [tree.add(text) for text in ([A, B], [A, B, C], [A, C], [B], [A, B])]
    assert [path.tolist() for path in paths] == [[0, 1], [0, 1, 2], [0, 3], [4], [0, 1]]
    assert tree.ids == [A, B, C, C, B] and len(tree) == 5
    assert tree.parents == [-1, 0, 1, 0, -1] and tree.depths == [0, 1, 2, 1, 0]


def test_new_tokens_are_those_that_adding_would_add() -> None:
    tree = TokenTree()
    for text in ([A, B], [A, B, C], [A, A, A], [], [A]):
        before, expected = len(tree), tree.new_tokens(text)
        tree.add(text)
        assert len(tree) - before == expected


def test_a_token_sees_itself_and_what_stands_before_it_in_its_texts() -> None:
    tree = TokenTree()
    for text in ([A, B, C], [A, C], [B]):
        tree.add(text)
    # a, ab, abc, ac, b
    assert tree.visible().astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [0, 0, 0, 0, 1],
    ]
    assert (tree.visible() & tree.near(2)).astype(int)[2].tolist() == [0, 1, 1, 0, 0], "two places, its own among them"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_reads_a_tree_as_it_reads_each_text(tmp_path: Path, name: str) -> None:
    model = load_causal_lm(str(save_model(ARCHITECTURES[name], tmp_path)), torch.float32)
    generator = np.random.default_rng(0)

    def random(n: int) -> list[int]:
        return generator.integers(5, 40, n).tolist()

    prompt, texts = random(12), [random(30)]
    for _ in range(3):
        rationale = random(14)
        texts += [[*prompt, *rationale[:t], 4, *random(3)] for t in range(len(rationale) + 1)]
    assert max(map(len, texts)) > WINDOW, "where attention slides it must leave something out"
    tree = TokenTree()
    paths = [tree.add(text) for text in texts]
    assert len(tree) < 0.3 * sum(map(len, texts))
    with torch.no_grad():
        found = model(**tree_inputs(tree, model.config, torch.float32, "cpu")).logits[0]
        for text, path in zip(texts, paths, strict=True):
            alone = model(input_ids=torch.tensor([text])).logits[0]
            assert (found[torch.as_tensor(path)] - alone).abs().max() < 2e-5
