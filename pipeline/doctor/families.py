"""Which bases AHN is exact on: `python -m pipeline.doctor.families --output docs/families.md`.

For every decoder language model of the installed transformers the family's default config is made small
(pipeline/model/small_copy.py) and goes through what a base goes through when it is loaded: the comparison with plain
transformers (base_check.py), and reading its files. A base on disk may differ from its family's default, and is checked
by itself. Exits with code 1 if anything but a one-line refusal came up.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import transformers
from torch import nn
from tqdm import tqdm
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pipeline.attention.window import WindowSpec
from pipeline.config import FamiliesConfig, MemoryConfig, parse_cli
from pipeline.errors import UserError, run_cli
from pipeline.model.base_check import check_family
from pipeline.model.loading import load_base
from pipeline.model.small_copy import build_small, small_config
from pipeline.model.supported import check_config, sliding_windows

WINDOW = WindowSpec(4, 12)


@dataclass(frozen=True)
class Row:
    """`layers`: of the small copy. `reason`: the line that a user gets, or what went wrong."""

    family: str
    result: Literal["exact", "refused", "no base", "WRONG"]
    layers: str = ""
    reason: str = ""


def check_families(names: list[str]) -> Iterator[Row]:
    """A row for each family, and one more for a family whose windows can be switched off in its config."""
    for name in tqdm(names, unit="family"):
        try:
            config = CONFIG_MAPPING[name]()
        except Exception as error:  # of transformers: without parts that a default config does not have
            yield Row(name, "no base", reason=_short(error))
            continue
        row = check_one(name, config)
        yield row
        if row.result == "refused" and "no layer of the base has full attention" in row.reason:
            try:
                config = CONFIG_MAPPING[name](sliding_window=None)
            except Exception:  # of transformers: the family cannot be without
                continue
            yield check_one(f"{name}, sliding_window: null", config)


def check_one(name: str, config: PretrainedConfig) -> Row:
    """What becomes of a base with this config."""
    try:
        check_config(config)
        check_family(config)
        windows = _load(config)
    except UserError as error:
        return Row(name, "refused", reason=str(error))
    except Exception as error:  # what a user must never see
        return Row(name, "WRONG", reason=f"traceback: {_short(error)}")
    sliding = sum(window is not None for window in windows)
    return Row(name, "exact", f"{len(windows) - sliding} full" + (f", {sliding} sliding" if sliding else ""))


def _load(config: PretrainedConfig) -> tuple[int | None, ...]:
    """Reads a small copy from files; its layers' own windows.

    Raises:
        ValueError: a tensor is not what the plain class reads.
    """
    small = small_config(config, type(config))
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        build_small(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], small).save_pretrained(folder)
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        model = load_base(folder, memory=MemoryConfig(), window=WINDOW, dtype=torch.float32)
    _compare_tensors(plain, model)
    return sliding_windows(model.config)


def _compare_tensors(plain: nn.Module, model: nn.Module) -> None:
    ours = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, value in (*plain.named_parameters(), *plain.named_buffers()):
        if name not in ours or not torch.equal(value, ours[name]):
            raise ValueError(f"{name} is not what the plain class reads")


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def format_table(rows: list[Row]) -> str:
    """The rows in Markdown, exact ones first."""
    counts = Counter(row.result for row in rows)
    lines = [
        "# Families of base models",
        "",
        f"Written by `python -m pipeline.doctor.families` with transformers {transformers.__version__}, torch "
        f"{torch.__version__}: {', '.join(f'{n} {result}' for result, n in counts.most_common())}. Exact: a small copy "
        f"of the family's default config, with memories that act, equals plain transformers under a dense mask to 1e-9 "
        f"in float64, whole, in chunks, decoded, padded and packed; its merged folder loads again. The rest is refused "
        f"in one line when it is loaded. A base whose config differs from the default is checked by itself.",
        "",
    ]
    for result in ("WRONG", "exact", "refused", "no base"):
        chosen = [row for row in rows if row.result == result]
        if not chosen:
            continue
        column = "layers of the copy" if result == "exact" else "reason"
        lines += [f"## {result.capitalize()}", "", f"| family | {column} |", "|---|---|"]
        lines += [f"| {row.family} | {(row.layers or row.reason).replace('|', '/')} |" for row in chosen]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    config = parse_cli(FamiliesConfig, prog="python -m pipeline.doctor.families")
    known = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    unknown = sorted(set(config.families) - set(known))
    if unknown:
        raise UserError(f"--families {' '.join(unknown)}: transformers has no such decoder; it has {', '.join(known)}")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    rows = list(check_families(config.families or known))
    config.output.write_text(format_table(rows))
    print(f"{config.output}: {dict(Counter(row.result for row in rows))}")
    if any(row.result == "WRONG" for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    run_cli(main)
