"""Wrong input on the command line: one line, the right exit status, no traceback, nothing started."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.cli.main import main
from tests.forked import ROOT, Commands

RNG = "task: {name: rng}\n"


ENVIRONMENT = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(Path.home())}
LIMIT_S = 120
Amortis = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def amortis() -> Iterator[Amortis]:
    """Gives the exit status and standard error of a command in a folder, whose environment says nothing of amortis."""
    commands = Commands(ENVIRONMENT)

    def run(*arguments: str, cwd: Path) -> tuple[int, str]:
        result = commands.run(*arguments, cwd=cwd, environment=ENVIRONMENT, timeout_s=LIMIT_S)
        return result.returncode, result.stderr.strip()

    yield run
    commands.close()


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        (RNG, ["--model.name", "./no/such/model"], ["model.name", "./no/such/model", "no such folder"]),
        (RNG, ["--model.name", "{empty}"], ["model.name", "no config.json"]),
        (RNG, ["--model.name", "nobody/no-such-model"], ["model.name", "nobody/no-such-model", "local folder"]),
        ("task: [\n", [], ["CONFIG", "config.yaml", "not valid YAML", "line 2"]),
        ("task: {name: rng, high: many}\n", [], ["task.high", "'many'", "valid integer"]),
        (RNG, ["--redis.url", "redis://127.0.0.1:1/0"], ["redis.url", "127.0.0.1:1", "embedded"]),
        (RNG, ["--redis.url", "ftp://somewhere"], ["redis.url", "ftp://somewhere"]),
        ("task: {name: continuation, train_path: '{prompts}'}\n", [], ["task.train_path", "prompts.txt", "no row"]),
        ("task: {name: continuation, train_path: gone.txt}\n", [], ["task.train_path", "gone.txt", "No such file"]),
        (
            "task: {name: continuation, train_path: '{some}', forbidden: ['.']}\n",
            [],
            ["task.forbidden", "'.'", "forbids the terminator"],
        ),
        (
            "task: {name: continuation, train_path: '{stray}'}\n",
            [],
            ["task.train_path", "stray.csv", "line 2: a quote opens that is never closed", "on_bad_row: skip"],
        ),
        (
            "task: {name: jsonl, train_path: '{some}', prompt: '{text} {\"x\": 1}', on_bad_row: skip}\n",
            [],
            ["task.train_path", "no column", "which task.prompt names", "twice: {{ or }}"],
        ),
        ("task: {name: rng, prompt: ''}\n", [], ["task.prompt", "''", "is empty"]),
        (RNG, ["--seeds.file", "https://example.org/seeds.jsonl"], ["seeds.file", "https", "is an address"]),
        ("task: {name: rng, terminator: '5'}\n", [], ["task.terminator", "'5'", "is a digit"]),
        (RNG, ["--metrics.port", "{port}"], ["metrics.port", "Address already in use", "choose another"]),
        (RNG, ["--actor.max_model_len", "9"], ["actor.max_model_len", "9", "raise it to"]),
        (
            "task: {name: rng}\nactor: {max_model_len: 64}\n",
            ["--model.lora.target_modules", '["query"]'],
            ["model.lora.target_modules", "'query'", "q_proj"],
        ),
        (RNG, ["--model.lora.rank", "600"], ["model.lora.rank", "600", "less than or equal to 512"]),
        (RNG, ["--learner.lrr", "1"], ["learner.lrr", "did you mean learner.lr?"]),
        (RNG, ["--run.resume", "true"], ["run.resume", "no checkpoint"]),
        (RNG, ["--seeds.file", "gone.jsonl"], ["seeds.file", "gone.jsonl", "can't be read"]),
        (RNG, ["--seeds.file", "{prompts}"], ["seeds.file", "no line holds a seed"]),
        (
            RNG,
            ["--seeds.file", "{seeds}"],
            [
                "seeds.file",
                "line 2: no JSON",
                "line 3: forbidden tokens [14]",
                "line 4: 5 actions, allowed are 0..3",
                "and 2 lines more",
            ],
        ),
        (RNG, ["--seeds.hint", "it is 42"], ["seeds", "no {prompt}"]),
        (RNG, ["--seeds.hint", "{prompt}{answer}"], ["seeds.hint", "'answer'", "{prompt}, {target} only"]),
        (RNG, ["--buffer.samples_per_insert", "0.5", "--buffer.samples_per_insert_band", "0"], ["buffer", "below 1"]),
        (RNG, ["--buffer.evict", "newest"], ["buffer.evict", "'newest'", "'stalest'"]),
        (RNG, ["--redis.url", "redis+sentinel://127.0.0.1:1"], ["redis.url", "names no master"]),
        (RNG, ["--redis.url", "redis+sentinel://127.0.0.1:1/m"], ["redis.url", "127.0.0.1:1/m", "No master found"]),
    ],
)
def test_a_mistake_is_one_line_with_field_value_and_remedy(
    amortis: Amortis,
    tmp_path: Path,
    digit_model: Path,
    taken_port: int,
    text: str,
    overrides: list[str],
    expected: list[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "prompts.txt").write_text("\n  \n")
    (tmp_path / "some.txt").write_text("number 1\n")
    (tmp_path / "stray.csv").write_text('text,y\n"number,1\nnumber 2,2\n')
    seeds = ['{"rationale": "42 ."}', "{", '{"rationale": "number"}', '{"rationale": "12345"}', "[]"]
    (tmp_path / "seeds.jsonl").write_text("\n".join([*seeds, '{"rationale": "1", "prompt": "other"}']))
    names = {
        "{empty}": str(tmp_path / "empty"),
        "{prompts}": str(tmp_path / "prompts.txt"),
        "{some}": str(tmp_path / "some.txt"),
        "{stray}": str(tmp_path / "stray.csv"),
        "{seeds}": str(tmp_path / "seeds.jsonl"),
        "{port}": str(taken_port),
    }
    for name, value in names.items():
        text = text.replace(name, value)
        overrides = [item.replace(name, value) for item in overrides]
    (tmp_path / "config.yaml").write_text(text)
    if "--model.name" not in overrides:
        overrides = ["--model.name", str(digit_model), *overrides]
    status, errors = amortis("train", "config.yaml", "--run.name", "r", *overrides, cwd=tmp_path)
    assert status == 2, errors
    (line,) = errors.splitlines()
    assert all(part in line for part in expected), line
    assert not (tmp_path / "runs").exists(), "nothing may be left behind"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
            "is GPT2LMHeadModel, which vLLM can't serve with LoRA adapters",
        ),
        (
            {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]},
            "is Gemma3ForConditionalGeneration, which reads more than text",
        ),
        (
            {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}},
            "its model comes with code of its own (auto_map), which is never run here",
        ),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_in_one_line_and_nobody_is_asked(
    amortis: Amortis, tmp_path: Path, config: dict[str, object], expected: str
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(config))
    (model / "model.safetensors").touch()
    (model / "own.py").write_text("raise SystemExit('ran')\n")
    (tmp_path / "config.yaml").write_text(RNG)
    status, errors = amortis("train", "config.yaml", "--model.name", str(model), cwd=tmp_path)
    assert status == 2, errors
    (line,) = errors.splitlines()
    assert "model.name = " in line and expected in line


def test_an_adapter_that_no_actor_could_load_is_refused_before_anything_starts(
    amortis: Amortis, tmp_path: Path, digit_model: Path
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 16, "target_modules": ["q_proj", "v_proj"], "use_dora": True}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "config.yaml").write_text("task: {name: rng}\nactor: {max_model_len: 64}\n")
    start = ("--model.name", str(digit_model), "--model.lora.start_from", str(adapter))
    status, errors = amortis("train", "config.yaml", *start, cwd=tmp_path)
    assert status == 2, errors
    (line,) = errors.splitlines()
    assert "model.lora.start_from = " in line and "use_dora = true" in line


def test_a_process_of_its_own_that_imports_everything_says_one_line_too(tmp_path: Path, digit_model: Path) -> None:
    (tmp_path / "config.yaml").write_text(RNG)
    # Found by one of the last checks: the model's and the task's come before it.
    options = ("--actor.max_model_len", "64", "--model.lora.target_modules", '["query"]')
    wrong = ["--model.name", str(digit_model), *options]
    command = [sys.executable, "-m", "deploy.cli.main", "train", "config.yaml", *wrong]
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, env=ENVIRONMENT, check=False
    )
    assert result.returncode == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("amortis: model.lora.target_modules = ")


def test_an_existing_run_is_never_overwritten_unasked(amortis: Amortis, tmp_path: Path, digit_model: Path) -> None:
    (tmp_path / "config.yaml").write_text(RNG)
    kept = tmp_path / "runs" / "mine" / "adapter"
    kept.mkdir(parents=True)
    arguments = ("train", "config.yaml", "--model.name", str(digit_model), "--run.name", "mine")
    status, errors = amortis(*arguments, cwd=tmp_path)
    assert status == 2 and "run.name = 'mine'" in errors and "--run.overwrite true" in errors
    assert kept.is_dir()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("sample", "runs/none"), "is no run's folder"),
        (("evaluate", "."), "is no run's folder"),
        (("sample", ".", "-n", "0"), "-n = 0"),
        (("sample", ".", "--temperature", "0"), "--temperature = 0.0"),
        (("compare", "some.yaml", "--parallel", "0"), "--parallel = 0"),
        (("buffer", "stats", "runs/none"), "RUN = 'runs/none': holds no config.yaml"),
    ],
)
def test_commands_say_what_is_wrong_with_their_arguments(
    amortis: Amortis, tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    status, errors = amortis(*arguments, cwd=tmp_path)
    assert status == 2 and expected in errors and len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "{rng}", "learner.lr=1e-4"], "'learner.lr=1e-4': is a setting and no file; write --learner.lr 1e-4"),
        (["compare", "{rng}", "learner.lr=1e-4"], "is a setting and no file; write --learner.lr 1e-4"),
        (
            ["train", "--learner.steps", "5", "{rng}"],
            "'5': is no file, and --learner.steps has no value; give all files first, and then --learner.steps 5",
        ),
        (["train", str(ROOT / "deploy/comparison/infilling.yaml")], "methods: are a comparison's; run it by `amortis"),
        (["train", "{rng}", "--task.regex", "-?[0-9]+"], "or --task.regex=VALUE where it begins with a dash"),
        (["sample", "-n", "abc", "runs/x"], "argument -n: invalid int value: 'abc'; see `amortis sample --help`"),
        (["sample"], "the following arguments are required: RUN"),
        (["trian"], "invalid choice: 'trian'"),
        (["doctor", "--bogus"], "unrecognized arguments: --bogus"),
    ],
)
def test_a_command_that_is_written_wrongly_is_told_in_one_line(
    tmp_path: Path, arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rng.yaml").write_text(RNG)
    with pytest.raises(SystemExit) as ended:
        sys.exit(main([word.replace("{rng}", str(tmp_path / "rng.yaml")) for word in arguments]))
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
