"""The buffer's page: what it holds, what comes in and goes out, and Redis' memory."""

from __future__ import annotations

from deploy.monitoring.grafana.panels import BYTES, COUNT, PER_S, SECONDS, SHARE, Dashboard, Row, lines, number


def held(name: str) -> str:
    """A gauge of the buffer."""
    return f'amortis_buffer_{name}{{run="$run"}}'


def pace(name: str) -> str:
    """How fast one of the buffer's counts grows; counts live in Redis and are exported as gauges."""
    return f'clamp_min(deriv(amortis_buffer_{name}{{run="$run"}}[5m]), 0)'


DASHBOARD = Dashboard(
    name="buffer",
    title="amortis / Buffer",
    description="What the buffer holds, what comes in and goes out, and Redis' memory.",
    rows=(
        Row(
            "Now",
            (
                number("Trajectories", "Trajectories in the buffer.", COUNT, held("trajectories")),
                number("Pushed", "Trajectories pushed since the buffer was made.", COUNT, held("pushed_trajectories")),
                number(
                    "Buffer full",
                    "Memory of the buffer's trajectories, of buffer.max_bytes. At 100% the buffer evicts, which is "
                    "how it works.",
                    SHARE,
                    f"{held('bytes')} / {held('max_bytes')}",
                    low=0,
                    high=1,
                    decimals=1,
                ),
                number(
                    "Duplicates",
                    "Share of what was pushed that was there already. It rises as a small space is explored.",
                    SHARE,
                    f"{held('duplicate_trajectories')} / clamp_min({held('pushed_trajectories')}, 1)",
                    low=0,
                    high=1,
                    decimals=1,
                ),
                number(
                    "Expired",
                    "Share of what was pushed that was taken out as staler than buffer.max_staleness.",
                    SHARE,
                    f"{held('expired_trajectories')} / clamp_min({held('pushed_trajectories')}, 1)",
                    low=0,
                    high=1,
                    decimals=1,
                    steps=((None, "green"), (0.1, "orange"), (0.3, "red")),
                ),
                number(
                    "Quarantined",
                    "Trajectories set aside as malformed.",
                    COUNT,
                    held("quarantined_trajectories"),
                    steps=((None, "green"), (1.0, "red")),
                ),
            ),
        ),
        Row(
            "What comes in and goes out",
            (
                lines("Size", "Trajectories in the buffer.", COUNT, (held("trajectories"), "trajectories"), low=0),
                lines(
                    "In",
                    "Trajectories per second that are pushed, that were there already, and that were dropped as "
                    "near-duplicates.",
                    PER_S,
                    (pace("pushed_trajectories"), "pushed"),
                    (pace("duplicate_trajectories"), "duplicates"),
                    (pace("near_duplicate_trajectories"), "near-duplicates"),
                    low=0,
                ),
                lines(
                    "Out",
                    "Trajectories per second that are evicted for room, or taken out as too stale.",
                    PER_S,
                    (pace("evicted_trajectories"), "evicted"),
                    (pace("expired_trajectories"), "expired"),
                    low=0,
                ),
                lines(
                    "Not taken",
                    "Trajectories set aside as malformed, and those larger than buffer.max_bytes on their own.",
                    COUNT,
                    (held("quarantined_trajectories"), "quarantined"),
                    (held("refused_trajectories"), "too large"),
                    low=0,
                ),
                lines(
                    "Seeds",
                    "Trajectories from seeds and imports.",
                    COUNT,
                    (held("seeded_trajectories"), "seeded"),
                    low=0,
                ),
                lines(
                    "Use",
                    "Trajectories trained on for each that is pushed: buffer.samples_per_insert, within its band.",
                    COUNT,
                    (
                        'run:amortis_learner_trained_trajectories:rate1m{run="$run"} '
                        '/ run:amortis_actor_pushed_trajectories:rate1m{run="$run"}',
                        "uses",
                    ),
                    low=0,
                ),
            ),
        ),
        Row(
            "Redis",
            (
                lines(
                    "Memory of Redis",
                    "Memory that Redis uses for everything, and its maxmemory where there is one.",
                    BYTES,
                    ('amortis_redis_used_bytes{run="$run"}', "used"),
                    ('amortis_redis_max_bytes{run="$run"} > 0', "maxmemory"),
                    low=0,
                ),
                lines(
                    "Memory of the buffer",
                    "Memory of the buffer's trajectories, estimated, and buffer.max_bytes.",
                    BYTES,
                    (held("bytes"), "used"),
                    (held("max_bytes"), "buffer.max_bytes"),
                    low=0,
                ),
                lines(
                    "Time to push",
                    "Time to push one batch into Redis, over all actors: Redis' answer, seen from them.",
                    SECONDS,
                    ('run:amortis_actor_push_seconds:p50_5m{run="$run"}', "median"),
                    ('run:amortis_actor_push_seconds:p95_5m{run="$run"}', "95%"),
                    low=0,
                ),
            ),
        ),
    ),
)
