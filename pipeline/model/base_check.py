"""Whether AHN is exact on a base, computed before the base is used.

Families of transformers differ in what their attention does, and a difference that AHN does not know would make every
figure wrong without a word. So a small copy of the base (small_copy.py) is run in float64, as it is and augmented:

- within the lossless budget: the base itself;
- past it: the base under a dense mask of sinks + window (and of its own sliding windows), given from outside;
- with memories that act: whole forwards, chunks and single tokens with a cache, padded rows and packed documents agree;
- in training mode as in eval mode; and the merged folder, read again, has the same tensors.

Then the first layers of the base itself give what they gave before they were augmented. What differs by more than
rounding is refused. A small copy that passed is remembered (pipeline/remembered.py) for its config, these sources and
the versions of torch and transformers.
"""

import copy
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from pipeline.attention.window import Document, WindowSpec
from pipeline.model.augment import PREFIX, augment
from pipeline.model.cache import HippocampusCache
from pipeline.model.freezing import freeze_base
from pipeline.model.output_head import check_output_head
from pipeline.model.small_copy import build_small, randomise, small_config
from pipeline.model.supported import UnsupportedModelError, causal_lm_class, check_config, family_of, sliding_windows
from pipeline.remembered import digest_of, recall, remember

WINDOW = WindowSpec(num_sink_tokens=2, window_size=10)
PARTS = (7, 8, 1, 1, 2, 5)
NUM_TOKENS = sum(PARTS)
TOLERANCE = 1e-9
"""Of the largest logit, in float64, where the base itself is as exact as that."""
MAX_ROUNDING = 1e-5
"""By which a base may differ from itself when it reads the same tokens in parts: some compute in float32 in between."""
ACTS = 1e-3
SOURCES = ("attention", "ahn", "losses", "model")
REMEMBERED = "checked_bases"


def check_family(config: PretrainedConfig) -> None:
    """Compares a small copy of the base with its AHN model, unless one of the same config has passed before.

    Args:
        config: of a base, or of an AHN model.

    Raises:
        UnsupportedModelError: AHN is not exact on it; the line says in what, and by how much.
    """
    check_config(config)
    base_class = _base_config_class(config)
    model_class = causal_lm_class(base_class)
    with _explained(family_of(config)):
        small = small_config(config, base_class)
        digest = _digest(small)
        if recall(REMEMBERED, digest) is not None:
            return
        with torch.random.fork_rng(devices=[]), _quiet():
            torch.default_generator.manual_seed(0)  # torch.manual_seed would seed the GPUs, too
            differences = _compare(build_small(model_class, small))
    remember(REMEMBERED, digest, differences)


def augment_checked(base: PreTrainedModel, ahn: dict[str, Any], seed: int) -> PreTrainedModel:
    """`augment`, and a look at the loaded weights: the first layers give what they gave before.

    Raises:
        UnsupportedModelError: they do not.
    """
    tokens = torch.arange(8)[None]
    before = _first_layers(base, tokens)
    model = augment(base, ahn, seed)
    after = _first_layers(model, tokens, documents=(Document(0, 0, tokens.shape[1], None),))
    difference, largest = ((x.abs().max().item()) for x in (before - after, before))
    if not difference <= 8 * torch.finfo(before.dtype).eps * largest:
        raise UnsupportedModelError(
            f"{family_of(model.config)}: the first layers' hidden states change by up to {difference:.3g} (of "
            f"{largest:.3g}) when the model is augmented, before anything was evicted"
        )
    return model


@torch.no_grad()
def _first_layers(model: PreTrainedModel, tokens: Tensor, **options: Any) -> Tensor:
    """Hidden states behind the first layers, of which one has full attention; the files' other pages stay unread."""
    decoder = model.eval().get_decoder()
    layers, windows = decoder.layers, sliding_windows(model.config)
    decoder.layers = layers[: max(2, windows.index(None) + 1)]
    try:
        return decoder(input_ids=tokens, use_cache=False, **options).last_hidden_state
    finally:
        decoder.layers = layers


@torch.no_grad()
def _compare(plain: PreTrainedModel) -> dict[str, float]:
    """The largest difference, in units of the largest logit, of everything that must agree.

    Raises:
        UnsupportedModelError: the first that does not.
    """
    name, windows = family_of(plain.config), sliding_windows(plain.config)
    model = freeze_base(augment(copy.deepcopy(plain), {**vars(WINDOW)}, seed=0)).eval()
    _check_merged_folder(model)
    check_output_head(model)
    model, plain = model.double(), plain.double()
    for either in (model, plain):
        either.set_experts_implementation("eager")  # the grouped kernels take no float64
    tokens = torch.randint(0, plain.config.vocab_size, (2, NUM_TOKENS))
    budget, found, tolerance = WINDOW.lossless_budget, {}, MAX_ROUNDING

    def differ(left: Tensor, right: Tensor) -> float:
        return ((left - right).abs().max() / right.abs().max()).item()

    def agree(what: str, left: Tensor, right: Tensor) -> None:
        found[what] = differ(left, right)
        if not found[what] <= tolerance:
            raise UnsupportedModelError(f"{name}: not exact {what}: {found[what]:.2g} of the largest logit")

    def acts(what: str, left: Tensor, right: Tensor) -> None:
        if not (left - right).abs().max() > ACTS * right.abs().max():
            raise UnsupportedModelError(f"{name}: cannot be checked: {what} changes nothing in a small copy of it")

    full, window = plain(tokens, use_cache=False).logits, model(tokens, use_cache=False).logits
    agree(
        "without AHN, in decoding with a cache", _read_in_parts(plain, tokens, DynamicCache(config=plain.config)), full
    )
    # Some compute in float32, a router for one, and round otherwise in a batch; some take padding for positions.
    own = [*found.values(), differ(*_padded(plain, tokens))]
    tolerance = max(TOLERANCE, 10 * max(x for x in own if x <= MAX_ROUNDING))
    short = tokens[:, :budget]
    agree("within the lossless budget", model(short, use_cache=False).logits, plain(short, use_cache=False).logits)
    acts("a window", window, full)
    masked = plain(tokens, attention_mask=_dense_masks(windows, tokens.shape[1]), use_cache=False).logits
    agree("as sinks + window without a memory", window, masked)
    randomise(((n, p) for n, p in model.named_parameters() if ".ahn." in n), scale=0.5)
    whole = model(tokens, use_cache=False).logits
    acts("a memory", whole, window)
    agree("in decoding with a cache", _read_in_parts(model, tokens, HippocampusCache(model.config, WINDOW)), whole)
    agree("in a padded batch", *_padded(model, tokens))
    agree("with packed documents", *_packed(model, tokens))
    agree("in training mode (dropout?)", model.train()(tokens, use_cache=False).logits, whole)
    return found


def _dense_masks(windows: tuple[int | None, ...], length: int) -> Tensor | dict[str, Tensor]:
    """Additive masks [1, 1, T, T] by the rule of pipeline/attention/window.py's docstring; a dictionary by kinds of
    layers, as transformers takes it, where there are two."""
    query, key = torch.arange(length)[:, None], torch.arange(length)[None]
    near = key <= query
    sees = near & ((key < WINDOW.num_sink_tokens) | (query - key < WINDOW.window_size))

    def additive(visible: Tensor) -> Tensor:
        mask = torch.zeros(length, length, dtype=torch.float64)
        return mask.masked_fill(~visible, torch.finfo(torch.float64).min)[None, None]

    sliding = next((window for window in windows if window is not None), None)
    if sliding is None:
        return additive(sees)
    return {"full_attention": additive(sees), "sliding_attention": additive(near & (query - key < sliding))}


def _read_in_parts(model: PreTrainedModel, tokens: Tensor, cache: Cache) -> Tensor:
    """Logits of the same tokens with a cache: parts within and across the budget, single tokens, and a part after."""
    parts = tokens.split(PARTS, dim=1)
    return torch.cat([model(part, past_key_values=cache, use_cache=True).logits for part in parts], 1)


def _padded(model: PreTrainedModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of a row behind padding, in a batch and with a cache, and of that row alone."""
    num_pads = 3
    mask = torch.ones_like(tokens)
    mask[1, :num_pads] = 0
    alone = model(tokens[1:, num_pads:], use_cache=False).logits[0]
    batch = model(tokens, attention_mask=mask, use_cache=False).logits[1, num_pads:]
    cached = model(tokens, attention_mask=mask, use_cache=True).logits[1, num_pads:]
    return torch.cat([batch, cached]), torch.cat([alone, alone])


def _packed(model: PreTrainedModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of two documents in one row, and of each alone."""
    bounds = ((0, 7), (7, NUM_TOKENS))
    documents = [Document(0, start, end, WINDOW) for start, end in bounds]
    packed = model(tokens[:1], documents=documents, use_cache=False).logits
    alone = [model(tokens[:1, start:end], use_cache=False).logits for start, end in bounds]
    return packed, torch.cat(alone, 1)


def _check_merged_folder(model: PreTrainedModel) -> None:
    """Writes the model as a merged folder and reads it as users do."""
    with tempfile.TemporaryDirectory() as folder:
        model.should_save_on_this_rank = lambda is_main_process: True  # each rank that computes this has its own folder
        model.save_pretrained(folder)
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    named = model.state_dict()
    other = [name for name in named if name not in loaded or not torch.equal(named[name], loaded[name])]
    if other or len(named) != len(loaded):
        raise UnsupportedModelError(
            f"{family_of(model.config)}: a merged folder of it would not load as it was ({', '.join(other[:3])})"
        )


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """A small copy that cannot be built or run is a base that is refused, whatever its modeling code raised."""
    try:
        yield
    except UnsupportedModelError:
        raise
    except Exception as error:
        message = " ".join(str(error).split())[:200]
        raise UnsupportedModelError(
            f"{name}: a small copy of it cannot be run with a memory ({type(error).__name__}: {message})"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and warnings, which would be about the small copy. Saving imports DeepSpeed,
    whose logger has the stdout of that moment, which is for what a launcher prints."""
    level, has_bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        transformers.logging.set_verbosity(level)
        if has_bars:
            transformers.logging.enable_progress_bar()


def _base_config_class(config: PretrainedConfig) -> type[PretrainedConfig]:
    bases = (kind for kind in type(config).__mro__ if issubclass(kind, PretrainedConfig))
    return next(kind for kind in bases if not kind.model_type.startswith(PREFIX))


def _digest(small: PretrainedConfig) -> str:
    """Of all that the comparison of a small copy depends on."""
    package = Path(__file__).parents[1]
    sources = (path for folder in SOURCES for path in sorted((package / folder).glob("*.py")))
    versions = f"{type(small).__name__} {torch.__version__} {transformers.__version__}"
    return digest_of([small.to_json_string(use_diff=False), versions, *sources])
