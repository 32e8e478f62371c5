"""The learned log Z of queries that come now and then."""

from __future__ import annotations

import torch

from learner.losses import tb_loss
from learner.objective import LogZTable

RATE = 0.1


def made() -> tuple[LogZTable, torch.optim.Optimizer]:
    """A table of two queries, and what trains it."""
    torch.manual_seed(0)
    table = LogZTable(["often", "late"])
    return table, torch.optim.AdamW([table.group(RATE)], lr=RATE)


def steps(table: LogZTable, optimizer: torch.optim.Optimizer, query: str, n: int, log_z: float) -> None:
    """Trajectory balance on a query of whom a policy says this log Z, two trajectories a step, but for rounding."""
    rows, zeros = torch.tensor([table.index[query]] * 2), torch.zeros(2, 1)
    for _ in range(n):
        estimates = log_z + 2e-6 * torch.randn(2)
        log_reward = torch.stack([zeros[:, 0], estimates], 1)
        found = tb_loss(
            zeros,
            torch.zeros(2, 2),
            log_reward,
            torch.tensor([1, 1]),
            log_z=table.learned(rows, estimates),
        )
        optimizer.zero_grad(set_to_none=True)
        found.backward()  # type: ignore[no-untyped-call]
        with table.held():
            optimizer.step()


def test_an_exact_policy_s_log_z_stays_where_it_is_however_late_and_seldom_its_query_comes() -> None:
    table, optimizer = made()
    for visits in range(1, 4):
        steps(table, optimizer, "often", 100, -12.0)
        steps(table, optimizer, "late", 1, -30.123)
        steps(table, optimizer, "often", 59, -12.0)
        found = dict(zip(sorted(table.index), table.values.tolist(), strict=True))
        assert abs(found["late"] + 30.123) < 1e-3 and abs(found["often"] + 12.0) < 1e-3, visits


def test_a_log_z_of_another_reward_is_started_anew_without_the_momentum_that_it_had() -> None:
    table, optimizer = made()
    steps(table, optimizer, "late", 1, -3.0)
    steps(table, optimizer, "late", 20, -30.0)
    table.start_anew(optimizer)
    steps(table, optimizer, "late", 1, -60.0)
    value = table.values.detach()[table.index["late"]]
    assert abs(float(value) + 60.0) < 1e-3
    # The momentum would go on downwards.
    steps(table, optimizer, "late", 1, -59.0)
    assert float(table.values.detach()[table.index["late"]]) > -60.0


def test_a_log_z_that_is_off_is_learned_at_its_rate() -> None:
    table, optimizer = made()
    steps(table, optimizer, "late", 1, -30.0)
    steps(table, optimizer, "late", 60, -28.0)
    assert abs(float(table.values.detach()[table.index["late"]]) + 28.0) < 0.2
