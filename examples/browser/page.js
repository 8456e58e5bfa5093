// The page around the learner: drawing, answering, and what there is to see of it.

import * as ort from "./ort/ort.wasm.min.mjs";
import { Learner } from "./learner.js";

const element = (id) => document.getElementById(id);
const paper = element("paper").getContext("2d", { willReadFrequently: true });
const seen = element("seen").getContext("2d");
const SIZE = paper.canvas.width;
const WINDOW = 20; // answers that the share of right ones is taken over

ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
ort.env.wasm.numThreads = 1;
const read = async (name) => {
  const found = await fetch(name);
  if (!found.ok) throw new Error(`${name}: ${found.status} ${found.statusText}`);
  return found.arrayBuffer();
};

let learner;
let held;
let pixels = null; // of the drawing that is being looked at
let answer = null; // what the network said of it
let busy = false;

// 8 x 8 pixels from 0 to 1, made as the digits that ship with scikit-learn were: the ink is fitted into 32 x 32, and its dots
// are counted in squares of 4 x 4. Null where nothing is drawn.
function digitise() {
  const { data } = paper.getImageData(0, 0, SIZE, SIZE);
  const ink = [];
  for (let i = 0; i < SIZE * SIZE; i++) if (data[4 * i] < 128 && data[4 * i + 3] > 0) ink.push([i % SIZE, Math.floor(i / SIZE)]);
  if (!ink.length) return null;
  const [left, right] = range(ink.map(([x]) => x));
  const [top, bottom] = range(ink.map(([, y]) => y));
  const scale = 32 / Math.max(right - left + 1, bottom - top + 1);
  const across = (32 - (right - left + 1) * scale) / 2;
  const down = (32 - (bottom - top + 1) * scale) / 2;
  const dots = new Set();
  for (const [x, y] of ink) {
    dots.add(Math.floor((y - top) * scale + down) * 32 + Math.floor((x - left) * scale + across));
  }
  const counts = new Array(64).fill(0);
  for (const dot of dots) counts[Math.floor(dot / 128) * 8 + Math.floor((dot % 32) / 4)] += 1;
  return counts.map((n) => Math.min(n, 16) / 16);
}

function range(values) {
  return values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
}

// Look at 64 pixels and answer.
async function show(given) {
  pixels = given;
  const guess = await learner.guess(pixels);
  answer = guess.answer;
  element("guess").innerHTML = `I think this is <b>${answer}</b> (${Math.round(100 * guess.likely[answer])} %)`;
  paint(await learner.relevance(pixels));
  enable();
  return answer;
}

// Learn whether the answer was right; if not, answer again.
async function reply(right) {
  if (pixels === null || busy) return;
  await alone(async () => {
    await learner.learn(pixels, answer, right);
    await follow(right);
    await report();
  });
}

// What comes after an answer: another drawing, or another guess at this one.
async function follow(right) {
  if (right) forget("Right! Draw the next one.");
  else if (learner.open(pixels).some(Boolean)) await show(pixels);
  else forget("All ten were wrong, so this was no digit. Draw the next one.");
}

// Run one thing at a time, with the buttons off.
async function alone(run) {
  busy = true;
  enable();
  try {
    await run();
  } finally {
    busy = false;
    enable();
  }
}

function forget(words) {
  pixels = answer = null;
  paper.clearRect(0, 0, SIZE, SIZE);
  element("guess").textContent = words;
  enable();
}

// How well it goes: the last answers, and digits that nobody has asked about.
async function report() {
  const { answers } = learner;
  const recent = answers.slice(-WINDOW);
  element("count").textContent = answers.length;
  element("recent").textContent = recent.length ? percent(recent.filter(Boolean).length / recent.length) : "–";
  element("held").textContent = percent(await learner.accuracy(held.images, held.labels));
  const shares = answers.map((_, i) => {
    const part = answers.slice(Math.max(0, i - WINDOW + 1), i + 1);
    return part.filter(Boolean).length / part.length;
  });
  const width = Math.max(shares.length - 1, 1);
  const points = shares.map((share, i) => `${(300 * i) / width},${88 - 86 * share}`).join(" ");
  element("curve").innerHTML = `<polyline points="${points}" fill="none" stroke="var(--on)" stroke-width="2" vector-effect="non-scaling-stroke"/>`;
}

const percent = (share) => `${(100 * share).toFixed(0)} %`;

function enable() {
  for (const id of ["right", "wrong"]) element(id).disabled = busy || pixels === null;
  element("undo").disabled = busy || !learner.before.length;
}

// The 8 x 8 pixels in light grey, relevance over them in red and blue.
function paint(relevance) {
  const side = seen.canvas.width / 8;
  const largest = Math.max(...relevance.map(Math.abs), 1e-12);
  pixels.forEach((value, i) => {
    const [x, y] = [(i % 8) * side, Math.floor(i / 8) * side];
    const grey = Math.round(255 * (1 - 0.35 * value)); // light, so that the colours over it can be told
    seen.fillStyle = `rgb(${grey} ${grey} ${grey})`;
    seen.fillRect(x, y, side, side);
    const share = relevance[i] / largest;
    seen.fillStyle = share > 0 ? `rgb(220 30 40 / ${0.75 * share})` : `rgb(30 80 220 / ${-0.75 * share})`;
    seen.fillRect(x, y, side, side);
  });
}

function draw() {
  let last = null;
  const place = (event) => {
    const box = paper.canvas.getBoundingClientRect();
    return [((event.clientX - box.left) * SIZE) / box.width, ((event.clientY - box.top) * SIZE) / box.height];
  };
  paper.canvas.addEventListener("pointerdown", (event) => {
    last = place(event);
    paper.canvas.setPointerCapture(event.pointerId);
  });
  paper.canvas.addEventListener("pointermove", (event) => {
    if (last === null) return;
    const next = place(event);
    Object.assign(paper, { lineWidth: SIZE / 11, lineCap: "round", lineJoin: "round", strokeStyle: "#000" });
    paper.beginPath();
    paper.moveTo(...last);
    paper.lineTo(...next);
    paper.stroke();
    last = next;
  });
  paper.canvas.addEventListener("pointerup", async () => {
    last = null;
    const given = digitise();
    if (given !== null && !busy) await alone(() => show(given));
  });
}

async function save() {
  const url = URL.createObjectURL(new Blob(learner.weights(), { type: "application/octet-stream" }));
  Object.assign(document.createElement("a"), { href: url, download: "taught.safetensors" }).click();
  URL.revokeObjectURL(url);
}

async function begin() {
  learner = await Learner.load(ort, read);
  const raw = JSON.parse(new TextDecoder().decode(await read("test.json")));
  held = { images: raw.images.map((image) => image.map((v) => v / 16)), labels: raw.labels };
  draw();
  element("right").onclick = () => reply(true);
  element("wrong").onclick = () => reply(false);
  element("clear").onclick = () => forget("Draw a digit.");
  const back = (change, words) => () =>
    alone(async () => {
      change();
      forget(words);
      await report();
    });
  element("undo").onclick = back(() => learner.undo(), "The last answer is taken back.");
  element("reset").onclick = back(() => learner.reset(), "All is forgotten. Draw a digit.");
  element("save").onclick = save;
  document.addEventListener("keydown", (event) => {
    if (event.key === "y") reply(true);
    if (event.key === "n") reply(false);
  });
  forget("Draw a digit.");
  await report();
  window.lfp = { learner, show, reply, held, answer: () => answer, isBusy: () => busy }; // for a scripted teacher
}

begin().catch((error) => {
  element("guess").textContent = `This page cannot start: ${error.message}`;
  throw error;
});
