"""What a teacher cache holds for each position: specs, arrays, and their form on disk. numpy only.

M positions of one sample, each with the teacher's distribution over V tokens in one of three forms:

- hidden: the final normed hidden state. The frozen head turns it into the exact distribution.
- topk: the K most probable ids with their log-probabilities, and the log of all the remaining mass.
- sampled: N draws from the distribution as distinct ids with counts, an unbiased estimate of it (arXiv 2503.16870),
  and its entropy, which makes the KL from the draws unbiased.

A spec says which form; a signal holds the arrays of some positions; `to_members` and `from_members` are the arrays
as files, by file name. Positions are independent: any of them may be selected, reordered and concatenated.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import ClassVar, TypeVar

import numpy as np

from pipeline.errors import UserError
from pipeline.teacher.bit_packing import pack_ids, packed_size, unpack_ids

STORED_DTYPES = {"float32": np.float32, "bfloat16": np.uint16, "float16": np.float16, "int8": np.int8}
MASS_TOLERANCE = 0.02  # float16 keeps a log-probability down to -16 to 0.4 %, one down to -32 to 0.8 %
ENTROPY_TOLERANCE = 1e-3  # nats; sums in float32 are off by less
MAX_SIZE = 1 << 31

Members = dict[str, np.ndarray]


@dataclass(frozen=True)
class HiddenSpec:
    """Hidden states stored as `float32`, `bfloat16`, `float16`, or `int8` with one float32 scale a position.

    Raises:
        UserError: at construction, as by every spec: a value that is out of range.
    """

    dtype: str
    hidden_size: int
    kind: ClassVar[str] = "hidden"

    def __post_init__(self) -> None:
        if self.dtype not in STORED_DTYPES:
            raise UserError(f"signal dtype {self.dtype!r}: there are {', '.join(STORED_DTYPES)}")
        _check_range("hidden_size", self.hidden_size, 1, MAX_SIZE)

    def member_bytes(self, num_positions: int) -> dict[str, int]:
        """Names of a signal's members, in order, and the bytes of their arrays."""
        hidden = num_positions * self.hidden_size * np.dtype(STORED_DTYPES[self.dtype]).itemsize
        return {"hidden.npy": hidden} | ({"scale.npy": 4 * num_positions} if self.dtype == "int8" else {})


@dataclass(frozen=True)
class TopKSpec:
    """The `k` most probable of `vocab_size` tokens."""

    k: int
    vocab_size: int
    kind: ClassVar[str] = "topk"

    def __post_init__(self) -> None:
        _check_range("vocab_size", self.vocab_size, 1, MAX_SIZE)
        _check_range("k", self.k, 1, self.vocab_size)

    def member_bytes(self, num_positions: int) -> dict[str, int]:
        """Names of a signal's members, in order, and the bytes of their arrays."""
        ids = packed_size(self.k, self.vocab_size)
        sizes = {"ids.npy": ids, "log_probs.npy": 2 * self.k, "tail.npy": 4}
        return {name: num_positions * size for name, size in sizes.items()}


@dataclass(frozen=True)
class SampledSpec:
    """`num_draws` draws from a distribution over `vocab_size` tokens; `seed` keys the draws."""

    num_draws: int
    seed: int
    vocab_size: int
    kind: ClassVar[str] = "sampled"

    def __post_init__(self) -> None:
        _check_range("vocab_size", self.vocab_size, 1, MAX_SIZE)
        _check_range("num_draws", self.num_draws, 1, (1 << 16) - 1)
        _check_range("seed", self.seed, 0, (1 << 64) - 1)

    @property
    def count_dtype(self) -> np.dtype:
        return np.dtype(np.uint8 if self.num_draws <= 255 else np.uint16)

    def member_bytes(self, num_positions: int) -> dict[str, int]:
        """Names of a signal's members, in order, and the bytes of their arrays where all draws differ: the most."""
        most = num_positions * min(self.num_draws, self.vocab_size)
        ids, counts = packed_size(most, self.vocab_size), most * self.count_dtype.itemsize
        num_ids, entropy = 2 * num_positions, 4 * num_positions
        return {"num_ids.npy": num_ids, "ids.npy": ids, "counts.npy": counts, "entropy.npy": entropy}


SignalSpec = HiddenSpec | TopKSpec | SampledSpec
_SPECS = {spec.kind: spec for spec in (HiddenSpec, TopKSpec, SampledSpec)}


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise UserError(f"signal {name} {value!r}: an integer from {low} to {high} is needed")


def spec_to_json(spec: SignalSpec) -> dict:
    """The spec as JSON types, `kind` first."""
    return {"kind": spec.kind, **asdict(spec)}


def spec_from_json(value: dict) -> SignalSpec:
    """The inverse of `spec_to_json`.

    Raises:
        UserError: an unknown kind, a missing or unknown field, a value out of range.
    """
    kind = value.get("kind") if isinstance(value, dict) else value
    if not isinstance(kind, str) or kind not in _SPECS:
        raise UserError(f"signal kind {kind!r}: there are {', '.join(_SPECS)}")
    rest = {name: v for name, v in value.items() if name != "kind"}
    names = {field.name for field in fields(_SPECS[kind])}
    if rest.keys() != names:
        raise UserError(f"signal {kind} has fields {sorted(rest)}; {sorted(names)} are needed")
    return _SPECS[kind](**rest)


def _member(members: Members, name: str, dtype: type | np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    if name not in members:
        raise ValueError(f"{name} is missing")
    array = members[name]
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{name} is {array.dtype} {list(array.shape)} where {np.dtype(dtype)} {list(shape)} is due")
    return array


@dataclass(frozen=True, eq=False)
class HiddenSignal:
    """`values` [M, D] in the spec's dtype, bfloat16 as its bits in uint16; `scale` float32 [M] with int8 only."""

    spec: HiddenSpec
    values: np.ndarray
    scale: np.ndarray | None = None

    @classmethod
    def encode(cls, spec: HiddenSpec, hidden: np.ndarray) -> "HiddenSignal":
        """Rounds float32 [M, D] to the spec's dtype, to nearest and to even; int8 is symmetric, max-abs / 127.

        Raises:
            ValueError: a value that is not finite, or not in the spec's dtype.
        """
        assert hidden.dtype == np.float32
        if not np.isfinite(hidden).all():
            raise ValueError("a hidden state is not finite")
        scale = None
        if spec.dtype == "bfloat16":
            bits = hidden.view(np.uint32)
            values = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        elif spec.dtype == "int8":
            scale = np.abs(hidden).max(1) / np.float32(127)
            divisor = np.where(scale == 0, np.float32(1), scale)[:, None]  # a row of zeros stays one
            values = np.clip(np.rint(hidden / divisor), -127, 127).astype(np.int8)
        else:
            with np.errstate(over="ignore"):
                values = hidden.astype(STORED_DTYPES[spec.dtype])
        signal = cls(spec, values, scale)
        if not np.isfinite(signal.decode()).all():
            raise ValueError(f"a hidden state is beyond {spec.dtype}")
        return signal

    def decode(self) -> np.ndarray:
        """The hidden states as float32 [M, D]: the stored values exactly, int8 times its scale."""
        if self.spec.dtype == "bfloat16":
            return (self.values.astype(np.uint32) << 16).view(np.float32)
        values = self.values.astype(np.float32)
        return values if self.scale is None else values * self.scale[:, None]

    def to_members(self) -> Members:
        """The arrays as stored, by file name."""
        return {"hidden.npy": self.values} | ({} if self.scale is None else {"scale.npy": self.scale})

    @classmethod
    def from_members(cls, spec: HiddenSpec, members: Members, num_positions: int) -> "HiddenSignal":
        """The inverse of `to_members`; members of other names are passed over.

        Raises:
            ValueError: a member that is missing, or whose dtype, shape or content does not fit.
        """
        values = _member(members, "hidden.npy", STORED_DTYPES[spec.dtype], (num_positions, spec.hidden_size))
        if spec.dtype != "int8":
            return cls(spec, values)
        scale = _member(members, "scale.npy", np.float32, (num_positions,))
        if not (np.isfinite(scale) & (scale >= 0)).all():
            raise ValueError("scale.npy holds a value that is negative or not finite")
        return cls(spec, values, scale)

    def select(self, rows: np.ndarray) -> "HiddenSignal":
        """The positions `rows` (indices, any order)."""
        return HiddenSignal(self.spec, self.values[rows], None if self.scale is None else self.scale[rows])

    @classmethod
    def concatenate(cls, signals: Sequence["HiddenSignal"]) -> "HiddenSignal":
        """All positions, one signal after the other; the specs must be equal."""
        spec = _common_spec(signals)
        scale = np.concatenate([s.scale for s in signals]) if spec.dtype == "int8" else None
        return cls(spec, np.concatenate([s.values for s in signals]), scale)


@dataclass(frozen=True, eq=False)
class TopKSignal:
    """`ids` uint32 [M, K] and `log_probs` float16 [M, K], most probable first; `log_tail` float32 [M], -inf if none."""

    spec: TopKSpec
    ids: np.ndarray
    log_probs: np.ndarray
    log_tail: np.ndarray

    def to_members(self) -> Members:
        """The arrays as stored, by file name; `ids.npy` is packed position by position."""
        packed = pack_ids(self.ids, self.spec.vocab_size)
        return {"ids.npy": packed, "log_probs.npy": self.log_probs, "tail.npy": self.log_tail}

    @classmethod
    def from_members(cls, spec: TopKSpec, members: Members, num_positions: int) -> "TopKSignal":
        """The inverse of `to_members`; members of other names are passed over.

        Raises:
            ValueError: a member that is missing, or whose dtype, shape or content does not fit.
        """
        packed = _member(members, "ids.npy", np.uint8, (num_positions, packed_size(spec.k, spec.vocab_size)))
        log_probs = _member(members, "log_probs.npy", np.float16, (num_positions, spec.k))
        log_tail = _member(members, "tail.npy", np.float32, (num_positions,))
        ids = unpack_ids(packed, spec.k, spec.vocab_size)
        ordered = np.sort(ids, 1)
        if (ordered[:, 1:] == ordered[:, :-1]).any():
            raise ValueError("ids.npy holds an id twice in one position")
        exact = log_probs.astype(np.float32)
        if not ((exact <= 0).all() and (exact[:, 1:] <= exact[:, :-1]).all()):
            raise ValueError("log_probs.npy does not descend from a value of at most 0")
        mass = np.exp(exact).sum(1) + np.exp(log_tail)
        if not (np.abs(mass - 1) <= MASS_TOLERANCE).all() or (spec.k == spec.vocab_size and np.exp(log_tail).any()):
            raise ValueError("log_probs.npy and tail.npy do not make up one distribution")
        return cls(spec, ids, log_probs, log_tail)

    def select(self, rows: np.ndarray) -> "TopKSignal":
        """The positions `rows` (indices, any order)."""
        return TopKSignal(self.spec, self.ids[rows], self.log_probs[rows], self.log_tail[rows])

    @classmethod
    def concatenate(cls, signals: Sequence["TopKSignal"]) -> "TopKSignal":
        """All positions, one signal after the other; the specs must be equal."""
        spec = _common_spec(signals)
        return cls(spec, *(np.concatenate([getattr(s, n) for s in signals]) for n in ("ids", "log_probs", "log_tail")))


@dataclass(frozen=True, eq=False)
class SampledSignal:
    """`num_ids` uint16 [M] distinct ids a position; over all positions `ids` uint32 and `counts` (spec.count_dtype).

    Within a position ids ascend, and the counts sum to num_draws. `entropy` float32 [M] is that of the distribution
    that was drawn from, in nats.
    """

    spec: SampledSpec
    num_ids: np.ndarray
    ids: np.ndarray
    counts: np.ndarray
    entropy: np.ndarray

    def to_members(self) -> Members:
        """The arrays as stored, by file name; `ids.npy` is packed over all positions."""
        packed = pack_ids(self.ids, self.spec.vocab_size)
        return {"num_ids.npy": self.num_ids, "ids.npy": packed, "counts.npy": self.counts, "entropy.npy": self.entropy}

    @classmethod
    def from_members(cls, spec: SampledSpec, members: Members, num_positions: int) -> "SampledSignal":
        """The inverse of `to_members`; members of other names are passed over.

        Raises:
            ValueError: a member that is missing, or whose dtype, shape or content does not fit.
        """
        num_ids = _member(members, "num_ids.npy", np.uint16, (num_positions,))
        total = int(num_ids.sum(dtype=np.int64))
        counts = _member(members, "counts.npy", spec.count_dtype, (total,))
        packed = _member(members, "ids.npy", np.uint8, (packed_size(total, spec.vocab_size),))
        entropy = _member(members, "entropy.npy", np.float32, (num_positions,))
        ids = unpack_ids(packed, total, spec.vocab_size)
        owners = np.repeat(np.arange(num_positions), num_ids)
        if ((owners[1:] == owners[:-1]) & (ids[1:] <= ids[:-1])).any():
            raise ValueError("ids.npy does not ascend within each position")
        draws = np.bincount(owners, counts, num_positions)
        if not (counts > 0).all() or not (draws == spec.num_draws).all():
            raise ValueError(f"counts.npy does not sum to {spec.num_draws} draws at each position")
        if not ((entropy >= 0) & (entropy <= np.log(spec.vocab_size) + ENTROPY_TOLERANCE)).all():
            raise ValueError(f"entropy.npy holds a value that is none of {spec.vocab_size} tokens")
        return cls(spec, num_ids, ids, counts, entropy)

    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids int64 and counts [M, largest num_ids]; the places without an id hold id 0 and count 0."""
        taken = np.arange(self.num_ids.max(initial=0)) < self.num_ids[:, None]
        ids, counts = np.zeros(taken.shape, np.int64), np.zeros(taken.shape, self.counts.dtype)
        ids[taken], counts[taken] = self.ids, self.counts
        return ids, counts

    def select(self, rows: np.ndarray) -> "SampledSignal":
        """The positions `rows` (indices, any order)."""
        lengths = self.num_ids.astype(np.int64)
        starts, chosen = np.cumsum(lengths) - lengths, lengths[rows]
        shift = np.repeat(starts[rows] - (np.cumsum(chosen) - chosen), chosen)
        taken = np.arange(len(shift)) + shift
        return SampledSignal(self.spec, self.num_ids[rows], self.ids[taken], self.counts[taken], self.entropy[rows])

    @classmethod
    def concatenate(cls, signals: Sequence["SampledSignal"]) -> "SampledSignal":
        """All positions, one signal after the other; the specs must be equal."""
        spec, names = _common_spec(signals), ("num_ids", "ids", "counts", "entropy")
        return cls(spec, *(np.concatenate([getattr(s, n) for s in signals]) for n in names))


Signal = HiddenSignal | TopKSignal | SampledSignal
_SIGNALS = {"hidden": HiddenSignal, "topk": TopKSignal, "sampled": SampledSignal}
AnySignal = TypeVar("AnySignal", HiddenSignal, TopKSignal, SampledSignal)


def signal_from_members(spec: SignalSpec, members: Members, num_positions: int) -> Signal:
    """`from_members` of the spec's kind of signal, with its errors."""
    return _SIGNALS[spec.kind].from_members(spec, members, num_positions)


def concatenate_signals(signals: Sequence[AnySignal]) -> AnySignal:
    """All positions of at least one signal, one after the other; the specs must be equal."""
    return type(signals[0]).concatenate(signals)


def _common_spec(signals: Sequence[AnySignal]) -> SignalSpec:
    spec = signals[0].spec
    if any(signal.spec != spec for signal in signals):
        raise ValueError(f"signals of different specs: {sorted({str(s.spec) for s in signals})}")
    return spec
