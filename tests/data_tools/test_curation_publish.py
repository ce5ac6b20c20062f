"""`publish.py` and `report.py`: the folder of a curation, its card, and what may be replaced in it."""

import functools
import hashlib
import json
import os
import random
import shutil

import huggingface_hub
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from data_tools.curation import publish as publishing
from data_tools.curation.funnel import funnel_figure
from data_tools.curation.publish import PublishConfig, check_output, check_publish, publish
from data_tools.curation.report import card_of, source_counts
from data_tools.curation.selection import SelectionConfig
from data_tools.curation.selection import stage as selection
from s1jax.data.rows import read_rows
from s1jax.runtime import jsonl
from s1jax.runtime.errors import UserError
from tests.support.curation_results import bad_row, curated, pool_row

FILES = [
    "funnel.png",
    "hub/README.md",
    "hub/data/train-00000-of-00001.parquet",
    "hub/funnel.png",
    "rejects.jsonl",
    "report.json",
    "train.jsonl",
]


def pool():
    rows = [pool_row(i) for i in range(40)]
    rows[3], rows[29] = bad_row(3), bad_row(29, "not JSON")
    return rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return curated(tmp_path_factory.mktemp("stages"), pool())


@pytest.fixture(scope="module", autouse=True)
def _each_figure_is_drawn_once():
    """Drawing takes most of the time. That equal funnels give equal pictures is tested in test_curation_funnel.py."""
    draw = functools.cache(lambda text: funnel_figure(json.loads(text)))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(publishing, "funnel_figure", lambda stages: draw(json.dumps(stages)))
        yield


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def lines(path):
    return [row for _, row in jsonl.read(path)]


def chosen_numbers(rows):
    return [v["row"] for v in rows.results[-1].verdicts().to_pylist() if v["reason"] is None]


# ---- the files ----


def test_the_training_set_holds_the_chosen_rows_and_loads_as_training_data_as_lines_and_as_parquet(rows, tmp_path):
    publish(PublishConfig(), rows, tmp_path)
    assert [*contents(tmp_path)] == FILES
    expected = [
        {name: pool_row(i)[name] for name in ("id", "question", "thinking", "answer", "reference", "source")}
        | {"domain": str(2 * i)[-1]}
        for i in chosen_numbers(rows)
    ]
    assert len(expected) == 10 and lines(tmp_path / "train.jsonl") == expected
    # Spaces around a trace are taken off when it is read.
    stripped = [row | {"thinking": row["thinking"].strip()} for row in expected]
    for source in (tmp_path, tmp_path / "train.jsonl", tmp_path / "hub"):
        loaded, rejects = read_rows(str(source))
        assert [row | {"thinking": row["thinking"].strip()} for row in loaded] == stripped and rejects == []


def test_every_row_of_the_pool_is_either_chosen_or_among_the_rejects_with_its_stage_and_place(rows, tmp_path):
    publish(PublishConfig(validation=3), rows, tmp_path)
    rejects = lines(tmp_path / "rejects.jsonl")
    ids = [row["id"] for name in ("train", "validation") for row in lines(tmp_path / f"{name}.jsonl")]
    chosen = [i for i in range(40) if pool_row(i)["id"] in ids]
    assert len(ids) == 10 and sorted([*chosen, *(row["row"] for row in rejects)]) == [*range(40)]
    assert [row["row"] for row in rejects] == sorted(row["row"] for row in rejects)
    for row in rejects:
        assert (row["file"], row["line"]) == (pool_row(row["row"])["file"], pool_row(row["row"])["line"])
    by_row = {row.pop("row"): row for row in rejects}
    assert by_row[29] == dict(
        id="",
        source="",
        file="data/pool1.jsonl",
        line=10,
        stage="collect",
        reason="not JSON",
        detail=None,
        raw='{"n": 29}',
    )
    assert by_row[7] == dict(
        id=pool_row(7)["id"],
        source="AIME",
        file="data/pool0.jsonl",
        line=8,
        stage="quality",
        reason="the answer is wrong",
        detail="a multiple of 14",
    )
    assert {row["stage"] for i, row in by_row.items() if i not in (3, 29) and i % 7} == {"selection"}


def test_validation_rows_are_drawn_by_seed_and_share_no_question_with_training(tmp_path):
    copies = [pool_row(i // 2, thinking=f"trace {i}", file="p.jsonl", line=i + 1) for i in range(2, 26)]
    full = selection(SelectionConfig("full"))

    def ids(order, seed):
        folder = tmp_path / f"{random.Random(str(order)).random()}"
        publish(PublishConfig(validation=6, seed=seed), curated(folder / "stages", order, select=full), folder / "out")
        return [{row["id"] for row in lines(folder / f"out/{name}.jsonl")} for name in ("train", "validation")]

    train, validation = ids(copies, 1)
    assert not train & validation and len(validation) == 3
    assert ids(copies[::-1], 1) == [train, validation]
    assert ids(copies[1:] + copies[:1], 2)[1] != validation


@pytest.mark.parametrize("seed", range(3))
def test_the_number_of_validation_rows_is_exact_where_questions_have_several_rows(seed, tmp_path):
    copies = [pool_row(i // 2, thinking=f"trace {i}", file="p.jsonl", line=i + 1) for i in range(3, 16)]
    rows = curated(tmp_path / "stages", copies, select=selection(SelectionConfig("full")))
    report = publish(PublishConfig(validation=3, seed=seed), rows, tmp_path / "out")
    assert report["num_rows"]["validation"] == len(lines(tmp_path / "out/validation.jsonl")) == 3


@pytest.mark.parametrize(
    ("validation", "message"),
    [(22, "validation 22 leaves no row to train on: 22 rows were chosen"), (3, "validation 3: no whole questions")],
)
def test_validation_rows_that_cannot_be_drawn_are_refused(validation, message, tmp_path):
    copies = [pool_row(i // 2, thinking=f"trace {i}", file="p.jsonl", line=i + 1) for i in range(2, 26)]
    rows = curated(tmp_path / "stages", copies, select=selection(SelectionConfig("full")))
    with pytest.raises(UserError, match=message):
        publish(PublishConfig(validation=validation), rows, tmp_path / "out")
    assert not (tmp_path / "out").exists() or contents(tmp_path / "out") == {}


def test_bare_questions_are_published_with_a_warning(tmp_path, caplog):
    bare = [pool_row(i, **{"thinking": " "} if i == 9 else {"answer": ""} if i == 10 else {}) for i in range(1, 14)]
    publish(PublishConfig(), curated(tmp_path, bare, select=selection(SelectionConfig("full"))), tmp_path / "out")
    assert "train.jsonl: 2 rows have no trace or no answer, so training would reject them" in caplog.text
    rows, rejects = read_rows(str(tmp_path / "out" / "train.jsonl"))
    assert [reject["reason"] for reject in rejects] == ["thinking is empty", "answer is empty"]
    assert len(rows) == 10  # quality rejects one of the 13


def test_a_pool_of_which_no_row_is_left_is_refused(tmp_path):
    rows = curated(tmp_path / "s", [pool_row(7), pool_row(14)], select=selection(SelectionConfig("full")))
    with pytest.raises(UserError, match="no row is left to publish"):
        publish(PublishConfig(), rows, tmp_path / "out")


def test_many_rows_are_split_over_parquet_files_in_order(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, "_BATCH", 2)
    monkeypatch.setattr(publishing, "_SHARD", 4)
    report = publish(PublishConfig(), rows, tmp_path)
    files = sorted((tmp_path / "hub/data").iterdir())
    assert [file.name for file in files] == [f"train-0000{i}-of-00003.parquet" for i in range(3)]
    assert [row for file in files for row in pq.read_table(file).to_pylist()] == lines(tmp_path / "train.jsonl")
    assert [report["outputs"][f"hub/data/{file.name}"]["num_rows"] for file in files] == [4, 4, 2]


def test_the_same_curation_writes_the_same_bytes_again(tmp_path):
    first = None
    for name in ("one", "two"):
        rows = curated(tmp_path / name / "stages", pool())
        publish(PublishConfig(validation=2), rows, tmp_path / name / "out", settings={"seed": 1})
        first = first or contents(tmp_path / name / "out")
    assert contents(tmp_path / "two/out") == first
    publish(PublishConfig(validation=2), rows, tmp_path / "two/out", settings={"seed": 1})
    assert contents(tmp_path / "two/out") == first


# ---- the report ----


def test_the_report_counts_what_is_in_the_files(rows, tmp_path):
    contamination = {("GSM8K", "math500"): 3, ("AIME", "aime24"): 2}
    report = publish(PublishConfig(validation=3), rows, tmp_path, settings={"num": 10}, contamination=contamination)
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert report["num_rows"] == {"train": 7, "validation": 3}
    assert [(s["name"], s["num_rows"], s["num_kept"], s["num_rejected"]) for s in report["funnel"]] == [
        ("collect", 40, 38, 2),
        ("quality", 38, 32, 6),
        ("lengths", 32, 32, 0),
        ("domains", 32, 32, 0),
        ("selection", 32, 10, 22),
    ]
    assert report["contamination"][0] == {"source": "AIME", "heldout": "aime24", "num_rows": 2}
    assert report["config"] == {"num": 10}
    assert report["stages"][-1]["settings"]["method"] == "diverse"
    for name, file in report["outputs"].items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == file["sha256"]
        if name.endswith(".jsonl"):
            assert len(lines(tmp_path / name)) == file["num_rows"]
    assert sorted([*report["outputs"], "report.json"]) == [*contents(tmp_path)]

    train = lines(tmp_path / "train.jsonl")
    tokens = report["thinking_tokens"]
    groups = {"all": lambda row: True} | {
        source: lambda row, s=source: row["source"] == s for source in tokens["by_source"]
    }
    for name, holds in groups.items():
        lengths = [len(row["thinking"].split()) for row in train if holds(row)]
        found = tokens["all"] if name == "all" else tokens["by_source"][name]
        assert (found["num_rows"], found["total"]) == (len(lengths), sum(lengths))
        assert found["mean"] == pytest.approx(np.mean(lengths), abs=0.005)
        for percent, value in found["percentiles"].items():
            assert value == pytest.approx(np.percentile(lengths, int(percent)), abs=0.005)
    assert {*tokens["by_domain"]} == {row["domain"] for row in train}


def test_the_rows_of_each_source_are_counted_after_each_stage(rows):
    chosen = chosen_numbers(rows)
    good = [i for i in range(40) if i not in (3, 29)]
    kept = [i for i in good if i % 7]
    assert source_counts(rows.results) == {
        source: {
            "pool": sum(holds(i) for i in range(40)),
            "collect": sum(holds(i) for i in good),
            "quality": sum(holds(i) for i in kept),
            "lengths": sum(holds(i) for i in kept),
            "domains": sum(holds(i) for i in kept),
            "selection": sum(holds(i) for i in chosen),
        }
        for source, holds in {
            "": lambda i: i in (3, 29),
            "AIME": lambda i: i % 2 == 1 and i not in (3, 29),
            "GSM8K": lambda i: i % 2 == 0,
        }.items()
    }


# ---- the card ----


def test_the_card_has_a_header_that_the_hub_reads_and_the_tables_of_the_report(rows, tmp_path):
    publish(PublishConfig(validation=3, title='Two: "sums" & <b>', license="apache-2.0"), rows, tmp_path)
    text = (tmp_path / "hub/README.md").read_text()
    data = huggingface_hub.DatasetCard(text).data.to_dict()
    assert data["pretty_name"] == 'Two: "sums" & <b>' and data["license"] == "apache-2.0"
    assert data["size_categories"] == ["n<1K"]
    (config,) = data["configs"]
    assert config["data_files"] == [
        {"split": "train", "path": "data/train-*"},
        {"split": "validation", "path": "data/validation-*"},
    ]
    body = text.split("\n---\n")[1]
    assert '# Two: "sums" \\& \\<b\\>\n' in body and "7 for train and 3 for validation" in body
    (file,) = (tmp_path / "hub/data").glob("train-*")
    assert f"|data/{file.name}|{hashlib.sha256(file.read_bytes()).hexdigest()}|" in body.replace("\\", "")
    for row in ("|collect|40|38|2|", "|- the answer is wrong|||6|", "|GSM8K|20|20|17|", "|source AIME|"):
        assert row in body


def test_texts_of_the_pool_cannot_break_the_card(tmp_path):
    evil = "a|b\n---\n<script>`x`[l](u)"
    rows = [pool_row(i, source=evil) for i in range(20)]
    publish(PublishConfig(), curated(tmp_path / "s", rows), tmp_path / "out", contamination={(evil, "m|500"): 1})
    text = (tmp_path / "out/hub/README.md").read_text()
    assert yaml.safe_load(text.split("---\n")[1])["configs"]
    assert "a\\|b --- \\<script\\>\\`x\\`\\[l\\](u)" in text
    assert "<script>" not in text and text.count("\n---\n") == 1


@pytest.mark.parametrize(
    ("num", "size"), [(1, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (9999, "1K<n<10K"), (59_029, "10K<n<100K")]
)
def test_the_size_in_the_card_is_the_hub_s(num, size):
    stage = dict(name="collect", num_rows=num, num_kept=num, reasons={})
    report = dict(num_rows={"train": num}, funnel=[stage], sources={}, contamination=[], thinking_tokens=None)
    assert f"\nsize_categories:\n- {size}\n" in card_of(report | {"config": {}}, "t", "", {})


@pytest.mark.integration
def test_the_datasets_library_loads_the_hub_folder_with_its_splits(rows, tmp_path):
    import datasets

    publish(PublishConfig(validation=3), rows, tmp_path / "out")
    loaded = datasets.load_dataset(str(tmp_path / "out/hub"), cache_dir=str(tmp_path / "cache"))
    for name in ("train", "validation"):
        assert loaded[name].to_list() == lines(tmp_path / f"out/{name}.jsonl")


# ---- what may be replaced ----


def test_a_second_publication_replaces_the_first_and_removes_what_it_no_longer_has(rows, tmp_path):
    out = tmp_path / "out"
    publish(PublishConfig(validation=3), rows, out)
    assert (out / "validation.jsonl").exists() and len([*(out / "hub/data").iterdir()]) == 2
    (out / ".notes").write_text("mine")
    (out / "stages").mkdir()
    (out / "stages/x").write_text("y")
    publish(PublishConfig(), rows, out, others=("stages",))
    assert [name for name in contents(out) if name not in (".notes", "stages/x")] == FILES


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train.jsonl", '{"question": "mine"}\n'),
        ("notes.txt", "mine"),
        ("report.json", "{}"),
        ("report.json", "not JSON"),
        ("hub/README.md", "mine"),
        ("hub/data/other.parquet", "mine"),
        ("other/train.jsonl", "mine"),
    ],
)
def test_a_folder_with_files_that_no_curation_wrote_is_refused_and_stays_as_it_is(name, text, rows, tmp_path):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
    with pytest.raises(
        UserError, match=f"holds {tmp_path / name.removesuffix('/train.jsonl')}, which no curation wrote"
    ):
        publish(PublishConfig(), rows, tmp_path)
    assert contents(tmp_path) == {name: text.encode()}


@pytest.mark.parametrize("name", ["train.jsonl", "hub/README.md", "rejects.jsonl"])
def test_a_file_that_was_changed_since_is_not_replaced(name, rows, tmp_path):
    publish(PublishConfig(), rows, tmp_path)
    check_output(tmp_path)
    with (tmp_path / name).open("a") as file:
        file.write("\n")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path / name} was changed since a curation wrote it: move it away"):
        publish(PublishConfig(), rows, tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["notes.txt", "validation.jsonl", "hub/data/mine.parquet"])
def test_a_foreign_file_beside_a_publication_is_refused(name, rows, tmp_path):
    publish(PublishConfig(), rows, tmp_path)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"holds {tmp_path / name}, which no curation wrote"):
        check_output(tmp_path)


def test_links_and_folders_in_the_place_of_files_are_refused(rows, tmp_path):
    publish(PublishConfig(), rows, tmp_path / "out")
    shutil.move(tmp_path / "out/hub", tmp_path / "elsewhere")
    (tmp_path / "out/hub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="out/hub, which no curation wrote"):
        check_output(tmp_path / "out")
    (tmp_path / "out/hub").unlink()
    (tmp_path / "out/train.jsonl").unlink()
    check_output(tmp_path / "out")  # files that were deleted are written again
    (tmp_path / "out/train.jsonl").mkdir()
    with pytest.raises(UserError, match=r"out/train\.jsonl, which no curation wrote"):
        check_output(tmp_path / "out")
    with pytest.raises(UserError, match=r"cannot be written: .*file is not a directory"):
        (tmp_path / "file").write_text("")
        check_output(tmp_path / "file")


@pytest.mark.parametrize("num_moves", [0, 1, 4, 7])
def test_a_publication_that_is_killed_while_it_replaces_files_can_be_run_again(num_moves, rows, tmp_path, monkeypatch):
    publish(PublishConfig(validation=2), rows, tmp_path / "out")
    publish(PublishConfig(seed=1, validation=3), rows, tmp_path / "whole")
    moves = []

    def replace(source, target):
        if not source.name.startswith("."):  # other files are written by way of a hidden one
            if len(moves) == num_moves:
                raise KeyboardInterrupt
            moves.append(source)
        os.rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(publishing.os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            publish(PublishConfig(seed=1, validation=3), rows, tmp_path / "out")
    assert json.loads((tmp_path / "out/report.json").read_text())["unfinished"]
    publish(PublishConfig(seed=1, validation=3), rows, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


# ---- the hub ----


class Hub:
    """The two functions of the hub that a push calls; a test cannot reach the real one."""

    def __init__(self, monkeypatch, error=None):
        self.calls, self.error = [], error
        for name in ("create_repo", "upload_folder"):
            monkeypatch.setattr(huggingface_hub, name, lambda *args, name=name, **kw: self.called(name, args, kw))
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")

    def called(self, name, args, keywords):
        self.calls.append((name, args, keywords))
        if self.error:
            raise self.error


def test_nothing_is_pushed_unless_a_name_is_given(rows, tmp_path, monkeypatch):
    hub = Hub(monkeypatch)
    publish(PublishConfig(), rows, tmp_path)
    assert hub.calls == []


def test_the_hub_folder_is_pushed_to_a_private_dataset_and_the_token_is_written_nowhere(
    rows, tmp_path, monkeypatch, caplog
):
    caplog.set_level("DEBUG")
    hub = Hub(monkeypatch)
    publish(PublishConfig(push_to_hub="org/sums"), rows, tmp_path)
    (_, args, created), (_, _, uploaded) = hub.calls
    assert args == ("org/sums",) and created == dict(repo_type="dataset", private=True, exist_ok=True)
    assert uploaded["repo_id"] == "org/sums" and uploaded["repo_type"] == "dataset"
    assert uploaded["folder_path"] == tmp_path / "hub" and uploaded["delete_patterns"] == ["data/*.parquet"]
    assert "hf_secret" not in caplog.text + str(hub.calls)
    assert not any(b"hf_secret" in text for text in contents(tmp_path).values())


def test_a_push_that_fails_keeps_the_files_and_says_how_to_go_on(rows, tmp_path, monkeypatch):
    Hub(monkeypatch, error=ConnectionError("no route"))
    with pytest.raises(
        UserError, match=r"hub is written, but the hub does not take it as org/sums \(ConnectionError: no route"
    ):
        publish(PublishConfig(push_to_hub="org/sums"), rows, tmp_path)
    assert [*contents(tmp_path)] == FILES


def test_a_push_without_a_token_is_refused_before_any_work(rows, tmp_path, monkeypatch):
    hub = Hub(monkeypatch)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="push_to_hub org/sums needs a token: set HF_TOKEN"):
        check_publish(PublishConfig(push_to_hub="org/sums"), tmp_path)
    assert hub.calls == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(validation=-1), "validation is -1"),
        (dict(push_to_hub="sums"), "it must be ORG/NAME"),
        (dict(push_to_hub="org/sums/x"), "it must be ORG/NAME"),
        (dict(license="my license: free"), "it must be an identifier of the hub"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        PublishConfig(**changes)
