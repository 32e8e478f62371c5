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


def _figure(name: str) -> str:
    """A figure of the last diagnosis."""
    return f'amortis_diagnosis_figure{{run="$run", figure="{name}"}}'


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
                    "Nothing compared",
                    "Share of the batch's queries whose trajectories are all the same, with an objective that compares "
                    "them. At 1 the loss is 0 and teaches nothing.",
                    SHARE,
                    ('amortis_learner_nothing_compared_ratio{run="$run"}', "last batch"),
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
                    "Adapters that were due for evaluation or diagnosis and left out for newer ones, as "
                    "evaluation.share did not allow more.",
                    COUNT,
                    ('amortis_evaluations_skipped{run="$run"}', "adapters"),
                    low=0,
                    decimals=0,
                ),
                lines(
                    "Actors' time",
                    "Share of all actors' time that goes into evaluation and diagnosis; one actor at a time does it, "
                    "within evaluation.share of its own.",
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
            "Diagnosis while it trains (diagnose.every)",
            (
                lines(
                    "Diagnosed log Z",
                    "Mean over the diagnosed queries of the importance estimate of log Z, with two standard errors to "
                    "both sides, and of the ELBO, a lower bound whose distance is the KL to the posterior.",
                    NATS,
                    (_figure("log_z"), "log Z"),
                    (f"{_figure('log_z')} + ignoring(figure) 2 * {_figure('log_z_se')}", "+ 2 s.e."),
                    (f"{_figure('log_z')} - ignoring(figure) 2 * {_figure('log_z_se')}", "- 2 s.e."),
                    (_figure("elbo"), "ELBO"),
                ),
                lines(
                    "Diagnosed effective sample size",
                    "Effective sample size of held-out draws' weights R/q, over their number: of the worst query, and "
                    "the mean over queries.",
                    SHARE,
                    (_figure("ess"), "worst query"),
                    (_figure("ess_mean"), "mean"),
                    low=0,
                    high=1,
                ),
                lines(
                    "Pareto k",
                    "Shape of the tail of the weights R/q, of the worst query. Above 0.7 no estimate from them means "
                    "anything.",
                    PLAIN,
                    (_figure("pareto_k"), "worst query"),
                ),
                lines(
                    "Length bias",
                    "Mean length under the sampler less that under the weights, in tokens. Above 0 it writes too long, "
                    "below 0 too short.",
                    PLAIN,
                    (_figure("length_bias"), "tokens"),
                ),
                lines(
                    "Distinct prefixes",
                    "Different beginnings of three tokens among a query's draws, mean over queries. Few of them are a "
                    "sampler whose beginnings have collapsed.",
                    COUNT,
                    (_figure("distinct_prefixes"), "prefixes"),
                    low=0,
                ),
                lines(
                    "Verdicts",
                    "Diagnoses by verdict, and how many of the last in a row are not to be trusted.",
                    COUNT,
                    ('amortis_diagnoses{run="$run"}', "{{verdict}}"),
                    ('amortis_diagnoses_refused_in_a_row{run="$run"}', "in a row not to be trusted"),
                    low=0,
                    decimals=0,
                ),
                lines(
                    "Step diagnosed",
                    "Step whose adapter was diagnosed last, and steps done.",
                    COUNT,
                    ('amortis_diagnosis_step{run="$run"}', "diagnosed"),
                    ('amortis_learner_step{run="$run"}', "done"),
                    decimals=0,
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
