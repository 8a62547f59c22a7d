"""`hyperp-train` as a user meets it: exit codes, one-line errors, and what it prints."""

import sys
from importlib.metadata import version
from pathlib import Path
from subprocess import CompletedProcess, run

import pytest

import hyperp
from tests import forked

TINY = (
    "scale.width=16",
    "scale.depth=1",
    "scale.tokens=2048",
    "model.context=32",
    "scale.batch_tokens=256",
    "data.held_out_tokens=1024",
)


def hyperp_train(cwd: Path, *arguments: str) -> CompletedProcess[str]:
    return forked.run_command("hyperp-train", *arguments, cwd=cwd)


def test_a_run_prints_how_it_ended_and_writes_only_its_folder(tmp_path):
    done = hyperp_train(tmp_path, *TINY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("finished ")
    assert "nats/token" in done.stdout
    assert done.stderr == ""
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]
    (run_dir,) = (tmp_path / "runs" / "single").iterdir()
    assert (run_dir / "record.json").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["scale.widht=64"], "did you mean scale.width?"),
        (["optim=muonn"], "did you mean optim=muon?"),
        (["+experiment=demo_chek"], "did you mean +experiment=demo_check?"),
        (["--factors", "scale.widht=64"], "did you mean scale.width?"),
        (["-m", "optim=adamv", "seed=0,1"], "did you mean optim=adamw?"),
        (["--prepare", "--files", "a.txt"], "--output"),
        (
            ["--prepare", "--files", "a.txt", "--tiktoken", "gpt2", "--out", "ids.txt"],
            "--output must end in .bin",
        ),
        (["scale.width=-1"], "width must be"),
        (["optim=adam"], "adam"),
        (["data=text", "data.files=[missing/*.txt]"], "missing/*.txt"),
        (["--factors", "scale.depth=0"], "depth must be"),
        (["runtime.device=teapot"], "teapot"),
        (["+experiment=demo"], "sweep.blocks is a plan of many runs (ladder, muonh_width, adamw_width)"),
        (["optim.options.muonh=null"], "optim: options.muonh must be a mapping of options, got None"),
        (
            ["data=text", "data.files=corpus.txt"],
            "data.files=corpus.txt Invalid value assigned: a list is wanted",
        ),
    ],
)
def test_bad_input_is_one_line_exit_2_and_nothing_written(tmp_path, overrides, message):
    done = hyperp_train(tmp_path, *overrides)
    assert done.returncode == 2
    assert done.stderr.startswith("hyperp-train: error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_diverged_run_exits_1(tmp_path):
    overrides = ("optim=adamw", "parametrization=standard", "base_lr=30", "optim.clip=0", "scale.tokens=8192")
    done = hyperp_train(tmp_path, *TINY, *overrides)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("diverged ")


def test_factors_train_nothing(tmp_path):
    overrides = ("scale.depth=2", "scale.batch_tokens=2097152", "scale.tokens=1.04e10", "base_lr=0.01")
    done = hyperp_train(tmp_path, "--factors", *overrides)
    assert done.returncode == 0, done.stderr
    hidden = next(line.split() for line in done.stdout.splitlines() if line.startswith("hidden"))
    assert float(hidden[-1]) == pytest.approx(0.02, rel=1e-4)  # sqrt(8 / 2) = 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["--factors", "--prepare"])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_a_mode_has_help_of_its_own(tmp_path, mode, flag):
    done = hyperp_train(tmp_path, mode, flag)
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: hyperp-train {mode}")
    assert f"hyperp-train {mode} " in done.stdout.partition("examples:")[2]


def test_the_version_is_that_of_the_distribution(tmp_path):
    done = hyperp_train(tmp_path, "--version")
    assert (done.returncode, done.stdout) == (0, f"hyperp-train {version('hyperp-scaling')}\n")
    assert hyperp.__version__ == version("hyperp-scaling")


def test_help_teaches(tmp_path):
    done = run([Path(sys.executable).with_name("hyperp-train"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for text in (
        "--factors",
        "--prepare",
        "--version",
        "--shell-completion",
        "+experiment=demo",
        "optim: adamh, adamw, muon, muonh, muonsphere, sso",
        "Exit codes",
    ):
        assert text in done.stdout
