"""Text as tokens: corpora with a fixed held-out part, and batches that depend on (seed, step) alone.

Every source becomes two flat arrays of token ids, one to train on and one held out. Batches are random
access: there is no iterator state to save, so a resumed run reads what an uninterrupted one would have read.

Shape suffixes: B sequences in a batch of this rank, N windows, T context length.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hyperp.validation import invalid_field, positive_int

DataSource = Literal["stdlib", "text", "tokens"]
TokenArray = np.ndarray[Any, np.dtype[np.unsignedinteger[Any]]]

SEPARATOR = b"\0"
HELD_OUT_OF_256 = 8  # of 256 files, this many are held out on average: 3%
LARGEST_HELD_OUT_FILE = 2**18  # so that no single file is most of the held-out text
PLAUSIBLE_HELD_OUT = (0.005, 0.2)  # share of the bytes; outside it, there are too few files to choose from
TAIL = 32  # then the last 1/32 of the text is held out
LARGEST_TAIL = 2**24

STDLIB_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
STDLIB_SKIPPED_PREFIX = "_sysconfigdata"  # generated; it contains paths of the machine that built Python


@dataclass(frozen=True, eq=False)
class Corpus:
    """Token ids to train on and to evaluate on.

    Attributes:
        name: the source: stdlib, text or tokens.
        train, held_out: flat arrays of ids below vocab_size; memory-mapped for `tokens`.
        bytes_per_token: UTF-8 bytes of text per token, to convert nats per token to bits per byte.
        digest: SHA-256 of the content, split included, in hexadecimal.
    """

    name: DataSource
    train: TokenArray
    held_out: TokenArray
    vocab_size: int
    bytes_per_token: float
    digest: str


class TokensSidecar(BaseModel):
    """The JSON file beside a .bin of token ids, which describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: Literal["uint16", "uint32"]
    vocab_size: int = Field(ge=2)
    tokens: int = Field(ge=2)
    bytes: int = Field(ge=1)
    tokenizer: str
    separator: int | None
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class DataOptions(Protocol):
    """The part of a configuration that `load_corpus` reads: `files` is for text, `path` for tokens."""

    @property
    def source(self) -> str: ...  # noqa: D102
    @property
    def files(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def path(self) -> str | Path | None: ...  # noqa: D102


def load_corpus(data: DataOptions) -> Corpus:
    """Load the corpus of a data configuration. Raises ValueError, naming the field, if that is impossible."""
    if data.source == "stdlib":
        return stdlib_corpus()
    if data.source == "text":
        return text_corpus(data.files)
    if data.source == "tokens":
        if data.path is None:
            raise ValueError("data.path must be the .bin file of data.source=tokens, got nothing")
        return tokens_corpus(Path(data.path).expanduser())
    raise ValueError(f"data.source must be one of stdlib, text, tokens, got {data.source!r}")


def stdlib_corpus() -> Corpus:
    """The bytes of the .py files of this Python's standard library, without its tests: 10 MB or more."""
    return _byte_corpus("stdlib", _stdlib_files(Path(sysconfig.get_path("stdlib"))))


def text_corpus(files: Sequence[str]) -> Corpus:
    """The bytes of all files that match: a file, a folder (all files below it), or a glob, where ** recurses.

    The whole text is held in memory. Empty files are skipped.
    """
    return _byte_corpus("text", expand_patterns(files))


def tokens_corpus(path: Path) -> Corpus:
    """Memory-mapped ids with a JSON sidecar, as `hyperp.data.tokenize.tokenize_files` writes them.

    The last 1/32 of the tokens, at most 2^24, is held out. The content is not hashed again: the digest is
    that of the sidecar. Raises ValueError if a file is missing or its size disagrees with the sidecar.
    """
    sidecar = read_sidecar(path)
    size = path.stat().st_size
    expected = sidecar.tokens * np.dtype(sidecar.dtype).itemsize
    if size != expected:
        raise ValueError(f"{path} must have the {expected} bytes that {sidecar_path(path)} says, got {size}")
    ids = np.memmap(path, dtype=sidecar.dtype, mode="r")
    cut = len(ids) - min(max(1, len(ids) // TAIL), LARGEST_TAIL)
    return Corpus(
        name="tokens",
        train=ids[:cut],
        held_out=ids[cut:],
        vocab_size=sidecar.vocab_size,
        bytes_per_token=sidecar.bytes / sidecar.tokens,
        digest=sidecar.sha256,
    )


def sidecar_path(path: Path) -> Path:
    """The path of the JSON sidecar of the .bin at `path`."""
    return path.with_name(path.name + ".json")


def read_sidecar(path: Path) -> TokensSidecar:
    """Read the sidecar of the .bin at `path`. Raises ValueError if it is missing or wrong."""
    sidecar = sidecar_path(path)
    for file in (path, sidecar):
        if not file.is_file():
            raise ValueError(f"data.path must be a .bin with a .json sidecar, got no file {file}")
    try:
        return TokensSidecar.model_validate_json(sidecar.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{sidecar}: {invalid_field(error)}") from None


def expand_patterns(patterns: Sequence[str]) -> list[tuple[str, Path]]:
    """(relative path, file) of all files that match, sorted, each file once.

    The relative path starts after the part of the pattern without wildcards, so it does not depend on where
    the folder is. Below a folder, names that start with a dot are left out.
    """
    if isinstance(patterns, str):
        raise ValueError(f"data.files must be a list of patterns, got the string {patterns!r}")
    if not patterns:
        raise ValueError("data.files must name at least one file, folder or pattern, got none")
    found: dict[Path, str] = {}
    for pattern in patterns:
        matches = list(_match_pattern(Path(pattern).expanduser()))
        if not matches:
            raise ValueError(f"data.files must match at least one file, got no match for {pattern!r}")
        for relative, file in matches:
            found.setdefault(file.resolve(), relative)
    return sorted((relative, file) for file, relative in found.items())


def _match_pattern(pattern: Path) -> Iterator[tuple[str, Path]]:
    if pattern.is_file():
        yield pattern.name, pattern
        return
    if pattern.is_dir():
        pattern = pattern / "**"
    parts = pattern.parts
    fixed = next((i for i, part in enumerate(parts) if set(part) & set("*?[")), len(parts))
    if fixed == len(parts):
        return
    root, wild = Path(*parts[:fixed]), parts[fixed:]
    if wild[-1] == "**":  # alone it would match folders only
        wild = (*wild, "*")
    for match in root.glob("/".join(wild)):
        relative = match.relative_to(root)
        if match.is_file() and not any(part.startswith(".") for part in relative.parts):
            yield relative.as_posix(), match


def _stdlib_files(root: Path) -> list[tuple[str, Path]]:
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in STDLIB_SKIPPED_FOLDERS]
        for name in names:
            if name.endswith(".py") and not name.startswith(STDLIB_SKIPPED_PREFIX):
                file = Path(folder, name)
                files.append((file.relative_to(root).as_posix(), file))
    if not files:
        raise ValueError(f"data.source=stdlib needs the .py files of Python under {root}, got none")
    return sorted(files)


def _is_held_out(relative: str, size: int) -> bool:
    """Decide by a hash of the path, so that adding or removing a file does not move any other file."""
    hashed = hashlib.sha256(relative.encode("utf-8", "surrogateescape")).digest()[0]
    return hashed < HELD_OUT_OF_256 and size <= LARGEST_HELD_OUT_FILE


def _byte_corpus(name: DataSource, files: list[tuple[str, Path]]) -> Corpus:
    texts = [(relative, file.read_bytes()) for relative, file in files]
    texts = [(relative, text) for relative, text in texts if text]
    held_out = SEPARATOR.join(text for relative, text in texts if _is_held_out(relative, len(text)))
    train = SEPARATOR.join(text for relative, text in texts if not _is_held_out(relative, len(text)))
    low, high = PLAUSIBLE_HELD_OUT
    if not low <= len(held_out) / max(1, len(held_out) + len(train)) <= high:
        whole = SEPARATOR.join(text for _, text in texts)
        cut = len(whole) - min(len(whole) // TAIL, LARGEST_TAIL)
        train, held_out = whole[:cut], whole[cut:]
    digest = hashlib.sha256(f"{len(train)}\n".encode())
    digest.update(train)
    digest.update(held_out)
    return Corpus(
        name=name,
        train=np.frombuffer(train, dtype=np.uint8),
        held_out=np.frombuffer(held_out, dtype=np.uint8),
        vocab_size=256,
        bytes_per_token=1.0,
        digest=digest.hexdigest(),
    )


class Batches:
    """Random access to the training batches of a run.

    The training part is cut into windows of T + 1 tokens that start every T tokens, so that each token is a
    target once in an epoch. Epoch e visits the windows in a permutation given by (seed, e). In this endless
    order, step s takes windows s B ... s B + B - 1, and a batch may straddle two epochs.

    Args:
        corpus: the source of the tokens.
        context: T, tokens in a sequence.
        batch_sequences: B, sequences in one optimizer step, over all ranks.
        seed: determines the order only.
        rank, world: this process takes rows rank B/world ... (rank + 1) B/world - 1 of the global batch.

    Raises:
        ValueError: the training part is shorter than one batch, or world does not divide batch_sequences.
    """

    def __init__(
        self, corpus: Corpus, context: int, batch_sequences: int, seed: int, *, rank: int = 0, world: int = 1
    ) -> None:
        self.corpus = corpus
        self.context = positive_int("context", context)
        self.batch_sequences = positive_int("batch_sequences", batch_sequences)
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seed must be an integer of at least 0, got {seed!r}")
        if not 0 <= rank < world:
            raise ValueError(f"rank must be in 0 ... {world - 1} (world - 1), got {rank}")
        if batch_sequences % world:
            raise ValueError(f"batch_sequences must be a multiple of world={world}, got {batch_sequences}")
        self.windows = max(0, len(corpus.train) - 1) // context
        if self.windows < batch_sequences:
            raise ValueError(
                f"data.source={corpus.name} must have at least {batch_sequences * context + 1} tokens to "
                f"train on (one batch of {batch_sequences} x {context}), got {len(corpus.train)}"
            )
        self.seed = seed
        self._rows = slice(rank * batch_sequences // world, (rank + 1) * batch_sequences // world)
        self._offsets_T1 = np.arange(context + 1)
        self._order: dict[int, np.ndarray] = {}  # epoch -> order_N of its windows; only a cache

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs x_BT and targets y_BT, int64, of this rank at optimizer step `step`, counted from 0."""
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        first = step * self.batch_sequences
        epoch, position = divmod(first, self.windows)
        windows_B = self._epoch_order(epoch)[position : position + self.batch_sequences]
        if len(windows_B) < self.batch_sequences:
            rest = self._epoch_order(epoch + 1)[: self.batch_sequences - len(windows_B)]
            windows_B = np.concatenate([windows_B, rest])
        return self._gather_windows(self.corpus.train, windows_B[self._rows])

    def held_out(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """x_NT and y_NT, int64: tokens / T windows spread evenly over the held-out part, for every seed.

        Raises:
            ValueError: `tokens` is less than one window, or more than the held-out part has.
        """
        available = max(0, len(self.corpus.held_out) - 1) // self.context
        count = tokens // self.context
        if not available:
            raise ValueError(
                f"the held-out part of data.source={self.corpus.name} must be longer than model.context="
                f"{self.context} tokens, got {len(self.corpus.held_out)}: the corpus is too small"
            )
        if not 1 <= count <= available:
            raise ValueError(
                f"data.held_out_tokens must be in {self.context} ... {available * self.context} (windows of "
                f"{self.context} in the held-out part of data.source={self.corpus.name}), got {tokens}; "
                f"give data.held_out_tokens={available * self.context}"
            )
        return self._gather_windows(self.corpus.held_out, np.arange(count) * available // count)

    def _gather_windows(self, ids: TokenArray, windows_N: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        index_NT1 = windows_N[:, None] * self.context + self._offsets_T1
        ids_NT1 = torch.from_numpy(ids[index_NT1].astype(np.int64))
        return ids_NT1[:, :-1].contiguous(), ids_NT1[:, 1:].contiguous()

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if epoch not in self._order:
            # NEP 19 guarantees the raw stream of a bit generator for ever, but not Generator.permutation.
            keys_N = np.random.Philox(np.random.SeedSequence([self.seed, epoch])).random_raw(self.windows)
            self._order = {e: o for e, o in self._order.items() if abs(e - epoch) == 1}
            self._order[epoch] = np.argsort(keys_N, kind="stable")
        return self._order[epoch]
