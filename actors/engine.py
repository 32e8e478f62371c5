"""vLLM from outside: sampling under a mask and an adapter, and scoring, in one continuous batch.

Token ids go in and come out; nothing is ever decoded and tokenised again. vLLM is imported when an engine is made. What
amortis adds inside its workers, the mask above all, is in `actors/worker_extension.py`.

Scoring needs, at every position of a text, the log-probability of the token that stands there and of ⊤. vLLM's newer
model runner offers that (`prompt_logprob_token_ids`). The older one, which CPUs use, returns the actual token and the
most likely ones: there the gathering step is replaced, so that a request for one extra column gets ⊤'s.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.compilation import note_compiled, starts_eager
from actors.merging import Turns, keeping_weights, read_deltas
from actors.scoring import Scored, ScoreText, TokenScores
from common.action_space import ActionSpace
from common.adapter_files import files_sha256
from common.config import ActorSection, LoraSection
from common.errors import EngineDisturbed, EngineFault, UserError
from common.log import get_logger

log = get_logger("engine")
CPU_BLOCK_TOKENS = 32
"""Smallest KV block of the CPU attention kernel: the finest grain at which prompts share their cache."""
ADAPTERS_IN_FLIGHT = 2
"""Versions that can run in one batch: the newest, and the one that requests in flight finish under."""
REFERENCE_ADAPTER_ID = 2**31 - 1
"""vLLM's number for the reference's own adapter; the policy's have their versions'."""
ADAPTER_SLOTS = ADAPTERS_IN_FLIGHT + 1
"""With one more where the reference has an adapter. The last slot is never filled. vLLM's CPU kernels give a request
without adapter the index -1, which means the last slot: were an adapter there, the base model would be read through it
whenever both share a batch."""


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter version that the engine serves."""

    version: int
    sha256: str
    handle: Any = field(compare=False)
    """vLLM's own request object for it, or what it adds to the model's layers, where it is merged into them."""


@dataclass(frozen=True)
class Sampled:
    """A finished request: actions without ⊤, and their log-probabilities under mask and temperature.

    Of a request that is followed, what came since its last Progress.
    """

    request_id: str
    action_ids: NDArray[np.int32]
    log_probs: NDArray[np.float32]
    stop_log_prob: float | None
    """Log-probability of ⊤ after them; None where something else ended the request: its length, or a tool's trigger."""


@dataclass(frozen=True)
class Progress:
    """What a step added to a request that is followed and goes on."""

    request_id: str
    action_ids: list[int]
    log_probs: list[float]


Result = Sampled | Scored | Progress
"""Of a step."""


class Engine:
    """One vLLM engine, in this process; its workers are further ones where the model is spread over several."""

    def __init__(
        self,
        model_path: str,
        section: ActorSection,
        dtype: str,
        space: ActionSpace,
        lora: LoraSection | None,
        seed: int,
        reference_adapter: Path | None = None,
        on_compiling: Callable[[], None] = lambda: None,
        *,
        holds_one: bool = False,
    ) -> None:
        """Load the model; `lora` None makes an engine without the policy's adapters.

        With `holds_one` there is room for `hold_adapter`. Scoring goes through `reference_adapter`, if there is one.
        Raises UserError if vLLM refuses.
        """
        _set_environment(section)
        self._turns: Turns | None = None
        if lora is not None and section.adapters == "merged":
            self._start_merged(model_path, section, dtype, lora, seed, on_compiling)
        if self._turns is None:
            slots = ADAPTER_SLOTS + (reference_adapter is not None) + holds_one
            self._begin(_arguments(model_path, section, dtype, seed, lora, slots), section, on_compiling)
        self._longest, self._vocab_size = section.max_model_len, space.vocab_size
        self._scores_by_id = bool(self._engine.vllm_config.use_v2_model_runner)
        self.use_action_space(space)
        self._failure: str | None = None
        self._scoring: dict[str, tuple[ScoreText, LoadedAdapter | None]] = {}
        self._versions_in_flight: dict[str, int] = {}
        self._loaded: list[int] = []
        self._held: LoadedAdapter | None = None
        self._is_released = False
        """Whether what is held goes as soon as no request has it."""
        self._reference: LoadedAdapter | None = None
        if reference_adapter is not None:
            self._reference = self._load_reference(reference_adapter)

    def _begin(self, arguments: dict[str, Any], section: ActorSection, on_compiling: Callable[[], None]) -> None:
        """Start vLLM's engine."""
        arguments["enforce_eager"] = starts_eager(section, arguments)
        if not arguments["enforce_eager"]:
            on_compiling()
        with _one_at_a_time(section):
            self._engine = _start(arguments, section)
        if not arguments["enforce_eager"]:
            note_compiled(arguments)
        self._engine.collective_rpc("restore_classes")

    def _start_merged(
        self,
        model_path: str,
        section: ActorSection,
        dtype: str,
        lora: LoraSection,
        seed: int,
        on_compiling: Callable[[], None],
    ) -> None:
        """Start one that adapters can be merged into, which `_turns` tells; none where its layers forbid it."""
        with keeping_weights(lora.target_modules):
            self._begin(_arguments(model_path, section, dtype, seed, None, 0), section, on_compiling)
        try:
            (found,) = self._engine.collective_rpc("kept_parts")
            missing = sorted(set(lora.target_modules) - found)
            if missing:
                raise RuntimeError(f"vLLM has no layers of its own for {', '.join(missing)}")
            # A layer that can't be changed says so now.
            self._engine.collective_rpc("merge", args=({},))
        except RuntimeError as error:
            log.warning("adapters can't be merged into this model's layers, vLLM's LoRA serves them: %s", error)
            self._engine.engine_core.shutdown()
            return
        self._turns = Turns(self._merge_in)

    def _merge_in(self, adapter: LoadedAdapter | None) -> None:
        self._engine.collective_rpc("merge", args=({} if adapter is None else adapter.handle,))

    @property
    def takes_turns(self) -> bool:
        """Whether requests of one adapter wait until those of another are done, as they are merged."""
        return self._turns is not None

    def serves_alone(self, adapter: LoadedAdapter | None) -> bool:
        """Whether it is this adapter's turn."""
        return self._turns is not None and self._turns.present == adapter

    def _load_reference(self, folder: Path) -> LoadedAdapter:
        """Its slot is never given to a version of the policy."""
        from vllm.lora.request import LoRARequest

        sha256 = files_sha256({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
        handle = LoRARequest(f"reference-{sha256[:12]}", REFERENCE_ADAPTER_ID, str(folder))
        self._engine.add_lora(handle)
        return LoadedAdapter(0, sha256, handle)

    def use_action_space(self, space: ActionSpace) -> None:
        """Sample under this mask from now on; nothing may be in flight."""
        self._space = space
        self._engine.collective_rpc("use_action_space", args=(space,))

    def close(self) -> None:
        """Give back what vLLM holds; the engine is of no more use."""
        self._failure = self._failure or "it was closed"
        self._engine.engine_core.shutdown()

    @property
    def runner(self) -> str:
        """Which of vLLM's model runners serves: V2, the one of GPUs, or V1."""
        return "V2" if self._scores_by_id else "V1"

    @property
    def busy(self) -> bool:
        """Whether a request is unfinished."""
        return bool(self._turns) or bool(self._engine.has_unfinished_requests())

    @property
    def can_load(self) -> bool:
        """Whether a version can be dropped for a new one: none but the newest, or one that is held, has requests in
        flight. One that is merged needs no place."""
        if self._turns is not None:
            return True
        held = [] if self._held is None else [self._held.version]
        return set(self._versions_in_flight.values()) <= {*self._loaded[-1:], *held}

    @staticmethod
    def use_threads(count: int) -> None:
        """Compute with `count` CPU threads from now on; in its process vLLM makes torch.set_num_threads do nothing."""
        import torch

        torch._C.set_num_threads(count)

    def load_adapter(self, version: int, sha256: str, folder: Path) -> LoadedAdapter:
        """Serve a version under a name, number and path of its own: the prefix cache is keyed by them.

        The oldest version is dropped for it; raises RuntimeError while `can_load` is false.
        """
        if not self.can_load:
            raise RuntimeError(f"adapter versions {sorted(set(self._versions_in_flight.values()))} are in flight")
        self._let_go()
        while self._turns is None and len(self._loaded) >= ADAPTERS_IN_FLIGHT:
            self._drop(self._loaded.pop(0))
        adapter = self._add_adapter(version, sha256, folder)
        if self._turns is None:
            self._loaded.append(version)
        return adapter

    def hold_adapter(self, version: int, sha256: str, folder: Path) -> LoadedAdapter:
        """Serve a version until `release_adapter`, however many newer ones are loaded; one at a time.

        Raises RuntimeError while `is_letting_go`.
        """
        if self.is_letting_go:
            raise RuntimeError("requests of the version that was held before are in flight")
        self._let_go()
        assert self._held is None
        self._held = self._add_adapter(version, sha256, folder)
        return self._held

    def release_adapter(self) -> None:
        """What was held may be dropped, once it has no requests in flight: training may have some that are older than
        the versions that are loaded."""
        self._is_released = self._held is not None
        self._let_go()

    @property
    def is_letting_go(self) -> bool:
        """Whether requests in flight keep in its place what was held and is released."""
        if self._held is None or not self._is_released or self._turns is not None:
            return False
        version = self._held.version
        return version not in self._loaded and version in self._versions_in_flight.values()

    def _let_go(self) -> None:
        if self._held is not None and self._is_released and not self.is_letting_go:
            version, self._held, self._is_released = self._held.version, None, False
            self._drop(version)

    def _add_adapter(self, version: int, sha256: str, folder: Path) -> LoadedAdapter:
        if self._turns is not None:
            return LoadedAdapter(version, sha256, read_deltas(folder))
        from vllm.lora.request import LoRARequest

        adapter = LoadedAdapter(version, sha256, LoRARequest(f"v{version}-{sha256[:12]}", version, str(folder)))
        if not self._is_in_use(version):
            self._engine.add_lora(adapter.handle)
        return adapter

    def _drop(self, version: int) -> None:
        if self._turns is None and not self._is_in_use(version):
            self._engine.remove_lora(version)

    def _is_in_use(self, version: int) -> bool:
        return version in self._loaded or (self._held is not None and self._held.version == version)

    def submit_sample(
        self,
        request_id: str,
        prompt_ids: Sequence[int],
        temperature: float,
        adapter: LoadedAdapter | None,
        taken: Sequence[int] = (),
        *,
        top_p: float = 1.0,
        top_k: int = 0,
        max_len: int | None = None,
        seed: int | None = None,
        follow: bool = False,
    ) -> None:
        """Sample under the action space up to ⊤, a tool's trigger or max_len, `taken` actions having been taken.

        Without an adapter from the base model. A `max_len` below the action space's cuts it off there, without ⊤; with
        `follow` each step tells what it added.
        """
        params = sampling_params(
            self._space, temperature, taken, top_p=top_p, top_k=top_k, max_len=max_len, seed=seed, follow=follow
        )
        self._add(request_id, prompt_ids, params, adapter, goes_on=bool(taken))

    def abort(self, request_ids: Collection[str]) -> None:
        """Take requests out of the batch, those that aren't in it passed over; nothing more is heard of them."""
        for request_id in request_ids:
            self._versions_in_flight.pop(request_id, None)
            self._scoring.pop(request_id, None)
        if self._turns is not None:
            self._turns.drop(request_ids)
        # Of one that failed nothing is heard anyway, and what ended it is told already.
        if self._failure is None:
            self._engine.abort_request(list(request_ids))

    def submit_score(self, request_id: str, text: ScoreText, adapter: LoadedAdapter | None = None) -> None:
        """Score a text in one pass; without an adapter by the reference.

        What it shares with texts before it, up to the first wanted token, is read from the prefix cache by the older
        runner; the newer one computes it all.
        """
        self._scoring[request_id] = text, adapter or self._reference
        self._submit_score(request_id, read_cache=not self._scores_by_id)

    def _submit_score(self, request_id: str, *, read_cache: bool, goes_on: bool = False) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        text, adapter = self._scoring[request_id]
        columns: dict[str, Any] = {"prompt_logprobs": 1}
        if self._scores_by_id:
            rows = [[token, self._space.terminator_id] for token in text.ids[text.first :]]
            columns = {"prompt_logprob_token_ids": rows, "prompt_logprob_start": text.first - 1}
        params = SamplingParams(
            max_tokens=1,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            ignore_eos=True,
            skip_reading_prefix_cache=not read_cache,
            **columns,
        )
        self._add(request_id, text.ids, params, adapter, goes_on=goes_on)

    def _add(
        self,
        request_id: str,
        ids: Sequence[int],
        params: Any,
        adapter: LoadedAdapter | None,
        *,
        goes_on: bool = False,
    ) -> None:
        prompt: dict[str, Any] = {"prompt_token_ids": [int(token) for token in ids]}
        if adapter is not None:
            # A second lock beside the adapter's own name: no cached block of another version is ever read.
            prompt["cache_salt"] = f"v{adapter.version}-{adapter.sha256}"
            if adapter is not self._reference:
                self._versions_in_flight[request_id] = adapter.version
        self._check_health()
        if self._turns is not None:
            # What vLLM would refuse in its turn is refused now, as then nobody could tell whose it was.
            if not 0 < len(ids) < self._longest or not all(0 <= token < self._vocab_size for token in ids):
                raise ValueError(f"a prompt of {len(ids)} tokens, allowed are 1..{self._longest - 1} of the vocabulary")
            start = partial(self._engine.add_request, request_id, prompt, params)
            self._turns.add(request_id, adapter, start, goes_on=goes_on)
            return
        self._engine.add_request(request_id, prompt, params, lora_request=None if adapter is None else adapter.handle)

    def step(self) -> list[Result]:
        """Advance every request by one engine step; what finished, and what was added to requests that are followed.

        Raises EngineFault where vLLM fails. What it holds is in no good state then: later calls raise the same, with
        the first cause, and another engine must take its place.
        """
        self._check_health()
        try:
            if self._turns is not None and not self._engine.has_unfinished_requests():
                self._turns.take_next()
            outputs = self._engine.step()
        except Exception as error:
            self._failure = f"{type(error).__name__}: {error}"
            raise EngineFault(f"vLLM failed in a step: {self._failure}") from error
        # Of those unfinished, vLLM gives what is followed alone.
        results = [
            self._result(output) if output.finished else Progress(output.request_id, *_drawn(output))
            for output in outputs
        ]
        return [result for result in results if result is not None]

    def _check_health(self) -> None:
        if self._failure is not None:
            raise EngineFault(f"the engine is of no more use, as vLLM failed in a step: {self._failure}")

    def _result(self, output: Any) -> Sampled | Scored | None:
        self._versions_in_flight.pop(output.request_id, None)
        if output.request_id in self._scoring:
            text, _ = self._scoring[output.request_id]
            if (output.num_cached_tokens or 0) >= text.first and not self._scores_by_id:
                # Read so far from the cache that a wanted log-probability was never computed: once more, in full.
                self._submit_score(output.request_id, read_cache=False, goes_on=True)
                return None
            del self._scoring[output.request_id]
            return Scored(output.request_id, self._scores(text, output))
        drawn, of_drawn = _drawn(output)
        tokens, log_probs = np.asarray(drawn, np.int32), np.asarray(of_drawn, np.float32)
        if len(tokens) and tokens[-1] == self._space.terminator_id:
            return Sampled(output.request_id, tokens[:-1], log_probs[:-1], float(log_probs[-1]))
        return Sampled(output.request_id, tokens, log_probs, None)

    def _scores(self, text: ScoreText, output: Any) -> TokenScores:
        if self._scores_by_id:
            table = np.asarray(output.prompt_token_id_logprobs, np.float64)
            return TokenScores(table[:, 0], table[:, 1])
        columns = output.prompt_logprobs[text.first :]
        actual = [column[token].logprob for token, column in zip(text.ids[text.first :], columns, strict=True)]
        terminator = [column[self._space.terminator_id].logprob for column in columns]
        return TokenScores(np.asarray(actual, np.float64), np.asarray(terminator, np.float64))


def _drawn(output: Any) -> tuple[list[int], list[float]]:
    """The tokens of an output and their log-probabilities."""
    completion = output.outputs[0]
    columns = zip(completion.token_ids, completion.logprobs, strict=True)
    return list(completion.token_ids), [column[token].logprob for token, column in columns]


def sampling_params(
    space: ActionSpace,
    temperature: float,
    taken: Sequence[int],
    *,
    top_p: float = 1.0,
    top_k: int = 0,
    max_len: int | None = None,
    seed: int | None = None,
    follow: bool = False,
) -> Any:
    """What vLLM is told of a sample: it ends at ⊤, a tool's trigger or max_len, `taken` actions having been taken.

    The mask, min_len included, is the worker's: all that it needs of a request is where it stands.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from actors.worker_extension import TAKEN

    return SamplingParams(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        max_tokens=min(space.max_len, space.max_len if max_len is None else max_len) - len(taken),
        stop_token_ids=[space.terminator_id, *space.trigger_ids],
        ignore_eos=True,
        logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA if follow else RequestOutputKind.FINAL_ONLY,
        extra_args={TAKEN: list(taken)},
        skip_clone=True,
    )


def _arguments(
    model_path: str, section: ActorSection, dtype: str, seed: int, lora: LoraSection | None, slots: int
) -> dict[str, Any]:
    """vLLM's; without `lora` no adapter can be served beside the model."""
    arguments: dict[str, Any] = {
        "model": model_path,
        "dtype": dtype,
        # It takes 32 bits; a date and time has more.
        "seed": seed % 2**31,
        "skip_tokenizer_init": True,
        "max_model_len": section.max_model_len,
        "max_num_seqs": section.max_in_flight,
        "enable_prefix_caching": True,
        "gpu_memory_utilization": section.gpu_memory_utilization,
        "logprobs_mode": "processed_logprobs",
        # Sampling asks for the sampled token's alone, scoring for the text's token and ⊤.
        "max_logprobs": 2,
        "disable_log_stats": True,
        "worker_extension_cls": "actors.worker_extension.WorkerExtension",
    }
    if section.tensor_parallel_size > 1:
        # Workers are processes of this node, which an actor's placement group has all GPUs on. Ray's own executor,
        # vLLM's choice within a placement group, would ask for a bundle each beside that of the actor.
        arguments.update(tensor_parallel_size=section.tensor_parallel_size, distributed_executor_backend="mp")
    if not section.num_gpus:
        arguments["block_size"] = CPU_BLOCK_TOKENS
    if lora is not None:
        arguments.update(
            enable_lora=True,
            max_lora_rank=lora.served_rank,
            max_loras=slots,
            max_cpu_loras=slots,
            # Given, so that the output layer is not wrapped: scoring fails on a wrapped one.
            lora_target_modules=list(lora.target_modules),
        )
    return arguments


LONGEST_QUEUE_S = 300.0
"""A start takes 10 to 60 s."""
_SIGNS_OF_OTHERS = ("Error in memory profiling", "Free memory on device", "No available memory for the cache blocks")
"""In what vLLM says where a process on the same GPU takes or gives back memory while vLLM measures what is free."""


@contextmanager
def _one_at_a_time(section: ActorSection) -> Iterator[None]:
    """Engines on one GPU start one after the other, as each measures the memory that it finds free."""
    if not section.num_gpus:
        yield
        return
    # Ray tells each actor which GPU is its own.
    gpus = re.sub(r"[^0-9A-Za-z]+", "-", os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
    path = Path(tempfile.gettempdir()) / f"amortis-engine-{os.getuid()}-{gpus}.lock"
    with path.open("w") as lock:
        deadline = time.monotonic() + LONGEST_QUEUE_S
        while not _locked(lock):
            if time.monotonic() > deadline:
                raise EngineDisturbed(
                    "actor.num_gpus",
                    section.num_gpus,
                    f"other engines on the same GPU have been starting for {LONGEST_QUEUE_S:g} s ({path} is locked)",
                    "end the process that hangs, or start fewer at once",
                )
            time.sleep(0.1)
        try:
            yield
        finally:
            # Processes that vLLM forked hold the file too.
            fcntl.flock(lock, fcntl.LOCK_UN)


def _locked(file: Any) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _start(arguments: dict[str, Any], section: ActorSection) -> Any:
    """vLLM's engine. Raises UserError if vLLM refuses, EngineDisturbed if a process beside it may be in the way."""
    from vllm import EngineArgs, LLMEngine

    try:
        config = EngineArgs(**arguments).create_engine_config()
        newer = config.use_v2_model_runner
        config.model_config.logits_processors = [
            f"actors.worker_extension:{'NewRunnersMask' if newer else 'OldRunnersMask'}"
        ]
        return LLMEngine.from_vllm_config(config, disable_log_stats=True)
    except (AssertionError, ValueError, RuntimeError) as error:
        # RuntimeError: what went wrong in a process of a model that is spread over GPUs.
        if any(sign in str(error) for sign in _SIGNS_OF_OTHERS):
            raise EngineDisturbed(
                "actor.gpu_memory_utilization",
                section.gpu_memory_utilization,
                f"vLLM finds no such memory on the GPU ({error})",
                "end what else runs there, or choose another share",
            ) from error
        if not isinstance(error, ValueError):
            raise
        raise UserError(
            "model.name", arguments["model"], f"vLLM can't serve it: {error}", "see actor.* settings"
        ) from error


def _set_environment(section: ActorSection) -> None:
    """vLLM reads these when it is imported."""
    # In this process: an actor already is a process of its own, and scoring hooks into the model runner.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # Standard output is for results; what matters of vLLM's warnings is checked and said by us.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if not section.num_gpus:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(section.kv_cache_gib))
        # Bound threads would fight the learner for the same cores.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        # What vLLM compiles ahead of time for a CPU it can't load again ("'function' object has no attribute
        # 'finalize_loading'") and makes anew at each start: a minute. torch's own cache serves the next engine.
        os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")
