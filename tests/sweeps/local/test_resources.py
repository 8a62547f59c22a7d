"""Counting usable cores and GPUs: control groups written to a folder, GPUs as strings."""

import math
import os

import pytest

from hyperp.sweeps.local.resources import core_shares, cpu_quota, usable_cores, visible_gpu_names


@pytest.mark.parametrize(
    ("own", "parent", "expected"),
    [
        ("max 100000\n", "max 100000\n", math.inf),
        ("150000 100000\n", "max 100000\n", 1.5),
        ("max 100000\n", "400000 100000\n", 4.0),
        ("800000 100000\n", "400000 100000\n", 4.0),
        ("20000 10000\n", "400000 100000\n", 2.0),
        ("nonsense\n", "400000 100000\n", 4.0),
    ],
)
def test_the_tightest_limit_of_all_ancestors_binds(tmp_path, own, parent, expected):
    (tmp_path / "jobs" / "one").mkdir(parents=True)
    (tmp_path / "jobs" / "one" / "cpu.max").write_text(own)
    (tmp_path / "jobs" / "cpu.max").write_text(parent)
    assert cpu_quota(tmp_path, "0::/jobs/one\n") == expected
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "cpu.max").write_text("1000 100000\n")
    assert cpu_quota(tmp_path, "0::/jobs/one\n") == expected


@pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize(("quota", "expected"), [("-1\n", math.inf), ("300000\n", 3.0)])
def test_version_one_keeps_quota_and_period_apart(tmp_path, folder, quota, expected):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / folder / "cpu.cfs_period_us").write_text("100000\n")
    inside = "9:name=systemd:/\n4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/\n"
    assert cpu_quota(tmp_path, inside) == expected


def test_without_control_groups_there_is_no_limit(tmp_path):
    assert cpu_quota(tmp_path / "none", "0::/\n") == math.inf
    assert cpu_quota(tmp_path, "") == math.inf


def test_usable_cores_are_those_of_this_process():
    cores, usable = usable_cores()
    assert 1 <= usable <= len(cores)
    if hasattr(os, "sched_getaffinity"):
        assert set(cores) == os.sched_getaffinity(0)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a system that can pin")
def test_shares_are_disjoint_or_nothing_is_pinned():
    assert core_shares([0, 2, 4, 6, 8], 5, workers=2, threads=2) == [[0, 2], [4, 6]]
    assert core_shares([0, 2, 4], 3, workers=2, threads=2) == [None, None]
    assert core_shares([0, 2, 4, 6], 3, workers=3, threads=1) == [None] * 3  # a quota of three


@pytest.mark.parametrize(
    ("devices", "visible", "count", "expected"),
    [
        ({"auto"}, None, 3, ["0", "1", "2"]),
        ({"cuda"}, None, 1, ["0"]),
        ({"auto", "cpu"}, "4,2", 2, ["4", "2"]),
        ({"cuda"}, "GPU-8932f937, GPU-5ebe9f43", 2, ["GPU-8932f937", "GPU-5ebe9f43"]),
        ({"cuda"}, "MIG-a,MIG-b", 1, ["MIG-a", "MIG-b"]),
        ({"cuda"}, "0,2,-1,1", 2, ["0", "2"]),
        ({"auto"}, "", 0, []),
        ({"auto"}, None, 0, []),
        ({"cpu"}, None, 4, []),
        ({"cuda:1"}, None, 4, []),
        ({"cuda", "cuda:1"}, None, 4, []),
    ],
)
def test_gpus_are_dealt_by_the_names_that_this_process_has_for_them(devices, visible, count, expected):
    assert visible_gpu_names(devices, visible, count) == expected
