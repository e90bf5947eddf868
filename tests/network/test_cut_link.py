"""Runs on two hosts, two ranks on each: the link between them is cut in mid-run, and the run goes on when it is back.

deepspeed and torchrun are started on each host, deepspeed by its `--no_ssh` and a hostfile; mpiexec on the first host,
from which it reaches the other by what takes ssh's place. deepspeed's own ssh (pdsh) is not covered.
"""

import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import pytest

from pipeline.distributed.launch import free_port
from pipeline.metrics.logger import read_metrics
from tests.distributed.processes import DEEPSPEED, TRAIN, environment, run_ranks, started
from tests.drill import record
from tests.killing import marked_processes, new_mark
from tests.network.hosts import ADDRESSES, TwoHosts
from tests.training.launched_runs import (
    MAX_STEPS,
    SAVE_EVERY,
    arguments,
    assert_same_run,
    mathematics,
    wait_for_step,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
BIN = Path(sys.executable).parent
TIMEOUT_S, SLACK_S = 5, 15  # slack: a rank takes 5 s to write its stacks and leave, deepspeed 2 to see it


def commands(launcher: str, hosts: TwoHosts, folder: Path, train: list[object]) -> list[list[str]]:
    """What to start for one run, on the hosts."""
    address, port, lines = ADDRESSES["left"], free_port(), []
    if launcher == "mpiexec":
        ssh = ["-launcher", "ssh", "-launcher-exec", hosts.ssh, "-hosts", "left:2,right:2"]
        return [hosts.on("left", BIN / "mpiexec", *ssh, "-n", 4, sys.executable, TRAIN, *train)]
    hostfile = folder / "hostfile"
    hostfile.write_text("left slots=2\nright slots=2\n")
    for number, name in enumerate(ADDRESSES):
        meeting = ["--node_rank", number, "--master_addr", address, "--master_port", port]
        if launcher == "deepspeed":
            command = [DEEPSPEED, "--hostfile", hostfile, "--no_ssh", *meeting, TRAIN, *train]
        else:
            command = [BIN / "torchrun", "--nnodes", 2, "--nproc_per_node", 2, *meeting, "--", TRAIN, *train]
        lines.append(hosts.on(name, *command))
    return lines


def processes(mark: str, file: str, is_one: Callable[[bytes], bool]) -> list[int]:
    """Those of the run's processes whose /proc/PID/`file` says that they are one of those asked for."""
    found = []
    for pid in marked_processes(mark):
        with suppress(OSError):  # has just ended
            if is_one(Path(f"/proc/{pid}/{file}").read_bytes()):
                found.append(pid)
    return found


def has_rank(environ: bytes) -> bool:
    return any(variable.startswith((b"RANK=", b"PMI_RANK=")) for variable in environ.split(b"\0"))


def wait_for_none(find: Callable[[], list[int]], deadline: float) -> None:
    while left := find():
        lines = [Path(f"/proc/{pid}/cmdline") for pid in left]
        assert time.monotonic() < deadline, [line.read_bytes() for line in lines if line.exists()]
        time.sleep(0.1)


def cut_in_mid_run(launcher: str, hosts: TwoHosts, train: list[object], output: Path, step: int) -> dict:
    """Cuts the link after that step; in how many seconds the ranks, and the launchers, have ended, and how."""
    mark, env = new_mark()
    with ExitStack() as stack:
        logs = [output.parent / f"{launcher}-{number}.log" for number in range(2)]
        launchers = [
            stack.enter_context(started(command, log, env))
            for command, log in zip(commands(launcher, hosts, output.parent, train), logs, strict=False)
        ]
        wait_for_step(output, step, time.monotonic() + 120)
        hosts.cut()
        cut = time.monotonic()
        wait_for_none(partial(processes, mark, "environ", has_rank), cut + TIMEOUT_S + SLACK_S)
        ranks_s = time.monotonic() - cut
        wait_for_none(partial(marked_processes, mark), cut + TIMEOUT_S + SLACK_S)
        launchers_s = time.monotonic() - cut
        codes = [process.wait() for process in launchers]
    hosts.mend()
    done = len(read_metrics(output / "metrics.jsonl"))
    assert 0 not in codes and step <= done < MAX_STEPS
    for rank in range(4):
        assert "trainer.py" in (output / "stacks" / f"rank-{rank}.txt").read_text()
    shutil.rmtree(output / "stacks")
    return {
        "launcher": launcher,
        "steps_done": done,
        "exit_codes": codes,
        "seconds_to_ranks_end": round(ranks_s, 1),
        "seconds_to_launchers_end": round(launchers_s, 1),
    }


def run_to_the_end(launcher: str, hosts: TwoHosts, train: list[object], folder: Path) -> None:
    with ExitStack() as stack:
        logs = [folder / f"end-{number}.log" for number in range(2)]
        launchers = [
            stack.enter_context(started(command, log, environment()))
            for command, log in zip(commands(launcher, hosts, folder, train), logs, strict=False)
        ]
        for process, log in zip(launchers, logs, strict=False):
            assert process.wait(200) == 0, log.read_text(errors="replace")[-3000:]


def run_on_one_host(train: list[object], folder: Path) -> None:
    finished = run_ranks(TRAIN, train, folder, num_ranks=4, timeout=200)
    assert not any(rank.returncode for rank in finished), finished[0].output[-3000:]


def test_a_cut_link_ends_both_hosts_and_the_run_goes_on(hosts, inputs, tmp_path):
    """Cut under mpiexec, on under torchrun to the end; the drill compares it with a run on one host."""
    output = tmp_path / "run"
    train = arguments(inputs, output, "--train.step_timeout_s", TIMEOUT_S)
    done = cut_in_mid_run("mpiexec", hosts, train, output, step=8)["steps_done"]
    before = mathematics(output)
    run_to_the_end("torchrun", hosts, train, tmp_path)
    assert len(before) == done and mathematics(output)[:SAVE_EVERY] == before[:SAVE_EVERY]
    assert [row["step"] for row in mathematics(output)] == list(range(1, MAX_STEPS + 1))


@pytest.mark.drill
def test_the_link_is_cut_under_every_launcher_in_turn(hosts, inputs, tmp_path):
    """Two ranks of a host hold each sample together; cut under one launcher, on under the next."""
    output, flags = tmp_path / "run", ("--sequence_parallel_size", 2, "--train.step_timeout_s", TIMEOUT_S)
    train = arguments(inputs, output, *flags)
    cuts = [
        cut_in_mid_run(launcher, hosts, train, output, step)
        for launcher, step in (("deepspeed", 8), ("torchrun", 15), ("mpiexec", 22))
    ]
    run_to_the_end("mpiexec", hosts, train, tmp_path)
    run_on_one_host(arguments(inputs, tmp_path / "whole", *flags), tmp_path)
    assert_same_run(output, tmp_path / "whole")
    record(
        "link_cuts",
        {
            "hosts": "2 network namespaces joined by veth, 2 ranks each",
            "step_timeout_s": TIMEOUT_S,
            "cuts": cuts,
            "adapter_and_final_checkpoint_equal_those_of_one_host_to_the_last_bit": True,
        },
    )
