"""Properties of plans: the runs that a sweep section asks for, their ids, and plan.json."""

import itertools
import json
import math
import subprocess
import sys
import time

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperp.config import compose, resolve
from hyperp.sweeps.plan import planfile
from hyperp.sweeps.plan.overrides import expand_choices, format_override
from hyperp.sweeps.plan.plan import make_plan
from hyperp.sweeps.plan.run_config import model_shape
from hyperp.sweeps.plan.sweep import LearningRates
from hyperp.sweeps.runs.cost import AssumedGpu
from hyperp.sweeps.trainers.builtin import check_buildable
from hyperp.training.memory import check_memory
from hyperp.training.trainer import Trainer

LADDER = "+sweep.blocks.ladder={grid:{scale.tokens:[32768,65536],seed:[0,1]},lr:{center:-4.7,octaves:1}}"


def ids(plan):
    return [point.run_id for point in plan.points]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    center=st.floats(-12, 2),
    slope=st.floats(-1, 1),
    step=st.sampled_from([0.25, 0.5, 1.0]),
    count=st.integers(1, 4),
    tokens=st.integers(2**10, 2**30),
)
def test_slices_share_rates_on_a_log2_grid_around_the_moved_centre(center, slope, step, count, tokens):
    lr = LearningRates(
        center=center, octaves=count * step, step=step, per_octave={"t": slope}, at={"t": 2**20}
    )
    logs = [math.log2(rate) for rate in lr.values({"t": tokens})]
    assert len(logs) == 2 * count + 1
    for log in logs:  # a multiple of step, whatever the slice
        assert log / step == pytest.approx(round(log / step), abs=1e-9)
    assert logs[count] == pytest.approx(center + slope * math.log2(tokens / 2**20), abs=step / 2 + 1e-9)
    assert [b - a for a, b in itertools.pairwise(logs)] == pytest.approx([step] * (2 * count), abs=1e-9)


def test_a_rate_is_taken_as_it_is():
    lr = LearningRates(rate=0.0387, octaves=1, step=0.5)
    expected = [0.0387 * 2**i for i in (-1, -0.5, 0, 0.5, 1)]
    assert lr.values({}) == pytest.approx(expected, rel=1e-12, abs=0)
    assert lr.values({})[2] == 0.0387


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=12),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(VALUES)
def test_hydra_reads_a_word_back_as_the_value_it_was_made_of(value):
    parsed = OverridesParser.create().parse_overrides([format_override("key", value)])[0]
    assert not parsed.is_sweep_override()
    read = parsed.value()
    assert read == value
    assert type(read) is type(value)


def test_every_point_has_the_id_that_hydra_gives_its_words():
    plan = make_plan(
        [
            "sweep=example",
            "+sweep.blocks.odd={overrides:['optim=adamw','parametrization=standard'],points:["
            "{base_lr:1e-05,data.source:text,data.files:['a b.txt','it\\'s (1).py']},"
            "{base_lr:0.1,model.query_heads:2,optim.clip:0},{base_lr:0.1,model.query_heads:null}]}",
        ]
    )
    assert len(plan.points) == 2 * 2 * 5 + 1 + 3
    for point in plan.points:
        config = resolve(compose(list(point.overrides)))
        assert config == point.config
        assert config.run_id() == point.run_id


def test_points_of_different_keys_do_not_leak_into_each_other():
    plan = make_plan(
        ["+sweep.blocks.a.points=[{seed:5,base_lr:0.5},{base_lr:0.25},{seed:7},{base_lr:0.125}]"]
    )
    default = resolve(compose())
    assert [(p.own.seed, p.own.base_lr) for p in plan.points] == [
        (5, 0.5),
        (default.seed, 0.25),
        (7, default.base_lr),
        (default.seed, 0.125),
    ]


def test_a_sweep_without_blocks_is_the_one_run():
    plan = make_plan(["seed=3"])
    assert ids(plan) == [resolve(compose(["seed=3"])).run_id()]
    assert plan.points[0].blocks == ()


def test_a_run_of_two_blocks_is_planned_once_under_the_first():
    plan = make_plan(["+sweep.blocks.a.grid={seed:[0,1]}", "+sweep.blocks.b.grid={seed:[1,2]}"])
    assert [(p.own.seed, p.blocks) for p in plan.points] == [(0, ("a",)), (1, ("a", "b")), (2, ("b",))]


def test_comma_choices_multiply_the_plan():
    joined = make_plan([LADDER, "scale.depth=1,2"])
    assert ids(joined) == ids(make_plan([LADDER, "scale.depth=1"])) + ids(
        make_plan([LADDER, "scale.depth=2"])
    )
    assert list(expand_choices(["a=1", "b=x,y", "c=[1,2]"])) == [
        ["a=1", "b=x", "c=[1,2]"],
        ["a=1", "b=y", "c=[1,2]"],
    ]


def test_two_thousand_points_are_planned_in_seconds():
    start = time.process_time()  # CPU time, since the machine may be busy
    plan = make_plan(
        [f"+sweep.blocks.big={{grid:{{seed:{list(range(500))},scale.tokens:[4096,8192,1024,2048]}}}}"]
    )
    assert len(set(ids(plan))) == 2000
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["+sweep.blocks.a.grid={scale.widht:[32]}"], r"sweep\.blocks\.a: .*widht"),
        (["+sweep.blocks.a.grid={scale.width:[abc]}"], r"'abc' .* full_key: scale\.width"),
        (
            ["+sweep.blocks.a.grid={scale.width:[40]}"],
            r"scale\.width must .*model\.head_size=16, got 40",
        ),
        (["+sweep.blocks.a.grid={scale.tokens:[-5]}"], r"tokens must be .*, got -5"),
        (["+sweep.blocks.a.grid={seed:[]}"], r"sweep\.blocks\.a: grid\.seed must .*, got \[\]"),
        (["+sweep.blocks.a.grid={seed:1}"], r"sweep\.blocks\.a\.grid\.seed must be .*list, got 1"),
        (["+sweep.blocks.a.grid={optim:[adamw]}"], r"optim is a group .* overrides"),
        (["+sweep.blocks.a.points=[]"], r"sweep\.blocks\.a\.points.*at least 1"),
        (["+sweep.blocks.a.points=[{}]"], r"points\.0 must .*, got \{\}"),
        (["+sweep.blocks.a={grid:{seed:[1]},points:[{seed:2}]}"], r"points\.0\.seed .*grid"),
        (["+sweep.blocks.a.gird={seed:[1]}"], r"sweep\.blocks\.a\.gird .*got"),
        (["+sweep.blocks.a.overrides=['optim=sgd']"], r"sweep\.blocks\.a: .*optim/sgd"),
        (["+sweep.blocks.a.lr={center:-5,octaves:0.5}"], r"octaves must .*step=1.* got 0\.5"),
        (["+sweep.blocks.a.lr={center:-5,octaves:1,step:0}"], r"lr\.step.*greater than 0, got 0"),
        (["+sweep.blocks.a.lr={octaves:1}"], r"lr: .*center.*rate"),
        (["+sweep.blocks.a.lr={center:-5,rate:0.1,octaves:1}"], r"lr: .*center.*rate"),
        (
            ["+sweep.blocks.a.lr={center:-5,octaves:1,at:{seed:1}}"],
            r"at must .*per_octave.*got seed",
        ),
        (["+sweep.blocks.a.lr={center:nan,octaves:1}"], r"lr\.center.*finite"),
        (
            ["+sweep.blocks.a.lr={center:-5,octaves:1,per_octave:{optim:1},at:{optim:1}}"],
            r"per_octave\.optim must .*, got ",
        ),
        (["+sweep.blocks.a={grid:{base_lr:[1]},lr:{center:-5,octaves:1}}"], r"base_lr must not .*grid"),
        (
            ["+sweep.blocks.a.grid={seed:[1]}", "seed=2"],
            r"seed .*command line.*sweep\.blocks\.a; remove one",
        ),
        (
            ["sweep=example", "base_lr=0.1"],
            r"base_lr is set .* and in sweep\.blocks\.ladder; remove one",
        ),
        (
            ["+experiment=demo", "scale.tokens=65536"],
            r"scale\.tokens is set .* in sweep\.blocks\.ladder",
        ),
        (["scale.widht=32"], r"widht.*; did you mean scale\.width\?$"),
        (["sede=1", "scale.widht=32", "seed=0"], r"sede.*; did you mean seed\?$"),
        (["launcher=slurm", "launcher.partitoin=a"], r"partitoin.*; did you mean launcher\.partition\?$"),
        (["scale.widht=wide"], r"widht[^?]*$"),  # the known key would not take it either
        (["+sweep.blocks.a.grid={sede:[32]}"], r"sweep\.blocks\.a: .*sede.*; did you mean seed\?$"),
        (["+sweep.blocks.a.overrides=['scale.dept=3']"], r"dept.*; did you mean scale\.depth\?$"),
        (["scale.width=32", "zzzzzz=32"], r"zzzzzz[^?]*$"),
        (["+sweep.blocks.a.grid={runtime.root:[x,y]}"], r"runtime\.root must be the same .* x, y"),
        (["seed=interval(0,1)"], r"seed=interval\(0,1\): "),
        (["sede=1"], r"sede"),
        (["sweep=nothing"], r"sweep/nothing"),
    ],
)
def test_a_wrong_plan_is_refused_in_one_line_that_names_the_field(words, message):
    with pytest.raises(ValueError, match=message) as caught:
        make_plan(words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "blocks:", "blocks: {}"])
def test_a_sweep_that_was_chosen_must_have_blocks(tmp_path, text):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"sweep\.blocks.*(sweep=mine has none|got None)"):
        make_plan([f"hydra.searchpath=[file://{tmp_path}]", "sweep=mine"])
    assert len(make_plan(["sweep=none"]).points) == 1


def test_a_model_larger_than_the_machine_is_refused_before_it_is_built():
    (point,) = make_plan(["scale.width=65536", "scale.depth=100000", "model.head_size=64"]).points
    shape = model_shape(point.own)
    with pytest.raises(ValueError, match=r"scale must .*depth=100000.* GiB"):
        check_memory(point.own.scale, shape)
    with pytest.raises(ValueError, match=r"scale must .*depth=100000"):
        Trainer(point.own)
    (small,) = make_plan([]).points
    check_memory(small.own.scale, model_shape(small.own))


def test_gpu_hours_are_flops_over_what_a_gpu_is_assumed_to_do():
    assert AssumedGpu("a100", 0.5).hours(312e12 * 3600) == pytest.approx(2, rel=1e-12, abs=0)
    assert AssumedGpu("h100", 1).hours(989e12 * 7200) == pytest.approx(2, rel=1e-12, abs=0)
    with pytest.raises(ValueError, match=r"--gpu must .*a100.*, got 'k80'"):
        AssumedGpu("k80", 0.4)
    for mfu in (0.0, -1.0, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"--mfu must .*, got"):
            AssumedGpu("h100", mfu)


def test_what_cannot_be_built_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "small.txt").write_text("to be or not to be " * 20)
    words = ["data=text", f"data.files=['{tmp_path}/small.txt']"]
    with pytest.raises(ValueError, match=r"data\.source=text must .*513 tokens"):
        check_buildable(make_plan(words).points)
    with pytest.raises(ValueError, match=r"nowhere/\*"):
        check_buildable(make_plan(["data=text", "data.files=[nowhere/*]"]).points)
    with pytest.raises(ValueError, match=r"foo .*muonh"):
        check_buildable(
            make_plan(["+sweep.blocks.a={overrides:['+optim.options.muonh.foo=1'],grid:{seed:[0]}}"]).points
        )


def test_an_earlier_plan_is_kept_and_the_same_plan_changes_nothing(tmp_path):
    root = f"runtime.root={tmp_path}"
    first = make_plan([root, "+sweep.blocks.a.grid={seed:[0,1]}"])
    planfile.write_plan(first)
    before = (tmp_path / "plan.json").read_text()
    planfile.write_plan(first)
    assert (tmp_path / "plan.json").read_text() == before
    planfile.write_plan(make_plan([root, "+sweep.blocks.b.grid={seed:[1,2]}"]))
    points = planfile.read_plan(tmp_path)
    assert [(point.config["seed"], point.blocks) for point in points] == [(1, ["b"]), (2, ["b"]), (0, ["a"])]
    assert [resolve(compose(point.words)).run_id() for point in points] == [point.run_id for point in points]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a plan"),
        ("[]", "schema must be 1"),
        (json.dumps({"schema": 2}), "schema must be 1, got 2"),
        (json.dumps({"schema": 1}), "is not a plan .*points must be"),
        (json.dumps({"schema": 1, "points": [{"id": 1}]}), r"is not a plan .*points\.0\."),
    ],
)
def test_a_damaged_plan_is_named(tmp_path, text, message):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ValueError, match=rf"plan\.json.*{message}"):
        planfile.read_plan(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scale", {}),
        ("scale", {"width": "32", "depth": 2, "tokens": 65536, "batch_tokens": 512}),
        ("base_lr", "0.1"),
        ("seed", None),
        ("optim", "muonh"),
        ("schedule", {}),
    ],
)
def test_a_damaged_configuration_in_a_plan_is_named(tmp_path, key, value):
    planfile.write_plan(make_plan([f"runtime.root={tmp_path}", "+sweep.blocks.a.grid={seed:[0,1]}"]))
    plan = json.loads((tmp_path / "plan.json").read_text())
    plan["points"][1]["config"][key] = value
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ValueError, match=rf"plan\.json .*points\.1\.config\.{key}"):
        planfile.read_plan(tmp_path)


def test_a_rate_may_come_from_base_lr_and_then_a_word_may_set_it():
    plan = make_plan(["+experiment=demo_check", "base_lr=0.1"])
    assert {point.own.base_lr for point in plan.points} == {0.05, 0.1, 0.2}


def test_one_sweep_at_a_time_holds_a_root(tmp_path):
    with (
        planfile.lock_sweep(tmp_path),
        pytest.raises(ValueError, match=r"\.lock .*held by process \d+ on "),
        planfile.lock_sweep(tmp_path),
    ):
        pass
    with planfile.lock_sweep(tmp_path):
        pass


def test_planning_and_looking_need_no_torch():
    code = (
        "import sys, hyperp.sweeps.cli.main, hyperp.sweeps.table.runs, hyperp.sweeps.multirun\n"
        "from hyperp.sweeps.plan.plan import make_plan\n"
        "make_plan(['sweep=example'])\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
