"""The bytes of a table, from a file, perhaps compressed, or from standard input, and what they hold."""

import bz2
import gzip
import hashlib
import lzma
import sys
from dataclasses import dataclass
from pathlib import Path

from hyperp.analysis.errors import argument

STANDARD_INPUT = "-"
FORMATS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
OPENERS = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}
ALLOWED = f"{', '.join(FORMATS)}, the text ones also followed by {', '.join(OPENERS)}, or a folder"
# How the bytes of files begin that are no text.
MAGIC = {
    b"PAR1": "Parquet",
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip (as .xlsx is)",
    b"SQLite format 3\x00": "SQLite",
}


@dataclass(frozen=True)
class Stored:
    """The content of one table.

    Attributes:
        name: the file, or "standard input", for the texts of errors.
        kind: "parquet", "csv" or "jsonl".
        content: the bytes, decompressed.
        sha256: of the bytes as they were stored.
    """

    name: str
    kind: str
    content: bytes
    sha256: str


def load_stored(path: Path) -> Stored:
    """The content of a file, or of standard input for the path "-".

    Raises:
        ValueError: no such file, an unknown ending, or a content that is not what the name says.
    """
    if str(path) == STANDARD_INPUT:
        content = sys.stdin.buffer.read()
        return Stored("standard input", _kind_of(content), content, hashlib.sha256(content).hexdigest())
    if not path.is_file():
        raise ValueError(
            f"{argument('runs')}={path} does not exist; give a Parquet, CSV or JSON lines file or a "
            "folder of runs"
        )
    packed = path.suffix if path.suffix in OPENERS else ""
    kind = FORMATS.get(Path(path.name.removesuffix(packed)).suffix)
    if kind is None or (packed and kind == "parquet"):
        raise ValueError(f"{argument('runs')}={path} ends in {path.suffix!r}; allowed are {ALLOWED}")
    raw = path.read_bytes()
    content = _unpacked(path, raw, packed) if packed else raw
    _require_kind(path, content, kind)
    return Stored(str(path), kind, content, hashlib.sha256(raw).hexdigest())


def _kind_of(content: bytes) -> str:
    """The format of standard input, which has no name."""
    found = next((kind for magic, kind in MAGIC.items() if content.startswith(magic)), None)
    if found == "Parquet":
        return "parquet"
    if found is not None:
        raise ValueError(f"standard input must be Parquet, CSV or JSON lines, got {found} data")
    return "jsonl" if content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") else "csv"


def _unpacked(path: Path, raw: bytes, ending: str) -> bytes:
    try:
        return OPENERS[ending](raw)
    except (OSError, EOFError, lzma.LZMAError, ValueError) as error:
        raise ValueError(f"{path} is not the compressed file that its name says: {error}") from None


def _require_kind(path: Path, content: bytes, kind: str) -> None:
    found = next((name for magic, name in MAGIC.items() if content.startswith(magic)), None)
    if kind == "parquet":
        if not content:
            raise ValueError(f"{path} is empty; it must be a Parquet file")
        if found is not None and found != "Parquet":
            raise ValueError(f"{path} is not a readable Parquet file: it holds {found} data")
    elif found is not None:
        raise ValueError(f"{path} must be text, as its name says, got {found} data")


def decoded(stored: Stored) -> str:
    """The content as text without a byte order mark.

    Raises:
        ValueError: another encoding than UTF-8; names the line and the character in it.
    """
    if stored.content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{stored.name} must be UTF-8, got UTF-16; save it as UTF-8")
    try:
        return stored.content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        line, start = before.count(b"\n") + 1, before.rfind(b"\n") + 1
        column = len(before[start:].decode("utf-8", errors="replace")) + 1
        raise ValueError(
            f"{stored.name}: line {line}, character {column} must be UTF-8, got the byte "
            f"0x{error.object[error.start]:02x}; save the file as UTF-8"
        ) from None
