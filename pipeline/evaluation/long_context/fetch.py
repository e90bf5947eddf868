"""Brings benchmarks' official files to --data_root: the one step that needs the network."""

import json
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import hf_hub_download

from pipeline.config import FetchName
from pipeline.errors import UserError
from pipeline.evaluation.infinitebench.tasks import INFINITEBENCH
from pipeline.evaluation.long_context.lm_eval_data import (
    HOTPOT,
    HUB_DATASETS,
    NLTK_PACKAGE,
    SQUAD_URL,
    completion_marker,
    dataset_cache,
)
from pipeline.evaluation.long_context.suite import Suite
from pipeline.evaluation.lveval.tasks import LVEVAL

TIMEOUT_S = 60


def fetch_all(names: Sequence[FetchName], data_root: Path) -> None:
    """Downloads benchmarks and prints where each now is; what is there already is not downloaded again.

    Raises:
        UserError: something cannot be reached, or the disk refuses it.
    """
    for name in names:
        if name in ("lveval", "infinitebench"):
            paths = fetch_suite(LVEVAL if name == "lveval" else INFINITEBENCH, data_root)
            print(f"{name}: {len(paths)} files in {data_root / name}")
        else:
            configs = fetch_for_lm_eval(name, data_root)
            print(f"{name}: {HUB_DATASETS[name]} ({', '.join(configs)}) in {dataset_cache(data_root)}")


def fetch_suite(suite: Suite, data_root: Path) -> list[Path]:
    """Downloads the suite's archives to data_root/suite; what is there and unchanged is not downloaded again.

    Raises:
        UserError: the hub cannot be reached, has no such file, or the disk refuses it.
    """
    folder = data_root / suite.name
    return [_fetch_from_hub(suite.name, suite.repository, name, None, folder) for name in suite.files]


def fetch_for_lm_eval(name: FetchName, data_root: Path) -> list[str]:
    """Downloads and prepares what lm-eval's tasks of `longbench`, `babilong` or `ruler` load.

    Returns:
        Configurations of the hub's dataset, all of which are fetched.

    Raises:
        UserError: something cannot be reached, or the disk refuses it.
    """
    import datasets  # heavy, and only for these

    repository = HUB_DATASETS[name]
    try:
        configs = datasets.get_dataset_config_names(repository)
        for config in configs:
            datasets.load_dataset(repository, config, cache_dir=str(dataset_cache(data_root)))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise _refusal(name, repository, error, "the hub") from error
    if name == "ruler":
        _fetch_ruler_questions(data_root / "ruler")
        _fetch_sentence_splitter(data_root / "nltk_data")
    completion_marker(name, data_root).touch()
    return configs


def _fetch_ruler_questions(folder: Path) -> None:
    import requests

    repository, file, revision = HOTPOT
    _fetch_from_hub("ruler", repository, file, revision, folder)
    path = folder / SQUAD_URL.rsplit("/", 1)[1]
    if path.is_file():
        return
    try:
        response = requests.get(SQUAD_URL, timeout=TIMEOUT_S)
        response.raise_for_status()
        json.loads(response.content)  # and not, say, a proxy's page
        scratch = path.with_suffix(".part")
        scratch.write_bytes(response.content)
        scratch.replace(path)
    except (OSError, ValueError) as error:
        raise _refusal("ruler", SQUAD_URL, error, "it", path) from error


def _fetch_sentence_splitter(folder: Path) -> None:
    import nltk

    if (folder / "tokenizers" / NLTK_PACKAGE).is_dir():
        return
    try:
        nltk.download(NLTK_PACKAGE, download_dir=str(folder), quiet=True, raise_on_error=True)
    except (OSError, ValueError) as error:
        raise _refusal("ruler", f"NLTK's {NLTK_PACKAGE}", error, "NLTK's server", folder) from error


def _fetch_from_hub(name: str, repository: str, file: str, revision: str | None, folder: Path) -> Path:
    try:
        return Path(hf_hub_download(repository, file, repo_type="dataset", revision=revision, local_dir=folder))
    except OSError as error:  # the hub's errors are OSErrors
        raise _refusal(name, f"{file} of {repository}", error, "the hub", folder) from error


def _refusal(name: str, what: str, error: Exception, where: str, folder: Path | None = None) -> UserError:
    mirror = ", or set HF_ENDPOINT to a mirror" if where == "the hub" else ""
    by_hand = "" if folder is None else f", or copy it to {folder}"
    return UserError(
        f"--fetch {name}: {what} cannot be fetched ({' '.join(str(error).split())[:200]}); run it where {where} can be "
        f"reached{mirror}{by_hand}"
    )
