"""The page that Grafana opens on: does it learn, how fast, and what holds it back."""

from __future__ import annotations

from deploy.monitoring.grafana.panels import (
    BYTES,
    COUNT,
    NATS,
    PER_S,
    PLAIN,
    SHARE,
    SQUARED_NATS,
    VERSIONS,
    Dashboard,
    Row,
    lines,
    number,
)

BOTTLENECK = number(
    "Bottleneck",
    "Share of time that the learner waits, less the mean share that actors are held back. Above 0.2 the learner lacks "
    "samples: add actors. Below −0.2 the actors are ahead: give the learner more, or take actors away.",
    PLAIN,
    'run:amortis_bottleneck:balance5m{run="$run"}',
    decimals=2,
    steps=((None, "blue"), (-0.2, "green"), (0.2, "orange")),
    ranges=(
        (-1.0, -0.2, "learner", "blue"),
        (-0.2, 0.2, "balanced", "green"),
        (0.2, 1.0, "actors", "orange"),
    ),
)

DASHBOARD = Dashboard(
    name="overview",
    title="amortis / Overview",
    description="Does it learn, how fast, and what holds it back.",
    rows=(
        Row(
            "Now",
            (
                BOTTLENECK,
                number(
                    "Steps",
                    "Optimiser steps done.",
                    COUNT,
                    'max by (run) (amortis_learner_step{run="$run"})',
                    decimals=0,
                ),
                number(
                    "Actors alive",
                    "Actors that the launcher heard of in the last 15 s, of those asked for.",
                    SHARE,
                    'max by (run) (amortis_actors_alive{run="$run"}) '
                    '/ clamp_min(max by (run) (amortis_actors_wanted{run="$run"}), 1)',
                    low=0,
                    high=1,
                    steps=((None, "red"), (0.5, "orange"), (1.0, "green")),
                ),
                number(
                    "Samples",
                    "Trajectories that all actors sample, per second, over a minute.",
                    PER_S,
                    'run:amortis_actor_samples:rate1m{run="$run"}',
                    decimals=1,
                ),
                number(
                    "Trained",
                    "Trajectories that steps use, per second, over a minute. One may be used several times.",
                    PER_S,
                    'run:amortis_learner_trained_trajectories:rate1m{run="$run"}',
                    decimals=1,
                ),
                number(
                    "Alerts firing",
                    "Alerts of this run that fire, notices left out. Their names are marked in every picture; "
                    "docs/operations.md says what to do.",
                    COUNT,
                    'count(ALERTS{alertstate="firing", severity!="info", run=~"$run|"}) or vector(0)',
                    decimals=0,
                    steps=((None, "green"), (1.0, "red")),
                ),
            ),
        ),
        Row(
            "Learning",
            (
                lines(
                    "Loss",
                    "Loss of the last step. It is 0 where the policy is the posterior.",
                    SQUARED_NATS,
                    ('amortis_learner_loss{run="$run"}', "loss"),
                ),
                lines(
                    "log R and log Z",
                    "Mean untempered log R of the last batch, and the batch-mean estimate of log Z. Both rise and "
                    "level off as the policy finds the posterior's mass.",
                    NATS,
                    ('amortis_learner_log_reward_nats{run="$run"}', "log R"),
                    ('amortis_learner_log_z_nats{run="$run"}', "log Z"),
                ),
                lines(
                    "Effective sample size",
                    "Effective sample size of the batch's importance weights R/q, over its number. 1 where the policy "
                    "is the posterior on what it samples; modes that it never samples don't show here.",
                    SHARE,
                    ('amortis_learner_effective_sample_size_ratio{run="$run"}', "last batch"),
                    ('run:amortis_learner_effective_sample_size_ratio:avg10m{run="$run"}', "mean over 10 min"),
                    low=0,
                    high=1,
                ),
            ),
        ),
        Row(
            "Flow",
            (
                lines(
                    "Trajectories",
                    "Sampled and pushed by all actors, and trained on by the learner, per second.",
                    PER_S,
                    ('run:amortis_actor_samples:rate1m{run="$run"}', "sampled"),
                    ('run:amortis_actor_pushed_trajectories:rate1m{run="$run"}', "pushed"),
                    ('run:amortis_learner_trained_trajectories:rate1m{run="$run"}', "trained"),
                    low=0,
                ),
                lines(
                    "Who waits",
                    "Share of time that the learner waits for trajectories, and mean share that actors are held back.",
                    SHARE,
                    ('run:amortis_learner_wait:share5m{run="$run"}', "learner waits"),
                    ('run:amortis_actor_blocked:share5m{run="$run"}', "actors held back"),
                    low=0,
                    high=1,
                ),
                lines(
                    "Staleness",
                    "Mean number of adapter versions that the last batch lags behind, the actor that is furthest "
                    "behind, and buffer.max_staleness where there is one.",
                    VERSIONS,
                    ('amortis_learner_staleness_versions{run="$run"}', "last batch"),
                    ('run:amortis_actor_adapter_lag:max{run="$run"}', "furthest actor"),
                    ('amortis_learner_max_staleness_versions{run="$run"} < Inf', "bound"),
                    low=0,
                ),
                lines(
                    "Buffer",
                    "Trajectories in the buffer.",
                    COUNT,
                    ('amortis_buffer_trajectories{run="$run"}', "trajectories"),
                    low=0,
                ),
                lines(
                    "Memory",
                    "Memory that Redis uses, its own limit where there is one, and memory of all processes of the run.",
                    BYTES,
                    ('amortis_redis_used_bytes{run="$run"}', "Redis"),
                    ('amortis_redis_max_bytes{run="$run"} > 0', "Redis' limit"),
                    ('sum by (part) (process_resident_memory_bytes{job="amortis", run="$run"})', "{{part}}"),
                    low=0,
                ),
                lines(
                    "Processes",
                    "Actors asked for, alive, and found by Prometheus.",
                    COUNT,
                    ('amortis_actors_wanted{run="$run"}', "wanted"),
                    ('amortis_actors_alive{run="$run"}', "alive"),
                    ('sum(up{job="amortis", part="actor", run="$run"})', "scraped"),
                    low=0,
                ),
            ),
        ),
    ),
)
