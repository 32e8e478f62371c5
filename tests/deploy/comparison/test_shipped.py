"""The shipped comparisons have their queries by data of the sizes of the real files, which are not shipped."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest
import yaml

from common.config_loading import load_config
from common.default_model import default_model_path
from common.tasks import make_task
from common.tokens import HuggingFaceCodec, load_codec
from deploy.comparison.definition import Comparison
from deploy.run.effect_checks import check_effects

ROOT = Path(__file__).parents[3]
SHIPPED = sorted((ROOT / "deploy" / "comparison").glob("*.yaml"))


def sum_row(draw: random.Random, operands: int) -> dict[str, str | int]:
    """A problem that the arithmetic task reads."""
    total, steps = draw.randrange(10), list[str]()
    question = str(total)
    for _ in range(operands - 1):
        sign, n = draw.choice("+-"), draw.randrange(10)
        question = f"{question} {sign} {n}"
        steps.append(f"{total} {sign} {n} =")
        total += n if sign == "+" else -n
    return {
        "str_query": f"Question: {question} = ? Answer:",
        "num_sol": total,
        "str_rationale": ", ".join(steps),
        "str_sol": f". The answer is {total}.",
    }


@pytest.fixture(scope="module")
def codec() -> HuggingFaceCodec:
    return load_codec(str(default_model_path()))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `--data` names one: made rows, as many as the real files have."""
    folder, draw = tmp_path_factory.mktemp("data"), random.Random(0)
    for name in ("arithmetic", "subjectivity", "continuation", "infilling"):
        (folder / name).mkdir()
    for name, n, operands in (
        ("train_50", 50, (3, 4)),
        ("test_3_operands", 240, (3,)),
        ("test_4_operands", 240, (4,)),
        ("test_5_operands", 240, (5,)),
    ):
        rows = [sum_row(draw, draw.choice(operands)) for _ in range(n)]
        (folder / "arithmetic" / f"{name}.json").write_text(json.dumps(rows))
    for name, n in (("train.10", 10), ("train.20", 20), ("train.50", 50), ("test", 1000)):
        rows = [
            {"text": f"the film number {n + i} is {word} .", "label": i % 2, "label_text": word}
            for i in range(n)
            for word in [("objective", "subjective")[i % 2]]
        ]
        (folder / "subjectivity" / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    prompts = [f"On day {i} the council approved the plan. " for i in range(1000)]
    (folder / "continuation" / "prompts.txt").write_text("\n".join(prompts))
    for name, n in (("train", 128), ("test", 117)):
        with (folder / "infilling" / f"passages_{name}.csv").open("w", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(["storyid", "storytitle", *(f"sentence{i}" for i in range(1, 6))])
            lines.writerows(
                [f"{name}{i}", "day", *(f"It was day {i} of part {k}." for k in range(5))] for i in range(n)
            )
    return folder


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_cell_of_a_shipped_comparison_has_its_queries_by_data_of_the_real_size(
    path: Path, data: Path, codec: HuggingFaceCodec, tmp_path: Path
) -> None:
    given = None if path.stem == "infilling" else data
    comparison = Comparison.load([path], seeds=[0], data=given, overrides=[])
    settings, seen, told = tmp_path / "cell.yaml", set[str](), list[str]()
    for cell in comparison.cells(tmp_path):
        settings.write_text(yaml.safe_dump(dict(cell.settings)))
        config = load_config(settings)
        key = config.task.model_dump_json()
        if key in seen:
            continue
        seen.add(key)
        task = make_task(config.task, codec, config.actor.max_model_len)
        check_effects(config, task, told.append)
        assert not any("leaves task.tool no room" in line for line in told), cell.name
        test = task.queries("test")
        assert task.queries("train") and test, cell.name
        wanted = getattr(config.task, "test_size", None)
        n_files = len(config.task.test_path) if isinstance(getattr(config.task, "test_path", None), list) else 1
        assert wanted is None or len(test) == wanted * n_files, cell.name
