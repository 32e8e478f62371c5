"""The learner process: `python -m learner RUN_FOLDER` (also `amortis learner`), started by the launcher.

It reads the run's resolved configuration, loads the policy, and trains until done or asked to stop. With
`learner.num_processes` above 1 it becomes torchrun, which starts it so many times.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from redis.exceptions import RedisError

from buffer.adapters import AdapterRegistry
from buffer.claim import Renewal
from buffer.connection import Keys, connect
from buffer.control import Control
from buffer.evaluations import Evaluations
from buffer.log_stream import LogStream
from buffer.replay import ReplayBuffer
from buffer.seed_queue import SeedQueue
from common.config import RunConfig
from common.config_loading import in_folder, load_resolved
from common.devices import learner_threads
from common.errors import RunFault, SamplerGapFault, StallError, UserError
from common.log import get_logger, set_up_logging
from common.metrics import LearnerMetrics, new_registry, serve
from common.processes import die_with_parent
from common.tasks import Task, make_task
from common.tokens import codec_of
from learner.curve import Curve
from learner.policy import LoraPolicy
from learner.torchrun import become_torchrun, name_of, own_rank, started_by_torchrun
from learner.tracking import open_sinks
from learner.trainer import Trainer

if TYPE_CHECKING:
    from learner.distributed import Processes

log = get_logger("learner")
METRICS_OFFSET = 1
LAST_SCRAPES_S = 12.0
"""Two scrapes, and some: what an alert must see of a run that stops itself is served for so long."""


def load_policy(config: RunConfig, processes: Processes | None = None) -> tuple[Task[Any], LoraPolicy]:
    """The task and the policy, on this process' device."""
    section = config.learner
    torch.set_num_threads(max(1, learner_threads(config) // section.num_processes))
    torch.manual_seed(config.run.seed)
    assert config.model.name is not None
    task = make_task(config.task, codec_of(config.model), config.actor.max_model_len)
    arguments = (config.model.name, config.model.lora, task.action_space)
    if processes is None or processes.rank:
        device = torch.device(section.device) if processes is None else processes.device
        policy = LoraPolicy.load(*arguments, dtype=section.dtype, device=device)
    else:
        from learner.distributed import SharedPolicy

        policy = shared = SharedPolicy.load(*arguments, dtype=section.dtype, device=processes.device)
        shared.processes = processes
    if section.gradient_checkpointing:
        policy.checkpoint_layers()
    return task, policy


def build_trainer(config: RunConfig, control: Control, keys: Keys, processes: Processes | None = None) -> Trainer:
    """Everything that training needs, from a resolved configuration."""
    section = config.learner
    task, policy = load_policy(config, processes)
    client = connect(config.redis)
    assert config.redis.url is not None
    registry = new_registry()
    metrics = LearnerMetrics(registry)
    metrics.max_sampler_gap.set(section.max_sampler_gap or math.inf)
    if config.buffer.max_staleness is not None:
        metrics.max_staleness.set(config.buffer.max_staleness)
    address = serve(registry, config.metrics, METRICS_OFFSET, config.redis.url.get_secret_value())
    control.register("learner", "learner", address)
    log.info("metrics on %s", address)
    control.report_learner({"phase": "starting", "steps": section.steps})
    adapters = AdapterRegistry(client, keys, section.keep_adapters)
    sinks = open_sinks(config, config.run_folder)
    return Trainer(
        config,
        task,
        policy,
        ReplayBuffer.of(config, client, keys),
        SeedQueue(client, keys),
        adapters,
        control,
        metrics,
        sinks,
        Curve(config, Evaluations(client, keys), adapters, sinks) if config.looks else None,
    )


def train(config: RunConfig, control: Control, keys: Keys) -> None:
    """Train, or help process 0 of several to train."""
    if config.learner.num_processes == 1 and not started_by_torchrun():
        build_trainer(config, control, keys).run()
        return
    from learner.distributed import Processes, follow

    processes = Processes(config.learner.device, config.learner.num_processes)
    if processes.rank:
        follow(load_policy(config, processes)[1], processes)
    else:
        build_trainer(config, control, keys, processes).run()
        processes.dismiss()
    processes.leave()


def main(arguments: list[str]) -> int:
    """Train; the exit status is 0 when done or stopped in good order, 1 after a fault."""
    folder = Path(arguments[0])
    config = in_folder(load_resolved(folder / "config.yaml"), folder)
    assert config.run.name is not None
    if started_by_torchrun():
        # torchrun gives them time itself. Once it is killed nobody has the folder's lock: none may go on with a step.
        die_with_parent(signal.SIGKILL)
    elif config.learner.num_processes > 1:
        become_torchrun(folder, config.learner.num_processes)
    rank = own_rank()
    name = name_of(rank)
    set_up_logging(folder / "logs" / f"{name}.log", terminal=False, run=config.run.name, process=name)
    client, keys = connect(config.redis), Keys(config.redis_name)
    LogStream(client, keys).attach()
    control = Control(client, keys)
    # Where its launcher is killed, a learner ends its step first: until then nobody else may have the name.
    with Renewal(client, config.redis_name):
        return _run(config, control, keys, name, rank)


def _run(config: RunConfig, control: Control, keys: Keys, name: str, rank: int) -> int:
    if rank == 0:
        signal.signal(signal.SIGTERM, lambda *_: _ask_to_stop(control))
    else:
        # Process 0 needs it for its last steps, and its end is this one's.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        train(config, control, keys)
    except (RunFault, StallError, UserError) as error:
        log.error("%s", error)
        control.report_fault("learner", str(error))
        if isinstance(error, SamplerGapFault) and config.metrics.enabled:
            # The gauge passes the limit once, and the alert SamplerGapOverThreshold needs to know it.
            time.sleep(LAST_SCRAPES_S)
        return 1
    except Exception as error:
        log.exception("learner failed")
        control.report_fault(name, f"{type(error).__name__}: {error} (see logs/{name}.log)")
        return 1
    if rank == 0:
        control.unregister("learner")
    return 0


def _ask_to_stop(control: Control) -> None:
    # Between any two instructions of a step, which an exception would tear.
    try:
        control.request_stop("the learner was told to terminate")
    except RedisError as error:
        log.error("told to terminate, and can't say so: %s", error)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main(sys.argv[1:]))
