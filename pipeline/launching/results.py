"""What is there already: a stage whose result is finished need not run again. No torch."""

import json

from pipeline.config import EvalConfig, PrepareConfig, TeacherCacheConfig, TrainRunConfig
from pipeline.data.shard_format import MANIFEST_DIGEST_NAME
from pipeline.launching.stages import Stage
from pipeline.teacher.cache_listing import LISTING_DIGEST_NAME
from pipeline.training.run_folder import RunFolder

REPORT_NAME = "report.json"


def split_finished(stages: dict[str, Stage]) -> tuple[dict[str, Stage], dict[str, Stage]]:
    """The stages that must run, and before them those whose result is there.

    What comes after one that must run runs, too, whatever is there: it checks for itself what it need not do again.
    """
    missing = [name for name, stage in stages.items() if not is_finished(stage)]
    names = list(stages)
    first = names.index(missing[0]) if missing else len(names)
    return {name: stages[name] for name in names[first:]}, {name: stages[name] for name in names[:first]}


def is_finished(stage: Stage) -> bool:
    """Whether the folder that the stage writes is complete, by its own mark."""
    config = stage.config
    if isinstance(config, PrepareConfig):
        return (config.output / MANIFEST_DIGEST_NAME).is_file()
    if isinstance(config, TeacherCacheConfig):
        return (config.output / LISTING_DIGEST_NAME).is_file()
    if isinstance(config, EvalConfig):
        return (config.output / REPORT_NAME).is_file()
    return num_steps_done(config) >= config.train.max_steps


def num_steps_done(config: TrainRunConfig) -> int:
    """Optimizer steps up to the newest checkpoint; 0 where it is torn, which the training itself then tells of."""
    folder = RunFolder(config.output).checkpoints
    try:
        newest = folder / (folder / "latest").read_text().strip()
        return json.loads((newest / "state.json").read_bytes())["step"]
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError):
        return 0
