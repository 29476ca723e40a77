"""What happens outside when production moves: real HTTP receivers, real folders."""

import hashlib
import hmac
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ledger import aliases, jobs, models, versions
from ledger.states import JobState
from tests.workers import tiny
from workers import hooks, pipeline


class Receiver:
    """A server that remembers what it was sent, and fails as often as it is told to."""

    def __init__(self, failures=0):
        seen = self.seen = []
        left = [failures]

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                seen.append((self.path, dict(self.headers), body))
                status = 503 if left[0] > 0 else 200
                left[0] -= 1
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def receive():
    made = []

    def make(**options):
        made.append(Receiver(**options))
        return made[-1]

    yield make
    for receiver in made:
        receiver.server.shutdown()
        receiver.server.server_close()


@pytest.fixture
def no_pauses(monkeypatch):
    monkeypatch.setattr(hooks, "FIRST_PAUSE_SECONDS", 0.0)


def hook_jobs(service):
    return [job for job in service.do(jobs.list_jobs) if job.kind == "hook"]


def test_a_promotion_calls_the_webhook_signed_and_tries_again(
    make_service, inside, receive, monkeypatch, no_pauses
):
    monkeypatch.setenv("MEND_HOOK_SECRET", "s3cret")
    receiver = receive(failures=2)
    service = make_service(settings={"hooks": [{"kind": "webhook", "url": receiver.url + "/in"}]})
    context = inside(service)
    service.submit(tiny.facts(2))
    pipeline.drain(context)
    for _ in range(2):
        pipeline.drain(context, sweep_first=True)
    assert len(receiver.seen) == 3
    path, headers, body = receiver.seen[-1]
    assert path == "/in"
    event = json.loads(body)
    assert (event["event"], event["alias"], event["from"], event["to"]) == (
        "alias.moved",
        "production",
        0,
        1,
    )
    stamp, _, mac = headers[hooks.SIGNATURE_HEADER].partition(",v1=")
    expected = hmac.new(b"s3cret", f"{stamp[2:]}.".encode() + body, hashlib.sha256).hexdigest()
    assert hmac.compare_digest(mac, expected)
    pipeline.drain(context, sweep_first=True)
    assert len(receiver.seen) == 3  # one move, one delivery


def test_a_rollback_by_a_person_is_delivered_at_the_next_sweep(make_service, inside, receive):
    receiver = receive()
    service = make_service(
        settings={
            "hooks": [
                {"kind": "folder", "format": "peft"},
                {"kind": "vllm", "url": receiver.url, "name": "facts"},
            ]
        }
    )
    context = inside(service)
    service.submit(tiny.facts(2))
    pipeline.drain(context)
    link = context.config.aliases / "tiny" / "production"
    assert (link / "adapter_config.json").exists()
    [(path, _, body)] = receiver.seen
    assert path == "/v1/load_lora_adapter"
    assert json.loads(body)["lora_name"] == "facts"
    service.do(lambda c: aliases.rollback(c, service.model.id, actor="ann", reason="look"))
    pipeline.drain(context, sweep_first=True)
    assert receiver.seen[-1][0] == "/v1/unload_lora_adapter"


def test_a_hook_nobody_takes_fails_its_job_and_says_so(make_service, inside, receive, monkeypatch):
    monkeypatch.setenv("MEND_HOOK_SECRET", "s3cret")
    receiver = receive(failures=99)
    service = make_service(settings={"hooks": [{"kind": "webhook", "url": receiver.url}]})
    context = inside(service)
    service.submit(tiny.facts(1))
    pipeline.drain(context)
    [job] = hook_jobs(service)
    assert job.state is JobState.FAILED
    assert receiver.url in job.error
    assert "503" in job.error


def test_a_receiver_that_was_away_is_told_later_and_a_dead_one_not_for_ever(
    make_service, inside, receive, monkeypatch
):
    monkeypatch.setenv("MEND_HOOK_SECRET", "s3cret")
    monkeypatch.setattr(hooks, "TRIES", 3)
    monkeypatch.setattr(hooks, "FIRST_PAUSE_SECONDS", 3600.0)
    receiver = receive(failures=2)
    service = make_service(settings={"hooks": [{"kind": "webhook", "url": receiver.url}]})
    context = inside(service)
    service.submit(tiny.facts(1))
    pipeline.drain(context)
    pipeline.drain(context, sweep_first=True)
    assert len(receiver.seen) == 1  # it is not time yet
    monkeypatch.setattr(hooks, "FIRST_PAUSE_SECONDS", 0.0)
    for _ in range(3):
        pipeline.drain(context, sweep_first=True)
    assert len(receiver.seen) == 3
    states = [job.state for job in hook_jobs(service)]
    assert states == [JobState.DONE, JobState.FAILED, JobState.FAILED]
    dead = receive(failures=99)
    service.do(
        lambda c: models.configure(
            c,
            service.model.id,
            actor="op",
            reason="moved",
            settings={"hooks": [{"kind": "webhook", "url": dead.url}]},
        )
    )
    service.do(lambda c: aliases.rollback(c, service.model.id, actor="ann", reason="look"))
    for _ in range(5):
        pipeline.drain(context, sweep_first=True)
    assert len(dead.seen) == hooks.TRIES


def test_a_receiver_that_never_answers_costs_one_short_wait_and_others_are_told_once(
    make_service, inside, receive, monkeypatch, no_pauses
):
    monkeypatch.setenv("MEND_HOOK_SECRET", "s3cret")
    monkeypatch.setattr(hooks, "TIMEOUT_SECONDS", 0.2)
    receiver = receive()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(0.0)
        urls = [f"http://127.0.0.1:{silent.getsockname()[1]}/", receiver.url]
        service = make_service(
            settings={"hooks": [{"kind": "webhook", "url": url} for url in urls]}
        )
        context = inside(service)
        service.submit(tiny.facts(1))
        pipeline.drain(context)
        assert {job.state for job in hook_jobs(service)} == {JobState.DONE, JobState.FAILED}
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()  # nobody came a second time
        pipeline.drain(context, sweep_first=True)
    assert len(receiver.seen) == 1
    assert [job.state for job in hook_jobs(service)].count(JobState.FAILED) == 2


def test_the_first_move_of_an_alias_of_the_users_own_is_told(make_service, inside):
    hook = {"kind": "folder", "format": "peft", "aliases": ["staging"]}
    service = make_service(settings={"hooks": [hook]})
    context = inside(service)
    service.submit(tiny.facts(1))
    pipeline.drain(context, sweep_first=True)
    service.do(
        lambda c: aliases.move(
            c, service.model.id, "staging", versions.find(c, service.model.id, 1).id,
            actor="ann", reason="try it",
        )
    )  # fmt: skip
    pipeline.drain(context, sweep_first=True)
    assert (context.config.aliases / "tiny" / "staging" / "adapter_config.json").exists()
    assert not (context.config.aliases / "tiny" / "production").exists()


def test_exports_that_no_alias_needs_are_collected(make_service, inside):
    service = make_service(settings={"hooks": [{"kind": "folder", "format": "merged"}]})
    context = inside(service)
    for start in range(3):
        service.submit(tiny.facts(1, start=start))
        pipeline.drain(context)
        pipeline.drain(context, sweep_first=True)
    exports = context.config.home / "exports"
    link = context.config.aliases / "tiny" / "production"
    assert len(list(exports.iterdir())) == 3

    def collect(grace):
        payload = {"keep_last": 3, "grace_seconds": grace}
        job = service.do(
            lambda c: jobs.submit(c, "collect", payload, model_id=service.model.id, actor="op")
        )
        pipeline.drain(context)
        return service.do(lambda c: jobs.get(c, job.id)).result["exports"]

    assert collect(3600.0) == 0
    assert collect(0.0) == 2
    assert [folder.resolve() for folder in exports.iterdir()] == [link.resolve()]
    assert (link / "config.json").exists()
    service.do(lambda c: aliases.rollback(c, service.model.id, actor="ann", reason="look"))
    pipeline.drain(context, sweep_first=True)
    assert (link / "config.json").exists()
    assert len(list(exports.iterdir())) == 2


def test_a_link_is_swapped_without_a_moment_of_absence(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    link = hooks.swap_alias(tmp_path / "aliases", "production", one)
    assert link.resolve() == one
    stop, missing = threading.Event(), []

    def watch():
        while not stop.is_set():
            if not link.exists():
                missing.append(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(50):
        hooks.swap_alias(tmp_path / "aliases", "production", two)
        hooks.swap_alias(tmp_path / "aliases", "production", one)
    stop.set()
    watcher.join()
    assert not missing
    assert sorted(p.name for p in (tmp_path / "aliases").iterdir()) == ["production"]
