"""Two hosts with a cable between them, on this machine and for the time of a test."""

import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

ADDRESSES = {"left": "10.77.0.1", "right": "10.77.0.2"}
_MACHINE = ["unshare", "--pid", "--mount-proc", "--fork", "--kill-child=KILL"]
_HOST = ["unshare", "--net", "--uts", "--ipc", "--mount"]
_CABLE = ["ip", "link", "add", "eth0", "type", "veth", "peer", "name"]
_BOOT = """
set -e
hostname "$1"
mount --bind "$2" /etc/hosts
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /dev/shm
ip link set lo up
echo $$
exec sleep infinity
"""
_ENTER = """#!/bin/sh
pid=$(cat "$(dirname "$0")/$1.pid")
shift
exec nsenter --target "$pid" --net --uts --ipc --mount -- sh -c "$*"
"""
_SSH = """#!/bin/sh
# As MPICH's mpiexec calls ssh: [-x] HOST COMMAND. As ssh, it hears of the command's end by the link alone.
[ "$1" = -x ] && shift
"$(dirname "$0")/enter" "$@"
code=$?
until grep -q up /sys/class/net/eth0/operstate; do sleep 0.1; done
exit $code
"""


def why_not() -> str | None:
    """Why there can be no such hosts here; None where there can."""
    try:
        probe = subprocess.run([*_MACHINE, *_HOST, *_CABLE, "eth1"], capture_output=True, text=True)
    except FileNotFoundError as error:
        return str(error)
    return f"no namespaces with a network are to be had: {probe.stderr.strip()}" if probe.returncode else None


class TwoHosts:
    """`left` and `right`, to use as a context manager; nothing of them is left afterwards, nor when this process dies.

    Each has a network, a name, /etc/hosts (as Debian's: its own name is 127.0.1.1 there) and /dev/shm of its own. They
    share this machine's files, as from a file server, and its processors. `ssh` is a program that takes the place of
    ssh between them.
    """

    def __enter__(self) -> "TwoHosts":
        self._folder = Path(tempfile.mkdtemp(prefix="hosts-"))
        self.ssh = self._folder / "ssh"
        self._enter = self._folder / "enter"
        for program, text in ((self.ssh, _SSH), (self._enter, _ENTER)):
            program.write_text(text)
            program.chmod(0o755)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._machine = subprocess.Popen([*_MACHINE, "sh", "-c", "echo; exec cat"], **pipes)  # ends with its input
        self._machine.stdout.readline()
        self._hosts = [self._boot(name) for name in ADDRESSES]
        peer = (self._folder / "right.pid").read_text().strip()
        self.run("left", *_CABLE, "eth0", "netns", peer)
        for name, address in ADDRESSES.items():
            self.run(name, "ip", "address", "add", f"{address}/24", "dev", "eth0")
            self.run(name, "ip", "link", "set", "eth0", "up")
        self._wait_for_link()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in (self._machine, *self._hosts):
            process.communicate(timeout=30)
        shutil.rmtree(self._folder)

    def on(self, name: str, *command: object) -> list[str]:
        """The command line that runs `command` on that host."""
        return [*self._inside(), str(self._enter), name, shlex.join(str(part) for part in command)]

    def run(self, name: str, *command: object) -> None:
        subprocess.run(self.on(name, *command), check=True, timeout=30)

    def cut(self) -> None:
        """From now on nothing arrives any more; no connection is told."""
        self.run("left", "ip", "link", "set", "eth0", "down")

    def mend(self) -> None:
        """As before `cut`."""
        self.run("left", "ip", "link", "set", "eth0", "up")
        self._wait_for_link()

    def _boot(self, name: str) -> subprocess.Popen:
        known = {"localhost": "127.0.0.1", **ADDRESSES, name: "127.0.1.1"}
        table = self._folder / f"{name}.hosts"
        table.write_text("".join(f"{address} {host}\n" for host, address in known.items()))
        command = [*self._inside(), *_HOST, "sh", "-c", _BOOT, "boot", name, str(table)]
        host = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        (self._folder / f"{name}.pid").write_text(host.stdout.readline())
        return host

    def _inside(self) -> list[str]:
        spaces = f"/proc/{self._machine.pid}/ns"
        return ["nsenter", f"--pid={spaces}/pid_for_children", f"--mount={spaces}/mnt", "--"]

    def _wait_for_link(self) -> None:
        """Each end is told up to a second later."""
        for name in ADDRESSES:
            self.run(name, "sh", "-c", "until grep -q up /sys/class/net/eth0/operstate; do sleep 0.05; done")
