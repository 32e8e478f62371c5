"""The policy in the learner: a base model with a LoRA adapter, and its masked log-probabilities.

The prompt's keys and values are computed once per query, with gradient, and shared by its trajectories. Dropout is off
in every log-probability: the model stays in evaluation mode, gradients or not.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from common.action_space import ActionSpace
from common.config import LoraSection
from common.devices import torch_dtype
from common.errors import UserError
from common.models import load_causal_lm
from common.trajectory import Query, Trajectory
from learner.passes import CPU_OVERHEAD, gpu_overhead, passes

SCORING_BATCH = 128
"""Sequences in one pass where no gradient is kept."""


@dataclass(frozen=True)
class Actions:
    """Actions of one trajectory in their context, all that its policy log-probabilities depend on."""

    query: Query
    action_ids: NDArray[np.int32]
    input_ids: NDArray[np.int32]
    """What the model reads after the prompt."""
    state_positions: NDArray[np.int64]
    """Where in `input_ids` the last token of each decision state sits, -1 for the prompt's; shape (K+1,)."""

    @classmethod
    def of(cls, trajectory: Trajectory, query: Query) -> Actions:
        """The actions of a stored trajectory, tools' insertions in place."""
        return cls(query, trajectory.action_ids, trajectory.input_ids, trajectory.state_positions())

    @classmethod
    def with_target(cls, trajectory: Trajectory, query: Query, terminator_id: int | None) -> Actions:
        """All that maximum likelihood is to learn, as actions: Z, ⊤ (None: left out) and Y; tools' insertions stay
        context."""
        stop = [] if terminator_id is None else [terminator_id]
        tail = np.array([*stop, *query.target_ids], np.int32)
        positions = np.concatenate([trajectory.action_positions, len(trajectory.input_ids) + np.arange(len(tail))])
        actions = np.concatenate([trajectory.action_ids, tail])
        inputs = np.concatenate([trajectory.input_ids, tail])
        return cls(query, actions, inputs, np.append(positions.astype(np.int64) - 1, len(inputs) - 1))

    @classmethod
    def plain(cls, query: Query, action_ids: Sequence[int]) -> Actions:
        """Actions without tools."""
        ids = np.asarray(action_ids, np.int32)
        return cls(query, ids, ids, np.arange(-1, len(ids)))


@dataclass(frozen=True)
class LogProbs:
    """Masked, renormalised log-probabilities of a batch, padded to its longest trajectory."""

    log_pf: Float[Tensor, "batch steps"]
    log_pterm: Float[Tensor, "batch states"]
    n_actions: Int[Tensor, " batch"]
    can_stop: Bool[Tensor, "batch states"]
    """Where ⊤ is allowed."""

    def total(self) -> Float[Tensor, " batch"]:
        """log q(Z⊤|X) of each trajectory."""
        steps = torch.arange(self.log_pf.shape[1], device=self.log_pf.device) < self.n_actions[:, None]
        stops = self.log_pterm.gather(1, self.n_actions[:, None])[:, 0]
        return torch.where(steps, self.log_pf, 0).sum(1) + stops

    def each(self) -> list[NDArray[np.float64]]:
        """Of each trajectory log q of every action and of ⊤, shape (K+1,)."""
        found = []
        for log_pf, log_pterm, n in zip(self.log_pf, self.log_pterm, self.n_actions.tolist(), strict=True):
            found.append(torch.cat([log_pf[:n], log_pterm[n : n + 1]]).double().cpu().numpy())
        return found


class LoraPolicy:
    """A causal language model with a LoRA adapter, restricted to an action space."""

    def __init__(self, model: Any, space: ActionSpace, device: torch.device) -> None:
        self.model, self.space, self.device = model.to(device).eval(), space, device
        self._allowed = torch.as_tensor(space.allowed_array, device=device)
        self._full_vocabulary = space.allowed_ids is None
        self._small_head = self._make_small_head()
        parameters = sum(p.numel() for p in self.model.parameters())
        self._gpu_overhead = gpu_overhead(parameters, float32=self.model.dtype == torch.float32)
        self._terminator_column = int(np.searchsorted(space.allowed_array, space.terminator_id))

    @classmethod
    def load(cls, path: str, lora: LoraSection, space: ActionSpace, *, dtype: str, device: torch.device) -> Self:
        """The base model with a fresh adapter, which changes nothing yet, or the one to start from.

        Raises UserError naming `model`.
        """
        from peft import LoraConfig, PeftModel, get_peft_model

        base = load_base_model(path, dtype)
        if lora.start_from is not None:
            return cls(PeftModel.from_pretrained(base, str(lora.start_from), is_trainable=True), space, device)
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            target_modules=list(lora.target_modules),
            lora_dropout=0.0,
            bias="none",
            task_type="CAUSAL_LM",
        )
        try:
            model = get_peft_model(base, config)
        except ValueError as error:
            raise UserError(
                "model.lora.target_modules", lora.target_modules, "no such modules in this model", "name linear layers"
            ) from error
        return cls(model, space, device)

    @classmethod
    def trained(cls, path: str, adapter: Path, space: ActionSpace, *, dtype: str, device: torch.device) -> Self:
        """The base model through a finished adapter's folder, to score with."""
        from peft import PeftModel

        return cls(PeftModel.from_pretrained(load_base_model(path, dtype), str(adapter)), space, device)

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The adapter's parameters by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of the adapter's weights."""
        return {name: p.detach().clone() for name, p in self.trainable().items()}

    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Put weights of `snapshot` back; raises KeyError if names differ."""
        parameters = self.trainable()
        if parameters.keys() != weights.keys():
            raise KeyError(f"adapter weights differ: {sorted(parameters.keys() ^ weights.keys())[:4]}")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(weights[name])

    @contextmanager
    def swapped(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Other adapter weights for a while."""
        own = self.snapshot()
        self.restore(weights)
        try:
            yield
        finally:
            self.restore(own)

    @contextmanager
    def untrained(self) -> Iterator[None]:
        """The base model itself for a while, without the adapter."""
        with self.model.disable_adapter():
            yield

    def adapter_files(self) -> dict[str, bytes]:
        """The adapter as a PEFT folder's files, by name."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_adapter(Path(folder))
            return {path.name: path.read_bytes() for path in Path(folder).iterdir()}

    def save_adapter(self, folder: Path) -> None:
        """Write a plain PEFT adapter folder: `PeftModel.from_pretrained` and vLLM take it as it is."""
        # Embeddings are never trained, and looking whether they were resized would ask the hub.
        self.model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)

    def log_prob(self, query: Query, sequences: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """log q(Z⊤|X) of sequences, shape (n,), in nats; no gradient."""
        return log_q(self, [Actions.plain(query, ids) for ids in sequences])

    def log_probs(self, batch: Sequence[Actions]) -> LogProbs:
        """log_pf and log_pterm of all trajectories, those of like length in one pass, with gradient where enabled."""
        order, parts = self._passes(batch)
        found = [self._masked(self._state_logits(part), part) for part in parts]
        n_actions = torch.tensor([len(item.action_ids) for item in batch], device=self.device)
        log_pf, log_pterm, can_stop = (
            pad_sequence([row for rows in part for row in rows], batch_first=True)[order]
            for part in zip(*found, strict=True)
        )
        return LogProbs(log_pf, log_pterm, n_actions, can_stop)

    def unmasked_log_prob(self, batch: Sequence[Actions]) -> Float[Tensor, " batch"]:
        """Log-probability of the actions under the model without mask, nothing said of stopping; with gradient."""
        order, parts = self._passes(batch)
        found = []
        for part in parts:
            log_p = self._state_logits(part, restricted=False).log_softmax(-1)
            actions, mask = self._padded([item.action_ids for item in part])
            chosen = log_p[:, : actions.shape[1]].gather(2, actions[..., None])[..., 0]
            found.append(torch.where(mask.bool(), chosen, 0).sum(1))
        return torch.cat(found)[order]

    def _passes(self, batch: Sequence[Actions]) -> tuple[Int[Tensor, " batch"], list[list[Actions]]]:
        """The batch in parts of like length, and where each of its rows stands among theirs."""
        parts = passes(
            [len(item.input_ids) + 1 for item in batch],
            [item.query.id for item in batch],
            {item.query.id: len(item.query.prompt_ids) - 1 for item in batch},
            CPU_OVERHEAD if self.device.type == "cpu" else self._gpu_overhead,
        )
        order = torch.tensor([i for part in parts for i in part], device=self.device).argsort()
        return order, [[batch[i] for i in part] for part in parts]

    def _state_logits(self, batch: Sequence[Actions], *, restricted: bool = True) -> Float[Tensor, "batch states ids"]:
        """Logits of the allowed tokens at every decision state, or of the whole vocabulary."""
        cache, prompt_mask, prompt_lengths = self._prompt_cache([item.query for item in batch])
        # The prompt's last token opens the second pass, as its output is state 0's distribution.
        rows = [np.concatenate([item.query.prompt_ids[-1:], item.input_ids]) for item in batch]
        ids, mask = self._padded(rows)
        offsets = torch.arange(ids.shape[1], device=self.device)
        with self._head_for_allowed() if restricted else nullcontext():
            output = self.model(
                input_ids=ids,
                attention_mask=mask if prompt_mask is None else torch.cat([prompt_mask, mask], 1),
                position_ids=prompt_lengths[:, None] + offsets,
                past_key_values=cache,
                use_cache=cache is not None,
            )
        states, _ = self._padded([item.state_positions + 1 for item in batch])
        logits = output.logits
        if restricted and not self._full_vocabulary and self._small_head is None:
            logits = logits[..., self._allowed]
        return logits.gather(1, states[..., None].expand(-1, -1, logits.shape[-1])).float()

    @contextmanager
    def _head_for_allowed(self) -> Iterator[None]:
        """The output layer for the allowed tokens alone, so that none of the others is computed."""
        if self._small_head is None:
            yield
            return
        base = self.model.get_base_model()
        full = base.get_output_embeddings()
        base.set_output_embeddings(self._small_head)
        try:
            yield
        finally:
            base.set_output_embeddings(full)

    def _make_small_head(self) -> torch.nn.Linear | None:
        """A copy of the allowed tokens' rows; None where they are most, or where the output layer is trained."""
        full = self.model.get_base_model().get_output_embeddings()
        trained = any(p.requires_grad for p in full.parameters())
        if trained or 2 * len(self._allowed) > self.space.vocab_size:
            return None
        bias = getattr(full, "bias", None)
        small = torch.nn.Linear(
            full.weight.shape[1], len(self._allowed), bias is not None, full.weight.device, full.weight.dtype
        )
        small.requires_grad_(False)
        small.weight.copy_(full.weight[self._allowed])
        if bias is not None:
            small.bias.copy_(bias[self._allowed])
        return small

    def _prompt_cache(self, queries: Sequence[Query]) -> tuple[Any, Tensor | None, Int[Tensor, " batch"]]:
        """Keys and values of each distinct prompt but its last token, computed once and repeated by trajectory."""
        distinct = {query.id: query for query in queries}
        index = {query_id: i for i, query_id in enumerate(distinct)}
        of_row = torch.tensor([index[query.id] for query in queries], device=self.device)
        prefixes = [query.prompt_ids[:-1] for query in distinct.values()]
        lengths = torch.tensor([len(prefix) for prefix in prefixes], device=self.device)[of_row]
        if int(lengths.max()) == 0:
            return None, None, lengths
        ids, mask = self._padded(prefixes, left=True)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        output = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1
        )
        cache = output.past_key_values
        cache.batch_select_indices(of_row)
        return cache, mask[of_row], lengths

    def _padded(self, rows: Sequence[NDArray[Any]], *, left: bool = False) -> tuple[Tensor, Tensor]:
        """Rows of ids as one tensor, and the mask of what isn't padding; both (rows, longest)."""
        width = max(len(row) for row in rows)
        ids = np.zeros((len(rows), width), np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        for i, row in enumerate(rows):
            place = slice(width - len(row), width) if left else slice(0, len(row))
            ids[i, place], mask[i, place] = row, 1
        return torch.as_tensor(ids, device=self.device), torch.as_tensor(mask, device=self.device)

    def _masked(self, logits: Tensor, batch: Sequence[Actions]) -> tuple[Tensor, Tensor, Tensor]:
        """Renormalise under the action space: no ⊤ before min_len, nothing but ⊤ at max_len, what a grammar says."""
        time = torch.arange(logits.shape[1], device=self.device)
        terminator = torch.arange(logits.shape[2], device=self.device) == self._terminator_column
        too_early = (time < self.space.min_len)[:, None] & terminator
        forbidden = too_early[None] if self.space.grammar is None else too_early[None] | self._ruled_out(batch, logits)
        log_q = logits.masked_fill(forbidden, -torch.inf).log_softmax(-1)
        actions, _ = self._padded([item.action_ids for item in batch])
        columns = actions if self._full_vocabulary else torch.searchsorted(self._allowed, actions)
        columns = columns.clamp_max(logits.shape[2] - 1)
        log_pf = log_q[:, : columns.shape[1]].gather(2, columns[..., None])[..., 0]
        can_stop = ~forbidden[..., self._terminator_column].expand(logits.shape[:2])
        can_choose = can_stop & (time < self.space.max_len)
        log_pterm = torch.where(can_choose, log_q[..., self._terminator_column], 0)
        return log_pf, log_pterm, can_stop

    def _ruled_out(self, batch: Sequence[Actions], logits: Tensor) -> Bool[Tensor, "batch states ids"]:
        """What the grammar forbids at every state; nothing in the padding."""
        assert self.space.grammar is not None
        out = torch.zeros(logits.shape, dtype=torch.bool)
        for row, item in zip(out, batch, strict=True):
            allowed = self.space.grammar.allowed(item.action_ids)
            row[: len(allowed)] = torch.as_tensor(~allowed)
        return out.to(logits.device)


def load_base_model(path: str, dtype: str) -> Any:
    """A causal language model for scoring, frozen; raises UserError naming `model.name`."""
    return load_causal_lm(path, torch_dtype(dtype)).requires_grad_(False)


def log_q(
    policy: LoraPolicy, batch: Sequence[Actions], before_pass: Callable[[], None] = lambda: None
) -> NDArray[np.float64]:
    """log q(Z⊤|X) of trajectories, shape (n,), in nats; no gradient, `SCORING_BATCH` at a time, before each of which
    `before_pass` may raise."""
    parts = [np.zeros(0)]
    with torch.no_grad():
        for start in range(0, len(batch), SCORING_BATCH):
            before_pass()
            parts.append(policy.log_probs(batch[start : start + SCORING_BATCH]).total().double().cpu().numpy())
    return np.concatenate(parts)
