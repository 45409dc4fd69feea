"use strict";
// Everything that is shown is set as text, never as HTML: completions and names come from strangers.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function make(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function draw(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

const known = (x) => x !== null && x !== undefined && x !== "";
const percent = (x, sign = false) => (known(x) ? (sign && x >= 0 ? "+" : "") + (100 * x).toFixed(1) : "–");
const ends = (low, high, sign) => (known(low) && known(high) ? `${percent(low, sign)} to ${percent(high, sign)}` : "–");
const number = (x) => (known(x) ? String(Number(x.toPrecision(4))) : "–");
const chance = (x) => (known(x) ? (x < 0.001 ? "< 0.001" : x.toFixed(3)) : "–");

// ---- tables

// One axis for all rows of a table: whole tens of percent around every interval and every seed.
function sharedAxis(rows) {
  const values = rows.flatMap((r) => [r.low, r.high, ...r.per_seed]).filter(known);
  const low = Math.floor(10 * Math.min(...values)) / 10, high = Math.ceil(10 * Math.max(...values)) / 10;
  return { low, high: Math.max(high, low + 0.1) };
}

function seedDots(row, axis) {
  const x = (v) => 4 + 182 * (v - axis.low) / (axis.high - axis.low);
  const picture = draw("svg", { width: 190, height: 20, role: "img" });
  picture.setAttribute("aria-label", `seeds: ${row.per_seed.map((v) => percent(v)).join(", ")}`);
  for (let v = axis.low; v < axis.high + 0.01; v += 0.1) {
    picture.append(draw("line", { x1: x(v), x2: x(v), y1: 0, y2: 20, stroke: "#e2e2e2" }));
  }
  if (known(row.low)) picture.append(draw("line", { x1: x(row.low), x2: x(row.high), y1: 10, y2: 10, stroke: "#1b1b1b", "stroke-width": 2 }));
  for (const v of row.per_seed) picture.append(draw("circle", { cx: x(v), cy: 10, r: 3, fill: "#0072B2", "fill-opacity": 0.75 }));
  return picture;
}

function twoLines(first, second) {
  const box = make("div", first);
  box.append(make("div", second, { class: "small" }));
  return box;
}

// What all rows of a table have in common is said once, above it.
function sharedPlace(rows) {
  const place = {};
  for (const key of ["model", "setting", "baseline"]) {
    const values = new Set(rows.map((r) => r[key]).filter(known));
    if (values.size === 1) [place[key]] = values;
  }
  return place;
}

function sharedWords(rows) {
  const { model, setting, baseline } = sharedPlace(rows);
  return [model, setting, known(baseline) ? `compared with ${baseline}` : ""].filter(known).join("; ");
}

function methodCell(r, place) {
  const box = make("div", r.method);
  const where = ["model", "setting"].filter((key) => !known(place[key])).map((key) => r[key]).filter(known).join(", ");
  if (where) box.append(make("div", where, { class: "small" }));
  if (known(r.baseline) && !known(place.baseline)) box.append(make("div", `against ${r.baseline}`, { class: "small" }));
  return box;
}

function finishedCell(r) {
  const box = twoLines(`${r.finished} of ${r.started}`, r.failed ? `${r.failed} failed` : "");
  if (r.failed) box.lastChild.className = "flag";
  if (r.stand_ins) box.append(make("div", `${r.stand_ins} stand in`, { class: "small" }));
  return box;
}

function differenceCell(r) {
  if (!known(r.difference)) return "";
  const star = r.compared === "methods" ? "" : " *";
  const range = `${ends(r.difference_low, r.difference_high, true)}${star}`;
  return twoLines(percent(r.difference, true), r.seeds_paired ? `${range}, seeds paired` : range);
}

function verdictCell(r) {
  if (!known(r.verdict)) return "";
  const ps = known(r.p_holm) ? [`p\u00a0${chance(r.p_holm)}`] : [];
  if (known(r.p_within_holm)) ps.push(`margin:\u00a0p\u00a0${chance(r.p_within_holm)}`);
  const box = twoLines(r.verdict, ps.join(", "));
  if (/^(better|worse)/.test(r.verdict)) box.classList.add("strong");
  return box;
}

const showRate = (x) => (known(x) ? (x < 0.001 ? x.toExponential() : String(x)) : "");
function rateCell(r) {
  if (!known(r.learning_rate)) return "";
  const box = twoLines(showRate(r.learning_rate), r.edge ? `${r.edge} of ${r.rates_tried}` : `of ${r.rates_tried}`);
  if (r.edge) box.lastChild.className = "flag";
  return box;
}

const passes = (r, kind) => Object.keys(r).filter((k) => k.startsWith(kind) && !k.endsWith("±")).map((k) => Number(k.slice(kind.length)));
const best = (r, kind) => { const k = Math.max(...passes(r, kind).filter((k) => known(r[kind + k]))); return k > 0 ? r[kind + k] : null; };
const about = (r, kind) => {
  const k = Math.max(...passes(r, kind).filter((n) => known(r[kind + n])));
  return k > 0 && known(r[`${kind}${k} ±`]) ? ` ± ${percent(r[`${kind}${k} ±`])}` : "";
};
function accuracyCell(r) {
  const box = twoLines(percent(r.accuracy), `${ends(r.low, r.high)}${r.over === "problems" ? " *" : ""}`);
  if (r.seeds < r.started) box.append(make("div", `${r.seeds} of ${r.started} runs`, { class: "flag" }));
  return box;
}

const title = (axis) => `seeds, ${Math.round(100 * axis.low)} to ${Math.round(100 * axis.high)} %`;
function mainColumns(rows) { // title, value to sort by, what is shown, class
  const axis = rows.length ? sharedAxis(rows) : { low: 0, high: 1 };
  const place = sharedPlace(rows);
  return [
    ["method", (r) => r.method, (r) => methodCell(r, place), "method"],
    ["accuracy, %", (r) => r.accuracy, accuracyCell, ""],
    ["difference", (r) => r.difference, differenceCell, ""],
    ["verdict", (r) => r.verdict, verdictCell, "words"],
    [title(axis), (r) => r.accuracy, (r) => seedDots(r, axis), ""],
    ["finished", (r) => r.finished, finishedCell, ""],
    ["detectable", (r) => r.detectable, (r) => (known(r.detectable) ? percent(r.detectable) : ""), "number"],
    ["rate", (r) => r.learning_rate, rateCell, ""],
  ];
}
const allColumns = (rows) => [
  ["data set", (r) => r.data_set, null, ""], ["T", (r) => r.temperature, null, "number"],
  ...mainColumns(rows),
  ["chance to beat", (r) => r.improvement_probability, (r) => (known(r.improvement_probability) ? chance(r.improvement_probability) : ""), "number"],
  ["gain by choosing the rate", (r) => r.selection_gain, (r) => (known(r.selection_gain) ? percent(r.selection_gain, true) : ""), "number"],
  ["pass@most", (r) => best(r, "pass@"), (r) => percent(best(r, "pass@")) + about(r, "pass@"), "number"],
  ["maj@most", (r) => best(r, "maj@"), (r) => percent(best(r, "maj@")) + about(r, "maj@"), "number"],
  ["tokens", (r) => r.mean_tokens, (r) => number(r.mean_tokens), "number"],
  ["cut off, %", (r) => r.cut_off, (r) => percent(r.cut_off), "number"],
];
const failureColumns = (rows) => [
  ["method", (r) => r.method, (r) => methodCell(r, sharedPlace(rows)), "method"],
  ["started", (r) => r.started, null, "number"], ["finished", (r) => r.finished, null, "number"],
  ["failed", (r) => r.failed, null, "number"],
  ["share, %", (r) => r.share, (r) => twoLines(percent(r.share), ends(r.low, r.high)), ""],
  ["baseline's", (r) => r.theirs_failed, (r) => (known(r.theirs_started) ? `${r.theirs_failed} of ${r.theirs_started}` : ""), ""],
  ["p", (r) => r.p_holm, (r) => (known(r.p_holm) ? chance(r.p_holm) : ""), "number"],
  ["why", (r) => r.why, null, "words"],
];
const inert = (r) => (r.inert ? make("span", "inert: ratio always 1", { class: "flag" }) : known(r.inert) ? "no" : "");
const plain = (title, key) => [title, (r) => r[key], (r) => (typeof r[key] === "number" ? number(r[key]) : r[key]), typeof key];
const RUNS = [
  ["run", (r) => r.run, null, "path"], ["state", (r) => r.state, null, "words"], ["method", (r) => r.method, null, "words"],
  plain("seed", "seed"), ["rate", (r) => r.learning_rate, (r) => showRate(r.learning_rate), "number"],
  ["judged", (r) => String(r.chosen), (r) => (r.chosen ? "yes" : r.tuning ? "tuning" : ""), ""], plain("validation", "validation"),
  ["data set", (r) => r.data_set, null, ""], plain("T", "temperature"),
  ["accuracy, %", (r) => r.accuracy, (r) => percent(r.accuracy), "number"], ["inert", (r) => String(r.inert), inert, ""],
  plain("least ratio", "ratio_min"), plain("greatest ratio", "ratio_max"), plain("outside 1±ε", "outside_ratio"),
  plain("acted on", "active_ratio"), plain("KL", "approx_kl"), plain("hours", "hours"), ["device", (r) => r.device, null, ""],
  ["sampler", (r) => r.sampler, null, ""],
].map((column) => (column[3] === "string" ? [...column.slice(0, 3), "number"] : column));

function fillTable(table, rows, columns, sorted) {
  const head = make("tr");
  columns.forEach(([title], i) => {
    const cell = make("th", null, { scope: "col" });
    if (sorted.column === i) cell.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
    const button = make("button", title + (sorted.column === i ? (sorted.down ? " ▼" : " ▲") : ""), { type: "button" });
    button.addEventListener("click", () => {
      const down = sorted.column === i && !sorted.down;
      fillTable(table, rows, columns, { column: i, down });
      table.querySelectorAll("th button")[i].focus();
    });
    cell.append(button);
    head.append(cell);
  });
  const order = [...rows];
  if (sorted.column !== null) {
    const value = columns[sorted.column][1];
    order.sort((a, b) => compareValues(value(a), value(b), sorted.down ? -1 : 1));
  }
  const body = make("tbody");
  for (const row of order) {
    const line = make("tr");
    for (const [, value, show, kind] of columns) {
      const shown = show ? show(row) : value(row);
      const cell = make("td", null, kind ? { class: kind } : {});
      cell.append(shown instanceof Node ? shown : known(shown) ? String(shown) : "");
      line.append(cell);
    }
    body.append(line);
  }
  const top = make("thead");
  top.append(head);
  table.replaceChildren(top, body);
}

function compareValues(a, b, sign) { // what is not known comes last, whichever way
  if (!known(a) || !known(b)) return known(a) ? -1 : known(b) ? 1 : 0;
  return sign * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
}

function choices(select, values, all) {
  const options = values.map((v) => { const option = make("option", v); option.value = v; return option; });
  select.replaceChildren(...(all ? [new Option(all, "")] : []), ...options);
}

function setUpTable(id, rows, columns, note = "") {
  columns = columns.filter(([, value]) => rows.some((r) => known(value(r)))); // none that says nothing
  const table = byId(id), box = document.querySelector(`[data-for="${id}"]`), selects = {};
  const refresh = () => {
    const kept = rows.filter((r) => Object.entries(selects).every(([k, s]) => !s.value || String(r[k] ?? "") === s.value));
    fillTable(table, kept, columns, { column: null, down: false });
  };
  for (const key of box ? ["model", "setting", "data_set", "temperature"] : []) {
    const values = [...new Set(rows.map((r) => String(r[key] ?? "")))].filter((v) => v).sort();
    if (values.length < 2) continue;
    const label = make("label", `${key.replace("_", " ")} `);
    selects[key] = make("select");
    choices(selects[key], values, "all");
    selects[key].addEventListener("change", refresh);
    label.append(selects[key]);
    box.append(label);
  }
  if (note) table.parentElement.before(make("p", note, { class: "small" }));
  refresh();
}

// ---- problems

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

const PAGE = 200; // problems listed at once
const state = { index: null, found: [], shown: PAGE, current: null, ratings: new Map() };

function viewNow() { // the methods and accuracies of the chosen data set and temperature
  const { views } = state.index;
  return views.find((v) => v.data_set === byId("data-set").value && String(v.temperature) === byId("temperature").value);
}

function methodsNow() { // indices into index.methods of what is shown side by side
  const group = byId("group").value;
  return viewNow().methods.filter((m) => !group || state.index.methods[m].group === group || !state.index.methods[m].setting);
}

function disagree(accuracies) {
  const right = accuracies.filter((a) => a !== null).map((a) => a >= 0.5);
  return right.includes(true) && right.includes(false);
}

function findProblems() {
  const view = viewNow(), methods = methodsNow().map((m) => view.methods.indexOf(m));
  const words = byId("search").value.toLowerCase(), problems = state.index.problems[view.data_set];
  state.found = view.problems.map((p, i) => ({ p, i, problem: problems[p] })).filter(({ i, problem }) =>
    (!byId("category").value || problem.category === byId("category").value) &&
    (!byId("difficulty").value || problem.difficulty === byId("difficulty").value) &&
    (!words || `${problem.id} ${problem.question}`.toLowerCase().includes(words)) &&
    (!byId("disagree").checked || disagree(methods.map((m) => view.accuracy[i][m]))));
  state.shown = PAGE;
  listProblems();
}

function listProblems() {
  const view = viewNow(), methods = methodsNow(), blind = byId("blind").checked;
  const names = methods.map((m) => state.index.methods[m].name).join(" · ");
  byId("found").textContent = `${state.found.length} of ${view.problems.length} problems${blind ? "" : `; right, %: ${names}`}`;
  byId("problems").replaceChildren(...state.found.slice(0, state.shown).map(({ p, i, problem }, at) => {
    const item = make("li"), button = make("button", problem.id, { type: "button" });
    const line = methods.map((m) => view.accuracy[i][view.methods.indexOf(m)]).map((a) => (a === null ? "–" : Math.round(100 * a)));
    if (!blind) button.append(make("div", line.join(" · "), { class: "small" }));
    if (state.current === p) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => openProblem(at));
    item.append(button);
    return item;
  }));
  byId("more").hidden = state.found.length <= state.shown;
}

function randomFrom(text) { // a small generator (mulberry32) seeded by a string (FNV-1a)
  let h = 2166136261;
  for (const c of text) h = Math.imul(h ^ c.codePointAt(0), 16777619);
  return () => {
    h = (h + 0x6d2b79f5) | 0;
    let t = Math.imul(h ^ (h >>> 15), 1 | h);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

function shuffle(list, random) {
  for (let i = list.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [list[i], list[j]] = [list[j], list[i]];
  }
  return list;
}

async function readAnswers(view, p) { // {method index: [[run seed, sample, text, correct, answer, rule, cut off, tokens] ...]}
  const part = byId(`answers-${state.index.views.indexOf(view)}-${p}`);
  return part ? unpack(part.textContent) : {};
}

async function openProblem(at) {
  const view = viewNow(), { p, problem } = state.found[at];
  state.current = p;
  const answers = await readAnswers(view, p);
  if (state.current !== p) return;
  listProblems();
  const box = byId("problem"), steps = make("div", null, { class: "step" });
  for (const [text, to] of [["← previous", at - 1], ["next →", at + 1]]) {
    const button = make("button", text, { type: "button" });
    button.disabled = to < 0 || to >= state.found.length;
    button.addEventListener("click", () => openProblem(to));
    steps.append(button);
  }
  const facts = [problem.category, problem.difficulty, known(problem.gold) && `right answer: ${problem.gold}`].filter(known).filter(Boolean);
  box.replaceChildren(steps, make("h3", problem.id), make("p", problem.question || "", { class: "question" }),
    make("p", facts.join(" · "), { class: "small" }), showAnswers(view, problem, answers));
  box.focus({ preventScroll: window.innerWidth > 700 });
}

function showAnswers(view, problem, answers) {
  const grid = make("div", null, { class: "answers", tabindex: "0", role: "region", "aria-label": "Answers" });
  let columns = methodsNow().filter((m) => answers[m]);
  const blind = byId("blind").checked, seed = byId("blind-seed").value;
  const random = randomFrom(`${seed}|${view.data_set}|${view.temperature}|${problem.id}`);
  if (blind) columns = shuffle(columns, random);
  columns.forEach((m, position) => {
    const method = state.index.methods[m], column = make("section"), all = answers[m];
    const right = all.filter((a) => a[3]).length;
    column.append(make("h4", blind ? `Answer ${String.fromCharCode(65 + position)}` : `${method.name}: ${right} of ${all.length} right`));
    const chosen = blind ? [all[Math.floor(random() * all.length)]] : all;
    for (const answer of chosen) column.append(showCard(answer, blind));
    if (blind) column.append(ratingButtons(view, problem, method, chosen[0], position, seed));
    grid.append(column);
  });
  if (!columns.length) grid.append(make("p", "No completion of this problem is in the page."));
  return grid;
}

function showCard([seed, sample, text, correct, answer, rule, cut, tokens], blind) {
  const card = make("div", null, { class: blind ? "card" : `card ${correct ? "right" : "wrong"}` });
  if (!blind) {
    card.append(make("span", correct ? "✓ right" : "✗ wrong", { class: "verdict" }));
    const read = known(answer) ? `reads ${answer} (${rule})` : "no answer found";
    const which = known(seed) ? `seed ${seed}, sample ${sample}` : `sample ${sample}`;
    card.append(make("div", `${read} · ${which} · ${tokens} tokens${cut ? ", cut off" : ""}`, { class: "small" }));
  }
  card.append(make("pre", text));
  return card;
}

// ---- ratings

const STORE = `ratings ${data.title}`;

function ratingButtons(view, problem, method, answer, position, seed) {
  const key = JSON.stringify([view.data_set, view.temperature, problem.id, method.model, method.setting, method.label, answer[0], answer[1], seed]);
  const box = make("div", null, { class: "rating", role: "group", "aria-label": `Rating of answer ${position + 1}, 1 is worst` });
  for (let value = 1; value <= 5; value++) {
    const pressed = () => String(state.ratings.get(key)?.rating === value);
    const button = make("button", value, { type: "button", "aria-pressed": pressed() });
    button.addEventListener("click", () => {
      state.ratings.set(key, { rating: value, position: position + 1 });
      keepRatings();
      box.querySelectorAll("button").forEach((b) => b.setAttribute("aria-pressed", String(b === button)));
    });
    box.append(button);
  }
  return box;
}

function keepRatings() {
  byId("rated").textContent = state.ratings.size ? `${state.ratings.size} rated` : "";
  try { localStorage.setItem(STORE, JSON.stringify([...state.ratings])); } catch { /* a page without storage: export in time */ }
}

function exportRatings() {
  const quote = (v) => `"${String(v ?? "").replaceAll('"', '""')}"`;
  const lines = [...state.ratings].map(([key, r]) => [...JSON.parse(key), r.position, r.rating].map(quote).join(","));
  const header = "data_set,temperature,problem,model,setting,method,run_seed,sample,order_seed,position,rating";
  const link = make("a", null, { download: "ratings.csv" });
  link.href = URL.createObjectURL(new Blob([[header, ...lines, ""].join("\n")], { type: "text/csv" }));
  link.click();
  URL.revokeObjectURL(link.href);
}

// ---- start

function chooseDataSet() {
  const name = byId("data-set").value, problems = state.index.problems[name];
  choices(byId("temperature"), state.index.views.filter((v) => v.data_set === name).map((v) => String(v.temperature)));
  for (const key of ["category", "difficulty"]) {
    const values = [...new Set(problems.map((p) => p[key]))].filter((v) => v).sort();
    choices(byId(key), values, "all");
    byId(key).parentElement.hidden = !values.length;
  }
  chooseView();
}

function chooseView() {
  const groups = [...new Set(viewNow().methods.map((m) => state.index.methods[m]).filter((m) => m.setting).map((m) => m.group))];
  const before = byId("group").value;
  choices(byId("group"), groups.length ? groups : [""], null);
  if (groups.includes(before)) byId("group").value = before;
  byId("group").parentElement.hidden = groups.length < 2;
  refreshProblems();
}

function refreshProblems() {
  state.current = null;
  byId("problem").replaceChildren(make("p", "Choose a problem."));
  findProblems();
}

async function setUpBrowser() {
  state.index = await unpack(byId("index").textContent);
  if (!state.index.views.length) {
    byId("browser").replaceChildren(make("h2", "Problems"), make("p", "No run has a result."));
    return;
  }
  choices(byId("data-set"), [...new Set(state.index.views.map((v) => v.data_set))]);
  byId("data-set").addEventListener("change", chooseDataSet);
  byId("temperature").addEventListener("change", chooseView);
  for (const id of ["group", "category", "difficulty", "disagree", "blind", "blind-seed"]) byId(id).addEventListener("change", refreshProblems);
  byId("search").addEventListener("input", refreshProblems);
  byId("more").addEventListener("click", () => { state.shown += PAGE; listProblems(); });
  byId("export").addEventListener("click", exportRatings);
  for (const form of document.forms) form.addEventListener("submit", (event) => event.preventDefault());
  try { state.ratings = new Map(JSON.parse(localStorage.getItem(STORE) || "[]")); } catch { state.ratings = new Map(); }
  keepRatings();
  chooseDataSet();
}

const primary = data.results.filter((r) => r.primary);
setUpTable("results-table", primary, mainColumns(primary), sharedWords(primary));
setUpTable("all-table", data.results, allColumns(data.results), sharedWords(data.results));
if (data.controls.length) setUpTable("controls-table", data.controls, allColumns(data.controls), sharedWords(data.controls));
setUpTable("failures-table", data.failures, failureColumns(data.failures), sharedWords(data.failures));
setUpTable("runs-table", data.runs, RUNS);
setUpBrowser().then(
  () => { document.documentElement.dataset.ready = Math.round(performance.now()); },
  (error) => { byId("browser-note").textContent = `The problems cannot be shown: ${error.message}. A browser of 2023 or later is needed.`; });
