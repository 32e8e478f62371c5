"""A finished run held open: one engine, started with the first sample, and the exact policy, loaded when asked."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError
from common.tasks import SampleRequest
from common.tasks.base import HIGHEST_TEMPERATURE
from common.trajectory import Query, Trajectory
from deploy.sampler.posterior import Posterior, PosteriorMaker, Sample, draws_for, refuse

if TYPE_CHECKING:
    from actors.engine import LoadedAdapter
    from actors.sampler import TrajectorySampler
    from learner.policy import LoraPolicy

Prompt = str | None
Prompts = list[str] | tuple[str, ...]
Texts = Sequence[str | Sequence[int]]
Row = Mapping[str, Any]
ResultT = TypeVar("ResultT")
WEIGHTED_DRAWS = 64
"""Of a posterior, where neither targets nor resampled draws are asked for, nor how many."""


class Sampler:
    """A trained sampler. One thread may use it at a time.

    A prompt is a text, or None for the task's first test query; a list of prompts gives a list of results, all sampled
    in one batch. In a prompt's place a row of data, `row`, makes the query as the task makes it of its rows.
    """

    def __init__(
        self, folder: Path, settings: Sequence[str] = (), seed: int | None = None, *, best: bool = False
    ) -> None:
        """Open a run's folder; `settings` are those that are others than in training, as on the command line. With
        `best` its adapter is the one that was best while it trained. Raises UserError."""
        from deploy.sampler.finished_run import FinishedRun

        self.run = FinishedRun(folder, settings, best=best)
        self._seed = self.run.seed(seed)
        self._engine: tuple[TrajectorySampler, LoadedAdapter] | None = None
        self._policy: LoraPolicy | None = None
        self._maker = PosteriorMaker(self.run.config, self.run.task)
        self._draws = 0
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up the engine and the model; what was drawn stays good."""
        if self._engine is not None:
            sampler, _ = self._engine
            sampler.close()
            sampler.policy.close()
        self._engine = self._policy = None
        self._closed = True
        gc.collect()

    @overload
    def sample(
        self, prompt: Prompt = None, n: int = 8, *, row: Row | None = None, temperature: float = 1.0, base: bool = False
    ) -> list[Sample]: ...

    @overload
    def sample(
        self, prompt: Prompts, n: int = 8, *, temperature: float = 1.0, base: bool = False
    ) -> list[list[Sample]]: ...

    def sample(
        self,
        prompt: Prompt | Prompts = None,
        n: int = 8,
        *,
        row: Row | None = None,
        temperature: float = 1.0,
        base: bool = False,
    ) -> list[Sample] | list[list[Sample]]:
        """Draw `n` rationales of each prompt, with log q and log R of each; `base` draws from the base model under the
        same mask.

        At another temperature, or of the base model, log q is that of what was drawn from. A prompt alone has no
        target, so that R has no likelihood in it: `row` has the task's, and `posterior` takes one.
        """
        queries = self._queries(prompt, row)
        groups = self._draw(queries, n, temperature, base=base)
        found = [self._maker.make("", group).samples if group else [] for group in groups]
        return _like(prompt, found)

    @overload
    def posterior(
        self,
        prompt: Prompt = None,
        n: int | None = None,
        *,
        row: Row | None = None,
        target: str | None = None,
        targets: Sequence[str] = (),
        resample: int | None = None,
        allow_unreliable: bool = False,
    ) -> Posterior: ...

    @overload
    def posterior(
        self,
        prompt: Prompts,
        n: int | None = None,
        *,
        target: str | None = None,
        targets: Sequence[str] = (),
        resample: int | None = None,
        allow_unreliable: bool = False,
    ) -> list[Posterior]: ...

    def posterior(
        self,
        prompt: Prompt | Prompts = None,
        n: int | None = None,
        *,
        row: Row | None = None,
        target: str | None = None,
        targets: Sequence[str] = (),
        resample: int | None = None,
        allow_unreliable: bool = False,
    ) -> Posterior | list[Posterior]:
        """Draw `n` rationales and weigh each by R/q: what the sampler is still off by is made good. Without `n` these
        are 64, or as many as an answer takes: 256 for `targets`, and for `resample` 16 a sample and 256 or more.

        With `target` the reward is that of a rationale for this Y. With `targets` it is that of the prompt alone, and
        p(Y|X) is estimated for each Y of them. With `resample` so many of the draws are drawn again ∝ their weights.

        Raises UnreliableEstimate where the weights say that `targets` or `resample` can't be answered by these draws,
        unless `allow_unreliable`: what was drawn is in the error's `found`, and the reason in `unreliable` of it.
        """
        if resample is not None:
            _at_least_one("resample", resample)
        if n is None:
            asked = WEIGHTED_DRAWS if resample is None else resample
            n = draws_for(asked, len(targets), resampled=resample is not None)
        queries = self._queries(prompt, row, target=target, targets=targets)
        found = []
        for query, group in zip(queries, self._draw(queries, n, 1.0, base=False), strict=True):
            text = self.run.codec.decode_prompt(query.prompt_ids)
            if not group:
                raise UserError("n", n, "samples were drawn, and none of them is valid", "draw more")
            self._draws += 1
            seed = self._seed + self._draws
            posterior = self._maker.make(
                text,
                group,
                target=self.run.target_of(query),
                targets=targets,
                resampled=resample,
                seed=seed,
                missing=n - len(group),
            )
            found.append(posterior)
        if (resample is not None or targets) and not allow_unreliable:
            self._refuse(prompt, found, "resample" if resample is not None else "targets")
        return _like(prompt, found)

    @overload
    def log_prob(self, prompt: Prompt, texts: Texts) -> NDArray[np.float64]: ...

    @overload
    def log_prob(self, prompt: Prompts, texts: Sequence[Texts]) -> list[NDArray[np.float64]]: ...

    def log_prob(
        self, prompt: Prompt | Prompts, texts: Texts | Sequence[Texts]
    ) -> NDArray[np.float64] | list[NDArray[np.float64]]:
        """log q(Z⊤|X) of each text Z, without ⊤, as its tokenizer writes it, or of token ids; shape (n,), in nats.

        Exact, by the learner's model and no engine. −∞ where the mask, the lengths or the grammar rule Z out. With a
        list of prompts `texts` is a list for each of them.
        """
        if self.run.task.tool is not None:
            problem = "has a tool, which writes into the rationale: a text doesn't say what is whose"
            raise UserError("log_prob", None, problem, "take log_q of samples")
        queries = self._queries(prompt, None)
        lists: Sequence[Any] = [texts] if prompt is None or isinstance(prompt, str) else texts
        if len(lists) != len(queries):
            raise UserError("texts", len(lists), f"lists are given for {len(queries)} prompts", "give one for each")
        return _like(prompt, [self._log_prob(query, group) for query, group in zip(queries, lists, strict=True)])

    def evaluate(self) -> dict[str, Any]:
        """The run's evaluation anew: exact figures where the task has them, and those of samples."""
        return self.run.figures(self._exact(), self._started)

    def export(
        self,
        *,
        merged: str | Path | None = None,
        adapter: str | Path | None = None,
        gguf: str | Path | None = None,
        dtype: str = "auto",
    ) -> dict[str, Any]:
        """Write what other programs take, as `amortis export` does; what was made, and how close merged weights are."""
        from deploy.sampler.export import Places, export

        self._check_open()
        if merged is None and adapter is None and gguf is None:
            raise UserError("export", None, "is told nothing to make", "give merged, adapter or gguf")
        merged, adapter, gguf = (None if path is None else Path(path) for path in (merged, adapter, gguf))
        return export(self.run, Places(merged, adapter, gguf), dtype)

    def _log_prob(self, query: Query, texts: Texts) -> NDArray[np.float64]:
        if isinstance(texts, str):
            raise UserError("texts", texts, "is one text", "give a list of texts")
        space = self.run.task.action_space
        encode = self.run.codec.encode
        rows = [encode(text) if isinstance(text, str) else [int(token) for token in text] for text in texts]
        possible = [i for i, row in enumerate(rows) if space.why_invalid(np.asarray(row, np.int32)) is None]
        found = np.full(len(rows), -np.inf)
        if possible:
            found[possible] = self._exact().log_prob(query, [rows[i] for i in possible])
        return found

    @staticmethod
    def _refuse(prompt: Prompt | Prompts, found: list[Posterior], setting: str) -> None:
        """Raises UnreliableEstimate with all that was drawn, for the first that means nothing."""
        way_out = "take weighted draws alone, or this all the same with allow_unreliable=True"
        for posterior in found:
            error = refuse(posterior, setting, way_out)
            if error is not None:
                error.found = _like(prompt, found)
                raise error

    def _queries(
        self,
        prompt: Prompt | Prompts,
        row: Row | None,
        *,
        target: str | None = None,
        targets: Sequence[str] = (),
    ) -> list[Query]:
        """Raises UserError, before an engine is started."""
        self._check_open()
        prompts: Sequence[Prompt] = [prompt] if prompt is None or isinstance(prompt, str) else prompt
        if not isinstance(prompts, list | tuple) or not all(isinstance(text, str | None) for text in prompts):
            raise UserError("prompt", prompt, "is neither a text nor a list of texts", "give a str or a list of them")
        return [self.run.query(text, row=row, target=target, targets=targets, setting="prompt") for text in prompts]

    def _draw(self, queries: Sequence[Query], n: int, temperature: float, *, base: bool) -> list[list[Trajectory]]:
        """`n` of each query, in the order of the queries; the same query may stand there twice."""
        _at_least_one("n", n)
        if not 0 < temperature <= HIGHEST_TEMPERATURE:
            problem = f"is not above 0 and up to {HIGHEST_TEMPERATURE:g}"
            raise UserError("temperature", temperature, problem, "give e.g. 1.0")
        if not queries:
            return []
        sampler, adapter = self._started()
        request = SampleRequest("samples", not base, temperature, n)
        drawn = sampler.collect(queries, request, adapter, self.run.config.actor.max_in_flight)
        # Of a query that stands there twice, all are drawn under one id.
        rest = {key: iter(group) for key, group in drawn.items()}
        return [list(islice(rest[query.id], n)) for query in queries]

    def _started(self) -> tuple[TrajectorySampler, LoadedAdapter]:
        self._check_open()
        if self._engine is None:
            self._engine = self.run.sampler(self._seed)
        return self._engine

    def _exact(self) -> LoraPolicy:
        self._check_open()
        if self._policy is None:
            self._policy = self.run.policy()
        return self._policy

    def _check_open(self) -> None:
        if self._closed:
            raise UserError("sampler", str(self.run.folder), "is closed", "load the run again")


def _like(prompt: object, found: list[ResultT]) -> Any:
    """The one result of a prompt, or those of a list."""
    return found[0] if prompt is None or isinstance(prompt, str) else found


def _at_least_one(setting: str, value: int) -> None:
    if value < 1:
        raise UserError(setting, value, "draws nothing", "give 1 or more")
