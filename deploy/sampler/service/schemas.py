"""What clients may ask for. What can't be honoured is refused by name and value, and nothing is passed over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from common.json_text import loads_strictly
from common.tasks.base import HIGHEST_TEMPERATURE
from common.text_files import has_half_pair
from deploy.sampler.service.errors import ApiError, refused

_MASK = "the run's own mask and terminator decide, so that what is drawn is what was trained; leave it out"
_NEUTRAL: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "suffix": ((None, ""), "leave it out: ask /v1/posterior with a target to condition on what follows"),
    "best_of": ((None, 1), "leave it out: ask /v1/posterior with resample for the best of many by their weight"),
    "logit_bias": ((None, {}), _MASK),
    "stop": ((None, [], ""), "the run's own terminator ends a completion; cut its text where it arrives"),
    "presence_penalty": ((None, 0), _MASK),
    "frequency_penalty": ((None, 0), _MASK),
}
"""Parameters of OpenAI's that would change the distribution: values that ask for nothing, and what to do otherwise."""
_LIKELIEST = "asks for the likeliest tokens, which are not kept"


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Body):
    """Of a stream."""

    include_usage: bool | None = False
    include_obfuscation: bool | None = False


Ids = list[int]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class SamplingRequest(_Body):
    """What both of OpenAI's routes share. Null is the default everywhere."""

    model: str
    n: int | None = Field(1, ge=1, description="samples of each prompt")
    max_tokens: int | None = Field(None, ge=1, description="cuts off there; without it the run's own length holds")
    temperature: float | None = Field(1.0, gt=0, le=HIGHEST_TEMPERATURE)
    top_p: float | None = Field(1.0, gt=0, le=1)
    seed: Seed | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="is of no effect")


class CompletionRequest(SamplingRequest):
    """OpenAI's `POST /v1/completions`."""

    prompt: str | list[str] | Ids | list[Ids]
    logprobs: int | None = Field(None, description="0 for the log-probability of each token; no others are kept")
    echo: bool | None = False

    @field_validator("prompt")
    @classmethod
    def _holds_something(cls, value: Any) -> Any:
        if value == []:
            raise ValueError("holds no prompt: give one")
        return value


class ChatRequest(SamplingRequest):
    """OpenAI's `POST /v1/chat/completions`."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, description="the newer name of max_tokens")
    logprobs: bool | None = Field(False, description="the log-probability of each token")


class PosteriorRequest(_Body):
    """`POST /v1/posterior`: weighted draws for one prompt or row."""

    model: str | None = Field(None, description="what draws them; without it the trained sampler")
    prompt: str | None = None
    row: dict[str, Any] | None = Field(None, description="columns as the run's task names them, in place of a prompt")
    target: str | None = Field(None, description="Y that the rationale is conditioned on, in place of the row's")
    targets: list[str] = Field([], description="texts whose p(Y|X) is wanted")
    n: int = Field(8, ge=1, description="samples of the answer")
    resample: bool = Field(False, description="draw the samples from `candidates` of them ∝ R/q")
    candidates: int | None = Field(
        None, ge=1, description="draws; else 256 or more for `resample` (16 a sample) and `targets`, and n without them"
    )
    allow_unreliable: bool = Field(
        False, description="answer `resample` and `targets` even where the weights say that the answer means nothing"
    )
    seed: Seed | None = None


BodyT = TypeVar("BodyT", bound=_Body)


def parse(data: bytes, kind: type[BodyT]) -> BodyT:
    """A request's body; raises ApiError naming what is wrong with it."""
    try:
        found = loads_strictly(data.decode())
    except UnicodeDecodeError as error:
        raise ApiError(
            400, f"the body is not UTF-8 ({error.reason} at byte {error.start}); write it in UTF-8"
        ) from error
    except RecursionError as error:
        raise ApiError(400, "the body is nested too deep; send an object of plain parameters") from error
    except ValueError as error:
        raise ApiError(400, f"the body is no JSON ({error}); send an object of parameters") from error
    if not isinstance(found, dict):
        raise ApiError(400, "the body is no JSON object; send an object of parameters")
    if _has_half_pair(found):
        raise ApiError(400, "the body holds half a character (a lone surrogate); write it in UTF-8")
    if issubclass(kind, SamplingRequest):
        _refuse_what_changes_the_distribution(found)
    if kind is CompletionRequest:
        _refuse_other_log_probs(found)
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        raise _explain(error, kind) from error


def _refuse_what_changes_the_distribution(body: dict[str, Any]) -> None:
    for name, (neutral, remedy) in _NEUTRAL.items():
        value = body.pop(name, None)
        if value not in neutral:
            raise refused(name, value, "can't be honoured", remedy)
    likeliest = body.pop("top_logprobs", None)
    if likeliest not in (None, 0):
        raise refused("top_logprobs", likeliest, _LIKELIEST, "leave it out")


def _refuse_other_log_probs(body: dict[str, Any]) -> None:
    logprobs = body.get("logprobs")
    if logprobs and not isinstance(logprobs, bool):
        raise refused("logprobs", logprobs, _LIKELIEST, "give 0 for the log-probability of each token that was drawn")
    if logprobs is not None and body.get("echo"):
        problem = "asks for log-probabilities of the prompt, which the sampler has none of"
        raise refused("echo", True, problem, "leave out echo or logprobs")


def _has_half_pair(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_half_pair(item) for pair in value.items() for item in pair)
    if isinstance(value, list):
        return any(map(_has_half_pair, value))
    return isinstance(value, str) and has_half_pair(value)


def _explain(error: ValidationError, kind: type[_Body]) -> ApiError:
    # Of a value that may be of several kinds, each says what is wrong with it: one is enough.
    first = error.errors(include_url=False)[0]
    param = str(first["loc"][0]) if first["loc"] else None
    if param is None:
        return ApiError(400, str(error))
    if first["type"] == "missing":
        return ApiError(400, f"{param}: is missing; give it", param=param)
    if first["type"] == "extra_forbidden":
        problem = "is no parameter that this service knows" if len(first["loc"]) == 1 else "holds an unknown name"
        return refused(param, first["input"], problem, f"leave it out; known are {', '.join(kind.model_fields)}")
    if param == "prompt" and first["type"] != "value_error":
        remedy = "give a text, a list of texts, token ids or a list of those"
        return refused(param, first["input"], "is no prompt", remedy)
    return refused(param, first["input"], first["msg"].removeprefix("Value error, "), "see docs/serving.md")
