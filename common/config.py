"""Every setting of a run: one pydantic model a part, and the root that holds them.

A part of the system reads its own section and the shared ones (`model`, `redis`, `task`). How the values come
together from file, environment and command line is in `common/config_loading.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_serializer, field_validator, model_validator

from common.errors import UserError
from common.held_out import Part
from common.places import Kind, Place
from common.reward import RewardWeights, TemperatureSchedule
from common.stop_rule import StopRule
from common.tasks import AnyTaskConfig, task_class
from common.tasks.base import SamplingTemperature
from common.templates import places

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Objective = Literal[
    "subtb",
    "tb",
    "vargrad",
    "db",
    "raptb",
    "alpha_dpg",
    "flowrl",
    "sft",
    "rloo",
    "grpo",
    "prompting",
    "rejection",
    "mcmc",
    "smc",
]
FORWARD_LOOKING: tuple[Objective, ...] = ("subtb", "db", "raptb")
"""Objectives that need log R at every decision state, and not at the last alone."""
POSTERIOR_DRAWS: tuple[Objective, ...] = ("rejection", "mcmc", "smc")
"""What draws from the posterior itself in place of training a sampler of it."""
WITHOUT_TRAINING: tuple[Objective, ...] = ("prompting", *POSTERIOR_DRAWS)
WITHIN_QUERIES: tuple[Objective, ...] = ("vargrad", "alpha_dpg", "rloo", "grpo")
"""Objectives that compare a query's trajectories with each other, and learn nothing of one alone."""
Share = Annotated[float, Field(ge=0, le=1)]
LONG_RUN_STEPS = 500
"""Steps from which on a GPU's engine earns its compilation back: 50 s the first time, to sample 2.3 times as fast."""
SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""LoRA ranks that vLLM can be set up for (its `max_lora_rank`)."""


class Section(BaseModel):
    """A part's settings; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


class RunSection(Section):
    """Where a run keeps what it makes."""

    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the run's folder; task and time without it"
    )
    folder: Path = Field(Path("runs"), description="where the folders of runs are kept")
    redis_name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="what the run's keys in Redis are named by; its name without it",
    )
    seed: int = Field(0, ge=0, description="of the learner's batches and, with an offset each, of the actors")
    overwrite: bool = Field(False, description="delete an existing run of this name first")
    evaluate_base: bool = Field(True, description="evaluate the untrained model too, by samples and exactly")
    evaluate_samples: bool = Field(
        True, description="draw samples for the evaluation when training is done; evaluation.every is of those before"
    )
    evaluate_training: int = Field(
        0,
        ge=0,
        description="training queries, spread evenly, that the trained sampler is evaluated on as well: where these "
        "figures, `training`, are good and the test's aren't, it has learned and doesn't generalise",
    )
    resume: bool = Field(False, description="go on from the last checkpoint of an existing run of this name")


class LoraSection(Section):
    """The adapter that is trained."""

    rank: int = Field(16, ge=1, le=512, description="16 reaches the exact posterior on the enumerable tasks")
    alpha: float = Field(16.0, gt=0, description="scale of the adapter is alpha / rank")
    target_modules: list[str] = Field(
        ["q_proj", "v_proj"],
        min_length=1,
        description="modules that get an adapter; these two are enough on the enumerable tasks, and sampling through "
        "them is twice as fast. On arithmetic all linear ones, of rank 64, had twice the accuracy (docs/results.md)",
    )

    start_from: Path | None = Field(
        None, description="PEFT adapter folder to start from, of the same rank and modules; a fresh one without it"
    )

    @property
    def served_rank(self) -> int:
        """The smallest rank that vLLM can be set up for and that holds this one."""
        return next(rank for rank in SERVED_RANKS if rank >= self.rank)


class ModelSection(Section):
    """The base model, frozen: the policy's starting point and the reward's source."""

    name: Annotated[str | None, Place(Kind.MODEL)] = Field(
        None, description="local folder or Hugging Face id; without it SmolLM2-135M-Instruct, made by `make setup`"
    )
    add_bos_token: bool | None = Field(
        None, description="whether BOS opens every prompt; without it as the model's tokenizer does by itself"
    )
    lora: LoraSection = LoraSection()


class RedisSection(Section):
    """The shared state."""

    url: SecretStr | None = Field(
        None,
        description="redis://…, rediss://… for TLS, any node of a Redis Cluster, redis+sentinel://HOST:PORT,…/NAME; "
        "without it a redis-server is started for the run and stopped with it",
    )
    timeout_s: float = Field(5.0, gt=0, description="limit of one connection attempt or one command")
    retries: int = Field(
        12,
        ge=0,
        description="attempts after a lost connection, with exponential back-off up to 2 s; 12 take about 17 s",
    )
    min_replicas: int = Field(
        0,
        ge=0,
        description="replicas that must have a push before it is acknowledged; 1 or more loses none in a fail-over",
    )
    appendfsync: Literal["everysec", "always", "no"] = Field(
        "everysec", description="when the redis-server started for the run writes its log to disk"
    )

    @field_serializer("url")
    def _hide(self, url: SecretStr | None) -> str | None:
        # A URL may hold a password: it is passed on by environment, never written.
        return None if url is None else "**********"


class BufferSection(Section):
    """The replay buffer."""

    capacity: int = Field(100_000, ge=1, description="trajectories in all")
    capacity_per_query: int = Field(
        2_000, ge=1, description="trajectories of one query; several times what one step takes from it"
    )
    max_bytes: int = Field(
        4 * 2**30,
        ge=1_024,
        description="memory of all trajectories, estimated; what comes on top evicts, a single larger one is refused",
    )
    evict: Literal["lowest_reward", "oldest", "stalest"] = Field(
        "lowest_reward",
        description="what leaves a full buffer; lowest_reward: as in the paper, but none of the query's newer half, as "
        "what is sampled must be trained on however bad it is; stalest: the lowest adapter version",
    )
    shards: int = Field(
        1,
        ge=1,
        le=1_024,
        description="parts that queries are spread over; on a Redis Cluster several times its masters. Each has its "
        "share of the capacity",
    )
    query_selection: Literal["uniform", "loss", "least_recently_trained"] = Field(
        "uniform", description="loss: ∝ exp(mean balance residual in nats / query_temperature)"
    )
    query_temperature: float = Field(1.0, gt=0, description="flattens (above 1) or sharpens the selection by loss")
    fresh: Share = Field(0.5, description="share of a query's sample that is its newest; the rest is replayed")
    replay_priority: Literal["reward", "loss", "uniform"] = Field(
        "reward",
        description="reward: replay ∝ exp(log R / replay_temperature); loss: ∝ exp(balance residual in nats / "
        "replay_temperature)",
    )
    replay_choice: Literal["drawn", "submodular"] = Field(
        "drawn",
        description="drawn: as replay_priority says; submodular: of four times as many drawn so, those that together "
        "have most reward, are least alike and of most lengths, against replay that narrows",
    )
    replay_temperature: float = Field(1.0, gt=0, description="flattens (above 1) or sharpens the replay")
    replacement: bool = Field(False, description="replay draws one trajectory more than once")
    max_staleness: int | None = Field(
        None,
        ge=0,
        description="trajectories that lag further behind, in adapter versions, are taken out; seeds never. Without it "
        "any age is used, as off-policy objectives allow",
    )
    near_duplicate_tolerance: float | None = Field(
        None,
        ge=0,
        lt=0.5,
        description="of two trajectories whose edit distance is below this share of their summed lengths the better "
        "stays; 0 keeps all; the task's own without it",
    )
    min_size: int = Field(64, ge=1, description="training starts when the buffer got so many trajectories")
    samples_per_insert: float = Field(
        2.5, ge=0, description="how often a trajectory is trained on, on average, relative to what actors push"
    )
    samples_per_insert_band: float = Field(
        1.5, ge=0, description="the learner waits above samples_per_insert + band, actors wait below it − band"
    )

    @model_validator(mode="after")
    def _rate(self) -> Self:
        if self.samples_per_insert + self.samples_per_insert_band < 1:
            raise ValueError(
                "samples_per_insert + samples_per_insert_band is below 1: actors and learner would wait for each other"
            )
        if self.shards > self.capacity:
            raise ValueError(f"shards {self.shards} is above capacity {self.capacity}")
        return self


class SeedSection(Section):
    """Rationales to start the buffer with, scored by actors like any other."""

    file: Path | None = Field(
        None, description='JSON Lines with "rationale" and, where there are several queries, "prompt" (and "target")'
    )
    hint: str | None = Field(
        None,
        description="prompt that reveals the answer, under which the base model writes rationales; {prompt}, {target} "
        "and what the task says of a row (subjectivity: {label}, arithmetic: {answer}) are filled in; {{ and }} "
        "stand for braces",
    )
    samples_per_query: int = Field(20, ge=1, description="rationales drawn under the hint for each query")
    data: bool = Field(False, description="use the rationales that the task's training rows hold")

    @model_validator(mode="after")
    def _hint_has_the_prompt(self) -> Self:
        if self.hint is not None and "prompt" not in places(self.hint):
            raise ValueError("hint holds no {prompt}, so it would be the same for every query")
        return self


class ActorSection(Section):
    """Sampling and scoring."""

    count: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        1,
        description="Ray actors, one vLLM engine each; auto: one per GPU, or per num_cpus cores without GPUs, on all "
        "nodes of the cluster, following it as it grows and shrinks",
    )
    num_cpus: float = Field(1, ge=0, description="cores that Ray reserves for an actor, and its threads")
    num_gpus: float | None = Field(
        None, ge=0, description="GPUs an actor; without it tensor_parallel_size where there are any, else 0"
    )
    tensor_parallel_size: int = Field(
        1,
        ge=1,
        description="GPUs, all on one node, that an actor's model is spread over; without GPUs, processes. For models "
        "that one GPU can't hold",
    )
    dtype: Dtype = Field("auto", description="auto: float32 on a CPU, bfloat16 on a GPU")
    samples_per_query: int = Field(8, ge=1, description="samples of one query under one temperature, drawn together")
    max_in_flight: int = Field(64, ge=1, description="sampling and scoring requests in the engine at once")
    tempered_share: Share = Field(0.5, description="share of queries sampled at a random temperature, for exploration")
    temperature_low: SamplingTemperature = Field(0.5, description="lower end of the random temperature")
    temperature_high: SamplingTemperature = Field(2.0, description="upper end of the random temperature")
    max_ahead: float = Field(
        2.0,
        gt=0,
        description="sync periods' worth of trajectories that actors may push beyond what buffer.samples_per_insert "
        "allows, so that they need not wait for single steps",
    )
    max_model_len: int = Field(512, ge=8, description="longest prompt + rationale + target, in tokens")
    kv_cache_gib: int = Field(1, ge=1, description="KV cache on a CPU; a GPU uses gpu_memory_utilization")
    gpu_memory_utilization: float = Field(0.45, gt=0, le=1, description="leaves room for a learner on the same GPU")
    enforce_eager: bool | Literal["auto"] = Field(
        "auto",
        description="no compilation: slower sampling, quicker start. auto: compiles on a CPU; on a GPU in runs of "
        f"{LONG_RUN_STEPS} steps or more, or where vLLM's cache holds the compiled model",
    )
    adapters: Literal["auto", "merged", "lora"] = Field(
        "auto",
        description="how the engine samples through them: merged into its weights, a version at a time, which is "
        "quicker; or by vLLM's LoRA, several side by side. auto: merged in float32 in one process, where trees "
        "score (reference.scorer) and the adapted layers are known ones",
    )
    score_cache: int = Field(100_000, ge=0, description="scored texts kept, as the reference never changes")
    push_every_s: float = Field(0.25, gt=0, description="longest time a scored trajectory waits for its batch")

    @model_validator(mode="after")
    def _countable(self) -> Self:
        if self.count == "auto" and not self.num_cpus and not self.num_gpus:
            raise ValueError("count: auto needs num_cpus or num_gpus above 0 to count by")
        return self

    @model_validator(mode="after")
    def _whole_gpus(self) -> Self:
        size, gpus = self.tensor_parallel_size, self.num_gpus
        if size > 1 and gpus and (gpus < size or gpus != int(gpus)):
            raise ValueError(
                f"num_gpus = {gpus:g} can't hold tensor_parallel_size = {size}: leave it out, or give {size}"
            )
        return self

    @property
    def least_count(self) -> int:
        """Actors that there are at least."""
        return 1 if self.count == "auto" else self.count

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.temperature_low > self.temperature_high:
            raise ValueError(f"temperature_low is above temperature_high = {self.temperature_high}")
        return self


class ReferenceSection(Section):
    """The frozen model that gives the reward."""

    dtype: Dtype = Field(
        "auto",
        description="auto: float32 wherever the model fits beside the sampling engine, by the launcher's GPU, else as "
        "the actor's. bfloat16 moves log R by 0.2 nats a sequence",
    )
    scorer: Literal["auto", "trees", "vllm"] = Field(
        "auto",
        description="what reads the texts: trees, a copy of the model beside the sampling engine, many texts a pass, "
        "their common beginnings once, which is some times as quick where there are targets; or vllm, the sampling "
        "engine itself, of one precision for both. auto: trees where the copy fits, with an engine of one process",
    )
    adapter: Path | None = Field(
        None, description="PEFT adapter folder that the reward's model is scored through, e.g. an M step's"
    )


class RewardSection(Section):
    """How the stored reward components become log R; the buffer stays valid when this changes."""

    prior_weight: float | None = Field(None, ge=0, description="weight of log p(Z⊤|X); the task's own without it")
    likelihood_weight: float | None = Field(None, ge=0, description="weight of log p(Y|XZ⊤); the task's own without it")
    temperature: TemperatureSchedule = TemperatureSchedule.model_validate({})
    every: int = Field(
        1,
        ge=1,
        description="subtb and db: actors score the target, and a reward of your own, at every so many states and at "
        "the last, and the balance leaves the others out: less to score, and as exact in the end",
    )


class LearnerSection(Section):
    """Training."""

    objective: Objective = Field(
        "subtb",
        description="subtb is the paper's; tb, vargrad and db are the other GFlowNet objectives. For comparison: raptb "
        "(tb with prefixes that absorb what follows, not exact), alpha_dpg (policy gradient of a divergence to the "
        "posterior), flowrl (a balance divided by the length: another target), sft (maximum likelihood on the seeds), "
        "rloo and grpo (reward maximisation with a KL term), prompting (nothing is "
        "trained, the base model is evaluated), and rejection, mcmc and smc (nothing is trained, the evaluation's "
        "samples are drawn from the posterior itself, as the section inference says)",
    )
    subtb_lambda: float = Field(1.0, ge=0, le=1, description="weight of a sub-trajectory falls as this per action")
    kl_coef: float = Field(
        0.05,
        ge=0,
        description="rloo and grpo: weight of KL(policy ‖ reference) against the reward, which is log R without the "
        "prior; at 1 their optimum is the posterior, at 0 they collapse to the best rationale",
    )
    alpha: float = Field(
        0.5,
        ge=0,
        le=1,
        description="alpha_dpg: which divergence to the posterior p falls, from KL(policy ‖ p) at 0, which seeks one "
        "mode, to KL(p ‖ policy) at 1, which covers all",
    )
    importance_sampling_cap: float = Field(
        2.0,
        gt=0,
        description="rloo and alpha_dpg: a trajectory counts by the policy's probability over that by which it was "
        "sampled, so many times at most; one that nobody sampled, as a seed, counts once",
    )
    raptb_weight: float = Field(
        0.25, ge=0, description="raptb: weight of the prefixes' balance against the whole trajectory's"
    )
    sft_prompt: Literal["policy", "reference"] = Field(
        "policy", description="sft: the prompt that the text follows, where the reference reads another than the policy"
    )
    clip_ratio: float = Field(0.2, gt=0, description="grpo: how far a token's probability may move from its sampler's")
    normalize: Literal["pairs", "trajectory"] = Field(
        "pairs", description="subtb's mean is over all pairs of states (the paper's), or over trajectories"
    )
    residual: Literal["square", "huber", "linex", "shifted_cosh"] = Field(
        "square",
        description="what a GFlowNet objective makes of the gap between target and policy, in nats: its square (the "
        "paper's); huber, linear from 1 nat on; linex, which minds most what the policy misses; shifted_cosh, which "
        "grows as e^|gap|",
    )
    steps: int = Field(200, ge=1, description="optimiser steps")
    stop_when: str | None = Field(
        None,
        description="end before the last step when this holds, e.g. ess >= 0.5 for 3 diagnoses: FIGURE (>=, <=, > or "
        "<) NUMBER [for N diagnoses]. Figures are a diagnosis' (ess, pareto_k, log_z_se, …; needs diagnose.every) or "
        "eval/NAME (needs evaluation.every)",
    )
    queries_per_step: int = Field(4, ge=1, description="queries in a batch, at most those that the buffer holds")
    trajectories_per_query: int = Field(
        8, ge=1, description="trajectories of each; an objective that compares them, as vargrad, needs 2 or more"
    )
    lr: float = Field(1e-3, gt=0, description="AdamW's learning rate after warm-up")
    warmup_steps: int = Field(10, ge=0, description="steps over which the learning rate rises from 0")
    lr_schedule: Literal["constant", "linear"] = Field("constant", description="after warm-up; linear falls to 0")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's; 0, as the target is a fixed distribution")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    log_z_lr: float = Field(
        0.1,
        gt=0,
        description="learning rate of the log Z that tb, raptb and flowrl learn, which must move by many nats",
    )
    sync_every: int = Field(5, ge=1, description="steps between published adapters")
    keep_adapters: int = Field(4, ge=2, description="published versions kept for actors that lag")
    checkpoint_every: int = Field(50, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="checkpoints kept")
    evaluate_every: int = Field(
        0,
        ge=0,
        description="steps between exact evaluations by the learner, where a task has one; 0: ends only. With "
        "evaluation.every or diagnose.every they are made for those adapters as well",
    )
    max_wait_s: float = Field(
        300.0,
        gt=0,
        description="a longer wait for trajectories ends the run with the cause; thrice as long while engines start",
    )
    max_sampler_gap: float | None = Field(
        None,
        gt=0,
        description="mean |sampler's − learner's log-prob| a token, in nats, on 256 tokens, that stops the run; "
        "without it 0.001 in float32, 0.02 in float16, 0.15 in bfloat16",
    )
    dtype: Dtype = Field("auto", description="auto: float32")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one")
    num_processes: int = Field(
        1,
        ge=1,
        description="processes that share out the trajectories of a batch, on one machine, each with a GPU of its own "
        "where the device is cuda; the loss is that of one process",
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads of all its processes; without it the cores that the actors leave, in an M step all",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="compute each layer once more in the backward pass instead of keeping what it computed: a fraction "
        "of the memory, a third more time; on a GPU without CUDA graphs",
    )
    reward: RewardSection = RewardSection()

    @property
    def stop_rule(self) -> StopRule | None:
        """`stop_when`, read."""
        return None if self.stop_when is None else StopRule.parse(self.stop_when)

    @field_validator("stop_when")
    @classmethod
    def _is_a_rule(cls, text: str | None) -> str | None:
        return None if text is None else StopRule.parse(text).text

    @model_validator(mode="after")
    def _enough_to_compare(self) -> Self:
        if self.objective in WITHIN_QUERIES and self.trajectories_per_query < 2:
            raise ValueError(
                f"objective {self.objective} compares trajectories of one query: trajectories_per_query must be 2 or "
                "more"
            )
        return self

    @model_validator(mode="after")
    def _enough_to_share(self) -> Self:
        batch = self.queries_per_step * self.trajectories_per_query
        if self.num_processes > batch:
            raise ValueError(
                f"num_processes is above the {batch} trajectories of a batch: some would have nothing to do"
            )
        return self


class EMSection(Section):
    """Expectation maximisation: the sampler is the E step, fine-tuning the reward's model on its samples the M step."""

    iterations: int = Field(0, ge=0, description="pairs of an E and an M step; 0: none, a plain run")
    samples_per_query: int = Field(16, ge=1, description="rationales of each training query for an M step")
    m_steps: int = Field(100, ge=1, description="optimiser steps of an M step, the paper's")
    m_lr: float = Field(1e-4, gt=0, description="their learning rate, the paper's")


class EvaluationSection(Section):
    """Figures of samples on held-out queries while a run trains, and the adapter that was best by one of them."""

    every: int | None = Field(
        None,
        ge=0,
        description="learner steps between evaluations by samples, through an actor: of the untrained adapter, then of "
        "the first adapter published at or after each multiple, and of the last one. None without it or with 0, as it "
        "takes actors' time and a short run has its figures at the end. (learner.evaluate_every is of exact figures, "
        "which the learner computes where a task has them)",
    )
    share: float = Field(
        0.1,
        gt=0,
        le=1,
        description="bound of an actor's time, and where adapters share a batch of its requests at once, that "
        "evaluation may take, and diagnosis with diagnose.every: both together",
    )
    queries: int = Field(
        32, ge=1, description="held-out queries at most, spread evenly over the task's; a small set that stays the same"
    )
    samples: int = Field(
        4,
        ge=2,
        description="samples of each, 2 or more as diversity is of pairs; with 32 queries a mean's standard error is "
        "about a tenth of the spread",
    )
    metric: str | None = Field(
        None,
        description="figure that says which adapter is best; without it the first of the task's main figures that "
        "samples give, else mean_log_reward; log_z_bound is the one that is best for the posterior itself",
    )
    mode: Literal["auto", "max", "min"] = Field(
        "auto",
        description="which way the metric is better; auto: min for total_variation and for names that end in loss, "
        "error, distance, perplexity or penalty, else max",
    )


class InferenceSection(Section):
    """Draws of the posterior without training: the objectives rejection, mcmc and smc, and what a diagnosis is held
    against."""

    enumerate_limit: int = Field(
        10_000, ge=1, description="rationales up to which a posterior is enumerated; each is scored once a query"
    )
    max_proposals: int = Field(
        4_096, ge=1, description="rejection: draws of the base model for a query, at most, wherever they lead"
    )
    constraint_bound: float | None = Field(
        None,
        description="rejection: what the constraint and a reward of your own add to log R at most, in nats; without it "
        "what the task itself knows, which of your own reward is nothing",
    )
    chains: int = Field(4, ge=2, description="mcmc: chains of a query; R̂ is of several, four are the usual number")
    mcmc_steps: int = Field(
        1_000, ge=8, description="mcmc: steps of each chain, the first half of which is warm-up and is left out"
    )
    proposals: Literal["base", "sampler"] = Field(
        "base",
        description="mcmc: what writes a rationale anew from some place on: the base model, or the sampler that is "
        "diagnosed, by which chains move more where it is good and stay blind where it is",
    )
    particles: int = Field(64, ge=2, description="smc: rationales of a query that grow side by side")
    smc_block: int = Field(
        4, ge=1, description="smc: tokens that they grow by before they are weighed, which reads each text anew"
    )


class DiagnoseSection(Section):
    """How far the sampler is from the posterior: draws of a few held-out queries, weighted by R/q, and a verdict."""

    final: bool = Field(
        True,
        description="diagnose the trained sampler at the end of a run, with the engine of its evaluation; without "
        "run.evaluate_samples there is none. Where reference.dtype is not float32 this also measures what that does to "
        "log R",
    )
    every: int = Field(0, ge=0, description="learner steps between diagnoses while it trains; 0: none")
    queries: int = Field(
        4, ge=1, description="queries at most, spread evenly over the held-out ones; the worst of them is the verdict"
    )
    samples: int = Field(
        256,
        ge=25,
        description="draws of each; of fewer than 25 weights Pareto k̂ can't be read, by which they are judged",
    )


class MetricsSection(Section):
    """Prometheus."""

    enabled: bool = Field(True, description="serve metrics over HTTP from every process")
    host: str = Field("127.0.0.1", description="address that the endpoints listen on; 0.0.0.0 for a cluster")
    port: int = Field(
        0,
        ge=0,
        le=65_000,
        description="the launcher's; the learner has the next one, the actors those after. 0: free ones, see the logs",
    )


class TrackingSection(Section):
    """Where a run's figures go besides Prometheus and metrics.jsonl."""

    tensorboard: bool = Field(False, description="event files in the run's folder; needs the package tensorboard")
    wandb: Literal["online", "offline"] | None = Field(
        None, description="Weights & Biases; offline writes into the run's folder. Needs the package wandb"
    )
    project: str = Field("amortis", min_length=1, description="project of Weights & Biases")


class RaySection(Section):
    """Where actors are placed."""

    address: str | None = Field(None, description="an existing cluster; without it one is started for the run")


class RunConfig(Section):
    """All settings of a run."""

    task: AnyTaskConfig
    run: RunSection = RunSection.model_validate({})
    model: ModelSection = ModelSection.model_validate({})
    actor: ActorSection = ActorSection.model_validate({})
    reference: ReferenceSection = ReferenceSection.model_validate({})
    learner: LearnerSection = LearnerSection.model_validate({})
    buffer: BufferSection = BufferSection.model_validate({})
    seeds: SeedSection = SeedSection.model_validate({})
    em: EMSection = EMSection.model_validate({})
    evaluation: EvaluationSection = EvaluationSection.model_validate({})
    inference: InferenceSection = InferenceSection.model_validate({})
    diagnose: DiagnoseSection = DiagnoseSection.model_validate({})
    redis: RedisSection = RedisSection.model_validate({})
    ray: RaySection = RaySection.model_validate({})
    metrics: MetricsSection = MetricsSection.model_validate({})
    tracking: TrackingSection = TrackingSection.model_validate({})

    @model_validator(mode="after")
    def _em_has_an_e_step(self) -> Self:
        if self.em.iterations and self.learner.objective in ("sft", *WITHOUT_TRAINING):
            raise ValueError(f"em.iterations needs a sampler to train: learner.objective is {self.learner.objective}")
        return self

    @model_validator(mode="after")
    def _can_stop(self) -> Self:
        rule, text = self.learner.stop_rule, self.learner.stop_when
        if rule is None:
            return self
        setting = "evaluation.every" if rule.part is Part.EVALUATION else "diagnose.every"
        every = (self.evaluation.every if rule.part is Part.EVALUATION else self.diagnose.every) or 0
        if not every:
            raise UserError(
                "learner.stop_when", text, f"nothing gives {rule.figure} while it trains", f"set {setting}, e.g. to 50"
            )
        # The untrained adapter's is one of them, the last adapter's comes too late.
        most = -(-self.learner.steps // every)
        if rule.times > most:
            raise UserError(
                "learner.stop_when",
                text,
                f"learner.steps {self.learner.steps} and {setting} {every} leave {most} {rule.unit} before the last",
                f"lower {setting}, or ask for fewer",
            )
        return self

    @model_validator(mode="after")
    def _sft_has_data(self) -> Self:
        seeds = self.seeds
        if self.learner.objective == "sft" and not (seeds.data or seeds.file or seeds.hint):
            raise ValueError("learner.objective sft trains on seeds: set seeds.data, seeds.file or seeds.hint")
        return self

    @property
    def looks(self) -> Part:
        """What is drawn of held-out queries while it trains."""
        evaluation = Part.EVALUATION if self.evaluation.every else Part(0)
        return evaluation | (Part.DIAGNOSIS if self.diagnose.every else Part(0))

    @property
    def reward_weights(self) -> RewardWeights:
        """The configured weights, the task's own where none is configured."""
        own, reward = task_class(self.task).default_weights, self.learner.reward
        return RewardWeights(
            prior=own.prior if reward.prior_weight is None else reward.prior_weight,
            likelihood=own.likelihood if reward.likelihood_weight is None else reward.likelihood_weight,
        )

    def reward_at(self, step: int) -> list[float]:
        """Weights of the prior and the likelihood, and the temperature: what makes log R of stored components at a
        step. Figures of one reward say nothing of another."""
        weights = self.reward_weights
        return [weights.prior, weights.likelihood, self.learner.reward.temperature.at(step)]

    @property
    def final_reward(self) -> list[float]:
        """`reward_at` the end of training: by which samplers are judged."""
        return self.reward_at(self.learner.steps)

    def is_of_final_reward(self, row: Mapping[str, Any]) -> bool:
        """Whether a look's line in metrics.jsonl is of this reward; one from before it was kept there is."""
        return row.get("reward") in (None, self.final_reward)

    @property
    def final_temperature(self) -> float:
        """What log R is divided by at the end of training: of the posterior that is learned."""
        return self.learner.reward.temperature.at(self.learner.steps)

    @property
    def near_duplicate_tolerance(self) -> float:
        """The configured tolerance, the task's own where none is configured."""
        configured = self.buffer.near_duplicate_tolerance
        return task_class(self.task).near_duplicate_tolerance if configured is None else configured

    @property
    def trajectories_per_step(self) -> int:
        """Trajectories in a full batch."""
        return self.learner.queries_per_step * self.learner.trajectories_per_query

    @property
    def redis_name(self) -> str:
        """What the run's keys in Redis are named by; the name must be set by then."""
        found = self.run.redis_name or self.run.name
        if found is None:
            raise ValueError("run.name is not set yet")
        return found

    @property
    def run_folder(self) -> Path:
        """runs/NAME; the name must be set by then."""
        if self.run.name is None:
            raise ValueError("run.name is not set yet")
        return self.run.folder / self.run.name
