"""A real HTTP server that speaks OpenAI's protocol, asked through the real client."""

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.openai_server import OpenAIServer
from support.tiny import tiny_tokenizer

from hf_lifealign.self_align.generators import Call, CallCache, Generation, GeneratorError, Sampling, ServerGenerator
from hf_lifealign.self_align.generators.protocol import plan_calls


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    found = OpenAIServer()
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()


def asks(server: OpenAIServer, **given: Any) -> ServerGenerator:
    return ServerGenerator("m", server.url, **given)


CALL = Call(("Hi",), Sampling(0.5, 0.9, 30, stop=("###",)), 2**40 + 3)


def test_chat_and_plain_completions(server: OpenAIServer) -> None:
    assert asks(server).generate(CALL) == [Generation("You said: Hi ", True, 7)]
    assert asks(server, chat=False).generate(CALL) == [Generation("You said: Hi ", True, 7)]
    chat, plain = server.asked
    assert (chat["path"], plain["path"]) == ("/v1/chat/completions", "/v1/completions")
    for body in server.asked:
        assert (body["model"], body["temperature"], body["top_p"], body["max_tokens"]) == ("m", 0.5, 0.9, 30)
        assert body["stop"] == ["###"]
        assert body["seed"] == 3 % 2**31
    assert asks(server).generate(Call(("long",), Sampling(), 0)) == [
        Generation("You said: long ### and more", False, 7)
    ]


def test_more_stop_strings_than_servers_take(server: OpenAIServer) -> None:
    sampling = Sampling(stop=("a1", "a2", "a3", "a4", "said"))
    assert asks(server).generate(Call(("Hi",), sampling, 0)) == [Generation("You ", True, 7)]
    assert len(server.asked[0]["stop"]) == 4


def test_failures_that_pass_are_tried_again(server: OpenAIServer) -> None:
    server.fail = [500, 429, 503]
    assert asks(server).generate(CALL)[0].finished
    assert len(server.asked) == 4


@pytest.mark.parametrize(
    ("status", "times", "told"),
    [(500, 3, "start again later"), (401, 1, "OPENAI_API_KEY"), (404, 1, "name of the model"), (400, 1, "status 400")],
)
def test_failures_that_stay(server: OpenAIServer, status: int, times: int, told: str) -> None:
    server.fail = [status] * 9
    with pytest.raises(GeneratorError, match=told):
        asks(server, max_retries=2).generate(CALL)
    assert len(server.asked) == times


@pytest.mark.parametrize("odd", [{"hello": 1}, {"choices": []}, {"choices": [{"index": 0}]}, [1]])
def test_an_answer_of_another_form(server: OpenAIServer, odd: Any) -> None:
    server.odd = odd
    with pytest.raises(GeneratorError, match=r"not OpenAI's\. Check base_url"):
        asks(server).generate(CALL)


def test_no_server(server: OpenAIServer) -> None:
    generator = ServerGenerator("m", "http://127.0.0.1:9/v1", max_retries=0)
    with pytest.raises(GeneratorError, match="whether the server runs"):
        generator.generate(CALL)


def test_the_key_is_written_nowhere(server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "very-secret")
    generator = asks(server)
    list(CallCache(generator, tmp_path).run([CALL]))
    assert server.keys == ["Bearer very-secret"]
    assert "very-secret" not in generator.identity()
    assert all("very-secret" not in file.read_text() for file in tmp_path.rglob("*.json"))
    monkeypatch.delenv("OPENAI_API_KEY")
    asks(server).generate(CALL)
    assert server.keys[1] == "Bearer none"
    with pytest.raises(ValueError, match="neither a base_url nor a key"):
        ServerGenerator("m")


def test_as_many_requests_at_a_time_as_allowed(server: OpenAIServer, tmp_path: Path) -> None:
    server.hold = 0.05
    cache = CallCache(asks(server, concurrency=3), tmp_path)
    plan = plan_calls([f"prompt {i}" for i in range(12)], Sampling(), 0, 1)
    texts = [found[0].text for found in cache.run(plan)]
    assert texts == [f"You said: prompt {i} ### and more" for i in range(12)]
    assert 1 < server.most <= 3
    again = CallCache(asks(server), tmp_path)
    assert [found[0].text for found in again.run(plan)] == texts
    assert len(server.asked) == 12
    other = CallCache(asks(server, revision="2"), tmp_path)
    list(other.run(plan[:1]))
    assert other.made == 1


def test_a_server_that_dies_on_the_way(server: OpenAIServer, tmp_path: Path) -> None:
    plan = plan_calls([f"prompt {i}" for i in range(6)], Sampling(), 0, 1)
    server.fail = [200, 200, 200, 500]
    cache = CallCache(asks(server, concurrency=1, max_retries=0), tmp_path)
    with pytest.raises(GeneratorError, match="are kept"):
        list(cache.run(plan))
    assert len(list(cache.run(plan))) == 6
    assert len(server.asked) == 4 + 3


def test_what_cannot_fit_is_found_before(
    server: OpenAIServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        generator = asks(server)
        for _ in range(2):
            generator.refuse_too_long(["a" * 10_000], Sampling())
    assert caplog.text.count("is not known before they are sent") == 1
    tiny_tokenizer().save_pretrained(tmp_path)
    counting = asks(server, tokenizer=str(tmp_path), context=100)
    counting.refuse_too_long(["a" * 60], Sampling(max_new_tokens=40))
    with pytest.raises(ValueError, match="61 tokens, its answer up to 40, and 'm' reads 100"):
        counting.refuse_too_long(["a" * 61], Sampling(max_new_tokens=40))
    assert not server.asked


def test_settings_that_cannot_work(server: OpenAIServer) -> None:
    for given in ({"concurrency": 0}, {"timeout": 0}, {"max_retries": -1}):
        with pytest.raises(ValueError, match="Set at least 1, more than 0 seconds"):
            asks(server, **given)
    with pytest.raises(ValueError, match="which servers do not know"):
        asks(server).generate(Call(("Hi",), Sampling(no_repeat_ngram_size=3), 0))
