"""`figures.py`: figures show all points, and no text is cut off."""

import itertools
import json

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from s1jax.results.figure_page import COLORS, MARKERS
from s1jax.results.figures import plot_thinking, plot_tokens, plot_voting
from s1jax.results.grid import scaling_grid, to_compare
from s1jax.results.metrics import thinking_curve, voting_curve
from s1jax.results.paper import paper_points
from s1jax.results.tables import format_thinking_table, format_voting_table, setting_text
from s1jax.runtime.errors import UserError
from tests.support.samples import sample, study_rows


@pytest.fixture
def drawn(monkeypatch):
    """The figures that get saved."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1])
    return figures


@pytest.fixture
def laid_out(monkeypatch):
    """The figures that would get saved."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **k: (figures.append(self), path.write(b"picture")))
    return figures


def texts_within(figure):
    """Check that no text of a figure is cut off or leaves its panel, and that no two tick labels of an axis touch."""
    figure.canvas.draw()
    page = figure.bbox
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= page.x1
    for text in figure.findobj(
        lambda artist: hasattr(artist, "get_text") and artist.get_text() and artist.get_visible()
    ):
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= page.x1 and box.y1 <= page.y1, text.get_text()
    for ax in figure.axes:
        assert ax.get_window_extent().y1 < legend.y0
        assert ax._left_title.get_window_extent().x1 <= ax.get_window_extent().x1
        for labels, edge in ((ax.get_xticklabels(), ("x0", "x1")), (ax.get_yticklabels(), ("y0", "y1"))):
            boxes = sorted((label.get_window_extent() for label in labels), key=lambda b: getattr(b, edge[0]))
            assert 2 <= len(boxes) <= 9
            assert all(getattr(a, edge[1]) < getattr(b, edge[0]) for a, b in itertools.pairwise(boxes))


def test_figures_show_exactly_the_points_of_their_json(tmp_path, drawn):
    data = study_rows(samples=4)
    points = plot_thinking(data, tmp_path / "new" / "a.png")
    assert points == thinking_curve(data)
    assert json.loads(json.dumps(points)) == json.loads((tmp_path / "new" / "a.json").read_text())
    votes = plot_voting(data, tmp_path / "b.png")
    assert votes == voting_curve(data)
    assert json.loads(json.dumps(votes)) == json.loads((tmp_path / "b.json").read_text())
    assert sorted(p.name for p in tmp_path.rglob("*.*")) == ["a.json", "a.png", "b.json", "b.png"]
    shown = {
        (round(x, 6), round(y, 6))
        for line in drawn[0].axes[0].lines
        if line.get_marker() not in ("None", None, "")
        for x, y in zip(*line.get_data(), strict=True)
    }
    assert shown == {
        (round(p["mean_thinking_tokens"], 6), round(p["accuracy"], 6)) for p in points if p["mean_thinking_tokens"]
    }
    image = imread(tmp_path / "new" / "a.png")
    assert image.shape[1] > 1200 and image[..., :3].std() > 0.05


def test_no_point_without_thinking_is_lost(tmp_path, drawn):
    plot_thinking(study_rows(), tmp_path / "a.png")
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == [
        "thinking budget",
        "no thinking",
        'stopping replaced by "Wait"',
    ]
    assert any(line.get_linestyle() == ":" for line in drawn[0].axes[0].lines)


@pytest.mark.parametrize(
    "data",
    [
        study_rows(),
        study_rows(budgets=(512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144), waits=(), natural=10**6),
        study_rows(budgets=(64,), waits=()),
        study_rows(budgets=(0,), waits=()),
        study_rows(benchmarks=("aime24", "gpqa_diamond", "math500", "gsm8k"), waits=(1, 2, 3, 4, 5, 6)),
        study_rows(models=("/a/very/long/path" * 9 + r"/model_$\frac{$_of_odd_name", "other", "third")),
        [
            row | {"ignore_text": 40 * "let me see\n"}
            for row in study_rows(benchmarks=("W" * 40, 9 * "a long name "), waits=(1,))
        ],
    ],
    ids=["usual", "ten budgets", "one point", "no thinking at all", "four benchmarks", "three models", "long names"],
)
def test_no_text_is_cut_off_and_no_ticks_touch(tmp_path, laid_out, data):
    plot_thinking(data, tmp_path / "a.png")
    plot_voting([row | {"sample_index": i, "temperature": 1.0} for i in (0, 1) for row in data], tmp_path / "b.png")
    for figure in laid_out:
        texts_within(figure)


def labels(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def lines(figure):
    """The points of each line that joins some."""
    joined = [line for line in figure.axes[0].lines if line.get_linestyle() not in ("None", ":")]
    return [list(zip(*line.get_data(), strict=True)) for line in joined]


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (("runs/lr1e-5/qwen2.5-32b-instruct-s1k/hf", "runs/lr5e-5/qwen2.5-32b-instruct-s1k/hf", "other"),
         ["runs/lr1e-5/qwen…instruct-s1k/hf", "runs/lr5e-5/qwen…instruct-s1k/hf", "other"]),
        ((40 * "a" + "1" + 40 * "b", 40 * "a" + "2" + 40 * "b"), ["…1" + 40 * "b", "…2" + 40 * "b"]),
    ],
)  # fmt: skip
def test_models_whose_names_end_alike_stay_apart(tmp_path, laid_out, models, names):
    points = plot_thinking(study_rows(models=models, budgets=(16, 32), waits=()), tmp_path / "a.png")
    plot_voting(study_rows(models=models, budgets=(16,), waits=(), samples=2), tmp_path / "b.png")
    assert sorted(labels(laid_out[0])) == sorted(f"{name}: thinking budget" for name in names)
    assert sorted(labels(laid_out[1])[:-1]) == sorted(f"{name}: majority vote" for name in names)
    assert [len(line) for line in lines(laid_out[0])] == [2] * len(models) and len(points) == 2 * len(models)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        (dict(top_p=0.9), ["top-p 0.9", "top-p 1"]),
        (dict(max_answer_tokens=8), ["answer limit 512", "answer limit 8"]),
        (dict(dtype="float32", int8=("cache", "weights")), ["bfloat16, no int8", "float32, int8 cache and weights"]),
        (dict(weights="fedcba987654"), ["weights 012345", "weights fedcba"]),
        (dict(tokenizer="fedcba987654"), ["tokenizer ba9876", "tokenizer fedcba"]),
        (dict(model="n", weights="fedcba987654", tokenizer="fedcba987654"), ["m", "n"]),
        (dict(top_k=None, top_p=None, dtype=None), ["", "3 settings unknown"]),
    ],
)
def test_curves_are_named_by_what_sets_them_apart_and_never_joined(tmp_path, laid_out, changes, names):
    one = study_rows(budgets=(16, 32), waits=(), samples=2)
    data = one + [row | changes for row in one]
    points = plot_thinking(data, tmp_path / "a.png")
    plot_voting(data, tmp_path / "b.png")
    assert sorted(labels(laid_out[0])) == sorted(f"{name}: thinking budget".removeprefix(": ") for name in names)
    assert len(labels(laid_out[1])) == 2 * 2 + 1 and all(
        any(name in label for label in labels(laid_out[1])) for name in names
    )
    assert [len(line) for line in lines(laid_out[0])] == [2, 2] and len(points) == 4
    titles = [block.splitlines()[0] for block in format_thinking_table(data).split("\n\n")[:2]]
    assert len(set(titles)) == 2 and all(any(name in title for title in titles) for name in names)


def test_a_line_joins_points_of_one_minimum_and_ignore_text(tmp_path, laid_out):
    settings = [(0, 0, ""), (0, 1, "Wait"), (8, 0, "Wait"), (8, 1, "Wait"), (8, 0, "Hmm"), (8, 1, "")]
    names = ("min_thinking_tokens", "num_ignore", "ignore_text")
    data = [
        row | dict(zip(names, setting, strict=True)) | {"num_thinking_tokens": row["num_thinking_tokens"] + i}
        for i, setting in enumerate(settings)
        for row in study_rows(budgets=(16, 32), waits=())
    ]
    plot_thinking(data, tmp_path / "a.png")
    assert labels(laid_out[0]) == [
        "thinking budget",
        'stopping replaced by "Wait"',
        'at least 8, "Hmm": thinking budget',
        'at least 8, "Wait": thinking budget',
        "at least 8: stopping forbidden",
        'at least 8: stopping replaced by "Wait"',
    ]
    x = sorted([round(x) for x, _ in line] for line in lines(laid_out[0]))
    assert x == [[16, 17], [16, 32], [18, 19], [18, 34], [20, 36], [21], [32, 33], [34, 35], [37]]
    plot_thinking(
        [row for row in data if row["min_thinking_tokens"] and row["ignore_text"] == "Wait"], tmp_path / "a.png"
    )
    assert labels(laid_out[1]) == ["thinking budget", 'stopping replaced by "Wait"']


def test_points_over_different_problems_are_not_joined(tmp_path, laid_out):
    data = study_rows(budgets=(16, 32, 64), waits=(1,))
    plot_thinking([row for row in data if row["problem_id"] != "p0" or row["max_thinking_tokens"] < 64], tmp_path / "a")
    assert [len(line) for line in lines(laid_out[0])] == [2, 1, 2], (
        "one of two budgets, one from the third budget to its ignored stop"
    )
    assert labels(laid_out[0]) == ["thinking budget", 'stopping replaced by "Wait"']
    assert any("not joined" in text.get_text() for text in laid_out[0].texts)


def test_equal_series_are_drawn_one_within_the_other(tmp_path, laid_out):
    plot_thinking(study_rows(models=("m", "n", "o"), budgets=(16, 32), waits=()), tmp_path / "a.png")
    sizes = [line.get_markersize() for line in laid_out[0].axes[0].lines if len(line.get_xdata()) == 2]
    assert sizes == sorted(set(sizes), reverse=True) and len(sizes) == 3


def test_every_count_of_ignored_stops_is_labelled_where_points_are_close(tmp_path, laid_out):
    waits = tuple(range(1, 7))
    data = [
        row | ({"num_thinking_tokens": 50, "correct": True} if row["num_ignore"] else {})
        for row in study_rows(waits=waits)
    ]
    plot_thinking(data, tmp_path / "a.png")
    assert [text.get_text() for text in laid_out[0].axes[0].texts] == [f"×{k}" for k in waits]
    texts_within(laid_out[0])


def test_twelve_series_look_different(tmp_path, laid_out):
    plot_thinking(study_rows(models=[f"m{i}" for i in range(12)], budgets=(0, 16, 32), waits=()), tmp_path / "a.png")
    handles = laid_out[0].legends[0].legend_handles
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in handles}) == len(handles) == 24
    plot_voting(study_rows(models=[f"m{i}" for i in range(12)], budgets=(16,), waits=(), samples=2), tmp_path / "b.png")
    (ax,) = laid_out[1].axes
    x = [x for line in ax.lines for x in line.get_xdata()]
    assert ax.get_xlim()[0] < min(x) and max(x) < ax.get_xlim()[1]


def test_an_ignore_text_is_shown_on_one_line(tmp_path, laid_out):
    data = [row | {"ignore_text": "Hm,\n\u2028wait\\n"} for row in study_rows()]
    plot_thinking(data, tmp_path / "a.png")
    assert labels(laid_out[0])[-1] == r'stopping replaced by "Hm,\n\u2028wait\\n"'
    assert r'budget 64, "Hm,\n\u2028wait\\n" x2' in format_thinking_table(data)
    assert len(format_thinking_table(data).splitlines()) == 11


def test_settings_have_names_of_their_own():
    settings = itertools.product((0, 8), (0, 1), ("", "Wait", "Hmm"))
    names = ("min_thinking_tokens", "num_ignore", "ignore_text")
    points = thinking_curve([sample(**dict(zip(names, setting, strict=True))) for setting in settings])
    assert len({setting_text(point) for point in points}) == len(points) == 10


def test_a_figure_without_thinking_speaks_of_no_budget_and_no_bars(tmp_path, laid_out):
    plot_thinking(study_rows(budgets=(0,), waits=(1,)), tmp_path / "a.png")
    assert labels(laid_out[0]) == ["no thinking"]
    assert not any("bars" in text.get_text() for text in laid_out[0].texts)


def test_a_model_that_does_not_think_is_a_level_beside_the_curve_of_one_that_does(tmp_path, laid_out):
    at_once = dict(thinking_format="none", wrap_up="", max_thinking_tokens=0, num_thinking_tokens=0)
    data = study_rows(budgets=(16, 32), waits=()) + [sample(problem_id=f"p{i}", **at_once) for i in range(5)]
    plot_thinking(data, tmp_path / "a.png")
    assert labels(laid_out[0]) == ["thinking-format none: no thinking", "thinking-format s1: thinking budget"]


def test_characters_that_the_font_lacks_are_no_warnings(tmp_path):
    plot_thinking(study_rows(benchmarks=("数学🙂",), budgets=(16,), waits=()), tmp_path / "a.png")


def test_series_differ_in_luminance_or_blue_yellow_as_well_as_in_marker():
    assert len(set(MARKERS)) == 8 and len(set(COLORS)) == 7  # coprime
    # Without red-green vision, two colours differ if their luminance or their share of blue differs.
    left = [(0.2126 * r + 0.7152 * g + 0.0722 * b, b - (r + g) / 2) for r, g, b in map(to_rgb, COLORS)]
    apart = [np.hypot(*np.subtract(a, b)) for i, a in enumerate(left) for b in left[:i]]
    assert min(apart) > 0.08


def test_voting_needs_two_samples(tmp_path):
    with pytest.raises(ValueError, match="at least two samples"):
        plot_voting(study_rows(), tmp_path / "b.png")
    assert format_voting_table(study_rows()) == ""
    assert not list(tmp_path.iterdir())


def test_a_single_point_is_left_out_where_others_form_a_curve_of_its_benchmark(tmp_path, caplog):
    caplog.set_level("INFO", "s1jax")
    curve, single = study_rows(), [row | {"temperature": 1.0} for row in study_rows(samples=4, budgets=(64,), waits=())]
    points = plot_thinking(curve + single, tmp_path / "both.png")
    assert {point["temperature"] for point in points} == {0.0}
    assert "not drawn beside curves of several points, but in the table: toy, m, budget_forcing, temp" in caplog.text
    elsewhere = [row | {"benchmark": "other"} for row in single]
    assert {point["benchmark"] for point in plot_thinking(curve + elsewhere, tmp_path / "a.png")} == {"toy", "other"}
    assert len(plot_thinking(single, tmp_path / "single.png")) == 1


# ---- all tokens ----


def shown(figure):
    """The points that have a marker, over all panels."""
    return {
        (round(x, 6), round(y, 6))
        for ax in figure.axes
        for line in ax.lines
        if line.get_marker() not in ("None", None, "")
        for x, y in zip(*line.get_data(), strict=True)
    }


def base_rows(samples=8):
    """Samples of a model that does not think."""
    rows = study_rows(models=("base",), budgets=(0,), waits=(), samples=samples)
    changes = {"weights": "fedcba987654", "num_answer_tokens": 7, "correct": True, "extracted": "1"}
    return [row | changes for row in rows]


def test_the_waits_of_one_model_and_the_votes_of_another_meet_on_one_axis(tmp_path, laid_out):
    grid = to_compare(scaling_grid(study_rows() + base_rows()))
    points = plot_tokens(grid, tmp_path / "a.png")
    assert points == grid == scaling_grid(study_rows() + base_rows())
    assert json.loads(json.dumps(points)) == json.loads((tmp_path / "a.json").read_text())
    assert shown(laid_out[0]) == {(round(p["tokens"], 6), round(p["accuracy"], 6)) for p in points}
    assert labels(laid_out[0]) == [
        "base, temperature 1: majority vote",
        "m, temperature 0: thinking budget",
        'm, temperature 0: stopping replaced by "Wait"',
    ]
    x = [[round(x, 3) for x, _ in line] for line in lines(laid_out[0])]
    assert [7, 14, 28, 56] in x, "an answer of 7 tokens and no thinking, voting over 1 to 8 samples"
    assert [5, 21, 37, 57] in x, "budgets of 0 to 64 thinking tokens and an answer; traces end at 52 tokens"
    assert [57, 63, 68.4] in x, "ignored stops leave from the largest budget, which ends some of the traces with two"
    texts_within(laid_out[0])


def test_one_answer_of_a_model_that_does_not_think_is_a_point_at_its_answers_tokens(tmp_path, laid_out):
    plot_tokens(to_compare(scaling_grid(study_rows(samples=2) + base_rows(samples=1))), tmp_path / "a.png")
    assert labels(laid_out[0])[0] == "base, temperature 0: no thinking"
    assert (7, 1) in shown(laid_out[0])


def test_a_grid_of_budgets_and_votes_has_its_front_and_one_vote_in_full(tmp_path, laid_out):
    grid = to_compare(scaling_grid(study_rows(samples=4)))
    plot_tokens(grid, tmp_path / "a.png")
    assert shown(laid_out[0]) == {(round(p["tokens"], 6), round(p["accuracy"], 6)) for p in grid}
    assert labels(laid_out[0])[2:] == ["majority vote", "majority vote at other settings", "Pareto front"]
    front = sorted((p["tokens"], p["accuracy"]) for p in grid if p["is_on_front"])
    assert front in lines(laid_out[0]) and len(front) > 2
    votes = [line for line in lines(laid_out[0]) if line[0][0] * 4 == pytest.approx(line[-1][0]) and len(line) == 3]
    assert len(votes) == 6, "four budgets and two counts of ignored stops"
    texts_within(laid_out[0])


@pytest.mark.parametrize(
    "data",
    [
        study_rows(benchmarks=("aime24", "gpqa_diamond", "math500", "gsm8k"), samples=2, waits=(1, 2, 3)),
        study_rows(models=("/a/very/long/path" * 9 + "/of_odd_name", "other"), samples=2) + base_rows(),
        study_rows(benchmarks=("W" * 40, 9 * "a long name "), samples=4, waits=(1,)),
    ],
    ids=["four benchmarks", "three models", "long names"],
)
def test_no_text_of_a_figure_of_all_tokens_is_cut_off(tmp_path, laid_out, data):
    plot_tokens(to_compare(scaling_grid(data)), tmp_path / "a.png")
    texts_within(laid_out[0])


# ---- the paper's points ----


def test_the_papers_points_stand_beside_ours_in_the_panel_of_their_benchmark(tmp_path, laid_out):
    data = study_rows(benchmarks=("aime24", "toy"), waits=(1,), natural=3000, budgets=(512, 1024, 4096))
    data = [row | {"correct": False} for row in data]
    paper = paper_points({"aime24", "toy"})
    points = plot_thinking(data, tmp_path / "a.png", paper)
    assert points == [*thinking_curve(data), *paper]
    assert json.loads(json.dumps(points)) == json.loads((tmp_path / "a.json").read_text())
    hollow = [[line for line in ax.lines if line.get_markerfacecolor() == "white"] for ax in laid_out[0].axes]
    assert [len(lines) for lines in hollow] == [1 + 3, 0], "figure 1, and the three levels of figure 4"
    assert list(zip(*hollow[0][0].get_data(), strict=True))[-1] == (7320, 0.567)
    counts = [text.get_text() for text in laid_out[0].axes[0].texts if text.get_text().count(",")]
    assert counts == ["×0,8", "×1,2,3,5,7", "×4,6"]
    low, high = laid_out[0].axes[0].get_ylim()
    assert low <= 0 and high >= 0.567
    assert labels(laid_out[0])[-2].endswith("s1-32B (paper)") and not any(
        "paper" in m for m in {r["model"] for r in data}
    )
    texts_within(laid_out[0])


def test_the_paper_without_one_of_its_benchmarks_is_an_error():
    with pytest.raises(
        UserError, match="points of aime24, math500, gpqa_diamond, but the rows are of 'toy': leave out --paper"
    ):
        paper_points({"toy"})


def test_the_papers_curves_have_the_figures_of_merit_of_its_table_3():
    """Table 3 for budget forcing on AIME24: Scaling 15, Performance 56.7. The mean slope is over all pairs of points."""
    points = [p for p in paper_points({"aime24"}) if p["mean_thinking_tokens"]]
    curve = [(np.log2(p["mean_thinking_tokens"]), 100 * p["accuracy"]) for p in points]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.combinations(curve, 2)]
    assert max(solved for _, solved in curve) == pytest.approx(56.7)
    assert round(np.mean(slopes)) == 15
