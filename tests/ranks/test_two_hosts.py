"""Two hosts, each with its own ``accelerate launch``; one of them cut off in mid-run; both started again."""

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.hosts import ADDRESSES, Hosts, Started, two_hosts, why_not
from tests.support.launch import command_of
from tests.support.limits import HANG_S, rank_timeout_s, start_s
from tests.support.voices import metrics, prepared_folder, train_flags, weights

WHY_NOT = why_not()
pytestmark = [
    pytest.mark.ranks,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
]

UPDATES = 24
PATIENCE_S = 5
"""With the store of a machine that is gone."""
SLACK_S = 5
LEAVING_S = 30
"""Of a rank and its launcher, on a busy machine."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One prepared folder that both hosts see."""
    return prepared_folder(tmp_path_factory.mktemp("two-hosts"), clips=12)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with two_hosts() as hosts:
        yield hosts


def accelerate(host: int) -> list[str]:
    options = {"num_machines": 2, "num_processes": 2, "machine_rank": host, "main_process_ip": ADDRESSES[0]}
    return command_of("multi_node", *(word for name, value in options.items() for word in (f"--{name}", str(value))))


def start(hosts: Hosts, folder: Path, data: Path, **changes: object) -> list[Started]:
    folder.mkdir(exist_ok=True)
    settings = {"batch_size": 2, "max_updates": UPDATES, "save_every_updates": 4, "rank_timeout_s": rank_timeout_s()}
    flags = train_flags(folder, data_dir=data, runs_dir=folder / "training/runs", **settings, **changes)
    command = ["-m", "vits_trainer", "train_vits", *flags]
    return [hosts.start(host, [*accelerate(host), *command], ACCELERATE_USE_CPU="true") for host in (0, 1)]


def wait_for_update(folder: Path, started: list[Started], update: int) -> None:
    file = folder / "training/runs/run/metrics.jsonl"
    began_s = time.monotonic()
    while not file.is_file() or len(file.read_text().splitlines()) < update:
        assert all(host.process.poll() is None for host in started), started[0].said() + started[1].said()
        assert time.monotonic() - began_s < HANG_S
        time.sleep(0.02)


def finish(started: list[Started]) -> str:
    """What both said, once they have ended well."""
    codes = [host.wait(HANG_S) for host in started]
    said = "".join(host.said() for host in started)
    assert codes == [0, 0], said
    return said


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two hosts that is left alone."""
    folder = tmp_path_factory.mktemp("whole")
    with two_hosts() as hosts:
        said = finish(start(hosts, folder, data))
    assert re.search(r"weights of all 2 rank\(s\): sha256 [0-9a-f]{64}", said)
    return folder


ASKED_FOR = pytest.mark.skipif("TWO_HOSTS" not in os.environ, reason="a minute more each: TWO_HOSTS=1 asks for them")
GONE = "vits-trainer: rank 0's machine or its launcher is gone or cannot be reached"


@pytest.mark.parametrize(
    ("killed", "told"),
    [
        # As where a switch fails: both live on, each alone.
        pytest.param(None, {0: "vits-trainer: rank 1 died or ", 1: GONE}, id="the cable"),
        pytest.param(1, {0: "vits-trainer: rank 1 died or "}, id="host 1", marks=ASKED_FOR),
        pytest.param(0, {1: GONE}, id="host 0", marks=ASKED_FOR),
    ],
)
def test_host_that_is_cut_off_is_named_and_a_restart_ends_as_if_nothing_had_been(
    hosts: Hosts,
    data: Path,
    whole: Path,
    tmp_path: Path,
    killed: int | None,
    told: dict[int, str],
    record_property: Callable[[str, object], None],
) -> None:
    started = start(hosts, tmp_path / "cut", data)
    wait_for_update(tmp_path / "cut", started, 6)
    hosts.cut()
    if killed is not None:
        started[killed].kill()
    cut_s = time.monotonic()
    for host, words in told.items():
        assert started[host].wait(HANG_S) == 1, started[host].said()
        (message_s,) = (at_s for at_s, line in started[host].lines if line.startswith(words))
        assert message_s - cut_s < rank_timeout_s() + PATIENCE_S + SLACK_S * start_s(), started[host].said()
        ended_s = started[host].ended_s
        assert ended_s - message_s < LEAVING_S * start_s()
        record_property(f"host {host}: seconds from cut to message, to end", (message_s - cut_s, ended_s - cut_s))
    assert len(metrics(tmp_path / "cut")) < UPDATES

    hosts.join()
    said = finish(start(hosts, tmp_path / "cut", data, resume_from_checkpoint="auto"))
    assert re.search(r"Resumed from \S+/checkpoint-\d+ at update \d+", said)
    assert weights(tmp_path / "cut", UPDATES) == weights(whole, UPDATES)
    assert [line["update"] for line in metrics(tmp_path / "cut")] == list(range(1, UPDATES + 1))
