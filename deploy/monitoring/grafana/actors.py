"""The actors' page: all of them together, how they differ, the extremes, and one of them."""

from __future__ import annotations

from deploy.monitoring.grafana.panels import (
    BYTES,
    CORES,
    COUNT,
    PER_S,
    RUN,
    SECONDS,
    SHARE,
    VERSIONS,
    Choice,
    Dashboard,
    Row,
    lines,
    number,
    ranking,
    table,
)

RATE = "run_process:amortis_actor_samples:rate1m"
BLOCKED = "run_process:amortis_actor_blocked:share5m"
PROCESSES = '{job="amortis", part="actor", run="$run"}'
LAG = "run_process:amortis_actor_adapter_lag:versions"


def spread(series: str) -> tuple[tuple[str, str], ...]:
    """Five quantiles over actors, of any number of them."""
    names = ((0, "lowest"), (0.1, "10%"), (0.5, "median"), (0.9, "90%"), (1, "highest"))
    return tuple((f'quantile({share}, {series}{{run="$run"}})', name) for share, name in names)


def total(metric: str, window: str = "$__rate_interval") -> str:
    """Rate of a counter over all actors."""
    return f'sum(rate({metric}{{run="$run"}}[{window}]))'


DASHBOARD = Dashboard(
    name="actors",
    title="amortis / Actors",
    description="All actors together, how they differ, the extremes, and one of them.",
    choices=(
        RUN,
        Choice("top", "How many", values=("10", "5", "20", "50")),
        Choice("actor", "Actor", query='label_values(amortis_actor_adapter_version{run="$run"}, process)'),
    ),
    rows=(
        Row(
            "All actors",
            (
                number("Alive", "Actors heard of in the last 15 s.", COUNT, 'amortis_actors_alive{run="$run"}'),
                number("Wanted", "Actors that the run asks for.", COUNT, 'amortis_actors_wanted{run="$run"}'),
                number(
                    "Samples",
                    "Trajectories sampled per second.",
                    PER_S,
                    'run:amortis_actor_samples:rate1m{run="$run"}',
                    decimals=1,
                ),
                number(
                    "Tokens sampled",
                    "Tokens sampled per second, terminators left out.",
                    PER_S,
                    'run:amortis_actor_sampled_tokens:rate1m{run="$run"}',
                    decimals=1,
                ),
                number(
                    "Held back",
                    "Mean share of time that actors wait for the learner, or for memory.",
                    SHARE,
                    'run:amortis_actor_blocked:share5m{run="$run"}',
                    low=0,
                    high=1,
                    steps=((None, "green"), (0.5, "orange"), (0.8, "red")),
                ),
                number(
                    "Furthest behind",
                    "Adapter versions that the last of the actors lags behind the learner.",
                    VERSIONS,
                    'run:amortis_actor_adapter_lag:max{run="$run"}',
                ),
                lines(
                    "Samples by source",
                    "Trajectories sampled per second: untempered, tempered, or made from seeds.",
                    PER_S,
                    (
                        'sum by (source) (rate(amortis_actor_samples_total{run="$run"}[$__rate_interval]))',
                        "{{source}}",
                    ),
                    low=0,
                    stacked=True,
                ),
                lines(
                    "Tokens",
                    "Tokens sampled, and tokens that the reference read to score, per second.",
                    PER_S,
                    ('run:amortis_actor_sampled_tokens:rate1m{run="$run"}', "sampled"),
                    ('run:amortis_actor_scored_tokens:rate1m{run="$run"}', "scored"),
                    low=0,
                ),
                lines(
                    "Scoring",
                    "Texts scored by the reference per second, and trajectories whose score was known already.",
                    PER_S,
                    (total("amortis_actor_scored_texts_total"), "texts scored"),
                    (total("amortis_actor_score_cache_hits_total"), "known already"),
                    low=0,
                ),
                lines(
                    "Pushes",
                    "Trajectories per second that the buffer took, refused, or that were set aside as malformed.",
                    PER_S,
                    ('run:amortis_actor_pushed_trajectories:rate1m{run="$run"}', "pushed"),
                    (total("amortis_actor_refused_trajectories_total"), "refused"),
                    (total("amortis_actor_quarantined_trajectories_total"), "malformed"),
                    low=0,
                ),
                lines(
                    "Time to push",
                    "Time to push one batch into Redis, over all actors.",
                    SECONDS,
                    ('run:amortis_actor_push_seconds:p50_5m{run="$run"}', "median"),
                    ('run:amortis_actor_push_seconds:p95_5m{run="$run"}', "95%"),
                    low=0,
                ),
                lines(
                    "From publication to use",
                    "Time from an adapter's publication to its first use by an actor, over all actors.",
                    SECONDS,
                    ('run:amortis_actor_sync_latency_seconds:p50_5m{run="$run"}', "median"),
                    ('run:amortis_actor_sync_latency_seconds:p95_5m{run="$run"}', "95%"),
                    low=0,
                ),
                lines(
                    "Tool calls",
                    "Calls of the task's tool per second, by outcome; 0 for tasks without one.",
                    PER_S,
                    (
                        'sum by (outcome) (rate(amortis_actor_tool_calls_total{run="$run"}[$__rate_interval]))',
                        "{{outcome}}",
                    ),
                    low=0,
                    stacked=True,
                ),
                lines(
                    "Own reward",
                    "Texts per second that the task's own reward function was asked about, by outcome; 0 without one.",
                    PER_S,
                    (
                        'sum by (outcome) (rate(amortis_actor_reward_texts_total{run="$run"}[$__rate_interval]))',
                        "{{outcome}}",
                    ),
                    low=0,
                    stacked=True,
                ),
                lines(
                    "Failed adapter loads",
                    "Adapter versions that could not be loaded, over all actors, within 5 minutes.",
                    COUNT,
                    ('sum(increase(amortis_actor_adapter_load_failures_total{run="$run"}[5m]))', "failures"),
                    low=0,
                ),
                table(
                    "Adapter versions in use",
                    "How many actors sample with which adapter version.",
                    COUNT,
                    'sort_desc(count_values("version", amortis_actor_adapter_version{run="$run"}))',
                ),
            ),
        ),
        Row(
            "How actors differ",
            (
                lines("Samples an actor", "Trajectories sampled per second and actor.", PER_S, *spread(RATE), low=0),
                lines(
                    "Held back",
                    "Share of time that an actor waits for the learner, or for memory.",
                    SHARE,
                    *spread(BLOCKED),
                    low=0,
                    high=1,
                ),
                lines(
                    "Behind", "Adapter versions that an actor lags behind the learner.", VERSIONS, *spread(LAG), low=0
                ),
                lines(
                    "Requests in flight",
                    "Sampling and scoring requests in an actor's engine.",
                    COUNT,
                    *spread("amortis_actor_requests_in_flight"),
                    low=0,
                ),
            ),
        ),
        Row(
            "The extremes",
            (
                ranking(
                    "Slowest",
                    "Actors that sample least, in trajectories per second.",
                    PER_S,
                    f'bottomk($top, {RATE}{{run="$run"}})',
                    "{{process}}",
                ),
                ranking(
                    "Most held back",
                    "Actors that wait most, as a share of time.",
                    SHARE,
                    f'topk($top, {BLOCKED}{{run="$run"}})',
                    "{{process}}",
                    low=0,
                    high=1,
                ),
                ranking(
                    "Furthest behind",
                    "Actors with the oldest adapter.",
                    VERSIONS,
                    f'topk($top, {LAG}{{run="$run"}})',
                    "{{process}}",
                ),
                ranking(
                    "Most memory",
                    "Actors with the largest resident memory.",
                    BYTES,
                    f"topk($top, process_resident_memory_bytes{PROCESSES})",
                    "{{process}} {{instance}}",
                ),
                ranking(
                    "Most processor time",
                    "Actors that use most cores.",
                    CORES,
                    f"topk($top, rate(process_cpu_seconds_total{PROCESSES}[$__rate_interval]))",
                    "{{process}} {{instance}}",
                    decimals=2,
                ),
                ranking(
                    "Youngest",
                    "Actors whose process was started last; one that dies again and again stays here.",
                    SECONDS,
                    f"bottomk($top, time() - process_start_time_seconds{PROCESSES})",
                    "{{process}} {{instance}}",
                ),
            ),
        ),
        Row(
            "One actor",
            (
                lines(
                    "Samples of $actor",
                    "Trajectories that this actor samples per second.",
                    PER_S,
                    (f'{RATE}{{run="$run", process="$actor"}}', "samples"),
                    low=0,
                ),
                lines(
                    "Adapter of $actor",
                    "Adapter version that this actor's new requests use, and the newest.",
                    COUNT,
                    ('amortis_actor_adapter_version{run="$run", process="$actor"}', "in use"),
                    ('amortis_learner_adapter_version{run="$run"}', "newest"),
                    decimals=0,
                ),
                lines(
                    "$actor held back",
                    "Share of time that this actor waits for the learner, or for memory.",
                    SHARE,
                    (f'{BLOCKED}{{run="$run", process="$actor"}}', "held back"),
                    low=0,
                    high=1,
                ),
            ),
        ),
    ),
)
