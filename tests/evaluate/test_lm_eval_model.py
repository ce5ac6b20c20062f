"""`lm_eval_model.py`: requests of lm-evaluation-harness, against its own model type `hf` and against `evaluate`."""

import json
import subprocess
import sys

import numpy as np
import pytest

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 's1jax[lm-eval]'")

from lm_eval.api.instance import Instance  # noqa: E402

from s1jax.data.condition import Condition  # noqa: E402
from s1jax.evaluate.conditions import DecodingConfig, EvaluateConfig  # noqa: E402
from s1jax.evaluate.lm_eval_model import S1jaxLM  # noqa: E402
from s1jax.grading.pool import Grader  # noqa: E402
from s1jax.results.samples import read_samples  # noqa: E402
from tests.support.runs import evaluate  # noqa: E402

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

THINKING = dict(max_thinking_tokens=12, num_ignore=1, max_answer_tokens=10, dtype="float32")


@pytest.fixture(scope="module")
def plain(tiny_model):
    return S1jaxLM(model=tiny_model, dtype="float32")


@pytest.fixture(scope="module")
def thinker(tiny_model):
    return S1jaxLM(model=tiny_model, **THINKING)


@pytest.fixture(scope="module")
def hf(tiny_model):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=tiny_model, device="cpu", dtype="float32", batch_size=1)


def requests_of(kind, arguments, task="task"):
    return [Instance(kind, {}, args, i, metadata=(task, i, 1)) for i, args in enumerate(arguments)]


def ask(lm, contexts, repeats=1, **options):
    """The answers, with each request there `repeats` times, as lm-eval's evaluator repeats it."""
    requests = requests_of("generate_until", [(context, options) for context in contexts])
    return lm.generate_until([request for request in requests for _ in range(repeats)])


def test_log_likelihoods_equal_those_of_hf(plain, hf):
    text = "".join(f"{i} and {i} are {2 * i}. " for i in range(60))
    pairs = [
        ("Two and two are", " four."),
        ("Two and two are ", "four."),
        ("Two and two are", " five, or so it seems."),
        ("", "Four."),
        ("", "<|endoftext|>Four."),
        ("<|im_start|>user\n1 + 1?<|im_end|>\n", "2"),
        (text, " the end"),  # longer than the context
        (text[:512], "a"),  # the context is full, and the last id is not read
        (text[:511], "ab"),
        ("a", text[:512]),
    ]
    # Continuations that greedy decoding writes, as far as bytes of a random model are text; and some that it does not.
    contexts = [f"Word {letter}" for letter in "abcdefgh"]
    pairs += [
        (context, character)
        for context, written in zip(contexts, ask(hf, contexts, until=[], max_gen_toks=1), strict=True)
        for character in {written, "z"}
    ]
    assert len(text) > 513
    requests = requests_of("loglikelihood", pairs)
    ours, theirs = plain.loglikelihood(requests), hf.loglikelihood(requests)
    # Hugging Face's sums are float32, so they are rounded by up to their size times eps.
    eps = np.finfo(np.float32).eps
    np.testing.assert_allclose([x for x, _ in ours], [x for x, _ in theirs], rtol=eps, atol=1e-4)
    assert [x for _, x in ours] == [x for _, x in theirs]
    assert {x for _, x in ours} == {True, False}


def test_log_likelihoods_of_whole_texts_equal_those_of_hf_window_by_window(plain, hf):
    texts = ["a", "Two and two are four.", "One, two, three. " * 90, "x" * 512, "x" * 513]
    requests = requests_of("loglikelihood_rolling", [(text,) for text in texts])
    ours, theirs = plain.loglikelihood_rolling(requests), hf.loglikelihood_rolling(requests)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-4)


def test_a_continuation_longer_than_the_context_is_refused(plain):
    with pytest.raises(ValueError, match="a continuation has 513 tokens; the model has 512 positions"):
        plain.loglikelihood(requests_of("loglikelihood", [("a", "b" * 513)]))


def test_without_a_budget_answers_equal_those_of_hf(plain, hf):
    contexts = ["Two and two are", "Q: 1 + 1?\nA:", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"]
    without_text = list(range(len(hf.tokenizer), hf.model.config.vocab_size))  # ids that our engine never draws
    for until in ([], ["\n", "e"], "a"):
        options = dict(until=until, do_sample=False, temperature=0.0, max_gen_toks=30)
        assert ask(plain, contexts, **options) == ask(hf, contexts, suppress_tokens=without_text, **options)


def test_a_model_that_does_not_think_answers_as_it_continues_its_chat_prompt(plain, tiny_model):
    at_once = S1jaxLM(model=tiny_model, max_thinking_tokens=0, thinking_format="none", dtype="float32")
    questions = ["1 + 1?", "Two and two?"]
    prompts = [plain.apply_chat_template([{"role": "user", "content": question}]) for question in questions]
    options = dict(until=["zz"], max_gen_toks=12)
    answers = ask(at_once, questions, **options)
    assert answers == ask(at_once, prompts, **options)
    continued = plain.engine.decode(
        [plain._request(r, 0) for r in requests_of("generate_until", [(p, options) for p in prompts])]
    )
    assert answers == [at_once.chat.split_completion(c.tokens, 0)[1].lstrip() for c in continued]


def is_right(text, gold):
    with Grader() as grader:
        return grader.grade(text, gold).verdict == "equal"


def gsm8k(tmp_path, problems, **changes):
    """A task of lm-eval over a local file; its score is that of this project's grader."""
    file = tmp_path / "gsm8k.jsonl"
    file.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    return {
        "task": "local_gsm8k",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(tmp_path / "cache")},
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "process_results": lambda doc, results: {"acc": float(is_right(results[0], doc["answer"]))},
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": {"until": [], "do_sample": False},
    } | changes


@pytest.mark.parametrize("chat_template", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_task_of_the_harness_has_the_accuracy_of_evaluate(tiny_model, thinker, tmp_path, chat_template):
    def by_evaluate(problems, name):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
        decoding = DecodingConfig(tiny_model, str(tmp_path / f"{name}.jsonl"), str(tmp_path / f"{name}.rows.jsonl"))
        rows = read_samples(evaluate(EvaluateConfig(decoding, Condition(**THINKING))))
        return sorted(rows, key=lambda row: row["problem_id"])

    problems = [dict(id=str(i), question=f"What is {i} + {i}?", answer="none") for i in range(8)]
    said = [row["extracted"] for row in by_evaluate(problems, "first")]
    # Every second gold answer is what the model says, if it says something.
    for problem, answer in list(zip(problems, said, strict=True))[::2]:
        problem["answer"] = answer or problem["answer"]
    rows = by_evaluate(problems, "second")
    results = lm_eval.simple_evaluate(
        thinker, tasks=[gsm8k(tmp_path, problems)], apply_chat_template=chat_template, bootstrap_iters=0
    )
    samples = sorted(results["samples"]["local_gsm8k"], key=lambda sample: sample["doc_id"])
    assert [sample["resps"] for sample in samples] == [[[row["answer_text"].lstrip()]] for row in rows]
    assert [sample["acc"] for sample in samples] == [row["correct"] for row in rows]
    assert results["results"]["local_gsm8k"]["acc,none"] == np.mean([row["correct"] for row in rows])
    assert 0 < sum(row["correct"] for row in rows) < 8


def test_a_text_with_and_without_its_chat_template_is_one_prompt(thinker):
    question = "What is 1 + 1?"
    rendered = thinker.apply_chat_template([{"role": "user", "content": question}])
    wanted = thinker.chat.encode_prompt(question)
    assert thinker._prompt(question) == thinker._prompt(rendered) == wanted
    # Text that nobody rendered never becomes a special token.
    end = thinker.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert thinker._prompt("a <|im_end|> b").count(end) == wanted.count(end)
    turns = [("user", "1?"), ("assistant", "1"), ("user", question)]
    many = thinker.apply_chat_template([dict(role=role, content=text) for role, text in turns])
    assert thinker._prompt(many)[-len(wanted) :] == wanted
    begun = thinker.apply_chat_template(
        [dict(role="user", content=question), dict(role="assistant", content="It is")], add_generation_prompt=False
    )
    with pytest.raises(ValueError, match="request 0 of task task: the task begins the answer itself"):
        ask(thinker, [begun])


@pytest.mark.slow
def test_repeats_differ_at_a_temperature_are_equal_at_0_and_do_not_depend_on_other_requests(thinker, tmp_path):
    greedy = ask(thinker, ["1 + 1?"], repeats=3, do_sample=False)
    assert len(set(greedy)) == 1
    sampled = ask(thinker, ["1 + 1?", "2 + 2?"], repeats=4, temperature=1.0)
    assert len(set(sampled[:4])) == len(set(sampled[4:])) == 4
    assert ask(thinker, ["2 + 2?"], repeats=2, do_sample=True) == sampled[4:6]
    task = gsm8k(tmp_path, [dict(question="1 + 1?", answer="2")], repeats=4, generation_kwargs={"temperature": 1.0})
    (sample,) = lm_eval.simple_evaluate(thinker, tasks=[task], bootstrap_iters=0)["samples"]["local_gsm8k"]
    assert sample["resps"] == [sampled[:4]]


def test_rows_keep_whole_thoughts_that_the_harness_does_not_see(tiny_model, tmp_path):
    output = tmp_path / "rows.jsonl"
    lm = S1jaxLM(model=tiny_model, output=str(output), seed=3, **THINKING)
    answers = ask(lm, ["1 + 1?", "2 + 2?"], repeats=2, temperature=0.9, until=["e"], max_gen_toks=7)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    rows.sort(key=lambda row: (row["doc_id"], row["sample_index"]))
    assert [(row["doc_id"], row["sample_index"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for row, answer in zip(rows, answers, strict=True):
        assert row["num_thinking_tokens"] and row["thinking"] and row["thinking"] not in answer
        assert row["answer_text"].lstrip().partition("e")[0] == answer
        assert (row["temperature"], row["max_answer_tokens"], row["seed"]) == (0.9, 7, 3)
    with pytest.raises(ValueError, match=r"rows\.jsonl exists: give another output"):
        S1jaxLM(model=tiny_model, output=str(output), **THINKING)


def test_white_space_in_until_ends_an_answer_but_not_before_it_begins(thinker):
    whole = ask(thinker, [f"{i}?" for i in range(12)], max_gen_toks=40)
    cut = ask(thinker, [f"{i}?" for i in range(12)], max_gen_toks=40, until=["\n", " "])
    assert cut == [text.partition("\n")[0].partition(" ")[0] for text in whole]
    assert cut != whole and all(cut)
    (request,) = requests_of("generate_until", [("1?", {"until": ["\n\n", "\nQ:", ""]})])
    assert thinker._request(request, 0).stop == ("\nQ:",)


@pytest.mark.parametrize(
    ("options", "condition"),
    [
        ({}, dict(temperature=0.5, top_p=0.9, max_answer_tokens=9)),
        ({"do_sample": False, "temperature": 0.7}, dict(temperature=0.0, top_p=1.0)),
        ({"temperature": 0.0}, dict(temperature=0.0, top_p=1.0)),
        ({"do_sample": True}, dict(temperature=0.5, top_p=0.9)),
        ({"temperature": 1, "top_p": 0.5, "top_k": 3}, dict(temperature=1.0, top_p=0.5, top_k=3)),
        ({"max_new_tokens": 5, "max_gen_toks": 4, "num_beams": 1, "until": None}, dict(max_answer_tokens=4)),
    ],
)
def test_a_tasks_generation_settings_replace_those_of_the_condition(tiny_model, monkeypatch, options, condition):
    import s1jax.evaluate.lm_eval_model as module

    loaded = module.load_engine(module.resolve_source(tiny_model), "float32")
    monkeypatch.setattr(module, "load_engine", lambda *_, **__: loaded)
    lm = S1jaxLM(
        model=tiny_model, max_thinking_tokens=4, temperature=0.5, top_p=0.9, max_answer_tokens=9, dtype="float32"
    )
    found = vars(lm._condition(options))
    assert {name: found[name] for name in condition} == condition and found["max_thinking_tokens"] == 4


def test_settings_that_would_be_ignored_are_refused(tiny_model, thinker):
    for settings, fault in (
        ({"max_thinking": 4}, "s1jax has no model argument max_thinking: "),
        ({"num_ignore": 1}, "num_ignore needs max_thinking_tokens: "),
        ({"max_thinking_tokens": "many"}, "max_thinking_tokens is 'many': it must be an integer"),
        ({"int8": "weights+biases"}, "int8 is"),
        ({"attention": "fast"}, "attention is 'fast': it must be one of"),
        ({"num_rows": 0}, "num_rows is 0; it must be from 1 to"),
        ({"model": 5}, "model is 5: it must be text"),
    ):
        with pytest.raises(ValueError, match=fault):
            S1jaxLM(**{"model": tiny_model} | settings)
    for options, fault in (
        ({"repetition_penalty": 2}, "request 0 of task task: the engine has no generation setting repetition_penalty"),
        ({"max_gen_toks": 600}, "the model has 512, .*--gen_kwargs"),
    ):
        with pytest.raises(ValueError, match=fault):
            ask(thinker, ["1?"], **options)


@pytest.mark.slow
def test_the_command_line_runs_a_task_of_a_folder(tiny_model, tmp_path):
    task = gsm8k(tmp_path, [dict(question=f"{i} + 1?", answer=str(i + 1)) for i in range(3)])
    del task["process_results"]
    task["metric_list"] = [{"metric": "exact_match"}]
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "local.yaml").write_text(json.dumps(task))  # JSON is YAML
    settings = f"model={tiny_model},dtype=float32,max_thinking_tokens=8,max_answer_tokens=4,int8=weights+cache"
    arguments = ["--model", "s1jax", "--model_args", settings, "--tasks", "local_gsm8k"]
    command = [sys.executable, "-m", "s1jax.evaluate.lm_eval", *arguments, "--include_path", str(tmp_path / "tasks")]
    for more, code, words in (
        (f",output={tmp_path / 'rows.jsonl'}", 0, "exact_match"),
        (f",output={tmp_path / 'rows.jsonl'}", 1, f"error: {tmp_path / 'rows.jsonl'} exists: give another output"),
    ):
        command[command.index("--model_args") + 1] = settings + more
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == code and words in done.stdout + done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 3
