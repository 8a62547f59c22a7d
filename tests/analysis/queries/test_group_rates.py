"""The rates of parameter groups that a recommendation knows, and that it says why it does not know others."""

import pytest

from hyperp.analysis import fit_law
from hyperp.analysis.law.schema import Law
from hyperp.analysis.queries.recommend import Recommendation, recommend_rate
from hyperp.analysis.report.text.recommendation import recommendation_lines
from hyperp.analysis.table.validate import Runs

TARGET = {"tokens": 2**20}
MUP = {"optimizer": "adamw", "parametrization": "mup", "schedule": "cosine"}
REST = {"data": "stdlib", "metric": "loss, nats per token"}
ROLES = {"hidden", "embedding", "unembedding", "vector"}


@pytest.fixture(scope="module")
def law_of(make_ladder):
    def fitted(factor: float = 1.0, **columns) -> Law:
        frame = make_ladder(noise=0.001).assign(**REST, **columns)
        frame["base_lr"] = frame["lr"] / factor
        return fit_law(Runs(frame, "runs.parquet", "0" * 64), ["tokens"])

    return fitted


@pytest.fixture(scope="module")
def recommend(law_of):
    return lambda **runs: recommend_rate(law_of(**runs), TARGET)


def test_a_rule_that_treats_groups_alike_gives_all_the_same_rate(recommend):
    found = recommend(parametrization="raw")
    assert found.groups.known.keys() == ROLES
    assert {one.lr for one in found.groups.known.values()} == {found.lr}
    assert "parametrization=raw" in found.groups.known["embedding"].source
    assert found.groups.unknown is None


def test_a_rule_of_width_gives_ratios_where_its_reference_gives_the_factors_of_the_slices(law_of):
    """At width 32 the hidden rate of mup is 32 times base_lr, with the default reference of 1024."""
    law = law_of(factor=32.0, **MUP)
    found = recommend_rate(law, TARGET)
    rates = {role: one.lr / found.lr for role, one in found.groups.known.items()}
    assert rates.pop("hidden") == 1.0
    assert list(rates.values()) == pytest.approx([1 / 32] * 3, rel=1e-12)
    assert found.base_lr == pytest.approx(found.groups.known["embedding"].lr, rel=1e-9)
    assert "reference width 1024" in found.groups.known["embedding"].source
    line = f"by the parametrization, embedding {found.lr / 32:.4g}, unembedding {found.lr / 32:.4g}"
    assert any(line in text for text in recommendation_lines(law, found))


def test_another_reference_is_not_known_and_not_guessed(recommend):
    found = recommend(factor=4.0, **MUP)
    assert found.groups.known.keys() == {"hidden"}
    assert "lr/base_lr of the slices is not that of parametrization=mup" in (found.groups.unknown or "")


def test_completep_says_what_multiplies_weight_decay_and_epsilon(recommend):
    found = recommend(factor=32.0, **{**MUP, "parametrization": "completep"})
    hidden, embedding = found.groups.known["hidden"], found.groups.known["embedding"]
    assert (hidden.weight_decay_factor, embedding.weight_decay_factor) == (1 / 32, 1.0)
    assert (hidden.epsilon_factor, embedding.epsilon_factor) == (32 * 4, 32)  # depth 2, of 8
    text = found.for_trainer("hf")
    assert "weight_decay: parametrization completep multiplies it" in text
    assert "hidden 0.03125, embedding 1" in text


def test_experts_and_their_router_are_groups_where_there_are_some(recommend):
    found = recommend(granularity=4, sparsity=4)
    assert found.groups.known.keys() == {*ROLES, "router", "expert"}
    assert "experts: granularity 4, sparsity 4" in found.for_trainer("megatron")


def test_the_law_of_another_trainer_knows_the_rate_of_its_column_alone(recommend):
    found = recommend(optimizer="lion", parametrization="", schedule="")
    assert found.groups.known.keys() == {"hidden"}
    assert "does not say which groups had it" in (found.groups.unknown or "")
    text = found.for_trainer("megatron", sequence_length=128)
    assert f"  #--lr {found.lr:.6g}" in text.splitlines()
    assert "  --global-batch-size 4" in text.splitlines()
    assert "schedule of the fitted runs, which the law does not name" in text


def test_for_trainer_names_the_trainers(recommend):
    found = recommend(parametrization="raw")
    with pytest.raises(
        ValueError, match="trainer must be one of hyperp, megatron, torchtitan, nanochat, hf, json, got 'x'"
    ):
        found.for_trainer("x")
    assert Recommendation.model_validate_json(found.for_trainer("json")) == found
