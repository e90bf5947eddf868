"""A sample gone through piece by piece has the hidden states of the whole: documents do not see each other."""

import subprocess
import sys
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from pipeline.config import TeacherCacheConfig
from pipeline.data.shard_format import PackedSample
from pipeline.model.loading import load_model
from pipeline.model.supported import UnsupportedModelError
from pipeline.teacher.document_attention import Piece, split_sample
from pipeline.teacher.teacher_model import Teacher, check_teacher
from tests.distributed.processes import environment

SIZES = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}  # fmt: skip
FAMILIES = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZES)),
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES)),
    "sliding": (  # its second layer has a window of its own
        Qwen2ForCausalLM,
        Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=9, max_window_layers=1),
    ),
}
CPU = torch.device("cpu")
CHUNKS = (1, 7, 63, 64)
LENGTHS = ([63], [64], [65], [1, 63, 64], [5, 2, 65, 7, 64, 1], [7, 8, 200, 3])


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    model_class, config = FAMILIES[request.param]
    model_class(config).save_pretrained(folder)
    return folder


def make_sample(lengths: list[int]) -> PackedSample:
    ids = np.random.default_rng(len(lengths)).integers(0, 97, sum(lengths)).astype(np.uint32)
    bounds = np.array([0, *accumulate(lengths)], np.int32)
    return PackedSample("sample", ids, bounds, None, {})


def make_teacher(base: Path, dtype: torch.dtype, forward_chunk: int | None) -> Teacher:
    config = TeacherCacheConfig(
        model=str(base), data="", output=Path("out"), signal="hidden", base_dtype="float32", forward_chunk=forward_chunk
    )
    teacher = Teacher(config, CPU)
    teacher.load()
    teacher._decoder.to(dtype)
    return teacher


@pytest.mark.parametrize("lengths", LENGTHS)
def test_piece_by_piece_equals_every_document_on_its_own(base, lengths) -> None:
    """By the base as transformers has it; every piece at most the chunk."""
    sample, positions = make_sample(lengths), np.arange(sum(lengths))
    plain = load_model(str(base), dtype=torch.float64).get_decoder()
    ids = torch.from_numpy(sample.input_ids.astype(np.int64))[None]
    with torch.no_grad():
        due = torch.cat([plain(input_ids=part).last_hidden_state[0] for part in ids.split(lengths, 1)])
    for chunk in (None, *CHUNKS):
        found = make_teacher(base, torch.float64, chunk).compute_hidden(sample, positions)
        assert found.std() > 0.5 and (found - due).abs().max() < 1e-9, chunk


def test_in_float32_the_difference_is_that_of_its_rounding(base) -> None:
    sample, positions = make_sample([300, 9]), np.arange(309)
    whole = make_teacher(base, torch.float32, None).compute_hidden(sample, positions)
    for chunk in CHUNKS:
        found = make_teacher(base, torch.float32, chunk).compute_hidden(sample, positions)
        assert (found - whole).abs().max() < 2e-5 * whole.abs().max(), chunk


def test_only_the_wanted_positions_come_back(base) -> None:
    sample, positions = make_sample([70, 3, 40]), np.array([0, 6, 7, 69, 72, 80, 112], np.int32)
    whole = make_teacher(base, torch.float64, None).compute_hidden(sample, np.arange(113))
    for chunk in (7, 64):
        found = make_teacher(base, torch.float64, chunk).compute_hidden(sample, positions)
        torch.testing.assert_close(found, whole[positions], rtol=0, atol=1e-9)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("most", [None, *CHUNKS])
def test_pieces_cover_the_sample_and_fit(lengths, most) -> None:
    bounds = [0, *accumulate(lengths)]
    pieces = list(split_sample(bounds, most))
    assert [p.start for p in pieces] == [0, *(p.end for p in pieces[:-1])] and pieces[-1].end == bounds[-1]
    assert most is None or all(p.end - p.start <= most for p in pieces)
    for piece, following in pairwise(pieces):  # as many whole documents as fit
        is_whole = piece.num_before == following.num_before == 0 and following.end == following.bounds[-1]
        assert not is_whole or following.bounds[1] - piece.start > most or piece.end < piece.bounds[-1]
    positions = torch.cat([p.position_ids(CPU)[0] for p in pieces])
    assert positions.tolist() == [n for length in lengths for n in range(length)]


def test_a_chunk_sees_what_came_before_and_itself_up_to_each_token() -> None:
    mask = Piece(5, 8, (2, 20)).mask(CPU)
    assert mask.shape == (1, 1, 3, 6) and mask[0, 0].int().tolist() == [[1] * 4 + [0] * 2, [1] * 5 + [0], [1] * 6]
    assert Piece(2, 5, (2, 20)).mask(CPU) is None and Piece(5, 6, (2, 20)).mask(CPU) is None


def test_a_base_without_full_attention_is_no_teacher_and_its_weights_are_not_read(tmp_path) -> None:
    config = Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=0)
    config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="no layer of the base has full attention"):
        check_teacher(str(tmp_path))


PEAK = """
import sys, numpy as np, torch
from pathlib import Path
from pipeline.config import TeacherCacheConfig
from pipeline.data.shard_format import PackedSample
from pipeline.teacher.teacher_model import Teacher
torch.set_num_threads(1)
length, chunk = int(sys.argv[2]), int(sys.argv[3])
config = TeacherCacheConfig(model=sys.argv[1], data="", output=Path("out"), signal="hidden", base_dtype="float32",
                            forward_chunk=chunk)
teacher = Teacher(config, torch.device("cpu"))
teacher.load()
ids = np.random.default_rng(0).integers(0, 97, length).astype(np.uint32)
sample = PackedSample("sample", ids, np.array([0, length], np.int32), None, {})
teacher.compute_hidden(sample, np.arange(0, length, 64))
print(next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_a_chunked_forward_takes_the_memory_of_its_chunk(tmp_path) -> None:
    """Above a forward of 256 tokens; the mask, keys and values grow with the document."""
    sizes = {**SIZES, "hidden_size": 64, "intermediate_size": 2048}
    Qwen2ForCausalLM(Qwen2Config(**sizes)).save_pretrained(tmp_path)

    def measure(length: int, chunk: int) -> int:
        command = [sys.executable, "-c", PEAK, str(tmp_path), str(length), str(chunk)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment())
        assert done.returncode == 0, done.stderr[-2000:]
        return int(done.stdout.split()[-1])

    base = measure(256, 256)
    whole, chunked = measure(8192, 8192) - base, measure(8192, 256) - base
    print(f"above {base / 1024:.0f} MiB: {whole / 1024:.0f} MiB whole, {chunked / 1024:.0f} MiB in chunks")
    assert 4 * chunked < whole and whole > 100 * 1024
