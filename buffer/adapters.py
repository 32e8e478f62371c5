"""The adapter registry: versions of the LoRA weights, published by the learner, fetched by actors.

A version is a set of files (safetensors and JSON, nothing that needs unpickling) with a sha256 over all of them.
Content is written first and the pointer last, so a reader sees a whole version or none.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from buffer.connection import Client, Keys
from buffer.scripts import load_script
from common.adapter_files import files_sha256

CHUNK_BYTES = 64 * 2**20
_SUFFIXES = (".safetensors", ".json")


class AdapterError(RuntimeError):
    """A version that can't be published or isn't whole; the message says which and why."""


@dataclass(frozen=True)
class Adapter:
    """One version, verified."""

    version: int
    sha256: str
    published_at: float
    """Seconds since the epoch."""
    files: dict[str, bytes]


class AdapterRegistry:
    """Versions count up from 1."""

    def __init__(self, client: Client, keys: Keys, keep: int = 4) -> None:
        self._client, self._keys, self._keep = client, keys, keep
        self._publish = load_script(client, "publish")

    def publish(self, version: int, files: Mapping[str, bytes]) -> str:
        """Make a version the newest; returns its sha256. Raises AdapterError if it isn't newer than the present one.

        A lost answer does no harm: a command that the client sends again changes nothing.
        """
        wrong = [name for name in files if not name.endswith(_SUFFIXES)]
        if wrong or not files:
            raise AdapterError(f"adapter version {version}: {wrong or 'no files'}; only safetensors and JSON are taken")
        sha256 = files_sha256(files)
        key = self._keys.adapter(version)
        if version <= self.latest():
            raise AdapterError(f"adapter version {version} is not newer than version {self.latest()}")
        manifest = {
            "sha256": sha256,
            "published_at": time.time(),
            "files": {name: len(data) for name, data in files.items()},
        }
        self._client.delete(key)
        for name, data in files.items():
            for start in range(0, max(1, len(data)), CHUNK_BYTES):
                self._client.hset(key, f"{name}#{start // CHUNK_BYTES}", data[start : start + CHUNK_BYTES])
        self._client.hset(key, "manifest", json.dumps(manifest))
        names = self._keys
        taken = self._publish(
            keys=[names.adapter_latest, names.adapter_versions, names.adapter_sha256s, names.adapter_pinned],
            args=[version, sha256, self._keep, names.adapter_prefix],
        )
        if not taken:
            raise AdapterError(f"adapter version {version} is not newer than version {self.latest()}")
        return sha256

    def published(self, versions: Iterable[int] | None = None) -> dict[int, str]:
        """The sha256 of each of these versions, or of all, that the run has published, whether it is kept or not."""
        if versions is None:
            known = self._client.hgetall(self._keys.adapter_sha256s)
            return {int(version): sha256.decode() for version, sha256 in known.items()}
        asked = sorted(set(versions))
        found = self._client.hmget(self._keys.adapter_sha256s, asked) if asked else []
        return {version: sha256.decode() for version, sha256 in zip(asked, found, strict=True) if sha256 is not None}

    def pin(self, version: int) -> None:
        """Keep a version until it is unpinned, however many newer ones there are."""
        self._client.sadd(self._keys.adapter_pinned, version)

    def unpin(self, version: int) -> None:
        """A version is kept no longer than others."""
        if self._client.srem(self._keys.adapter_pinned, version) and not self._is_kept(version):
            self._client.delete(self._keys.adapter(version))

    def unpin_up_to(self, version: int) -> None:
        """The same of a version and all older ones."""
        for pinned in sorted(map(int, self._client.smembers(self._keys.adapter_pinned))):
            if pinned <= version:
                self.unpin(pinned)

    def drop_older(self) -> None:
        """Leave the newest version alone, for when nobody has any in use."""
        latest = self.latest()
        self.unpin_up_to(latest)
        for version in map(int, self._client.zrange(self._keys.adapter_versions, 0, -1)):
            if version < latest:
                self._client.zrem(self._keys.adapter_versions, version)
                self._client.delete(self._keys.adapter(version))

    def _is_kept(self, version: int) -> bool:
        return self._client.zscore(self._keys.adapter_versions, version) is not None

    def latest(self) -> int:
        """The newest version, 0 before the first."""
        return int(self._client.get(self._keys.adapter_latest) or 0)

    def fetch(self, version: int) -> Adapter:
        """A version's files; raises AdapterError if it has expired or its sha256 doesn't match."""
        raw = {field.decode(): data for field, data in self._client.hgetall(self._keys.adapter(version)).items()}
        if "manifest" not in raw:
            raise AdapterError(f"adapter version {version} is not in the registry (newest is {self.latest()})")
        manifest = json.loads(raw["manifest"])
        files = {name: _join(raw, name) for name in manifest["files"]}
        if files_sha256(files) != manifest["sha256"]:
            raise AdapterError(f"adapter version {version} does not match its sha256 {manifest['sha256']}")
        return Adapter(version, manifest["sha256"], manifest["published_at"], files)


def _join(raw: Mapping[str, bytes], name: str) -> bytes:
    chunks: list[bytes] = []
    while (field := f"{name}#{len(chunks)}") in raw:
        chunks.append(raw[field])
    return b"".join(chunks)
