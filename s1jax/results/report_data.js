"use strict";
// The data of a report, without its page: compressed blocks -> rows, texts, filters and search.

const GRADES = [["right", "✓", "right"], ["wrong", "✗", "wrong"], ["no answer", "∅", "none"], ["timed out", "◷", "late"]];
const TURNS = ["", "wrong to right", "right to wrong"];
const KEPT_BLOCKS = 12;
const SLICE = 12; // milliseconds of work between two chances for the page to draw

// Controls, marks that reorder or hide text, tag characters, and halves of a character.
const SIGNS = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}\p{Surrogate}]/gu;

const signName = (sign) => {
  const code = sign.codePointAt(0).toString(16);
  return code.length <= 2 ? `\\x${code.padStart(2, "0")}` : code.length <= 4 ? `\\u${code.padStart(4, "0")}` : `\\u{${code}}`;
};

/** A text on one line, with names in place of what would not show. */
const visible = (text) => text.replace(/[ \t\n]+/g, " ").replace(SIGNS, signName);

const inTokens = (count) => `${count.toLocaleString("en")} token${count === 1 ? "" : "s"}`;

const shortened = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);

const pause = () => new Promise((go) => setTimeout(go));

async function unpack(id) {
  const binary = atob(document.getElementById(id).textContent);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

class Report {
  /** Rows are numbered as they stand in the blocks. `columns` holds a value of each row, by the name of the column. */
  static async open() {
    const report = Object.assign(new Report(), await unpack("index"));
    const { columns, settings } = report;
    report.size = columns.trace.length;
    report.conditions = [...new Set(settings.map((setting) => setting.condition))];
    const places = settings.map((setting) => report.conditions.indexOf(setting.condition));
    columns.condition = columns.setting.map((setting) => places[setting]);
    for (const name of Object.keys(columns)) if (name !== "answer") columns[name] = Int32Array.from(columns[name]);
    report.firstRows = []; // of each trace
    columns.trace.forEach((trace, row) => (report.firstRows[trace] ??= row));
    report.firstTraces = []; // of each block
    let count = 0;
    for (const size of report.blocks) {
      report.firstTraces.push(count);
      count += size;
    }
    report.kept = new Map();
    return report;
  }

  problem(row) { return this.problems[this.columns.problem[row]]; }
  condition(row) { return this.conditions[this.columns.condition[row]]; }
  grade(row) { return GRADES[this.columns.verdict[row]]; }

  async block(number) {
    if (!this.kept.has(number)) {
      if (this.kept.size >= KEPT_BLOCKS) this.kept.delete(this.kept.keys().next().value);
      this.kept.set(number, unpack(`block${number}`));
    }
    return this.kept.get(number);
  }

  /** All rows of the trace of a row, with their texts. */
  async trace(row) {
    const number = this.columns.trace[row], first = this.firstRows[number];
    let block = this.blocks.length - 1;
    while (this.firstTraces[block] > number) block--;
    const { thinking, forks } = (await this.block(block))[number - this.firstTraces[block]];
    return forks.map((fork, i) => ({ ...fork, row: first + i, thinking: thinking.slice(0, fork.shared) + fork.tail }));
  }

  /** The problems of this id, or if there is none those with this text in id or question, as flags; null if there is no text. */
  problemsWith(text) {
    if (!text) return null;
    const isThis = this.problems.map(({ id }) => id === text), needle = text.toLowerCase();
    if (isThis.includes(true)) return isThis;
    return this.problems.map(({ id, question }) => `${id}\n${question ?? ""}`.toLowerCase().includes(needle));
  }

  /** The rows that have all the chosen values (-1: any; turn 3: either turn), of these problems, and hits of a search; null: all. */
  filter(chosen, problems, hits) {
    const { columns } = this, rows = [];
    const wanted = Object.entries(chosen).filter(([, value]) => value >= 0);
    const fits = wanted.map(([name, value]) => [columns[name], value, name === "turn" && value === 3]);
    for (let row = 0; row < this.size; row++) {
      if ((hits && !hits[row]) || (problems && !problems[columns.problem[row]])) continue;
      if (fits.every(([column, value, isEither]) => column[row] === value || (isEither && column[row] > 0))) rows.push(row);
    }
    return rows;
  }

  /** Mark in `hits` the rows whose thinking, answer or question has a text, whatever its case. Ends early once `isCurrent` is false. */
  async search(text, hits, isCurrent, show) {
    const needle = text.toLowerCase(), has = (where) => where.toLowerCase().includes(needle);
    const asked = this.problems.map((problem) => has(problem.question ?? "") || has(problem.id));
    let since = performance.now(), row = 0;
    for (let number = 0; number < this.blocks.length; number++) {
      const block = this.kept.has(number) ? await this.kept.get(number) : await unpack(`block${number}`);
      for (const { thinking, forks } of block) {
        const isInTrace = has(thinking);
        for (const fork of forks) {
          hits[row] = asked[this.columns.problem[row]] || has(fork.answer) || (isInTrace && fork.shared === thinking.length)
            || ((isInTrace || fork.tail !== "") && has(thinking.slice(0, fork.shared) + fork.tail)) ? 1 : 0;
          row++;
        }
        if (performance.now() - since > SLICE) {
          await pause();
          if (!isCurrent()) return;
          since = performance.now();
          show(row / this.size);
        }
      }
    }
    if (isCurrent()) show(1);
  }
}
