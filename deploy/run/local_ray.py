"""Ray on this machine, started for one run and ended with it."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

MISSED_HEALTH_CHECKS = 200
"""In a row, of up to 13 s each, after which Ray takes this machine for dead; Ray's own 5 are a minute. That is for
clusters, which go on without a machine. Here all would end with it, where it was only busy, or a laptop asleep."""


def start_local_ray(**options: Any) -> None:
    """`ray.init` of a cluster of its own, whose processes a signal to the launcher's process group doesn't reach.

    A terminal, `timeout` or a batch system signals the whole group. Ray keeps Ctrl-C from its processes, but SIGTERM
    would end them at once, before the actors have pushed what they have, and the launcher would wait for them in vain.

    Its agent does without what serves a dashboard: Ray waits for the agent, and more than half of its start is that.
    """
    import ray
    from ray._private import services

    class Apart(services.ConsolePopen):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords, start_new_session=True)

    patient = {"health_check_failure_threshold": MISSED_HEALTH_CHECKS}
    # Ray has no setting for either. Its processes still end with the launcher, however it ends: that goes by parent,
    # not by group.
    apart = patch.object(services, "ConsolePopen", Apart)
    without_dashboard = patch.object(ray._private.utils, "get_dashboard_dependency_error", lambda: ImportError())
    with apart, without_dashboard:
        ray.init(address="local", log_to_driver=False, logging_level="ERROR", _system_config=patient, **options)
