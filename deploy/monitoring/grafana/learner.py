"""The learner's page: what it learns, whether its samplers agree with it, and where its time goes."""

from __future__ import annotations

from deploy.monitoring.grafana.panels import (
    BYTES,
    CORES,
    COUNT,
    NATS,
    PER_S,
    PLAIN,
    SECONDS,
    SHARE,
    SQUARED_NATS,
    VERSIONS,
    Dashboard,
    Row,
    lines,
)

PROCESS = '{job="amortis", part="learner", run="$run"}'

DASHBOARD = Dashboard(
    name="learner",
    title="amortis / Learner",
    description="What it learns, whether its samplers agree with it, and where its time goes.",
    rows=(
        Row(
            "Learning",
            (
                lines("Loss", "Loss of the last step.", SQUARED_NATS, ('amortis_learner_loss{run="$run"}', "loss")),
                lines(
                    "log R and log Z",
                    "Mean untempered log R of the last batch, and the batch-mean estimate of log Z.",
                    NATS,
                    ('amortis_learner_log_reward_nats{run="$run"}', "log R"),
                    ('amortis_learner_log_z_nats{run="$run"}', "log Z"),
                ),
                lines(
                    "Effective sample size",
                    "Effective sample size of the batch's importance weights R/q, over its number.",
                    SHARE,
                    ('amortis_learner_effective_sample_size_ratio{run="$run"}', "last batch"),
                    ('run:amortis_learner_effective_sample_size_ratio:avg10m{run="$run"}', "mean over 10 min"),
                    low=0,
                    high=1,
                ),
                lines(
                    "Gradient norm",
                    "Gradient norm before clipping at learner.max_grad_norm.",
                    PLAIN,
                    ('amortis_learner_gradient_norm{run="$run"}', "norm"),
                    low=0,
                ),
                lines(
                    "Reward temperature",
                    "Temperature τ of the reward that the loss uses.",
                    PLAIN,
                    ('amortis_learner_reward_temperature{run="$run"}', "τ"),
                    low=0,
                ),
                lines("Steps", "Optimiser steps done.", COUNT, ('amortis_learner_step{run="$run"}', "steps"), low=0),
            ),
        ),
        Row(
            "Samples and samplers",
            (
                lines(
                    "Staleness",
                    "Mean number of adapter versions that the last batch lags behind, and buffer.max_staleness where "
                    "there is one.",
                    VERSIONS,
                    ('amortis_learner_staleness_versions{run="$run"}', "last batch"),
                    ('amortis_learner_max_staleness_versions{run="$run"} < Inf', "bound"),
                    low=0,
                ),
                lines(
                    "Gap of sampler and learner",
                    "Mean absolute difference of the actors' and the learner's log-probability of the same token under "
                    "the same adapter, and the limit at which the run stops itself.",
                    NATS,
                    ('amortis_learner_sampler_gap_nats{run="$run"}', "gap"),
                    ('amortis_learner_max_sampler_gap_nats{run="$run"}', "limit"),
                    low=0,
                ),
                lines(
                    "Adapter",
                    "Newest adapter version published, and what the actors use.",
                    COUNT,
                    ('amortis_learner_adapter_version{run="$run"}', "published"),
                    ('min(amortis_actor_adapter_version{run="$run"})', "oldest in use"),
                    ('quantile(0.5, amortis_actor_adapter_version{run="$run"})', "median in use"),
                    decimals=0,
                ),
            ),
        ),
        Row(
            "Evaluation while it trains (evaluation.every)",
            (
                lines(
                    "Figures",
                    "Figures of samples on held-out queries, of the adapter that was evaluated last.",
                    PLAIN,
                    ('amortis_evaluation_figure{run="$run"}', "{{figure}}"),
                ),
                lines(
                    "Best adapter",
                    "evaluation.metric of the best adapter so far.",
                    PLAIN,
                    ('amortis_evaluation_best{run="$run"}', "best"),
                ),
                lines(
                    "Steps evaluated",
                    "Step whose adapter was evaluated last, step of the best one, and steps done.",
                    COUNT,
                    ('amortis_evaluation_step{run="$run"}', "evaluated"),
                    ('amortis_evaluation_best_step{run="$run"}', "best"),
                    ('amortis_learner_step{run="$run"}', "done"),
                    decimals=0,
                ),
                lines(
                    "Left out",
                    "Adapters that were due and left out for newer ones, as evaluation.share did not allow more.",
                    COUNT,
                    ('amortis_evaluations_skipped{run="$run"}', "adapters"),
                    low=0,
                    decimals=0,
                ),
                lines(
                    "Actors' time",
                    "Share of all actors' time that goes into evaluation; one actor at a time does it, within "
                    "evaluation.share of its own.",
                    SHARE,
                    (
                        'sum(rate(amortis_actor_evaluation_seconds_total{run="$run"}[5m])) '
                        '/ clamp_min(max(amortis_actors_alive{run="$run"}), 1)',
                        "evaluation",
                    ),
                    low=0,
                ),
            ),
        ),
        Row(
            "Time",
            (
                lines(
                    "Share of time",
                    "Where the learner's time goes. What is missing to 100% is evaluation and checkpoints.",
                    SHARE,
                    ('sum(rate(amortis_learner_step_seconds_sum{run="$run"}[5m]))', "steps"),
                    ('run:amortis_learner_wait:share5m{run="$run"}', "waiting"),
                    low=0,
                    stacked=True,
                ),
                lines(
                    "Time of a step",
                    "Time of one step, publishing included, waiting left out.",
                    SECONDS,
                    ('run:amortis_learner_step_seconds:p50_5m{run="$run"}', "median"),
                    ('run:amortis_learner_step_seconds:p95_5m{run="$run"}', "95%"),
                    low=0,
                ),
                lines(
                    "Time to publish",
                    "Time to publish one adapter.",
                    SECONDS,
                    ('run:amortis_learner_publish_seconds:p95_5m{run="$run"}', "95%"),
                    low=0,
                ),
                lines(
                    "Steps a second",
                    "Optimiser steps per second.",
                    PER_S,
                    ('run:amortis_learner_steps:rate1m{run="$run"}', "steps"),
                    low=0,
                ),
                lines(
                    "Trained a second",
                    "Trajectories that steps use per second.",
                    PER_S,
                    ('run:amortis_learner_trained_trajectories:rate1m{run="$run"}', "trajectories"),
                    low=0,
                ),
                lines(
                    "Processor",
                    "Cores that the learner's process uses.",
                    CORES,
                    (f"rate(process_cpu_seconds_total{PROCESS}[$__rate_interval])", "cores"),
                    low=0,
                ),
                lines(
                    "Memory",
                    "Resident memory of the learner's process.",
                    BYTES,
                    (f"process_resident_memory_bytes{PROCESS}", "resident"),
                    low=0,
                ),
            ),
        ),
    ),
)
