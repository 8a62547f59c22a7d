"""The history of an offline W&B run, from its .wandb file: protocol buffers framed as in LevelDB's logs.

The messages are those of the package `wandb`. The frames are read here, since its versions from 0.20 on read
them in Go alone. The format: https://github.com/google/leveldb/blob/main/doc/log_format.md, after a header of
7 bytes.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER = 7  # bytes of the file's header, and of that of every frame: checksum, length, kind
BLOCK = 2**15  # no frame crosses a multiple of this
FULL, FIRST, LAST = 1, 2, 4  # kinds of frames; those between the first and the last are 3


def read_history(path: Path) -> Iterator[dict[str, Any]]:
    """The rows that a run logged, as far as the file goes; nested keys are joined by dots.

    Raises ImportError without the package `wandb`.
    """
    from wandb.proto import wandb_internal_pb2

    for message in _messages(path.read_bytes()):
        found = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
        found.ParseFromString(message)
        if found.WhichOneof("record_type") == "history":
            yield {item.key or ".".join(item.nested_key): _value(item) for item in found.history.item}


def _messages(data: bytes) -> Iterator[bytes]:
    at, message = HEADER, b""
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:  # filled with zeros
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        frame = data[at + HEADER : at + HEADER + length]
        if len(frame) < length:  # the run was killed while it wrote
            return
        at += HEADER + length
        message = frame if kind in (FULL, FIRST) else message + frame
        if kind in (FULL, LAST):
            yield message


def _value(item: Any) -> Any:
    """A logged value: as JSON, or in newer versions in a field of its type."""
    if item.value_json:
        return json.loads(item.value_json)
    kind = item.WhichOneof("value") if "value" in item.DESCRIPTOR.oneofs_by_name else None
    return getattr(item, kind) if kind else None
