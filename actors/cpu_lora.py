"""LoRA's matrix products on a CPU, adapter by adapter. Pure torch, no engine inside.

vLLM's own ones for CPUs copy the adapter's weights once for every token, which takes longer than the products. They
also read a token without adapter (index −1) through the last slot; here such tokens are left out.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def shrink(inputs: Tensor, weights: Tensor, output: Tensor, indices: Tensor, scaling: float = 1.0) -> None:
    """output[:, :rank] = scaling · A x of each token's adapter, 0 without one.

    Shapes: inputs (tokens, hidden), weights (slots, 1, rank, hidden), output (tokens, ≥ rank), indices (tokens,).
    """
    rank = weights.shape[-2]
    output[:, :rank] = 0
    for slot, rows in _groups(indices):
        output[rows, :rank] = scaling * (inputs[rows].to(output.dtype) @ _of(weights, slot, output).T)


def expand(inputs: Tensor, weights: Tensor, output: Tensor, indices: Tensor, add_inputs: bool = True) -> None:
    """output = B x of each token's adapter, added to what is there or in its place.

    Shapes: inputs (tokens, rank), weights (slots, 1, out, rank), output (tokens, out), indices (tokens,). The two
    outputs may be padded differently.
    """
    expand_slice(inputs, weights, output, indices, 0, min(weights.shape[-2], output.shape[1]), add_inputs)


def expand_slice(
    inputs: Tensor,
    weights: Tensor,
    output: Tensor,
    indices: Tensor,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    """`expand` onto some columns of the output, as for the q, k and v of one merged layer."""
    columns = slice(slice_offset, slice_offset + slice_size)
    if not add_inputs:
        output[:, columns] = 0
    for slot, rows in _groups(indices):
        output[rows, columns] += inputs[rows].to(output.dtype) @ _of(weights, slot, output)[:slice_size].T


def _of(weights: Tensor, slot: int, output: Tensor) -> Tensor:
    return weights[slot].reshape(weights.shape[-2:]).to(output.dtype)


def _groups(indices: Tensor) -> Iterator[tuple[int, slice | Tensor]]:
    """Each adapter in a batch and its tokens; those without one (below 0) are left out."""
    slots = torch.unique(indices).tolist()
    for slot in slots:
        if slot >= 0:
            yield slot, slice(None) if len(slots) == 1 else (indices == slot).nonzero().squeeze(1)
