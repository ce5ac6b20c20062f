"""Replayed rules -> aligned plain text for terminals."""

from __future__ import annotations

from s1jax.results.metrics import Point
from s1jax.results.replay_rows import Replayed
from s1jax.results.samples import SETTING, pick
from s1jax.results.tables import CurveNames, groups, percent, setting_text
from s1jax.runtime.command import counted
from s1jax.runtime.text_table import Table

_NAMES = {
    "votes": "majority voting",
    "shortest": "first to end (short-m@k)",
    "agreement": "equal answers (Dynasor)",
    "confidence": "weighted votes (DeepConf)",
    "online": "stopped traces (DeepConf online)",
    "answer_confidence": "sure answer (DEER)",
}
_MEASURES = {"mean": "mean", "tail": "tail", "bottom": "lowest tenth", "lowest": "lowest group"}


def format_replay_table(replayed: Replayed) -> str:
    """Return the rules as aligned plain text: a block per setting, with the rules that are left out below it.

    "tokens" are those of all traces of a problem, thinking and answers; "longest" those of its longest trace; "of voting" is the share of
    the tokens of plain majority voting with as many votes.
    """
    names, blocks, num_empty = CurveNames([*replayed.points, *replayed.left_out]), [], 0
    for setting in groups([*replayed.points, *replayed.left_out], *SETTING):
        points = [p for p in replayed.points if pick(p, SETTING) == pick(setting[0], SETTING)]
        if setting[0]["num_samples"] == setting[0]["num_budgets"] == 1:
            num_empty += 1
            continue
        header = ("rule", "setting", "votes", "accuracy %", "95% interval", "tokens", "longest", "of voting")
        cells = []
        for p in points:
            share = "-" if p["share"] is None else f"{p['share']:.0%}"
            sizes = (f"{p['tokens']:,.1f}", f"{p['longest_trace']:,.1f}", share)
            cells.append((_NAMES[p["rule"]], _setting(p), str(p["k"]), *percent(p, "accuracy"), *sizes))
        notes = [
            f"left out: {_NAMES[p['rule']]}: {p['why']}"
            for p in replayed.left_out
            if pick(p, SETTING) == pick(setting[0], SETTING)
        ]
        drawn = {p["rule"]: p["draws"] for p in points if p["draws"]}
        if drawn:
            rules = ", ".join(_NAMES[rule] for rule in drawn)
            notes.insert(0, f"over {max(drawn.values()):,} random subsets of the samples, not all: {rules}")
        title = f"{names.title(setting[0])}, {setting_text(setting[0])}"
        blocks.append(Table(title, header, cells, notes).text() if points else "\n".join([title, *notes]))
    if num_empty:
        which = counted(num_empty, "other setting" if blocks else "setting")
        blocks.append(f"nothing to replay under {which}: one sample per problem and one budget")
    return "\n\n".join(blocks)


def _setting(point: Point) -> str:
    """Name the parameters of a rule in a few words."""
    rule, given = point["rule"], point["parameters"]
    if rule == "shortest":
        return f"first {given['m']} vote"
    if rule == "agreement":
        return f"{given['equal']} in a row"
    if rule == "answer_confidence":
        return f"above {given['above']:g}"
    if rule == "confidence":
        kept = "all vote" if given["keep"] is None else f"top {100 * given['keep']:g}% vote"
        return f"{_MEASURES[given['measure']]}, {kept}"
    return f"keeps top {100 * given['keep']:g}% of {given['warm_up']}" if rule == "online" else "-"
