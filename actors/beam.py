"""Beam search and diverse beam search under the action space: what sampling is compared with.

vLLM has no diverse beam search, and transformers keeps it outside of the library, as code to be fetched from the hub.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.action_space import ActionSpace
from common.config import ActorSection
from common.devices import torch_dtype
from common.models import load_causal_lm
from common.trajectory import Query


@dataclass(frozen=True)
class _Beam:
    """A rationale in the making."""

    actions: tuple[int, ...]
    log_prob: float
    """Under the model without mask, in nats."""
    row: int
    """Of the last forward pass."""
    finished: bool = False


class BeamSearch:
    """The base model, loaded beside the engine, as beams need all log-probabilities at once."""

    def __init__(self, model_path: str, section: ActorSection, space: ActionSpace) -> None:
        self._space, self._device = space, torch.device("cuda" if section.num_gpus else "cpu")
        self._model: Any = load_causal_lm(model_path, torch_dtype(section.dtype)).to(self._device)
        self._allowed = torch.as_tensor(space.allowed_array, device=self._device)

    @torch.no_grad()
    def search(self, query: Query, beams: int, diversity_penalty: float = 0.0) -> list[list[int]]:
        """The actions of `beams` rationales, likeliest first.

        With a penalty each beam is a group of its own: a token costs as many penalties, in nats, as beams before it
        chose it at this step (Vijayakumar et al. 2018, Hamming diversity). No length penalty: log p(Z⊤|X) counts.
        """
        prompt = torch.as_tensor(query.prompt_ids.astype("int64"), device=self._device)[None]
        output = self._model(input_ids=prompt, use_cache=True, logits_to_keep=1)
        groups = beams if diversity_penalty > 0 else 1
        found = [[_Beam((), 0.0, row=0)] for _ in range(groups)]
        cache, log_p = output.past_key_values, output.logits[:, -1].float().log_softmax(-1)[:, self._allowed]
        for _ in range(self._space.max_len + 1):
            found = self._advance(found, log_p, beams // groups, diversity_penalty)
            alive = [beam for group in found for beam in group if not beam.finished]
            if not alive:
                break
            rows = torch.tensor([beam.row for beam in alive], device=self._device)
            cache.batch_select_indices(rows)
            tokens = torch.tensor([[beam.actions[-1]] for beam in alive], device=self._device)
            output = self._model(input_ids=tokens, past_key_values=cache, use_cache=True)
            cache, log_p = output.past_key_values, output.logits[:, -1].float().log_softmax(-1)[:, self._allowed]
            places = {id(beam): row for row, beam in enumerate(alive)}
            found = [
                [_Beam(b.actions, b.log_prob, places.get(id(b), -1), b.finished) for b in group] for group in found
            ]
        ordered = sorted((beam for group in found for beam in group), key=lambda beam: -beam.log_prob)
        return [list(beam.actions) for beam in ordered]

    def _advance(self, groups: list[list[_Beam]], log_p: Tensor, width: int, penalty: float) -> list[list[_Beam]]:
        """Every group's `width` best ways on, the groups one after the other."""
        space = self._space
        used = torch.zeros(len(self._allowed), device=log_p.device)
        done: list[list[_Beam]] = []
        for group in groups:
            # Candidates: log p, the ranking with the penalty, the beam, the column (None: finished before).
            ways: list[tuple[float, float, _Beam, int | None]] = []
            for beam in group:
                if beam.finished:
                    ways.append((beam.log_prob, beam.log_prob, beam, None))
                    continue
                mask = torch.from_numpy(space.mask(beam.actions).copy()).to(log_p.device)
                scores = log_p[beam.row].masked_fill(~mask, -torch.inf)
                ranked = scores - penalty * used
                best = ranked.topk(min(width, int((scores > -torch.inf).sum()))).indices.tolist()
                ways += [(beam.log_prob + float(scores[c]), beam.log_prob + float(ranked[c]), beam, c) for c in best]
            ways.sort(key=lambda way: -way[1])
            new = []
            for log_prob, _, beam, column in ways[:width]:
                if column is None:
                    new.append(beam)
                    continue
                used[column] += 1
                token = int(self._allowed[column])
                ended = token == space.terminator_id
                actions = beam.actions if ended else (*beam.actions, token)
                new.append(_Beam(actions, log_prob, beam.row, ended))
            done.append(new)
        return done
