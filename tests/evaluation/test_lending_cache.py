"""The control of retained tokens: a text read with another one's, against a simulation of both token by token."""

import contextlib
from dataclasses import replace

import pytest
import torch

from pipeline.evaluation.heldout.foreign import read_with_foreign_memory
from pipeline.evaluation.reader import Reader
from pipeline.model import hybrid_attention
from pipeline.model.loading import load_model
from tests.conftest import TINY_VOCAB_SIZE
from tests.model.retained_simulator import Head, finish
from tests.tiny_models import TINY_WINDOW, make_adapter

LENGTH, M, C = 50, 5, 2
RETAINING = replace(TINY_WINDOW, num_retained_tokens=M, decision_interval=C)
POSITIONS = torch.arange(TINY_WINDOW.lossless_budget, LENGTH - 1)
HEADS, GROUP = 2, 2


@pytest.fixture(scope="module")
def model(folder, tmp_path_factory):
    adapter = make_adapter(tmp_path_factory.mktemp("lending") / "adapter", folder / "base", RETAINING)
    model = load_model(str(adapter), dtype=torch.float32).double().eval()
    for layer in model.get_decoder().layers:
        layer.ahn.fn.A_log.data.fill_(-4)  # forgets slowly
    return model


@pytest.fixture(scope="module")
def texts():
    return torch.randint(2, TINY_VOCAB_SIZE, (2, LENGTH), generator=torch.Generator().manual_seed(4))


def reader(model, variant, prefill_chunk=32) -> Reader:
    return Reader(model, variant, TINY_WINDOW, prefill_chunk, 4.0, C)


def attend(q, k, v, scale):
    return (k @ q * scale).softmax(0) @ v


def simulate_lending(q, k, v, hidden, memory, scale, with_cell):
    """[2, T, Hq, D] of both rows: q [2, Hq, T, D], k and v [2, Hkv, T, D], hidden [2, T, hidden]."""
    heads, gates = [Head(RETAINING) for _ in range(HEADS)], memory.fn.write_gates(hidden[1:])
    outputs, state = torch.zeros_like(q.transpose(1, 2)), None
    for t in range(LENGTH):
        writes = []
        for n, head in enumerate(heads):
            partial = memory.retention.score_hidden(hidden[1, t : t + 1])[0, n]
            writes.append(head.arrive(t, partial, lambda s, mass, p, n=n: finish(memory, s, mass, p, n)))
            near = head.in_window(t)
            lent = sorted(set(head.visible(t)) - set(near))
            keys, values = (torch.cat([x[0, n, near], x[1, n, lent]]) for x in (k, v))
            for h in range(n * GROUP, (n + 1) * GROUP):
                outputs[0, t, h] = attend(q[0, h, t], keys, values, scale)
                outputs[1, t, h] = attend(q[1, h, t], k[1, n, head.visible(t)], v[1, n, head.visible(t)], scale)
            given = [(k[1, n, near] @ q[1, h, t] * scale).softmax(0) for h in range(n * GROUP, (n + 1) * GROUP)]
            head.receive(t, near, torch.stack(given).mean(0))  # the tiny window looks at every query
        if with_cell and writes[0] is not None:
            of_heads, index = torch.arange(HEADS), torch.tensor(writes)
            own = {name: g[0, index.repeat_interleave(GROUP), torch.arange(HEADS * GROUP)] for name, g in gates.items()}
            reads = [
                memory.fn.read(
                    q[row, :, t][None, None], k[1, of_heads, index][None, None], v[1, of_heads, index][None, None],
                    {name: g[None, None] for name, g in own.items()}, hidden[row : row + 1, t : t + 1],
                    initial_state=state, output_final_state=True,
                )
                for row in range(2)
            ]  # fmt: skip
            state = reads[1][1]
            outputs[:, t] += torch.cat([read[0] for read, _ in reads])
    return outputs


@contextlib.contextmanager
def simulated(with_cell):
    def attention(_module, q, k, v, _mask, *, scaling, ahn_memory, ahn_hidden, **_):
        memory, _ = ahn_memory.take()
        return simulate_lending(q, k, v, ahn_hidden, memory, scaling, with_cell), None

    registered = hybrid_attention.ALL_ATTENTION_FUNCTIONS
    before = registered["ahn"]
    registered.register("ahn", attention)
    try:
        yield
    finally:
        registered.register("ahn", before)


@torch.no_grad()
@pytest.mark.parametrize("with_cell", [False, True], ids=["tokens", "tokens and state"])
def test_the_first_text_sees_its_own_window_and_what_the_second_retains(model, texts, with_cell) -> None:
    with simulated(with_cell):
        expected = model.get_decoder()(texts, use_cache=False).last_hidden_state[0, POSITIONS]
    variant = f"retained{M}{'_ahn' * with_cell}"
    for chunk in (3, 14, 32, 2 * LENGTH):  # parts of one token, too
        found = read_with_foreign_memory(reader(model, variant, chunk), *texts, POSITIONS)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    own = reader(model, variant).hidden_states(texts[0], POSITIONS)
    window = reader(model, "window").hidden_states(texts[0], POSITIONS)
    assert (found - own).abs().max() > 0.1 and (found - window).abs().max() > 0.1
    assert (found - own)[0].abs().max() > 1e-3, "the control begins where the window is left"
    itself = read_with_foreign_memory(reader(model, variant), texts[0], texts[0], POSITIONS)
    torch.testing.assert_close(itself, own, rtol=0, atol=1e-6)


def test_the_control_ends_with_the_other_text(model, texts) -> None:
    """Queries behind it would have a say in what it retains."""
    whole = read_with_foreign_memory(reader(model, f"retained{M}"), *texts, POSITIONS)
    found = read_with_foreign_memory(reader(model, f"retained{M}"), texts[0], texts[1, :37], POSITIONS)
    assert len(found) == 37 - TINY_WINDOW.lossless_budget
    torch.testing.assert_close(found, whole[: len(found)], rtol=0, atol=1e-6)
