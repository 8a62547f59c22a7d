"""Every experiment that ships, in every size: it plans, slices have enough rates, conf/README.md is right."""

import itertools
import re
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest

from hyperp.config import compose, resolve
from hyperp.data.tokenize import tokenize_files
from hyperp.flops import count_parameters
from hyperp.sweeps.plan.plan import Plan, Point, make_plan
from hyperp.sweeps.plan.run_config import setting_hash
from hyperp.sweeps.printing import plan_summary
from hyperp.sweeps.trainers.builtin import check_buildable
from tests.paths import ROOT

CONF = ROOT / "conf"
STUDIES = (
    "width_transfer",
    "depth_transfer",
    "token_law",
    "batch_law",
    "granularity",
    "sparsity",
    "flops_scaling",
)
SIZES = ("tiny", "small", "paper")
LEAST_RATES = 5
ALL = [(study, size) for study in STUDIES for size in SIZES]


def word(study: str, size: str) -> str:
    return study if size == "tiny" else f"{study}/{size}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A prepared file of a few words in a vocabulary of 32,000, the paper's."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("corpus")
    words = {f"w{i}": i for i in range(32_000)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "text.txt").write_text("w1 w2 w3 w4\n")
    out = folder / "corpus.bin"
    made = tokenize_files([str(folder / "text.txt")], out, folder / "tokenizer.json", progress=False)
    assert made["vocab_size"] == 32_000
    return out


@cache
def planned(study: str, size: str, corpus: Path) -> Plan:
    data = [] if size == "tiny" else [f"data.path={corpus}"]
    return make_plan([f"+experiment={word(study, size)}", *data])


def slice_of(point: Point) -> tuple:
    return setting_hash(asdict(point.config)), point.own.scale


@pytest.mark.parametrize(("study", "size"), ALL)
def test_plan(study, size, corpus):
    plan = planned(study, size, corpus)
    ids = [point.run_id for point in plan.points]
    assert len(ids) == len(set(ids))
    assert all(len(point.blocks) == 1 for point in plan.points)  # no run is asked for twice
    if size == "paper":
        last = plan.points[-1]
        assert resolve(compose(last.overrides)).run_id() == last.run_id
    assert plan.root == Path("runs", word(study, size).replace("/", "_"))
    configs = [point.own for point in plan.points]
    assert {config.precision for config in configs} == {"auto"}
    assert {config.data.source for config in configs} == {"stdlib" if size == "tiny" else "tokens"}


@pytest.mark.parametrize(("study", "size"), ALL)
def test_every_slice_has_rates_enough_and_every_seed(study, size, corpus):
    runs: dict[tuple, set] = {}
    for point in planned(study, size, corpus).points:
        runs.setdefault(slice_of(point), set()).add((point.own.base_lr, point.own.seed))
    for found in runs.values():
        rates, seeds = {rate for rate, _ in found}, {seed for _, seed in found}
        assert len(rates) >= LEAST_RATES
        assert found == set(itertools.product(rates, seeds))
        assert len(seeds) >= (2 if size == "tiny" else 1)


@pytest.mark.parametrize(("study", "size"), ALL)
def test_what_is_studied_varies_and_blocks_can_be_told_apart(study, size, corpus):
    axes = {
        "width_transfer": {"width"},
        "depth_transfer": {"depth"},
        "token_law": {"tokens"},
        "batch_law": {"batch_tokens"},
        "granularity": {"granularity"},
        "sparsity": {"sparsity"},
        "flops_scaling": {"width", "depth", "tokens"},
    }
    blocks: dict[str, list[Point]] = {}
    for point in planned(study, size, corpus).points:
        blocks.setdefault(point.blocks[0], []).append(point)
    contexts = []
    for points in blocks.values():
        scales = [asdict(point.own.scale) for point in points]
        values = {name: {scale[name] for scale in scales} for name in scales[0]}
        assert {name for name, found in values.items() if len(found) > 1} == axes[study]
        assert all(len(values[name]) >= 3 for name in axes[study])
        (context,) = {setting_hash(asdict(p.config)) for p in points}
        contexts.append(context)
    assert len(set(contexts)) == len(contexts)


def test_models_of_tiny_runs_can_be_built(corpus):
    check_buildable([planned(study, "tiny", corpus).points[-1] for study in STUDIES])


@pytest.mark.parametrize("size", ["small", "paper"])
def test_a_missing_corpus_is_named(size):
    with pytest.raises(ValueError, match=r"data\.path must .*\.bin"):
        make_plan([f"+experiment={word('token_law', size)}"])


@pytest.mark.parametrize("size", SIZES)
def test_the_ladder_has_fifty_tokens_a_parameter(size, corpus):
    for point in planned("flops_scaling", size, corpus).points:
        scale = point.own.scale
        vocab = 256 if size == "tiny" else 32_000
        counted = count_parameters(scale, point.own.shape(vocab), embeddings=size != "small")
        assert abs(scale.tokens - 50 * counted) <= scale.batch_tokens / 2
        assert scale.tokens == scale.tokens_trained


def test_the_depth_rule_is_on_in_one_block_and_off_in_the_other(corpus):
    for size in SIZES:
        deep = [p for p in planned("depth_transfer", size, corpus).points if p.own.scale.depth > 8]
        for point in deep:
            rule, depth = point.own.parametrization, point.own.scale.depth
            factor = point.lr / point.own.base_lr
            if point.blocks == ("rule",):
                reference = rule.reference_depth
                assert reference is not None
                assert factor == pytest.approx((reference / depth) ** 0.5, rel=1e-12, abs=0)
                assert rule.residual_multiplier(depth) == pytest.approx((2 * depth) ** -0.5, rel=1e-12, abs=0)
            else:
                assert factor == rule.residual_multiplier(depth) == 1
        assert {p.blocks[0] for p in deep} == {"rule", "no_rule"}


def names(group: str) -> set[str]:
    folder = CONF / group
    return {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")}


def test_every_study_has_every_size():
    expected = {word(study, size) for study, size in ALL}
    assert expected <= names("experiment")
    assert expected <= names("sweep")


@pytest.mark.parametrize(("study", "size"), ALL)
def test_a_file_begins_with_its_question_and_its_plan(study, size):
    first, *rest = (CONF / "experiment" / f"{word(study, size)}.yaml").read_text().splitlines()
    assert first == "# @package _global_"
    comment = " ".join(itertools.takewhile(lambda line: line.startswith("#"), rest))
    assert f"Plan: conf/sweep/{word(study, size)}.yaml." in comment


def table() -> dict[tuple[str, str], tuple[str, str, str | None]]:
    """(name, size) -> (runs, FLOPs, longest run) in conf/README.md; experiments of one size are tiny."""
    cells = {}
    for line in (CONF / "README.md").read_text().splitlines():
        if not line.startswith("| `"):
            continue
        name, _, *sizes = (cell.strip() for cell in line.strip("|").split("|"))
        assert len(sizes) == len(SIZES)
        for size, cell in zip(SIZES, sizes, strict=True):
            if cell:
                found = re.fullmatch(r"([\d,]+) runs, ([\d.e]+)(?:, (\S+))?", cell)
                assert found is not None, cell
                cells[name.strip("`"), size] = found.groups()
    return cells


def test_the_table_names_every_experiment_and_no_other():
    assert {word(name, size) for name, size in table()} == names("experiment")


def test_the_table_has_the_figures_of_the_plans(corpus):
    for (name, size), (runs, flops, longest) in table().items():
        plan = planned(name, size, corpus)
        blocks = plan_summary(plan, set())
        assert runs == str(sum(block["runs"] for block in blocks)), name
        assert flops == short(sum(block["flops"] for block in blocks)), name
        tokens = max(point.own.scale.tokens for point in plan.points)
        assert longest == (None if size == "tiny" else short(tokens)), name


def short(value: float) -> str:
    """FLOPs as the table writes them: 9.4e16, 8.4e6."""
    return f"{value:.1e}".replace("e+0", "e").replace("e+", "e")
