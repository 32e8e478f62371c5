"""The policy in the learner: a base model with a LoRA adapter, and its masked log-probabilities.

A batch is read as trees of tokens, one pass each: a prompt once, its trajectories behind it, with gradient. Dropout is
off in every log-probability: the model stays in evaluation mode, gradients or not.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
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
from common.output_layer import OutputLayer
from common.token_tree import TokenTree, tree_inputs
from common.trajectory import Query, Trajectory
from learner.cuda_graphs import GraphedPasses

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
"""0.5 GiB in float32, of which a pass with gradient holds a few; for models that logits must be made of."""


@dataclass(frozen=True)
class _Forbidden:
    """What is ruled out at the decision states of a batch."""

    ids: Bool[Tensor, "kinds ids"] | None
    """Of all allowed tokens, in the ways that occur; None where nothing is ever ruled out."""
    kinds: list[NDArray[Any]]
    """Of each trajectory which of these ways is that of its states, shape (K+1,)."""


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
    forbidden: Bool[Tensor, "kinds ids"] | None
    kinds: Int[Tensor, " distinct"]
    """As `_Forbidden` has it."""
    is_alone: bool
    """Whether it is the whole batch."""


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
        base = self.model.get_base_model()
        self._graphs = GraphedPasses(self.model) if device.type == "cuda" else None
        self._whole_layer = OutputLayer(base)
        self._layer = self._whole_layer if self._full_vocabulary else OutputLayer(base, self._allowed)
        self._terminator_column = int(np.searchsorted(space.allowed_array, space.terminator_id))
        self._too_early = self._allowed[None] == torch.tensor([[-1], [space.terminator_id]], device=device)

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
        graphs, self._graphs = self._graphs, None
        try:
            with self.model.disable_adapter():
                yield
        finally:
            self._graphs = graphs

    def checkpoint_layers(self) -> None:
        """Compute each layer once more in the backward pass, instead of keeping all that it computes until then.

        transformers' own switch needs training mode, where dropout is on. Raises UserError where it has no such layers.
        """
        from torch.utils.checkpoint import checkpoint
        from transformers.modeling_layers import GradientCheckpointingLayer

        layers = [layer for layer in self.model.modules() if isinstance(layer, GradientCheckpointingLayer)]
        if not layers:
            raise UserError(
                "learner.gradient_checkpointing", True, "transformers tells no layers of this model", "leave it out"
            )
        for layer in layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
        # They hold all of it.
        self._graphs = None

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
        return self.log_prob_table([query], sequences)[0]

    def log_prob_table(self, queries: Sequence[Query], sequences: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """The same behind each query, shape (queries, n); what prompts begin with alike is read once a pass."""
        batch = [Actions.plain(query, ids) for query in queries for ids in sequences]
        return log_q(self, batch).reshape(len(queries), len(sequences))

    def log_probs(self, batch: Sequence[Actions]) -> LogProbs:
        """log_pf and log_pterm of all trajectories, with gradient where enabled."""
        found, order = [], list[int]()
        for part in self._parts(batch, self._forbidden(batch)):
            found.append(self._masked(part, [batch[i] for i in part.rows]))
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
        nothing = _Forbidden(None, [np.zeros(len(item.state_positions), np.int64) for item in batch])
        for part in self._parts(batch, nothing):
            actions, mask = self._padded([batch[i].action_ids for i in part.rows])
            states = part.states[:, : actions.shape[1]]
            outputs = self._outputs(part, self._whole_layer)
            picked, norms = self._whole_layer(outputs, states.flatten(), actions.flatten())
            found.append(torch.where(mask, picked.view_as(states) - norms[states], 0).sum(1))
            order += part.rows
        return torch.cat(found)[torch.tensor(order, device=self.device).argsort()]

    def _parts(self, batch: Sequence[Actions], forbidden: _Forbidden) -> list[_Part]:
        """The batch as trees that are read in one pass each, those of a query together as far as that goes."""
        limit = TOKENS_A_PASS if self.device.type == "cpu" else TOKENS_A_PASS_OF_GPU
        place = {query_id: i for i, query_id in enumerate(dict.fromkeys(item.query.id for item in batch))}
        parts: list[tuple[list[int], TokenTree, list[NDArray[np.int64]]]] = []
        n_states = 0
        for i in sorted(range(len(batch)), key=lambda i: place[batch[i].query.id]):
            item = batch[i]
            text = [*item.query.prompt_ids.tolist(), *item.input_ids.tolist()]
            n_states += len(item.state_positions)
            too_many = bool(parts) and len(parts[-1][1]) + parts[-1][1].new_tokens(text) > limit
            too_many |= not self._layer.is_apart and n_states * self.space.vocab_size > LOGITS_A_PASS
            if not parts or too_many:
                parts.append(([], TokenTree(), []))
                n_states = len(item.state_positions)
            rows, tree, states = parts[-1]
            rows.append(i)
            states.append(tree.add(text)[len(item.query.prompt_ids) + item.state_positions])
        return [self._part(*part, forbidden, is_alone=len(parts) == 1) for part in parts]

    def _part(
        self,
        rows: list[int],
        tree: TokenTree,
        states: Sequence[NDArray[np.int64]],
        forbidden: _Forbidden,
        *,
        is_alone: bool,
    ) -> _Part:
        # One token may be a state of two kinds, where what a tool inserts in one trajectory is an action of another.
        pairs = np.stack([np.concatenate(states), np.concatenate([forbidden.kinds[i] for i in rows])])
        (kept, kinds), index = np.unique(pairs, axis=1, return_inverse=True)
        padded, _ = self._padded(np.split(index.ravel(), np.cumsum([len(each) for each in states])[:-1]))
        kept, kinds = (torch.as_tensor(each, device=self.device) for each in (kept, kinds))
        return _Part(rows, tree, kept, padded, forbidden.ids, kinds, is_alone)

    def _forbidden(self, batch: Sequence[Actions]) -> _Forbidden:
        """What the action space rules out at every decision state, but that nothing goes on at max_len."""
        if self.space.grammar is None:
            early = [np.arange(len(item.state_positions)) < self.space.min_len for item in batch]
            return _Forbidden(self._too_early if self.space.min_len else None, early)
        rows = [~self.space.grammar.allowed(item.action_ids) for item in batch]
        known: dict[bytes, int] = {}
        kinds = [np.array([known.setdefault(row.tobytes(), len(known)) for row in each]) for each in rows]
        ids = np.stack([np.frombuffer(row, np.bool_) for row in known])
        return _Forbidden(torch.as_tensor(ids, device=self.device), kinds)

    def _outputs(self, part: _Part, layer: OutputLayer) -> Float[Tensor, "distinct size"]:
        """What the output layer reads at every distinct decision state, or what it gives."""
        inputs = tree_inputs(part.tree, self.model.config, self.model.dtype, self.device)
        with layer.taken_off():
            # A layer that can't be taken off would make the logits of every token.
            captured = self._graphs if part.is_alone and layer.is_apart else None
            graphed = None if captured is None else captured(inputs)
            if graphed is not None:
                return graphed[part.kept]
            found: Tensor = self.model(**inputs, logits_to_keep=part.kept).logits[0]
        return found

    def _padded(self, rows: Sequence[NDArray[Any]]) -> tuple[Tensor, Tensor]:
        """Rows of numbers as one tensor, and the mask of what isn't padding; both (rows, longest)."""
        width = max(len(row) for row in rows)
        found, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.bool_)
        for i, row in enumerate(rows):
            found[i, : len(row)], mask[i, : len(row)] = row, True
        return torch.as_tensor(found, device=self.device), torch.as_tensor(mask, device=self.device)

    def _masked(self, part: _Part, batch: Sequence[Actions]) -> tuple[Tensor, Tensor, Tensor]:
        """Renormalised under the action space: no ⊤ before min_len, nothing but ⊤ at max_len, what a grammar says."""
        states, (actions, _) = part.states, self._padded([item.action_ids for item in batch])
        columns = actions if self._full_vocabulary else torch.searchsorted(self._allowed, actions)
        # What is no allowed token at all, which the padding may be, is looked up as another.
        columns = columns.clamp_max(len(self._allowed) - 1)
        acting = states[:, : columns.shape[1]]
        picked, norms = self._layer(
            self._outputs(part, self._layer),
            torch.cat([acting.flatten(), states.flatten()]),
            torch.cat([columns.flatten(), columns.new_full((states.numel(),), self._terminator_column)]),
            part.forbidden,
            part.kinds,
        )
        of_actions, of_end = picked.split([acting.numel(), states.numel()])
        cannot_stop = self._padded([~self.space.stoppable(item.action_ids) for item in batch])[0].bool()
        log_pf = of_actions.view_as(acting) - norms[acting]
        at_max_len = torch.arange(states.shape[1], device=self.device) >= self.space.max_len
        log_pterm = (of_end.view_as(states) - norms[states]).masked_fill(cannot_stop | at_max_len, 0)
        return log_pf, log_pterm, ~cannot_stop


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
