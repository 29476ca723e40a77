"""`mend demo` and `mend up` as real processes: right at the end, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

KEYS = {
    "version", "promoted", "edits", "edit_success", "generality", "locality", "rolled_back",
    "seconds", "metrics_url",
}  # fmt: skip
LIMIT_SECONDS = 150.0


def processes_of(home):
    """Every live process that was told of this home, or lives in it."""
    marker = str(home).encode()
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = (entry / "environ").read_bytes()
            command = (entry / "cmdline").read_bytes()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            if marker in environment + command and state != "Z" and int(entry.name) != os.getpid():
                found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


def wait_for(condition, what):
    deadline = time.monotonic() + LIMIT_SECONDS
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {LIMIT_SECONDS} s for {what}"
        time.sleep(0.02)


@pytest.fixture
def home(tmp_path):
    folder = tmp_path / "home"
    folder.mkdir()
    yield folder
    for process in processes_of(folder):
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGKILL)


@pytest.fixture
def start(home):
    """Starts `mend ARGS` with the home; its output goes to files."""
    started = []
    # Where the tests run in a shell's background, SIGINT is ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def run(*args, **settings):
        out, err = (home.parent / "out").open("wb"), (home.parent / "err").open("wb")
        environment = {**os.environ, "MEND_HOME": str(home), "MEND_THREADS": "1", **settings}
        environment.pop("DATABASE_URL", None)
        environment.pop("BROKER_URL", None)
        with out, err:
            process = subprocess.Popen(
                [sys.executable, "-m", "gateway.cli", *args],
                stdout=out,
                stderr=err,
                env=environment,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


def said(home, stream="err"):
    return (home.parent / stream).read_text()


def ended(process, home):
    wait_for(lambda: process.poll() is not None, f"the command to end; {said(home)}")
    return process.returncode


def nothing_left(home):
    wait_for(lambda: not processes_of(home), "every process to end")
    assert processes_of(home) == {}


def pids(home, words):
    return [pid for pid, command in processes_of(home).items() if words in command]


@pytest.mark.parametrize("kill", [False, True], ids=["undisturbed", "worker killed"])
def test_the_demo_ends_right_and_leaves_nothing(start, home, tiny, kill):
    demo = start("demo", "--json", *tiny)
    if kill:
        wait_for(lambda: "edit requests accepted" in said(home), "the submission")
        workers = pids(home, "spawn_main") + pids(home, "-m workers worker")
        assert workers
        for process in workers:
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
    assert ended(demo, home) == 0, said(home)
    result = json.loads(said(home, "out").splitlines()[-1])
    assert set(result) >= KEYS
    assert result["edits"] == 6
    assert result["version"].startswith("sha256:")
    assert result["promoted"]
    assert result["rolled_back"]
    assert sum(result["states"].values()) == 6
    assert not {"queued", "claimed", "submitted"} & set(result["states"])
    nothing_left(home)
    assert list((home / "demo").glob("run-*")) == []


def test_edits_that_came_in_two_versions_are_all_rolled_back(start, home, tiny):
    assert ended(start("demo", "--json", *tiny, MEND_BATCH_EDITS="3"), home) == 0, said(home)
    result = json.loads(said(home, "out").splitlines()[-1])
    assert result["promoted"]
    assert result["number"] >= 2
    assert result["rolled_back"]
    assert "mend rollback 0" in said(home)


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("starting", signal.SIGINT),
        ("starting", signal.SIGKILL),
        ("registering", signal.SIGINT),
        ("registering", signal.SIGTERM),
        ("registering", signal.SIGKILL),
    ],
)
def test_a_stopped_demo_leaves_nothing(start, home, tiny, moment, number):
    demo = start("demo", *tiny)
    if moment == "starting":
        wait_for(lambda: pids(home, "postgres -D"), "Postgres to start")
    else:
        wait_for(lambda: "mend model register" in said(home, "out"), "the service to be up")
    demo.send_signal(number)
    assert ended(demo, home) != 0
    assert "Traceback" not in said(home)
    nothing_left(home)


def test_up_status_down_and_a_killed_supervisor(start, home):
    assert ended(start("up", "--metrics-port", "0", "--json"), home) == 0, said(home)
    service = json.loads(said(home, "out"))
    assert ended(start("up", "--workers", "3"), home) == 0
    assert "up already" in said(home, "out")
    assert "not applied: --workers 3" in said(home, "out")
    # A dead part comes back by itself.
    exporter = service["children"]["exporter"]
    os.kill(exporter, signal.SIGKILL)
    info = home / "run" / "service.json"
    wait_for(
        lambda: json.loads(info.read_text())["children"]["exporter"] not in (0, exporter),
        "the exporter to be restarted",
    )
    assert ended(start("status", "--json"), home) == 0
    assert json.loads(said(home, "out"))["service"]["restarts"]["exporter"] >= 1
    os.kill(service["pid"], signal.SIGKILL)
    nothing_left(home)
    # What a killed service leaves on disk does not hinder the next one.
    assert ended(start("up", "--metrics-port", "0"), home) == 0, said(home)
    assert ended(start("down"), home) == 0
    nothing_left(home)
