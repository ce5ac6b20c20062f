"""`endpoint.py`: calls to a local server that misbehaves. No answered call is repeated, and no key is written."""

import json
import logging
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from s1jax.runtime.chat_protocol import Prompt, Reply
from s1jax.runtime.endpoint import Endpoint, EndpointLimits, Failure
from s1jax.runtime.errors import UserError

QUICK = EndpointLimits(max_concurrent=4, timeout_seconds=5, max_tries=3)


def question(body):
    return body["messages"][-1]["content"]


def ask_all(url, cache, prompts, limits=QUICK, model="m", **sampling):
    with Endpoint(url, model, cache, limits, sampling or None) as endpoint:
        return dict(endpoint.ask_all([prompt if isinstance(prompt, Prompt) else Prompt(prompt) for prompt in prompts]))


def test_every_prompt_has_its_own_reply(serve, tmp_path):
    server = serve(lambda body: question(body).upper())
    texts = [f"question {i}" for i in range(20)]
    replies = ask_all(server.url, tmp_path / "c", texts)
    assert [replies[i].text for i in range(20)] == [text.upper() for text in texts]
    assert replies[0] == Reply("QUESTION 0", "", "stop", 10, 5)
    path, _, body = server.requests[0]
    assert path == "/v1/chat/completions" and body["model"] == "m" and body["temperature"] == 0


def test_calls_run_at_once_up_to_the_limit(serve, tmp_path):
    running, most, together = set(), [], threading.Barrier(4, timeout=20)

    def reply(body):
        running.add(question(body))
        most.append(len(running))
        together.wait()
        running.discard(question(body))
        return "x"

    replies = ask_all(serve(reply).url, tmp_path / "c", map(str, range(12)))
    assert max(most) == 4 and all(reply.text == "x" for reply in replies.values())


def test_requests_begin_no_closer_than_the_number_per_minute_allows_further_tries_included(
    serve, tmp_path, monkeypatch
):
    clock, begins = [100.0], []

    def reply(body):
        begins.append(clock[0])
        return 503 if len(begins) % 2 else "x"

    limits = EndpointLimits(max_concurrent=1, requests_per_minute=30)
    monkeypatch.setattr("s1jax.runtime.endpoint.time.monotonic", lambda: clock[0])
    with Endpoint(serve(reply).url, "m", tmp_path / "c", limits) as endpoint:
        monkeypatch.setattr(endpoint._stopped, "wait", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
        for text in "abc":
            assert endpoint.ask(Prompt(text)).text == "x"
        clock[0] += 60
        endpoint.ask(Prompt("d"))
    assert begins == [100, 102, 104, 106, 108, 110, 170, 172]


def close(handler):
    handler.close_connection = True
    handler.connection.close()


def cut(handler):
    handler.send(b'{"choices": [{"mess', length=500)


FAULTS = {
    "HTTP 429": 429, "HTTP 500": 500, "HTTP 503": 503, "truncated": b'{"choices": [{"message": {"content": "ha',
    "cut": cut, "empty": "", "html": b"<html>Bad gateway</html>", "close": close, "no choices": b'{"choices": []}',
    "list": b"[1]", "null": b"null", "number": b'{"choices": [{"message": {"content": 7}}]}', "nothing": b"",
    "not utf-8": b"\xff\xfe\x00",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_call_that_meets_a_fault_is_tried_again(serve, tmp_path, fault):
    faults = [FAULTS[fault]] * 2
    server = serve(lambda body: faults.pop() if faults else "fine")
    assert ask_all(server.url, tmp_path / "c", ["a"])[0].text == "fine"
    assert len(server.requests) == 3


@pytest.mark.parametrize("fault", FAULTS)
def test_a_prompt_that_always_fails_has_a_reason_and_the_others_go_on(serve, tmp_path, fault):
    server = serve(lambda body: FAULTS[fault] if question(body) == "bad" else "fine")
    replies = ask_all(server.url, tmp_path / "c", ["one", "bad", "two", "three"])
    assert isinstance(replies[1], Failure) and replies[1].reason
    assert [replies[i].text for i in (0, 2, 3)] == ["fine"] * 3
    counts = Counter(question(body) for *_, body in server.requests)
    assert counts == {"one": 1, "bad": 3, "two": 1, "three": 1}
    # A later run asks again for the failed one alone.
    mended = serve(lambda body: "mended")
    again = ask_all(mended.url, tmp_path / "c", ["one", "bad", "two", "three"])
    assert [again[i].text for i in range(4)] == ["fine", "mended", "fine", "fine"]
    assert [question(body) for *_, body in mended.requests] == ["bad"]


def test_a_server_that_takes_too_long_is_asked_again(serve, tmp_path):
    waits = [1.0]

    def reply(body):
        time.sleep(waits.pop() if waits else 0)
        return "fine"

    server = serve(reply)
    limits = EndpointLimits(timeout_seconds=0.3, max_tries=2)
    assert ask_all(server.url, tmp_path / "c", ["a"], limits)[0].text == "fine"
    assert len(server.requests) == 2
    with (
        Endpoint(serve(lambda body: time.sleep(1)).url, "m", tmp_path / "c", limits) as endpoint,
    ):
        assert endpoint.ask(Prompt("b")) == Failure("no reply within 0.3 seconds", "away")


@pytest.mark.parametrize(("header", "seconds"), [("7", 7), ("0.5", 1), ("1e9", 600), ("-3", 1), ("nonsense", 1)])
def test_the_pause_is_what_the_server_asks_for_and_grows_without_that(serve, tmp_path, monkeypatch, header, seconds):
    server = serve(lambda body: lambda handler: handler.send(b"{}", 429, Retry_After=header))
    monkeypatch.setattr("s1jax.runtime.endpoint._PAUSES", (1, 2))
    pauses = []
    with Endpoint(server.url, "m", tmp_path / "c", EndpointLimits(max_tries=4)) as endpoint:
        monkeypatch.setattr(endpoint._stopped, "wait", pauses.append)
        assert endpoint.ask(Prompt("a")).kind == "away"
    assert pauses == [max(seconds, least) for least in (1, 2, 2)]


def test_a_prompt_that_the_model_does_not_take_is_not_tried_again(serve, tmp_path):
    def reply(body):
        error = json.dumps({"error": {"message": "too\nlong"}}).encode()
        return (lambda handler: handler.send(error, 400)) if question(body) == "long" else "fine"

    server = serve(reply)
    replies = ask_all(server.url, tmp_path / "c", ["a", "long"])
    assert replies[1] == Failure("HTTP 400 Bad Request: too long", "refused") and len(server.requests) == 2


@pytest.mark.parametrize("state", [401, 403, 404])
def test_a_wrong_key_or_address_stops_with_one_error(serve, tmp_path, state):
    server = serve(lambda body: state)
    with pytest.raises(UserError, match=f"the endpoint at {server.url} did not answer: HTTP {state} .*are in"):
        ask_all(server.url, tmp_path / "c", map(str, range(50)))
    assert len(server.requests) <= 8


@pytest.mark.parametrize("num", [1, 3, 50])
def test_an_address_where_nobody_answers_stops_with_one_error(serve, tmp_path, num):
    with pytest.raises(UserError, match=r"the endpoint at http://127\.0\.0\.1:1/v1 did not answer: .*refused"):
        ask_all("http://127.0.0.1:1/v1", tmp_path / "c", map(str, range(num)))
    server = serve(lambda body: b"<html>")
    with pytest.raises(UserError, match="not one of the OpenAI protocol"):
        ask_all(server.url, tmp_path / "c", map(str, range(num)))
    assert len(server.requests) <= 3 * 12


def test_a_server_that_goes_away_stops_the_run_and_keeps_its_replies(serve, tmp_path):
    left = list(range(10))
    server = serve(lambda body: f"fine {question(body)}" if left and left.pop() >= 0 else 503)
    with pytest.raises(UserError, match="HTTP 503"):
        ask_all(server.url, tmp_path / "c", map(str, range(40)))
    assert len(server.requests) < 10 + 3 * 12
    # Replies from the file are no sign of life.
    with pytest.raises(UserError, match="HTTP 503"):
        ask_all(server.url, tmp_path / "c", [str(i // 2 if i % 2 else i // 2 + 10) for i in range(20)])
    mended = serve(lambda body: f"fine {question(body)}")
    replies = ask_all(mended.url, tmp_path / "c", map(str, range(40)))
    assert [replies[i].text for i in range(40)] == [f"fine {i}" for i in range(40)] and len(mended.requests) == 30


def test_a_reply_is_found_by_model_messages_sampling_and_sample(serve, tmp_path):
    server = serve(lambda body: str(len(server.requests)))

    def ask(prompt, model="m", **sampling):
        return ask_all(server.url, tmp_path / "c", [prompt], model=model, **sampling)[0].text

    first = ask(Prompt("a"), temperature=1, seed=0)
    others = [
        ask(Prompt("b"), temperature=1, seed=0), ask(Prompt("a", "s"), temperature=1, seed=0),
        ask(Prompt("a", sample=1), temperature=1, seed=0), ask(Prompt("a"), temperature=0.5, seed=0),
        ask(Prompt("a"), "n", temperature=1, seed=0),
    ]  # fmt: skip
    assert len({first, *others}) == 6 and ask(Prompt("a"), temperature=1, seed=0) == first
    bodies = [body for *_, body in server.requests]
    assert [body["seed"] for body in bodies] == [0, 0, 0, 1, 0, 0]
    assert bodies[2]["messages"] == [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]


def test_a_file_that_was_torn_by_a_kill_is_mended_and_only_the_torn_call_is_repeated(serve, tmp_path):
    server, cache = serve(lambda body: "é" + question(body)), tmp_path / "c"
    ask_all(server.url, cache, "abc")
    for cut_bytes, repeated in ((5, 1), (1, 0)):
        cache.write_bytes(cache.read_bytes()[:-cut_bytes])
        before = len(server.requests)
        replies = ask_all(server.url, cache, "abc" + "de"[:repeated])
        assert [replies[i].text for i in range(3)] == ["éa", "éb", "éc"]
        assert len(server.requests) - before == 2 * repeated
    replies = ask_all(server.url, cache, "abcdx")
    assert [replies[i].text for i in range(5)] == ["éa", "éb", "éc", "éd", "éx"]


@pytest.mark.parametrize(
    ("message", "text", "reasoning"),
    [
        ({"content": "4", "reasoning_content": "2 + 2"}, "4", "2 + 2"),
        ({"content": "4", "reasoning": "2 + 2"}, "4", "2 + 2"),
        ({"content": "<think>\n2 + 2\n</think>\n\n4"}, "4", "2 + 2"),
        ({"content": "2 + 2</think>4"}, "4", "2 + 2"),
        ({"content": "<think>2 + 2 is", "finish_reason": "length"}, "", "2 + 2 is"),
        ({"content": None, "finish_reason": "length"}, "", ""),
        ({"content": None, "reasoning": "2 + 2 is", "finish_reason": "length"}, "", "2 + 2 is"),
        ({"content": "a <think> b"}, "a <think> b", ""),
    ],
)
def test_thinking_is_a_field_of_the_message_or_stands_in_tags(serve, tmp_path, message, text, reasoning):
    reply = ask_all(serve(lambda body: dict(message)).url, tmp_path / "c", ["a"])[0]
    assert (reply.text, reply.reasoning, reply.finish_reason) == (text, reasoning, message.get("finish_reason", "stop"))


def test_the_key_is_sent_and_neither_written_nor_shown_if_the_server_repeats_it(serve, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret/key7\n")
    error = json.dumps(
        {"error": {"message": "the key sk-secret/key7 is wrong" + 20 * " sk-secret/key7" + "!" * 500}}
    ).encode()

    def reply(body):
        states = {"400": 400, "401": 401, "500": 500}
        if state := states.get(question(body)):
            return lambda handler: handler.send(error, state)
        return {"content": "you sent sk-secret/key7", "reasoning": "sk-secret/key7?"}

    server = serve(reply)
    replies = ask_all(server.url, tmp_path / "c", ["a", "400", "500"])
    assert replies[0].text == "you sent [OPENAI_API_KEY]"
    assert all("the key [OPENAI_API_KEY] is wrong" in replies[i].reason for i in (1, 2))
    with pytest.raises(UserError) as raised:
        ask_all(server.url, tmp_path / "c", ["401"])
    assert "[OPENAI_API_KEY] is wrong" in str(raised.value) and raised.value.__cause__ is None
    assert all(authorization == "Bearer sk-secret/key7" for _, authorization, _ in server.requests)
    for text in ((tmp_path / "c").read_text(), caplog.text, repr(replies), str(raised.value)):
        assert "secret" not in text


def test_bad_keys_addresses_limits_and_files_are_refused(tmp_path, monkeypatch):
    for url in ("localhost:8000", "http://[x", "http://a b/v1", "ftp://a/v1", "http://", "http://me:word@host/v1"):
        with pytest.raises(UserError, match=r"endpoint is .*must be an address such as"):
            Endpoint(url, "m", tmp_path / "c")
    for name, value in (("max_concurrent", 0), ("requests_per_minute", -1), ("timeout_seconds", 0), ("max_tries", 0)):
        with pytest.raises(UserError, match=name):
            EndpointLimits(**{name: value})
    (tmp_path / "rows").write_text('{"question": "a"}\n')
    with pytest.raises(UserError, match="holds other rows than replies"), Endpoint("http://a", "m", tmp_path / "rows"):
        pass
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\nX: y")
    with pytest.raises(UserError, match="OPENAI_API_KEY holds characters that no key has") as raised:
        Endpoint("http://a", "m", tmp_path / "c")
    assert "secret" not in str(raised.value)


def test_tokens_and_their_price_are_counted_with_those_of_failed_tries(serve, tmp_path, caplog):
    caplog.set_level(logging.INFO, "s1jax")
    replies = ["", "fine", "fine"]
    limits = EndpointLimits(dollars_per_million_input=1e6, dollars_per_million_output=2e6)
    server = serve(lambda body: replies.pop(0))
    ask_all(server.url, tmp_path / "c", "ab", limits)
    assert "answered 2 calls: 30 tokens of prompts, 15 tokens of replies, $60.00" in caplog.text


def test_several_threads_may_ask_and_one_pair_of_settings_is_answered_from_the_file(serve, tmp_path):
    server = serve(question)
    with Endpoint(server.url, "m", tmp_path / "c") as endpoint, ThreadPoolExecutor(8) as threads:
        for _ in range(2):
            replies = list(threads.map(lambda i: endpoint.ask(Prompt(str(i))).text, range(40)))
            assert replies == [str(i) for i in range(40)]
    assert len(server.requests) == 40 and len((tmp_path / "c").read_text().splitlines()) == 40
