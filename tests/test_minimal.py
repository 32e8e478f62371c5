"""The loop on one page does what its head says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


# Two minutes of one core, which a busy machine does not give in ten.
@pytest.mark.timeout(1800)
def test_the_loop_on_one_page_reaches_the_exact_posterior_from_far_away() -> None:
    # One thread: a second one would have to wait for its core, and the first one for the second.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "docs/minimal.py"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    before, after = map(float, re.findall(r"\d\.\d{3}", result.stdout.splitlines()[-1]))
    assert before > 0.5
    assert after <= 0.05


def test_it_stays_on_one_page() -> None:
    assert len((ROOT / "docs" / "minimal.py").read_text(encoding="utf-8").splitlines()) <= 150
