"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const store = `listening-${data.page}`;
let state = load() || fresh();
let played = new Set();
let since = Date.now();

function random(below) {
  return Math.floor((crypto.getRandomValues(new Uint32Array(1))[0] / 2 ** 32) * below);
}

function shuffled(items) {
  for (let i = items.length - 1; i > 0; i--) {
    const j = random(i + 1);
    [items[i], items[j]] = [items[j], items[i]];
  }
  return items;
}

function fresh() {
  const trials = [];
  data.texts.forEach((_, sentence) => data.pairs.forEach(([a, b]) => {
    trials.push(random(2) ? { sentence, first: a, second: b } : { sentence, first: b, second: a });
  }));
  return { trials: shuffled(trials), answers: [], listener: "" };
}

// Some browsers refuse storage to local files: progress is then kept until the page is closed.
function load() {
  try { return JSON.parse(localStorage.getItem(store)); } catch { return null; }
}

function save() {
  try { localStorage.setItem(store, JSON.stringify(state)); } catch { /* see load */ }
}

function stopAll() {
  document.querySelectorAll("audio").forEach((audio) => { audio.pause(); audio.currentTime = 0; });
  document.querySelectorAll(".play").forEach((button) => button.classList.remove("on"));
}

function play(side) {
  const trial = state.trials[state.answers.length];
  if (!trial) return;
  stopAll();
  const audio = $(`take-${trial.sentence}-${trial[side]}`);
  $(`play-${side}`).classList.add("on");
  audio.onended = () => $(`play-${side}`).classList.remove("on");
  audio.play();
  played.add(side);
  enable();
}

function enable() {
  const ready = played.size === 2;
  document.querySelectorAll(".answer").forEach((button) => { button.disabled = !ready; });
  $("hint").hidden = ready;
}

function answer(choice) {
  if (played.size < 2) return;
  const trial = state.trials[state.answers.length];
  const preferred = choice === "none" ? null : trial[choice];
  state.answers.push({ ...trial, preferred, seconds: Math.round((Date.now() - since) / 100) / 10 });
  next();
}

function back() {
  state.answers.pop();
  next();
}

function next() {
  stopAll();
  save();
  played = new Set();
  since = Date.now();
  show();
}

function show() {
  const done = state.answers.length, all = state.trials.length, trial = state.trials[done];
  $("progress").value = done;
  $("progress").max = all;
  $("count").textContent = trial ? `Pair ${done + 1} of ${all}` : `All ${all} pairs are done.`;
  $("trial").hidden = !trial;
  $("results").hidden = Boolean(trial);
  $("back").disabled = !done;
  if (trial) {
    $("text").textContent = data.texts[trial.sentence];
    enable();
  } else {
    showTally();
  }
}

// Two-sided sign test: probability of a difference at least as large if each answer were a coin toss.
function chance(wins, losses) {
  const n = wins + losses;
  let term = 0.5 ** n, sum = 0;
  for (let k = 0; k <= Math.min(wins, losses); k++) {
    sum += term;
    term *= (n - k) / (k + 1);
  }
  return Math.min(1, 2 * sum);
}

function tally() {
  return data.pairs.map(([a, b]) => {
    const mine = state.answers.filter(({ first, second }) => (first === a && second === b) || (first === b && second === a));
    const count = (voice) => mine.filter(({ preferred }) => preferred === voice).length;
    return { a: data.voices[a], b: data.voices[b], prefers_a: count(a), prefers_b: count(b), no_difference: count(null),
      chance: chance(count(a), count(b)) };
  });
}

function showTally() {
  $("tally").replaceChildren(...tally().map((line) => {
    const row = document.createElement("tr");
    const cells = [line.a, line.prefers_a, line.b, line.prefers_b, line.no_difference, `${(100 * line.chance).toFixed(1)} %`];
    row.append(...cells.map((value) => {
      const cell = document.createElement("td");
      cell.textContent = value;
      return cell;
    }));
    return row;
  }));
}

function named() {
  const name = (index) => (index === null ? null : data.voices[index]);
  return state.answers.map((one) => ({ sentence: one.sentence + 1, text: data.texts[one.sentence], first: name(one.first),
    second: name(one.second), preferred: name(one.preferred), seconds: one.seconds }));
}

function download(name, type, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
}

function saveJson() {
  const content = { page: data.page, title: data.title, listener: state.listener, saved: new Date().toISOString(),
    voices: data.voices, pairs: state.trials.length, tally: tally(), answers: named() };
  download("listening.json", "application/json", JSON.stringify(content, null, 1));
}

function saveCsv() {
  const names = ["sentence", "text", "first", "second", "preferred", "seconds"];
  // A leading = + - @ would be a formula in a spreadsheet.
  const cell = (value) => `"${String(value ?? "").replace(/^[=+\-@]/, "'$&").replace(/"/g, '""')}"`;
  const lines = named().map((one) => names.map((name) => cell(one[name])).join(","));
  download("listening.csv", "text/csv", ["listener", ...names].join(",") + "\n"
    + lines.map((line) => `${cell(state.listener)},${line}\n`).join(""));
}

$("blind").hidden = false;
$("play-first").onclick = () => play("first");
$("play-second").onclick = () => play("second");
document.querySelectorAll(".answer").forEach((button) => { button.onclick = () => answer(button.value); });
$("back").onclick = back;
document.querySelectorAll(".json").forEach((button) => { button.onclick = saveJson; });
document.querySelectorAll(".csv").forEach((button) => { button.onclick = saveCsv; });
$("again").onclick = () => {
  if (confirm("Delete all answers and start again?")) { state = { ...fresh(), listener: state.listener }; next(); }
};
$("listener").value = state.listener;
$("listener").oninput = (event) => { state.listener = event.target.value; save(); };
document.addEventListener("keydown", (event) => {
  if (event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "1") play("first");
  if (event.key === "2") play("second");
});
show();
