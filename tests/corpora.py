"""Corpora for tests that train."""

import numpy as np

from hyperp.data.corpus import Corpus


def zipf_corpus(train: int, held_out: int, vocab: int = 31) -> Corpus:
    """Ids with frequencies of a power law, so that a model has something to learn; always the same ids."""
    ids = (np.random.default_rng(0).zipf(1.3, size=train + held_out) % vocab).astype(np.uint8)
    return Corpus("text", ids[:train], ids[train:], vocab, 1.0, digest="0" * 64)
