"""The learner process: `python -m learner RUN_FOLDER` (also `amortis learner`), started by the launcher.

It reads the run's resolved configuration, loads the policy, and trains until done or asked to stop.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from pathlib import Path

import torch

from buffer.adapters import AdapterRegistry
from buffer.connection import Keys, connect
from buffer.control import Control
from buffer.log_stream import LogStream
from buffer.replay import ReplayBuffer
from common.config import RunConfig
from common.config_loading import load_resolved
from common.devices import learner_threads
from common.errors import RunFault, SamplerGapFault, StallError, UserError
from common.log import get_logger, set_up_logging
from common.metrics import LearnerMetrics, new_registry, serve
from common.tasks import make_task
from common.tokens import codec_of
from learner.policy import LoraPolicy
from learner.tracking import open_sinks
from learner.trainer import Trainer

log = get_logger("learner")
METRICS_OFFSET = 1
LAST_SCRAPES_S = 12.0
"""Two scrapes, and some: what an alert must see of a run that stops itself is served for so long."""


def build_trainer(config: RunConfig, control: Control, keys: Keys) -> Trainer:
    """Everything that training needs, from a resolved configuration."""
    section = config.learner
    torch.set_num_threads(learner_threads(config))
    torch.manual_seed(config.run.seed)
    assert config.model.name is not None
    task = make_task(config.task, codec_of(config.model), config.actor.max_model_len)
    policy = LoraPolicy.load(
        config.model.name,
        config.model.lora,
        task.action_space,
        dtype=section.dtype,
        device=torch.device(section.device),
    )
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
    return Trainer(
        config,
        task,
        policy,
        ReplayBuffer.of(config, client, keys),
        AdapterRegistry(client, keys, section.keep_adapters),
        control,
        metrics,
        open_sinks(config, config.run_folder),
    )


def main(arguments: list[str]) -> int:
    """Train; the exit status is 0 when done or stopped in good order, 1 after a fault."""
    folder = Path(arguments[0])
    config = load_resolved(folder / "config.yaml")
    assert config.run.name is not None
    set_up_logging(folder / "logs" / "learner.log", terminal=False, run=config.run.name, process="learner")
    client, keys = connect(config.redis), Keys(config.redis_name)
    LogStream(client, keys).attach()
    control = Control(client, keys)
    signal.signal(signal.SIGTERM, lambda *_: control.request_stop("the learner was told to terminate"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        build_trainer(config, control, keys).run()
    except (RunFault, StallError, UserError) as error:
        log.error("%s", error)
        control.report_fault("learner", str(error))
        if isinstance(error, SamplerGapFault) and config.metrics.enabled:
            # The gauge passes the limit once, and the alert SamplerGapOverThreshold needs to know it.
            time.sleep(LAST_SCRAPES_S)
        return 1
    except Exception as error:
        log.exception("learner failed")
        control.report_fault("learner", f"{type(error).__name__}: {error} (see logs/learner.log)")
        return 1
    control.unregister("learner")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main(sys.argv[1:]))
