"""LoRA's products by adapter against the same, token by token; and vLLM's CPU wrapper uses them."""

from __future__ import annotations

import inspect

import pytest
import torch

from actors import cpu_lora

SLOTS, RANK, HIDDEN, OUT = 3, 4, 6, 5


def made(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("indices", [[0, 2, -1, 2, 0, -1], [1, 1, 1], [-1, -1], [2], [0, -1]])
def test_each_token_goes_through_its_own_adapter_and_through_none_without_one(indices: list[int]) -> None:
    n = len(indices)
    x, a, b = made(n, HIDDEN), made(SLOTS, 1, RANK, HIDDEN, seed=1), made(SLOTS, 1, OUT, RANK, seed=2)
    low = torch.full((n, RANK + 2), 7.0)
    cpu_lora.shrink(x, a, low, torch.tensor(indices), 0.5)
    small = torch.stack([0.5 * a[i, 0] @ row if i >= 0 else torch.zeros(RANK) for i, row in zip(indices, x)])
    torch.testing.assert_close(low[:, :RANK], small)
    assert (low[:, RANK:] == 7).all(), "columns beyond the rank are not touched"

    high = torch.stack([b[i, 0] @ row if i >= 0 else torch.zeros(OUT) for i, row in zip(indices, small)])
    before = made(n, OUT + 3, seed=3)
    for add in (True, False):
        out = before.clone()
        cpu_lora.expand_slice(small, b, out, torch.tensor(indices), 2, OUT, add_inputs=add)
        torch.testing.assert_close(out[:, 2 : 2 + OUT], high + before[:, 2 : 2 + OUT] if add else high)
        assert (out[:, :2] == before[:, :2]).all() and (out[:, 2 + OUT :] == before[:, 2 + OUT :]).all()
    out = torch.zeros(n, OUT - 1)
    cpu_lora.expand(small, b, out, torch.tensor(indices))
    torch.testing.assert_close(out, high[:, : OUT - 1])


def test_they_take_the_arguments_of_the_ones_that_they_stand_in_for() -> None:
    pytest.importorskip("vllm")
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    for name in ("shrink", "expand", "expand_slice"):
        own = getattr(cpu_lora, name)
        theirs = getattr(lora_ops, f"bgmv_{name}")
        if theirs is not own:
            assert len(inspect.signature(own).parameters) == len(inspect.signature(theirs).parameters)
    # vLLM's workers import it before a model is loaded.
    import actors.worker_extension  # noqa: F401

    assert lora_ops.bgmv_shrink is punica_cpu.bgmv_shrink is cpu_lora.shrink
    assert lora_ops.bgmv_expand_slice is punica_cpu.bgmv_expand_slice is cpu_lora.expand_slice
