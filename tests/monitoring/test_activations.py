"""Attention scores, which are computed again because the fused kernel does not return them."""

import pytest
import torch

from hyperp.monitoring.activations import attention_logsumexp

torch.set_num_threads(1)


@pytest.mark.parametrize("heads", [(4, 2), (3, 3), (4, 1)])
def test_scores_in_parts_are_those_of_the_whole(monkeypatch, heads):
    H, K = heads
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 11, heads_, 6, generator=generator) for heads_ in (H, K))
    scores = torch.einsum("bthn,bshn->bhts", q, k.repeat_interleave(H // K, dim=2)) / 6**0.5
    want = scores.masked_fill(torch.ones(11, 11).triu(1).bool(), -torch.inf).logsumexp(-1)
    for rows in (512, 4, 11, 1):
        monkeypatch.setattr("hyperp.monitoring.activations.QUERIES_AT_ONCE", rows)
        torch.testing.assert_close(attention_logsumexp(q, k), want, rtol=1e-5, atol=1e-5)
