"""Configurations of trainers: what each means in tokens, sizes and rates, and what it leaves open."""

import json

import pytest

from hyperp.analysis.registry.configurations import read_configuration
from hyperp.analysis.registry.target import Target

NANOCHAT = """#!/bin/bash
# the speed run
torchrun --standalone -m scripts.base_train -- \\
    --depth=26 --total-batch-size=1048576 --num-iterations 20000 --matrix-lr 0.02
"""
MEGATRON = """GPT_MODEL_ARGS=(
    --num-layers 32 --hidden-size 4096
    --seq-length 4096   # tokens
)
torchrun pretrain_gpt.py "${GPT_MODEL_ARGS[@]}" --global-batch-size 1024 --train-samples 512000000 \\
    --lr 3e-4 --min-lr 3e-5 --lr-decay-style cosine --lr-warmup-samples 2048000 --weight-decay 0.1
"""
TORCHTITAN = """[model]
name = "llama3"
flavor = "8B"
[optimizer]
name = "AdamW"
lr = 3e-4
[lr_scheduler]
warmup_steps = 200
[training]
local_batch_size = 2
seq_len = 8192
steps = 1000
"""
HF = {
    "learning_rate": 3e-4,
    "per_device_train_batch_size": 8,
    "max_steps": 1000,
    "warmup_ratio": 0.05,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr": 1e-5},
    "optim": "adamw_torch_fused",
    "weight_decay": 0.1,
}


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_nanochat_scales_its_rates_with_batch_and_width(tmp_path):
    config = read_configuration(write(tmp_path, "run.sh", NANOCHAT))
    assert config.trainer == "nanochat"
    assert config.target == Target(
        tokens=20000 * 2**20, batch_tokens=2**20, width=26 * 64, depth=26, sequence_length=2048
    )
    assert config.rates["hidden"] == pytest.approx(0.02 * 2**0.5)
    assert config.rates["embedding"] == pytest.approx(0.3 * 2**0.5 * (1664 / 768) ** -0.5)
    assert (config.optimizer, config.embedding_optimizer, config.schedule) == ("muon", "adamw", "wsd")
    assert config.tied_embeddings is False


def test_nanochat_leaves_open_what_it_works_out_itself(tmp_path):
    path = write(tmp_path, "run.sh", "python -m scripts.base_train --depth=20 --matrix-lr=0.02")
    config = read_configuration(path)
    assert (config.target.batch_tokens, config.target.tokens, config.rates) == (None, None, {})
    assert any(line.startswith("batch_tokens and the rates: ") for line in config.unread)
    known = read_configuration(path, given=Target(batch_tokens=2**19, tokens=1e10))
    assert known.target.tokens == 1e10
    assert known.rates["hidden"] == pytest.approx(0.02)


def test_a_size_of_nothing_is_no_size(tmp_path):
    path = write(tmp_path, "run.sh", "python -m scripts.base_train --depth=0 --matrix-lr=0.02")
    with pytest.raises(ValueError, match=r"run\.sh: depth must be positive, got 0\.0"):
        read_configuration(path)


def test_a_shell_variable_is_noted(tmp_path):
    path = write(tmp_path, "run.sh", "train --num-layers $LAYERS --hidden-size 64 --train-iters 10")
    config = read_configuration(path)
    assert config.target.depth is None
    assert "num-layers: '$LAYERS' is no number" in config.unread


def test_megatron_counts_batches_and_samples_in_sequences(tmp_path):
    config = read_configuration(write(tmp_path, "pretrain.sh", MEGATRON))
    assert config.trainer == "megatron"
    assert config.target == Target(
        tokens=512000000 * 4096, batch_tokens=1024 * 4096, width=4096, depth=32, sequence_length=4096
    )
    assert config.steps == 500000
    assert config.warmup_steps == 2000
    assert config.rates == {"hidden": 3e-4, "embedding": 3e-4, "unembedding": 3e-4}
    assert config.floors["hidden"] == 3e-5
    assert (config.optimizer, config.schedule, config.tied_embeddings) == ("adamw", "cosine", True)


def test_megatron_arguments_in_yaml_mean_the_same(tmp_path):
    text = "num_layers: 32\nhidden_size: 4096\nseq_length: 4096\nglobal_batch_size: 1024\ntrain_iters: 10\n"
    config = read_configuration(write(tmp_path, "args.yaml", text + "lr: 3.0e-4\n"))
    assert (config.trainer, config.target.batch_tokens) == ("megatron", 1024 * 4096)


def test_megatron_mup_divides_hidden_and_output_rates_by_the_width(tmp_path):
    text = "--num-layers 4 --hidden-size 2048 --lr 1e-2 --use-mup --mup-base-hidden-size 256 "
    config = read_configuration(
        write(tmp_path, "a.sh", text + "--untie-embeddings-and-output-weights --min-lr 1e-3")
    )
    assert config.parametrization == "mup"
    assert config.width_factor == 8
    assert config.rates == {"hidden": 1e-2 / 8, "embedding": 1e-2, "unembedding": 1e-2 / 8}
    assert config.floors == {"hidden": 1e-3 / 8, "embedding": 1e-3, "unembedding": 1e-3 / 8}
    tied = read_configuration(write(tmp_path, "b.sh", text))
    assert tied.rates["unembedding"] == tied.rates["embedding"] == 1e-2


def test_megatron_decoupled_rates_are_those_of_both_ends(tmp_path):
    text = "--num-layers 4 --hidden-size 64 --lr 1e-2 --min-lr 1e-3 --decoupled-lr 1e-4"
    config = read_configuration(write(tmp_path, "a.sh", text))
    assert config.rates == {"hidden": 1e-2, "embedding": 1e-4, "unembedding": 1e-4}
    assert config.floors == {"hidden": 1e-3, "embedding": 1e-3, "unembedding": 1e-3}


def test_torchtitan_needs_the_number_of_ranks(tmp_path):
    path = write(tmp_path, "llama3_8b.toml", TORCHTITAN)
    config = read_configuration(path)
    assert (config.trainer, config.target.batch_tokens, config.target.width) == ("torchtitan", None, None)
    assert [line.partition(":")[0] for line in config.unread] == ["batch_tokens", "width and depth"]
    given = Target(batch_tokens=2**22, width=4096, depth=32)
    assert read_configuration(path, given=given).target.tokens == 1000 * 2**22
    ranks = TORCHTITAN + "[parallelism]\ndata_parallel_shard_degree = 64\n"
    known = read_configuration(write(tmp_path, "ranks.toml", ranks))
    assert known.target.batch_tokens == 2 * 64 * 8192
    assert (known.optimizer, known.schedule, known.weight_decay["hidden"]) == ("adamw", "linear", 0.1)


def test_training_arguments_of_transformers(tmp_path):
    path = write(tmp_path, "training_args.json", json.dumps(HF))
    config = read_configuration(path, given=Target(batch_tokens=1e6))
    assert config.trainer == "hf"
    assert (config.target.tokens, config.steps, config.warmup_steps) == (1e9, 1000, 50)
    assert (config.optimizer, config.schedule, config.floors["hidden"]) == ("adamw", "cosine", 1e-5)
    assert read_configuration(path).unread[0].startswith("batch_tokens: ")
    share = HF | {"warmup_steps": 0.1, "warmup_ratio": 0.0}  # a share, since version 5
    assert (
        read_configuration(
            write(tmp_path, "five.json", json.dumps(share)), given=Target(batch_tokens=1e6)
        ).warmup_steps
        == 100
    )


@pytest.mark.slow
def test_a_file_that_transformers_wrote(tmp_path):
    transformers = pytest.importorskip("transformers")
    written = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        learning_rate=3e-4,
        max_steps=1000,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": 100},
        warmup_steps=50,
        weight_decay=0.1,
        use_cpu=True,
    )
    path = write(tmp_path, "training_args.json", written.to_json_string())
    config = read_configuration(path, given=Target(batch_tokens=1e6))
    assert (config.trainer, config.optimizer, config.schedule) == ("hf", "adamw", "wsd")
    assert (config.rates["hidden"], config.warmup_steps, config.target.tokens) == (3e-4, 50, 1e9)


STABLE = {"lr_scheduler_type": "warmup_stable_decay", "max_steps": 100, "warmup_steps": 10}


@pytest.mark.parametrize(
    ("trainer", "values", "schedule"),
    [
        ("hf", STABLE | {"lr_scheduler_kwargs": {"num_decay_steps": 90}}, "cosine"),
        ("hf", STABLE | {"lr_scheduler_kwargs": {"num_decay_steps": 90, "decay_type": "linear"}}, "linear"),
        ("hf", STABLE | {"lr_scheduler_kwargs": {"num_decay_steps": 89}}, "wsd"),
        ("hf", STABLE | {"lr_scheduler_kwargs": {"num_decay_steps": 90, "decay_type": "1-sqrt"}}, None),
        ("nanochat", {"num-iterations": 100, "warmup-steps": 0, "warmdown-ratio": 1.0}, "linear"),
        ("nanochat", {"num-iterations": 100, "warmup-steps": 40, "warmdown-ratio": 0.6}, "linear"),
        ("nanochat", {"num-iterations": 100, "warmup-steps": 39, "warmdown-ratio": 0.6}, "wsd"),
        ("nanochat", {"warmdown-ratio": 0.0}, "constant"),
        ("nanochat", {"warmdown-ratio": 1.0}, "linear"),
        ("nanochat", {}, "wsd"),
        ("torchtitan", {"warmup_steps": 20, "decay_ratio": 0.8, "decay_type": "cosine"}, "cosine"),
        ("torchtitan", {"warmup_steps": 20, "decay_ratio": 0.7, "decay_type": "sqrt"}, "wsd"),
        ("torchtitan", {"decay_ratio": 0.0}, "constant"),
        ("megatron", {"lr-decay-style": "WSD", "lr-wsd-decay-iters": 10}, "wsd"),
        ("megatron", {"lr-decay-style": "WSD"}, "wsd"),
        (
            "megatron",
            {"lr-decay-style": "WSD", "lr-wsd-decay-iters": 100, "lr-wsd-decay-style": "linear"},
            "linear",
        ),
    ],
)
def test_a_schedule_without_a_stable_part_has_the_shape_of_its_decay(tmp_path, trainer, values, schedule):
    if trainer == "torchtitan":
        values = {"training": {"steps": 100}, "lr_scheduler": values}
    if trainer == "megatron":
        values = {"train-iters": 100} | values
    path = write(tmp_path, "run.json", json.dumps(values))
    config = read_configuration(path, trainer=trainer, given=Target(batch_tokens=1e6))
    assert config.schedule == schedule
    assert any("1-sqrt" in line for line in config.unread) == (schedule is None)


def test_an_optimizer_that_is_not_known_is_noted_and_not_guessed(tmp_path):
    path = write(tmp_path, "args.json", json.dumps(HF | {"optim": "adafactor"}))
    config = read_configuration(path)
    assert config.optimizer is None
    assert "optim: 'adafactor' is not known here" in config.unread


def test_a_map_gives_an_own_configuration_its_meaning(tmp_path):
    own = write(
        tmp_path,
        "mine.yaml",
        "train: {batch: 512, seq: 4096, steps: 1000}\nmodel: {d: 2048, tied: true}\n"
        "optim: {name: MuonH, lr: 0.01}\n",
    )
    keys = write(
        tmp_path,
        "map.yaml",
        "batch_tokens: train.batch * train.seq\nsteps: train.steps\nwidth: model.d\n"
        "tied_embeddings: model.tied\noptimizer: optim.name\n"
        "lr: {hidden: optim.lr, embedding: optim.lr / 2}\n",
    )
    config = read_configuration(own, keys=keys)
    assert (config.trainer, config.optimizer, config.tied_embeddings) == ("own", "muonh", True)
    assert (config.target.batch_tokens, config.target.width, config.steps) == (512 * 4096, 2048, 1000)
    assert config.rates == {"hidden": 0.01, "embedding": 0.005}


def test_a_configuration_in_our_names_needs_no_map(tmp_path):
    path = write(tmp_path, "plan.toml", 'tokens = 1e12\noptimizer = "muonh"\n[lr]\nhidden = 0.004\n')
    config = read_configuration(path)
    assert (config.target.tokens, config.optimizer, config.rates) == (1e12, "muonh", {"hidden": 0.004})


@pytest.mark.parametrize(
    ("text", "keys", "message"),
    [
        ("a: 1\n", None, r"mine\.yaml must have some of the keys tokens, .* got none"),
        ("a: 1\n", "tokns: a\n", "keys must be one of .* got 'tokns'; did you mean tokens"),
        ("abc: 1\n", "tokens: abd\n", "no column 'abd' .* did you mean abc"),
        ("a: many\n", "tokens: a\n", "tokens must come from numbers, got a = 'many'"),
        ("a: -1\n", "tokens: a\n", r"target\.tokens must be finite and positive, got -1\.0"),
        ("a: muonn\n", "optimizer: a\n", "optimizer must be one of .* got 'muonn'; did you mean muon"),
        ("a: 1\n", "tied_embeddings: a\n", "tied_embeddings must be true or false, got 1"),
        ("- 1\n", None, "a configuration must be a mapping, got list"),
        ("a: [\n", None, r"mine\.yaml must be readable as yaml"),
    ],
)
def test_a_wrong_map_or_file_is_told_in_one_line(tmp_path, text, keys, message):
    path = write(tmp_path, "mine.yaml", text)
    map_file = None if keys is None else write(tmp_path, "map.yaml", keys)
    with pytest.raises(ValueError, match=message) as caught:
        read_configuration(path, keys=map_file)
    assert "\n" not in str(caught.value)


def test_a_command_line_of_no_known_trainer_is_refused(tmp_path):
    path = write(tmp_path, "run.sh", "python train.py --alpha 1")
    with pytest.raises(ValueError, match=r"run\.sh must hold options of one of nanochat, .* got alpha"):
        read_configuration(path)
    with pytest.raises(ValueError, match=r"trainer must be one of .* did you mean megatron"):
        read_configuration(path, trainer="megatrn")
