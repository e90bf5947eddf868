"""JSONL: one row a line, read whole or from any line start to any other."""

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from data_prep.inputs import InputFile
from data_prep.readers.json_values import RepeatedKey, parse_json
from data_prep.readers.stored import CHUNK_BYTES, open_stored, read_chunks

NEWLINE = ord("\n")


class LineCutter:
    """Cuts a file that passes by in chunks into parts of at most `part_bytes` that begin at line starts.

    A longer line is a part of its own. `parts` holds (start, end, number of the first line): bytes, 0-based line.
    """

    def __init__(self, part_bytes: int) -> None:
        self.parts: list[tuple[int, int, int]] = []
        self._part_bytes = part_bytes
        self._start, self._first_line = 0, 0
        self._last, self._last_line = 0, 0  # the last line start that still fits into the part
        self._position, self._num_lines = 0, 0

    def feed(self, chunk: bytes) -> None:
        """Takes the next bytes of the file."""
        starts = np.flatnonzero(np.frombuffer(chunk, np.uint8) == NEWLINE) + (self._position + 1)
        self._position += len(chunk)
        self._cut(starts)

    def finish(self) -> None:
        """Closes the last part."""
        if self._last < self._position:  # a last line without its newline
            self._cut(np.array([self._position]))
        if self._start < self._position:
            self.parts.append((self._start, self._position, self._first_line))

    def _cut(self, starts: np.ndarray) -> None:
        """Takes the next line starts, ascending: int64 [n]."""
        first_line = self._num_lines + 1
        self._num_lines += len(starts)
        while len(starts):
            num_fitting = int(np.searchsorted(starts, self._start + self._part_bytes, side="right"))
            if num_fitting:
                self._last, self._last_line = int(starts[num_fitting - 1]), first_line + num_fitting - 1
                starts, first_line = starts[num_fitting:], first_line + num_fitting
            if len(starts):
                if self._last == self._start:
                    self._last, self._last_line = int(starts[0]), first_line
                    starts, first_line = starts[1:], first_line + 1
                self.parts.append((self._start, self._last, self._first_line))
                self._start, self._first_line = self._last, self._last_line


def read_rows(
    file: InputFile, start: int, end: int | None, first_row: int, dropped: Counter[str]
) -> Iterator[tuple[int, object]]:
    """Yields (row, its JSON value) of the lines between two line starts, in bytes (None: to the end).

    Drops: invalid_utf8, malformed_json, repeated_key, blank_line.
    """
    chunks = read_chunks(file) if file.compression else _read_range(file, start, end)
    for row, line in enumerate(_split_lines(chunks), first_row):
        if not line.strip():
            dropped["blank_line"] += 1
            continue
        try:
            value = parse_json(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            dropped["invalid_utf8"] += 1
        except RepeatedKey:
            dropped["repeated_key"] += 1
        except (ValueError, RecursionError):
            dropped["malformed_json"] += 1
        else:
            yield row, value


def _read_range(file: InputFile, start: int, end: int | None) -> Iterator[bytes]:
    with open_stored(file) as stream:
        stream.seek(start)
        position = start
        while chunk := stream.read(CHUNK_BYTES if end is None else min(CHUNK_BYTES, end - position)):
            position += len(chunk)
            yield chunk
        if end is not None and position < end:
            raise EOFError("it is shorter than when it was first read")


def _split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their newline; linear also where one line spans many chunks."""
    parts: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        parts.append(first)
        if others:
            yield b"".join(parts)
            yield from others[:-1]
            parts = [others[-1]]
    if last := b"".join(parts):
        yield last
