"""`judge.py`: a language model behind the OpenAI protocol, here a small local server."""

import pytest

from s1jax.grading.judge import Judge

QUESTION = "Where does the train stop?"


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
    with Judge(serve(lambda body: reply).url, "m", tmp_path / "replies.jsonl") as judge:
        assert judge.are_equal(QUESTION, "the town of Ulm", "Ulm") is expected


def test_the_judge_sees_the_question_and_both_answers_and_not_which_is_gold(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server = serve(lambda body: "Yes")
    for name, pair in (("a", ("the town of Ulm", "Ulm")), ("b", ("Ulm", "the town of Ulm"))):
        with Judge(server.url + "/", "m", tmp_path / name) as judge:
            judge.are_equal(QUESTION, *pair)
    (first, second) = server.requests
    assert first == second and first[0] == "/v1/chat/completions" and first[1] == "Bearer secret"
    prompt = first[2]["messages"][0]["content"]
    assert all(text in prompt for text in (QUESTION, "the town of Ulm", "\nUlm\n")) and "gold" not in prompt
    assert first[2]["model"] == "m" and first[2]["temperature"] == 0


def test_a_pair_is_asked_about_once_even_by_another_run(serve, tmp_path):
    server, cache = serve(lambda body: "Yes"), tmp_path / "replies.jsonl"
    for _ in range(2):
        with Judge(server.url, "m", cache) as judge:
            assert judge.are_equal(QUESTION, "a", "b") and judge.are_equal(QUESTION, "a", "b")
    assert len(server.requests) == 1
    with Judge(server.url, "another", cache) as judge:
        assert judge.are_equal(QUESTION, "a", "b")
    assert len(server.requests) == 2


def test_a_busy_judge_is_asked_again_and_a_refusal_is_one_error(serve, tmp_path):
    states = [503, 429, "Yes"]
    with Judge(serve(lambda body: states.pop(0)).url, "m", tmp_path / "a") as judge:
        assert judge.are_equal(QUESTION, "a", "b")
    for reply, message in ((401, "HTTP 401"), (500, "HTTP 500"), (b"<html>", "not one of the OpenAI protocol")):
        server = serve(lambda body, reply=reply: reply)
        with Judge(server.url, "m", tmp_path / "b") as judge, pytest.raises(ValueError, match=message):
            judge.are_equal(QUESTION, "a", "b")
        assert len(server.requests) == (1 if reply == 401 else 4)


def test_no_judge_no_address_and_a_file_of_other_rows_are_refused(serve, tmp_path):
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
    server = serve(lambda body: 400)
    with Judge(server.url, "m", tmp_path / "a") as judge:
        assert judge.are_equal(QUESTION, "a", "b") is None
        assert judge.are_equal(QUESTION, "a" * 1001, "b") is None
    assert len(server.requests) == 1 and not (tmp_path / "a").exists()


def test_any_text_can_be_asked_about(serve, tmp_path):
    with Judge(serve(lambda body: "No").url, "m", tmp_path / "a") as judge:
        assert judge.are_equal(QUESTION, "\ud800\0{x}", "b") is False
