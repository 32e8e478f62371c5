"""The notebook of the documentation, run as a reader runs it but for fewer steps."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.integration.conftest import ROOT

pytestmark = pytest.mark.integration

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
STEPS = 6
LIMIT_S = 400


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")


def test_the_notebook_goes_from_rows_to_an_exported_sampler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "IPYTHONDIR": str(tmp_path / ".ipython"),
    }.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert re.fullmatch(r"STEPS = \d+", parameters.source)
    parameters.source = f"STEPS = {STEPS}"
    # A cell that fails raises, with what it said.
    NotebookClient(
        notebook, timeout=LIMIT_S, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    cells = {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}
    run = tmp_path / "runs" / "alliteration"
    assert json.loads((run / "summary.json").read_text())["steps"] == STEPS
    assert len((run / "metrics.jsonl").read_text().splitlines()) == STEPS
    # Two curves were drawn.
    assert any("image/png" in output.get("data", {}) for output in cells["curve"].outputs)
    assert len(re.findall(r"^ +-\d+\.\d\d +-?\d+\.\d\d  Tom the tailor", printed(cells["sample"]), re.MULTILINE)) == 12
    assert re.search(r"worth \d+\.\d of 64 exact draws", printed(cells["posterior"]))
    (scores,) = [output for output in cells["log-prob"].outputs if output.output_type == "execute_result"]
    assert scores.data["text/plain"].count("-inf") == 1
    assert (tmp_path / "alliteration-merged" / "model.safetensors").is_file()


def test_the_notebook_is_kept_without_outputs_that_could_grow_stale() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")
    assert os.sep + "home" not in NOTEBOOK.read_text() and "/work" not in NOTEBOOK.read_text()
