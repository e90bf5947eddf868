"""cache_teacher.py as a user runs it: any number of processes, killed and started again, and what it refuses."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipeline.data.dataset import PackedDataset
from pipeline.folder_claim import Lock
from pipeline.teacher.cache import TeacherCache
from pipeline.teacher.cache_claims import claim, missing_shards
from pipeline.teacher.verify import verify_cache
from tests.distributed.processes import environment, forked, run
from tests.launchers.conftest import REPOSITORY, launch
from tests.teacher.cache_folders import content
from tests.teacher.capture_inputs import make_data, make_teacher

SCRIPT = "cache_teacher.py"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The flags that name a tiny teacher and data of many small shards."""
    root = tmp_path_factory.mktemp("cache_teacher")
    make_data(root / "data", make_teacher(root / "teacher"), repeats=24)
    assert len(PackedDataset(root / "data").manifest.shards) >= 40
    return ["--model", root / "teacher", "--data", root / "data"]


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory) -> Path:
    """The cache of one process on its own."""
    cache = tmp_path_factory.mktemp("whole") / "cache"
    flags = [*inputs, "--output", cache, "--signal", "sampled"]
    done = launch(SCRIPT, *flags)
    assert done.returncode == 0, done.stderr
    assert f"{cache} is complete" in done.stdout and "tok/s" in done.stderr
    return cache


def test_a_dry_run_foretells_the_cache_and_writes_nothing(inputs, whole, tmp_path) -> None:
    flags = [*inputs, "--output", tmp_path / "cache", "--signal", "sampled"]
    (tmp_path / "no_torch").mkdir()
    (tmp_path / "no_torch/torch.py").write_text("raise ImportError('torch was imported')\n")
    done = launch(SCRIPT, *flags, "--dry_run", PYTHONPATH=str(tmp_path / "no_torch"))
    assert done.returncode == 0 and not (tmp_path / "cache").exists(), done.stderr
    _, counts = verify_cache(whole, PackedDataset(inputs[3]))
    found = sum(path.stat().st_size for path in whole.glob("shard-*"))
    assert re.search(rf"positions +{counts.num_positions} ", done.stdout), done.stdout
    assert found <= int(re.search(r"file size +at most .*?(\d+) bytes\)? in", done.stdout)[1]) < 4 * found


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [2, 3])
def test_several_processes_write_the_bytes_of_one(inputs, whole, tmp_path, num_processes) -> None:
    """Two ranks of torchrun, which ends when both do; or three processes that know nothing of each other."""
    command = [REPOSITORY / "launchers" / SCRIPT, *inputs, "--output", tmp_path / "cache", "--signal", "sampled"]
    if num_processes == 2:
        torchrun = shutil.which("torchrun", path=str(REPOSITORY / ".venv/bin"))
        done = run([torchrun, "--standalone", "--nproc_per_node", 2, "--", *command], tmp_path / "log", cwd=Path("/"))
        assert done.returncode == 0, done.output
        output = done.output
    else:
        logs = [tmp_path / f"{number}.log" for number in range(3)]
        with ExitStack() as stack:
            jobs = [stack.enter_context(forked(command, log, environment())) for log in logs]
            codes = [job.wait(120) for job in jobs]
        output = "".join(log.read_text() for log in logs)
        assert codes == [0, 0, 0], output
    written = [int(number) for number in re.findall(r"wrote (\d+) shards", output)]
    assert len(written) == num_processes and sum(written) == len(list(whole.glob("*.tar"))), output
    assert f"{tmp_path}/cache is complete" in output
    assert content(tmp_path / "cache") == content(whole)


def start(command: list[object], **env: str) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *map(str, command)], text=True, env=environment(**env), **pipes)


@pytest.mark.slow
def test_killed_in_the_middle_and_started_again(inputs, whole, tmp_path) -> None:
    cache = tmp_path / "cache"
    flags = [*inputs, "--output", cache, "--signal", "sampled"]
    with forked([REPOSITORY / "launchers" / SCRIPT, *flags], tmp_path / "log", environment()) as job:
        deadline = time.monotonic() + 60
        while len(list(cache.glob("*.idx.npy"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(job.pid, signal.SIGKILL)
        job.wait(60)
    assert job.returncode == -signal.SIGKILL
    left = TeacherCache(cache, PackedDataset(inputs[3])).missing
    assert 0 < len(left) < len(list(whole.glob("*.tar")))
    done = launch(SCRIPT, *flags)
    assert done.returncode == 0 and f"wrote {len(left)} shards" in done.stdout, done.stderr
    assert content(cache) == content(whole)


def stop_in_a_shard(job: subprocess.Popen, cache: Path, dataset: PackedDataset) -> None:
    """Stops the process at an instant when it holds the claim on a shard that is not finished."""
    for _ in range(1000):
        while not list(cache.glob("shard-*.tmp")):
            assert job.poll() is None
            time.sleep(0.001)
        job.send_signal(signal.SIGSTOP)
        os.waitpid(job.pid, os.WUNTRACED)
        for entry in missing_shards(cache, dataset.manifest):
            with claim(cache, entry.name) as state:
                if state is Lock.TAKEN:
                    return
        job.send_signal(signal.SIGCONT)
    pytest.fail("the process was never found at work on a shard")


@pytest.mark.slow
def test_a_process_that_finds_all_shards_taken_ends_and_says_so(inputs, tmp_path) -> None:
    """The other one is stopped while it holds its claim; woken up, it goes on and completes the cache."""
    cache, dataset = tmp_path / "cache", PackedDataset(inputs[3])
    flags = [*inputs, "--output", cache, "--signal", "topk", "--k", "8"]
    with start([REPOSITORY / "launchers" / SCRIPT, *flags]) as first:
        stop_in_a_shard(first, cache, dataset)
        second = launch(SCRIPT, *flags)
        first.send_signal(signal.SIGCONT)
        out, error = first.communicate(timeout=60)
    assert second.returncode == 0, second.stderr
    assert f"{cache} lacks 1 shards, which other processes work on" in second.stdout
    assert first.returncode == 0 and f"{cache} is complete" in out, error
    verify_cache(cache, dataset)


def test_mistakes_are_refused_in_one_line_before_torch_is_imported(inputs, refused, tmp_path) -> None:
    output = ["--output", tmp_path / "out"]
    signal_flags = ["--signal", "topk", *output]
    assert "--dtype int8: has no meaning for --signal topk" in refused(
        SCRIPT, *inputs, *signal_flags, "--dtype", "int8"
    )
    zero2 = REPOSITORY / "ds_configs/zero2.json"
    assert "has ZeRO stage 2, only stage 3" in refused(SCRIPT, *inputs, *signal_flags, "--ds_config", zero2)
    assert "sgnal" in refused(SCRIPT, *inputs, *output, "--sgnal", "topk")
    assert "has no config.json" in refused(SCRIPT, "--model", tmp_path, *inputs[2:], *signal_flags)
    assert "does not exist" in refused(SCRIPT, *inputs[:2], "--data", tmp_path / "gone", *signal_flags)
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(SCRIPT, *inputs, "--signal", "topk", "--output", tmp_path / "file")
    other = shutil.copytree(inputs[1], tmp_path / "other")
    settings, tokenizer = (json.loads((other / name).read_text()) for name in ("config.json", "tokenizer.json"))
    (other / "config.json").write_text(json.dumps({**settings, "ahn": {"cell": "mamba2"}}))
    assert "is an AHN model, the teacher is its base" in refused(SCRIPT, "--model", other, *inputs[2:], *signal_flags)
    (other / "config.json").write_text(json.dumps(settings))
    tokenizer["model"]["vocab"]["another"] = 97
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "was tokenised with tiny" in refused(SCRIPT, "--model", other, *inputs[2:], *signal_flags)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_else_is_refused(inputs, whole, refused) -> None:
    before = content(whole)
    flags = [*inputs, "--signal", "hidden"]
    assert "signal.kind is sampled, not hidden" in refused(SCRIPT, *flags, "--output", whole)
    done = launch(SCRIPT, *flags, "--output", inputs[3])  # the data itself: seen before the model is loaded
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "holds manifest.json and no" in done.stderr
    assert content(whole) == before


@pytest.mark.slow
def test_a_disk_without_room_ends_in_one_line_and_a_rerun_goes_on(inputs, whole, tmp_path) -> None:
    """A limit on the size of a file that only the later shards exceed stands for the full disk."""
    cache = tmp_path / "cache"
    flags = [*inputs, "--output", cache, "--signal", "sampled"]
    sizes = [path.stat().st_size for path in sorted(whole.glob("*.tar"))]
    limit = sizes[0]
    assert limit < max(sizes)
    code = f"import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
    code += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    with start(["-c", code, REPOSITORY / "launchers" / SCRIPT, *flags]) as job:
        _, error = job.communicate(timeout=60)
    assert job.returncode == 2 and "Traceback" not in error, error
    assert f"error: --output {cache} cannot be written: File too large; mend that" in error.splitlines()[-1]
    assert list(cache.glob("*.idx.npy"))
    assert launch(SCRIPT, *flags).returncode == 0
    assert content(cache) == content(whole)
