"""Every rule of the doctor finds a seeded fault, and leaves alone the same run without it."""

import pytest

from hyperp.analysis.registry.rules import RULES, examine
from hyperp.analysis.registry.run_config import RunConfig
from hyperp.analysis.registry.target import Target

SOUND = {
    "trainer": "own",
    "target": {"tokens": 1e11, "batch_tokens": 2**20, "width": 2048, "depth": 16, "sequence_length": 4096},
    "steps": 1e11 / 2**20,
    "optimizer": "muonh",
    "embedding_optimizer": "adamw",
    "schedule": "linear",
    "rates": {"hidden": 0.01, "embedding": 0.01, "unembedding": 0.01},
    "floors": {"hidden": 0.001, "embedding": 0.001, "unembedding": 0.001},
    "weight_decay": {"hidden": 0.0},
    "warmup_steps": 100,
    "decay_steps": 1e11 / 2**20,
    "tied_embeddings": False,
}
TARGET = SOUND["target"]
MUP = {"optimizer": "adamw", "parametrization": "mup", "base_width": 256}
ALIGNED = {"rates": {"hidden": 0.00125, "embedding": 0.01, "unembedding": 0.00125}, "floors": {}}
# Rule, the fault, a word of the finding, and the run without the fault.
CASES = [
    ("batch-in-sequences", {"target": TARGET | {"batch_tokens": 256}}, "1.04858e+06", {}),
    (
        "batch-in-sequences",  # as many sequences as a sequence has tokens
        {
            "target": TARGET | {"batch_tokens": 4096, "tokens": 1e3 * 4096**2},
            "steps": 1e3,
            "decay_steps": 1e3,
        },
        "1.67772e+07",
        {"target": TARGET | {"batch_tokens": 4096**2}, "steps": None, "decay_steps": None},
    ),
    (
        "scheduler-overrides-groups",
        {"scheduler": "OneCycleLR", "rates": SOUND["rates"] | {"embedding": 0.1}},
        "hidden 0.01, embedding 0.1",
        {"scheduler": "LambdaLR", "rates": SOUND["rates"] | {"embedding": 0.1}},
    ),
    (
        "scheduler-overrides-groups",
        {"rates": SOUND["rates"] | {"embedding": 0.0005}},
        "0.001 for embedding, whose peak is 0.0005",
        {"rates": SOUND["rates"] | {"embedding": 0.0005}, "floors": {"hidden": 0.001, "embedding": 0.00005}},
    ),
    (
        "decay-on-a-sphere",
        {"weight_decay": {"hidden": 0.1}},
        "0.1",
        {"weight_decay": {"hidden": 0.1}, "optimizer": "adamw"},
    ),
    ("embedding-as-hidden", {"embedding_optimizer": "muon"}, "muon", {}),
    ("embedding-as-hidden", MUP, "8 times the base width", MUP | ALIGNED),
    ("warmup-beyond-the-run", {"warmup_steps": 2e5}, "200000", {}),
    ("decay-beside-the-run", {"decay_steps": 2e5}, "ends before its rate has fallen", {}),
    ("decay-beside-the-run", {"decay_steps": 5e4}, "goes on at the last rate", {}),
    (
        "tied-under-an-untied-rule",
        {"tied_embeddings": True, "parametrization": "hyperp"},
        "hyperp",
        {"tied_embeddings": True, "parametrization": "standard"},
    ),
    (
        "tied-under-an-untied-rule",
        {"tied_embeddings": True, "rates": SOUND["rates"] | {"embedding": 0.1}},
        "0.1 and 0.01",
        {"tied_embeddings": True},
    ),
]


@pytest.mark.parametrize(("rule", "fault", "word", "sound"), CASES)
def test_a_seeded_fault_is_found_and_the_sound_run_is_not(rule, fault, word, sound):
    findings = examine(RunConfig.model_validate(SOUND | fault))
    assert [finding.rule for finding in findings] == [rule]
    assert word in findings[0].message
    assert examine(RunConfig.model_validate(SOUND | sound)) == []


def test_every_rule_has_a_seeded_fault_a_text_and_a_source():
    assert {case[0] for case in CASES} == {rule.id for rule in RULES}
    assert all(rule.text and rule.source for rule in RULES)


def test_a_run_of_which_nothing_is_known_breaks_no_rule():
    assert examine(RunConfig(trainer="own", target=Target())) == []
