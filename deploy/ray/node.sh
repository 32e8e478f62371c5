#!/usr/bin/env bash
# One node of a `ray up` cluster. The cluster files call it on every host; people and jobs call it on the head:
#
#   node.sh head […]           start Redis and Ray's head here; options of `ray start` can follow
#   node.sh worker HEAD_IP […] start Ray here and join the head; options of `ray start` can follow
#   node.sh run COMMAND …      run a command in amortis' environment, e.g. amortis train deploy/configs/cluster.yaml
#   node.sh stop-redis         stop Redis here; what it holds stays on disk
#
# Secrets and settings come from cluster.env beside this file, which `ray up` copies with it.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
settings=$root/deploy/ray/cluster.env
# The one thread that `ray up` allows its commands is not meant for runs.
unset OMP_NUM_THREADS
# shellcheck source=/dev/null
if [ -f "$settings" ]; then set -a && . "$settings" && set +a; fi
bin=${AMORTIS_BIN:-$root/.venv/bin}
redis_folder=${AMORTIS_REDIS_FOLDER:-$HOME/.amortis/redis}
redis_port=${AMORTIS_REDIS_PORT:-6380} # Ray's head has 6379
ray_port=6379

: "${RAY_AUTH_TOKEN:?set it in deploy/ray/cluster.env}"
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
# Ray lowers its workers' priority, and hides GPUs from who reserves none: the learner uses the head's without reserving.
export RAY_worker_niceness=0 RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0 RAY_USAGE_STATS_ENABLED=0
# `ray job stop` gives the learner the time for its step, a checkpoint and an evaluation.
export RAY_JOB_STOP_WAIT_TIME_S=180
export PATH="$bin:$PATH" PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
# Jobs start in the folder that Ray was started in.
cd "$root"

this_host() {
    "$bin/python" -c "from ray.util import get_node_ip_address as f; print(f())"
}

# Settings of a run on this cluster, where the environment or cluster.env doesn't give them.
export_settings() {
    if [ -z "${AMORTIS_REDIS__URL:-}" ]; then
        : "${REDIS_PASSWORD:?set it in deploy/ray/cluster.env, or AMORTIS_REDIS__URL for a Redis of your own}"
        AMORTIS_REDIS__URL="redis://:$REDIS_PASSWORD@$(this_host):$redis_port/0"
    fi
    export AMORTIS_REDIS__URL AMORTIS_RAY__ADDRESS="${AMORTIS_RAY__ADDRESS:-auto}"
}

redis_answers() {
    (exec 3<>"/dev/tcp/127.0.0.1/$redis_port") 2>/dev/null
}

start_redis() {
    if [ -n "${AMORTIS_REDIS__URL:-}" ] || redis_answers; then return; fi
    : "${REDIS_PASSWORD:?set it in deploy/ray/cluster.env, or AMORTIS_REDIS__URL for a Redis of your own}"
    mkdir -p "$redis_folder" && chmod 700 "$redis_folder"
    server=$("$bin/python" -c "from buffer.embedded import find_redis_server as f; print(f())")
    # The password comes on standard input, as a command line can be read by everyone.
    "$server" --port "$redis_port" --bind 0.0.0.0 --dir "$redis_folder" --appendonly yes --daemonize yes \
        --maxmemory "${REDIS_MAXMEMORY:-0}" --maxmemory-policy noeviction --logfile "$redis_folder/redis.log" \
        --pidfile "$redis_folder/redis.pid" - <<EOF
requirepass $REDIS_PASSWORD
EOF
    for _ in $(seq 100); do
        if redis_answers; then return; fi
        sleep 0.1
    done
    echo "redis-server does not answer on port $redis_port; see $redis_folder/redis.log" >&2
    exit 1
}

# `ray down` says plain `ray stop` to a shell on the head.
put_ray_on_path() {
    mkdir -p "$root/.path"
    ln -sfn "$bin/ray" "$root/.path/ray"
    grep -qsF "$root/.path" "$HOME/.bashrc" || echo "export PATH=\"$root/.path:\$PATH\"" >>"$HOME/.bashrc"
}

# Ray gives its agents 15 s to start, however busy the host is: a host that is busy now may need another attempt.
start_ray() {
    put_ray_on_path
    ulimit -n 65536 2>/dev/null || true
    for _ in 1 2 3; do
        "$bin/ray" stop
        if "$bin/ray" start "$@"; then return; fi
    done
    exit 1
}

case "${1:-}" in
head)
    start_redis
    export_settings
    # Ray's newer autoscaler counts the head among the workers where all hosts are of one kind, and leaves one host out.
    if grep -Eqs 'type"?: "?local"?' "$HOME/ray_bootstrap_config.yaml"; then export RAY_enable_autoscaler_v2=0; fi
    # A driver runs with the environment of its node, so `ray job submit` finds Redis. No actors here: that is the
    # learner's place.
    start_ray --head --port="$ray_port" --num-cpus=0 --num-gpus=0 --metrics-export-port=8080 \
        --dashboard-host="${RAY_DASHBOARD_HOST:-127.0.0.1}" --autoscaling-config="$HOME/ray_bootstrap_config.yaml" \
        "${@:2}"
    ;;
worker)
    # `ray down` tells the head alone to stop. Ray ends here a minute later, its log monitor never; runs don't use it.
    start_ray --address="${2:?give the address of the head}:$ray_port" --metrics-export-port=8080 \
        --include-log-monitor=false "${@:3}"
    ;;
run)
    shift
    export_settings
    exec "$@"
    ;;
stop-redis)
    if [ -f "$redis_folder/redis.pid" ]; then kill "$(cat "$redis_folder/redis.pid")"; fi
    ;;
*)
    sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
