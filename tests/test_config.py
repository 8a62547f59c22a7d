"""The configuration: typed, refused in one line, and hashed by what the run is."""

import json
from dataclasses import asdict

import pytest

from hyperp.config import OptimConfig, compose, config_from_dict, resolve


def config(*overrides: str):
    return resolve(compose(overrides))


def test_the_id_is_the_same_for_the_same_run_and_different_for_another():
    assert config().run_id() == config().run_id()
    ids = {
        config(override).run_id()
        for override in ("seed=0", "seed=1", "base_lr=0.1", "optim=sso", "model.context=64")
    }
    assert len(ids) == 5


@pytest.mark.parametrize(
    "override", ["runtime.root=elsewhere", "runtime.threads=1", "runtime.log_every=1", "runtime.compile=true"]
)
def test_how_a_run_is_done_does_not_change_its_id(override):
    assert config(override).run_id() == config().run_id()


def test_a_configuration_survives_json():
    one = config("optim=sso", "scale.width=64", "base_lr=0.03125")
    assert config_from_dict(json.loads(json.dumps(asdict(one)))) == one


def test_a_million_may_be_written_1e6_and_is_the_same_run():
    assert config("scale.tokens=1e6").run_id() == config("scale.tokens=1000000").run_id()
    assert config("scale.tokens=1e6").scale.tokens == 1_000_000
    rule = config("parametrization.reference_tokens=1.5e6").parametrization
    assert rule.reference_tokens == 1_500_000


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["scale.widht=64"], r"widht((?!append to your config).)*$"),
        (["nonsense=1"], "nonsense"),
        (["scale.width=-32"], r"width must be .*-32"),
        (["scale.width=0"], r"width must be .*0"),
        (["scale.width=forty"], r"forty"),
        (["scale.tokens=1000.5"], r"scale.tokens must be a whole number of at least 1, got 1000.5"),
        (["schedule.warmup_steps=1.5"], r"1.5.*Integer"),
        (["scale.width=40"], r"scale.width must be a multiple of model.head_size=16, got 40"),
        (["base_lr=0"], r"base_lr must be finite and positive, got 0"),
        (["base_lr=nan"], r"base_lr must be finite and positive, got nan"),
        (["base_lr=inf"], r"base_lr must be finite and positive, got inf"),
        (["scale.batch_tokens=500"], r"scale.batch_tokens must be a multiple of model.context=128, got 500"),
        (
            ["runtime.micro_batch_tokens=384"],
            r"micro_batch_tokens must divide scale.batch_tokens=512, got 384",
        ),
        (["scale.tokens=100"], r"tokens must be at least batch_tokens"),
        (["model.kv_heads=3"], r"model.kv_heads must divide the 2 query heads .*got 3"),
        (["model.head_size=15", "scale.width=30"], r"head_size"),
        (["optim=adam"], r"optim.*adam|adam.*optim"),
        (
            ["optim.name=sso"],
            r"optim.name must be optim.algorithms.hidden, muonh, got sso; optim=NAME chooses another",
        ),
        (["optim.clip=-1"], r"optim.clip must be finite and at least 0, got -1"),
        (["data.source=web"], r"data.source must be stdlib, text or tokens, got 'web'"),
        (["data.files=[corpus]"], r"data.files is read with data=text alone, got \['corpus'\] with stdlib"),
        (["data.path=x.bin"], r"data.path is read with data=tokens alone, got x.bin with stdlib"),
        (["optim.options.muonh.momentum=nan"], r"optim.options.muonh.momentum must be finite, got nan"),
        (["data=text"], r"data.files must name at least one"),
        (["data=tokens"], r"data.path must name a prepared"),
        (["schedule.warmup_steps=256"], r"warmup_steps must be below the 256 steps"),
        (["precision=half"], r"precision must .*auto.* float32.* bfloat16, got 'half'"),
        (["seed=-1"], r"seed must be in"),
        (["runtime.log_every=0"], r"runtime.log_every must .*at least 1, got 0"),
        (["model.context=0"], r"model.context must be a whole number of at least 1, got 0"),
        (["model.head_size=0"], r"model.head_size must be a whole number of at least 1, got 0"),
        (["model.query_heads=0"], r"model.query_heads must be a whole number of at least 1, got 0"),
        (["model.query_heads=4", "model.kv_heads=3"], r"model.kv_heads must divide query_heads=4, got 3"),
        (["model.rope_base=nan"], r"model.rope_base must be finite and positive, got nan"),
        (["scale.granularity=3"], r"scale.granularity must divide the hidden width of the MLP, 128 .*got 3"),
        (["scale.granularity=256"], r"scale.granularity must divide the hidden width .* 128 .*got 256"),
        (["scale.sparsity=0"], r"scale.sparsity must be a whole number of at least 1, got 0"),
        (["scale.sparsity=4"], r"scale.granularity must be at least 2 unless model.balance_weight .*got 1"),
        (
            ["scale.sparsity=4", "scale.granularity=2", "model.shared_expert=true"],
            r"scale.granularity must be at least 3 unless model.balance_weight .*got 2",
        ),
        (["model.shared_expert=true"], r"scale.granularity must be at least 2 with a shared expert.*got 1"),
        (["model.balance_weight=0.1"], r"model.balance_weight must be 0 for a dense model .*got 0.1"),
        (["model.balance_weight=-1"], r"model.balance_weight must be finite and at least 0, got -1"),
        (["model.balance_weight=nan"], r"model.balance_weight must be finite and at least 0, got nan"),
        (["model.sqrt_gate=often"], r"sqrt_gate|often"),
        (["scale.width="], r"width"),
    ],
)
def test_bad_input_is_one_line_that_names_the_field(overrides, message):
    with pytest.raises(ValueError, match=message) as caught:
        config(*overrides).shape(vocab=256)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale": {"width": 0, "depth": 1, "tokens": 1, "batch_tokens": 1}}, r"^scale\.width must .* got 0"),
        (
            {"scale": {"width": 1, "depth": 1, "tokens": 1, "batch_tokens": 2}},
            r"^scale\.tokens must .* got 1",
        ),
        ({"model": {"qk_norm": "yes"}}, r"^model\.qk_norm must be true or false, got 'yes'"),
        ({"model": {"heads": 2}}, r"^model\.heads .* got 2"),
        ({"colour": "red"}, r"^colour .* got 'red'"),
        ({"data": {"source": "text", "files": [1]}}, r"^data\.files\.0 must .* got 1"),
        ({"base_lr": True}, r"^base_lr must .* got True"),
        ({"seed": 2**32}, r"^seed must .* got 4294967296"),
    ],
)
def test_plain_values_that_make_no_run_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        config_from_dict(asdict(config()) | values)


def test_a_configuration_without_a_scale_is_refused():
    with pytest.raises(ValueError, match=r"^scale must be given$"):
        config_from_dict({"base_lr": 0.1})


def test_an_error_repeats_only_the_beginning_of_a_long_value():
    with pytest.raises(ValueError, match=r"^name must be text, got \['x{55}\.\.\.$"):
        OptimConfig(name=["x" * 200])  # pyright: ignore[reportArgumentType]


# Published or measured, see conf/optim; the optimizers of hyperp-train differ by up to a factor of 8.
DEFAULT_RATES = {
    "muonh": 0.0155,
    "adamh": 0.0155,
    "muon": 0.0222,
    "sso": 0.0131,
    "muonsphere": 0.0123,
    "adamw": 0.003,
}


@pytest.mark.parametrize(("optimizer", "rate"), DEFAULT_RATES.items())
def test_the_default_rate_is_that_of_the_optimizer(optimizer, rate):
    assert resolve(compose([f"optim={optimizer}"])).base_lr == rate
    assert resolve(compose([f"optim={optimizer}", "base_lr=0.5"])).base_lr == 0.5
    assert resolve(compose(["base_lr=0.5", f"optim={optimizer}"])).base_lr == 0.5
