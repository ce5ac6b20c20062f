"""`pipeline.py` and the command: stages in their order, their results on disk, and the same output however it comes about."""

import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from configs.quickstart_data import CONFIG
from data_tools.curation.config import CurationConfig
from data_tools.curation.funnel import explain
from data_tools.curation.pipeline import curate, find_results
from data_tools.quickstart.arithmetic import make_heldout, make_pool
from s1jax.data.rows import read_rows
from s1jax.runtime import jsonl
from s1jax.runtime.files import ROOT
from s1jax.runtime.lock import Lock
from tests.support.quickstart import BASE

WITHOUT_MODEL = tuple(stage for stage in CONFIG.stages if stage != "difficulty")


@pytest.fixture
def config(tmp_path):
    """The quickstart's curation of a small pool, without the stage that asks a model."""
    heldout = make_heldout(40, 0)
    jsonl.write(tmp_path / "pool.jsonl", make_pool(400, 0, heldout))
    with (tmp_path / "pool.jsonl").open("ab") as file:
        file.write(b'not json\n{"question": "caf\xe9"}\n{"question": 5}\n')
    problems = [{"question": problem.question, "answer": problem.answer} for problem in heldout]
    jsonl.write(tmp_path / "heldout.jsonl", problems)
    return replace(
        CONFIG,
        output=str(tmp_path / "out"),
        stages=WITHOUT_MODEL,
        num_processes=1,
        collect=replace(CONFIG.collect, pool=(str(tmp_path / "pool.jsonl"),)),
        decontamination=replace(CONFIG.decontamination, heldout=(str(tmp_path / "heldout.jsonl"),)),
        selection=replace(CONFIG.selection, num=60),
    )


def files_of(folder):
    """The content of each file, hidden ones left out."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def test_every_row_of_the_pool_is_chosen_or_rejected_with_a_reason(config, tmp_path):
    out = curate(config)
    chosen, _ = read_rows(str(out / "train.jsonl"))
    rejects = [row for _, row in jsonl.read(out / "rejects.jsonl")]
    assert len(chosen) == 60 and len(chosen) + len(rejects) == 403
    assert all(row["stage"] and row["reason"] for row in rejects)
    assert {row["stage"] for row in rejects} == {*WITHOUT_MODEL} - {"lengths"}
    heldout = {row["question"] for _, row in jsonl.read(tmp_path / "heldout.jsonl")}
    assert not heldout & {row["question"] for row in chosen}
    bad = {row["line"]: row for row in rejects if row["line"] > 400}
    assert [bad[line]["reason"] for line in (401, 402, 403)] == [
        "not JSON",
        "not UTF-8",
        "question is not text but a number",
    ]
    assert bad[403]["raw"].strip() == '{"question": 5}'


def test_the_fate_of_each_row_is_told(config):
    out = curate(config)
    results = find_results(config)
    (chosen, *_), _ = read_rows(str(out / "train.jsonl"))
    assert "chosen" in explain(results, chosen["id"]).splitlines()[-1]
    for _, row in jsonl.read(out / "rejects.jsonl"):
        text = explain(results, f"{row['file']}:{row['line']}")
        assert row["stage"] in text and row["reason"] in text
    results = find_results(replace(config, selection=replace(config.selection, seed=1)))
    assert explain(results, chosen["id"]).endswith("kept by every stage so far")
    rows = replace(config.collect, max_characters=5)
    with pytest.raises(ValueError, match="no stage has been run with these settings"):
        find_results(replace(config, collect=rows))


def test_only_stages_whose_rows_or_settings_changed_run_again(config, caplog):
    caplog.set_level("INFO", "data_tools")

    def run(config):
        caplog.clear()
        curate(config)
        lines = [record.getMessage() for record in caplog.records]
        return [line.split()[0] for line in lines if " kept " in line and "done before" not in line]

    assert run(config) == [*WITHOUT_MODEL]
    assert run(config) == []
    assert run(replace(config, selection=replace(config.selection, seed=1))) == ["selection"]
    rules = replace(config.quality, rules=("missing",))
    assert run(replace(config, quality=rules)) == ["quality", "lengths", "selection"]
    with open(config.collect.pool[0], "a") as file:
        file.write('{"question": "What is 1 + 1?", "thinking": "2", "answer": "2", "reference": "2"}\n')
    assert run(config) == [*WITHOUT_MODEL]


def test_another_config_may_share_the_results(config, tmp_path, caplog):
    work = str(tmp_path / "work")
    curate(replace(config, work=work))
    caplog.set_level("INFO", "data_tools")
    ablation = replace(config.selection, method="random")
    curate(replace(config, work=work, output=str(tmp_path / "random"), selection=ablation))
    assert sum("done before" in record.getMessage() for record in caplog.records) == len(WITHOUT_MODEL) - 1
    first, second = ((tmp_path / name / "train.jsonl").read_text() for name in ("out", "random"))
    assert len(first.splitlines()) == len(second.splitlines()) == 60 and first != second


def test_a_second_curation_of_one_folder_is_refused(config, tmp_path):
    with Lock(tmp_path / "out"), pytest.raises(ValueError, match="out is being written by process"):
        curate(config)


@pytest.mark.integration
@pytest.mark.parametrize(
    "more",
    [["--num-processes", "3"], pytest.param(["--num-processes", "2", "--executor", "ray"], marks=pytest.mark.slow)],
)
def test_the_output_is_the_same_whatever_the_executor_and_the_number_of_processes(config, more, tmp_path):
    jsonl.write(config.collect.pool[0], make_pool(2500, 0, make_heldout(40, 0)))
    config = replace(config, duplicates=replace(config.duplicates, near_threshold=0.9))
    wanted = files_of(curate(config))
    command = [*command_of(replace(config, output=str(tmp_path / "other"))), "--stages", *WITHOUT_MODEL, *more]
    command += ["--duplicates.near-threshold", "0.9"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert files_of(tmp_path / "other") == wanted


def command_of(config: CurationConfig) -> list[str]:
    return [
        sys.executable, "-m", "data_tools.curation", "quickstart_data", "--output", config.output, "--collect.pool",
        *config.collect.pool, "--decontamination.heldout", *config.decontamination.heldout, "--selection.num", "60",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.integration
def test_a_curation_killed_anywhere_repeats_no_answer_and_ends_with_the_same_output(config, tmp_path):
    config = replace(config, stages=CONFIG.stages, selection=replace(CONFIG.selection, num=60))
    whole = replace(config, output=str(tmp_path / "whole"))
    subprocess.run(command_of(whole), cwd=ROOT, check=True, capture_output=True)
    answers = tmp_path / "out" / "work" / "calls"
    rng = random.Random(5)
    for kill in range(3):
        process = subprocess.Popen(command_of(config), cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + (rng.uniform(4, 12) if kill < 2 else 100)
        # The last kill comes when the model has answered some questions.
        while process.poll() is None and time.monotonic() < deadline:
            if kill == 2 and any(path.stat().st_size for path in answers.glob("difficulty-*.jsonl")):
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = {row["problem_id"] for path in answers.glob("difficulty-*.jsonl") for _, row in jsonl.read(path)}
    done = subprocess.run(command_of(config), cwd=ROOT, check=True, capture_output=True, text=True)
    assert before or "done before" in done.stderr
    found, wanted = (files_of(tmp_path / name) for name in ("out", "whole"))
    rows = {name: [json.loads(line) for line in files["work/calls/" + name].splitlines()]
            for files in (found,) for name in (path.name for path in answers.glob("difficulty-*.jsonl"))}  # fmt: skip
    for of_model in rows.values():
        assert len({row["problem_id"] for row in of_model}) == len(of_model), "no question was answered twice"
    # The order of answered rows may differ, and nothing else.
    for files in (found, wanted):
        for name in [name for name in files if name.startswith("work/calls/")]:
            files[name] = b"\n".join(sorted(files[name].splitlines()))
    assert found == wanted


@pytest.mark.slow
@pytest.mark.integration
def test_two_processes_choose_what_one_does(config, serve, processes, tmp_path):
    server = serve(lambda body: "I cannot say." if "bus" in body["messages"][-1]["content"] else "So it is \\boxed{1}.")
    stages = ("collect", "duplicates", "decontamination", "difficulty", "traces", "quality", "lengths", "selection")
    more = [
        "--stages",
        *stages,
        "--quality.rules",
        "missing",
        "--traces.endpoint",
        server.url,
        "--traces.endpoint-model",
        "m",
    ]
    more += ["--traces.num-samples", "1", "--traces.temperature", "0", "--traces.no-verify", "--traces.replace"]
    _, *one = [*command_of(config), *more]
    _, *two = [*command_of(replace(config, output=str(tmp_path / "two"))), *more]
    (done,) = processes.finish(processes.start(*one))
    assert done.code == 0, done.err
    processes.run_two(*two)
    found, wanted = (
        {name: text for name, text in files_of(tmp_path / folder).items() if not name.startswith("work/calls")}
        for folder in ("two", "out")
    )
    assert found == wanted


@pytest.mark.parametrize("work", ["out", "out/hub", "out/hub/work", "out/train.jsonl"])
def test_a_work_folder_in_the_place_of_the_output_is_refused_before_any_stage(config, work, tmp_path):
    with pytest.raises(ValueError, match="is in the way of the output"):
        curate(replace(config, work=str(tmp_path / work)))
    assert not (tmp_path / "out").exists()


def test_a_work_folder_may_lie_deep_in_the_output_however_it_is_spelt(config, tmp_path, monkeypatch):
    config = replace(config, lengths=replace(config.lengths, tokenizer=str(BASE)))
    monkeypatch.chdir(tmp_path)
    for output, work in (("one", str(tmp_path / "one" / "work")), ("two", "two/a/work"), ("three", "three/v1.2")):
        out = curate(replace(config, output=output, work=work))
        assert curate(replace(config, output=output, work=work)) == out


def test_too_few_rows_are_noticed_before_later_stages_run(config):
    with pytest.raises(ValueError, match="the stage collect leaves 394 rows, and the selection must choose 1,000"):
        curate(replace(config, selection=replace(config.selection, num=1000)))
    assert [result.name for result in find_results(config)] == ["collect"]
