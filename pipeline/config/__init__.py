"""Every setting of every launcher: one typed tree each, defaults < YAML file (--config) < command line.

Keys are strict: an unknown one is refused by name. The resolved tree is dumped into the run folder as config.yaml.
Standard library and jsonargparse only, so that a wrong flag is reported before anything heavy is imported.
"""

from pipeline.config.data import DemoConfig, FetchModelConfig, ListSourcesConfig, PrepareConfig
from pipeline.config.evaluation import (
    OWN_SUITES,
    AbsorbedConfig,
    EfficiencyConfig,
    EvalConfig,
    FetchName,
    NeedlesConfig,
    NeedleTask,
    PaperConfig,
    ProbingConfig,
    SuiteName,
)
from pipeline.config.inference import AccountingConfig, DoctorConfig, FamiliesConfig, GenerateConfig, MergeConfig
from pipeline.config.memory import MemoryConfig, WindowConfig
from pipeline.config.parsing import ConfigError, parse_cli, require, to_plain
from pipeline.config.recall import RecallBaseConfig, RecallStudyConfig, RecallTaskConfig
from pipeline.config.submit import Resources, SiteConfig, SubmitConfig
from pipeline.config.teacher import TeacherCacheConfig
from pipeline.config.training import TrainConfig, TrainRunConfig
from pipeline.config.variants import Variant, VariantSpec, parse_variant

__all__ = [
    "OWN_SUITES",
    "AbsorbedConfig",
    "AccountingConfig",
    "ConfigError",
    "DemoConfig",
    "DoctorConfig",
    "EfficiencyConfig",
    "EvalConfig",
    "FamiliesConfig",
    "FetchModelConfig",
    "FetchName",
    "GenerateConfig",
    "ListSourcesConfig",
    "MemoryConfig",
    "MergeConfig",
    "NeedleTask",
    "NeedlesConfig",
    "PaperConfig",
    "PrepareConfig",
    "ProbingConfig",
    "RecallBaseConfig",
    "RecallStudyConfig",
    "RecallTaskConfig",
    "Resources",
    "SiteConfig",
    "SubmitConfig",
    "SuiteName",
    "TeacherCacheConfig",
    "TrainConfig",
    "TrainRunConfig",
    "Variant",
    "VariantSpec",
    "WindowConfig",
    "parse_cli",
    "parse_variant",
    "require",
    "to_plain",
]
