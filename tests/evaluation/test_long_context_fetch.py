"""Fetching the long-context suites, and what lm-eval's tasks load, from hubs on this machine; then without any."""

import hashlib
import http.server
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from pipeline.errors import UserError
from pipeline.evaluation.lm_eval_run import tasks_of
from pipeline.evaluation.long_context.lm_eval_data import HOTPOT, HUB_DATASETS, SQUAD_URL, check_fetched
from pipeline.evaluation.lveval.tasks import LVEVAL


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as one dataset repository: HEAD tells commit and hash, GET gives the file."""

    asked: list[tuple[str, str]]
    has: str

    def do_HEAD(self):
        self.asked.append((self.command, self.path))
        found = self.has in self.path
        body = f"content of {self.path.rsplit('/', 1)[1]}".encode() if found else b""
        self.send_response(200 if found else 404)
        for name, value in (("X-Repo-Commit", "a" * 40), ("ETag", '"1"'), ("Content-Length", len(body))):
            self.send_header(name, str(value))
        if not found:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_GET = do_HEAD

    def log_message(self, *args):
        """Silent."""


@pytest.fixture
def hub():
    handler = type("OneHub", (Hub,), {"asked": [], "has": "/datasets/Infinigence/LVEval/resolve/main/"})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()


def run(code, *arguments, **environment):
    """A Python process, as `datasets` and the hub's client read their variables when they are imported."""
    inherited = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=inherited | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def fetch(suite, root, endpoint, offline="0"):
    code = (
        "import sys; from pathlib import Path\n"
        "from pipeline.errors import run_cli\n"
        "from pipeline.evaluation.long_context.fetch import fetch_all\n"
        f"run_cli(lambda: fetch_all(['{suite}'], Path(sys.argv[1])))\n"
    )
    return run(code, root, HF_ENDPOINT=endpoint, HF_HUB_OFFLINE=offline)


@pytest.mark.slow
def test_fetch_brings_the_official_archives_and_only_once(tmp_path, hub):
    endpoint, handler = hub
    done = fetch("lveval", tmp_path, endpoint)
    assert (done.returncode, done.stdout) == (0, f"lveval: 11 files in {tmp_path / 'lveval'}\n"), done.stderr
    assert {path.name for path in (tmp_path / "lveval").glob("*.zip")} == set(LVEVAL.files)
    assert (tmp_path / "lveval/cmrc_mixup.zip").read_text() == "content of cmrc_mixup.zip"
    assert fetch("lveval", tmp_path, endpoint).returncode == 0
    assert sum(method == "GET" and path.endswith(".zip") for method, path in handler.asked) == 11


@pytest.mark.slow
def test_what_cannot_be_fetched_is_one_line(tmp_path, hub):
    for offline in ("0", "1"):  # a hub without this dataset; no hub at all
        done = fetch("infinitebench", tmp_path, hub[0], offline)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: --fetch infinitebench: passkey.jsonl of xinrongzhang2022/InfiniteBench cannot")
        assert f"set HF_ENDPOINT to a mirror, or copy it to {tmp_path / 'infinitebench'}" in line


def parquet(**row):
    buffer = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_pylist([row]), buffer)
    return buffer.getvalue()


def card(configs, split):
    entries = (
        f"- config_name: {c}\n  data_files:\n  - split: {split}\n    path: {c}/{split}-*\n" for c in sorted(configs)
    )
    return f"---\nconfigs:\n{''.join(entries)}---\n".encode()


REPOSITORIES = {
    HUB_DATASETS["babilong"]: {
        "README.md": card(["0k", "128k"], "qa1"),
        "0k/qa1-0.parquet": parquet(input="short", question="Where?", target="here"),
        "128k/qa1-0.parquet": parquet(input="long", question="Where?", target="there"),
    },
    HUB_DATASETS["ruler"]: {"README.md": card(["default"], "train"), "default/train-0.parquet": parquet(text="Essay.")},
    HOTPOT[0]: {HOTPOT[1]: b'[{"question": "Who?", "answer": "she", "context": [["T", ["a", "b"]]]}]'},
}
SQUAD = {
    "data": [
        {
            "paragraphs": [
                {"context": "C", "qas": [{"is_impossible": False, "question": "What?", "answers": [{"text": "it"}]}]}
            ]
        }
    ]
}


class DatasetHub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as `datasets` asks of repositories with Parquet files; and SQuAD's file."""

    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
        resolve = re.fullmatch("/datasets/(.+?/.+?)/resolve/.+?/(.+)", path)
        tree = re.fullmatch("/api/datasets/(.+?/.+?)/tree/[^/]+/?(.*)", path)
        revision = re.fullmatch("/api/datasets/(.+?/.+?)(/revision/.+)?", path)
        if path == "/dev-v2.0.json":
            self.answer(json.dumps(SQUAD).encode())
        elif resolve and resolve[2] in REPOSITORIES.get(resolve[1], {}):
            self.answer(REPOSITORIES[resolve[1]][resolve[2]])
        elif tree and tree[1] in REPOSITORIES:
            self.answer(json.dumps(list(self.entries(REPOSITORIES[tree[1]], tree[2]))).encode())
        elif revision and revision[1] in REPOSITORIES:
            self.answer(json.dumps({"id": revision[1], "sha": "a" * 40, "siblings": []}).encode())
        else:
            self.answer(b"", 404)

    do_HEAD = do_GET

    def entries(self, files, folder):
        prefix = f"{folder}/" if folder else ""
        inside = [name for name in files if name.startswith(prefix)]
        folders = {
            prefix + name.removeprefix(prefix).split("/")[0] for name in inside if "/" in name.removeprefix(prefix)
        }
        yield from ({"type": "directory", "path": path, "oid": "0", "size": 0} for path in sorted(folders))
        for name in inside:
            if "/" not in name.removeprefix(prefix):
                yield {"type": "file", "path": name, "oid": "0", "size": len(files[name])}

    def answer(self, body, status=200):
        self.send_response(status)
        headers = {"X-Repo-Commit": "a" * 40, "ETag": f'"{hashlib.sha1(body).hexdigest()}"'}
        headers |= {"Content-Length": str(len(body))} | ({} if status == 200 else {"X-Error-Code": "EntryNotFound"})
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        """Silent."""


@pytest.fixture
def dataset_hub():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), DatasetHub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


FETCH_FOR_LM_EVAL = """
import sys; from pathlib import Path
from pipeline.errors import run_cli
from pipeline.evaluation.long_context import fetch
fetch.SQUAD_URL = sys.argv[2] + "/dev-v2.0.json"
run_cli(lambda: fetch.fetch_all(["babilong", "ruler"], Path(sys.argv[1])))
"""
READ_OFFLINE = """
import sys; from pathlib import Path
from pipeline.evaluation.long_context.lm_eval_data import check_fetched, enter_offline, read_ruler_questions_from
root = Path(sys.argv[1])
check_fetched(["babilong_qa1", "niah_single_2", "ruler_qa_squad"], root)
enter_offline(root)
read_ruler_questions_from(root)
import datasets
from lm_eval.tasks._yaml_loader import _import_func_in_yml
from lm_eval.tasks import ruler, babilong
load = _import_func_in_yml("common_utils.load_dataset", Path(babilong.__path__[0]))
print([load(max_seq_lengths=c, qa_split="qa1")["qa1"]["target"][0] for c in ("0k", "128k")])
print(datasets.load_dataset("baber/paul_graham_essays", split="train")["text"][0])
get = lambda name: _import_func_in_yml(name, Path(ruler.__path__[0]))()
print(get("qa_utils.read_squad")[0][0]["outputs"], get("qa_utils.read_hotpotqa")[0][0]["query"])
import nltk
print(nltk.data.find("tokenizers/punkt_tab"))
"""


@pytest.mark.slow
def test_what_lm_eval_loads_is_fetched_once_and_then_found_without_a_network(tmp_path, dataset_hub):
    splitter = tmp_path / "nltk_data/tokenizers/punkt_tab"  # by hand: NLTK refuses servers of this machine
    splitter.mkdir(parents=True)
    done = run(FETCH_FOR_LM_EVAL, tmp_path, dataset_hub, HF_ENDPOINT=dataset_hub, HF_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    cache = tmp_path / "huggingface/datasets"
    assert done.stdout == (
        f"babilong: RMT-team/babilong-1k-samples (0k, 128k) in {cache}\n"
        f"ruler: baber/paul_graham_essays (default) in {cache}\n"
    )
    closed = "http://127.0.0.1:9"
    done = run(READ_OFFLINE, tmp_path, HF_ENDPOINT=closed, HF_HOME=str(tmp_path / "other_home"))
    assert done.returncode == 0, done.stderr
    lines = ["['here', 'there']", "Essay.", "['it'] Who?", str(splitter)]
    assert done.stdout.splitlines() == lines


def test_lm_eval_names_the_data_that_is_fetched():
    tasks = Path(importlib.util.find_spec("lm_eval").origin).parent / "tasks"
    for name in ("longbench", "babilong"):
        paths = (path.read_text() for path in (tasks / name).glob("*") if path.is_file())
        named = {found for text in paths for found in re.findall("^dataset_path: ([^{\\n]+)$", text, re.MULTILINE)}
        assert named == {HUB_DATASETS[name]}
    assert f'load_dataset("{HUB_DATASETS["ruler"]}"' in (tasks / "ruler/prepare_niah.py").read_text()
    questions = (tasks / "ruler/qa_utils.py").read_text()
    repository, file, revision = HOTPOT
    urls = re.findall('url="(.+)"', questions)
    assert urls == [SQUAD_URL, f"https://huggingface.co/datasets/{repository}/resolve/{revision}/{file}"]


def test_tasks_without_their_data_are_named_with_the_command(tmp_path):
    (tmp_path / "huggingface").mkdir()
    (tmp_path / "huggingface/ruler.complete").touch()
    check_fetched(["niah_single_1", "ruler_vt", "longbench2_code", "hellaswag"], tmp_path)
    with pytest.raises(UserError, match=f"lacks longbench .*get it with: .* --fetch longbench --data_root {tmp_path}"):
        check_fetched(["ruler", "longbench_hotpotqa"], tmp_path)
    arguments = ["--model", "ahn", "--tasks", "a,b", "c", "--limit", "3"]
    assert tasks_of(arguments) == tasks_of(["--tasks=a,b", "c"]) == ["a", "b", "c"]
    assert tasks_of(["--model", "ahn"]) == []
