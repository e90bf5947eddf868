"""Fetching the long-context suites: once, what cannot be fetched, and what lm-eval's tasks load."""

import http.server
import importlib.util
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.errors import UserError
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


def test_lm_eval_names_the_data_that_is_fetched():
    tasks = Path(importlib.util.find_spec("lm_eval").origin).parent / "tasks"
    for name in ("longbench", "longbench2", "babilong"):
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
    check_fetched(["niah_single_1", "ruler_vt", "hellaswag"], tmp_path)
    with pytest.raises(UserError, match="lacks longbench2 "):
        check_fetched(["longbench2_code"], tmp_path)
    with pytest.raises(UserError, match=f"lacks longbench .*get it with: .* --fetch longbench --data_root {tmp_path}"):
        check_fetched(["ruler", "longbench_hotpotqa"], tmp_path)
