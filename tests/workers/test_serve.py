"""The playground server, over HTTP, while versions are promoted under it."""

import json
import threading

import pytest
from fastapi.testclient import TestClient

from mend_core.models.sample import Sampling
from tests.workers import tiny
from workers import pipeline
from workers.openai import make_api
from workers.serving import Serving


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
    assert "1 to 64" in ask(client, "tiny", ["x"] * 65).json()["error"]["message"]
    assert ask(client, "nobody", "x").json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("more", "param", "says"),
    [
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": "warm"}, "temperature", "number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"stop": ""}, "stop", "empty"),
        ({"n": 2}, None, "n is not served here"),
        ({"logprobs": 5}, None, "logprobs is not served here"),
    ],
)
def test_a_body_that_breaks_a_rule_is_a_400_that_names_it(playground, more, param, says):
    _, _, client = playground
    for stream in (False, True):
        answer = ask(client, "tiny", "river", stream=stream, **more)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param
        assert says in error["message"]


def test_a_bad_prompt_is_refused_before_a_stream_begins(playground):
    _, _, client = playground
    answer = ask(client, "tiny", "river " * 90, stream=True)
    assert answer.status_code == 400
    assert "tokens" in answer.json()["error"]["message"]


def test_sampling_follows_its_seed_and_greedy_needs_none(playground):
    _, _, client = playground

    def say(**more):
        body = ask(client, "tiny", "The river in", max_tokens=8, **more).json()
        return body["choices"][0]["text"]

    assert say() == say(temperature=0) == say(temperature=0, seed=3)
    assert say(temperature=1.5, seed=3) == say(temperature=1.5, seed=3)
    assert len({say(temperature=2, seed=seed) for seed in range(6)}) > 1
    assert say(temperature=2, top_p=1e-6, seed=1) == say(), "a tiny nucleus holds the likeliest"


def test_an_answer_ends_at_its_length_or_before_a_stop_text(playground):
    _, _, client = playground
    whole = ask(client, "tiny", "The river in", max_tokens=6).json()
    text, usage = whole["choices"][0]["text"], whole["usage"]
    assert whole["choices"][0]["finish_reason"] == "length"
    assert usage["prompt_tokens"] == 3
    assert usage["completion_tokens"] == 6
    word = text.split()[2]
    cut = ask(client, "tiny", "The river in", max_tokens=6, stop=[word, "never"]).json()
    assert cut["choices"][0] == {
        "index": 0,
        "text": text[: text.index(word)],
        "finish_reason": "stop",
        "logprobs": None,
    }


def events(answer):
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.mark.parametrize("more", [{}, {"stop": "city"}, {"temperature": 1.5, "seed": 9}])
def test_a_stream_says_the_same_in_pieces(playground, more):
    _, _, client = playground
    whole = ask(client, "tiny", ["The river in", "Name"], **{"max_tokens": 6, **more}).json()
    found = events(
        ask(
            client,
            "tiny",
            ["The river in", "Name"],
            **{"max_tokens": 6, "stream": True, "stream_options": {"include_usage": True}, **more},
        )
    )
    assert found[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        parts = [e["choices"][0] for e in found[:-1] if e["choices"][0]["index"] == choice["index"]]
        assert "".join(p["text"] for p in parts) == choice["text"]
        assert [p["finish_reason"] for p in parts][-1] == choice["finish_reason"]
        assert not any(p["finish_reason"] for p in parts[:-1])


def test_a_chat_streams_deltas(playground):
    _, _, client = playground
    body = {
        "model": "tiny",
        "max_completion_tokens": 4,
        "messages": [{"role": "user", "content": "river"}],
    }
    whole = client.post("/v1/chat/completions", json=body).json()
    found = events(client.post("/v1/chat/completions", json=body | {"stream": True}))
    assert found[0]["choices"][0]["delta"]["role"] == "assistant"
    assert found[0]["object"] == "chat.completion.chunk"
    said = "".join(e["choices"][0]["delta"].get("content", "") for e in found)
    assert said.strip() == whole["choices"][0]["message"]["content"]
    assert found[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]


def test_a_reader_that_goes_away_frees_the_model(playground):
    service, context, _ = playground
    serving = Serving(context.config)
    target = serving.target("tiny")
    pieces = serving.pieces(target, ["The river in"], max_new_tokens=50, sampling=Sampling())
    next(pieces)
    pieces.close()
    done = serving.complete(target, ["Name"], max_new_tokens=1, sampling=Sampling())
    assert done[0].said == 1
    assert service.model.name == "tiny"
    serving.stop()


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
