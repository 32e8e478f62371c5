"""The learner over several processes, each on a device of its own: they share out the trajectories of a batch.

Process 0 trains as it would alone: it alone holds optimiser and log Z, reads the buffer, publishes and writes files.
Only the passes with gradient are shared. For each it sends its weights and the batch; every process computes the
log-probabilities of its trajectories, and process 0 puts them together. The loss sees the whole batch, so that means
over a query and sums over all pairs are those of one process. Its gradient by log-probabilities goes back to all, each
carries its own rows' part to the weights, and their sum is the gradient of one process, to rounding.

Commands and batches travel as integers between CPUs (gloo), weights, values and gradients between the devices (NCCL
on GPUs). Nothing is pickled.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from enum import IntEnum
from itertools import accumulate
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from common.errors import RunFault, UserError
from common.log import get_logger
from common.trajectory import Query
from learner.policy import Actions, LogProbs, LoraPolicy
from learner.sharing import shares
from learner.torchrun import name_of, own_rank

log = get_logger("learner")
ANSWER_LIMIT_S = 600.0
"""Longest wait for a process that is at the same work."""
_MESSAGE_BYTES = 512


class _Kind(IntEnum):
    """What process 0 asks of the others."""

    DONE = 0
    MASKED = 1
    UNMASKED = 2
    GRADIENT = 3


class Processes:
    """The learner's processes, seen from one of them."""

    def __init__(self, device: str, wanted: int) -> None:
        """Join them; raises UserError if torchrun started another number than is wanted."""
        self.rank, self.size = own_rank(), int(os.environ["WORLD_SIZE"])
        if self.size != wanted:
            raise UserError(
                "learner.num_processes", wanted, f"torchrun started {self.size}", "start `python -m learner` by itself"
            )
        self.device = torch.device("cpu")
        if device == "cuda":
            self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(self.device)
        limit = timedelta(seconds=ANSWER_LIMIT_S)
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=limit)
        # The others wait here for as long as process 0 waits for trajectories; if it ends, they see that at once.
        self._commands = dist.new_group(backend="gloo", timeout=timedelta(days=365))

    def dismiss(self) -> None:
        """Process 0 tells the others that all is done."""
        self.send(_Kind.DONE)

    def leave(self) -> None:
        """Part in good order."""
        dist.destroy_process_group()

    def send(self, kind: _Kind, numbers: NDArray[np.int64] | None = None) -> None:
        """Tell the others what is next."""
        payload = torch.as_tensor(np.zeros(0, np.int64) if numbers is None else numbers)
        with self._all_answer():
            dist.broadcast(torch.tensor([int(kind), len(payload)]), 0, group=self._commands)
            if len(payload):
                dist.broadcast(payload, 0, group=self._commands)

    def receive(self) -> tuple[_Kind, NDArray[np.int64]]:
        """Wait for what process 0 says is next."""
        header = torch.zeros(2, dtype=torch.int64)
        with self._all_answer():
            dist.broadcast(header, 0, group=self._commands)
            payload = torch.zeros(int(header[1]), dtype=torch.int64)
            if len(payload):
                dist.broadcast(payload, 0, group=self._commands)
        return _Kind(int(header[0])), payload.numpy()

    def share(self, tensor: Tensor) -> Tensor:
        """Process 0's values, on all."""
        with self._all_answer():
            dist.broadcast(tensor, 0)
        return tensor

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum over all, on process 0."""
        with self._all_answer():
            dist.reduce(tensor, 0)
        return tensor

    def gathered(self, tensor: Tensor) -> list[Tensor]:
        """Everyone's tensor, of one shape, on all."""
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        with self._all_answer():
            dist.all_gather(found, tensor)
        return found

    def together(self, work: Callable[[], Tensor]) -> Tensor:
        """Do one's share; if any process fails at it, all raise a RunFault with its cause."""
        found, failure = None, ""
        try:
            found = work()
        except Exception as error:
            log.exception("failed at its share of a batch")
            failure = f"{type(error).__name__}: {error}"
        for rank, cause in enumerate(self._exchanged(failure)):
            if cause:
                raise RunFault(f"process {rank} of {self.size}: {cause} (see logs/{name_of(rank)}.log)")
        assert found is not None
        return found

    def _exchanged(self, text: str) -> list[str]:
        """Everyone's text, in order, cut where it is long."""
        data = text.encode()[:_MESSAGE_BYTES].ljust(_MESSAGE_BYTES, b"\0")
        found = self.gathered(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        return [bytes(item.tolist()).rstrip(b"\0").decode(errors="replace") for item in found]

    @contextmanager
    def _all_answer(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            # Its first sentence, without the place in PyTorch's source.
            cause = re.sub(r"^\[\S+\] ", "", str(error).strip()).partition(". ")[0].partition("\n")[0]
            raise RunFault(
                f"one of the learner's {self.size} processes has ended, or gave no answer within {ANSWER_LIMIT_S:g} s "
                f"({cause}); see logs/learner*.log and logs/learner.err, and go on with --run.resume true"
            ) from error


class SharedPolicy(LoraPolicy):
    """Process 0's policy. What needs no gradient it computes by itself."""

    processes: Processes

    def log_probs(self, batch: Sequence[Actions]) -> LogProbs:
        """As LoraPolicy's, with everyone's help where a gradient is wanted."""
        if not torch.is_grad_enabled():
            return super().log_probs(batch)
        values = self._shared(_Kind.MASKED, batch)
        n_actions = torch.tensor([len(item.action_ids) for item in batch], device=self.device)
        width = int(n_actions.max())
        log_pf, log_pterm, can_stop = values.split([width, width + 1, width + 1], dim=1)
        return LogProbs(log_pf, log_pterm, n_actions, can_stop.detach() > 0)

    def unmasked_log_prob(self, batch: Sequence[Actions]) -> Float[Tensor, " batch"]:
        """As LoraPolicy's, with everyone's help where a gradient is wanted."""
        return (
            self._shared(_Kind.UNMASKED, batch)[:, 0] if torch.is_grad_enabled() else super().unmasked_log_prob(batch)
        )

    def _shared(self, kind: _Kind, batch: Sequence[Actions]) -> Float[Tensor, "batch columns"]:
        numbers = encode(batch)
        self.processes.send(kind, numbers)
        values: Tensor = _Shared.apply(self, kind, numbers, *self.trainable().values())
        return values


class _Shared(torch.autograd.Function):
    """A batch's values as a function of the adapter's weights, computed by all processes, both ways."""

    @staticmethod
    def forward(ctx: Any, policy: SharedPolicy, kind: _Kind, numbers: NDArray[np.int64], *_: Tensor) -> Tensor:
        work = ctx.work = _Work(policy, policy.processes, kind, numbers)
        values = work.values
        # They hold the graph's node, which holds the work: together they would stay until Python looks for cycles.
        del work.values
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        work: _Work = ctx.work
        work.processes.send(_Kind.GRADIENT)
        parameters = list(work.policy.trainable().values())
        parts = work.gradient(gradient.contiguous()).split([p.numel() for p in parameters])
        return None, None, None, *(part.view_as(p).to(p.dtype) for part, p in zip(parts, parameters, strict=True))


def follow(policy: LoraPolicy, processes: Processes) -> None:
    """What the other processes do: their share of what process 0 asks for, until it says that all is done."""
    work: _Work | None = None
    while True:
        kind, numbers = processes.receive()
        if kind is _Kind.DONE:
            return
        if kind is _Kind.GRADIENT:
            assert work is not None
            work.gradient(torch.empty_like(work.values))
            work = None
        else:
            # Before the next is made: an unused one's graph takes memory.
            work = None
            work = _Work(policy, processes, kind, numbers)


class _Work:
    """One batch, as each process computes its own rows of it and keeps their graph for the gradient."""

    def __init__(self, policy: LoraPolicy, processes: Processes, kind: _Kind, numbers: NDArray[np.int64]) -> None:
        self.policy, self.processes = policy, processes
        self._parameters = list(policy.trainable().values())
        self._take_weights()
        batch = decode(numbers)
        rows = shares(
            [len(item.input_ids) + 1 for item in batch],
            [item.query.id for item in batch],
            {item.query.id: len(item.query.prompt_ids) - 1 for item in batch},
            processes.size,
        )
        self._rows = rows[processes.rank]
        longest = max(len(item.action_ids) for item in batch)
        width = 1 if kind is _Kind.UNMASKED else 3 * longest + 2
        own = [batch[i] for i in self._rows]
        self._own = processes.together(lambda: _columns(policy, kind, own, longest, width))
        block = torch.zeros(max(map(len, rows)), width, device=policy.device)
        block[: len(own)] = self._own.detach()
        found = processes.gathered(block)
        order = torch.tensor([i for part in rows for i in part], device=policy.device).argsort()
        self.values: Float[Tensor, "batch columns"] = torch.cat(
            [values[: len(part)] for values, part in zip(found, rows, strict=True)]
        )[order]

    def _take_weights(self) -> None:
        with torch.no_grad():
            flat = self.processes.share(torch.cat([p.reshape(-1).float() for p in self._parameters]))
            if self.processes.rank:
                for part, p in zip(flat.split([p.numel() for p in self._parameters]), self._parameters, strict=True):
                    p.copy_(part.view_as(p))

    def gradient(self, by_values: Float[Tensor, "batch columns"]) -> Float[Tensor, " weights"]:
        """The gradient by all weights, flat, from that by the values which process 0 has; right on process 0."""
        by_own = self.processes.share(by_values)[self._rows]
        flat = self.processes.together(lambda: self._own_gradient(by_own))
        return self.processes.summed(flat)

    def _own_gradient(self, by_own: Tensor) -> Tensor:
        found: Sequence[Tensor | None] = [None] * len(self._parameters)
        if len(by_own):
            found = torch.autograd.grad(self._own, self._parameters, by_own, allow_unused=True)
        return torch.cat(
            [
                torch.zeros_like(p, dtype=torch.float32).reshape(-1) if g is None else g.reshape(-1).float()
                for g, p in zip(found, self._parameters, strict=True)
            ]
        )


def _columns(policy: LoraPolicy, kind: _Kind, batch: Sequence[Actions], longest: int, width: int) -> Tensor:
    """What is found of each trajectory, side by side and as wide for all processes; with gradient."""
    if not batch:
        return torch.zeros(0, width, device=policy.device)
    with torch.enable_grad():
        if kind is _Kind.UNMASKED:
            return LoraPolicy.unmasked_log_prob(policy, batch)[:, None]
        found = LoraPolicy.log_probs(policy, batch)
        parts = [(found.log_pf, longest), (found.log_pterm, longest + 1), (found.can_stop.float(), longest + 1)]
        return torch.cat([pad(values, (0, wanted - values.shape[1])) for values, wanted in parts], dim=1)


def encode(batch: Sequence[Actions]) -> NDArray[np.int64]:
    """A batch as integers: how many trajectories, the lengths of their four arrays, and these one after the other."""
    arrays = [(item.query.prompt_ids, item.action_ids, item.input_ids, item.state_positions) for item in batch]
    lengths = [len(array) for item in arrays for array in item]
    return np.concatenate([[len(batch)], lengths, *(array for item in arrays for array in item)]).astype(np.int64)


def decode(numbers: NDArray[np.int64]) -> list[Actions]:
    """`encode`'s batch; of the queries their prompts alone, which is all that log-probabilities depend on."""
    n = int(numbers[0])
    lengths = numbers[1 : 1 + 4 * n].tolist()
    ends = accumulate(lengths, initial=1 + 4 * n)
    arrays = [numbers[start : start + length] for start, length in zip(ends, lengths)]
    prompts: dict[bytes, Query] = {}
    found = []
    for prompt, actions, inputs, states in zip(*(arrays[i::4] for i in range(4)), strict=True):
        query = prompts.setdefault(prompt.tobytes(), Query(task="shared", prompt_ids=prompt))
        found.append(Actions(query, actions.astype(np.int32), inputs.astype(np.int32), states))
    return found
