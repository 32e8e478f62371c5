"""How an actor follows the registry: fetch the newest version, load it, and prove that it has an effect."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from redis.exceptions import RedisError

from actors.engine import Engine, LoadedAdapter
from actors.scoring import Scored, ScoreText
from buffer.adapters import Adapter, AdapterRegistry
from common.adapter_files import changes_something
from common.balance import HAND_OVERS_KEPT
from common.errors import EngineFault, RunFault
from common.log import add_log_context, get_logger
from common.metrics import ActorMetrics
from common.scratch import Scratch

log = get_logger("actor")
FOLDERS_KEPT = 4


REFERENCE_DRIFT_NATS_A_TOKEN = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}
"""How far the base model's score of the probe may move between loads by rounding alone."""


@dataclass(frozen=True)
class Probe:
    """Log-probability of one fixed text with and without the adapter, in nats."""

    with_adapter: float
    without: float


class AdapterFollower:
    """Keeps the engine at the newest version that could be loaded."""

    def __init__(
        self, engine: Engine, registry: AdapterRegistry, probe_text: ScoreText, metrics: ActorMetrics, dtype: str
    ) -> None:
        self._engine, self._registry, self._probe_text, self._metrics = engine, registry, probe_text, metrics
        self._allowed_drift = REFERENCE_DRIFT_NATS_A_TOKEN[dtype] * len(probe_text.ids)
        self._first_without: float | None = None
        self._scratch = Scratch("adapters")
        self._failed: set[int] = set()
        self.current: LoadedAdapter | None = None
        self._changes_something = False
        self._published_at = 0.0
        self.hand_overs_s: list[float] = []
        """From a version's publication until requests may have it, the newest `HAND_OVERS_KEPT`; not the first's."""
        self.probe: Probe | None = None
        self.last_error: str | None = None

    def is_behind(self) -> int | None:
        """A newer version that hasn't failed to load, or None."""
        latest = self._registry.latest()
        have = self.current.version if self.current else 0
        return latest if latest > have and latest not in self._failed else None

    def try_again(self) -> None:
        """A version that failed to load may have failed for want of room on a disk, say."""
        self._failed.clear()

    def check_newest(self) -> None:
        """Raises RunFault where an older version serves than the newest."""
        latest, have = self._registry.latest(), self.current.version if self.current else 0
        if have < latest:
            raise RunFault(self.last_error or f"adapter version {latest} is not loaded, version {have} is")

    def update(self, version: int) -> None:
        """Load a version, once `Engine.can_load`; one that can't be loaded leaves the old one serving and says so.

        Raises RunFault where there is no old one, and no newer one to hope for.
        """
        try:
            adapter = self._registry.fetch(version)
            loaded = self._load(adapter)
        except (RedisError, EngineFault):
            # Says nothing of the version.
            raise
        # Whatever vLLM raises for an adapter that it can't serve.
        except Exception as error:
            self._failed.add(version)
            self._metrics.adapter_loads_failed.inc()
            serving = self.current.version if self.current else 0
            reason = str(error) or type(error).__name__
            self.last_error = f"adapter version {version} can't be loaded, still serving {serving}: {reason}"
            log.error("%s", self.last_error)
            if self.current is None and self._registry.latest() == version:
                raise RunFault(
                    f"adapter version {version} can't be loaded, and there is no other to sample with: {reason}; check "
                    "model.lora and, where the run starts from an adapter, that one"
                ) from error
            return
        self.current, self._changes_something = loaded, changes_something(adapter.files)
        self._metrics.adapter_version.set(version)
        add_log_context(adapter_version=version)
        self._published_at = adapter.published_at
        self._metrics.sync_latency.observe(max(0.0, time.time() - adapter.published_at))
        self._drop_old_folders()
        log.info("serving adapter version %d, sha256 %s", version, adapter.sha256)

    def _load(self, adapter: Adapter) -> LoadedAdapter:
        return self._engine.load_adapter(adapter.version, adapter.sha256, self._written(adapter))

    def _written(self, adapter: Adapter) -> Path:
        folder = self._scratch.folder / f"v{adapter.version}"
        folder.mkdir(exist_ok=True)
        for name, data in adapter.files.items():
            (folder / name).write_bytes(data)
        return folder

    def hold(self, version: int) -> LoadedAdapter:
        """Serve a version besides, until `release`. Raises AdapterError if it is not in the registry."""
        adapter = self._registry.fetch(version)
        return self._engine.hold_adapter(version, adapter.sha256, self._written(adapter))

    def release(self) -> None:
        """What was held is needed no more."""
        self._engine.release_adapter()

    def probe_texts(self) -> list[tuple[str, ScoreText, LoadedAdapter | None]]:
        """The two requests of a probe: without the present adapter, and with it, which samples come through next."""
        return [("probe-without", self._probe_text, None), ("probe-with", self._probe_text, self.current)]

    def check_probe(self, results: list[Scored]) -> None:
        """Compare the probe's two scores.

        Raises RunFault if a trained adapter changes nothing, as samples would come from the base model, or if
        the base model's score has moved since the first load, as rewards would come through an adapter.
        """
        total = {result.request_id: float(result.scores.actual.sum()) for result in results}
        self.probe = Probe(total["probe-with"], total["probe-without"])
        version = self.current.version if self.current else 0
        is_first = self._first_without is None
        self._first_without = self.probe.without if self._first_without is None else self._first_without
        drift = abs(self.probe.without - self._first_without)
        if drift > self._allowed_drift:
            raise RunFault(
                f"the base model scores a probe text {drift:.4f} nats differently since adapter version {version} was "
                "loaded: the engine applies an adapter to requests that have none, so rewards would be wrong"
            )
        # The first version may be an untrained adapter, or the one that the reference has as well.
        if version >= 2 and self._changes_something and self.probe.with_adapter == self.probe.without:
            raise RunFault(
                f"adapter version {version} changes nothing in the engine (a probe text scores "
                f"{self.probe.without:.4f} nats with and without it): samples would come from the base model; "
                "check that model.lora.target_modules and model.lora.rank are ones that the engine serves"
            )
        # The first was there before the actor, or waited for its engine.
        if not is_first:
            self.hand_overs_s = [*self.hand_overs_s, max(0.0, time.time() - self._published_at)][-HAND_OVERS_KEPT:]

    def close(self) -> None:
        """Delete the fetched files."""
        self._scratch.close()

    def _drop_old_folders(self) -> None:
        folders = sorted(self._scratch.folder.glob("v*"), key=lambda path: int(path.name[1:]))
        for old in folders[:-FOLDERS_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
