"""The policy in the learner: a base model with a LoRA adapter, and its masked log-probabilities.

A batch is read as trees of tokens, one pass each: a prompt once, its trajectories behind it, with gradient. Dropout is
off in every log-probability: the model stays in evaluation mode, gradients or not.
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
from common.token_tree import TokenTree, tree_inputs
from common.trajectory import Query, Trajectory

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


TOKENS_A_PASS, TOKENS_A_PASS_OF_GPU = 1_024, 4_096
"""What is read at once, as far as single trajectories let it: attention looks at the square of that."""
LOGITS_A_PASS = 2**27
"""0.5 GiB in float32, of which a pass with gradient holds a few."""


@dataclass(frozen=True)
class _Part:
    """Trajectories that are read in one pass."""

    rows: list[int]
    """Which of the batch."""
    tree: TokenTree
    kept: Int[Tensor, " distinct"]
    """Where the last tokens of their decision states are in the tree."""
    states: Int[Tensor, "rows states"]
    """Which of these each decision state is; 0 in the padding."""


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
        """log_pf and log_pterm of all trajectories, with gradient where enabled."""
        found, order = [], list[int]()
        for part in self._parts(batch):
            items = [batch[i] for i in part.rows]
            found.append(self._masked(self._logits(part), part.states, items))
            order += part.rows
        back = torch.tensor(order, device=self.device).argsort()
        n_actions = torch.tensor([len(item.action_ids) for item in batch], device=self.device)
        log_pf, log_pterm, can_stop = (
            pad_sequence([row for rows in each for row in rows], batch_first=True)[back]
            for each in zip(*found, strict=True)
        )
        return LogProbs(log_pf, log_pterm, n_actions, can_stop)

    def unmasked_log_prob(self, batch: Sequence[Actions]) -> Float[Tensor, " batch"]:
        """Log-probability of the actions under the model without mask, nothing said of stopping; with gradient."""
        found, order = [], list[int]()
        for part in self._parts(batch):
            logits = self._logits(part, restricted=False)
            actions, mask = self._padded([batch[i].action_ids for i in part.rows])
            states = part.states[:, : actions.shape[1]]
            chosen = logits[states, actions] - logits.logsumexp(-1)[states]
            found.append(torch.where(mask.bool(), chosen, 0).sum(1))
            order += part.rows
        return torch.cat(found)[torch.tensor(order, device=self.device).argsort()]

    def _parts(self, batch: Sequence[Actions]) -> list[_Part]:
        """The batch as trees that are read in one pass each, those of a query together as far as that goes."""
        limit = TOKENS_A_PASS if self.device.type == "cpu" else TOKENS_A_PASS_OF_GPU
        place = {query_id: i for i, query_id in enumerate(dict.fromkeys(item.query.id for item in batch))}
        parts: list[tuple[list[int], TokenTree, list[NDArray[np.int64]]]] = []
        n_states = 0
        for i in sorted(range(len(batch)), key=lambda i: place[batch[i].query.id]):
            item = batch[i]
            text = [*item.query.prompt_ids.tolist(), *item.input_ids.tolist()]
            n_states += len(item.state_positions)
            too_many = parts and len(parts[-1][1]) + parts[-1][1].new_tokens(text) > limit
            if not parts or too_many or n_states * self.space.vocab_size > LOGITS_A_PASS:
                parts.append(([], TokenTree(), []))
                n_states = len(item.state_positions)
            rows, tree, states = parts[-1]
            rows.append(i)
            states.append(tree.add(text)[len(item.query.prompt_ids) + item.state_positions])
        return [self._part(*each) for each in parts]

    def _part(self, rows: list[int], tree: TokenTree, states: Sequence[NDArray[np.int64]]) -> _Part:
        kept, index = np.unique(np.concatenate(states), return_inverse=True)
        padded, _ = self._padded(np.split(index, np.cumsum([len(each) for each in states])[:-1]))
        return _Part(rows, tree, torch.as_tensor(kept, device=self.device), padded)

    def _logits(self, part: _Part, *, restricted: bool = True) -> Float[Tensor, "distinct ids"]:
        """Logits of the allowed tokens at every distinct decision state, or of the whole vocabulary."""
        with self._head_for_allowed() if restricted else nullcontext():
            inputs = tree_inputs(part.tree, self.model.config, self.model.dtype, self.device)
            logits = self.model(**inputs, logits_to_keep=part.kept).logits[0]
        if restricted and not self._full_vocabulary and self._small_head is None:
            logits = logits[:, self._allowed]
        return logits.float()

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

    def _padded(self, rows: Sequence[NDArray[Any]]) -> tuple[Tensor, Tensor]:
        """Rows of ids as one tensor, and the mask of what isn't padding; both (rows, longest)."""
        width = max(len(row) for row in rows)
        ids = np.zeros((len(rows), width), np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        return torch.as_tensor(ids, device=self.device), torch.as_tensor(mask, device=self.device)

    def _masked(self, logits: Tensor, states: Tensor, batch: Sequence[Actions]) -> tuple[Tensor, Tensor, Tensor]:
        """Renormalise under the action space: no ⊤ before min_len, nothing but ⊤ at max_len, what a grammar says.

        `states` says which of the distinct states that there are `logits` of is each one of each trajectory. Nothing of
        all allowed tokens is made for states that several trajectories went through, but under a grammar.
        """
        time = torch.arange(states.shape[1], device=self.device)
        actions, _ = self._padded([item.action_ids for item in batch])
        columns = actions if self._full_vocabulary else torch.searchsorted(self._allowed, actions)
        columns, end = columns.clamp_max(logits.shape[1] - 1), self._terminator_column
        of_actions, of_end = logits[states[:, : columns.shape[1]], columns], logits[states, end]
        can_stop = (time >= self.space.min_len).expand(states.shape)
        if self.space.grammar is None:
            norm = logits.logsumexp(-1)[states]
            early, which = states[:, : self.space.min_len].unique(return_inverse=True)
            without = logits[early].index_fill(1, torch.tensor([end], device=self.device), -torch.inf).logsumexp(-1)
            norm = torch.cat([without[which], norm[:, self.space.min_len :]], 1)
        else:
            forbidden = self._ruled_out(batch, states.shape, logits.shape[1])
            forbidden[..., end] |= ~can_stop
            can_stop = ~forbidden[..., end]
            of_actions = of_actions.masked_fill(
                forbidden[:, : columns.shape[1]].gather(2, columns[..., None])[..., 0], -torch.inf
            )
            norm = logits[states].masked_fill(forbidden, -torch.inf).logsumexp(-1)
        log_pf = of_actions - norm[:, : columns.shape[1]]
        log_pterm = torch.where(can_stop & (time < self.space.max_len), of_end - norm, 0)
        return log_pf, log_pterm, can_stop

    def _ruled_out(
        self, batch: Sequence[Actions], states: Sequence[int], n_ids: int
    ) -> Bool[Tensor, "batch states ids"]:
        """What the grammar forbids at every state; nothing in the padding."""
        assert self.space.grammar is not None
        out = torch.zeros((*states, n_ids), dtype=torch.bool)
        for row, item in zip(out, batch, strict=True):
            allowed = self.space.grammar.allowed(item.action_ids)
            row[: len(allowed)] = torch.as_tensor(~allowed)
        return out.to(self.device)


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
