"""Adapters merged into layers of the kinds that vLLM has, and requests that take turns by their adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from actors.merging import Delta, Turns, keeping_weights, kept_parts, merge, read_deltas


class Layer(nn.Module):
    """As vLLM's layer on a CPU without oneDNN: it computes with its weight as it is."""

    def __init__(self, sizes: list[int], size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(sum(sizes), size), requires_grad=False)
        self.output_sizes = sizes
        self.cpu_linear = lambda x, weight, bias: torch.nn.functional.linear(x, weight, bias)


def model_of(kept: list[str]) -> Any:
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict() for _ in range(2)])})
    for block in model["layers"]:  # type: ignore[union-attr]
        block["self_attn"] = nn.ModuleDict({"qkv_proj": Layer([6, 4, 4], 6), "o_proj": Layer([6], 6)})
    for name, layer in model.named_modules():
        if name.rpartition(".")[2] in kept:
            layer.amortis_base_weight = layer.weight.clone()
    return model


def random_delta(rows: int, size: int = 6) -> Delta:
    return Delta(torch.randn(2, size), torch.randn(rows, 2), 0.5)


def weights(model: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.named_parameters()}


def test_a_delta_is_added_where_its_part_stands_in_a_joint_layer_and_nowhere_else() -> None:
    model = model_of(["qkv_proj", "o_proj"])
    before = weights(model)
    deltas = {"0.self_attn.k_proj": random_delta(4), "1.self_attn.o_proj": random_delta(6)}
    merge(model, deltas)
    after = weights(model)
    added = {name: after[name] - before[name] for name in after}
    k, o = deltas["0.self_attn.k_proj"], deltas["1.self_attn.o_proj"]
    torch.testing.assert_close(added["layers.0.self_attn.qkv_proj.weight"][6:10], 0.5 * k.b @ k.a)
    torch.testing.assert_close(added["layers.1.self_attn.o_proj.weight"], 0.5 * o.b @ o.a)
    assert not added["layers.0.self_attn.qkv_proj.weight"][:6].any()
    assert not added["layers.0.self_attn.qkv_proj.weight"][10:].any()
    assert not added["layers.1.self_attn.qkv_proj.weight"].any()


def test_the_next_version_takes_the_place_of_the_last_and_none_leaves_the_base_model_exactly() -> None:
    model = model_of(["qkv_proj"])
    before, second = weights(model), {"0.self_attn.v_proj": random_delta(4)}
    merge(model, {"0.self_attn.q_proj": random_delta(6), "1.self_attn.v_proj": random_delta(4)})
    merge(model, second)
    once = weights(model)
    merge(model, {})
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    merge(model, second)
    assert all(torch.equal(value, once[name]) for name, value in weights(model).items())


def test_the_base_weight_is_kept_where_vllm_computes_with_it_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import _custom_ops
    from vllm.model_executor.layers import utils

    monkeypatch.setattr(_custom_ops, "_supports_onednn", False)
    model = model_of([])
    layer = model["layers"][0]["self_attn"]["qkv_proj"]
    layer.prefix = "model.layers.0.self_attn.qkv_proj"
    before, x = layer.weight.clone(), torch.randn(3, 6)
    with keeping_weights(["q_proj", "v_proj"]):
        utils.dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
    delta = random_delta(4)
    for _ in range(2):
        merge(model, {"0.self_attn.v_proj": delta})
    changed = before.clone()
    changed[10:] += 0.5 * delta.b @ delta.a
    torch.testing.assert_close(layer.cpu_linear(x, layer.weight, None), x @ changed.T)
    merge(model, {})
    assert torch.equal(layer.cpu_linear(x, layer.weight, None), torch.nn.functional.linear(x, before))


def test_an_adapter_of_a_layer_that_was_not_kept_is_refused_with_the_remedy() -> None:
    model = model_of(["qkv_proj"])
    assert kept_parts(model) == {"q_proj", "k_proj", "v_proj"}
    with pytest.raises(RuntimeError, match=r"0\.self_attn\.o_proj: give actor\.adapters: lora"):
        merge(model, {"0.self_attn.o_proj": random_delta(6)})


def test_deltas_of_a_folder_are_alpha_over_rank_times_its_factors(tmp_path: Path) -> None:
    a, b = torch.randn(4, 6), torch.randn(8, 4)
    name = "base_model.model.model.layers.3.self_attn.q_proj"
    save_file(
        {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b.bfloat16()}, tmp_path / "adapter_model.safetensors"
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 6}))
    ((key, delta),) = read_deltas(tmp_path).items()
    assert (key, delta.scale) == ("3.self_attn.q_proj", 1.5)
    assert torch.equal(delta.a, a) and torch.equal(delta.b, b.bfloat16().float())


class Engine:
    """What turns tell an engine."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.turns = Turns(lambda adapter: self.log.append(f"merge {adapter}"))

    def add(self, name: str, adapter: str | None, *, goes_on: bool = False) -> None:
        self.turns.add(name, adapter, lambda: self.log.append(name), goes_on=goes_on)

    def take_next(self) -> list[str]:
        told, self.log = self.log, []
        self.turns.take_next()
        return told


def test_requests_of_the_present_adapter_start_at_once_and_others_in_the_order_of_their_first() -> None:
    engine = Engine()
    engine.add("base", None)
    engine.add("a1", "a")
    engine.add("b1", "b")
    engine.add("a2", "a")
    assert engine.take_next() == ["base"]
    assert engine.take_next() == ["merge a", "a1", "a2"]
    assert engine.take_next() == ["merge b", "b1"]
    assert engine.log == [] and not engine.turns


def test_what_comes_while_others_wait_waits_behind_them_but_for_what_goes_on() -> None:
    engine = Engine()
    engine.add("a1", "a")
    engine.take_next()
    engine.add("b1", "b")
    engine.add("a2", "a")
    engine.add("a1, after a tool", "a", goes_on=True)
    assert engine.take_next() == ["merge a", "a1", "a1, after a tool"]
    assert engine.take_next() == ["merge b", "b1"]
    assert engine.take_next() == ["merge a", "a2"]


def test_what_was_dropped_is_never_started_nor_merged_for() -> None:
    engine = Engine()
    engine.add("a1", "a")
    engine.add("b1", "b")
    engine.turns.drop(["a1", "unknown"])
    engine.take_next()
    assert engine.log == ["merge b", "b1"]
