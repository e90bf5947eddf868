"""The files of a Slurm cluster whose nodes are all on this machine, each at a loopback address of its own."""

import os
import secrets
import socket
import stat
from contextlib import ExitStack
from pathlib import Path

HEAD_ADDRESS = "127.0.0.1"
NODE_ADDRESS = "127.0.13.{}"

# linuxproc, task/none: without cgroups and systemd. cred_expire: the least, which a requeued job waits.
SLURM_CONF = """\
ClusterName=tests
SlurmctldHost=head({head})
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
TmpFS=/tmp
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SwitchType=switch/none
MpiDefault=none
KillWait=2
CompleteWait=0
MinJobAge=3600
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
{nodes}
PartitionName=tests Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def write_cluster(folder: Path, nodes: list[str], num_cpus: int, num_gpus: int) -> None:
    """Writes what munged, slurmctld and slurmd read: munge.key, slurm.conf, gres.conf, cgroup.conf, hosts.

    Args:
        folder: new, and with a short name: it holds a socket.
        nodes: their names.
        num_cpus: of each node; need not be there.
        num_gpus: of each node; device files that only look like GPUs.
    """
    folder.chmod(0o711)  # munged wants its socket reachable
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(256))
    addresses = {node: NODE_ADDRESS.format(number) for number, node in enumerate(nodes, 1)}
    port, *node_ports = _free_ports(1 + len(nodes))
    lines = [
        f"NodeName={node} NodeAddr={addresses[node]} Port={node_port} CPUs={num_cpus} RealMemory=8000 "
        f"Gres=gpu:{num_gpus} State=UNKNOWN"
        for node, node_port in zip(nodes, node_ports, strict=True)
    ]
    conf = SLURM_CONF.format(folder=folder, head=HEAD_ADDRESS, port=port, nodes="\n".join(lines))
    (folder / "slurm.conf").write_text(conf)
    for number in range(num_gpus):
        os.mknod(folder / f"gpu{number}", stat.S_IFCHR | 0o666, os.makedev(1, 3))  # /dev/null by another name
    (folder / "gres.conf").write_text(f"NodeName={','.join(nodes)} Name=gpu File={folder}/gpu[0-{num_gpus - 1}]\n")
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    hosts = {"localhost": HEAD_ADDRESS, "head": HEAD_ADDRESS, **addresses}
    (folder / "hosts").write_text("".join(f"{address} {name}\n" for name, address in hosts.items()))


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HEAD_ADDRESS, 0))
        return [each.getsockname()[1] for each in sockets]
