"""A corpus of real text for benchmarks, the same on every run of a machine: Debian's documentation of the Linux kernel
and of Perl, then installed Python sources; no document twice."""

import gzip
import hashlib
import json
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

PACKAGES = {
    "linux-doc-6.1": "usr/share/doc/linux-doc-6.1",
    "perl-doc": "usr/share/perl",
}  # package -> where its text lies
EXTENSIONS = (".rst", ".pod", ".txt", ".py")
PYTHON_BYTES = 16 << 20  # at the least, so that the corpus is prose and code
JSONL_BYTES = 8 << 20


def write_corpus(cache: Path, num_bytes: int) -> tuple[Path, list[str]]:
    """Writes the corpus as JSONL files of about JSONL_BYTES and prints what it is made of.

    Returns:
        The folder of the files, and the texts in the files' order.
    """
    folder = cache / "bench_corpus" / "jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.jsonl"):
        old.unlink()
    texts: list[str] = []
    for number, batch in enumerate(_batches(_choose(cache, num_bytes))):
        lines = (json.dumps({"text": text}, ensure_ascii=False) for text in batch)
        (folder / f"part-{number:03d}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        texts += batch
    return folder, texts


def _choose(cache: Path, num_bytes: int) -> Iterator[str]:
    """Distinct documents, `num_bytes` of UTF-8 and a little more, if the machine has as many."""
    seen: set[bytes] = set()
    total = 0
    roots = [(name, _package_root(cache, name, inside), num_bytes - PYTHON_BYTES) for name, inside in PACKAGES.items()]
    for name, root, wanted in [*roots, ("Python sources", Path(sysconfig.get_path("purelib")), num_bytes)]:
        before, count = total, 0
        for raw in _files(root) if root else ():
            if total >= wanted:
                break
            digest = hashlib.sha256(raw).digest()
            if digest not in seen and (text := _decode(raw)):
                seen.add(digest)
                total, count = total + len(raw), count + 1
                yield text
        print(f"corpus: {name}: {count} documents, {(total - before) / 1e6:.1f} MB from {root}")


def _package_root(cache: Path, package: str, inside: str) -> Path | None:
    """Where the package's text lies: installed, or downloaded with apt-get and unpacked; None with a printed reason."""
    if Path("/usr/share/doc", package).is_dir() and any(_files(Path("/", inside))):
        return Path("/", inside)
    root = cache / "bench_corpus" / package
    if not root.is_dir():
        root.parent.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["apt-get", "download", package], cwd=root.parent, check=True, capture_output=True)
            (archive,) = root.parent.glob(f"{package}_*.deb")
            subprocess.run(["dpkg-deb", "-x", archive, root], check=True, capture_output=True)
            archive.unlink()
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"corpus: {package} is not to be had: {error}")
            return None
    return root / inside


def _files(root: Path) -> Iterator[bytes]:
    for path in sorted(root.rglob("*")):
        if path.name.removesuffix(".gz").endswith(EXTENSIONS) and path.is_file() and not path.is_symlink():
            yield gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def _decode(raw: bytes) -> str:
    """ "" for what is not UTF-8 or blank."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return ""
    return text if text.strip() else ""


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text.encode())
        if size >= JSONL_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
