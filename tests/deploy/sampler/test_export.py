"""What `amortis export` makes of a finished run, read by the programs that it is made for."""

from __future__ import annotations

import ast
import errno
import hashlib
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any, ClassVar

import gguf
import httpx
import numpy as np
import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError
from peft import PeftModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from common.default_model import PACKAGE
from common.errors import EXIT_FAULT, EXIT_INTERRUPTED, EXIT_USER, UserError
from deploy.cli.main import main
from deploy.sampler import hub
from deploy.sampler.export import _compared_on, _continued, merge, write_adapter
from deploy.sampler.finished_run import FinishedRun
from deploy.sampler.gguf_file import check_exportable
from deploy.sampler.model_card import code, fenced
from tests.deploy.run.runs import config_of, make_run, put_adapter

TEXTS = [[10, 14, 3, 4, 13], [14, 15, 5, 13], [9, 9, 9, 13]]
TICKS = "`" * 4


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, digit_model: Path) -> Path:
    """A run of the task `rng` on a model of its own folder."""
    home = tmp_path_factory.mktemp("exported")
    shutil.copytree(digit_model, home / "digits")
    folder = make_run(config_of(home, home / "digits", "--run.name", "mine", "--task.high", "99"))
    summary = {"total_variation": 0.0625, "wall_s": 12.0, "fault": None, "model": "/elsewhere/model", "steps": 200}
    (folder / "summary.json").write_text(json.dumps(summary))
    put_adapter(folder, 0.3)
    return folder


def log_probs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model(torch.tensor([ids])).logits[0].log_softmax(-1) for ids in TEXTS])


def with_adapter(run: Path) -> Any:
    base = AutoModelForCausalLM.from_pretrained(run.parent.parent / "digits")
    return PeftModel.from_pretrained(base, run / "adapter").eval()


def test_the_merged_model_is_base_and_adapter_in_one(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--merged", str(tmp_path / "merged"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["dtype"] == "float32" and found["nats a token from base + adapter"] < 1e-5
    assert found["nats a token the adapter changes"] > 0.1
    merged, both = AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), with_adapter(run)
    torch.testing.assert_close(log_probs(merged), log_probs(both), atol=1e-4, rtol=0)
    with both.disable_adapter():
        assert (log_probs(merged) - log_probs(both)).abs().max() > 0.1
    read = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert (
        read("number 3")["input_ids"]
        == AutoTokenizer.from_pretrained(run.parent.parent / "digits")("number 3")["input_ids"]
    )
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_another_precision_rounds_and_says_by_how_much(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--merged", str(tmp_path / "low"), "--dtype", "bfloat16"]) == 0
    low = AutoModelForCausalLM.from_pretrained(tmp_path / "low", dtype="auto")
    assert low.dtype == torch.bfloat16
    facts = json.loads((tmp_path / "low" / "amortis.json").read_text())["merge"]
    assert facts["dtype"] == "bfloat16" and 1e-5 < facts["nats_a_token_from_base_and_adapter"] < 0.15
    gap = (log_probs(low.float()) - log_probs(with_adapter(run))).abs().mean()
    assert 1e-5 < gap < 0.15
    assert (
        f"{facts['nats_a_token_from_base_and_adapter']:.2g} nats a token"
        in (tmp_path / "low" / "README.md").read_text()
    )


@pytest.mark.parametrize(
    ("scale", "dtype", "reason"),
    [
        (0.0, "auto", "the adapter changes nothing: the merged model would be the base model"),
        # bfloat16 has 8 bits: what the adapter changes is below half of the last one of most weights.
        (1e-4, "bfloat16", r"nats a token from base model \+ adapter .* the adapter itself changes .*--dtype float32"),
    ],
)
def test_a_merged_model_that_is_not_the_trained_sampler_is_refused_and_nothing_is_left(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], scale: float, dtype: str, reason: str
) -> None:
    weak = tmp_path / "weak"
    shutil.copytree(run, weak)
    put_adapter(weak, scale)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(["export", str(weak), "--merged", str(tmp_path / "merged"), "--dtype", dtype]) == EXIT_FAULT
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("amortis: the ") and re.search(reason, line), line
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_place_that_is_taken_is_refused_and_an_empty_folder_is_none(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken, empty = tmp_path / "taken", tmp_path / "empty"
    for folder in (taken, empty):
        folder.mkdir()
    (taken / "mine.txt").write_text("kept")
    for option in ("--merged", "--adapter", "--gguf"):
        assert main(["export", str(run), option, str(taken)]) == EXIT_USER
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{option} = '{taken}': is there already" in line
    assert (taken / "mine.txt").read_text() == "kept"
    assert main(["export", str(run), "--adapter", str(empty)]) == 0
    assert (empty / "adapter_model.safetensors").is_file()


def test_a_gguf_file_is_never_a_folder_s_name(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--gguf", str(tmp_path)]) == EXIT_USER
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--gguf = '{tmp_path}': is a folder; give a file's name" in line


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError("no model is there"), OSError),
        (FileNotFoundError(errno.ENOENT, "No such file", "/elsewhere/adapter"), FileNotFoundError),
        (OSError(errno.ENOSPC, "No space left on device"), UserError),
    ],
)
def test_what_goes_wrong_beside_the_place_is_not_blamed_on_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, expected: type[Exception]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("deploy.sampler.export.write_card", fail)
    with pytest.raises(expected, match=re.escape(error.strerror or str(error))) as found:
        write_adapter(FinishedRun(run), tmp_path / "adapter")
    assert expected is UserError or found.value is error
    assert not any(tmp_path.iterdir())


TERMINATED = """
import os, signal, sys
from deploy.cli.main import main
from deploy.sampler import export

def told_to_terminate(*_, **__):
    os.kill(os.getpid(), signal.SIGTERM)

export.write_card = told_to_terminate
sys.exit(main(["export", sys.argv[1], "--adapter", sys.argv[2]]))
"""


def test_sigterm_ends_an_export_as_ctrl_c_does_and_nothing_is_left(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", TERMINATED, str(run), str(tmp_path / "adapter")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_INTERRUPTED, done.stderr
    assert done.stderr.splitlines()[-1] == "amortis: ended by SIGTERM" and "Traceback" not in done.stderr
    assert not any(tmp_path.iterdir())


def test_an_export_says_what_it_is_at_on_standard_error(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    assert main(["export", str(run), "--adapter", str(adapter), "--merged", str(merged), "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["merged"] == str(merged)
    lines = [line.removeprefix(f"{run}: ") for line in told.err.splitlines() if line.startswith(f"{run}: ")]
    *before, comparing, last = lines
    loading = "loading digits and the adapter"
    assert before == [f"writing {adapter}", loading, "sampling 16 texts to compare on", "merging"]
    assert re.fullmatch(r"comparing 16 texts of \d+ tokens", comparing) and last == f"writing {merged}"


@pytest.mark.parametrize(("longest", "texts"), [(2, 16), (31, 8), (200, 1), (1000, 1)])
def test_texts_to_compare_on_have_at_most_256_tokens_in_all(
    run: Path, monkeypatch: pytest.MonkeyPatch, longest: int, texts: int
) -> None:
    opened, asked = FinishedRun(run), []
    space = opened.task.action_space.model_copy(update={"max_len": longest})
    monkeypatch.setattr(opened.task, "action_space", space)

    def generate(**given: Any) -> torch.Tensor:
        asked.append(given["generation_config"])
        return torch.tensor([[*given["input_ids"][0].tolist(), 3]] * asked[-1].num_return_sequences)

    queries, n = _compared_on(opened, None)
    found = [
        text
        for query in queries
        for text in _continued(opened, SimpleNamespace(generate=generate, device="cpu"), query, n)
    ]
    assert len(found) == texts == sum(each.num_return_sequences for each in asked)
    assert sum(each.num_return_sequences * each.max_new_tokens for each in asked) <= 256


OWN = """
from common.tasks.rng import RngTask
from common.tools import ToolBox, ToolSection


class Mine(RngTask):
    name = "mine"

    @property
    def tool(self):
        return ToolBox(ToolSection(limit_capability=3))

    @property
    def chat(self):
        return self.codec.chat("Be brief.", {"who": "me"})
"""


def test_a_task_of_one_s_own_needs_no_settings_for_its_tool_and_its_chat(tmp_path: Path) -> None:
    model = byte_level_model(tmp_path / "bytes", [BYTES], CHAT)
    (tmp_path / "mine.py").write_text(OWN)
    folder = make_run(config_of(tmp_path, model, "--run.name", "mine", "--task.prompt", "The number: "))
    put_adapter(folder, 0.3)
    run = FinishedRun(folder)
    own = runpy.run_path(str(tmp_path / "mine.py"))["Mine"]
    run.task = own(run.config.task, run.codec)
    write_adapter(run, tmp_path / "adapter")
    facts = json.loads((tmp_path / "adapter" / "amortis.json").read_text())
    assert facts["prompt"]["chat"] == {"system": "Be brief.", "template_kwargs": {"who": "me"}}
    assert (facts["tool"]["name"], facts["tool"]["limit_capability"]) == ("calculator", 3)


def test_an_export_of_nothing_says_what_there_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run)]) == EXIT_USER
    assert "--merged, --adapter, --gguf or --hub" in capsys.readouterr().err


def test_the_exported_adapter_is_the_run_s_own_for_peft(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--adapter", str(tmp_path / "adapter")]) == 0
    base = AutoModelForCausalLM.from_pretrained(run.parent.parent / "digits")
    exported = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert torch.equal(log_probs(exported), log_probs(with_adapter(run)))
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == "digits"


def test_another_program_can_rebuild_the_mask(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--adapter", str(tmp_path / "adapter")]) == 0
    facts = json.loads((tmp_path / "adapter" / "amortis.json").read_text())
    space, mask = FinishedRun(run).task.action_space, facts["mask"]
    allowed = json.loads((tmp_path / "adapter" / mask["allowed_ids"]).read_text())
    assert set(allowed) == set(space.allowed_ids or ()) and mask["terminator_id"] == space.terminator_id == 13
    assert (mask["min_len"], mask["max_len"], mask["terminator"], mask["grammar"]) == (0, 2, ".", None)
    assert facts["figures"] == {"total_variation": 0.0625} and facts["curve"] == []


def run_example(folder: Path, wanted: str, base: Path = Path()) -> Any:
    """What a card's example has found when it is through."""
    (example,) = re.findall(r"^```python\n(.*?)^```", (folder / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    script = example.replace("BASE_MODEL", str(base))
    script += f"\nprint(json.dumps({wanted}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", ["merged", "adapter"])
def test_the_example_in_the_card_samples_what_the_task_lets_through(run: Path, tmp_path: Path, kind: str) -> None:
    assert main(["export", str(run), f"--{kind}", str(tmp_path / kind)]) == 0
    texts, prompt = run_example(tmp_path / kind, "[texts.tolist(), prompt.tolist()[0]]", run.parent.parent / "digits")
    assert prompt == FinishedRun(run).query().prompt_ids.tolist()
    assert len(texts) == 8 and all(
        13 in ids[len(prompt) :] and set(ids[len(prompt) :]) <= set(range(3, 14)) for ids in texts
    )


@pytest.mark.parametrize(
    ("settings", "said", "unsaid"),
    [
        ({"objective": "vargrad"}, "in proportion to a reward R, and does not look for the best", "KL term"),
        ({"objective": "rloo", "kl_coef": 1}, "in proportion to a reward R, and does not look for the best", "KL term"),
        (
            {"objective": "rloo", "kl_coef": 0.5},
            "β = 0.5: it aims at .* p(Z⊤|X)·exp(r/β), where",
            "posterior",
        ),
        ({"objective": "grpo", "kl_coef": 1}, "β = 1.0: it aims at .* roughly, as grpo standardises", "posterior"),
        ({"objective": "rloo", "kl_coef": 0}, "β = 0.0: it looks for the best rationale", "proportion to p"),
        ({"objective": "sft"}, "maximum likelihood on given rationales .* in proportion to no reward", "posterior"),
        ({"objective": "alpha_dpg"}, "in proportion to a reward R, and does not look for the best", "KL term"),
        ({"objective": "flowrl"}, "exp(n·r) / Zⁿ for n decisions, .* not in proportion to R", "posterior"),
        ({"objective": "raptb"}, "roughly in proportion to the reward R, too long where", "posterior"),
    ],
)
def test_a_card_says_what_the_objective_aims_at(
    run: Path, tmp_path: Path, settings: dict[str, Any], said: str, unsaid: str
) -> None:
    opened = FinishedRun(run)
    given = opened.config.learner
    reward = given.reward.model_copy(update={"prior_weight": 1.0})
    learner = given.model_copy(update={"reward": reward, **settings})
    opened.config = opened.config.model_copy(update={"learner": learner})
    write_adapter(opened, tmp_path / "adapter")
    card = " ".join((tmp_path / "adapter" / "README.md").read_text().split("## It is a sampler")[0].split())
    assert re.search(re.sub(r"([()|])", r"\\\1", said), card), card
    assert unsaid not in card


def put_best(run: Path, **changes: Any) -> None:
    """A best adapter of step 15, which is another one than the last."""
    shutil.copytree(run / "adapter", run / "adapter-best", dirs_exist_ok=True)
    best = {"step": 15, "version": 4, "metric": "log_z_bound", "mode": "max", "value": -5.5, "sha256": "0" * 64}
    (run / "adapter-best" / "evaluation.json").write_text(json.dumps(best | changes))


def card_of(run: Path, folder: Path, *options: str) -> tuple[str, dict[str, Any]]:
    """Text, its lines joined, and facts of the adapter's card."""
    assert main(["export", str(run), "--adapter", str(folder), *options]) == 0
    return " ".join((folder / "README.md").read_text().split()), json.loads((folder / "amortis.json").read_text())


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (22, "with subtb for 22 of its 60 steps, as the run was stopped before its end, at a learning rate"),
        (60, "with subtb for 60 steps at a learning rate"),
        (None, "with subtb, set to 60 steps at a learning rate"),
    ],
)
def test_a_card_says_how_many_steps_were_done(tmp_path: Path, digit_model: Path, steps: int | None, said: str) -> None:
    settings = ("--learner.steps", "60", "--learner.objective", "subtb")
    folder = make_run(config_of(tmp_path, digit_model, "--run.name", "mine", *settings))
    put_adapter(folder, 0.3)
    put_best(folder)
    (folder / "summary.json").write_text(json.dumps({} if steps is None else {"steps": steps}))
    card, facts = card_of(folder, tmp_path / "last")
    assert said in card and "This is the adapter of step" not in card
    assert (facts["learner"]["steps"], facts["learner"]["steps_done"]) == (60, steps)
    assert facts["learner"]["adapter_step"] == steps
    card, facts = card_of(folder, tmp_path / "best", "--best")
    assert said in card and "This is the adapter of step 15, the best one by `log_z_bound`" in card
    assert facts["learner"]["adapter_step"] == 15


def rows_run(home: Path, model: Path, row: dict[str, str], *settings: str, **task: Any) -> Path:
    """A run of the task `jsonl` on nine rows."""
    rows = [{key: value.format(i) for key, value in row.items()} for i in range(9)]
    (home / "rows.jsonl").write_text("".join(json.dumps(item) + "\n" for item in rows))
    given = {"name": "jsonl", "train_path": str(home / "rows.jsonl"), "prompt": "{x}", "max_len": 4, **task}
    folder = make_run(config_of(home, model, "--run.name", "mine", *settings, task=f"task: {json.dumps(given)}"))
    put_adapter(folder, 0.3)
    return folder


def test_a_card_s_reward_holds_the_terms_that_there_are(tmp_path: Path, digit_model: Path) -> None:
    function = tmp_path / "secret" / "my_reward.py"
    function.parent.mkdir()
    function.write_text("def score(prompts, texts, rows):\n    return [0.0] * len(texts)\n")
    row = {"x": "number {}", "y": " number : {}"}
    plain = rows_run(tmp_path, digit_model, row, reward=f"{function}:score")
    card, facts = card_of(plain, tmp_path / "plain")
    assert "log R = (1 · log p(Z⊤|X) + log F) / 1.0, where p is the base model, and log F the nats of" in card
    digest = hashlib.sha256(function.read_bytes()).hexdigest()
    said = f"a function of the run's own, `my_reward.py:score` (sha256 {digest}), which is not part of this folder."
    assert said in card and "secret" not in card and "p(Y|" not in card
    assert facts["reward"]["own_function"] == {"function": "my_reward.py:score", "sha256": digest}
    assert facts["reward"]["has_target"] is False

    home = tmp_path / "with-target"
    home.mkdir()
    settings = ("--learner.reward.prior_weight", "0")
    aimed = rows_run(home, digit_model, row, *settings, target="{y}")
    card, facts = card_of(aimed, tmp_path / "aimed")
    assert "log R = (1 · log p(Y|XZ⊤)) / 1.0, where p is the base model. The task's settings" in card
    assert facts["reward"]["has_target"] is True and facts["reward"]["own_function"] is None


def test_the_reward_of_a_task_s_own_term_is_said_to_be_in_its_settings(run: Path, tmp_path: Path) -> None:
    card, _ = card_of(run, tmp_path / "adapter")
    weights = FinishedRun(run).config.reward_weights
    prior = f"{weights.prior:g} · log p(Z⊤|X) + " if weights.prior else ""
    assert f"log R = ({prior}log C) / 1.0, where p is the base model, and C is the task's own term" in card


def test_a_card_s_figures_are_of_its_adapter_and_of_the_task(tmp_path: Path, digit_model: Path) -> None:
    folder = make_run(config_of(tmp_path, digit_model, "--run.name", "mine"))
    put_adapter(folder, 0.3)
    put_best(folder)
    rows = [
        {"step": 10, "adapter_sha256": "1" * 64, "eval/log_z_bound": -9.5, "eval/valid": 0.1},
        {"step": 15, "adapter_sha256": "0" * 64, "eval/log_z_bound": -5.5, "eval/valid": 0.2, "samples": 24},
        {"step": 20, "adapter_sha256": "2" * 64, "eval/log_z_bound": -6.25, "eval/valid": 0.75},
        {"step": 21, "loss": 1.0},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {"steps": 21, "interrupted": True, "sampler_gap_mean": 1e-6, "trajectories_pushed": 99, "accuracy": 0.875}
    (folder / "summary.json").write_text(json.dumps(summary))
    card, facts = card_of(folder, tmp_path / "last")
    assert "| figure | step 15, the best by `log_z_bound` | step 20, the last measured | |---|---|---|" in card
    assert "| `log_z_bound` | -5.5 | -6.25 | | `valid` | 0.2 | 0.75 |" in card and "| `accuracy` | 0.875 |" in card
    assert not re.search("sampler_gap|trajectories|interrupted|adapter_versions|`samples`|`steps`", card)
    assert facts["figures"] == {"accuracy": 0.875} and [item["step"] for item in facts["curve"]] == [15, 20]
    card, facts = card_of(folder, tmp_path / "best", "--best")
    assert (
        "| figure | step 15, the best by `log_z_bound` | |---|---| | `log_z_bound` | -5.5 | | `valid` | 0.2 |" in card
    )
    assert "0.75" not in card and "0.875" not in card and facts["figures"] == {}


def example_prompt(run: Path, folder: Path, *options: str) -> str:
    """The literal that stands in the card's example."""
    card_of(run, folder, *options)
    (found,) = re.findall(r"^text = (.*)$", (folder / "README.md").read_text(), re.MULTILINE)
    return str(ast.literal_eval(found))


def test_the_example_s_prompt_is_the_run_s_own_escaped_or_the_given_one_and_else_a_placeholder(tmp_path: Path) -> None:
    model = byte_level_model(tmp_path / "bytes", [BYTES])
    nasty = f'The "number" {{}}\\n\n{TICKS}\n{{{{{{{{ card_data }}}}}}}} naïve'
    folder = rows_run(tmp_path, model, {"x": nasty})
    own = FinishedRun(folder)
    assert example_prompt(folder, tmp_path / "own") == own.codec.decode_prompt(own.query().prompt_ids)
    assert TICKS in example_prompt(folder, tmp_path / "again")
    assert example_prompt(folder, tmp_path / "given", "--prompt", "It's 7") == "It's 7"
    (tmp_path / "rows.jsonl").unlink()
    assert example_prompt(folder, tmp_path / "none") == "PROMPT"


def test_a_card_says_how_to_get_the_default_model(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card, _ = card_of(run, tmp_path / "other")
    assert 'base = "BASE_MODEL" # where `digits` is' in card and "make setup" not in card
    monkeypatch.setattr("deploy.sampler.model_card.default_model_path", lambda: Path(FinishedRun(run).model))
    card, _ = card_of(run, tmp_path / "default")
    assert 'base = Path.home() / ".cache/amortis/SmolLM2-135M-Instruct"' in card and "BASE_MODEL" not in card
    assert f"`make setup` makes of the package {PACKAGE} " in card and "`python -m common.default_model`" in card


CHAT = (
    "{% for message in messages %}<|start|>{{ message['role'] }}: {{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>{{ who }}: {% endif %}"
)


def test_the_example_in_a_chat_s_card_reads_what_the_sampler_reads(tmp_path: Path) -> None:
    model = byte_level_model(tmp_path / "bytes", [BYTES], CHAT)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"x": f"The number {i}"}) + "\n" for i in range(9)))
    task = {
        "name": "jsonl",
        "train_path": str(tmp_path / "rows.jsonl"),
        "prompt": "{x}",
        "chat": "Be brief.",
        "chat_template_kwargs": {"who": "me"},
        "max_len": 4,
    }
    folder = make_run(config_of(tmp_path, model, "--run.name", "mine", task=f"task: {json.dumps(task)}"))
    put_adapter(folder, 0.3)
    assert main(["export", str(folder), "--merged", str(tmp_path / "merged"), "--prompt", "number :"]) == 0
    found = run_example(tmp_path / "merged", "prompt.tolist()[0]")
    assert found == FinishedRun(folder).query("number :").prompt_ids.tolist() and len(found) > 10
    assert "the system message and variables in `amortis.json`" in (tmp_path / "merged" / "README.md").read_text()


def test_a_chat_template_of_the_run_s_own_goes_with_the_merged_model(tmp_path: Path) -> None:
    model = byte_level_model(tmp_path / "bytes", [BYTES], CHAT)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"x": f"The number {i}"}) + "\n" for i in range(9)))
    own = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>{% endif %}"
    task = {"name": "jsonl", "train_path": str(tmp_path / "rows.jsonl"), "prompt": "{x}", "max_len": 4, "chat": True}
    task["chat_template_kwargs"] = {"chat_template": own}
    folder = make_run(config_of(tmp_path, model, "--run.name", "mine", task=f"task: {json.dumps(task)}"))
    put_adapter(folder, 0.3)
    places = ["--merged", str(tmp_path / "merged"), "--gguf", str(tmp_path / "x.gguf")]
    assert main(["export", str(folder), *places]) == 0
    read = AutoTokenizer.from_pretrained(tmp_path / "merged")
    text = read.apply_chat_template([{"role": "user", "content": "number"}], tokenize=False, add_generation_prompt=True)
    assert read(text)["input_ids"] == FinishedRun(folder).query("number").prompt_ids.tolist()
    assert gguf.GGUFReader(tmp_path / "x.gguf").fields["tokenizer.chat_template"].contents() == own


NASTY = "Rain | `x` " + TICKS + " {{ card_data }} <b>{word}</b> "


def test_a_card_tells_the_task_and_neither_paths_nor_secrets_whatever_its_texts_hold(
    tmp_path: Path, digit_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "secret-home"
    home.mkdir()
    shutil.copytree(digit_model, home / "model")
    (home / "rows.jsonl").write_text("".join(json.dumps({"word": f"number {i}"}) + "\n" for i in range(9)))
    (home / "mine.py").write_text("def score(prompts, texts, rows):\n    return [0.0] * len(texts)\n")
    (home / "schema.json").write_text(json.dumps({"enum": [12, 34]}))
    task = {
        "name": "constrained",
        "train_path": str(home / "rows.jsonl"),
        "prompt": NASTY.replace("{{", "{{{{").replace("}}", "}}}}"),
        "json_schema": str(home / "schema.json"),
        "max_len": 8,
        "reward": str(home / "mine.py:score"),
    }
    folder = make_run(config_of(home, home / "model", "--run.name", "mine", task=f"task: {json.dumps(task)}"))
    row = {"accuracy": 0.5, "a|b`c": 1}
    (folder / "summary.json").write_text(json.dumps({"samplers": {"trained": row, "base": {"accuracy": 0.25}}}))
    put_adapter(folder, 0.3)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert main(["export", str(folder), "--merged", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    facts = json.loads((tmp_path / "out" / "amortis.json").read_text())
    assert (
        facts["mask"]["grammar"] == {"json_schema": {"enum": [12, 34]}}
        and facts["task"]["json_schema"] == "schema.json"
    )
    assert facts["task"]["train_path"] == "rows.jsonl" and facts["task"]["reward"]["function"] == "mine.py:score"
    for path in (tmp_path / "out").iterdir():
        assert "secret" not in path.read_bytes().decode("latin-1"), path.name
        assert str(tmp_path) not in path.read_bytes().decode("latin-1"), path.name
    # The template's own text stands in a fence that it can't close, and is not filled in again.
    assert f"{TICKS}`text\n{task['prompt']}\n{TICKS}`\n" in card
    assert "| `trained` | 0.5 | 1 |" in card and "| `base` | 0.25 | – |" in card
    assert "| sampler | `accuracy` | ``a\\|b`c`` |" in card
    assert card.startswith("---\nlibrary_name: transformers\n")
    outside = re.sub(r"(?ms)^(`{3,})\w*\n.*?^\1$", "", card)
    assert "<b>" not in outside and "rows.jsonl" not in outside


def test_texts_in_markdown_can_not_leave_their_place() -> None:
    assert code("a`b|c\nd") == "``a`b\\|c d``" and code("`") == "`` ` ``"
    assert fenced("x\n````\ny ", "text") == "`````text\nx\n````\ny \n`````"


class Refusing(BaseHTTPRequestHandler):
    """A hub that knows nobody, and notes what it was asked with."""

    asked: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        self.asked.append(self.headers["Authorization"])
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def refusing_hub() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def export_to_hub(run: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    kept = {name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "HF_HUB_OFFLINE")}
    command = [sys.executable, "-m", "deploy.cli.main", "export", str(run), "--hub", "me/mine"]
    return subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True, check=False)


def test_a_hub_that_can_not_be_written_is_one_line_before_anything_is_made(run: Path, refusing_hub: str) -> None:
    without = export_to_hub(run)
    assert without.returncode == EXIT_USER and "the environment holds no HF_TOKEN" in without.stderr
    unknown = export_to_hub(run, HF_TOKEN="hf_secret", HF_ENDPOINT=refusing_hub)
    assert Refusing.asked[-1] == "Bearer hf_secret"
    offline = export_to_hub(run, HF_TOKEN="hf_secret", HF_HUB_OFFLINE="1")
    for found, reason in ((unknown, "401"), (offline, "OfflineMode")):
        assert found.returncode == EXIT_USER and len(found.stderr.splitlines()) == 1, found.stderr
        assert "--hub = 'me/mine': the hub can't be written" in found.stderr and reason in found.stderr
        assert "secret" not in found.stderr + found.stdout


class Recording:
    """The hub's client as far as it is used, noting what it is told."""

    endpoint = "https://hub"

    def __init__(self) -> None:
        self.made: dict[str, Any] = {}
        self.uploaded: list[str] = []
        self.private: bool | None = None
        """Of what is there; None: nothing is."""

    def whoami(self) -> None:
        """It knows everybody."""

    def create_repo(self, repo: str, **options: Any) -> None:
        self.made = {"repo": repo, **options}
        self.private = options["private"] if self.private is None else self.private

    def repo_info(self, repo: str) -> SimpleNamespace:
        if self.private is None:
            raise RepositoryNotFoundError("none", response=httpx.Response(404, request=httpx.Request("GET", "x:")))
        return SimpleNamespace(private=self.private)

    def upload_folder(self, *, folder_path: Path, repo_id: str, commit_message: str) -> None:
        assert repo_id == self.made["repo"]
        self.uploaded = sorted(path.name for path in folder_path.iterdir())


@pytest.mark.parametrize("public", [False, True])
def test_the_hub_gets_the_adapter_with_its_card_in_a_private_repository_unless_asked(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], public: bool
) -> None:
    client = Recording()
    monkeypatch.setattr(hub, "hub_access", lambda repo, public: client)
    assert main(["export", str(run), "--hub", "me/mine", "--json", *(["--public"] if public else [])]) == 0
    assert json.loads(capsys.readouterr().out)["hub"] == "https://hub/me/mine"
    assert client.made == {"repo": "me/mine", "private": not public, "exist_ok": True}
    expected = ["README.md", "adapter_config.json", "adapter_model.safetensors", "allowed_ids.json", "amortis.json"]
    assert client.uploaded == expected


@pytest.mark.parametrize("name", ["mine", "a/b/c", "../x"])
def test_a_name_that_the_hub_has_not_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"--hub = .*write it as OWNER/NAME"):
        hub.hub_access(name, public=False)


def test_nothing_is_put_into_a_repository_that_is_public_unless_asked(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = Recording()
    client.private = False
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr("huggingface_hub.HfApi", lambda token: client)
    monkeypatch.setattr("deploy.sampler.export.write_adapter", lambda *_: pytest.fail("something was made"))
    assert main(["export", str(run), "--hub", "me/mine"]) == EXIT_USER
    (line,) = capsys.readouterr().err.splitlines()
    assert "--hub = 'me/mine': is there already, and anybody can read it; give --public" in line
    # One that became so since.
    with pytest.raises(UserError, match="anybody can read it"):
        hub.publish(client, run, "me/mine", public=False)
    assert client.uploaded == []
    assert hub.hub_access("me/mine", public=True) is client
    client.private = None
    assert hub.hub_access("me/mine", public=False) is client


def byte_level_model(folder: Path, splits: list[Any], chat: str = "{{ messages[0]['content'] }}") -> Path:
    """A tiny Llama with grouped heads and tied embeddings, and a byte-level tokenizer trained on a few words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits) if len(splits) > 1 else splits[0]
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|start|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["The number is 1234. It's a naïve number: 5678"] * 9, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|start|>", eos_token="<|end|>")
    fast.chat_template = chat
    torch.manual_seed(1)
    config = LlamaConfig(
        # Two rows that the tokenizer has no token for.
        vocab_size=len(fast) + 2,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=128,
        rope_theta=5_000.0,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


DIGITS, BYTES = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)


@pytest.mark.parametrize(("splits", "name"), [([DIGITS, BYTES], "smollm"), ([BYTES], "gpt-2")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gguf_file_is_the_merged_model_and_its_tokenizer(
    tmp_path: Path, splits: list[Any], name: str, dtype: str
) -> None:
    model = byte_level_model(tmp_path / "bytes", splits)
    folder = make_run(config_of(tmp_path, model, "--run.name", "mine", "--task.prompt", "The number: "))
    put_adapter(folder, 0.3)
    arguments = ["--merged", str(tmp_path / "merged"), "--gguf", str(tmp_path / "model.gguf"), "--dtype", dtype]
    assert main(["export", str(folder), *arguments]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    assert reader.fields["tokenizer.ggml.pre"].contents() == name
    stored = {item.name: gguf.dequantize(item.data, item.tensor_type) for item in reader.tensors}
    weights = {key: value.numpy() for key, value in merged.state_dict().items() if key != "lm_head.weight"}
    assert len(stored) == len(weights)
    for key, value in (("token_embd", "model.embed_tokens"), ("blk.1.ffn_down", "model.layers.1.mlp.down_proj")):
        np.testing.assert_array_equal(stored[f"{key}.weight"], weights[f"{value}.weight"])
    # The two halves of a head lie row by row beside each other.
    heads = weights["model.layers.0.self_attn.k_proj.weight"].reshape(2, 2, 16, 64)
    found = stored["blk.0.attn_k.weight"].reshape(2, 16, 2, 64)
    np.testing.assert_array_equal(found[:, :, 0], heads[:, 0])
    np.testing.assert_array_equal(found[:, :, 1], heads[:, 1])

    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    own = AutoTokenizer.from_pretrained(tmp_path / "merged")
    text = "It's number 5678: naïve"
    ids = own(text)["input_ids"]
    assert tokenizer.decode(ids) == text and tokenizer.chat_template == own.chat_template
    assert tokenizer.eos_token_id == own.eos_token_id
    with torch.no_grad():
        torch.testing.assert_close(
            read(torch.tensor([ids])).logits, merged(torch.tensor([ids])).logits, atol=1e-5, rtol=0
        )


def test_models_that_gguf_is_not_written_for_are_refused_by_name(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--gguf", str(tmp_path / "x.gguf")]) == EXIT_USER
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("amortis:")]
    assert "--gguf" in line and "this model's is a WordLevel one" in line and "convert_hf_to_gguf.py" in line
    assert not any(tmp_path.iterdir())
    from transformers import Qwen2Config

    with pytest.raises(UserError, match=r"LlamaForCausalLM alone, and this model is Qwen2ForCausalLM"):
        check_exportable(Qwen2Config(architectures=["Qwen2ForCausalLM"]), None)
    scaled = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0},
    )
    with pytest.raises(UserError, match=r"plain Llamas alone, and this model has rope_type = 'linear'"):
        check_exportable(scaled, None)


def test_texts_to_compare_on_can_follow_a_prompt_where_the_rows_are_gone(run: Path) -> None:
    merged = merge(FinishedRun(run), prompt="number : 7")
    assert merged.agreement.tokens >= 16 and merged.agreement.gap < 1e-5 < merged.agreement.effect
