"""What a run keeps of the model and data it began with, read again."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import UserError
from deploy.identity import FILE, load_identity


def test_what_was_kept_comes_back_and_a_run_that_kept_nothing_has_nothing(tmp_path: Path) -> None:
    assert load_identity(tmp_path) == {}
    (tmp_path / FILE).write_text('{"model.name": "abc"}')
    assert load_identity(tmp_path) == {"model.name": "abc"}


@pytest.mark.parametrize("text", ["", "[1]", "5", "null", '{"model.name": 5}', "[" * 100_000, "{", "\x00"])
def test_what_is_damaged_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError, match="can't be read") as refused:
        load_identity(tmp_path)
    assert "\n" not in str(refused.value)
