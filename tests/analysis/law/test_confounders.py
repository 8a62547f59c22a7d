"""Columns that move with a covariate are named; results and bookkeeping are not."""

import re

import numpy as np
import pandas as pd
import pytest

from hyperp.analysis import check, fit_law
from hyperp.run_table import DERIVED, RESULTS
from tests.paths import ROOT


@pytest.fixture(scope="module")
def frame(make_ladder) -> pd.DataFrame:
    return make_ladder(seeds=1)


def named(warnings: list[str], name: str = "tokens") -> set[str]:
    """The columns that a warning says move with `name`."""
    lines = [line for line in warnings if f" with {name} over the slices" in line]
    return {column for line in lines for column in re.findall(r"(\w+) \([-+]", line)}


@pytest.mark.parametrize("power", [1.0, -0.5])
def test_a_size_under_another_name_is_named_by_fit_and_by_check(frame, power):
    table = frame.assign(n_params=(20 * frame["tokens"]) ** power)
    assert named(fit_law(table, by="tokens").warnings) == {"n_params"}
    assert named(check(table).warnings) == {"n_params"}
    fixed = fit_law(table, by="tokens", fix={"n_params": 0.1})  # is in the law, and no secret
    assert named(fixed.warnings) == set()


def test_what_moves_on_its_own_is_not_named(frame):
    size = frame["tokens"].rank(method="dense").astype(int)
    table = frame.assign(
        warmup=np.array([3.0, 1.0, 4.0, 1.5, 2.0])[size - 1],
        nearly=100 + 0.1 * size,
        dropout=0.1 * (size - 1),
        text=size.map(str) + "x",
    )
    assert named(fit_law(table, by="tokens").warnings) == set()


def test_results_are_not_named(frame):
    """They differ between the rates of a slice, or it is known how hyperp calls them."""
    rng = np.random.default_rng(0)
    table = frame.assign(
        run=range(len(frame)),
        wall_s=frame["tokens"] * (1 + 0.01 * rng.random(len(frame))),
        accuracy=1 / frame["loss"],
        seconds=frame["tokens"] / 1e3,
        train_loss=frame.groupby("tokens")["loss"].transform("mean"),
    )
    assert named(fit_law(table, by="tokens").warnings) == set()


def test_the_covariate_in_other_units_is_not_named(frame):
    table = frame.assign(
        opt_calls=np.ceil(frame["tokens"] / 512),
        n=1e6,
        C=6e6 * frame["tokens"],
        total_flos=5.9e6 * frame["tokens"],
        flops=5.9e6 * frame["tokens"],
        steps=frame["tokens"] / 512,
        num_train_epochs=frame["tokens"] / 1e6,
        copy=frame["tokens"],
    )
    assert named(fit_law(table, by="tokens").warnings) == set()
    table = frame.drop(columns="batch_tokens").assign(
        **{"trainer/global_step": frame["tokens"] // 4096, "samples_seen": frame["tokens"] / 3}
    )
    assert named(fit_law(table, by="tokens").warnings) == set()
    table["warmup_steps"] = table["trainer/global_step"] / 100
    table["tokens_per_n"] = 20
    table["n"] = table["tokens"] / 20
    assert named(fit_law(table, by="tokens").warnings) == {"warmup_steps", "n"}
    mapped = table[["lr", "loss", "tokens"]].rename(columns={"tokens": "D"})
    law = fit_law(mapped, by="tokens", mapping={"tokens": "D*1.7"})
    assert named(law.warnings) == set()


def test_steps_that_move_with_another_size_are_named(make_ladder):
    frames = [
        make_ladder(tokens=(65536,), covariates={"width": w}, rng_seed=w, seeds=1) for w in (32, 64, 128)
    ]
    table = pd.concat(frames)
    table = table.assign(steps=16 * table["width"], parameters=12 * table["width"] ** 2)
    assert named(fit_law(table, by="width").warnings, "width") == {"steps"}


def test_optima_without_runs_say_nothing():
    tokens = np.geomspace(1e4, 1e7, 6)
    rows = pd.DataFrame({"tokens": tokens, "lr": tokens**-0.3, "acc": tokens**0.1})
    assert named(fit_law(rows, by="tokens", given=True).warnings) == set()


def test_covariates_that_move_together_are_nearly_aliased(make_ladder):
    depths = (2, 5, 6, 16, 20)
    frames = [
        make_ladder(tokens=(65536,), covariates={"width": 32 * 2**k, "depth": d}, rng_seed=k, seeds=1)
        for k, d in enumerate(depths)
    ]
    law = fit_law(pd.concat(frames), by="width,depth")
    (line,) = [line for line in law.warnings if "move together" in line]
    assert line.startswith("width and depth move together")
    frames[1]["depth"] = 16
    law = fit_law(pd.concat(frames), by="width,depth")
    assert not any("move together" in line for line in law.warnings)


def test_the_demo_has_no_confounder():
    found = check(ROOT / "reports" / "demo" / "runs.csv")
    assert not any("over the slices" in line for line in found.warnings)


def test_the_columns_of_a_sweep_are_inputs_results_or_derived():
    """A new column of numbers of hyperp-sweep collect must be put into one of the lists."""
    from hyperp.analysis.vocabulary import NOT_COVARIATES
    from hyperp.run_table import COVARIATES
    from hyperp.sweeps.table.runs import TABLE_SCHEMA

    numbers = {field.name for field in TABLE_SCHEMA if str(field.type) in ("int64", "double")}
    assert numbers <= {*COVARIATES, *NOT_COVARIATES, "base_lr", *RESULTS, *DERIVED}
