"""Real Redis, Ray, vLLM and the learner, started as a user starts them, on a tiny saved model."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from redis import Redis

from buffer.append_only import append_only_file
from buffer.connection import Keys, connect
from buffer.control import Control
from buffer.embedded import EmbeddedRedis
from buffer.replay import ReplayBuffer
from common.config import BufferSection, RedisSection
from common.reward import RewardWeights
from common.trajectory import Trajectory
from tests.buffer.topologies import redis_cluster
from tests.integration.conftest import ROOT, TIMEOUT_S, amortis, command, write_config
from tests.processes import alive

pytestmark = pytest.mark.integration


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def stored(run: Path) -> list[Trajectory]:
    """Every trajectory in the buffer that the run left."""
    with EmbeddedRedis(run / "redis") as server, Redis.from_url(server.url) as client:
        weights = RewardWeights(prior=0, likelihood=0)
        return ReplayBuffer(client, Keys("tiny"), BufferSection(), weights).sample(9, 10_000, seed=0)


def test_the_run_leaves_everything_that_it_promises(trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["task"] == "rng" and summary["steps"] == 200 and summary["fault"] is None
    assert summary["trajectories_trained"] > 0 and summary["trajectories_pushed"] >= summary["trajectories_trained"] / 2
    assert summary["adapter_versions_published"] >= 5
    assert summary["adapter_versions_trained_on"] >= 3
    assert 0 <= summary["sampler_gap_max"] < 1e-3
    assert 0 < summary["adapter_hand_over_p50_s"] <= summary["adapter_hand_over_p95_s"] < summary["training_s"]
    # The learner may not run ahead of one actor on these settings, nor it of the learner.
    assert re.match(r"(actors: the learner waits|learner: the actors wait|none: ) ?\S+", summary["bottleneck"])
    # Neither the engine's start nor the first evaluation is training.
    assert rows(trained)[0]["elapsed_s"] == pytest.approx(rows(trained)[0]["step_s"], abs=0.1)
    assert 0 <= summary["total_variation"] <= 1 and 0 <= summary["total_variation_before"] <= 1
    assert 0 <= summary["valid_fraction"] <= 1 and summary["samples"] == 64 and summary["wall_s"] > 0
    names = ["config.yaml", "metrics.jsonl", "adapter", "checkpoints", "distribution.png", "report.html"]
    assert [name for name in names if not (trained / name).exists()] == []
    page = (trained / "report.html").read_text(encoding="utf-8")
    assert summary["verdict"] in page and "What is missing" not in page and 'alt="distribution.png"' in page
    assert (trained / "distribution.png").read_bytes().startswith(b"\x89PNG")


def test_training_moves_the_sampler_towards_the_exact_posterior(trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    measured = [row["total_variation"] for row in rows(trained) if "total_variation" in row]
    assert measured[-1] == pytest.approx(summary["total_variation"], abs=1e-4)
    # At a learning rate that stays high it goes up and down by 0.05 between two of them.
    assert np.mean(measured) < summary["total_variation_before"] - 0.05


def test_every_step_is_in_the_metrics_file(trained: Path) -> None:
    found = rows(trained)
    assert [row["step"] for row in found] == list(range(1, 201))
    expected = {"loss", "log_reward", "log_z", "buffer_size", "adapter_version", "staleness", "wait_s", "step_s"}
    assert all(expected <= row.keys() and np.isfinite(row["loss"]) for row in found)
    assert [row["step"] for row in found if "total_variation" in row] == [50, 100, 150, 200]


def test_later_trajectories_carry_later_adapter_versions(trained: Path) -> None:
    drawn = sorted(stored(trained), key=lambda item: item.created_at)
    versions = [item.behaviour.adapter_version for item in drawn]
    assert len(set(versions)) >= 3 and min(versions) >= 1
    # A request in flight finishes under the version that it began with, so neighbours may be out of order.
    first_seen = [versions.index(version) for version in sorted(set(versions))]
    assert first_seen == sorted(first_seen)
    quarters = [float(np.mean(part)) for part in np.array_split(versions, 4)]
    assert quarters == sorted(quarters) and quarters[0] < quarters[-1], "versions must rise with time"
    checksums = {item.behaviour.adapter_version: item.behaviour.adapter_sha256 for item in drawn}
    assert len(set(checksums.values())) == len(checksums), "every version must be other weights"


def test_the_adapter_folder_is_a_plain_peft_adapter_that_changes_the_model(trained: Path, digit_model: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(digit_model)
    ids = torch.tensor([[14, 15, 3]])
    with torch.no_grad():
        before = base(ids).logits
        adapted = PeftModel.from_pretrained(base, str(trained / "adapter"))(ids).logits
    assert not torch.allclose(before, adapted, atol=1e-3)
    assert not list((trained / "adapter").glob("*.bin")), "nothing in it needs unpickling"


def test_sampling_from_a_run_that_was_moved_shows_log_q_and_log_r_of_each_sample(
    trained: Path, digit_model: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(trained, tmp_path / "elsewhere" / "mine")
    model = shutil.copytree(digit_model, tmp_path / "model")
    arguments = ["--prompt", "number :", "-n", "5", "--json", "--model.name", str(model)]
    drawn = json.loads(amortis("sample", str(moved), *arguments))
    assert len(drawn) == 5
    for row in drawn:
        assert row["log_q"] <= 0 and row["log_r"] == (0.0 if row["text"].strip().isdecimal() else -10.0)


def test_samples_are_drawn_from_many_candidates_by_their_weights(trained: Path) -> None:
    found = json.loads(amortis("sample", str(trained), "--resample", "-n", "4", "--allow-unreliable", "--json"))
    assert len(found["samples"]) == 4 and {row["weight"] for row in found["samples"]} == {0.25}
    assert found["candidates"] == 256 and 1 <= found["effective_sample_size"] <= 256 and found["pareto_k"] is not None
    # What is no integer has at most a two-thousandth of the posterior.
    assert sum(row["log_r"] == 0.0 for row in found["samples"]) >= 3


def test_evaluating_anew_finds_what_the_run_reported(trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    figures = json.loads(amortis("evaluate", str(trained), "--json"))
    assert figures["total_variation"] == pytest.approx(summary["total_variation"], abs=1e-4)
    assert figures["valid_fraction"] == pytest.approx(summary["valid_fraction"], abs=1e-4)


def test_a_finished_run_s_buffer_is_shown_exported_and_imported_again(trained: Path, tmp_path: Path) -> None:
    stats = json.loads(amortis("buffer", "stats", str(trained), "--json"))
    assert stats["size"] == len(stored(trained)) and stats["pushed"] > 0 and stats["bytes"] > 0
    assert "redis used bytes" in amortis("buffer", "stats", str(trained))
    for name in ("buffer.jsonl", "buffer.amortis"):
        path = tmp_path / name
        exported = json.loads(amortis("buffer", "export", str(trained), str(path), "--json"))
        assert exported["exported"] == stats["size"] and exported["bytes"] == path.stat().st_size
        amortis("buffer", "export", str(trained), str(path), status=2)
    row = json.loads((tmp_path / "buffer.jsonl").read_text().splitlines()[0])
    assert row["text"].replace(" ", "") == "".join(str(token - 3) for token in row["action_ids"])
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_text((tmp_path / "buffer.jsonl").read_text() + "{}\n")
    report = json.loads(amortis("buffer", "import", str(trained), str(damaged), "--json", status=1))
    assert (report["added"], report["duplicates"]) == (0, stats["size"])
    assert report["rejected"] == [[f"line {stats['size'] + 1}", "format None, this reads format 2"]]
    assert "nothing was set aside" in amortis("buffer", "quarantine", str(trained))
    amortis("buffer", "clear", str(trained), status=2)
    assert json.loads(amortis("buffer", "stats", str(trained), "--json"))["size"] == stats["size"]


def test_a_resumed_run_goes_on_where_it_stopped_and_ends_by_its_rule(trained: Path, digit_model: Path) -> None:
    before = json.loads((trained / "summary.json").read_text())
    # As a loss of power leaves the newest checkpoint and the server's log.
    newest = sorted((trained / "checkpoints").iterdir())[-1]
    with (newest / "tensors.safetensors").open("r+b") as file:
        file.truncate(1_000)
    log = append_only_file(trained / "redis")
    assert log is not None
    with log.open("ab") as file:
        file.write(b"\0" * 5_000)
    rule = "ess > 0.1 for 2 diagnoses"
    config = write_config(trained.parents[1], digit_model, steps=2_000, stop_when=rule)
    options = ["--diagnose.every", "10", "--diagnose.samples", "32", "--evaluation.share", "1"]
    amortis("train", str(config), "--run.name", "tiny", "--run.resume", "true", *options)
    after = json.loads((trained / "summary.json").read_text())
    steps = after["steps"]
    assert 150 < steps < 2_000, "as much as two diagnoses take, and no more"
    assert [row["step"] for row in rows(trained) if "loss" in row] == list(range(1, steps + 1))
    held = [row for row in rows(trained) if "diagnose/ess" in row][:2]
    assert all(row["step"] > 150 and row["diagnose/ess"] > 0.1 for row in held)
    values = ", ".join(f"{row['diagnose/ess']:.4g} at step {row['step']}" for row in held)
    assert after["stopped_because"] == f"learner.stop_when = '{rule}' is fulfilled: ess was {values}"
    # It is no interruption: the end's evaluation is made, of what was learned last.
    assert after["interrupted"] is False and after["trained_to_its_end"] is True and after["fault"] is None
    assert rows(trained)[-1]["step"] <= steps and after["total_variation"] < after["total_variation_before"]
    assert after["trajectories_pushed"] >= before["trajectories_pushed"], "the buffer was lost"
    assert after["adapter_versions_published"] > before["adapter_versions_published"]
    assert after["total_variation_before"] == before["total_variation_before"]
    assert (trained / "checkpoints" / f"unreadable-{newest.name}").is_dir()
    assert (trained / "redis" / f"{log.name}.damaged").is_file()


def test_two_actors_share_a_given_redis_whose_password_is_written_nowhere(
    tmp_path: Path, digit_model: Path, redis_client: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = "correct-horse-battery"
    redis_client.acl_setuser(
        "trainer", enabled=True, passwords=[f"+{password}"], keys=["*"], channels=["*"], commands=["+@all"]
    )
    monkeypatch.setenv("AMORTIS_REDIS__URL", redis_url.replace("redis://", f"redis://trainer:{password}@"))
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text("".join(json.dumps({"rationale": text}) + "\n" for text in ("7", "4242 .", "9876", "0123", "")))
    settings = {"buffer.replay_priority": "loss", "buffer.query_selection": "loss", "buffer.max_staleness": "30"}
    settings |= {
        "seeds.file": str(seeds),
        "seeds.hint": "{prompt}4 2 . {prompt}",
        "seeds.samples_per_query": "9",
        "task.high": "9999",
        # What the first actor samples before the second is up must not push the seeds out.
        "buffer.capacity_per_query": "50000",
    }
    options = [part for name, value in settings.items() for part in (f"--{name}", value)]
    config = write_config(tmp_path, digit_model, steps=100_000)
    arguments = command(
        "train", str(config), "--run.name", "shared", "--actor.count", "2", "--actor.num_cpus", "0.5", *options
    )
    run = tmp_path / "runs" / "shared"
    process = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    control = Control(redis_client, Keys("shared"))
    try:
        # Seeds may be one actor's alone: whoever comes up first takes them.
        wait_for(
            lambda: len(control.actors()) == 2 and all(actor["pushed"] > 60 for actor in control.actors().values()),
            "both actors to push",
            process,
        )
        # As `timeout` does it: the process, then all of its group.
        os.kill(process.pid, signal.SIGTERM)
        os.killpg(process.pid, signal.SIGTERM)
        asked = time.monotonic()
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 130, output[-3000:]
        assert time.monotonic() - asked < 30, "the actors, or Ray, were waited for in vain"
    finally:
        process.kill()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] > 0 and summary["fault"] is None
    weights = RewardWeights(prior=0, likelihood=0)
    buffer = ReplayBuffer(redis_client, Keys("shared"), BufferSection(), weights)
    kept = list(buffer)
    assert {item.actor_id for item in kept} == {"actor-0", "actor-1"}
    stats = buffer.stats()
    assert stats.seeded == 5 + 9, "given and hinted seeds are scored, and not counted as pushed by actors"
    assert stats.pushed == summary["trajectories_pushed"] and stats.trained == summary["trajectories_trained"]
    by_text = {"".join(str(token - 3) for token in item.action_ids): item for item in kept}
    for text, log_reward in {"7": 0.0, "4242": 0.0, "9876": 0.0, "0123": -10.0, "": -10.0}.items():
        assert by_text[text].log_constraint[-1] == log_reward
    assert any(item.source == "seed" for item in kept)
    assert not (run / "redis").exists(), "a server was given, so none is started"
    written = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
    assert password.encode() not in written


def test_training_goes_on_when_a_node_of_a_redis_cluster_is_lost(
    tmp_path: Path, digit_model: Path, shared_ray: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, digit_model, steps=120)
    run = tmp_path / "runs" / "spread"
    with redis_cluster(tmp_path / "cluster", replicas=1) as cluster:
        monkeypatch.setenv("AMORTIS_REDIS__URL", cluster.url)
        arguments = command("train", str(config), "--run.name", "spread", "--buffer.shards", "5", *shared_ray)
        process = subprocess.Popen(
            arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        try:
            wait_for(lambda: (run / "metrics.jsonl").exists() and len(rows(run)) >= 10, "ten steps", process)
            client = connect(RedisSection(), cluster.url)
            port = client.get_node_from_key(Keys("spread").control).port
            os.kill(next(node.pid for node in cluster.masters if node.port == port), signal.SIGKILL)
            output, _ = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0, output[-3000:]
        finally:
            process.kill()
    assert [row["step"] for row in rows(run)] == list(range(1, 121))
    assert json.loads((run / "summary.json").read_text())["fault"] is None


def wait_for(condition: Callable[[], Any], what: str, process: subprocess.Popen[str]) -> Any:
    deadline = time.monotonic() + TIMEOUT_S / 2
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the run ended before {what}"
        found = condition()
        if found:
            return found
        time.sleep(0.5)
    raise AssertionError(f"waited in vain for {what}")


def descendants(pid: int) -> set[int]:
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = [tuple(map(int, line.split())) for line in listed.splitlines()]
    found, frontier = set(), {pid}
    while frontier:
        frontier = {child for child, parent in parents if parent in frontier} - found
        found |= frontier
    return found


def free_ports(n: int) -> int:
    for base in range(21_000, 29_000, 50):
        try:
            for port in range(base, base + n):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return base
        except OSError:
            continue
    raise AssertionError("no free ports")


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def test_a_run_exports_metrics_outlives_actor_and_redis_and_stops_cleanly_on_ctrl_c(
    tmp_path: Path, digit_model: Path
) -> None:
    port = free_ports(3)
    config = write_config(tmp_path, digit_model, steps=100_000, sync_every=20)
    arguments = command("train", str(config), "--run.name", "tiny", "--metrics.port", str(port))
    run = tmp_path / "runs" / "tiny"
    process = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        wait_for(lambda: (run / "metrics.jsonl").exists() and len(rows(run)) >= 5, "five steps", process)
        assert "amortis_buffer_trajectories " in scrape(port)
        assert float(scrape(port + 1).split("\namortis_learner_step ")[1].split()[0]) >= 5
        actor = scrape(port + 2)
        assert 'amortis_actor_samples_total{source="policy"}' in actor and "amortis_actor_adapter_version " in actor

        children = descendants(process.pid)
        names = {pid: Path(f"/proc/{pid}/cmdline").read_text(errors="replace") for pid in children}
        actor_pid = next(pid for pid, name in names.items() if "ray::RayActor" in name)
        os.kill(actor_pid, signal.SIGKILL)
        step = rows(run)[-1]["step"]
        pushed = rows(run)[-1]["trajectories_pushed"]
        wait_for(
            lambda: rows(run)[-1]["trajectories_pushed"] > pushed + 50 and rows(run)[-1]["step"] > step,
            "training to go on after the actor was killed",
            process,
        )
        names = {pid: Path(f"/proc/{pid}/comm").read_text() for pid in descendants(process.pid)}
        server_pid = next(pid for pid, name in names.items() if "redis-server" in name)
        size = json.loads(amortis("buffer", "stats", str(run), "--json"))["size"]
        os.kill(server_pid, signal.SIGKILL)
        step = rows(run)[-1]["step"]
        wait_for(lambda: rows(run)[-1]["step"] > step + 20, "training to go on after Redis was killed", process)
        found = json.loads(amortis("buffer", "stats", str(run), "--json"))
        assert found["size"] >= size and found["quarantined"] == 0

        children |= descendants(process.pid)
        os.kill(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 130, output[-3000:]
        assert "Traceback" not in output
    finally:
        process.kill()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["interrupted"] and summary["stopped_because"] == "interrupted" and summary["steps"] >= 5
    checkpoint = sorted((run / "checkpoints").iterdir())[-1]
    assert checkpoint.name == f"step-{summary['steps']:06d}"
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and any(alive(pid) for pid in children):
        time.sleep(0.5)
    assert [pid for pid in children if alive(pid)] == [], "processes were left behind"
