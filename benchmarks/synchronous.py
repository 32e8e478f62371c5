"""The loop that users would otherwise write: generate, score, one step, in turns, with transformers and peft alone.

It is on-policy, and as quick as the libraries make it: one batch for all queries of a step, a key-value cache while it
generates, logits where they are looked at alone. Task, reward and loss are those of amortis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from actors.scoring import Rollout, ScoreText, TokenScores, reward_components, texts_to_score
from common.config import RunConfig
from common.models import load_causal_lm
from common.reward import log_reward
from common.tasks import Task
from common.trajectory import Query
from learner.losses import subtb_loss
from learner.policy import LoraPolicy

TEXTS_AT_ONCE = 64


class SynchronousLoop:
    """One process and all of its threads."""

    def __init__(self, config: RunConfig, task: Task[Any]) -> None:
        from peft import LoraConfig, get_peft_model

        assert config.model.name is not None
        self.task, self.section, self.space = task, config.learner, task.action_space
        self._weights, lora = config.reward_weights, config.model.lora
        base = load_causal_lm(config.model.name, torch.float32).requires_grad_(False)
        self.model: Any = get_peft_model(
            base, LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.target_modules))
        ).eval()
        self._parameters = [p for p in self.model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=self.section.lr, weight_decay=0.0)
        self._forbidden = torch.ones(self.space.vocab_size, dtype=torch.bool)
        self._forbidden[torch.as_tensor(self.space.allowed_array)] = False

    def policy(self) -> LoraPolicy:
        """What the task's exact figures are asked of."""
        return LoraPolicy(self.model, self.space, torch.device("cpu"))

    def step(self, queries: Sequence[Query], number: int) -> int:
        """One update, from new samples of some queries; how many."""
        section = self.section
        for group in self._optimizer.param_groups:
            warm = min(1.0, (number + 1) / section.warmup_steps) if section.warmup_steps else 1.0
            linear = section.lr_schedule == "linear"
            group["lr"] = section.lr * warm * ((1 - number / section.steps) if linear else 1.0)
        rollouts = self._sample([query for query in queries for _ in range(section.trajectories_per_query)])
        rewards = self._score(rollouts, section.reward.temperature.at(number))
        loss = self._loss(rollouts, rewards)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._parameters, section.max_grad_norm)
        self._optimizer.step()
        return len(rollouts)

    @torch.no_grad()
    def _sample(self, queries: Sequence[Query]) -> list[Rollout]:
        prompts = [torch.as_tensor(query.prompt_ids.copy(), dtype=torch.int64) for query in queries]
        ids = pad_sequence(prompts, batch_first=True, padding_side="left")
        mask = pad_sequence([torch.ones_like(each) for each in prompts], batch_first=True, padding_side="left")
        stop = self.space.terminator_id

        def allow(scores: Tensor, taken: int) -> Tensor:
            scores = scores.masked_fill(self._forbidden, -torch.inf)
            if taken < self.space.min_len:
                scores[:, stop] = -torch.inf
            return scores

        found = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=self.space.max_len,
            eos_token_id=stop,
            pad_token_id=stop,
            logits_processor=[lambda seen, scores: allow(scores, seen.shape[1] - ids.shape[1])],
        )
        rollouts = []
        for query, row in zip(queries, found[:, ids.shape[1] :].tolist(), strict=True):
            actions = np.asarray(row[: row.index(stop)] if stop in row else row, np.int32)
            rollouts.append(Rollout(query, actions, actions, np.arange(len(actions), dtype=np.int32)))
        return rollouts

    def _score(self, rollouts: Sequence[Rollout], temperature: float) -> list[NDArray[np.float64]]:
        """log R at every state: all texts that this takes, in batches of about one length."""
        wanted = [np.asarray(self.space.stoppable(rollout.action_ids)) for rollout in rollouts]
        in_reward, texts, owners = self.task.terminator_in_reward, list[ScoreText](), list[int]()
        for i, rollout in enumerate(rollouts):
            own = texts_to_score(rollout, self.space.terminator_id, wanted[i], terminator_in_text=in_reward)
            texts += own
            owners += [i] * len(own)
        scores = self._score_texts(texts)
        found = []
        for i, rollout in enumerate(rollouts):
            components = reward_components(
                rollout,
                [score for score, owner in zip(scores, owners, strict=True) if owner == i],
                terminator_in_reward=in_reward,
                stoppable=wanted[i],
                wanted=wanted[i],
            )
            arrays = {
                "log_prior": components.log_prior,
                "log_likelihood": components.log_likelihood,
                "log_constraint": self.task.log_constraint(rollout.query, rollout.action_ids)
                - self.task.misleading_penalty * components.misleads,
            }
            found.append(log_reward(arrays, self._weights, temperature))
        return found

    @torch.no_grad()
    def _score_texts(self, texts: Sequence[ScoreText]) -> list[TokenScores]:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i].ids))
        found: dict[int, TokenScores] = {}
        with self.model.disable_adapter():
            for start in range(0, len(order), TEXTS_AT_ONCE):
                chosen = order[start : start + TEXTS_AT_ONCE]
                rows = [torch.tensor(texts[i].ids) for i in chosen]
                first = min(texts[i].first for i in chosen)
                log_p = self._log_p(rows, first)
                for i, row, table in zip(chosen, rows, log_p, strict=True):
                    own = table[texts[i].first - first : len(row) - first].double()
                    actual = own.gather(1, row[texts[i].first :, None])[:, 0]
                    found[i] = TokenScores(actual.numpy(), own[:, self.space.terminator_id].numpy())
        return [found[i] for i in range(len(texts))]

    def _log_p(self, rows: Sequence[Tensor], first: int) -> Tensor:
        """Log-probabilities of all tokens at every place from `first` on, padded behind the texts."""
        ids = pad_sequence(list(rows), batch_first=True)
        kept = torch.arange(first - 1, ids.shape[1] - 1)
        found: Tensor = self.model(input_ids=ids, use_cache=False, logits_to_keep=kept).logits.log_softmax(-1)
        return found

    def _loss(self, rollouts: Sequence[Rollout], rewards: Sequence[NDArray[np.float64]]) -> Tensor:
        rows = [torch.tensor([*r.query.prompt_ids.tolist(), *r.action_ids.tolist()]) for r in rollouts]
        ids = pad_sequence(rows, batch_first=True)
        first = min(len(r.query.prompt_ids) for r in rollouts) - 1
        logits = self.model(input_ids=ids, use_cache=False, logits_to_keep=torch.arange(first, ids.shape[1])).logits
        n_actions = torch.tensor([len(r.action_ids) for r in rollouts])
        stop, longest = self.space.terminator_id, int(n_actions.max())
        states = torch.arange(longest + 1)
        starts = torch.tensor([len(r.query.prompt_ids) for r in rollouts]) - 1 - first
        places = (starts[:, None] + states).clamp_max(logits.shape[1] - 1)
        log_q = logits.gather(1, places[..., None].expand(-1, -1, logits.shape[2])).masked_fill(
            self._forbidden, -torch.inf
        )
        early = (states < self.space.min_len)[:, None] & (torch.arange(logits.shape[2]) == stop)
        log_q = log_q.masked_fill(early, -torch.inf).log_softmax(-1)
        actions = pad_sequence([torch.tensor(r.action_ids.astype(np.int64)) for r in rollouts], batch_first=True)
        log_pf = log_q[:, :-1].gather(2, actions[..., None])[..., 0] if longest else torch.zeros(len(rollouts), 0)
        can_stop = (states >= self.space.min_len).expand(len(rollouts), -1)
        log_pterm = torch.where(can_stop & (states < self.space.max_len), log_q[..., stop], 0)
        acts = torch.arange(log_pf.shape[1]) < n_actions[:, None]
        return subtb_loss(
            torch.where(acts, log_pf, 0),
            log_pterm,
            pad_sequence([torch.as_tensor(each, dtype=torch.float32) for each in rewards], batch_first=True),
            n_actions,
            min_len=self.space.min_len,
            can_stop=can_stop,
            group=torch.arange(len(rollouts)) // self.section.trajectories_per_query,
        )
