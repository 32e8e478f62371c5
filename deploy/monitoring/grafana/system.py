"""The machines' page: nodes of the Ray cluster, processes of the run, and Prometheus itself."""

from __future__ import annotations

from deploy.monitoring.grafana.panels import (
    BYTES,
    BYTES_PER_S,
    CORES,
    COUNT,
    PERCENT,
    RUN,
    SECONDS,
    SHARE,
    Choice,
    Dashboard,
    Row,
    lines,
    number,
    ranking,
)

MEMORY = "ray_node_mem_used / (ray_node_mem_total > 0)"
PROCESSES = '{job="amortis", run="$run"}'


def over_nodes(expr: str) -> tuple[tuple[str, str], ...]:
    """Mean and extremes over nodes, of any number of them."""
    return ((f"avg({expr})", "mean"), (f"max({expr})", "highest"), (f"min({expr})", "lowest"))


DASHBOARD = Dashboard(
    name="system",
    title="amortis / System",
    description="Nodes of the Ray cluster, processes of the run, and Prometheus itself.",
    choices=(RUN, Choice("top", "How many", values=("10", "5", "20", "50"))),
    rows=(
        Row(
            "Now",
            (
                number("Nodes", "Nodes of the Ray cluster that are scraped.", COUNT, "count(ray_node_cpu_count)"),
                number("Cores", "Cores of all nodes.", CORES, "sum(ray_node_cpu_count)"),
                number(
                    "GPUs",
                    "GPUs of all nodes; 0 where there are none.",
                    COUNT,
                    "sum(ray_node_gpus_available) or vector(0)",
                ),
                number(
                    "Nodes to come",
                    "Nodes that the autoscaler has asked for and that are not there yet.",
                    COUNT,
                    "sum(autoscaler_pending_nodes) or vector(0)",
                ),
                number(
                    "Targets up",
                    "Endpoints that Prometheus scrapes with success.",
                    COUNT,
                    "sum(up)",
                ),
                number(
                    "Targets down",
                    "Endpoints that Prometheus knows of and can't scrape.",
                    COUNT,
                    "count(up == 0) or vector(0)",
                    steps=((None, "green"), (1.0, "red")),
                ),
            ),
        ),
        Row(
            "Nodes",
            (
                lines(
                    "Processor",
                    "Use of a node's cores.",
                    PERCENT,
                    *over_nodes("ray_node_cpu_utilization"),
                    low=0,
                    high=100,
                ),
                lines("Memory", "Share of a node's memory that is used.", SHARE, *over_nodes(MEMORY), low=0, high=1),
                lines(
                    "Disk",
                    "Share of a node's disk that is used.",
                    PERCENT,
                    *over_nodes("ray_node_disk_utilization_percentage"),
                    low=0,
                    high=100,
                ),
                lines(
                    "Network",
                    "Bytes per second over all nodes.",
                    BYTES_PER_S,
                    ("sum(ray_node_network_receive_speed)", "received"),
                    ("sum(ray_node_network_send_speed)", "sent"),
                    low=0,
                ),
                lines(
                    "Disk traffic",
                    "Bytes per second over all nodes.",
                    BYTES_PER_S,
                    ("sum(ray_node_disk_io_read_speed)", "read"),
                    ("sum(ray_node_disk_io_write_speed)", "written"),
                    low=0,
                ),
                lines(
                    "GPU use",
                    "Use of a GPU; 0 where there are none.",
                    PERCENT,
                    ("avg(ray_node_gpus_utilization) or vector(0)", "mean"),
                    ("min(ray_node_gpus_utilization) or vector(0)", "lowest"),
                    low=0,
                    high=100,
                ),
                lines(
                    "GPU memory",
                    "Memory of all GPUs; 0 where there are none.",
                    "decmbytes",
                    ("sum(ray_node_gram_used) or vector(0)", "used"),
                    ("sum(ray_node_gram_available) or vector(0)", "free"),
                    low=0,
                    stacked=True,
                ),
                ranking(
                    "Nodes with most memory used",
                    "Share of a node's memory.",
                    SHARE,
                    f"topk($top, max by (ip) ({MEMORY}))",
                    "{{ip}}",
                    low=0,
                    high=1,
                    steps=((None, "green"), (0.8, "orange"), (0.9, "red")),
                ),
                ranking(
                    "Nodes with fullest disk",
                    "Share of a node's disk.",
                    PERCENT,
                    "topk($top, max by (ip) (ray_node_disk_utilization_percentage))",
                    "{{ip}}",
                    low=0,
                    high=100,
                    steps=((None, "green"), (80.0, "orange"), (90.0, "red")),
                ),
            ),
        ),
        Row(
            "Ray",
            (
                lines(
                    "Cores reserved",
                    "Ray's cores by state. Actors that find none free wait.",
                    CORES,
                    ('sum by (State) (ray_resources{Name="CPU"})', "{{State}}"),
                    low=0,
                    stacked=True,
                ),
                lines(
                    "Ray actors",
                    "Ray actors of all jobs by state.",
                    COUNT,
                    ("sum by (State) (ray_gcs_actors_count)", "{{State}}"),
                    low=0,
                ),
                lines(
                    "Placement groups",
                    "Ray's placement groups by state.",
                    COUNT,
                    ("sum by (State) (ray_gcs_placement_group_count)", "{{State}}"),
                    low=0,
                ),
            ),
        ),
        Row(
            "Processes of the run",
            (
                lines(
                    "Processor",
                    "Cores used, by part of the run.",
                    CORES,
                    (f"sum by (part) (rate(process_cpu_seconds_total{PROCESSES}[$__rate_interval]))", "{{part}}"),
                    low=0,
                    stacked=True,
                ),
                lines(
                    "Memory",
                    "Resident memory, by part of the run.",
                    BYTES,
                    (f"sum by (part) (process_resident_memory_bytes{PROCESSES})", "{{part}}"),
                    low=0,
                    stacked=True,
                ),
                lines(
                    "Open files",
                    "Most open files of one process, as a share of what it may open.",
                    SHARE,
                    (f"max by (part) (process_open_fds{PROCESSES} / process_max_fds{PROCESSES})", "{{part}}"),
                    low=0,
                ),
            ),
        ),
        Row(
            "Prometheus",
            (
                lines(
                    "Time of a scrape",
                    "Longest time of a scrape, by job.",
                    SECONDS,
                    ("max by (job) (scrape_duration_seconds)", "{{job}}"),
                    low=0,
                ),
                lines(
                    "Series",
                    "Series in memory.",
                    COUNT,
                    ("sum(prometheus_tsdb_head_series)", "series"),
                    low=0,
                ),
                lines(
                    "Failures",
                    "Evaluations of rules that failed, and refreshes of a list of targets, within 5 minutes.",
                    COUNT,
                    ("sum(increase(prometheus_rule_evaluation_failures_total[5m]))", "rules"),
                    ("sum(increase(prometheus_sd_http_failures_total[5m]))", "discovery"),
                    low=0,
                ),
            ),
        ),
    ),
)
