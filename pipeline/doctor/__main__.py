"""What a team runs before its first cluster job: `python -m pipeline.doctor [--output doctor.html]`.

Versions, launch environment, every kernel against its plain form on this machine's device, and real training steps.
Prints as it goes, writes one HTML page, and exits with code 1 if a check failed.
"""

import sys
from pathlib import Path

from pipeline.config import DoctorConfig, parse_cli
from pipeline.errors import run_cli


def main() -> None:
    config = parse_cli(DoctorConfig, prog="python -m pipeline.doctor")
    from jinja2 import Environment, FileSystemLoader

    from pipeline.distributed.device import choose_device
    from pipeline.doctor.environment import collect_machine, collect_variables, collect_versions
    from pipeline.doctor.training import run_all

    device = choose_device()
    versions, machine, variables = collect_versions(), collect_machine(), collect_variables()
    for facts in (machine, versions, variables):
        print("\n".join(f"{name:<24}{value}" for name, value in facts.items()) + "\n")
    checks = []
    for check in run_all(device):
        checks.append(check)
        print(f"{check.status:<9} {check.name}: {check.detail}", flush=True)
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = templates.get_template("page.html").render(
        checks=checks, machine=machine, versions=versions, variables=variables
    )
    config.output.write_text(page)
    print(f"\n{config.output.resolve()}")
    if any(check.status == "failed" for check in checks):
        sys.exit(1)


if __name__ == "__main__":
    run_cli(main)
