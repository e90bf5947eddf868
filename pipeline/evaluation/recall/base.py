"""A tiny base that answers by looking back: induction heads, grown by a curriculum over length and facts.

It is trained with full attention and knows nothing of windows or memories. Repeated random sequences first, with a
loss on every token of the repetition: that makes the heads. Then the task, from few facts close by to many far away,
each stage until it is solved; without these stages the task itself teaches nothing for thousands of steps.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from pipeline.config import RecallBaseConfig, RecallTaskConfig
from pipeline.errors import UserError
from pipeline.evaluation.recall.documents import SINK, make_documents, make_repeats, make_tokenizer
from pipeline.evaluation.writing import writes_to
from pipeline.whole_output import whole_folder

NUM_STAGES, FEWEST_FACTS, NEAREST = 5, 4, 8
REPEATED_TOKENS = (4, 12)
REPEATS_EVERY = 8
WARMUP_STEPS = 100
OTHER_TOKENS_WEIGHT = 0.1
SOLVED, WELL_SOLVED = 0.9, 0.97
RECORD = "recall_base.json"


@dataclass(frozen=True)
class Stage:
    """Documents with up to `facts` facts and `fillers` tokens of filler, at least an eighth of both; with none of
    them repeated sequences alone. Done at a running mean `solved` of right answers."""

    facts: int
    fillers: int
    solved: float


def curriculum(task: RecallTaskConfig, base: RecallBaseConfig) -> list[Stage]:
    """Repeats, then facts that double and fillers that grow by a constant factor, up to the longest documents."""
    longest = base.max_distance * task.window_size
    stages = [Stage(0, 0, SOLVED)]
    for number in range(NUM_STAGES):
        facts = min(base.max_facts, FEWEST_FACTS * 2**number)
        fillers = round(NEAREST * (longest / NEAREST) ** (number / (NUM_STAGES - 1)))
        stages.append(Stage(facts, fillers, SOLVED))
    stages[-1] = Stage(base.max_facts, longest, WELL_SOLVED)
    return stages


def base_folder(root: Path, task: RecallTaskConfig, base: RecallBaseConfig) -> Path:
    """Where the base of this configuration lies: named by its family, its seed and a hash of everything."""
    settings = json.dumps({"task": asdict(task), "base": asdict(base)}, sort_keys=True)
    return root / f"{base.family}-seed{base.seed}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"


def find_base(root: Path, task: RecallTaskConfig, base: RecallBaseConfig) -> Path:
    """The folder of the trained base (weights, tokenizer, record of its curriculum); trains it once.

    Raises:
        UserError: its curriculum is not done after `max_steps`, or it cannot be written.
    """
    folder = base_folder(root, task, base)
    if not folder.exists():
        model, steps = train_base(task, base)
        with writes_to(root.parent):
            record = {"task": asdict(task), "base": asdict(base), "stages_done_at_step": steps}
            save_base(folder, model, make_tokenizer(task), record)
    return folder


def save_base(folder: Path, model: PreTrainedModel, tokenizer: Tokenizer, record: dict[str, Any]) -> None:
    """Writes a base so that `folder` is absent or whole at every instant.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    with whole_folder(folder) as unfinished:
        model.save_pretrained(unfinished)
        # With its class: without one, transformers takes the family's, which splits words its own way.
        PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(unfinished)
        (unfinished / RECORD).write_text(json.dumps(record, indent=1) + "\n")


def train_base(task: RecallTaskConfig, base: RecallBaseConfig) -> tuple[PreTrainedModel, list[int]]:
    """Trains a new base; also the step at which each stage was done.

    Raises:
        UserError: the curriculum is not done after `max_steps`.
    """
    torch.manual_seed(base.seed)
    generator = np.random.default_rng(base.seed)
    model = AutoModelForCausalLM.from_config(_model_config(task, base)).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=base.learning_rate, betas=(0.9, 0.98), weight_decay=base.weight_decay
    )
    stages, done = curriculum(task, base), []
    mean = 0.0
    with tqdm(total=base.max_steps, desc="base", unit="step") as bar:
        for step in range(base.max_steps):
            stage = stages[len(done)]
            repeats = stage.facts == 0 or step % REPEATS_EVERY == 0
            loss, accuracy = _loss(model, *_draw(task, base, stage, repeats, generator))
            optimizer.param_groups[0]["lr"] = base.learning_rate * min(1.0, (step + 1) / WARMUP_STEPS)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            bar.update()
            if repeats == (stage.facts == 0):
                mean += 0.05 * (accuracy - mean)
            if mean > stage.solved:
                done.append(step + 1)
                mean = 0.0
            bar.set_postfix(stage=f"{len(done)}/{len(stages)}", accuracy=f"{mean:.2f}", refresh=False)
            if len(done) == len(stages):
                return model.eval(), done
    raise UserError(
        f"--base.max_steps {base.max_steps}: the base has done {len(done)} of {len(stages)} stages of its curriculum "
        f"and answers {mean:.0%} in the next; give it more steps or another --base.learning_rate"
    )


def _model_config(task: RecallTaskConfig, base: RecallBaseConfig) -> AutoConfig:
    return AutoConfig.for_model(
        base.family,
        vocab_size=task.vocab_size,
        hidden_size=base.hidden_size,
        intermediate_size=base.intermediate_size,
        num_hidden_layers=base.num_layers,
        num_attention_heads=base.num_heads,
        num_key_value_heads=base.num_kv_heads,
        head_dim=base.head_dim,
        rope_parameters={"rope_type": "default", "rope_theta": base.rope_theta},
        tie_word_embeddings=False,
        initializer_range=0.05,
        bos_token_id=SINK,
        eos_token_id=None,
        use_cache=False,
    )


def _draw(
    task: RecallTaskConfig, base: RecallBaseConfig, stage: Stage, repeats: bool, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """A batch [B, T] and the positions whose next token is an answer."""
    if repeats:
        length = int(generator.integers(REPEATED_TOKENS[0], REPEATED_TOKENS[1] + 1))
        count = max(1, base.tokens_per_step // (2 * length + 1))
        ids = make_repeats(task, count, length, generator)
        return torch.from_numpy(ids), torch.arange(length + 1, 2 * length)
    num_facts, num_fillers = (
        int(generator.integers(max(1, most // 8), most + 1)) for most in (stage.facts, stage.fillers)
    )
    length = task.num_sink_tokens + 4 * num_facts + num_fillers
    documents = make_documents(task, max(1, base.tokens_per_step // length), num_facts, num_fillers, generator)
    return torch.from_numpy(documents.input_ids), torch.from_numpy(documents.questions)


def _loss(model: PreTrainedModel, ids: Tensor, questions: Tensor) -> tuple[Tensor, float]:
    """Cross entropy of the answers, and a tenth of that of all tokens; the share of right answers."""
    logits = model(ids).logits
    found, wanted = logits[:, questions], ids[:, questions + 1]
    answers = F.cross_entropy(found.flatten(0, 1), wanted.flatten())
    tokens = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    return answers + OTHER_TOKENS_WEIGHT * tokens, float((found.argmax(-1) == wanted).float().mean())
