import math
import typing
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperp.parametrization import (
    FACTORS,
    LATER_FIELDS,
    MATRIX_ROLES,
    OTHER_ROLES,
    Parametrization,
    factors_table,
    multipliers_text,
)
from hyperp.scale import Scale

ROLES = MATRIX_ROLES + OTHER_ROLES
NAMES = ["hyperp", "mup++", "mup", "completep", "completedp", "standard"]
COMPLETE = ["completep", "completedp"]
REFERENCE = Scale(width=1024, depth=8, tokens=10_400_000_000, batch_tokens=2**21)

scales = st.builds(
    Scale,
    width=st.integers(8, 2**14),
    depth=st.integers(1, 200),
    tokens=st.integers(10**7, 10**13),
    batch_tokens=st.integers(1, 10**7),
)


def lr(rule: Parametrization, role: str, scale: Scale, base_lr: float = 0.01) -> float:
    return rule.effective_lr(role, scale, base_lr).lr  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("role", ROLES)
def test_at_the_reference_every_rule_gives_the_base_rate(name, role):
    rate = Parametrization(name).effective_lr(role, REFERENCE, 0.0155)
    assert rate.factors == dict.fromkeys(FACTORS, 1.0)
    assert rate.lr == rate.base_lr == 0.0155


@given(scale=scales, base_lr=st.floats(1e-6, 1), name=st.sampled_from(NAMES), role=st.sampled_from(ROLES))
def test_the_rate_is_the_product_of_its_named_factors(scale, base_lr, name, role):
    rate = Parametrization(name).effective_lr(role, scale, base_lr)
    assert list(rate.factors) == ["batch", "depth", "tokens", "width"]
    assert rate.lr == pytest.approx(base_lr * math.prod(rate.factors.values()), rel=1e-14)
    assert all(factor > 0 for factor in rate.factors.values())


@given(scale=scales)
def test_hyperp_is_the_published_formula_for_every_role(scale):
    expected = 0.015 * (scale.batch_tokens / 2**21) ** 0.5 * (8 / scale.depth) ** 0.5
    expected *= (scale.tokens / 10.4e9) ** -0.32
    for role in ROLES:
        assert lr(Parametrization(), role, scale, 0.015) == pytest.approx(expected, rel=1e-12)


def test_hyperp_reproduces_the_published_optima():
    """arXiv 2603.28743: 24.27 T^-0.320 at depth 8, from eta0 = 24.27 T0^-0.320."""
    base_lr = 24.27 * 10.4e9**-0.32
    for tokens in (20_800_000_000, 166_400_000_000):
        found = lr(Parametrization(), "hidden", replace(REFERENCE, tokens=tokens), base_lr)
        assert found == pytest.approx(24.27 * tokens**-0.32, rel=1e-12)


@given(scale=scales)
def test_token_exponent_on_hidden_leaves_the_depth_factor_alone_elsewhere(scale):
    rule, everywhere = Parametrization(token_exponent_on="hidden"), Parametrization()
    for role in MATRIX_ROLES:
        assert rule.effective_lr(role, scale, 0.01) == everywhere.effective_lr(role, scale, 0.01)
    for role in OTHER_ROLES:
        factors = rule.effective_lr(role, scale, 0.01).factors
        assert factors["batch"] == factors["tokens"] == factors["width"] == 1.0
        assert factors["depth"] == pytest.approx((8 / scale.depth) ** 0.5, rel=1e-14)


@pytest.mark.parametrize("name", ["mup", "mup++", *COMPLETE])
def test_mup_divides_the_rate_of_matrices_alone_by_the_width(name):
    rule, wide = Parametrization(name), replace(REFERENCE, width=4096)
    for role in MATRIX_ROLES:
        assert lr(rule, role, wide) == pytest.approx(0.01 / 4, rel=1e-14)
    for role in OTHER_ROLES:
        assert lr(rule, role, wide) == 0.01
    assert rule.logit_multiplier(4096) == pytest.approx(1 / 4, rel=1e-14)


def test_mup_knows_neither_depth_nor_batch_nor_tokens():
    other = Scale(width=1024, depth=64, tokens=10**12, batch_tokens=2**15)
    rule = Parametrization("mup")
    assert [lr(rule, role, other) for role in ROLES] == [0.01] * len(ROLES)
    assert rule.residual_multiplier(64) == 1.0


def test_mup_plus_plus_along_its_published_family():
    """microsoft/ArchScale: width 128 d; global sqrt(B/B0) sqrt(d0/d), hidden d0/d besides, logits d0/d."""
    scale = Scale(width=128 * 16, depth=16, tokens=10**11, batch_tokens=2**23)
    rule = Parametrization("mup++")
    everywhere = 4e-4 * 2 * math.sqrt(1 / 2)
    assert lr(rule, "embedding", scale, 4e-4) == pytest.approx(everywhere, rel=1e-12)
    assert lr(rule, "hidden", scale, 4e-4) == pytest.approx(everywhere / 2, rel=1e-12)
    assert rule.logit_multiplier(scale.width) == pytest.approx(1 / 2, rel=1e-12)


@given(scale=scales)
def test_standard_changes_nothing(scale):
    rule = Parametrization("standard")
    assert [lr(rule, role, scale) for role in ROLES] == [0.01] * len(ROLES)
    assert rule.residual_multiplier(scale.depth) == rule.logit_multiplier(scale.width) == 1.0


@pytest.mark.parametrize("name", ["hyperp", "mup++"])
def test_residual_branches_keep_the_variance_of_the_stream(name):
    """2 d branches of unit variance, each multiplied, add up to a variance of one."""
    for depth in (1, 2, 24):
        assert 2 * depth * Parametrization(name).residual_multiplier(depth) ** 2 == pytest.approx(
            1, rel=1e-14
        )


@pytest.mark.parametrize("name", COMPLETE)
def test_completep_moves_branches_and_not_rates_with_depth(name):
    """arXiv 2505.01618, Table 1 with alpha = 1, at 4 times the depth of the reference."""
    rule, deep = Parametrization(name), replace(REFERENCE, depth=32)
    assert [lr(rule, role, deep) for role in ROLES] == [0.01] * len(ROLES)
    assert rule.residual_multiplier(32) == 1 / 4
    assert rule.residual_multiplier(8) == 1.0
    epsilon = {role: rule.epsilon_factor(role, deep) for role in ROLES}
    assert epsilon.pop("embedding") == epsilon.pop("unembedding") == 1.0
    assert set(epsilon.values()) == {1 / 4}
    assert {rule.weight_decay_factor(role, deep) for role in ROLES} == {1.0}


@pytest.mark.parametrize("name", COMPLETE)
def test_completep_keeps_the_decay_of_a_step_at_every_width(name):
    """A step shrinks weights by rate times weight decay; epsilon follows gradients, which fall as 1/width."""
    rule, wide = Parametrization(name), replace(REFERENCE, width=4096)
    for role in ROLES:
        assert lr(rule, role, wide) * rule.weight_decay_factor(role, wide) == 0.01
        assert rule.epsilon_factor(role, wide) == 1 / 4


@given(scale=scales)
def test_completedp_knows_batch_and_tokens_by_the_number_of_steps(scale):
    """arXiv 2512.22382: rate and weight decay as 1/sqrt(steps), epsilon as sqrt(steps)."""
    rule = Parametrization("completedp", reference_width=scale.width, reference_depth=scale.depth)
    root = math.sqrt((scale.tokens / REFERENCE.tokens) / (scale.batch_tokens / REFERENCE.batch_tokens))
    for role in ROLES:
        assert lr(rule, role, scale, 1.0) == pytest.approx(1 / root, rel=1e-12)
        assert rule.weight_decay_factor(role, scale) == pytest.approx(1 / root, rel=1e-12)
        assert rule.epsilon_factor(role, scale) == pytest.approx(root, rel=1e-12)


@given(scale=scales, name=st.sampled_from(["hyperp", "raw", "mup++", "mup", "standard"]))
def test_the_other_rules_leave_weight_decay_and_epsilon_alone(scale, name):
    rule = Parametrization(name)
    assert {name: getattr(rule, name) for name in LATER_FIELDS} == LATER_FIELDS
    for role in ROLES:
        assert rule.option_factors(role, scale) == {"weight_decay": 1.0, "eps": 1.0}


def test_the_text_of_multipliers_has_a_row_a_role_where_an_option_moves():
    scale = Scale(width=4096, depth=32, tokens=10_400_000_000, batch_tokens=2**21)
    first, _, *table = multipliers_text(Parametrization("completep"), scale, list(ROLES)).splitlines()
    assert first == "Residual branches are multiplied by 0.25, logits by 0.25."
    rows = {line.split()[0]: line.split()[1:] for line in table[1:]}
    assert rows["hidden"] == ["4", "0.0625"]
    assert rows["embedding"] == ["1", "0.25"]
    assert set(rows) == set(ROLES)
    assert multipliers_text(Parametrization("mup"), scale, list(ROLES)).splitlines() == [
        "Residual branches are multiplied by 1, logits by 0.25."
    ]


@pytest.mark.parametrize(
    ("exponent", "factor"),
    [
        ("batch_exponent", "batch"),
        ("depth_exponent", "depth"),
        ("token_exponent", "tokens"),
        ("width_exponent", "width"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_every_exponent_is_configuration_and_zero_means_exactly_one(name, exponent, factor):
    scale = Scale(width=100, depth=3, tokens=10**7, batch_tokens=1000)
    rule = Parametrization(name)
    off = replace(rule, **{exponent: 0}).effective_lr("hidden", scale, 0.01)
    on = replace(rule, **{exponent: 2.0}).effective_lr("hidden", scale, 0.01)
    ratios = {"batch": 1000 / 2**21, "depth": 3 / 8, "tokens": 10**7 / 10.4e9, "width": 100 / 1024}
    assert off.factors[factor] == 1.0
    assert on.factors[factor] == pytest.approx(ratios[factor] ** 2, rel=1e-14)
    rest = [key for key in FACTORS if key != factor]
    assert [on.factors[key] for key in rest] == [off.factors[key] for key in rest]


def test_another_reference_moves_where_the_factors_are_one():
    small = Scale(width=32, depth=2, tokens=2**17, batch_tokens=512)
    rule = Parametrization(
        "mup++", reference_width=32, reference_depth=2, reference_tokens=2**17, reference_batch_tokens=512
    )
    assert [lr(rule, role, small) for role in ROLES] == [0.01] * len(ROLES)
    assert rule.logit_multiplier(32) == 1.0


def test_hidden_std_is_that_of_kaiming_uniform():
    """Uniform on +- 1/sqrt(d_in) has a std of 1/sqrt(3 d_in)."""
    for role in MATRIX_ROLES:
        assert Parametrization().init_std(role, d_in=48, width=1) == pytest.approx(
            1 / math.sqrt(144), rel=1e-14
        )
    assert Parametrization(init_hidden_gain=2).init_std("hidden", 64, 1) == pytest.approx(0.25, rel=1e-14)


def test_std_of_embedding_and_unembedding():
    assert Parametrization().init_std("embedding", 32, 32) == 1e-4
    assert Parametrization().init_std("unembedding", 32, 32) == 0.02
    assert Parametrization(init_unembedding_std=0.2).init_std("unembedding", 32, 32) == 0.2
    assert Parametrization(init_unembedding_std="1/sqrt(width)").init_std("unembedding", 64, 64) == 0.125


def test_a_gain_has_no_std():
    with pytest.raises(ValueError, match="role must be a matrix to have an init std, got 'vector'"):
        Parametrization().init_std("vector", 1, 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_resolved_rule_has_no_gaps_and_rebuilds_itself(name):
    rule = Parametrization(name)
    assert all(value is not None for value in asdict(rule).values())
    assert Parametrization(**asdict(rule)) == rule


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": "sp"}, r"name must .*hyperp, raw, mup\+\+, mup, .*standard, got 'sp'"),
        ({"batch_exponent": math.nan}, "batch_exponent must be finite, got nan"),
        ({"depth_exponent": "half"}, "depth_exponent must be finite, got 'half'"),
        ({"logit_exponent": math.inf}, "logit_exponent must be finite, got inf"),
        ({"reference_width": 0}, "reference_width must be a whole number of at least 1, got 0"),
        ({"reference_tokens": 1.5}, "reference_tokens must be a whole number of at least 1, got 1.5"),
        ({"token_exponent_on": "some"}, "token_exponent_on must be all or hidden, got 'some'"),
        ({"residual_from": "depth"}, "residual_from must be one branch or reference, got 'depth'"),
        ({"epsilon_depth_exponent": math.nan}, "epsilon_depth_exponent must be finite, got nan"),
        ({"init_hidden_gain": 0}, "init_hidden_gain must be finite and positive, got 0"),
        ({"init_embedding_std": -1.0}, "init_embedding_std must be finite and positive, got -1.0"),
        ({"init_unembedding_std": "big"}, r'finite and positive or "1/sqrt\(width\)", got \'big\''),
    ],
)
def test_bad_fields_are_named(changes, text):
    with pytest.raises(ValueError, match=text):
        Parametrization(**changes)


@pytest.mark.parametrize("base_lr", [0.0, -1.0, math.nan, math.inf])
def test_a_base_rate_that_trains_nothing_is_refused(base_lr):
    with pytest.raises(ValueError, match="base_lr must be finite and positive, got"):
        Parametrization().effective_lr("hidden", REFERENCE, base_lr)


def test_unknown_roles_are_refused():
    with pytest.raises(ValueError, match=r"role must be one of hidden, router, .* got 'bias'"):
        lr(Parametrization(), "bias", REFERENCE)


def test_the_roles_are_those_of_the_models():
    roles = pytest.importorskip("hyperp.roles")
    assert set(ROLES) == set(typing.get_args(roles.Role))


def test_the_table_shows_what_effective_lr_says():
    scale = Scale(width=2048, depth=16, tokens=10**11, batch_tokens=2**20)
    rule = Parametrization("mup++")
    header, *rows = factors_table(rule, scale, 0.004, list(ROLES)).splitlines()
    assert header.split() == ["role", "base_lr", "batch", "depth", "tokens", "width", "lr"]
    assert len({len(header), *map(len, rows)}) == 1
    for role, row in zip(ROLES, rows, strict=True):
        name, *numbers = row.split()
        rate = rule.effective_lr(role, scale, 0.004)
        assert name == role
        expected = [0.004, *rate.factors.values(), rate.lr]
        assert [float(number) for number in numbers] == pytest.approx(expected, rel=1e-5)
