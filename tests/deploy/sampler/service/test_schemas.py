"""What a request may say: nothing that can't be honoured is passed over."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deploy.sampler.service.errors import ApiError
from deploy.sampler.service.schemas import CompletionRequest, PosteriorRequest, parse

GOOD = {"model": "mine", "prompt": "number :"}


def of(**options: Any) -> CompletionRequest:
    return parse(json.dumps({**GOOD, **options}).encode(), CompletionRequest)


def error_of(data: bytes) -> dict[str, Any]:
    with pytest.raises(ApiError) as found:
        parse(data, CompletionRequest)
    assert found.value.status == 400
    body = found.value.body["error"]
    assert set(body) == {"message", "type", "param", "code"} and body["type"] == "invalid_request_error"
    return dict(body)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"suffix": "end"}, "suffix = 'end': can't be honoured; leave it out: ask /v1/posterior"),
        ({"best_of": 4}, "best_of = 4: can't be honoured"),
        ({"logit_bias": {"3": -100}}, "logit_bias = {'3': -100}: can't be honoured; the run's own mask"),
        ({"presence_penalty": 0.5}, "presence_penalty = 0.5: can't be honoured"),
        ({"frequency_penalty": -1}, "frequency_penalty = -1: can't be honoured"),
        ({"stop": ["\n"]}, "stop = ['\\n']: can't be honoured; the run's own terminator"),
        ({"logprobs": 5}, "logprobs = 5: asks for the likeliest tokens, which are not kept; give 0"),
        ({"echo": True, "logprobs": 0}, "echo = True: asks for log-probabilities of the prompt"),
        (
            {"top_k": 5},
            "top_k = 5: is no parameter that this service knows; leave it out; known are model, n, max_tokens",
        ),
        ({"stream_options": {"colour": 1}}, "stream_options = 1: holds an unknown name"),
        ({"temperature": 0}, "temperature = 0: Input should be greater than 0"),
        ({"temperature": 2.5}, "temperature = 2.5: Input should be less than or equal to 2"),
        ({"top_p": 0}, "top_p = 0: "),
        ({"n": 0}, "n = 0: "),
        ({"n": 1.5}, "n = 1.5: Input should be a valid integer"),
        ({"n": True}, "n = True: Input should be a valid integer"),
        ({"max_tokens": 0}, "max_tokens = 0: "),
        ({"seed": 2**70}, f"seed = {2**70}: "),
        ({"prompt": []}, "prompt = []: holds no prompt"),
        ({"prompt": None}, "prompt: is no prompt; give a text, a list of texts, token ids"),
        ({"prompt": ["a", 1]}, "is no prompt"),
        ({"prompt": {"a": 1}}, "prompt = {'a': 1}: is no prompt"),
        ({"prompt": "half \ud83d"}, "the body holds half a character"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name_value_and_remedy(options: dict[str, Any], expected: str) -> None:
    body = error_of(json.dumps({**GOOD, **options}).encode())
    assert expected in body["message"] and "\n" not in body["message"]
    assert body["param"] in (*options, None)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "the body is no JSON"),
        (b"[1]", "the body is no JSON object"),
        (b'{"model": "m", "prompt": "\xff"}', "the body is not UTF-8 (invalid start byte at byte 26"),
        (b'{"model": "m", "prompt": "x", "temperature": NaN}', "NaN is no number"),
        (b'{"model": "m", "prompt": "x", "temperature": 1e999}', "temperature = inf: "),
        (b'{"model": "m", "prompt": "x", "n": 1, "n": 2}', "'n' stands twice"),
        (b'{"model": "m", "prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deep"),
        (b'{"model": "m", "prompt": "x", "seed": ' + b"9" * 5000 + b"}", "no JSON"),
        (b'{"prompt": "x"}', "model: is missing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_body_that_is_none_is_told_what_it_lacks(data: bytes, expected: str) -> None:
    assert expected in error_of(data)["message"]


def test_values_that_ask_for_nothing_are_taken() -> None:
    found = of(
        suffix=None,
        best_of=1,
        logit_bias={},
        presence_penalty=0,
        frequency_penalty=0.0,
        stop=None,
        logprobs=None,
        user="me",
        temperature=1,
        n=None,
        seed=-1,
    )
    assert found == CompletionRequest(model="mine", prompt="number :", temperature=1.0, n=None, user="me", seed=-1)


@pytest.mark.parametrize("prompt", ["a", ["a", "b"], [1, 2], [[1], [2, 3]]])
def test_prompts_come_in_four_forms(prompt: Any) -> None:
    assert of(prompt=prompt).prompt == prompt


def test_a_posterior_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ApiError, match="temperature = 1: is no parameter that this service knows"):
        parse(b'{"prompt": "x", "temperature": 1}', PosteriorRequest)
