"""A run's control keys: the stop signal, faults, and what learner and actors say of themselves."""

from __future__ import annotations

import json
import time
from typing import Any, Literal

from buffer.connection import Client, Keys, unless_full
from buffer.scripts import load_script
from buffer.seed_queue import SeedQueue
from common.config import RunConfig
from common.tasks import UNREAD

Part = Literal["launcher", "learner", "actor"]

ALIVE_S = 15.0
"""An actor that has said nothing for so long counts as dead."""


STARTING, STARTS_S = "starting engine", 3_600.0
"""The phase of an actor that is silent until its engine is up, and for how many seconds nobody takes it for dead."""
DONE, STOPPED = "done", "stopped"
"""The last phase of a learner and of an actor."""
FULL = "waiting for memory"
"""How the phase of an actor begins whose push was refused."""


class Control:
    """Signals between launcher, learner and actors; whoever misses one sees it at the next look."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client, self._keys = client, keys
        self._script = load_script(client, "control_field")

    def _say(self, field: str, value: str | float, command: Literal["HSET", "HSETNX"] = "HSET") -> None:
        """A control field, heard even where Redis has no memory left."""
        self._script(keys=[self._keys.control, self._keys.nothing], args=[command, field, value])

    def reset(self) -> None:
        """Forget an earlier run's signals, before any actor starts; its buffer and adapters stay, and the seeds that
        its actors have not finished wait for those to come."""
        keys = self._keys
        SeedQueue(self._client, keys).give_all_back()
        self._client.delete(keys.control, keys.learner, keys.actors, keys.processes)

    def request_stop(self, reason: str) -> None:
        """Ask everyone to finish in good order; the first reason stays."""
        self._say("stop", reason, "HSETNX")

    def report_fault(self, origin: str, message: str) -> None:
        """Stop the run because going on would be wrong; the first fault stays."""
        self._say("fault", f"{origin}: {message}", "HSETNX")

    def stop_reason(self, actor_id: str | None = None) -> str | None:
        """Why the run is to end, or this actor is, or None."""
        fields = ["fault", "stop"] if actor_id is None else ["fault", "stop", f"retire:{actor_id}"]
        found = next((value for value in self._client.hmget(self._keys.control, *fields) if value), None)
        return found.decode() if found else None

    def retire(self, actor_id: str) -> None:
        """Ask one actor to finish in good order."""
        self._say(f"retire:{actor_id}", "fewer actors are wanted")

    def count_start(self, index: int) -> int:
        """How often this run has started an actor of that number before; it stays when a run is resumed."""
        return int(self._script(keys=[self._keys.starts, self._keys.nothing], args=["HINCRBY", str(index), 1])) - 1

    def forget_actor(self, actor_id: str) -> None:
        """An actor is gone for good: another may have its name, and others take the seeds that it has not finished."""
        self._client.hdel(self._keys.control, f"retire:{actor_id}")
        self._client.hdel(self._keys.actors, actor_id)
        self._client.hdel(self._keys.processes, actor_id)
        self.give_back_seeds(actor_id)

    def give_back_seeds(self, actor_id: str) -> None:
        """Others take the seeds that this actor has not finished; what it finishes all the same counts once."""
        SeedQueue(self._client, self._keys).give_back(actor_id)

    def tell_ended(self) -> None:
        """All parts have ended: what they said last is no sign of life."""
        self._say("ended", time.time())

    def alive(self) -> list[str]:
        """Learner and actors that were heard of lately and did not say that they end."""
        ended, now = self._ended(), time.time()
        words = {"learner": self.learner(), **self.actors()}
        return [
            name
            for name, word in words.items()
            if now - ALIVE_S < float(word.get("at", 0.0)) > ended and word.get("phase") not in (DONE, STOPPED)
        ]

    def _ended(self) -> float:
        return float(self._client.hget(self._keys.control, "ended") or 0.0)

    def want_actors(self, n: int) -> None:
        """Ask the launcher for another number of actors."""
        self._say("wanted", n)

    def tell_actors_wanted(self, n: int) -> None:
        """How many actors the launcher has or waits for."""
        self._say("planned", n)

    def planned_actors(self) -> int | None:
        """How many actors the launcher has or waits for, None before it has said so."""
        found = self._client.hget(self._keys.control, "planned")
        return int(found) if found else None

    def wanted_actors(self) -> int | None:
        """The number that was asked for while the run is in progress, or None."""
        found = self._client.hget(self._keys.control, "wanted")
        return int(found) if found else None

    def fault(self) -> str | None:
        """What went wrong, or None."""
        found = self._client.hget(self._keys.control, "fault")
        return found.decode() if found else None

    def register(self, process: str, part: Part, address: str | None) -> None:
        """Where a process serves its metrics, HOST:PORT; None where it serves none."""
        if address is not None:
            self._client.hset(self._keys.processes, process, json.dumps({"part": part, "address": address}))

    def unregister(self, process: str) -> None:
        """A process ends in good order: that its metrics can't be had is no news."""
        self._client.hdel(self._keys.processes, process)

    def processes(self) -> dict[str, dict[str, str]]:
        """Each registered process' `part` and `address`."""
        return {name.decode(): json.loads(raw) for name, raw in self._client.hgetall(self._keys.processes).items()}

    def put_config(self, config: RunConfig) -> None:
        """Keep the run's settings, secrets left out, for whoever looks at the run without its folder."""
        self._client.set(self._keys.config, config.model_dump_json())

    def config(self) -> RunConfig | None:
        """The run's settings, without its Redis URL; None where there is no such run.

        A task of the user's own is left unread: its module may not be on this machine.
        """
        raw = self._client.get(self._keys.config)
        if raw is None:
            return None
        data = json.loads(raw)
        data["redis"]["url"] = None
        return RunConfig.model_validate(data, context=UNREAD)

    def heartbeat(self, actor_id: str, status: dict[str, Any]) -> None:
        """An actor's word that it lives, and how it does; unheard where Redis has no memory left."""
        with unless_full():
            self._client.hset(self._keys.actors, actor_id, json.dumps({**status, "at": time.time()}))

    def count_tokens(self, tokens: int) -> None:
        """Add to what all actors of the run have read; it stays when a run is resumed."""
        if tokens:
            with unless_full():
                self._client.incrby(self._keys.tokens, tokens)

    def tokens(self) -> int:
        """That actors have sampled, or read to score."""
        return int(self._client.get(self._keys.tokens) or 0)

    def actors(self) -> dict[str, dict[str, Any]]:
        """Every actor's last word, each with `alive`, and with `starting`: it may be silent for minutes until its
        engine is up, and isn't dead."""
        now, ended, found = time.time(), self._ended(), {}
        for name, raw in self._client.hgetall(self._keys.actors).items():
            status = json.loads(raw)
            starting = str(status.get("phase")).startswith(STARTING) and max(ended, now - STARTS_S) < status["at"]
            found[name.decode()] = {**status, "alive": now - status["at"] < ALIVE_S, "starting": starting}
        return found

    def report_learner(self, status: dict[str, Any]) -> None:
        """The learner's present state; unheard where Redis has no memory left."""
        with unless_full():
            self._client.set(self._keys.learner, json.dumps({**status, "at": time.time()}))

    def learner(self) -> dict[str, Any]:
        """The learner's last word, empty before its first."""
        raw = self._client.get(self._keys.learner)
        return dict(json.loads(raw)) if raw else {}
