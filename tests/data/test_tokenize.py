import hashlib
import logging
import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hyperp.data.corpus import Batches, tokens_corpus
from hyperp.data.tokenize import PIECE_CHARACTERS, tokenize_files

tokenizers = pytest.importorskip("tokenizers")

STDLIB = Path(sysconfig.get_path("stdlib"))
FILES = [str(STDLIB / name) for name in ("ast.py", "bisect.py", "heapq.py", "json/*.py", "textwrap.py")]


def train_bpe(path: Path, vocab_size: int, special: list[str]) -> Path:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(STDLIB / "heapq.py"), str(STDLIB / "textwrap.py")], trainer)
    tokenizer.enable_truncation(8)  # as published files may have; it must not cut a document
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    return train_bpe(tmp_path_factory.mktemp("bpe") / "tokenizer.json", 500, ["<|endoftext|>"])


def texts_of(files: list[str]) -> list[str]:
    found = [path for pattern in files for path in STDLIB.glob(str(Path(pattern).relative_to(STDLIB)))]
    return sorted(path.read_bytes().decode() for path in found)


def documents_in(out: Path, bpe: Path, separator: int) -> list[str]:
    ids = np.fromfile(out, dtype=np.uint16)
    ends = np.flatnonzero(ids == separator)
    assert ends[-1] == len(ids) - 1
    tokenizer = tokenizers.Tokenizer.from_file(str(bpe))
    parts = np.split(ids, ends + 1)[:-1]
    return sorted(tokenizer.decode(part[:-1].tolist(), skip_special_tokens=False) for part in parts)


def test_every_document_comes_back_byte_for_byte(tmp_path, bpe):
    made = tokenize_files(FILES, tmp_path / "new" / "ids.bin", tokenizer=bpe, progress=False)
    assert documents_in(tmp_path / "new" / "ids.bin", bpe, separator=0) == texts_of(FILES)
    assert made["files"] == len(texts_of(FILES))
    assert made["separator"] == 0  # the end of text of this tokenizer


def test_a_corpus_of_it_turns_nats_per_token_into_bits_per_byte(tmp_path, bpe):
    made = tokenize_files(FILES, tmp_path / "ids.bin", tokenizer=bpe, progress=False)
    corpus = tokens_corpus(tmp_path / "ids.bin")
    total = sum(len(text.encode()) for text in texts_of(FILES))
    assert made["bytes"] == total
    assert corpus.bytes_per_token == pytest.approx(
        total / (len(corpus.train) + len(corpus.held_out)), rel=1e-12
    )
    assert corpus.bytes_per_token > 1.5
    assert corpus.digest == hashlib.sha256((tmp_path / "ids.bin").read_bytes()).hexdigest()
    assert corpus.vocab_size == 500
    x_BT, _ = Batches(corpus, 32, 4, seed=0).batch(0)
    assert x_BT.shape == (4, 32)


def test_the_same_files_elsewhere_give_the_same_ids(tmp_path, bpe):
    for copy in ("a", "b"):
        (tmp_path / copy).mkdir()
        for i in range(20):
            (tmp_path / copy / f"{i}.txt").write_text(f"text number {i}\n" * 9)
    made = [
        tokenize_files([str(tmp_path / copy)], tmp_path / f"{copy}.bin", tokenizer=bpe, progress=False)
        for copy in "ab"
    ]
    assert made[0] == made[1]


def test_large_files_are_read_in_pieces_that_end_with_a_line(tmp_path, bpe, monkeypatch):
    monkeypatch.setattr("hyperp.data.tokenize.BATCH_BYTES", 2**20)
    line = "naïve café, 日本語\r\n"
    text = line * (5 * PIECE_CHARACTERS // len(line)) + "and an end without a newline"
    (tmp_path / "large.txt").write_bytes(text.encode())
    made = tokenize_files([str(tmp_path / "large.txt")], tmp_path / "ids.bin", tokenizer=bpe, progress=False)
    assert documents_in(tmp_path / "ids.bin", bpe, separator=0) == [text]
    assert made["bytes"] == len(text.encode())
    tokenizer = tokenizers.Tokenizer.from_file(str(bpe))
    tokenizer.no_truncation()
    assert np.fromfile(tmp_path / "ids.bin", dtype=np.uint16)[:-1].tolist() == tokenizer.encode(text).ids


def test_a_special_token_in_the_text_is_text(tmp_path, bpe):
    (tmp_path / "a.txt").write_text("before <|endoftext|> after")
    tokenize_files([str(tmp_path / "a.txt")], tmp_path / "ids.bin", tokenizer=bpe, progress=False)
    assert documents_in(tmp_path / "ids.bin", bpe, separator=0) == ["before <|endoftext|> after"]


def test_separator_by_choice_and_none_where_the_tokenizer_has_none(tmp_path, bpe):
    (tmp_path / "a.txt").write_text("one two three")
    source = [str(tmp_path / "a.txt")]
    made = tokenize_files(source, tmp_path / "b.bin", tokenizer=bpe, separator=7, progress=False)
    assert made["separator"] == 7
    assert np.fromfile(tmp_path / "b.bin", dtype=np.uint16)[-1] == 7
    plain = train_bpe(tmp_path / "plain.json", 300, [])
    made = tokenize_files(source, tmp_path / "c.bin", tokenizer=plain, progress=False)
    assert made["separator"] is None
    ids = np.fromfile(tmp_path / "c.bin", dtype=np.uint16).tolist()
    assert tokenizers.Tokenizer.from_file(str(plain)).decode(ids) == "one two three"


def test_text_that_is_not_utf8_is_replaced_with_a_warning(tmp_path, bpe, caplog):
    (tmp_path / "latin.txt").write_bytes("Zoë\n".encode("latin-1") * 5)
    with caplog.at_level(logging.WARNING):
        tokenize_files([str(tmp_path / "latin.txt")], tmp_path / "ids.bin", tokenizer=bpe, progress=False)
    assert "latin.txt is not UTF-8 throughout" in caplog.text
    assert documents_in(tmp_path / "ids.bin", bpe, separator=0) == ["Zo�\n" * 5]


def byte_encoding(vocab: int) -> dict:
    return {
        "name": "bytes",
        "pat_str": r"\S+|\s+",
        "mergeable_ranks": {bytes([i]): i for i in range(256)},
        "special_tokens": {"<|endoftext|>": vocab - 1},
    }


@pytest.mark.parametrize(("vocab", "dtype"), [(257, "uint16"), (65_536, "uint16"), (65_537, "uint32")])
def test_tiktoken_and_the_width_of_its_ids(tmp_path, monkeypatch, vocab, dtype):
    """Register an encoding of single bytes, so that no vocabulary is downloaded."""
    tiktoken = pytest.importorskip("tiktoken")
    tiktoken.list_encoding_names()  # finds the published encodings
    monkeypatch.setitem(tiktoken.registry.ENCODING_CONSTRUCTORS, "bytes", lambda: byte_encoding(vocab))
    monkeypatch.delitem(tiktoken.registry.ENCODINGS, "bytes", raising=False)
    (tmp_path / "a.txt").write_text("<|endoftext|> is text")
    made = tokenize_files([str(tmp_path / "a.txt")], tmp_path / "ids.bin", tiktoken="bytes", progress=False)
    monkeypatch.delitem(tiktoken.registry.ENCODINGS, "bytes")
    assert (made["dtype"], made["vocab_size"], made["tokenizer"]) == (dtype, vocab, "tiktoken bytes")
    ids = np.fromfile(tmp_path / "ids.bin", dtype=dtype)
    assert bytes(ids[:-1].tolist()) == b"<|endoftext|> is text"
    assert ids[-1] == vocab - 1


def test_a_failure_leaves_the_older_file_alone(tmp_path, bpe):
    (tmp_path / "a.txt").write_text("some text")
    tokenize_files([str(tmp_path / "a.txt")], tmp_path / "ids.bin", tokenizer=bpe, progress=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match=r"files must .*2 tokens.* got 0 .*1 files"):
        tokenize_files([str(tmp_path / "empty.txt")], tmp_path / "ids.bin", tokenizer=bpe, progress=False)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after == {**before, "empty.txt": b""}


def test_an_end_between_the_two_files_leaves_no_sidecar_of_other_ids(tmp_path, bpe):
    (tmp_path / "a.txt").write_text("some text")
    tokenize_files([str(tmp_path / "a.txt")], tmp_path / "ids.bin", tokenizer=bpe, progress=False)
    (tmp_path / f".ids.bin.json.{os.getpid()}.tmp").mkdir()  # so that the new sidecar cannot be written
    with pytest.raises(IsADirectoryError, match="tmp"):
        tokenize_files(
            [str(tmp_path / "a.txt")], tmp_path / "ids.bin", tokenizer=bpe, separator=7, progress=False
        )
    with pytest.raises(ValueError, match=r"got no file .*ids\.bin\.json"):
        tokens_corpus(tmp_path / "ids.bin")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "tokenizer and tiktoken must .* got None and None"),
        ({"tokenizer": Path("none.json")}, r"tokenizer must .* got no file none\.json"),
        ({"tiktoken": "gpt9"}, "tiktoken must .* got 'gpt9'"),
    ],
)
def test_bad_tokenizers_are_named(tmp_path, options, text):
    pytest.importorskip("tiktoken")
    with pytest.raises(ValueError, match=text):
        tokenize_files(FILES, tmp_path / "ids.bin", **options, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_json_that_is_no_tokenizer_is_named(tmp_path):
    (tmp_path / "wrong.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer must .* got .*wrong\.json: "):
        tokenize_files(FILES, tmp_path / "ids.bin", tokenizer=tmp_path / "wrong.json", progress=False)


def test_a_separator_outside_the_vocabulary_is_refused(tmp_path, bpe):
    with pytest.raises(ValueError, match=r"separator must .*499, got 500"):
        tokenize_files(FILES, tmp_path / "ids.bin", tokenizer=bpe, separator=500, progress=False)


@pytest.mark.parametrize("package", ["tokenizers", "tiktoken"])
def test_a_missing_package_says_what_to_install(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    options: Any = {"tokenizer": tmp_path / "t.json"} if package == "tokenizers" else {"tiktoken": "gpt2"}
    with pytest.raises(ValueError, match=rf"needs the package {package}: pip install"):
        tokenize_files(FILES, tmp_path / "ids.bin", **options, progress=False)


def test_a_text_is_never_overwritten(tmp_path, bpe):
    text = tmp_path / "a.txt"
    text.write_text("precious")
    with pytest.raises(ValueError, match=r"--output must .*\.bin, got .*a\.txt"):
        tokenize_files(FILES, text, tokenizer=bpe, progress=False)
    other = tmp_path / "a.bin"
    other.write_text("precious")
    with pytest.raises(ValueError, match=r"--output must .* got .*a\.bin"):
        tokenize_files(FILES, other, tokenizer=bpe, progress=False)
    assert text.read_text() == other.read_text() == "precious"
    made = [tokenize_files(FILES, tmp_path / "b.bin", tokenizer=bpe, progress=False) for _ in range(2)]
    assert made[0] == made[1]
