"""A layer with retained tokens, token by token, written from the rule's definition; takes the attention function's
place in a model, so that the model is simulated whole."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pipeline.ahn.build import Memory
from pipeline.attention.window import WindowSpec
from pipeline.model import hybrid_attention
from pipeline.model.handed_memory import HandedMemory
from pipeline.model.plan import DocumentPlan


@contextlib.contextmanager
def simulated() -> Iterator[list[int]]:
    """Within it, forwards without a cache are simulated. Gives the numbers of tokens dropped, a head and document."""
    counts: list[int] = []

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: object, *, scaling: float,
        ahn_memory: HandedMemory, ahn_hidden: Tensor, ahn_plan: DocumentPlan, **_: object,
    ) -> tuple[Tensor, None]:  # fmt: skip
        memory, sliding_window = ahn_memory.take()
        assert sliding_window is None
        output = torch.zeros_like(query.transpose(1, 2))
        for d in ahn_plan.documents:
            part = slice(d.start, d.end)
            of_document = (x[d.row, :, part] for x in (query, key, value))
            found = simulate_document(*of_document, ahn_hidden[d.row, part], memory, d.window, scaling, counts)
            output = output.index_put((torch.tensor(d.row), torch.arange(d.start, d.end)), found)
        return output, None

    before = hybrid_attention.ALL_ATTENTION_FUNCTIONS["ahn"]
    hybrid_attention.ALL_ATTENTION_FUNCTIONS.register("ahn", attention)
    try:
        yield counts
    finally:
        hybrid_attention.ALL_ATTENTION_FUNCTIONS.register("ahn", before)


def simulate_document(
    q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, memory: Memory, window: WindowSpec, scale: float,
    counts: list[int],
) -> Tensor:  # fmt: skip
    """Outputs [T, Hq, D] of one document: q [Hq, T, D], k and v [Hkv, T, D], hidden [T, hidden]."""
    group = q.shape[0] // k.shape[0]
    gates = memory.fn.write_gates(hidden[None])
    heads = [Head(window) for _ in range(k.shape[0])]
    outputs, state = [], None
    for t in range(q.shape[1]):
        rows, writes = [], []
        for number, head in enumerate(heads):
            own = range(number * group, (number + 1) * group)
            partial = memory.retention.score_hidden(hidden[t : t + 1].detach())[0, number]
            writes.append(head.arrive(t, partial, lambda s, mass, p, n=number: finish(memory, s, mass, p, n)))
            rows += [softmax_over(q[h, t], k[number], v[number], head.visible(t), scale) for h in own]
            if t % window.sampling_stride == 0:
                near = head.in_window(t)
                given = torch.stack([(q[h, t] @ k[number, near].T * scale).softmax(-1) for h in own]).mean(0)
                head.receive(t, near, given.detach())
        output = torch.stack(rows)
        dropped = [w for w in writes if w is not None]
        assert len(dropped) in (0, len(heads)), "all heads drop at the same queries"
        if dropped:
            index = torch.tensor(dropped)
            of_heads = torch.arange(len(heads))
            own_gates = {n: g[0, index.repeat_interleave(group), torch.arange(q.shape[0])] for n, g in gates.items()}
            read, state = memory.fn.read(
                q[None, :, t][:, None],
                k[of_heads, index][None, None],
                v[of_heads, index][None, None],
                {name: gate[None, None] for name, gate in own_gates.items()},
                hidden[None, t : t + 1],
                initial_state=state,
                output_final_state=True,
            )
            output = output + read[0, 0]
        outputs.append(output)
    counts += [len(head.dropped) for head in heads]
    return torch.stack(outputs)


def finish(memory: Memory, partial: Tensor, mass: Tensor, position: int, head: int) -> float:
    scorer = memory.retention
    score = partial + scorer.mass_weight[head].detach() * (mass + 1e-6).log() + scorer.position_weight[head] * position
    return round(score.item() * 1024) / 1024


def softmax_over(q: Tensor, k: Tensor, v: Tensor, tokens: list[int], scale: float) -> Tensor:
    return (k[tokens] @ q * scale).softmax(0) @ v[tokens]


class Head:
    """One key-value head's bookkeeping: lists of positions."""

    def __init__(self, window: WindowSpec) -> None:
        self.window = window
        self.seen = 0
        self.partial, self.mass = {}, {}
        self.scores: dict[int, float] = {}
        self.retained: list[int] = []
        self.waiting: list[int] = []  # left the window since the last decision
        self.losers: list[int] = []  # of the last decision, not yet dropped
        self.dropped: list[int] = []

    def arrive(self, t: int, partial: Tensor, finish_score) -> int | None:
        """Token t comes, and before its query reads another may leave the window: the one that is dropped."""
        w = self.window
        self.seen = t + 1
        self.partial[t], self.mass[t] = partial, torch.zeros_like(partial)
        leaving, event = t - w.window_size, t - w.window_size - w.num_sink_tokens
        if event < 0:
            return None
        self.scores[leaving] = finish_score(self.partial[leaving], self.mass[leaving], leaving)
        self.waiting.append(leaving)
        m, c = w.num_retained_tokens, w.decision_interval
        if event >= m and (event - m + 1) % c == 0:
            ranked = sorted(self.retained + self.waiting, key=lambda j: (-self.scores[j], -j))
            self.retained, self.losers, self.waiting = ranked[:m], sorted(ranked[m:]), []
        if not self.losers:
            return None
        self.dropped.append(self.losers.pop(0))
        return self.dropped[-1]

    def visible(self, t: int) -> list[int]:
        return sorted({*self.in_window(t), *self.retained, *self.waiting, *self.losers})

    def in_window(self, t: int) -> list[int]:
        w = self.window
        return [j for j in range(t + 1) if j < w.num_sink_tokens or t - j < w.window_size]

    def receive(self, t: int, tokens: list[int], given: Tensor) -> None:
        for j, mass in zip(tokens, given, strict=True):
            if self.window.num_sink_tokens <= j < t:
                self.mass[j] = self.mass[j] + mass
