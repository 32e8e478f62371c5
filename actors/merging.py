"""An adapter in the weights of the engine that samples, in place of products of its own at each layer of each step.

On a CPU those products take about half of the time of a small model's step. W + B·A·alpha/rank is made for each version
that comes, from a copy of the base model's W, so that nothing adds up. It is for engines of float32 in this process: in
16 bits most of what an adapter adds to a weight would be rounded away.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from common.adapter_files import MERGED_PARTS

_KEPT = "amortis_base_weight"
"""Of a layer: the base model's weight, which vLLM packs and drops."""


@dataclass(frozen=True)
class Delta:
    """What an adapter adds to a layer: scale · b a."""

    a: Tensor
    b: Tensor
    scale: float


Deltas = Mapping[str, Delta]
"""By the layer's name from its number on: `0.self_attn.q_proj`."""


def read_deltas(folder: Path) -> Deltas:
    """Those of a PEFT adapter's folder."""
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "adapter_model.safetensors")
    scale = settings["lora_alpha"] / settings["r"]
    found = {}
    for name, a in tensors.items():
        layer, is_a, _ = name.partition(".lora_A.")
        if is_a:
            found[_from_number_on(layer)] = Delta(a.float(), tensors[f"{layer}.lora_B.weight"].float(), scale)
    return found


@contextmanager
def keeping_weights(target_modules: Sequence[str]) -> Iterator[None]:
    """While a model is loaded here, keep the weights of the layers that an adapter of these modules changes."""
    from vllm.model_executor.layers import utils

    pack = utils.dispatch_cpu_unquantized_gemm
    wanted = {layer for layer, parts in MERGED_PARTS.items() if set(parts) & set(target_modules)}

    def keep_and_pack(layer: torch.nn.Module, remove_weight: bool) -> None:
        weight = layer.weight.detach()
        pack(layer, remove_weight)
        if str(getattr(layer, "prefix", "")).rpartition(".")[2] in wanted:
            # Where vLLM computes with the weight as it is, that one changes.
            is_used = layer.weight.data_ptr() == weight.data_ptr()
            setattr(layer, _KEPT, weight.clone() if is_used else weight)

    utils.dispatch_cpu_unquantized_gemm = keep_and_pack
    try:
        yield
    finally:
        utils.dispatch_cpu_unquantized_gemm = pack


def merge(model: torch.nn.Module, deltas: Deltas) -> None:
    """Make the model's kept layers those of the base model with an adapter, or without: no deltas.

    Raises RuntimeError where a delta is of no kept layer, or a layer can't be changed.
    """
    left = set(deltas)
    for name, layer in model.named_modules():
        base = getattr(layer, _KEPT, None)
        if base is None:
            continue
        weight, start, (before, _, own) = base.clone(), 0, name.rpartition(".")
        parts = MERGED_PARTS[own]
        sizes = layer.output_sizes if len(parts) > 1 else [len(base)]
        for part, size in zip(parts, sizes, strict=True):
            key = _from_number_on(f"{before}.{part}")
            if key in deltas:
                delta = deltas[key]
                weight[start : start + size].addmm_(delta.b, delta.a, alpha=delta.scale)
                left.discard(key)
            start += size
        _replace(layer, weight)
    if left:
        raise RuntimeError(f"the engine has no layer of its own for {min(left)}: give actor.adapters: lora")


def kept_parts(model: torch.nn.Module) -> set[str]:
    """The model's own names of the layers whose weights are kept, their last parts."""
    kept = {name.rpartition(".")[2] for name, layer in model.named_modules() if hasattr(layer, _KEPT)}
    return {part for layer in kept for part in MERGED_PARTS[layer]}


def _from_number_on(name: str) -> str:
    """A layer's name within the model, whatever stands before its number."""
    return name.rpartition("layers.")[2]


def _replace(layer: Any, weight: Tensor) -> None:
    """Have a layer of vLLM's compute with another weight, where a compiled model finds it too."""
    from vllm import _custom_ops as ops

    handler = inspect.getclosurevars(layer.cpu_linear).nonlocals.get("handler")
    if handler is not None:
        # It points to the packed weight. The new one's pointer goes there, and the old one goes with the new handler.
        new = ops.create_onednn_mm(weight.t(), 32)
        old = handler.handler_tensor.clone()
        handler.handler_tensor.copy_(new.handler_tensor)
        new.handler_tensor.copy_(old)
    elif layer.weight.shape == weight.shape:
        layer.weight.data.copy_(weight)
    else:
        raise RuntimeError("vLLM has packed a layer in a way that isn't known here: give actor.adapters: lora")


class Turns:
    """Requests of one adapter at a time: the others wait, in their order, until it has none left in the engine.

    A trajectory that a tool interrupted goes on before those that wait, so that its adapter isn't needed again.
    """

    def __init__(self, merge_in: Callable[[Any], None]) -> None:
        """`merge_in` makes the model that of an adapter, or the base model: None."""
        self._merge_in = merge_in
        self.present: Any = None
        """The adapter whose requests are in the engine."""
        self._waiting: dict[str, tuple[Any, Callable[[], object]]] = {}

    def __bool__(self) -> bool:
        """Whether requests wait."""
        return bool(self._waiting)

    def add(self, request_id: str, adapter: Any, start: Callable[[], object], *, goes_on: bool) -> None:
        """Start a request now, or in its turn."""
        if adapter == self.present and (goes_on or not self._waiting):
            start()
        else:
            self._waiting[request_id] = adapter, start

    def drop(self, request_ids: Collection[str]) -> None:
        """Never start these."""
        for request_id in request_ids:
            self._waiting.pop(request_id, None)

    def take_next(self) -> None:
        """Merge the adapter that has waited longest, and start its requests; nothing may be in the engine."""
        if not self._waiting:
            return
        adapter = next(iter(self._waiting.values()))[0]
        if adapter != self.present:
            self._merge_in(adapter)
            self.present = adapter
        for request_id in [name for name, (own, _) in self._waiting.items() if own == adapter]:
            self._waiting.pop(request_id)[1]()
