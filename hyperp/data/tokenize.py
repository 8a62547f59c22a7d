"""Convert text files to the memory-mapped token ids that `data.source=tokens` reads.

The tokenizer is a tokenizer.json of the package `tokenizers`, or the name of an encoding of `tiktoken`. Both
packages are in the optional extra `tokenizers`.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from hyperp.data.corpus import TokensSidecar, expand_patterns, sidecar_path
from hyperp.files import replacing

log = logging.getLogger(__name__)

PIECE_CHARACTERS = 2**18  # a large file is encoded in pieces that end with a line
BATCH_BYTES = 2**22  # of text that are encoded together, over all cores
# The tokens with which published tokenizers end a document, the commonest first.
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")
INSTALL = "pip install 'hyperp-scaling[tokenizers]'"


@dataclass(frozen=True)
class Encoder:
    """A tokenizer as `tokenize_files` needs it: it encodes plain text to ids, without special tokens."""

    name: str
    vocab_size: int
    end_of_text: int | None
    encode: Callable[[list[str]], list[list[int]]]


@dataclass(frozen=True)
class Piece:
    """Part of a document. `size` is its length in bytes in the file, `last` whether it ends the document."""

    text: str
    size: int
    last: bool


def tokenize_files(
    files: list[str],
    out: Path,
    tokenizer: Path | None = None,
    tiktoken: str | None = None,
    separator: int | None = None,
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """Encode every file that matches, and write the ids to `out` and a JSON sidecar beside it.

    Documents are ordered by a hash of their path, so that the held-out end is a sample of them all.
    Bytes that are not UTF-8 become U+FFFD, with a warning.

    Args:
        files: files, folders or patterns, as in `corpus.text_corpus`.
        out: the .bin to write; uint16 for a vocabulary of up to 65,536 ids, else uint32.
        tokenizer, tiktoken: a tokenizer.json or the name of an encoding; give exactly one of them.
        separator: id after every document; by default the tokenizer's end-of-text id, if it has one.
        progress: show a progress bar.

    Returns:
        The content of the sidecar, and `files`, the number of files.

    Raises:
        ValueError: no file matches; the tokenizer is missing, unknown or not installed; the separator is
            outside the vocabulary; or the text has fewer than two tokens. Nothing is written then.
    """
    if out.suffix != ".bin":
        raise ValueError(f"--output must end in .bin, got {out}")
    if out.exists() and not sidecar_path(out).exists():
        raise ValueError(f"--output must be a new file or an earlier one with its .json beside it, got {out}")
    encoder = _load_encoder(tokenizer, tiktoken)
    if separator is None:
        separator = encoder.end_of_text
    elif not 0 <= separator < encoder.vocab_size:
        raise ValueError(f"separator must be in 0 ... {encoder.vocab_size - 1}, got {separator}")
    documents = [file for _, file in sorted(expand_patterns(files), key=lambda pair: _path_hash(pair[0]))]
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as sink:
            sidecar = _write_ids(documents, encoder, separator, sink, progress)
            sink.flush()
            os.fsync(sink.fileno())
        _publish(partial, out, sidecar)
    finally:
        partial.unlink(missing_ok=True)
    return {**sidecar.model_dump(), "files": len(documents)}


def _write_ids(
    documents: list[Path], encoder: Encoder, separator: int | None, sink: IO[bytes], progress: bool
) -> TokensSidecar:
    dtype = np.dtype(np.uint16 if encoder.vocab_size <= 2**16 else np.uint32)
    digest, tokens, text_bytes = hashlib.sha256(), 0, 0
    columns = (TextColumn("encoding"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not progress, transient=True) as bar:
        task = bar.add_task("encoding", total=sum(file.stat().st_size for file in documents))
        for batch in _batch_pieces(documents):
            ids = _encode_batch(batch, encoder, separator)
            data = ids.astype(dtype).tobytes()
            digest.update(data)
            sink.write(data)
            tokens += len(ids)
            text_bytes += sum(len(piece.text.encode()) for piece in batch)
            bar.advance(task, sum(piece.size for piece in batch))
    if tokens < 2 or text_bytes < 1:
        raise ValueError(
            f"files must give at least 2 tokens of text, got {tokens} from {len(documents)} files"
        )
    return TokensSidecar(
        dtype="uint16" if dtype == np.uint16 else "uint32",
        vocab_size=encoder.vocab_size,
        tokens=tokens,
        bytes=text_bytes,
        tokenizer=encoder.name,
        separator=separator,
        sha256=digest.hexdigest(),
    )


def _encode_batch(batch: list[Piece], encoder: Encoder, separator: int | None) -> np.ndarray:
    ids: list[int] = []
    for piece, encoded in zip(batch, encoder.encode([piece.text for piece in batch]), strict=True):
        ids += encoded
        if piece.last and separator is not None:
            ids.append(separator)
    found = np.asarray(ids, dtype=np.int64)
    if len(found) and not 0 <= found.min() <= found.max() < encoder.vocab_size:
        raise ValueError(
            f"ids of {encoder.name} must be below its vocab_size={encoder.vocab_size}, got {found.max()}"
        )
    return found


def _batch_pieces(documents: list[Path]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for document in documents:
        for piece in _read_pieces(document):
            batch.append(piece)
            size += piece.size
            if size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _read_pieces(document: Path) -> Iterator[Piece]:
    replaced = False
    with document.open(encoding="utf-8", errors="surrogateescape", newline="") as source:
        text = source.read(PIECE_CHARACTERS) + source.readline(PIECE_CHARACTERS)
        while text:
            following = source.read(PIECE_CHARACTERS)
            following += source.readline(PIECE_CHARACTERS) if following else ""
            raw = text.encode("utf-8", "surrogateescape")
            clean = raw.decode("utf-8", "replace")
            replaced |= clean != text
            yield Piece(clean, len(raw), last=not following)
            text = following
    if replaced:
        log.warning("%s is not UTF-8 throughout; other bytes became U+FFFD", document)


def _publish(partial: Path, out: Path, sidecar: TokensSidecar) -> None:
    """Remove the old sidecar first and write the new one last: no sidecar ever describes other ids."""
    sidecar_path(out).unlink(missing_ok=True)
    partial.replace(out)
    with replacing(sidecar_path(out)) as file:
        file.write(sidecar.model_dump_json(indent=2) + "\n")


def _load_encoder(tokenizer: Path | None, tiktoken: str | None) -> Encoder:
    if (tokenizer is None) == (tiktoken is None):
        raise ValueError(
            f"exactly one of tokenizer and tiktoken must be given, got {tokenizer} and {tiktoken}"
        )
    if tokenizer is not None:
        return _tokenizers_encoder(tokenizer)
    assert tiktoken is not None
    return _tiktoken_encoder(tiktoken)


def _tokenizers_encoder(path: Path) -> Encoder:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ValueError(f"tokenizer={path} needs the package tokenizers: {INSTALL}") from None
    if not path.is_file():
        raise ValueError(f"tokenizer must be a tokenizer.json, got no file {path}")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises bare Exception
        raise ValueError(f"tokenizer must be a tokenizer.json, got {path}: {error}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True  # "<|endoftext|>" in a text is plain text
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    return Encoder(
        name=f"{path.name} sha256:{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}",
        vocab_size=max(vocabulary.values()) + 1,
        end_of_text=next((vocabulary[token] for token in END_OF_TEXT if token in vocabulary), None),
        encode=lambda texts: [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)],
    )


def _tiktoken_encoder(name: str) -> Encoder:
    try:
        import tiktoken  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(f"tiktoken={name} needs the package tiktoken: {INSTALL}") from None
    if name not in tiktoken.list_encoding_names():
        raise ValueError(f"tiktoken must be one of {', '.join(tiktoken.list_encoding_names())}, got {name!r}")
    try:
        encoding = tiktoken.get_encoding(name)
    except OSError as error:  # tiktoken downloads the vocabulary the first time
        raise ValueError(f"tiktoken={name} could not be fetched, see TIKTOKEN_CACHE_DIR: {error}") from None
    return Encoder(
        name=f"tiktoken {name}",
        vocab_size=encoding.n_vocab,
        end_of_text=encoding._special_tokens.get("<|endoftext|>"),
        encode=encoding.encode_ordinary_batch,
    )


def _path_hash(relative: str) -> bytes:
    return hashlib.sha256(relative.encode("utf-8", "surrogateescape")).digest()
