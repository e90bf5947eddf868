"""Fetching the long-context suites from a hub of one repository on this machine."""

import http.server
import os
import subprocess
import sys
import threading

import pytest

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


def fetch(suite, root, endpoint, offline="0"):
    code = (
        "import sys; from pathlib import Path\n"
        "from pipeline.errors import run_cli\n"
        "from pipeline.evaluation.long_context.fetch import fetch_suite\n"
        f"from pipeline.evaluation.{suite}.tasks import {suite.upper()} as suite\n"
        "run_cli(lambda: print(len(fetch_suite(suite, Path(sys.argv[1])))))\n"
    )
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": offline, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, root], env=environment, capture_output=True, text=True, timeout=120
    )


def test_fetch_brings_the_official_archives_and_only_once(tmp_path, hub):
    endpoint, handler = hub
    done = fetch("lveval", tmp_path, endpoint)
    assert (done.returncode, done.stdout) == (0, "11\n"), done.stderr
    assert {path.name for path in (tmp_path / "lveval").glob("*.zip")} == set(LVEVAL.files)
    assert (tmp_path / "lveval/cmrc_mixup.zip").read_text() == "content of cmrc_mixup.zip"
    assert fetch("lveval", tmp_path, endpoint).returncode == 0
    assert sum(method == "GET" and path.endswith(".zip") for method, path in handler.asked) == 11


def test_what_cannot_be_fetched_is_one_line(tmp_path, hub):
    for offline in ("0", "1"):  # a hub without this dataset; no hub at all
        done = fetch("infinitebench", tmp_path, hub[0], offline)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: --fetch infinitebench: passkey.jsonl of xinrongzhang2022/InfiniteBench cannot")
        assert f"set HF_ENDPOINT to a mirror, or copy the file to {tmp_path / 'infinitebench'}" in line
