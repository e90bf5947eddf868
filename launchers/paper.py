"""Lists the AHN paper's tables and figures: the commands that redraw each, and what scaled-down runs here gave.

python launchers/paper.py                           # to the terminal; `make paper`
python launchers/paper.py --output docs/paper.md    # as Markdown
"""

from pathlib import Path

from pipeline.config import PaperConfig, parse_cli
from pipeline.errors import UserError, run_cli

REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> None:
    config = parse_cli(PaperConfig)

    from pipeline.evaluation.paper.text import as_markdown, as_text

    if config.output is None:
        print(as_text(REPOSITORY))
        return
    try:
        config.output.write_text(as_markdown(REPOSITORY), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {config.output}: cannot be written: {error.strerror}") from error
    print(f"written: {config.output}")


if __name__ == "__main__":
    run_cli(main)
