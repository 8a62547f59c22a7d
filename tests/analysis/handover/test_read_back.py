"""What is written for a trainer means the same to the doctor, which reads configurations of that trainer."""

from dataclasses import replace

import pytest

from hyperp.analysis.handover.write import trainer_text
from hyperp.analysis.registry.configurations import read_configuration
from hyperp.analysis.registry.target import Target
from tests.analysis.handover.handovers import ADAMW, FOREIGN, MUON, active, context, untranslated

SUFFIXES = {"megatron": "sh", "nanochat": "sh", "torchtitan": "toml", "hf": "yaml"}
SHAPES = ("linear", "cosine", "constant")
TRAINED = [
    *(("megatron", base, shape) for base in (ADAMW, MUON) for shape in SHAPES),
    *(("torchtitan", ADAMW, shape) for shape in SHAPES),
    *(("hf", ADAMW, shape) for shape in SHAPES),
    *(("nanochat", MUON, shape) for shape in SHAPES if shape != "cosine"),  # which it does not have
]


def read_back(folder, trainer, handover):
    path = folder / f"written.{SUFFIXES[trainer]}"
    path.write_text(trainer_text(trainer, handover), encoding="utf-8")
    given = Target(batch_tokens=handover.batch_tokens.value) if trainer == "hf" else None
    return read_configuration(path, given=given)


@pytest.mark.parametrize(("trainer", "base", "shape"), TRAINED)
@pytest.mark.parametrize("parametrization", ["raw", "mup"])
def test_the_doctor_reads_the_run_that_was_recommended(tmp_path, trainer, base, shape, parametrization):
    handover = replace(base, context=context(base.optimizer, parametrization, shape))
    found = read_back(tmp_path, trainer, handover)
    assert (found.trainer, found.optimizer, found.schedule) == (trainer, base.optimizer, shape)
    assert found.rates["hidden"] == pytest.approx(handover.lr, rel=1e-5)
    assert found.target.batch_tokens == handover.batch_tokens.value
    assert found.steps == handover.steps.value
    assert found.warmup_steps == handover.schedule.warmup_steps
    if trainer in ("megatron", "hf") and shape != "constant":
        assert found.floors["hidden"] == pytest.approx(handover.lr * handover.schedule.final, rel=1e-5)


def test_embeddings_are_untied_where_the_law_is_of_the_model_of_hyperp(tmp_path):
    assert read_back(tmp_path, "megatron", ADAMW).tied_embeddings is False
    argument = "--untie-embeddings-and-output-weights"
    foreign = replace(FOREIGN, context={"optimizer": "adamw", "schedule": "cosine"})
    for handover in (FOREIGN, foreign):
        assert argument not in active("megatron", handover)
        assert f"unless {argument} is set" in untranslated("megatron", handover)
    assert "tie_word_embeddings to false" in untranslated("hf", ADAMW)
