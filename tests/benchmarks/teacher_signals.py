"""What each teacher signal costs and loses, full attention teaching sinks + window: SmolLM2-135M on real text, and a
tiny Qwen2 with Qwen2.5's vocabulary on random tokens, its head scaled to an entropy as language models have it.

Against the dense KL at the same positions: the loss, and the gradient to all memories' parameters as one vector. The
memories act: their output matrices are random. The teacher runs in float32: one that runs in bfloat16 would lose
nothing in bfloat16.
"""

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from pipeline.attention.window import Document, WindowSpec
from pipeline.config import MemoryConfig
from pipeline.losses.chunked_kl import chunked_forward_kl
from pipeline.losses.signal_kl import chunked_signal_kl
from pipeline.losses.sparse_kl import Tail
from pipeline.model.loading import load_base
from pipeline.model.output_head import find_output_head
from pipeline.teacher.extract import extract_signal
from pipeline.teacher.signals import HiddenSpec, SampledSpec, SignalSpec, TopKSpec
from tests.benchmarks.timing import report, seconds
from tests.teacher.capture_inputs import make_teacher

MODEL = Path(__file__).parents[2] / ".cache" / "smollm2-135m"
WINDOW = WindowSpec(num_sink_tokens=32, window_size=224)
NUM_POSITIONS, CHUNK, REPEATS = 1024, 128, 3
LENGTH = WINDOW.lossless_budget + NUM_POSITIONS + 1
QWEN_VOCABULARY = 151_936


def run() -> dict:
    if not MODEL.is_dir():
        raise SystemExit(f"error: {MODEL} is missing; run launchers/demo/fetch_model.py")
    with tempfile.TemporaryDirectory() as folder:
        models = {"SmolLM2-135M": _smollm2(), "tiny Qwen2": _tiny_qwen2(Path(folder))}
        return {name: _compare(name, Bench(model, tokens)) for name, (model, tokens) in models.items()}


def _smollm2() -> tuple[PreTrainedModel, Tensor]:
    text = "\n".join(topics[name] for name in sorted(topics))
    tokens = AutoTokenizer.from_pretrained(MODEL)(text[: 8 * LENGTH], return_tensors="pt").input_ids[:, :LENGTH]
    assert tokens.shape[1] == LENGTH
    return _load(MODEL), tokens


def _tiny_qwen2(folder: Path) -> tuple[PreTrainedModel, Tensor]:
    model = _load(make_teacher(folder, QWEN_VOCABULARY, hidden_size=64))
    with torch.no_grad():
        model.lm_head.weight.mul_(2.6)
    return model, torch.randint(0, QWEN_VOCABULARY, (1, LENGTH))


def _load(folder: Path) -> PreTrainedModel:
    model = load_base(str(folder), memory=MemoryConfig(), window=WINDOW, dtype=torch.float32).eval()
    with torch.no_grad():
        for layer in model.get_decoder().layers:
            layer.ahn.fn.o_proj.weight.normal_(std=0.05)
    return model


class Bench:
    """Teacher and student past the window [M, D], and what a gradient to the student means for its memories."""

    def __init__(self, model: PreTrainedModel, tokens: Tensor) -> None:
        decoder, positions = model.get_decoder(), slice(WINDOW.lossless_budget, LENGTH - 1)
        self.head = find_output_head(model)
        self.weights = torch.full((NUM_POSITIONS,), 1 / NUM_POSITIONS)
        self._memories = [p for p in model.parameters() if p.requires_grad]

        def run(window: WindowSpec | None, use_memory: bool) -> Tensor:
            documents = [Document(0, 0, LENGTH, window)]
            output = decoder(input_ids=tokens, use_cache=False, documents=documents, use_memory=use_memory)
            return output.last_hidden_state[0, positions]

        with torch.no_grad():
            self.teacher = run(None, False).clone()
        self.student = run(WINDOW, True)

    def measure(self, loss_of: Callable[[Tensor], Tensor]) -> tuple[float, Tensor]:
        """Loss, and its gradient to all memories [parameters], float64."""
        loss = loss_of(self.student)
        gradients = torch.autograd.grad(loss, self._memories, retain_graph=True)
        return loss.item(), torch.cat([gradient.flatten().double() for gradient in gradients])

    def mean_entropy(self) -> float:
        """Of the teacher, in nats."""
        logits = map(self.head.compute_logits, self.teacher.split(CHUNK))
        return torch.cat([torch.special.entr(part.softmax(-1)).sum(-1) for part in logits]).mean().item()


def _compare(name: str, bench: Bench) -> dict:
    vocab_size, hidden_size = bench.head.weight.shape
    sizes = {"vocab_size": vocab_size}
    runs: list[tuple[SignalSpec, Tail]] = [
        *((HiddenSpec(dtype, hidden_size), "bucket") for dtype in ("float32", "bfloat16", "float16", "int8")),
        *((TopKSpec(k, **sizes), tail) for k in (50, 200) for tail in ("bucket", "renormalise")),
        *((SampledSpec(num_draws, 0, **sizes), "bucket") for num_draws in (12, 50, 200)),
    ]
    dense = bench.measure(lambda s: chunked_forward_kl(s, bench.teacher, bench.head, bench.weights, CHUNK))
    entropy = bench.mean_entropy()
    print(f"\n{name}: dense KL {dense[0]:.4f} nats, the teacher's entropy {entropy:.4f}, {NUM_POSITIONS} positions")
    rows = [_measure(spec, tail, bench, dense) for spec, tail in runs]
    return {"kl": dense[0], "entropy": entropy, "signals": report(f"{name}: signals against the dense KL", rows)}


def _measure(spec: SignalSpec, tail: Tail, bench: Bench, dense: tuple[float, Tensor]) -> dict:
    positions, parts = np.arange(NUM_POSITIONS), []

    def extract() -> None:
        parts[:] = [extract_signal(spec, bench.teacher, bench.head, "benchmark", positions, CHUNK)]

    times = [seconds(extract) for _ in range(REPEATS)]
    (signal,) = parts
    loss, gradient = bench.measure(lambda s: chunked_signal_kl(s, signal, bench.head, bench.weights, CHUNK, tail))
    return {
        "signal": _name(spec, tail),
        "bytes_a_position": sum(array.nbytes for array in signal.to_members().values()) / NUM_POSITIONS,
        "kl": loss,
        "kl_error": loss / dense[0] - 1,
        "grad_cosine": torch.nn.functional.cosine_similarity(gradient, dense[1], 0).item(),
        "grad_norm_error": (gradient.norm() / dense[1].norm() - 1).item(),
        "grad_relative_error": ((gradient - dense[1]).norm() / dense[1].norm()).item(),
        "extracted_a_s": NUM_POSITIONS / statistics.median(times),
    }


def _name(spec: SignalSpec, tail: Tail) -> str:
    if isinstance(spec, HiddenSpec):
        return f"hidden {spec.dtype}"
    return f"top-{spec.k} {tail}" if isinstance(spec, TopKSpec) else f"sampled {spec.num_draws}"
