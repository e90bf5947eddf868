"""Data behind a URL: memory, files and a real HTTP server, through a cache that processes share."""

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest

from pipeline.config import ConfigError, TrainRunConfig, parse_cli
from pipeline.data.dataset import PackedDataset
from pipeline.data.loader import SampleStream, Shuffle
from pipeline.data.shard_cache import default_cache
from pipeline.data.shard_format import DataError
from pipeline.training.preflight import check_cache, open_stream
from tests.data.folders import make_folder

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_SAMPLES = 40


class Server(ThreadingHTTPServer):
    """Serves a folder; counts GETs by file name, and cuts the first `num_cuts` answers of a tar short."""

    def __init__(self, folder: Path) -> None:
        self.gets: Counter[str] = Counter()
        self.num_cuts, self.delay = 0, 0.0
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def tar_gets(self) -> dict[str, int]:
        return {name: count for name, count in self.gets.items() if name.endswith(".tar")}


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        self.server.gets[name] += 1
        if not name.endswith(".tar"):
            return super().do_GET()
        time.sleep(self.server.delay)
        if self.server.num_cuts <= 0:
            return super().do_GET()
        self.server.num_cuts -= 1
        content = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.close_connection = True

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "data", {"data": NUM_SAMPLES}, shard_bytes=15_000)


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def cached_tars(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if path.suffix == ".tar") if cache.exists() else []


def in_memory(folder: Path) -> str:
    files = fsspec.filesystem("memory")
    root = f"/{folder.parent.name}"
    files.put(str(folder), root, recursive=True)
    return f"memory:/{root}"


@pytest.mark.parametrize("kind", ["memory", "file", "http"])
def test_a_url_gives_the_samples_of_the_folder(folder: Path, cache: Path, server: Server, kind: str) -> None:
    url = {"memory": in_memory, "file": Path.as_uri, "http": lambda _: server.url}[kind](folder)
    local, remote = PackedDataset(folder), PackedDataset(url, cache)
    assert remote.fingerprint == local.fingerprint and len(remote) == NUM_SAMPLES and remote.is_remote
    assert not cached_tars(cache)  # opening fetches the manifest only
    for number in np.random.default_rng(0).permutation(NUM_SAMPLES):
        there, here = remote[int(number)], local[int(number)]
        assert there.key == here.key and there.meta == here.meta
        np.testing.assert_array_equal(there.input_ids, here.input_ids)
    fetched = cached_tars(cache)
    assert len(fetched) == len(local.manifest.shards) == 10
    assert {path.name.partition("-")[2]: path.read_bytes() for path in fetched} == {
        path.name: path.read_bytes() for path in folder.glob("*.tar")
    }
    assert not [path.name for path in cache.iterdir() if path.suffix not in (".tar", ".npy", ".lock")]


def test_what_is_cached_is_not_fetched_again(cache: Path, server: Server) -> None:
    for _ in range(2):
        assert [s.key for s in map(PackedDataset(server.url, cache).__getitem__, range(9))][-1] == "00000-000008"
    assert set(server.tar_gets.values()) == {1} and server.gets["manifest.json"] == 2


def test_a_cached_shard_of_the_wrong_size_is_fetched_again(cache: Path, server: Server) -> None:
    dataset = PackedDataset(server.url, cache)
    key = dataset[0].key
    (path,) = cached_tars(cache)
    os.truncate(path, 700)
    assert dataset[0].key == key and list(server.tar_gets.values()) == [2]


def test_a_damaged_cached_shard_is_named_with_its_origin(cache: Path, server: Server) -> None:
    dataset = PackedDataset(server.url, cache)
    dataset[0]
    (path,) = cached_tars(cache)
    raw = bytearray(path.read_bytes())
    raw[600] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"sample 0 of the shard .* is damaged") as error:
        dataset[0]
    message = str(error.value)
    assert (
        f"{server.url}/shard-00000-000.tar" in message and f"(copy: {path})" in message and "delete the copy" in message
    )
    path.unlink()
    assert dataset[0].key == "00000-000000"


def test_a_download_that_breaks_off_is_tried_again(cache: Path, server: Server) -> None:
    server.num_cuts = 1
    assert PackedDataset(server.url, cache)[0].key == "00000-000000"
    assert list(server.tar_gets.values()) == [2]


def test_a_download_that_always_breaks_off_is_one_line_and_leaves_nothing(cache: Path, server: Server) -> None:
    server.num_cuts = 100
    dataset = PackedDataset(server.url, cache)
    with pytest.raises(DataError, match=rf"^{server.url}/shard-00000-000.tar cannot be fetched: \S.*$") as error:
        dataset[0]
    assert "\n" not in str(error.value) and list(server.tar_gets.values()) == [3]
    assert not [path.name for path in cache.iterdir() if path.suffix in (".tar", ".part")]


@pytest.mark.parametrize(("change", "message"), [("shorten", r"came with 512 bytes, the manifest says \d+"),
                                                 ("alter", "does not match its sha256")])  # fmt: skip
def test_a_shard_that_is_not_the_manifests_is_refused(folder: Path, cache: Path, change: str, message: str) -> None:
    path = folder / "shard-00000-000.tar"
    raw = path.read_bytes()
    path.write_bytes(raw[:512] if change == "shorten" else raw[:-1] + b"x")
    with pytest.raises(DataError, match=f"{folder.as_uri()}/shard-00000-000.tar {message}"):
        PackedDataset(folder.as_uri(), cache)[0]
    assert not cached_tars(cache)


def test_shards_not_read_for_long_make_room(folder: Path, cache: Path) -> None:
    local = PackedDataset(folder)
    sizes = [entry.size for entry in local.manifest.shards]
    bound = 3 * max(sizes) + 2 * sum(entry.index_size for entry in local.manifest.shards)
    dataset = PackedDataset(folder.as_uri(), cache, bound)
    cache.mkdir()
    (cache / "thesis.tar").write_bytes(bytes(bound))  # not ours, too large for the bound: neither counted nor removed
    first_of = [next(i for i in range(NUM_SAMPLES) if local.shard_of(i) == shard) for shard in range(len(sizes))]
    for shard in range(1, len(sizes)):
        dataset[first_of[0]]  # in use all the time
        dataset[first_of[shard]]
        assert sum(path.stat().st_size for path in cache.iterdir() if path.name != "thesis.tar") <= bound
    (cache / "thesis.tar").unlink()
    kept = {path.name.partition("-")[2] for path in cached_tars(cache)}
    assert "shard-00000-000.tar" in kept and f"shard-00000-{len(sizes) - 1:03d}.tar" in kept
    assert "shard-00000-001.tar" not in kept


def test_a_shard_that_cannot_fit_is_refused(folder: Path, cache: Path) -> None:
    with pytest.raises(
        DataError, match=r"--data_cache_bytes 5000 is less than the .*\d+ bytes\)? of file://.*-000.tar alone"
    ):
        PackedDataset(folder.as_uri(), cache, 5000)[0]


def test_a_cache_that_cannot_be_written_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=f"--data_cache {tmp_path}/file/cache cannot take file://.*Not a directory"):
        PackedDataset(folder.as_uri(), tmp_path / "file" / "cache")[0]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nosuch://bucket/data", "cannot be opened: ValueError: Protocol not known: nosuch"),
        ("memory://no-such-bucket/data", "does not exist or is not finished: it has no manifest.json"),
        ("http://127.0.0.1:9/data", "manifest.json cannot be read: ClientConnectorError"),
    ],
)
def test_a_url_that_cannot_be_opened_is_one_line(cache: Path, url: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        PackedDataset(url, cache)
    assert url in str(error.value) and "\n" not in str(error.value)


def test_a_backend_that_is_not_installed_is_named(cache: Path) -> None:
    """In a process in which importing s3fs fails, whether it is installed or not."""
    program = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from pipeline.data.dataset import PackedDataset\n"
        "from pipeline.errors import run_cli\n"
        f"run_cli(lambda: PackedDataset('s3://bucket/data', {str(cache)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=REPOSITORY)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "s3://bucket/data cannot be opened: ImportError: Install s3fs to access S3" in done.stderr


def test_an_unfinished_and_an_altered_folder_are_refused(folder: Path, server: Server, cache: Path) -> None:
    manifest, mark = folder / "manifest.json", folder / "manifest.json.sha256"
    manifest.write_text(manifest.read_text().replace('"seq_len": 16', '"seq_len": 17'))
    with pytest.raises(DataError, match=f"{server.url}/manifest.json does not match manifest.json.sha256"):
        PackedDataset(server.url, cache)
    mark.unlink()
    with pytest.raises(DataError, match=f"{server.url} does not exist or is not finished: it has no {mark.name}"):
        PackedDataset(server.url, cache)


@pytest.mark.slow
def test_processes_share_one_download(cache: Path, server: Server) -> None:
    server.delay = 0.05  # so that all of them want the same shard at the same time
    program = (
        "import sys; from pipeline.data.dataset import PackedDataset\n"
        "from pathlib import Path\n"
        "dataset = PackedDataset(sys.argv[1], Path(sys.argv[2]))\n"
        "sys.stdin.readline()\n"
        "print(sum(int(dataset[i].input_ids[0]) for i in range(len(dataset))))"
    )
    command = [sys.executable, "-c", program, server.url, str(cache)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": REPOSITORY}
    processes = [subprocess.Popen(command, **pipes) for _ in range(3)]
    while server.gets["manifest.json.sha256"] < 3:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    for process in processes:  # all are open: go
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert answers == [str(sum(16 * i for i in range(NUM_SAMPLES)))] * 3
    assert len(server.tar_gets) == 10 and set(server.tar_gets.values()) == {1}


def test_the_next_groups_shards_are_fetched_while_a_group_is_read(folder: Path, cache: Path, server: Server) -> None:
    dataset = PackedDataset(server.url, cache)
    stream = SampleStream(dataset, 0, shuffle=Shuffle("block", 3))
    shards = list(dict.fromkeys(dataset.shard_of(stream.dataset_index(i)) for i in range(NUM_SAMPLES)))
    tars = [dataset.manifest.shards[shard].tar_name for shard in shards]
    fetched = stream.prefetch(range(NUM_SAMPLES), depth=1)
    taken = [next(fetched)[1].key for _ in range(stream.order.group_slots // 2)]  # half of the first group
    deadline = time.monotonic() + 20
    while not set(tars[3:6]) & set(server.tar_gets):
        assert time.monotonic() < deadline, "no shard of the second group was asked for"
        time.sleep(0.01)
    assert not set(tars[6:]) & set(server.tar_gets)  # and nothing beyond it
    taken += [sample.key for _, sample in fetched]
    assert taken == [stream.read(i)[1].key for i in range(NUM_SAMPLES)]
    assert set(server.tar_gets.values()) == {1}


def test_ranks_with_a_stride_fetch_ahead_too(folder: Path, cache: Path) -> None:
    stream = SampleStream(PackedDataset(folder.as_uri(), cache), 0, shuffle=Shuffle("block", 2))
    keys = {i: s.key for rank in range(3) for i, s in stream.prefetch(range(rank, 2 * NUM_SAMPLES, 3), 4, 2)}
    assert keys == {i: stream.read(i)[1].key for i in range(2 * NUM_SAMPLES)}


def run_config(folder: str, *flags: str) -> TrainRunConfig:
    return parse_cli(TrainRunConfig, ["--model=m", "--output=o", "--ds_config=z", f"--data={folder}", *flags])


def test_training_refuses_a_cache_that_would_fetch_shards_over_and_over(folder: Path, cache: Path) -> None:
    local, remote = PackedDataset(folder), PackedDataset(folder.as_uri(), cache)
    sizes = [entry.size + entry.index_size for entry in local.manifest.shards]
    block = ("--train.shuffle=block", "--train.shuffle_block_shards=2")

    def check(dataset: PackedDataset, cache_bytes: int, *flags: str) -> None:
        config = run_config(str(dataset.folder), f"--data_cache_bytes={cache_bytes}", *flags)
        check_cache(config, open_stream(dataset, config.train))

    check(remote, sum(sizes))
    check(local, 1)
    check(remote, 4 * max(sizes), *block)
    for cache_bytes, needed, flags in ((sum(sizes) - 1, sum(sizes), ()), (4 * max(sizes) - 1, 4 * max(sizes), block)):
        with pytest.raises(ConfigError, match=rf"--data_cache_bytes {cache_bytes} .* \({needed} bytes\) of"):
            check(remote, cache_bytes, *flags)


def test_a_url_stays_a_url_on_the_command_line() -> None:
    assert run_config("s3://bucket/data").data == "s3://bucket/data"


def test_the_default_cache_can_be_set_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AHN_DATA_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("AHN_DATA_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache() == tmp_path / "home" / ".cache" / "ahn-pipeline" / "shards"
