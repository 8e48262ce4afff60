"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const boxes = [...document.querySelectorAll("input.drop")];
const store = `check-data-${data.page}`;

// Some browsers refuse storage to local files: marks are then kept until the page is closed.
function load() {
  try { return JSON.parse(localStorage.getItem(store)) || []; } catch { return []; }
}

function save() {
  const marked = data.clips.filter((_, number) => boxes[number].checked).map((one) => one.clip);
  try { localStorage.setItem(store, JSON.stringify(marked)); } catch { /* see load */ }
}

function show() {
  const count = boxes.filter((box) => box.checked).length;
  $("save").textContent = `Save drop.csv (${count})`;
  $("save").disabled = count === 0;
  boxes.forEach((box) => box.closest("article").classList.toggle("marked", box.checked));
}

function changed() {
  save();
  show();
}

function cell(value) {
  return /[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
}

function list() {
  const rows = data.clips.filter((_, number) => boxes[number].checked);
  const lines = rows.map((one) => [one.clip, one.source, one.signals].map(cell).join(","));
  return ["clip,source,signals", ...lines, ""].join("\n");
}

function download() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([list()], { type: "text/csv" }));
  link.download = "drop.csv";
  link.click();
  URL.revokeObjectURL(link.href);
}

function mark(all) {
  boxes.forEach((box) => { box.checked = all; });
  changed();
}

// One clip plays at a time.
document.addEventListener("play", (event) => {
  document.querySelectorAll("audio").forEach((audio) => { if (audio !== event.target) audio.pause(); });
}, true);
boxes.forEach((box) => box.addEventListener("change", changed));
$("save").addEventListener("click", download);
$("all").addEventListener("click", () => mark(true));
$("none").addEventListener("click", () => mark(false));
const stored = new Set(load());
boxes.forEach((box, number) => { box.checked = stored.has(data.clips[number].clip); });
show();
