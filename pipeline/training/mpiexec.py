"""Ends MPICH's mpiexec, which would wait for ever for hosts that are out of reach."""

import os
from contextlib import suppress

import psutil

NAMES = {"mpiexec", "mpiexec.hydra", "mpirun"}


def end_mpiexec() -> None:
    """Kills the mpiexec that this rank belongs to, if it runs on this host and has ranks on others, too.

    This process may not live on: mpiexec's proxy then kills the ranks of its host.

    Raises:
        psutil.Error: mpiexec ended meanwhile.
    """
    if int(os.environ.get("MPI_LOCALNRANKS", "1")) >= int(os.environ.get("PMI_SIZE", "1")):
        return
    parents = psutil.Process().parents()
    mpiexec = _find_mpiexec(parents)
    if mpiexec is not None:
        for child in mpiexec.children():
            if child not in parents:  # ssh to another host: it would wait, too
                with suppress(psutil.NoSuchProcess):
                    child.terminate()
        mpiexec.kill()  # SIGTERM it would only hand on to the ranks


def _find_mpiexec(parents: list[psutil.Process]) -> psutil.Process | None:
    """The one that this rank's proxy is connected with: in a Slurm job it is not among the parents."""
    proxy = next((process for process in parents if process.name() == "hydra_pmi_proxy"), None)
    if proxy is None:
        return None
    sockets = {(own.laddr, own.raddr) for own in proxy.net_connections("tcp")}  # may include mpiexec's own, inherited
    sockets |= {(there, here) for here, there in sockets}
    for process in psutil.process_iter(["name", "username"]):
        named = process.info["name"] in NAMES and process.info["username"] == proxy.username()
        if named and any((other.laddr, other.raddr) in sockets for other in process.net_connections("tcp")):
            return process
    return None
