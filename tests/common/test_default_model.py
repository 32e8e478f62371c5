"""The default model's folder: verified, placed atomically, rebuilt when damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import common.default_model as default_model
from common.default_model import ensure_default_model, place, verify_default_model


def make_draft(folder: Path, content: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(content)
    (folder / "config.json").write_text("{}")
    return folder


def test_a_placed_folder_is_fine_and_a_missing_or_partial_one_is_not(tmp_path: Path) -> None:
    target = tmp_path / "model"
    assert "missing" in verify_default_model(target)[0]
    place(make_draft(tmp_path / "draft"), target)
    assert verify_default_model(target) == verify_default_model(target, deep=True) == []
    (target / "config.json").unlink()
    assert verify_default_model(target) == ["config.json is missing or has the wrong size"]


def test_changed_bytes_of_the_same_length_are_found_by_a_deep_look(tmp_path: Path) -> None:
    target = tmp_path / "model"
    place(make_draft(tmp_path / "draft"), target)
    (target / "model.safetensors").write_bytes(b"WEIGHTS")
    assert verify_default_model(target) == []
    assert verify_default_model(target, deep=True) == ["model.safetensors does not match its sha256"]


def test_placing_replaces_a_damaged_folder_and_makes_files_readable_to_all(tmp_path: Path) -> None:
    target = make_draft(tmp_path / "model", b"old")
    draft = make_draft(tmp_path / "draft", b"new")
    (draft / "model.safetensors").chmod(0o600)
    place(draft, target)
    assert (target / "model.safetensors").read_bytes() == b"new"
    assert (target / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_a_model_that_is_there_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMORTIS_CACHE", str(tmp_path))
    place(make_draft(tmp_path / "draft"), tmp_path / default_model.NAME)
    monkeypatch.setattr(default_model, "fetch_gguf", lambda folder: pytest.fail("fetched again"))
    assert ensure_default_model(lambda text: None) == tmp_path / default_model.NAME


def test_a_failed_conversion_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMORTIS_CACHE", str(tmp_path))

    def fail(folder: Path) -> Path:
        raise OSError("the network went away")

    monkeypatch.setattr(default_model, "fetch_gguf", fail)
    with pytest.raises(OSError, match="network"):
        ensure_default_model(lambda text: None)
    assert [path.name for path in tmp_path.iterdir()] == [f".{default_model.NAME}.lock"]


@pytest.mark.integration
def test_the_real_default_model_matches_its_checksums_and_holds_no_quantisation() -> None:
    path = ensure_default_model()
    assert verify_default_model(path, deep=True) == []
    config = json.loads((path / "config.json").read_text())
    assert config["model_type"] == "llama" and "quantization_config" not in config
