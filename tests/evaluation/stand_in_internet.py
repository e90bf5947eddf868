"""Runs a command where the benchmarks' servers are this machine, over HTTPS, and nothing else is reached.

    unshare --net --mount python stand_in_internet.py FOLDER COMMAND ...

The servers' address is one of AS112's, public but nobody's (RFC 7535), since NLTK refuses any other kind. It exists in
the network namespace of this process alone. FOLDER gets the certificate and `asked.txt`, a line for each request.
"""

import hashlib
import http.server
import json
import os
import re
import ssl
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from pipeline.evaluation.long_context.lm_eval_data import SQUAD_URL
from tests.evaluation.stand_in_benchmarks import NLTK, SQUAD, nltk_index, repositories, splitter

ADDRESS, COMMIT = "192.31.196.1", "a" * 40
PAGES = {
    SQUAD_URL: lambda: json.dumps(SQUAD).encode(),
    f"{NLTK}/index.xml": nltk_index,
    f"{NLTK}/packages/tokenizers/punkt_tab.zip": splitter,
}
NAMES = ("huggingface.co", *sorted({urllib.parse.urlparse(page).hostname for page in PAGES}))


class Internet(http.server.BaseHTTPRequestHandler):
    """The hub, as far as `datasets` and `huggingface_hub` ask it, SQuAD's page and NLTK's."""

    protocol_version = "HTTP/1.1"
    asked: Path

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
        with self.asked.open("a") as file:
            file.write(f"{self.command} {self.headers['Host']}{path}\n")
        self.answer(self.find(self.headers["Host"], path))

    do_HEAD = do_GET

    def find(self, host: str, path: str) -> bytes | None:
        for page, content in PAGES.items():
            if page == f"https://{host}{path}":
                return content()
        resolve = re.fullmatch("/datasets/(.+?/.+?)/resolve/.+?/(.+)", path)
        tree = re.fullmatch("/api/datasets/(.+?/.+?)/tree/[^/]+/?(.*)", path)
        revision = re.fullmatch("/api/datasets/(.+?/.+?)(/revision/.+)?", path)
        if resolve:
            return repositories().get(resolve[1], {}).get(resolve[2])
        if tree and tree[1] in repositories():
            return json.dumps(list(self.entries(repositories()[tree[1]], tree[2]))).encode()
        if revision and revision[1] in repositories():
            return json.dumps({"id": revision[1], "sha": COMMIT, "siblings": []}).encode()
        return None

    def entries(self, files: dict[str, bytes], folder: str) -> Iterator[dict]:
        prefix = f"{folder}/" if folder else ""
        inside = [name for name in files if name.startswith(prefix)]
        folders = {prefix + name.removeprefix(prefix).split("/")[0] for name in inside if "/" in name[len(prefix) :]}
        yield from ({"type": "directory", "path": path, "oid": "0", "size": 0} for path in sorted(folders))
        for name in inside:
            if "/" not in name.removeprefix(prefix):
                yield {"type": "file", "path": name, "oid": "0", "size": len(files[name])}

    def answer(self, body: bytes | None) -> None:
        self.send_response(404 if body is None else 200)
        headers = {"X-Error-Code": "EntryNotFound"} if body is None else {"X-Repo-Commit": COMMIT}
        headers |= {"ETag": f'"{hashlib.sha1(body or b"").hexdigest()}"', "Content-Length": str(len(body or b""))}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body or b"")

    def log_message(self, *_: object) -> None:
        """Silent."""


def set_up(folder: Path) -> tuple[Path, Path]:
    """Gives this process's network the servers' address and names; returns a certificate for them, and its key."""
    certificate, key, hosts = (folder / name for name in ("certificate.pem", "key.pem", "hosts"))
    hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{ADDRESS} {name}\n" for name in NAMES))
    alternatives = "subjectAltName=" + ",".join(f"DNS:{name}" for name in NAMES)
    self_signed = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={NAMES[0]}")
    for command in (
        ("mount", "--bind", hosts, "/etc/hosts"),
        ("ip", "link", "set", "lo", "up"),
        ("ip", "address", "add", f"{ADDRESS}/32", "dev", "lo"),
        (*self_signed, "-addext", alternatives, "-keyout", key, "-out", certificate),
    ):
        subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    return certificate, key


def main() -> int:
    folder, command = Path(sys.argv[1]), sys.argv[2:]
    certificate, key = set_up(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    handler = type("Logged", (Internet,), {"asked": folder / "asked.txt"})
    with http.server.ThreadingHTTPServer((ADDRESS, 443), handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        trusted = {name: str(certificate) for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")}
        return subprocess.run(command, env=os.environ | trusted).returncode


if __name__ == "__main__":
    sys.exit(main())
