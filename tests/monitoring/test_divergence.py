"""Divergence: where its limits are, that the verdict is final, and what the mean loss averages."""

import math
from collections.abc import Iterable

import pytest
import torch

from hyperp.monitoring.divergence import DivergenceMonitor

torch.set_num_threads(1)
VOCAB = 64
UNIFORM = math.log(VOCAB)
NAN, INF = math.nan, math.inf
STAY = 31 / 32  # what an average over about 32 steps keeps of itself in one
HEALTHY = 1.0  # a loss or a gradient norm


def monitor() -> DivergenceMonitor:
    return DivergenceMonitor(VOCAB, torch.device("cpu"))


def feed(watch: DivergenceMonitor, losses: Iterable[float] = (), norms: Iterable[float] = ()) -> None:
    for loss in losses:
        watch.update(torch.tensor(loss), torch.tensor(HEALTHY))
    for norm in norms:
        watch.update(torch.tensor(HEALTHY), torch.tensor(norm))


def after(losses: Iterable[float] = (), norms: Iterable[float] = ()) -> DivergenceMonitor:
    watch = monitor()
    feed(watch, losses, norms)
    return watch


def averaged(losses: list[float]) -> float:
    weights = [STAY ** (len(losses) - 1 - i) for i in range(len(losses))]
    return sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)


def test_nothing_seen_is_no_verdict_and_no_mean():
    assert monitor().reason(0) is None
    assert monitor().mean_loss() is None


def test_a_loss_just_below_twice_uniform_never_diverges_and_one_just_above_does():
    # From uniform, an average of 2.01 uniform is at 2.01 - 1.01 (31/32)^n: above 2 from n = 146.
    first = next(n for n in range(1, 1000) if 2.01 - 1.01 * STAY**n > 2)
    assert first == 146
    assert after([1.999 * UNIFORM] * 1000).reason(1000) is None
    assert after([2.01 * UNIFORM] * (first - 1)).reason(first - 1) is None
    assert "twice a uniform guess" in (after([2.01 * UNIFORM] * first).reason(first) or "")


def test_a_spike_has_to_last():
    # 1 + 9 (1 - (31/32)^n) uniform: above 2 from the fourth step of ten times uniform.
    assert after([10 * UNIFORM] * 3).reason(3) is None
    assert "by step 4" in (after([10 * UNIFORM] * 4).reason(4) or "")


def test_the_limit_follows_the_vocabulary():
    large = DivergenceMonitor(50_000, torch.device("cpu"))
    feed(large, [2.5 * UNIFORM] * 500)
    assert large.reason(500) is None
    assert after([2.5 * UNIFORM] * 500).reason(500) is not None


def test_the_worst_mean_is_kept_after_a_recovery():
    watch = after([10 * UNIFORM] * 4)
    worst = UNIFORM * (1 + 9 * (1 - STAY**4))
    feed(watch, [0.1] * 300)
    assert f"training loss {worst:.4g} by step 304" in (watch.reason(304) or "")
    assert watch.mean_loss() == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_one_loss_that_is_not_finite_is_enough_and_never_forgotten(bad):
    watch = after([2.0, bad])
    assert watch.reason(2) == "training loss not finite by step 2"
    assert watch.mean_loss() is None
    feed(watch, [2.0] * 100)
    assert watch.reason(102) == "training loss not finite by step 102"


@pytest.mark.parametrize("bad", [NAN, INF])
def test_ten_bad_gradients_in_a_row_are_too_many_and_nine_are_not(bad):
    assert after(norms=[bad] * 9).reason(9) is None
    assert after(norms=[bad] * 10).reason(10) == "gradient not finite for 10 steps in a row by step 10"


def test_a_good_gradient_starts_the_count_again():
    watch = after(norms=[NAN] * 9 + [HEALTHY] + [NAN] * 9)
    assert watch.reason(19) is None
    feed(watch, norms=[NAN])
    assert "10 steps in a row" in (watch.reason(20) or "")


def test_the_longest_row_of_bad_gradients_is_kept_after_a_recovery():
    watch = after(norms=[NAN] * 12 + [HEALTHY] * 50 + [NAN] * 3)
    assert watch.reason(65) == "gradient not finite for 12 steps in a row by step 65"


@pytest.mark.parametrize("steps", [1, 2, 10, 100, 2000])
def test_the_mean_of_a_constant_loss_is_that_loss(steps):
    # arXiv 1412.6980 corrects the start of an average in the same way
    assert after([2.5] * steps).mean_loss() == pytest.approx(2.5, rel=1e-9)


def test_the_mean_weighs_seen_losses_alone_and_the_last_the_most():
    g = torch.Generator().manual_seed(0)
    losses = (3 + torch.randn(80, generator=g, dtype=torch.float64)).tolist()
    watch = monitor()
    for n, loss in enumerate(losses, 1):
        watch.update(torch.tensor(loss, dtype=torch.float64), torch.tensor(HEALTHY))
        assert watch.mean_loss() == pytest.approx(averaged(losses[:n]), rel=1e-9)


def test_the_verdict_begins_at_a_uniform_guess_though_the_mean_does_not():
    watch = after([10 * UNIFORM])
    assert watch.mean_loss() == pytest.approx(10 * UNIFORM, rel=1e-6)
    assert watch.reason(1) is None


@pytest.mark.parametrize("cut", [1, 3, 9, 15])
def test_a_monitor_goes_on_from_its_state(cut):
    losses = [5.0, 3.0, 40.0, 2.0] * 5
    norms = [HEALTHY] * 6 + [NAN] * 10 + [HEALTHY] * 4
    pairs = list(zip(losses, norms, strict=True))
    whole, first, second = monitor(), monitor(), monitor()
    for watch, part in ((whole, pairs), (first, pairs[:cut])):
        for loss, norm in part:
            watch.update(torch.tensor(loss), torch.tensor(norm))
    second.state = first.state.clone()
    assert second.mean_loss() == first.mean_loss()
    for loss, norm in pairs[cut:]:
        second.update(torch.tensor(loss), torch.tensor(norm))
    assert torch.equal(second.state, whole.state)
    assert second.reason(20) == whole.reason(20) is not None
