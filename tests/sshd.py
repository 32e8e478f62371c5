"""OpenSSH servers in the hosts of `tests.hosts`, which let root in with one key."""

from __future__ import annotations

import functools
import pwd
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from tests import hosts
from tests.hosts import Host

SBIN = "/usr/sbin"
START_LIMIT_S = 30.0
_OPTIONS = ("PermitRootLogin=prohibit-password", "PasswordAuthentication=no", "UsePAM=no", "UseDNS=no", "PrintMotd=no")


@functools.cache
def why_not() -> str | None:
    """Why hosts with ssh can't be had here, or None; for `pytest.skip`."""
    missing = [tool for tool in ("ssh", "ssh-keygen", "rsync") if shutil.which(tool) is None]
    if _sshd() is None:
        missing.append("sshd")
    if missing:
        return f"hosts with ssh need {', '.join(missing)} (openssh-server, openssh-client, rsync)"
    return hosts.why_not()


def serve_ssh(machines: Iterable[Host], folder: Path) -> Path:
    """Start a server on port 22 of each; the private key that opens them all, in `folder` on this machine."""
    key = folder / "key.pem"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    public = key.with_suffix(".pem.pub").read_text()
    for host in machines:
        _start(host, public)
    return key


def _sshd() -> str | None:
    return shutil.which("sshd") or shutil.which("sshd", path=SBIN)


def _start(host: Host, public: str) -> None:
    home = pwd.getpwuid(0).pw_dir
    host.run(
        # A server that knows no other way in refuses an account whose password is locked.
        "set -e; usermod -p '*' root; mkdir -p /run/sshd; rm -f /etc/ssh/ssh_host_*;"
        " ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key;"
        f" rm -rf {home}/.ssh; mkdir -m 700 {home}/.ssh; cat > {home}/.ssh/authorized_keys",
        input=public,
    )
    sshd = _sshd()
    assert sshd is not None
    options = [part for option in _OPTIONS for part in ("-o", option)]
    host.run([sshd, "-f", "/dev/null", "-h", "/etc/ssh/ssh_host_ed25519_key", "-E", "/tmp/sshd.log", *options])
    deadline = time.monotonic() + START_LIMIT_S
    while host.run("exec 3<>/dev/tcp/localhost/22", check=False).returncode:
        assert time.monotonic() < deadline, (host.tmp / "sshd.log").read_text()
        time.sleep(0.05)
