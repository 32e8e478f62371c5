"""What a run needs of GPUs, found out before it starts."""

from __future__ import annotations

import pytest

from common.config import RunConfig
from common.errors import UserError
from deploy.checks import _check_gpus


@pytest.mark.parametrize(("n", "refused"), [(1, False), (2, False), (3, True)])
def test_more_learner_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, n: int, refused: bool) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    config = RunConfig.model_validate(
        {"task": {"name": "rng"}, "learner": {"device": "cuda", "num_processes": n}, "actor": {"num_gpus": 0}}
    )
    if not refused:
        _check_gpus(config)
        return
    with pytest.raises(UserError, match=r"learner\.num_processes = 3: .* this machine has 2; lower it to 2"):
        _check_gpus(config)
