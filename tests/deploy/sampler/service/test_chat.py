"""Chat completions by OpenAI's own client, of a run whose prompts are conversations; with an engine that is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import openai
import pytest

from deploy.sampler.finished_run import FinishedRun
from deploy.sampler.service.server import Ready
from tests.deploy.run.runs import config_of, make_run
from tests.deploy.sampler.service.test_loop import StandIn
from tests.deploy.sampler.service.test_server import served

TEMPLATE = "{% for m in messages %}: {{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}:{% endif %}"
ASK = [{"role": "user", "content": "number 3"}]


def run_of(folder: Path, digit_model: Path, monkeypatch: pytest.MonkeyPatch, *, chat: bool) -> Path:
    monkeypatch.chdir(folder)
    model = shutil.copytree(digit_model, folder / "chatty")
    (model / "chat_template.jinja").write_text(TEMPLATE)
    Path("rows.jsonl").write_text("".join(json.dumps({"x": f"number {i}"}) + "\n" for i in range(9)))
    task = f"task: {{name: jsonl, train_path: rows.jsonl, prompt: '{{x}}', chat: {str(chat).lower()}, max_len: 3}}"
    made = make_run(config_of(folder, model, "--run.name", "mine", task=task))
    (made / "adapter").mkdir()
    (made / "adapter" / "adapter_config.json").write_text("{}")
    return made


def test_a_conversation_is_answered_whole_and_as_a_stream(
    tmp_path: Path, digit_model: Path, engine: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_of(tmp_path, digit_model, monkeypatch, chat=True)
    prompt = FinishedRun(folder).query("number 3").prompt_ids

    def play(ready: Ready) -> None:
        create: Any = openai.OpenAI(base_url=f"{ready.address}/v1", api_key="none").chat.completions.create
        found = create(model="mine", messages=ASK, n=2, logprobs=True)
        assert [(c.index, c.message.role, c.message.content, c.finish_reason) for c in found.choices] == [
            (0, "assistant", "4", "stop"),
            (1, "assistant", "4", "stop"),
        ]
        assert [(token.token, token.logprob) for token in found.choices[0].logprobs.content] == [("4", -0.5)]
        assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(prompt), 2)
        chunks = list(create(model="mine", messages=ASK, stream=True))
        assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "4"
        assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices[0].finish_reason == "stop"
        # What is asked is what a prompt of the run's is, with its template.
        assert engine.queries[-1].prompt_ids.tolist() == prompt.tolist()

    served(folder, play)


@pytest.mark.parametrize(
    ("options", "param", "expected"),
    [
        ({"messages": []}, "messages", "messages = "),
        ({"messages": [{"role": "user"}]}, "messages", "the content of message 1"),
        ({"messages": [*ASK, {"role": "assistant", "content": "4"}]}, "messages", "who is to speak next"),
        ({"messages": [{"role": "user", "content": "</s>"}]}, "messages", "its text holds '</s>'"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "is no parameter that this service"),
        ({"logprobs": True, "top_logprobs": 3}, "top_logprobs", "top_logprobs = 3: asks for the likeliest"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "max_tokens", "is not max_completion_tokens = 3"),
        ({"temperature": 0}, "temperature", "temperature = 0"),
    ],
)
def test_what_a_conversation_cannot_be_asked_with_is_refused(
    tmp_path: Path,
    digit_model: Path,
    engine: StandIn,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    param: str,
    expected: str,
) -> None:
    folder = run_of(tmp_path, digit_model, monkeypatch, chat=True)

    def play(ready: Ready) -> None:
        client = openai.OpenAI(base_url=f"{ready.address}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.BadRequestError) as found:
            client.chat.completions.create(**{"model": "mine", "messages": ASK, **options})
        assert expected in str(found.value) and found.value.param == param

    served(folder, play)


def test_a_run_on_plain_text_has_no_conversations(
    tmp_path: Path, digit_model: Path, engine: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_of(tmp_path, digit_model, monkeypatch, chat=False)

    def play(ready: Ready) -> None:
        client: Any = openai.OpenAI(base_url=f"{ready.address}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.BadRequestError, match=r"ask for a completion of a prompt, or train with task\.chat"):
            client.chat.completions.create(model="mine", messages=ASK)

    served(folder, play)
