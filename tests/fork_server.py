"""Starts scripts in processes that have torch, transformers and deepspeed already: forks of one that imported them.

Those imports take five seconds of processor time, more than most scripts of the tests then need. A fork is otherwise a
process as any: with a session, an environment, files and an end of its own. What is to be seen before the imports, and
what reads its environment in them, is to be started as users start it.
"""

import atexit
import functools
import gc
import json
import os
import runpy
import select
import subprocess
import sys
from pathlib import Path

IMPORTED = ("deepspeed", "pipeline.evaluation.catalogue", "pipeline.evaluation.runner", "pipeline.training.trainer")


class Forked:
    """A started script; as much of `subprocess.Popen` as tests need."""

    def __init__(self, pid: int, server: "ForkServer") -> None:
        self.pid, self.returncode = pid, None
        self._server, self._end = server, os.pidfd_open(pid)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative for a signal.

        Raises:
            subprocess.TimeoutExpired: it has not ended.
        """
        if self.returncode is None:
            if not select.select([self._end], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            self.returncode = self._server.ask({"ended": self.pid})
            os.close(self._end)
        return self.returncode


class ForkServer:
    """The process that imports, and of which scripts' processes are forks; it ends with this one."""

    def __init__(self) -> None:
        here = str(Path(__file__).parents[1])  # not the checkout that an editable install may name
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": here}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._server = subprocess.Popen(
            [sys.executable, __file__], text=True, env=environment, start_new_session=True, **pipes
        )

    def start(self, arguments: list[str], environment: dict[str, str], folder: str, files: list[str]) -> Forked:
        """Starts a script in a session of its own.

        Args:
            arguments: the script's path, and what follows it.
            environment: the whole of it.
            folder: to work in.
            files: stdin, which is read, stdout and stderr, which are written and may be the same.
        """
        request = {"arguments": arguments, "environment": environment, "folder": folder, "files": files}
        return Forked(self.ask(request), self)

    def ask(self, request: dict) -> int:
        print(json.dumps(request), file=self._server.stdin, flush=True)
        answer = self._server.stdout.readline()
        assert answer, f"the fork server has ended with exit code {self._server.wait()}"
        return int(answer)


def can_fork() -> bool:
    """Not where there is a GPU: its driver does not outlive a fork."""
    return not Path("/dev/nvidiactl").exists()


@functools.cache
def fork_server() -> ForkServer:
    """This process's."""
    return ForkServer()


def run_script(request: dict) -> None:
    """Becomes the script's process, in a fork of the server."""
    os.setsid()
    source, *sinks = request["files"]
    opened = [os.open(source, os.O_RDONLY)]
    opened += [os.open(sink, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND) for sink in sinks]
    for number, descriptor in enumerate(opened):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 (until the process ends)
    atexit.register(gc.unfreeze)  # at an end with frozen objects, libraries report them as leaks
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv, script = request["arguments"], request["arguments"][0]
    sys.path[:1] = [str(Path(script).parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    runpy.run_path(script, run_name="__main__")


def serve() -> None:
    """Answers a request to start a script with its process id, one about a script that has ended with its exit code."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # deepspeed prints when it is imported
    for name in IMPORTED:
        __import__(name)
    assert len(os.listdir("/proc/self/task")) == 1, "a fork would lack the other threads"
    gc.freeze()  # a collection in a fork does not copy all of this
    for line in sys.stdin:
        request = json.loads(line)
        if "ended" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["ended"], 0)[1])
        else:
            sys.stdout.flush()
            answer = os.fork()
            if answer == 0:
                answers.close()
                return run_script(request)
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    serve()
