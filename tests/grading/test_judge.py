"""`judge.py`: a language model behind the OpenAI protocol, here a small local server."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from s1jax.grading import judge as judge_module
from s1jax.grading.judge import Judge

QUESTION = "Where does the train stop?"


class Server(ThreadingHTTPServer):
    """Answers `reply(prompt)`. A number is an HTTP state, bytes are a raw body."""

    def __init__(self, reply):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.requests = reply, []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, self.headers.get("Authorization"), body))
        reply = self.server.reply(body["messages"][0]["content"])
        state = reply if isinstance(reply, int) else 200
        content = {"choices": [{"message": {"role": "assistant", "content": reply}}]}
        self.send_response(state)
        self.end_headers()
        self.wfile.write(reply if isinstance(reply, bytes) else json.dumps(content).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(reply):
        server = Server(reply)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("They mean the same.\nYes", True),
        ("**No**.", False),
        ("Yes, they may be.\nI cannot tell", None),
        ("", None),
    ],
)
def test_the_last_line_of_the_reply_decides(serve, tmp_path, reply, expected):
    with Judge(serve(lambda prompt: reply).url, "m", tmp_path / "replies.jsonl") as judge:
        assert judge.are_equal(QUESTION, "the town of Ulm", "Ulm") is expected


def test_the_judge_sees_the_question_and_both_answers_and_not_which_is_gold(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server = serve(lambda prompt: "Yes")
    for name, pair in (("a", ("the town of Ulm", "Ulm")), ("b", ("Ulm", "the town of Ulm"))):
        with Judge(server.url + "/", "m", tmp_path / name) as judge:
            judge.are_equal(QUESTION, *pair)
    (first, second) = server.requests
    assert first == second and first[0] == "/v1/chat/completions" and first[1] == "Bearer secret"
    prompt = first[2]["messages"][0]["content"]
    assert all(text in prompt for text in (QUESTION, "the town of Ulm", "\nUlm\n")) and "gold" not in prompt
    assert first[2]["model"] == "m" and first[2]["temperature"] == 0


def test_a_pair_is_asked_about_once_even_by_another_run(serve, tmp_path):
    server, cache = serve(lambda prompt: "Yes"), tmp_path / "replies.jsonl"
    for _ in range(2):
        with Judge(server.url, "m", cache) as judge:
            assert judge.are_equal(QUESTION, "a", "b") and judge.are_equal(QUESTION, "a", "b")
    assert len(server.requests) == 1
    with Judge(server.url, "another", cache) as judge:
        assert judge.are_equal(QUESTION, "a", "b")
    assert len(server.requests) == 2


def test_a_busy_judge_is_asked_again_and_a_refusal_is_one_error(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(judge_module, "_PAUSES", (0, 0, 0, None))
    states = [503, 429, "Yes"]
    with Judge(serve(lambda prompt: states.pop(0)).url, "m", tmp_path / "a") as judge:
        assert judge.are_equal(QUESTION, "a", "b")
    for reply, message in ((401, "HTTP 401"), (500, "HTTP 500"), (b"<html>", "not one of the OpenAI protocol")):
        server = serve(lambda prompt, reply=reply: reply)
        with Judge(server.url, "m", tmp_path / "b") as judge, pytest.raises(ValueError, match=message):
            judge.are_equal(QUESTION, "a", "b")
        assert len(server.requests) == (4 if reply == 500 else 1)


def test_no_judge_no_address_and_a_file_of_other_rows_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(judge_module, "_PAUSES", (0, 0, 0, None))
    with (
        Judge("http://127.0.0.1:1/v1", "m", tmp_path / "a") as judge,
        pytest.raises(ValueError, match="did not answer"),
    ):
        judge.are_equal(QUESTION, "a", "b")
    for url in ("localhost:8000", "http://[x", "http://a b/v1", "ftp://a/v1", "http://"):
        with pytest.raises(ValueError, match="must be an address such as"):
            Judge(url, "m", tmp_path / "a")
    (tmp_path / "rows.jsonl").write_text('{"key": [1], "model": "m", "prompt": "p", "reply": "Yes"}\n')
    with (
        pytest.raises(ValueError, match="holds other rows than replies of a judge"),
        Judge("http://x", "m", tmp_path / "rows.jsonl"),
    ):
        pass
    assert not list(tmp_path.glob(".*lock"))


def test_a_question_that_the_judge_does_not_take_is_undecided(serve, tmp_path):
    server = serve(lambda prompt: 400)
    with Judge(server.url, "m", tmp_path / "a") as judge:
        assert judge.are_equal(QUESTION, "a", "b") is None
        assert judge.are_equal(QUESTION, "a" * 1001, "b") is None
    assert len(server.requests) == 1 and not (tmp_path / "a").exists()


def test_any_text_can_be_asked_about(serve, tmp_path):
    with Judge(serve(lambda prompt: "No").url, "m", tmp_path / "a") as judge:
        assert judge.are_equal(QUESTION, "\ud800\0{x}", "b") is False
