"""What a run keeps of the model and data that it began with: a digest of whole weights, and read again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from common.errors import UserError
from deploy.run.identity import FILE, load_identity, model_digest
from tests.deploy.run.runs import other_weights
from tests.tiny import tiny_llama


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """The weights of `digit_model`, in several files."""
    folder = tmp_path / "sharded"
    tiny_llama().save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2 and not (folder / "model.safetensors").exists()
    return folder


def test_a_model_of_which_a_part_is_still_to_come_has_no_digest_and_the_whole_that_of_one_file(
    sharded: Path, digit_model: Path
) -> None:
    last = max(sharded.glob("model-*.safetensors"))
    last.rename(sharded / "kept")
    assert model_digest(str(sharded)) is None
    (sharded / "kept").rename(last)
    assert model_digest(str(sharded)) == model_digest(str(digit_model))


@pytest.mark.parametrize("in_parts", [True, False])
def test_weights_that_the_model_is_not_read_from_are_no_part_of_it(
    in_parts: bool, sharded: Path, digit_model: Path, tmp_path: Path
) -> None:
    folder = sharded if in_parts else shutil.copytree(digit_model, tmp_path / "one")
    before = model_digest(str(folder))
    other = other_weights(digit_model, tmp_path / "other")
    shutil.copy(other / "model.safetensors", folder / "consolidated.safetensors")
    assert model_digest(str(folder)) == before != model_digest(str(other))


@pytest.mark.parametrize("index", ["", "[]", '{"weight_map": []}', "{}"])
def test_an_index_that_cannot_be_read_is_said(index: str, sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=r"model\.name = .*can't be read"):
        model_digest(str(sharded))


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
