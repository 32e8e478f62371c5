"""When an engine compiles its model."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.compilation import note_compiled, starts_eager
from common.config import ActorSection

ARGUMENTS = {"model": "m", "dtype": "bfloat16", "seed": 1, "gpu_memory_utilization": 0.4, "max_loras": 3}
GPU, CPU = ActorSection(num_gpus=1.0), ActorSection(num_gpus=0.0)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))


def test_a_cpu_compiles() -> None:
    assert not starts_eager(CPU, ARGUMENTS)


def test_a_gpu_compiles_what_was_compiled_there_before_and_nothing_else() -> None:
    assert starts_eager(GPU, ARGUMENTS)
    note_compiled(ARGUMENTS)
    assert not starts_eager(GPU, {**ARGUMENTS, "seed": 2, "gpu_memory_utilization": 0.3})
    assert starts_eager(GPU, {**ARGUMENTS, "dtype": "float16"})


@pytest.mark.parametrize("wanted", [True, False])
def test_who_says_so_decides(wanted: bool) -> None:
    for section in (GPU, CPU):
        assert starts_eager(section.model_copy(update={"enforce_eager": wanted}), ARGUMENTS) is wanted


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "file"))
    note_compiled(ARGUMENTS)
    assert starts_eager(GPU, ARGUMENTS)
