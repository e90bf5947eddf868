"""Data of lm-eval's long-context tasks under --data_root, fetched once and then found without a network.

    huggingface/datasets/        datasets of the hub, prepared by `datasets`
    huggingface/NAME.complete    all of benchmark NAME is here
    nltk_data/                   the sentence splitter of RULER's needles
    ruler/                       RULER's questions, which lm-eval itself would download in every run

Nothing here is a pickle, no dataset script runs (`datasets` has none any more), and `datasets` and NLTK refuse members
of an archive that would leave its folder.
"""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from pipeline.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HUB_DATASETS = {
    "longbench": "Xnhyacinth/LongBench",
    "longbench2": "recursal/longbench-v2",
    "babilong": "RMT-team/babilong-1k-samples",
    "ruler": "baber/paul_graham_essays",
}
SQUAD_URL = "https://rajpurkar.github.io/SQuAD-explorer/dataset/dev-v2.0.json"
HOTPOT = ("namlh2004/hotpotqa", "hotpot_dev_distractor_v1.json", "7e54db4656209750ff487f6fdf8e39a66dba136b")
NLTK_PACKAGE = "punkt_tab"
TASKS = {  # of lm-eval, by the start of their names
    "longbench": re.compile("(paper_)?longbench($|_)"),
    "longbench2": re.compile("longbench2($|_)"),
    "babilong": re.compile("babilong($|_)"),
    "ruler": re.compile("ruler($|_)|niah_"),
}


def dataset_cache(data_root: Path) -> Path:
    """Where `datasets` keeps what it has prepared."""
    return data_root / "huggingface/datasets"


def completion_marker(name: str, data_root: Path) -> Path:
    """Present once all of a benchmark is there."""
    return data_root / f"huggingface/{name}.complete"


def check_fetched(tasks: Iterable[str], data_root: Path) -> None:
    """Looks whether the benchmarks of lm-eval's `tasks` have been fetched.

    Raises:
        UserError: one has not; says how to fetch it.
    """
    for name, pattern in TASKS.items():
        if any(map(pattern.match, tasks)) and not completion_marker(name, data_root).is_file():
            raise UserError(
                f"--data_root {data_root} lacks {name} (no {completion_marker(name, data_root)}); get it with: "
                f"python launchers/run_eval.py --fetch {name} --data_root {data_root}"
            )


def enter_offline(data_root: Path) -> None:
    """Has `datasets` and NLTK, imported from now on, take their data from `data_root` and ask no hub.

    Models and tokenizers stay where they are: HF_HOME is not changed.
    """
    os.environ["HF_DATASETS_CACHE"] = str(dataset_cache(data_root).resolve())
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["NLTK_DATA"] = str((data_root / "nltk_data").resolve())


def read_ruler_questions_from(data_root: Path) -> None:
    """Has lm-eval's ruler_qa_squad and ruler_qa_hotpot read `data_root`/ruler, not the addresses that they name."""
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import _load_module_with_cache

    # By the loader of lm-eval's YAML files, so that it finds this very module when it builds the tasks.
    questions = _load_module_with_cache(Path(lm_eval.tasks.__file__).resolve().parent / "ruler/qa_utils.py")
    folder = data_root / "ruler"
    questions.download_json = lambda url: json.loads((folder / url.rsplit("/", 1)[1]).read_bytes())


def trust_no_tokenizer_code() -> None:
    """Has RULER load the tokenizer without running code that came with it, which lm-eval would, unasked."""
    from lm_eval.tasks.ruler import common_utils

    from pipeline.tokenizer import load_tokenizer

    def load(name: str, trust_remote_code: bool) -> "PreTrainedTokenizerBase":
        return load_tokenizer(name, "--model_args tokenizer")

    common_utils.AutoTokenizer = SimpleNamespace(from_pretrained=load)
