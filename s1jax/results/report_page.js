// The page of a report: filters, the list of answers, and the answer that is read. All text of models becomes text nodes.
// The address says what is shown: #results, #answers, or #answer-ROW.

const ROW_HEIGHT = 58;
const $ = (id) => document.getElementById(id);

/** Make an element. `children` are nodes, or texts, which become text nodes. */
function make(tag, properties = {}, ...children) {
  const { data, ...rest } = properties;
  const node = Object.assign(document.createElement(tag), rest);
  for (const [name, value] of Object.entries(data ?? {})) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** The nodes of a text in which every character shows. */
function shown(text) {
  const nodes = [];
  let from = 0;
  for (const { 0: sign, index } of text.matchAll(SIGNS)) {
    nodes.push(text.slice(from, index), make("span", { className: "sign", title: "a character that does not print" }, signName(sign)));
    from = index + sign.length;
  }
  return [...nodes, text.slice(from)];
}

/** A text with marked spans [start, end, class], which may overlap, and nodes [place, node] between its characters. */
function marked(text, spans, inserts = []) {
  const cuts = new Set([0, text.length, ...spans.flatMap(([start, end]) => [start, end]), ...inserts.map(([place]) => place)]);
  const places = [...cuts].filter((place) => place <= text.length).sort((a, b) => a - b);
  const box = make("div", { className: "text" });
  places.forEach((place, i) => {
    box.append(...inserts.filter((insert) => insert[0] === place).map((insert) => insert[1]));
    if (i + 1 === places.length) return;
    const classes = spans.filter(([start, end]) => start <= place && places[i + 1] <= end).map((span) => span[2]);
    const nodes = shown(text.slice(place, places[i + 1]));
    box.append(...(classes.length ? [make("span", { className: [...new Set(classes)].join(" ") }, ...nodes)] : nodes));
  });
  return box;
}

function hitSpans(text, needle) {
  if (!needle) return [];
  const pattern = new RegExp(needle.replace(/[\\^$.*+?()[\]{}|\-/]/g, "\\$&"), "giu");
  return [...text.matchAll(pattern)].slice(0, 1000).map((hit) => [hit.index, hit.index + hit[0].length, "hit"]);
}

class Page {
  constructor(report) {
    this.report = report;
    this.rows = []; // those that are listed
    this.at = 0; // place in the list
    this.hits = null;
    this.needle = "";
    this.searches = 0;
    this.hasSamples = report.columns.sample.some(Boolean);
    this.fillFilters();
    this.listen();
    this.filter();
    this.navigate();
  }

  // ---- filters and search ----

  fillFilters() {
    const { report } = this;
    const options = {
      verdict: ["all", ...GRADES.map(([name, sign]) => `${sign} ${name}`)],
      turn: ["all", ...TURNS.slice(1), "either way"],
      condition: ["all", ...report.conditions],
      benchmark: ["all", ...report.benchmarks],
      model: ["all", ...report.models],
    };
    for (const [name, texts] of Object.entries(options)) {
      const first = name === "turn" ? 0 : -1; // value 0 of a turn is none
      $(name).append(...texts.map((text, i) => make("option", { value: i ? i + first : -1 }, visible(text))));
      const isUseless = texts.length < 3 || (name === "turn" && !report.columns.turn.some(Boolean));
      $(name).parentElement.hidden = isUseless;
    }
    this.filters = Object.keys(options);
    $("problem").parentElement.hidden = report.problems.length < 2;
  }

  chosen() { return Object.fromEntries(this.filters.map((name) => [name, Number($(name).value)])); }

  /** List the rows that fit; the current row stays current if it is among them. */
  filter() {
    const current = this.rows[this.at];
    this.rows = this.report.filter(this.chosen(), this.report.problemsWith($("problem").value), this.hits);
    this.at = Math.max(0, this.rows.indexOf(current));
    const all = this.report.size.toLocaleString("en");
    const isAll = this.rows.length === this.report.size;
    $("count").textContent = isAll ? `${all} answers` : `${this.rows.length.toLocaleString("en")} of ${all} answers`;
    const active = this.filters.filter((name) => $(name).value !== "-1").length + ($("problem").value ? 1 : 0);
    $("toggle").textContent = active ? `Filters (${active})` : "Filters";
    $("reset").hidden = !active && !$("search").value;
    $("all").style.height = `${this.rows.length * ROW_HEIGHT}px`;
    this.reveal();
    this.draw();
  }

  async search() {
    const needle = $("search").value, number = ++this.searches, progress = $("progress");
    this.needle = needle;
    this.hits = needle ? new Uint8Array(this.report.size) : null;
    progress.hidden = !needle;
    progress.value = 0;
    this.filter();
    if (!needle) return;
    let drawn = performance.now();
    await this.report.search(needle, this.hits, () => number === this.searches, (share) => {
      progress.value = share;
      progress.hidden = share === 1;
      if (share < 1 && performance.now() - drawn < 250) return;
      this.filter();
      drawn = performance.now();
    });
  }

  /** List only the answers to a problem. */
  only(problem) {
    $("problem").value = problem.id;
    this.filter();
    if (matchMedia("(max-width: 860px)").matches) location.hash = "answers";
  }

  reset() {
    for (const name of this.filters) $(name).value = "-1";
    $("search").value = $("problem").value = "";
    this.search();
  }

  // ---- the list ----

  draw() {
    const list = $("list"), first = Math.max(0, Math.floor(list.scrollTop / ROW_HEIGHT) - 5);
    const last = Math.min(this.rows.length, first + Math.ceil(list.clientHeight / ROW_HEIGHT) + 10);
    const items = [];
    for (let place = first; place < last; place++) items.push(this.item(place));
    $("all").replaceChildren(...items);
    if (this.rows.length) list.setAttribute("aria-activedescendant", `item${this.at}`);
    else list.removeAttribute("aria-activedescendant");
  }

  item(place) {
    const row = this.rows[place], { columns } = this.report, problem = this.report.problem(row);
    const [name, sign, style] = this.report.grade(row), turn = TURNS[columns.turn[row]], answer = columns.answer[row];
    const item = make(
      "div",
      {
        className: "row",
        id: `item${place}`,
        onclick: () => this.choose(place, true),
        data: { role: "option", "aria-selected": place === this.at, "aria-posinset": place + 1, "aria-setsize": this.rows.length },
      },
      make(
        "div", {},
        make("span", { className: `grade ${style}` }, `${sign} ${name}`),
        make("span", { className: "what" }, visible(problem.question?.slice(0, 120) ?? problem.id)),
        turn && make("span", { className: `turn ${turn === TURNS[1] ? "right" : "wrong"}` }, turn),
      ),
      make(
        "div", { className: "under" },
        make("span", { className: "what" }, visible(this.report.condition(row))),
        make("span", {}, (this.hasSamples ? `sample ${columns.sample[row]} · ` : "") + inTokens(columns.tokens[row])),
        make("span", { className: "said" }, answer === null ? "" : `→ ${visible(answer)}`),
      ),
    );
    item.style.top = `${place * ROW_HEIGHT}px`;
    return item;
  }

  /** Scroll so that the current row is in view. */
  reveal() {
    const list = $("list"), top = this.at * ROW_HEIGHT;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + ROW_HEIGHT > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW_HEIGHT - list.clientHeight;
  }

  choose(place, reads) {
    if (!this.rows.length) return;
    this.at = Math.min(Math.max(place, 0), this.rows.length - 1);
    this.reveal();
    this.draw();
    if (reads) this.go(this.rows[this.at]);
  }

  // ---- what is shown ----

  go(row) { location.hash = `answer-${row}`; }

  async navigate() {
    const row = Number(/^#answer-(\d+)$/.exec(location.hash)?.[1] ?? -1), reads = row >= 0 && row < this.report.size;
    const isAnswers = reads || location.hash === "#answers";
    $("results").hidden = isAnswers;
    $("answers").hidden = !isAnswers;
    $("answers").classList.toggle("reading", reads);
    $("to-results").toggleAttribute("aria-current", !isAnswers);
    $("to-answers").toggleAttribute("aria-current", isAnswers);
    if (isAnswers) this.draw();
    if (!reads) return this.backToList(isAnswers);
    const place = this.rows.indexOf(row);
    if (place >= 0) this.choose(place, false);
    const forks = await this.report.trace(row);
    if (location.hash !== `#answer-${row}`) return;
    $("detail").replaceChildren(...new Answer(this, row, forks).nodes());
    $("detail").scrollTop = 0;
    $("detail").focus({ preventScroll: true });
  }

  backToList(isAnswers) {
    $("detail").replaceChildren(make("p", { className: "empty" }, "Choose an answer to read it."));
    if (isAnswers) $("list").focus({ preventScroll: true });
  }

  /** Read the answer that is `step` places further in the list. */
  move(step) { this.choose(this.at + step, true); }

  // ---- keys and pointers ----

  listen() {
    let timer;
    $("controls").addEventListener("submit", (event) => event.preventDefault());
    $("search").addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.search(), 150);
    });
    for (const name of this.filters) $(name).addEventListener("change", () => this.filter());
    $("problem").addEventListener("input", () => this.filter());
    $("reset").addEventListener("click", () => this.reset());
    $("toggle").addEventListener("click", () => {
      $("toggle").setAttribute("aria-expanded", $("filters").classList.toggle("open"));
      this.draw();
    });
    $("list").addEventListener("scroll", () => this.draw(), { passive: true });
    $("list").addEventListener("keydown", (event) => this.listKey(event));
    $("search").addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown" || event.key === "Enter") {
        event.preventDefault();
        $("list").focus();
      }
    });
    addEventListener("resize", () => this.draw());
    addEventListener("hashchange", () => this.navigate());
    addEventListener("keydown", (event) => {
      const isTyping = event.target.matches?.("input, select");
      if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey && !$("answers").hidden) {
        event.preventDefault();
        location.hash = "answers";
        $("search").focus();
      } else if (event.key === "Escape" && !isTyping && location.hash.startsWith("#answer-")) location.hash = "answers";
    });
  }

  listKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor($("list").clientHeight / ROW_HEIGHT) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -this.rows.length, End: this.rows.length };
    if (event.key in steps) this.choose(this.at + steps[event.key], false);
    else if (event.key === "Enter" && this.rows.length) this.go(this.rows[this.at]);
    else return;
    event.preventDefault();
  }
}
