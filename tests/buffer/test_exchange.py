"""Export and import: exact, readable by `datasets`, and clear about every line that can't be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from redis import Redis

from buffer.adapters import AdapterRegistry
from buffer.connection import Keys
from buffer.exchange import FORMAT, MAGIC, export_buffer, import_buffer
from buffer.replay import ReplayBuffer
from common.config import BufferSection
from common.errors import UserError
from common.reward import RewardWeights
from common.trajectory import Query, Trajectory
from tests.conftest import make_query, make_trajectory

WEIGHTS = RewardWeights(prior=0, likelihood=0)


def make_buffer(client: Redis, name: str, **settings: Any) -> ReplayBuffer:
    return ReplayBuffer(client, Keys(name), BufferSection(**settings), WEIGHTS)


@pytest.fixture
def full(redis_client: Redis) -> ReplayBuffer:
    """Seven trajectories of two queries: a seed without sampler log-probabilities, one scored at its end alone."""
    buffer = make_buffer(redis_client, "full")
    queries = [make_query(1, 2), Query(task="rng", prompt_ids=[3], target_ids=[4, 5], info={"label": "x"})]
    queries[1] = queries[1].model_copy(update={"row": {"word": "é", "big": 10**30}})
    buffer.put_queries(queries)
    items = [make_trajectory(queries[i % 2], [i, 7], -i / 3, version=i) for i in range(6)]
    at_end = np.append(np.full(len(items[0].log_likelihood) - 1, np.nan), items[0].log_likelihood[-1:])
    items[0] = items[0].model_copy(update={"log_likelihood": at_end.astype(np.float32)})
    items[2] = items[2].model_copy(update={"log_constraint": at_end.astype(np.float32)})
    seed = make_trajectory(queries[0], [9], source="seed")
    unknown = seed.behaviour.model_copy(update={"sampler_log_prob": seed.log_prior[:1] * float("nan")})
    buffer.push([*items, seed.model_copy(update={"behaviour": unknown})])
    return buffer


@pytest.mark.parametrize("name", ["buffer.jsonl", "buffer.amortis"])
def test_what_is_exported_is_imported_bit_by_bit(
    full: ReplayBuffer, redis_client: Redis, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    assert export_buffer(full, path) == 7
    other = make_buffer(redis_client, "other")
    report = import_buffer(other, path)
    assert (report.read, report.added, report.rejected) == (7, 7, [])
    assert sorted(item.to_bytes() for item in other) == sorted(item.to_bytes() for item in full)
    assert {key: query.to_bytes() for key, query in other.queries().items()} == {
        key: query.to_bytes() for key, query in full.queries().items()
    }
    assert other.stats().pushed == 0 and other.stats().seeded == 7, "imports don't make actors wait"
    again = import_buffer(other, path)
    assert (again.added, again.duplicates) == (0, 7)


def test_the_binary_form_is_compact(full: ReplayBuffer, tmp_path: Path) -> None:
    sizes = {}
    for name in ("a.jsonl", "a.bin"):
        export_buffer(full, tmp_path / name)
        sizes[name] = (tmp_path / name).stat().st_size
    assert sizes["a.bin"] < 0.4 * sizes["a.jsonl"]


def test_json_lines_have_the_same_plain_columns_and_the_text(full: ReplayBuffer, tmp_path: Path) -> None:
    export_buffer(full, tmp_path / "a.jsonl", decode=lambda ids: " ".join(map(str, ids)))
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len({tuple(row) for row in rows}) == 1
    assert {row["text"] for row in rows} == {"0 7", "1 7", "2 7", "3 7", "4 7", "5 7", "9"}
    nested = [value for row in rows for value in row.values() if isinstance(value, dict)]
    assert nested == [], "a column of free form would be another type in every file"


def test_datasets_reads_the_json_lines(full: ReplayBuffer, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    export_buffer(full, tmp_path / "a.jsonl")
    table = datasets.load_dataset("json", data_files=str(tmp_path / "a.jsonl"), cache_dir=str(tmp_path / "cache"))
    assert len(table["train"]) == 7
    assert {tuple(row["action_ids"]) for row in table["train"]} == {tuple(item.action_ids.tolist()) for item in full}


def edited(path: Path, number: int, **changes: Any) -> None:
    lines = path.read_text().splitlines()
    row = json.loads(lines[number - 1])
    row.update(changes)
    lines[number - 1] = json.dumps({key: value for key, value in row.items() if value != "DROP"})
    path.write_text("\n".join(lines))


def check_that_line_3_alone_is_rejected(
    full: ReplayBuffer, redis_client: Redis, folder: Path, changes: dict[str, Any], reason: str
) -> None:
    """Import an export whose third line was changed."""
    path = folder / "a.jsonl"
    export_buffer(full, path)
    edited(path, 3, **changes)
    report = import_buffer(make_buffer(redis_client, "other"), path)
    assert report.added == 6
    ((where, why),) = report.rejected
    assert where == "line 3" and reason in why


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"log_prior": [0.0]}, "log_prior has 1 entries, 2 actions need 3"),
        ({"log_constraint": [0.0, 1e400, 0.0]}, "log_constraint is not finite"),
        ({"action_ids": "DROP"}, "no 'action_ids'"),
        ({"action_ids": [1.5, 2.0]}, "action_ids holds no 32-bit integers"),
        ({"action_ids": [1, 2**40]}, "action_ids"),
        ({"action_ids": [8, 8], "input_ids": [8, 8]}, "id is not that of query and action_ids"),
        ({"prompt_ids": [1, 1, 1]}, "query_id is not that of"),
        ({"temperature": 0}, "temperature: Input should be greater than 0"),
        ({"source": "elsewhere"}, "source: Input should be"),
        ({"format": 99}, "format 99, this reads format 2"),
    ],
)
def test_a_bad_line_is_rejected_with_its_reason_and_the_others_are_taken(
    full: ReplayBuffer, redis_client: Redis, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    check_that_line_3_alone_is_rejected(full, redis_client, tmp_path, changes, reason)


def test_lines_that_are_no_json_are_rejected(full: ReplayBuffer, redis_client: Redis, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    export_buffer(full, path)
    path.write_text(path.read_text() + "{broken\n[1]\n\n")
    report = import_buffer(make_buffer(redis_client, "other"), path)
    assert report.added == 7
    assert [where for where, _ in report.rejected] == ["line 8", "line 9"]


@pytest.mark.parametrize("name", ["a.jsonl", "A.JSONL"])
def test_marks_and_other_line_ends_are_read(full: ReplayBuffer, redis_client: Redis, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    export_buffer(full, path, decode=lambda ids: "a\u2028b\x85c")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    report = import_buffer(make_buffer(redis_client, "other"), path)
    assert (report.added, report.rejected) == (7, [])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\xff", "byte 0xff is no UTF-8"),
        (b"[" * 9_000, "no JSON (it is nested too deep)"),
        (b'{"format": ' + b"9" * 5_000 + b"}", "format"),
    ],
)
def test_a_line_that_python_stumbles_over_costs_no_other(
    full: ReplayBuffer, redis_client: Redis, tmp_path: Path, line: bytes, reason: str
) -> None:
    path = tmp_path / "a.jsonl"
    export_buffer(full, path)
    path.write_bytes(path.read_bytes() + line + b"\n")
    report = import_buffer(make_buffer(redis_client, "other"), path)
    assert report.added == 7
    ((where, why),) = report.rejected
    assert where == "line 8" and reason in why


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"actor_id": "\ud83d"}, "surrogates"),
        ({"query_info": '{"label": "\\ud83d"}'}, "surrogates"),
        ({"query_info": json.dumps({"label": 2**70})}, "Integer value out of range"),
        ({"created_at": float("nan")}, "created_at is not finite"),
    ],
)
def test_what_the_buffer_cannot_store_is_rejected_before_anything_is_inserted(
    full: ReplayBuffer, redis_client: Redis, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    check_that_line_3_alone_is_rejected(full, redis_client, tmp_path, changes, reason)


def test_files_of_another_encoding_are_one_line(redis_client: Redis, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"format": 2}'.encode("utf-16"))
    with pytest.raises(UserError, match=r"FILE.*can't be read \(it is UTF-16"):
        import_buffer(make_buffer(redis_client, "other"), path)


def test_a_damaged_or_cut_binary_file_gives_what_is_whole(
    full: ReplayBuffer, redis_client: Redis, tmp_path: Path
) -> None:
    path = tmp_path / "a.bin"
    export_buffer(full, path)
    whole = bytearray(path.read_bytes())
    path.write_bytes(whole[:-10])
    cut = import_buffer(make_buffer(redis_client, "cut"), path)
    assert cut.added == 6 and "in the middle of an entry" in cut.rejected[0][1]
    last = next(item for item in full if item.id == [item.id for item in full][-1]).to_bytes()
    at = bytes(whole).index(last)
    whole[at + len(last) - 1] ^= 0xFF
    path.write_bytes(whole)
    damaged = import_buffer(make_buffer(redis_client, "damaged"), path)
    assert damaged.added == 6 and [why for _, why in damaged.rejected] == ["checksum does not match"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.bin"])
def test_another_format_version_is_refused_whole(
    full: ReplayBuffer, redis_client: Redis, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    export_buffer(full, path)
    if name == "a.bin":
        header = msgpack.packb([MAGIC, FORMAT])
        path.write_bytes(path.read_bytes().replace(header, msgpack.packb([MAGIC, 99]), 1))
    else:
        edited(path, 1, format=99)
    other = make_buffer(redis_client, "other")
    with pytest.raises(UserError, match="is of format 99"):
        import_buffer(other, path)
    assert other.stats().size == 0


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04."])
def test_files_of_another_kind_are_one_line(redis_client: Redis, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    with pytest.raises(UserError, match="no header"):
        import_buffer(make_buffer(redis_client, "other"), path)


def test_queries_that_the_run_does_not_have_and_what_the_task_forbids_are_rejected(
    full: ReplayBuffer, redis_client: Redis, tmp_path: Path
) -> None:
    export_buffer(full, tmp_path / "a.bin")
    other = make_buffer(redis_client, "other")
    other.put_queries([make_query(1, 2)])

    def why_invalid(item: Trajectory) -> str | None:
        return "forbidden tokens [2]" if 2 in item.action_ids else None

    report = import_buffer(other, tmp_path / "a.bin", why_invalid)
    assert report.added == 3
    foreign = "its query is none of this run's"
    assert sorted(why for _, why in report.rejected) == ["forbidden tokens [2]", *[foreign] * 3]


def sampled(client: Redis, run: str, version: int, action: int) -> Trajectory:
    """One that a run's adapter sampled, published by now."""
    item, files = make_trajectory(make_query(), [action], version=version), {"n.json": f"{run} {version}".encode()}
    sha256 = AdapterRegistry(client, Keys(run), keep=1).publish(version, files)
    behaviour = item.behaviour.model_copy(update={"adapter_sha256": sha256})
    return item.model_copy(update={"behaviour": behaviour})


@pytest.mark.parametrize("late", [False, True])
def test_of_an_import_what_this_run_sampled_goes_stale_and_what_another_did_never(
    redis_client: Redis, tmp_path: Path, late: bool
) -> None:
    """Versions of another run's adapters are numbers that this run's adapters have too."""
    run, other = make_buffer(redis_client, "run", max_staleness=None if late else 2), make_buffer(redis_client, "other")
    for buffer in (run, other):
        buffer.open()
        buffer.put_queries([make_query()])
    other.push([sampled(redis_client, "other", version, 100 + version) for version in (3, 9, 60)])
    export_buffer(other, tmp_path / "other.jsonl")
    run.push([sampled(redis_client, "run", version, version) for version in range(1, 11)])
    export_buffer(run, tmp_path / "own.jsonl")
    run.clear()
    for name in ("other", "own"):
        import_buffer(run, tmp_path / f"{name}.jsonl")
    if late:
        # The index is made of what is stored.
        run = make_buffer(redis_client, "run", max_staleness=2)
        run.open()
    found = {item.action_ids.item() for item in run.sample(1, 99, seed=0, version=10)}
    assert found == {8, 9, 10, 103, 109, 160} and run.stats().expired == 7
