"""What is wrong with an experiment: all of it, not the first mistake alone."""

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import UserError, escape_controls


class Findings:
    """Lines `STAGE: MESSAGE`, each once: errors keep the chain from being submitted, warnings do not."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Takes a UserError of the block for a finding; the rest of the block is then not done."""
        try:
            yield
        except UserError as error:
            _append(self.errors, f"{stage}: {error}")

    def warn(self, stage: str, message: str) -> None:
        """Something to know that keeps nothing from being submitted."""
        _append(self.warnings, f"{stage}: {escape_controls(message)}")

    def __str__(self) -> str:
        lines = [f"warning: {line}" for line in self.warnings] + [f"error: {line}" for line in self.errors]
        return "".join(f"{line}\n" for line in lines)


def _append(lines: list[str], line: str) -> None:
    if line not in lines:  # several checks may stumble over one mistake
        lines.append(line)
