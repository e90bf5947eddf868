"""Brings a suite's official files to --data_root: the one step that needs the network."""

from pathlib import Path

from huggingface_hub import hf_hub_download

from pipeline.errors import UserError
from pipeline.evaluation.long_context.suite import Suite


def fetch_suite(suite: Suite, data_root: Path) -> list[Path]:
    """Downloads the suite's archives to data_root/suite; what is there and unchanged is not downloaded again.

    Raises:
        UserError: the hub cannot be reached, has no such file, or the disk refuses it.
    """
    folder = data_root / suite.name
    paths = []
    for name in suite.files:
        try:
            paths.append(Path(hf_hub_download(suite.repository, name, repo_type="dataset", local_dir=folder)))
        except OSError as error:  # the hub's errors are OSErrors
            raise UserError(
                f"--fetch {suite.name}: {name} of {suite.repository} cannot be fetched "
                f"({' '.join(str(error).split())[:200]}); run it where the hub can be reached, or set HF_ENDPOINT to a "
                f"mirror, or copy the file to {folder}"
            ) from error
    return paths
