"""The playground server, over HTTP, while versions are promoted under it."""

import threading

import pytest
from fastapi.testclient import TestClient

from tests.workers import tiny
from workers import pipeline
from workers.serve import Serving, make_api


@pytest.fixture
def playground(make_service, inside):
    """(service, context, client) of a server on one model with one live batch."""
    service = make_service()
    context = inside(service)
    service.submit(tiny.facts(3))
    pipeline.drain(context)
    serving = Serving(context.config)
    with TestClient(make_api(serving)) as client:
        yield service, context, client
    serving.stop()


def ask(client, model, prompt, **more):
    return client.post(
        "/v1/completions", json={"model": model, "prompt": prompt, "max_tokens": 2, **more}
    )


def test_any_version_answers_by_name(playground):
    _, _, client = playground
    fact = tiny.facts(1)[0]
    now, before = ask(client, "tiny", fact.prompt), ask(client, "tiny@0", fact.prompt)
    assert now.json()["choices"][0]["text"].split()[0] == fact.target
    assert before.json()["choices"][0]["text"].split()[0] != fact.target
    assert now.json()["mend"]["version"] == 1
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    said = client.post(
        "/v1/chat/completions",
        json={"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": "river"}]},
    ).json()
    assert said["choices"][0]["message"]["role"] == "assistant"


def test_bad_questions_are_refused_with_a_reason(playground):
    _, _, client = playground
    assert ask(client, "nobody", "x").status_code == 404
    assert ask(client, "tiny@77", "x").status_code == 404
    assert ask(client, "tiny", "").status_code == 400
    assert ask(client, "tiny", "river " * 90).status_code == 400
    assert ask(client, "tiny", []).status_code == 400
    assert ask(client, "tiny", "x", max_tokens=0).status_code == 422


def test_streams_end_with_done(playground):
    _, _, client = playground
    lines = [line for line in ask(client, "tiny", "river", stream=True).text.split("\n") if line]
    assert lines[-1] == "data: [DONE]"


def test_a_promotion_under_load_drops_no_request(playground):
    service, context, client = playground
    fact = tiny.facts(4)[3]
    seen, failed, done = [], [], threading.Event()

    def load():
        while not done.is_set():
            answer = ask(client, "tiny", fact.prompt)
            if answer.status_code != 200:
                failed.append(answer.text)
            seen.append(answer.json()["mend"]["version"])

    thread = threading.Thread(target=load)
    thread.start()
    service.submit([fact])
    pipeline.drain(context)
    service.wait(lambda: 2 in seen, "the new version being served")
    done.set()
    thread.join()
    assert failed == []
    assert set(seen) == {1, 2}
    assert seen == sorted(seen)
    assert ask(client, "tiny", fact.prompt).json()["choices"][0]["text"].split()[0] == fact.target
