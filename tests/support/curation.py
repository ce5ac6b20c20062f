"""What the tests of curation share: rows from dicts, and the verdicts of a stage as a list."""

import json

import pyarrow as pa

from data_tools.curation.stage import VERDICT, Rows, Stage, find_result, write_result
from data_tools.curation.workers import Workers

COLUMNS = ("id", "question", "reference", "source", "domain", "thinking", "answer", "file")


def pool_of(folder, dicts, workers=None, part_rows=3):
    """Return `Rows` of these dicts, as the stage collect writes them, in parts of a few rows. Missing columns are empty."""
    stage = Stage("collect", 1, {"rows": json.loads(json.dumps(dicts, default=str))}, lambda rows: [])
    parts = []
    for begin in range(0, max(1, len(dicts)), part_rows):
        part = dicts[begin : begin + part_rows]
        columns = {name: pa.array([d.get(name, "") for d in part], pa.string()) for name in COLUMNS}
        extra = {name: pa.array([d[name] for d in part]) for name in (part[0] if part else {}) if name not in COLUMNS}
        rows = pa.array(range(begin, begin + len(part)), VERDICT["row"])
        empty = pa.array([None] * len(part), pa.string())
        lines = pa.array(range(begin + 1, begin + len(part) + 1), pa.int64())
        parts.append(pa.table({"row": rows, "reason": empty, "detail": empty, "line": lines} | columns | extra))
    return Rows((write_result(stage, parts, "", folder),), workers or Workers(num_processes=1))


def verdicts_of(stage, rows, folder):
    """Run a stage; return its result and its verdicts, one dict per row with all columns that it adds."""
    result = find_result(stage, rows.key, folder)
    if not result.is_there:
        write_result(stage, stage.run(rows), rows.key, folder)
    return result, result.verdicts(sorted(result.columns)).to_pylist()
