"""CPU quotas, OpenMP settings and the choice of the number of threads."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vits_trainer.utils import cpu_threads
from vits_trainer.utils.cpu_threads import ThreadTimes, cgroup_quota, configure_openmp, time_threads

V1 = "4:memory:/a\n3:cpuset:/\n2:cpu,cpuacct:/jobs/mine\n0::/\n"
V2 = "0::/jobs/mine\n"


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "cpus"),
    [("150000 100000", 1.5), ("max 100000", math.inf), ("25000 50000", 0.5), ("nonsense", math.inf)],
)
def test_quota_of_version_2(tmp_path: Path, content: str, cpus: float) -> None:
    write(tmp_path / "jobs" / "mine", cpu__max=content)
    assert cgroup_quota(V2, tmp_path) == cpus


def test_lowest_quota_of_the_parent_groups_applies(tmp_path: Path) -> None:
    write(tmp_path / "jobs", cpu__max="100000 100000")
    write(tmp_path / "jobs" / "mine", cpu__max="400000 100000")
    assert cgroup_quota(V2, tmp_path) == 1


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_quota_of_version_1(tmp_path: Path, mount: str) -> None:
    write(tmp_path / mount / "jobs" / "mine", cpu__cfs_quota_us="200000", cpu__cfs_period_us="100000")
    write(tmp_path / mount, cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert cgroup_quota(V1, tmp_path) == 2


def test_quota_of_a_container_is_found_at_the_root(tmp_path: Path) -> None:
    write(tmp_path, cpu__max="50000 100000")
    assert cgroup_quota("0::/docker/0123\n", tmp_path) == 0.5


def test_no_cgroups_mean_no_quota(tmp_path: Path) -> None:
    assert cgroup_quota("", tmp_path) == math.inf
    assert cgroup_quota(V1, tmp_path) == math.inf


@pytest.mark.parametrize(
    ("given", "quota", "expected"),
    [
        ({}, math.inf, {"OMP_WAIT_POLICY": "PASSIVE"}),
        ({}, 0.5, {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}),
        ({"OMP_NUM_THREADS": "7"}, 1.0, {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "7"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, math.inf, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ],
)
def test_openmp_settings_of_the_user_are_kept(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], quota: float, expected: dict[str, str]
) -> None:
    monkeypatch.setattr(cpu_threads, "cgroup_quota", lambda: quota)
    configure_openmp(given)
    assert given == expected


@pytest.mark.slow
def test_openmp_is_configured_before_torch_is_loaded() -> None:
    """libgomp reports the policy in a child process that imports the package and then torch."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    result = subprocess.run(
        [sys.executable, "-c", "import sys, vits_trainer; assert 'torch' not in sys.modules; import torch"],
        env={**environment, "OMP_DISPLAY_ENV": "true"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in result.stderr


@pytest.fixture
def group_of_one_cpu() -> "object":
    root = Path("/sys/fs/cgroup")
    is_v1 = (root / "cpu").is_dir()
    group = (root / "cpu" if is_v1 else root) / f"vits_trainer_test_{os.getpid()}"
    try:
        group.mkdir()
        name, content = ("cpu.cfs_quota_us", "100000") if is_v1 else ("cpu.max", "100000 100000")
        (group / name).write_text(content, encoding="utf-8")
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"cannot create control groups: {error}")
    yield group
    group.rmdir()


def test_cpu_quota_limits_the_threads(group_of_one_cpu: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    code = (
        f"import os; open('{group_of_one_cpu}/cgroup.procs', 'w').write(str(os.getpid())); import vits_trainer, torch; "
        "from vits_trainer.utils.cpu_threads import available_cpus; print(available_cpus(), torch.get_num_threads())"
    )
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["1.0", "1"]


@pytest.mark.parametrize(
    ("all_s", "one_s", "fastest", "is_starved"),
    [(1.0, 1.8, 4, False), (1.0, 0.97, 4, False), (1.0, 0.9, 1, False), (2.0, 1.0, 1, True)],
)
def test_faster_number_of_threads_is_used(all_s: float, one_s: float, fastest: int, is_starved: bool) -> None:
    times = ThreadTimes(4, all_s, one_s)
    assert (times.fastest, times.is_starved) == (fastest, is_starved)


def test_each_number_of_threads_is_timed_twice_and_the_minimum_kept() -> None:
    used: list[int] = []
    seconds = iter([3.0, 2.0, 1.0, 4.0])
    times = time_threads(lambda: next(seconds), 8, used.append)
    assert used == [1, 8, 1, 8]
    assert times == ThreadTimes(8, all_s=2.0, one_s=1.0)
    assert str(times) == "2 s with 8 threads, 1 s with one"
