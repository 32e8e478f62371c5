"""What amortis adds inside vLLM's workers: the task's mask, the columns that scoring needs, and on a CPU LoRA's
products and merged adapters.

vLLM imports this module in each of its workers, which are processes of their own where a model is spread over GPUs. It
has two model runners, the older of which CPUs use, with an interface each for what changes logits: a class each tells
`BatchMask` which rows of a batch sample and what they have taken. A request that samples says so by `TAKEN` among its
extra arguments; all others, such as those that score, stay as they are. So no request carries a list of tokens, and
vLLM's processed log-probabilities are those after the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as OldRunnersProcessor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as NewRunnersProcessor

from actors import transformers_classes
from actors.batch_mask import BatchMask
from actors.cpu_lora import expand, expand_slice, shrink
from actors.merging import Deltas, kept_parts, merge
from common.action_space import ActionSpace

TAKEN = "amortis_taken"
"""Among a request's extra arguments: the actions that were taken before it."""


class WorkerExtension:
    """Methods that vLLM mixes into its workers, for `collective_rpc`."""

    model_runner: Any

    def use_action_space(self, space: ActionSpace) -> None:
        """Mask what is sampled from now on, and score its ⊤."""
        runner = self.model_runner
        mask = BatchMask(space, runner.model_config.get_vocab_size(), runner.device)
        by_newer = isinstance(self._mask_processor(), NewRunnersMask)
        self._mask_processor().mask = mask
        if not by_newer:
            _gather_terminator(runner.sampler, space.terminator_id)

    def restore_classes(self) -> None:
        """Leave transformers' classes as plain models beside the engine need them."""
        transformers_classes.restore(self.model_runner.get_model())

    def kept_parts(self) -> set[str]:
        """As `actors.merging` has it."""
        return kept_parts(self.model_runner.get_model())

    def merge(self, deltas: Deltas) -> None:
        """Compute with an adapter's weights in the model's from now on; without deltas with the model's alone."""
        merge(self.model_runner.get_model(), deltas)

    def _mask_processor(self) -> OldRunnersMask | NewRunnersMask:
        runner = self.model_runner
        known = getattr(runner.sampler, "logits_processors", None) or runner.input_batch.logitsprocs.all
        (found,) = (each for each in known if isinstance(each, OldRunnersMask | NewRunnersMask))
        return found


class OldRunnersMask(OldRunnersProcessor):
    """For vLLM's older model runner, which CPUs use: rows are places in its batch."""

    mask: BatchMask | None = None
    """Set by `WorkerExtension.use_action_space`."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, tuple[list[int], list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        """No: it may forbid the likeliest token."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow requests as they come, move in the batch, and go."""
        process_dict_updates(self._rows, batch_update, _sampling_request)

    def apply(self, logits: Tensor) -> Tensor:
        """Mask the rows that sample."""
        if self.mask is None or not self._rows:
            return logits
        rows = sorted(self._rows)
        return self.mask.apply(logits, rows, [_joined(*self._rows[row]) for row in rows])


def _sampling_request(params: Any, prompt_ids: Any, output_ids: list[int]) -> tuple[list[int], list[int]] | None:
    """What was taken before the request, and vLLM's own growing list of what it has taken; None if it doesn't
    sample."""
    taken = (params.extra_args or {}).get(TAKEN)
    return None if taken is None else (taken, output_ids)


def _joined(taken: list[int], output_ids: list[int]) -> list[int]:
    return [*taken, *output_ids] if taken else output_ids


@dataclass
class _Slot:
    """A sampling request in the newer runner."""

    actions: list[int]
    """Taken, as far as the host knows."""
    before: int
    """How many of them before the request."""


class NewRunnersMask(NewRunnersProcessor):
    """For vLLM's newer model runner, which GPUs use: rows point to slots of requests.

    Without a grammar only lengths count, which the host knows. With one it must know the last tokens, which are on
    the device: they are fetched before the forward pass starts, so that their copy, and the work on them, runs beside.
    """

    mask: BatchMask | None = None

    def __init__(self, vllm_config: Any, req_states: Any) -> None:
        self._states, self._slots = req_states, dict[int, _Slot]()
        self._fetched: tuple[Tensor, Tensor, Any] | None = None

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Whether the request samples."""
        self._slots.pop(req_idx, None)
        taken = (sampling_params.extra_args or {}).get(TAKEN)
        if taken is None:
            return False
        self._slots[req_idx] = _Slot(list(taken), len(taken))
        return True

    def apply_staged_writes(self) -> None:
        """Start fetching the last tokens."""
        self._fetched = None
        if self.mask is None or self.mask.space.grammar is None or not self._slots:
            return
        lengths = self._states.total_len.gpu
        tokens = self._states.all_token_ids.gpu.gather(1, (lengths.long() - 1).clamp_min(0)[:, None])[:, 0]
        if lengths.device.type == "cpu":
            self._fetched = tokens, lengths.clone(), None
            return
        copies = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in (tokens, lengths)]
        for copy, x in zip(copies, (tokens, lengths), strict=True):
            copy.copy_(x, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._fetched = copies[0], copies[1], event

    def apply(self, logits: Tensor, ctx: Any) -> Tensor:
        """Mask the rows that sample."""
        if self.mask is None or not self._slots:
            return logits
        masked = [(row, slot) for row, slot in enumerate(ctx.idx_mapping_np.tolist()) if slot in self._slots]
        if not masked:
            return logits
        if self.mask.space.grammar is None:
            lengths = ctx.seq_lens_upper_bound_np
            counts = [self._taken(slot, int(lengths[row])) for row, slot in masked]
            return self.mask.apply(logits, [row for row, _ in masked], counts)
        self._catch_up([slot for _, slot in masked])
        return self.mask.apply(logits, [row for row, _ in masked], [self._slots[slot].actions for _, slot in masked])

    def _taken(self, slot: int, length: int) -> range:
        """As many actions as a request has taken with a text so long; chunks of its prompt come before the first."""
        return range(self._slots[slot].before + max(0, length - int(self._states.prompt_len.np[slot])))

    def _catch_up(self, slots: Sequence[int]) -> None:
        """Learn the tokens that were sampled since the last step."""
        if self._fetched is None:
            raise RuntimeError("the mask's tokens were not fetched before the step")
        tokens, lengths, event = self._fetched
        if event is not None:
            event.synchronize()
        for slot in slots:
            known, length = self._slots[slot], int(lengths[slot])
            missing = length - int(self._states.prompt_len.np[slot]) - (len(known.actions) - known.before)
            if missing == 1:
                known.actions.append(int(tokens[slot]))
            elif missing > 1:
                # Resumed after it had to make room for others.
                known.actions += self._states.all_token_ids.gpu[slot, length - missing : length].tolist()


def _gather_terminator(sampler: Any, terminator_id: int) -> None:
    """Make the older runner return the token itself, and ⊤ as the one extra column, instead of the most likely ones."""
    from vllm.v1.outputs import LogprobsTensors

    def gather(logprobs: Any, num_logprobs: int, token_ids: Any) -> Any:
        columns = token_ids.unsqueeze(-1)
        if num_logprobs:
            columns = torch.cat([columns, torch.full_like(columns, terminator_id)], dim=1)
        ranks = torch.zeros_like(token_ids, dtype=torch.int32)
        return LogprobsTensors(columns.to(torch.int32), logprobs.gather(-1, columns), ranks)

    sampler.gather_logprobs = gather


def _use_grouped_lora() -> None:
    """Put our products in the place of vLLM's, wherever its CPU wrapper calls them."""
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    for name, own in {"shrink": shrink, "expand": expand, "expand_slice": expand_slice}.items():
        # The sgmv_ ones, for prompts, call the bgmv_ ones of their own module.
        for module in (lora_ops, punica_cpu):
            setattr(module, f"bgmv_{name}", own)


# Before the model is loaded, and so before it is compiled.
_use_grouped_lora()
