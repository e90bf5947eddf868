"""A row or a few of every benchmark, as its server has them: datasets of the hub, SQuAD, NLTK's package."""

import functools
import hashlib
import io
import json
import zipfile

import pyarrow as pa
import pyarrow.parquet

from pipeline.evaluation.infinitebench.tasks import INFINITEBENCH
from pipeline.evaluation.long_context.lm_eval_data import HOTPOT, HUB_DATASETS
from pipeline.evaluation.lveval.tasks import LVEVAL

NLTK = "https://raw.githubusercontent.com/nltk/nltk_data/gh-pages"
BOOK = "the session is a folder with tokens, and its scope is json. " * 30
QUESTION = {"context": BOOK, "question": "Who is it?"}
LM_EVAL = {  # repository -> (split, configuration -> rows)
    HUB_DATASETS["longbench"]: (
        "test",
        {name: [{**QUESTION, "answers": ["json"], "all_classes": []}] for name in ("hotpotqa", "triviaqa")},
    ),
    HUB_DATASETS["longbench2"]: ("train", {"detective": [{**QUESTION, "choices": ["a", "b", "c", "d"], "answer": 1}]}),
    HUB_DATASETS["babilong"]: (
        "qa1",
        {size: [{"input": BOOK, "question": "Where?", "target": size}] for size in ("0k", "128k")},
    ),
    HUB_DATASETS["ruler"]: ("train", {"default": [{"text": BOOK * 20}]}),
}
PASSKEY = {"id": 7, "context": BOOK, "input": "What is the pass key?", "answer": ["71432"], "options": []}
BOOK_QUESTION = {"id": 8, "context": BOOK, "input": "Who?", "answer": ["json", "a folder"], "options": ""}
LVEVAL_ROW = {"context": BOOK, "input": "Who?", "answers": ["json"], "answer_keywords": "json", "length": 16}
ASKED = {"is_impossible": False, "question": "What?", "answers": [{"text": "it"}]}
SQUAD = {"data": [{"paragraphs": [{"context": f"{i}. {BOOK[:60]}", "qas": [ASKED]} for i in range(500)]}]}
HOTPOT_QA = [{"question": "Who?", "answer": "she", "context": [[str(i), [BOOK[:60]]]]} for i in range(500)]


def jsonl(*rows: dict) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: list[dict]) -> bytes:
    pa.parquet.write_table(pa.Table.from_pylist(rows), buffer := io.BytesIO())
    return buffer.getvalue()


def archive(members: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as file:
        for name, content in members.items():
            file.writestr(zipfile.ZipInfo(name), content)  # of no time, so that it repeats
    return buffer.getvalue()


def card(configs: dict[str, list], split: str) -> bytes:
    entries = (
        f"- config_name: {c}\n  data_files:\n  - split: {split}\n    path: {c}/{split}-*\n" for c in sorted(configs)
    )
    return f"---\nconfigs:\n{''.join(entries)}---\n".encode()


@functools.cache
def repositories() -> dict[str, dict[str, bytes]]:
    """Dataset repository -> file -> content."""
    found = {
        repository: {"README.md": card(configs, split)}
        | {f"{config}/{split}-0.parquet": parquet(rows) for config, rows in configs.items()}
        for repository, (split, configs) in LM_EVAL.items()
    }
    members = {name: [t.file for t in LVEVAL.tasks if t.archive == name] for name in LVEVAL.files}
    found[LVEVAL.repository] = {
        name: archive({f"{name.removesuffix('.zip')}/{file}": jsonl(LVEVAL_ROW) for file in files})
        for name, files in members.items()
    }
    found[INFINITEBENCH.repository] = {
        name: jsonl(PASSKEY if name == "passkey.jsonl" else BOOK_QUESTION) for name in INFINITEBENCH.files
    }
    found[HOTPOT[0]] = {HOTPOT[1]: json.dumps(HOTPOT_QA).encode()}
    return found


@functools.cache
def splitter() -> bytes:
    """NLTK's package: a splitter that has learned nothing."""
    tables = ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt")
    return archive({f"punkt_tab/english/{name}": b"" for name in tables})


def nltk_index() -> bytes:
    """As of NLTK's server."""
    content, at = splitter(), f"{NLTK}/packages/tokenizers/punkt_tab.zip"
    sums = f'checksum="{hashlib.md5(content).hexdigest()}" sha256_checksum="{hashlib.sha256(content).hexdigest()}"'
    sizes = f'size="{len(content)}" unzipped_size="0" unzip="1"'
    package = f'<package id="punkt_tab" name="Punkt" subdir="tokenizers" url="{at}" {sizes} {sums}/>'
    return f"<nltk_data><packages>{package}</packages><collections/></nltk_data>".encode()
