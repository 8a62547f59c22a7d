import hashlib
import json
import re
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from hyperp.data.corpus import (
    Batches,
    Corpus,
    expand_patterns,
    load_corpus,
    sidecar_path,
    stdlib_corpus,
    text_corpus,
    tokens_corpus,
)

torch.set_num_threads(1)

CONTEXT = 16


@dataclass
class Options:
    source: str
    files: list[str] = field(default_factory=list)
    path: Path | None = None


def corpus_of(train: int, held_out: int = 1000) -> Corpus:
    """A corpus whose ids are their own positions."""
    ids = np.arange(train + held_out, dtype=np.uint32)
    return Corpus("tokens", ids[:train], ids[train:], train + held_out, 1.0, "0" * 64)


def write_tree(root, sizes: dict[str, int]):
    for name, size in sizes.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes((f"<{name}>" * size).encode()[:size])
    return root


def write_tokens(path, ids: np.ndarray, **changes):
    sidecar = {
        "dtype": str(ids.dtype),
        "vocab_size": 1000,
        "tokens": len(ids),
        "bytes": 4 * len(ids),
        "tokenizer": "test",
        "separator": None,
        "sha256": hashlib.sha256(ids.tobytes()).hexdigest(),
    }
    ids.tofile(path)
    sidecar_path(path).write_text(json.dumps({**sidecar, **changes}))
    return path


# The order of the batches


def test_an_epoch_visits_every_window_once():
    batches = Batches(corpus_of(40 * CONTEXT + 1), CONTEXT, 8, seed=3)
    starts = torch.cat([batches.batch(step)[0][:, 0] for step in range(5)])
    assert sorted(starts.tolist()) == list(range(0, 40 * CONTEXT, CONTEXT))


def test_targets_are_the_inputs_one_token_later():
    x_BT, y_BT = Batches(corpus_of(1000), CONTEXT, 4, seed=0).batch(7)
    assert x_BT.shape == y_BT.shape == (4, CONTEXT)
    assert x_BT.dtype == y_BT.dtype == torch.int64
    assert torch.equal(y_BT, x_BT + 1)


def test_a_batch_depends_on_seed_and_step_alone():
    corpus = corpus_of(5000)
    steps = list(range(60))  # three epochs and more
    forward = Batches(corpus, CONTEXT, 16, seed=5)
    ordered = [forward.batch(step)[0] for step in steps]
    backward = Batches(corpus, CONTEXT, 16, seed=5)
    for step in reversed(steps):
        assert torch.equal(backward.batch(step)[0], ordered[step])
    other = Batches(corpus, CONTEXT, 16, seed=6)
    assert not torch.equal(other.batch(0)[0], ordered[0])


def test_epochs_differ_and_a_batch_may_straddle_two():
    windows, batch = 10, 4
    batches = Batches(corpus_of(windows * CONTEXT + 1), CONTEXT, batch, seed=0)
    starts = torch.cat([batches.batch(step)[0][:, 0] for step in range(15)]).reshape(-1, windows)
    for epoch in starts:
        assert sorted(epoch.tolist()) == list(range(0, windows * CONTEXT, CONTEXT))
    assert len({tuple(epoch.tolist()) for epoch in starts}) == len(starts)


def test_the_same_order_in_another_batch_size():
    """Sequences are counted across steps, so every batch size cuts the same stream."""
    corpus = corpus_of(5000)
    small, large = Batches(corpus, CONTEXT, 4, seed=1), Batches(corpus, CONTEXT, 12, seed=1)
    assert torch.equal(torch.cat([small.batch(step)[0] for step in range(9, 12)]), large.batch(3)[0])


@pytest.mark.parametrize("world", [2, 3, 6])
def test_ranks_share_out_the_global_batch(world):
    corpus = corpus_of(3000)
    whole = Batches(corpus, CONTEXT, 6, seed=2).batch(40)
    parts = [Batches(corpus, CONTEXT, 6, seed=2, rank=rank, world=world).batch(40) for rank in range(world)]
    for which in range(2):
        assert torch.equal(torch.cat([part[which] for part in parts]), whole[which])


def test_the_order_stays_the_same_between_versions():
    """Pinned values: NumPy guarantees raw Philox keys, and a finished sweep must be extendable."""
    x_BT, _ = Batches(corpus_of(100 * CONTEXT + 1), CONTEXT, 8, seed=0).batch(0)
    assert (x_BT[:, 0] // CONTEXT).tolist() == [0, 72, 31, 8, 51, 19, 26, 9]


def test_the_order_looks_random():
    starts, _ = Batches(corpus_of(4000 * CONTEXT + 1), CONTEXT, 4000, seed=0).batch(0)
    correlation = np.corrcoef(starts[:, 0].numpy(), np.arange(4000))[0, 1]
    assert abs(correlation) < 4 / np.sqrt(4000)


# The held-out windows


def test_held_out_windows_are_fixed_even_and_apart_from_training():
    corpus = corpus_of(2000, held_out=100 * CONTEXT + 1)
    x_NT, y_NT = Batches(corpus, CONTEXT, 4, seed=0).held_out(25 * CONTEXT)
    again, _ = Batches(corpus, CONTEXT, 8, seed=9).held_out(25 * CONTEXT)
    assert torch.equal(x_NT, again)
    assert torch.equal(y_NT, x_NT + 1)
    assert torch.equal(x_NT[:, 0], 2000 + 4 * CONTEXT * torch.arange(25))
    everything, _ = Batches(corpus, CONTEXT, 4, seed=0).held_out(100 * CONTEXT)
    assert torch.equal(everything.flatten(), 2000 + torch.arange(100 * CONTEXT))


@pytest.mark.parametrize("tokens", [0, CONTEXT - 1, 101 * CONTEXT])
def test_a_held_out_set_that_does_not_exist_is_refused(tokens):
    batches = Batches(corpus_of(2000, held_out=100 * CONTEXT + 1), CONTEXT, 4, seed=0)
    with pytest.raises(ValueError, match=rf"data\.held_out_tokens must .*16 \.\.\. 1600 .* got {tokens}"):
        batches.held_out(tokens)
    short = Batches(corpus_of(2000, held_out=CONTEXT), CONTEXT, 4, seed=0)
    with pytest.raises(ValueError, match=r"data\.source=.* must .*model\.context=16 .*got 16"):
        short.held_out(CONTEXT)


# Refusals of Batches


def test_less_than_one_batch_is_refused():
    Batches(corpus_of(4 * CONTEXT + 1), CONTEXT, 4, seed=0).batch(3)
    with pytest.raises(ValueError, match=r"data\.source=.* must .*65 .* got 64"):
        Batches(corpus_of(4 * CONTEXT), CONTEXT, 4, seed=0)
    with pytest.raises(ValueError, match="got 0"):
        Batches(corpus_of(0), CONTEXT, 4, seed=0)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"context": 0}, "context must .* got 0"),
        ({"batch_sequences": 2.5}, r"batch_sequences must .* got 2\.5"),
        ({"seed": -1}, "seed must .* got -1"),
        ({"rank": 2, "world": 2}, r"rank must .*0 \.\.\. 1 .* got 2"),
        ({"world": 3}, "batch_sequences must .*world=3, got 4"),
    ],
)
def test_bad_options_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        Batches(corpus_of(1000), **{"context": CONTEXT, "batch_sequences": 4, "seed": 0, **options})


def test_a_negative_step_is_refused():
    with pytest.raises(ValueError, match=r"step must .* got -1"):
        Batches(corpus_of(1000), CONTEXT, 4, seed=0).batch(-1)


# The standard library


def test_stdlib_is_real_text_with_a_held_out_part():
    corpus = stdlib_corpus()
    total = len(corpus.train) + len(corpus.held_out)
    assert total > 5e6
    assert 0.005 < len(corpus.held_out) / total < 0.06
    assert corpus.vocab_size == 256
    assert corpus.bytes_per_token == 1.0
    text = corpus.train.tobytes() + b"\0" + corpus.held_out.tobytes()
    assert b"class OrderedDict(dict)" in text
    assert sysconfig.get_path("stdlib").encode() not in text  # the same text on every machine


def test_stdlib_is_the_same_in_another_process():
    check = "from hyperp.data.corpus import stdlib_corpus; print(stdlib_corpus().digest)"
    found = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == stdlib_corpus().digest


# Text


TREE = {f"part{i % 7}/file{i}.txt": 400 + i for i in range(300)}


def test_whole_files_are_held_out_and_none_is_lost(tmp_path):
    corpus = text_corpus([str(write_tree(tmp_path, TREE))])
    train, held_out = (part.tobytes().split(b"\0") for part in (corpus.train, corpus.held_out))
    assert 3 <= len(held_out) <= 25
    assert sorted(train + held_out) == sorted((tmp_path / name).read_bytes() for name in TREE)
    assert held_out == sorted(held_out)


def test_a_new_file_moves_no_other_file(tmp_path):
    before = text_corpus([str(write_tree(tmp_path, TREE))]).held_out.tobytes().split(b"\0")
    write_tree(tmp_path, {f"new{i}.txt": 500 for i in range(60)})
    after = text_corpus([str(tmp_path)]).held_out.tobytes().split(b"\0")
    assert [text for text in after if not text.startswith(b"<new")] == before


def test_the_digest_follows_content_not_place(tmp_path):
    one = text_corpus([str(write_tree(tmp_path / "a", TREE))])
    two = text_corpus([str(write_tree(tmp_path / "b", TREE) / "**" / "*.txt")])
    assert one.digest == two.digest
    (tmp_path / "b" / "part0" / "file0.txt").write_bytes(b"another text")
    assert text_corpus([str(tmp_path / "b")]).digest != one.digest


def test_one_file_gives_up_its_end(tmp_path):
    text = bytes(range(1, 200)) * 40
    (tmp_path / "book.txt").write_bytes(text)
    corpus = text_corpus([str(tmp_path / "book.txt")])
    assert corpus.train.tobytes() + corpus.held_out.tobytes() == text
    assert len(corpus.held_out) == len(text) // 32


def test_patterns(tmp_path):
    write_tree(tmp_path, {"a.txt": 3, "b.md": 3, "deep/er/c.txt": 3, ".git/d.txt": 3, "we[i]rd/e.txt": 3})

    def names(*patterns):
        return [
            relative for relative, _ in expand_patterns([str(tmp_path / pattern) for pattern in patterns])
        ]

    assert names("") == ["a.txt", "b.md", "deep/er/c.txt", "we[i]rd/e.txt"]
    assert names("**/*.txt") == ["a.txt", "deep/er/c.txt", "we[i]rd/e.txt"]
    assert names("*.txt") == ["a.txt"]
    assert names("deep/**") == ["er/c.txt"]
    assert names("a.txt", "*.txt", "deep/er/c.txt") == ["a.txt", "c.txt"]
    assert names("we[i]rd/e.txt") == ["e.txt"]


@pytest.mark.parametrize("pattern", ["nothing.txt", "*.nothing", "none/**/*.py", "empty"])
def test_a_pattern_without_a_match_is_refused(tmp_path, pattern):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=rf"data\.files must .*{re.escape(pattern)}"):
        text_corpus([str(tmp_path / pattern)])


def test_files_must_be_a_list_that_is_not_empty():
    with pytest.raises(ValueError, match=r"data\.files must .* got none"):
        text_corpus([])
    with pytest.raises(ValueError, match=r"data\.files must .*list.* got .*'a\.txt'"):
        text_corpus("a.txt")


def test_empty_files_are_too_small(tmp_path):
    write_tree(tmp_path, {"a.txt": 0, "b.txt": 0})
    with pytest.raises(ValueError, match=r"data\.source=text must .*65 .* got 0"):
        Batches(text_corpus([str(tmp_path)]), CONTEXT, 4, seed=0)


# Prepared tokens


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_tokens_are_mapped_and_their_end_is_held_out(tmp_path, dtype):
    ids = np.random.default_rng(0).integers(0, 1000, 6400).astype(dtype)
    corpus = load_corpus(Options("tokens", path=write_tokens(tmp_path / "ids.bin", ids)))
    assert isinstance(corpus.train, np.memmap)
    assert np.array_equal(np.concatenate([corpus.train, corpus.held_out]), ids)
    assert len(corpus.held_out) == 200
    assert corpus.bytes_per_token == 4.0
    x_BT, _ = Batches(corpus, CONTEXT, 4, seed=0).batch(0)
    assert x_BT.dtype == torch.int64
    assert x_BT.max() < corpus.vocab_size


def test_a_cut_file_is_refused(tmp_path):
    path = write_tokens(tmp_path / "ids.bin", np.zeros(100, dtype=np.uint16))
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(ValueError, match=r"ids\.bin must .*200 bytes .*ids\.bin\.json.* got 150"):
        tokens_corpus(path)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"dtype": "int64"}, r"json: dtype.*uint16 or uint32, got 'int64'"),
        ({"vocab_size": 0}, "json: vocab_size.*got 0"),
        ({"bytes": -1}, "json: bytes.*got -1"),
        ({"sha256": "abc"}, "json: sha256.*got 'abc'"),
        ({"other": 1}, "json: other .*got 1"),
    ],
)
def test_a_bad_sidecar_is_named(tmp_path, changes, text):
    path = write_tokens(tmp_path / "ids.bin", np.zeros(100, dtype=np.uint16), **changes)
    with pytest.raises(ValueError, match=text):
        tokens_corpus(path)


def test_missing_files_and_sources_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"got no file .*none.bin"):
        load_corpus(Options("tokens", path=tmp_path / "none.bin"))
    (tmp_path / "alone.bin").write_bytes(b"12")
    with pytest.raises(ValueError, match=r"got no file .*alone.bin.json"):
        load_corpus(Options("tokens", path=tmp_path / "alone.bin"))
    with pytest.raises(ValueError, match=r"data\.path must .* got nothing"):
        load_corpus(Options("tokens"))
    with pytest.raises(ValueError, match=r"data\.source must .*stdlib, text, tokens, got 'web'"):
        load_corpus(Options("web"))
