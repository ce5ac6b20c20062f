// One answer, to be read: question, thinking with its marks, answer, grade, and the other forks of its trace.

const ENDS = {
  model: "The model ended its thinking here",
  budget: "The budget ended the thinking here",
  rejected: "Every trace was too long: there is no answer",
  none: "The model was not asked to think",
};

class Answer {
  constructor(page, row, forks) {
    this.page = page;
    this.report = page.report;
    this.row = row;
    this.forks = forks;
    this.self = forks.find((fork) => fork.row === row);
    this.problem = this.report.problem(row);
    this.settings = this.settingsOf(row);
  }

  settingsOf(row) { return this.report.settings[this.report.columns.setting[row]].columns; }
  label(row) {
    const [name, sign, style] = this.report.grade(row);
    return make("span", { className: `grade ${style}` }, `${sign} ${name}`);
  }

  nodes() {
    const { problem, self } = this, thinking = self.thinking;
    return [
      this.head(),
      ...(problem.question ? [make("h4", {}, "Question"), this.text(problem.question, [], [], "question")] : []),
      make("h4", {}, "Thinking"),
      this.legend(),
      ...(thinking && !thinking.trim() ? [make("p", { className: "empty" }, "white space only")] : []),
      thinking ? this.text(thinking, self.thinking_spans, this.endsOfForks()) : make("p", { className: "empty" }, "none"),
      this.end(),
      make("h4", {}, "Answer"),
      this.text(self.answer, self.answer_spans.map(([start, end, kind]) => [start, end, this.isRight || kind !== "extracted" ? kind : "extracted bad"])),
      make("h4", {}, "Grade"),
      this.grade(),
      ...(this.forks.length > 1 ? [make("h4", {}, "Forks of this trace"), this.forkList()] : []),
      this.details(),
    ];
  }

  get isRight() { return this.report.columns.verdict[this.row] === 0; }

  text(text, spans, inserts, style = "") {
    const box = marked(text, [...spans, ...hitSpans(text, this.page.needle)], inserts);
    if (style) box.classList.add(style);
    return box;
  }

  head() {
    const { report, row, self, page } = this, { columns } = report, turn = TURNS[columns.turn[row]];
    const step = (name, label, by) => make("button", { type: "button", title: label, onclick: () => page.move(by), data: { "aria-label": label } }, name);
    const facts = [
      report.models[columns.model[row]],
      report.benchmarks[columns.benchmark[row]],
      `seed ${self.facts.seed}, sample ${self.facts.sample_index}`,
    ];
    return make(
      "div", {},
      make(
        "div", { className: "head" },
        make("button", { type: "button", id: "back", onclick: () => (location.hash = "answers") }, "‹ List"),
        make("h3", {}, visible(this.problem.id), " ",
          make("button", { type: "button", className: "fork", onclick: () => page.only(this.problem) }, "only this problem")),
        make("span", { className: "steps" }, step("↑", "Previous answer", -1), step("↓", "Next answer", 1)),
      ),
      make("p", { className: "facts" }, this.label(row), "  ", visible(report.condition(row)), "  ",
        turn ? make("span", { className: `turn ${turn === TURNS[1] ? "right" : "wrong"}` }, `a Wait turned it: ${turn}`) : ""),
      make("p", { className: "facts" }, visible(facts.join(" · "))),
    );
  }

  /** Say what the marks mean that this answer has. */
  legend() {
    const { self, settings } = this, lines = [];
    const ignored = self.facts.num_ignored, found = self.thinking_spans.length;
    if (ignored && settings.ignore_text) {
      lines.push(["wait", shortened(visible(settings.ignore_text), 60), ` replaced an attempt to stop (${ignored} ignored). It is found by its text, in order, and by `
        + "where forks ended: one that the model wrote itself may be marked instead."]);
      if (found < ignored) lines.push(["", "", `${ignored - found} of them are not found in the text.`]);
    } else if (ignored) lines.push(["", "", `${ignored} attempts to stop were prevented: another token was drawn. No text shows where.`]);
    if (this.endsOfForks().length) lines.push(["", "", "A button in the text stands where the thinking of another condition ended."]);
    return make("div", { className: "legend" }, ...lines.map(([style, sample, text]) =>
      make("p", {}, sample ? make("span", { className: style }, sample) : "", text)));
  }

  /** Buttons for the forks that ended inside this thinking. A cut inside a character leaves U+FFFD at their end. */
  endsOfForks() {
    const { thinking } = this.self;
    return this.forks.flatMap((fork) => {
      const part = fork.thinking.replace(/\ufffd+$/, "");
      const ended = part.length < thinking.length && thinking.startsWith(part) && fork.ended !== "rejected";
      return ended ? [[part.length, this.forkButton(fork)]] : [];
    });
  }

  forkButton(fork) {
    const [name, sign, style] = this.report.grade(fork.row), condition = visible(this.report.condition(fork.row));
    const title = `${condition} ended here: ${name}${fork.extracted === null ? "" : `, ${visible(fork.extracted)}`}`;
    const text = `↳ ${shortened(condition, 36)} ${sign}`;
    return make("button", { type: "button", className: `fork ${style}`, title, onclick: () => this.page.go(fork.row) }, text);
  }

  end() {
    const { self, settings } = this, tokens = inTokens(self.facts.num_thinking_tokens);
    if (["rejected", "none"].includes(self.ended)) return make("p", { className: "end" }, ENDS[self.ended]);
    const wrapUp = settings.wrap_up && !self.answer_spans.some((span) => span[2] === "forced") ? ` and ${visible(settings.wrap_up)}` : "";
    const written = self.delimiter ? visible(self.delimiter) : "the end of thinking";
    const forced = self.ended === "budget" ? [". Forced: ", make("span", { className: "forced" }, written + wrapUp)] : [`. Then: ${written}`];
    return make("p", { className: `end ${self.ended}` }, `${ENDS[self.ended]}, after ${tokens}`, ...forced);
  }

  grade() {
    const { self, problem, row } = this;
    const list = make("dl", {});
    const add = (name, ...value) => list.append(make("dt", {}, name), make("dd", {}, ...value));
    add("verdict", this.label(row), self.facts.judge ? ` by the judge ${visible(self.facts.judge)}` : "");
    add("found answer", ...(self.extracted === null
      ? ["none"] : [make("span", { className: this.isRight ? "extracted" : "extracted bad" }, ...shown(self.extracted))]));
    add("gold answer", ...(problem.gold === undefined ? ["not in the rows: give the problems as --benchmark"] : shown(problem.gold)));
    if (self.facts.finish_reason === "length") add("cut", "the answer limit ended the answer");
    return list;
  }

  forkList() {
    const mine = this.self.thinking;
    const relation = ({ thinking, row }) => {
      const part = thinking.replace(/\ufffd+$/, "");
      if (row === this.row) return "this answer";
      if (thinking === mine) return "ends at the same place";
      if (mine.startsWith(part)) return "ends earlier in this thinking";
      return thinking.startsWith(mine.replace(/\ufffd+$/, "")) ? "thinks on from here" : "thinks something else";
    };
    return make("ul", { className: "forks" }, ...this.forks.map((fork) => make("li", {}, make(
      "button",
      { type: "button", onclick: () => this.page.go(fork.row), data: fork.row === this.row ? { "aria-current": "true" } : {} },
      make("span", {}, visible(this.report.condition(fork.row))),
      this.label(fork.row),
      make("small", {}, (fork.ended === "none" ? "no thinking" : `${inTokens(fork.facts.num_thinking_tokens)}, ended by the ${fork.ended}`)
        + ` · ${relation(fork)}`
        + `${fork.extracted === null ? "" : ` · answer ${shortened(visible(fork.extracted), 80)}`}`),
    ))));
  }

  details() {
    const list = make("dl", {});
    const values = { "row of the file": this.report.columns.number[this.row], ...this.self.facts, ...this.settings };
    for (const [name, value] of Object.entries(values)) {
      const text = value === null ? "unknown" : typeof value === "string" ? JSON.stringify(value) : String(value);
      list.append(make("dt", {}, name.replaceAll("_", " ")), make("dd", {}, ...shown(text)));
    }
    return make("details", {}, make("summary", {}, "All columns of the row"), list);
  }
}
