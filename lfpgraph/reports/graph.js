"use strict";
// The module tree and the drawing of the operation graph. Data: see lfpgraph/reports/html.py.
const data = JSON.parse(document.getElementById("data").textContent);
const say = i => data.strings[i];
const NONE = data.classes.indexOf("none");
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 190, HEIGHT = 40, GAP_X = 24, GAP_Y = 36, FIRST_LOOK = 60, MOST = 1500;

// ---- where each operation stands in the tree: a branch is known by its place in data.branches
const parentOf = new Int32Array(data.branches.length).fill(-1);
const homeOf = new Int32Array(data.ops.length).fill(0);
data.branches.forEach(([, members], b) => members.forEach(m => { if (m < 0) parentOf[~m] = b; else homeOf[m] = b; }));
const open = new Set();

function el(tag, attributes = {}, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

// ---- module tree, built as it is opened
function bar(counts) {
  const total = counts.reduce((a, b) => a + b, 0) || 1;
  const box = document.createElement("span");
  box.className = "bar";
  counts.forEach((n, c) => {
    if (!n) return;
    const part = document.createElement("span");
    part.style.cssText = `width:${100 * n / total}%;background:${data.colours[c]}`;
    part.title = `${n} ${data.classes[c]}`;
    box.append(part);
  });
  return box;
}

function branchItem(b, isOpen) {
  const [name, members, counts, times] = data.branches[b];
  const item = document.createElement("details");
  const summary = document.createElement("summary");
  summary.append(say(name) + (times > 1 ? ` × ${times}` : "") + ` (${counts.reduce((a, x) => a + x, 0)}) `, bar(counts));
  const draw = document.createElement("button");
  draw.textContent = "draw";
  draw.onclick = event => { event.preventDefault(); reveal(b); };
  summary.append(draw);
  item.append(summary);
  const fill = () => { if (item.open && item.children.length === 1) members.forEach(m => item.append(m < 0 ? branchItem(~m) : opItem(m))); };
  item.addEventListener("toggle", fill);
  if (isOpen) { item.open = true; fill(); }
  return item;
}

function opItem(i) {
  const [op, cls, shape, , source] = data.ops[i];
  const item = document.createElement("div");
  item.className = "op";
  const dot = document.createElement("span");
  dot.className = "dot";
  dot.style.background = data.colours[cls];
  const name = document.createElement("code");
  name.textContent = say(op);
  item.append(dot, name, ` ${say(shape)} ${say(source)}`);
  item.title = data.classes[cls];
  return item;
}

// ---- the drawing
function boxOf(i) { // the outermost closed branch around operation i, else the operation itself (as ~i)
  let found = ~i;
  for (let b = homeOf[i]; b >= 0; b = parentOf[b]) if (!open.has(b)) found = b;
  return found;
}

function layout() {
  const hidden = !document.getElementById("constants").checked;
  const boxes = new Map(), at = new Array(data.ops.length);
  data.ops.forEach((op, i) => {
    if (hidden && op[1] === NONE) return;
    const key = boxOf(i);
    if (!boxes.has(key)) boxes.set(key, { key, first: i, into: new Set(), from: new Set(), rank: 0 });
    at[i] = boxes.get(key);
  });
  for (const [s, t] of data.edges) {
    const a = at[s], b = at[t];
    if (a && b && a !== b) { a.into.add(b); b.from.add(a); }
  }
  const ordered = [...boxes.values()].sort((a, b) => a.first - b.first);
  for (const box of ordered) for (const p of box.from) if (p.first < box.first) box.rank = Math.max(box.rank, p.rank + 1);
  const ranks = [];
  for (const box of ordered) (ranks[box.rank] ||= []).push(box);
  for (let sweep = 0; sweep < 4; sweep++) {
    for (const row of ranks) {
      for (const box of row) {
        const near = [...box.from, ...box.into].filter(p => p.x !== undefined);
        box.want = near.length ? near.reduce((a, p) => a + p.x, 0) / near.length : (box.x ?? 0);
      }
      row.sort((a, b) => a.want - b.want || a.first - b.first);
      const middle = row.reduce((a, p) => a + p.want, 0) / row.length;
      row.forEach((box, i) => { box.x = middle + (i - (row.length - 1) / 2) * (WIDTH + GAP_X); });
    }
  }
  for (const box of ordered) box.y = box.rank * (HEIGHT + GAP_Y);
  return ordered;
}

const drawing = document.getElementById("drawing");
let view = { x: 0, y: 0, w: 1000, h: 600 };
let current = [];

function show() { drawing.setAttribute("viewBox", `${view.x} ${view.y} ${view.w} ${view.h}`); }

function fit() {
  if (!current.length) return;
  const xs = current.map(b => b.x), ys = current.map(b => b.y);
  const left = Math.min(...xs) - WIDTH, right = Math.max(...xs) + WIDTH;
  const top = Math.min(...ys) - 20, bottom = Math.max(...ys) + HEIGHT + 20;
  const ratio = drawing.clientHeight / drawing.clientWidth || 0.6;
  view.w = Math.max(right - left, 500);
  view.h = view.w * ratio;
  if (bottom - top < view.h * 3) { view.h = Math.max(view.h, bottom - top); view.w = view.h / ratio; }
  view.x = (left + right) / 2 - view.w / 2;
  view.y = top;
  show();
}

function edge(a, b) {
  const x1 = a.x, y1 = a.y + HEIGHT, x2 = b.x, y2 = b.y;
  const far = b.rank - a.rank !== 1;
  const bow = far ? WIDTH * 0.75 + 12 * Math.min(Math.abs(b.rank - a.rank), 8) : 0;
  const pull = far ? 30 : GAP_Y / 2;
  return `M${x1} ${y1}C${x1 + bow} ${y1 + pull} ${x2 + bow} ${y2 - pull} ${x2} ${y2}`;
}

function cut(text, most) { return text.length > most ? text.slice(0, most - 1) + "…" : text; }

function drawBox(box) {
  const isOp = box.key < 0;
  const g = el("g", { class: "box", transform: `translate(${box.x - WIDTH / 2} ${box.y})` });
  if (isOp) {
    const [op, cls, shape, module, source, family] = data.ops[~box.key];
    g.append(el("rect", { width: WIDTH, height: HEIGHT, fill: data.colours[cls] + "33", stroke: data.colours[cls] }));
    g.append(el("text", { x: 8, y: 16 }, cut(say(op), 28)), el("text", { x: 8, y: 31, class: "small" }, cut(say(shape) || say(module), 34)));
    g.append(el("title", {}, `${say(op)}: ${data.classes[cls]} (${say(family)})\n${say(shape)}\n${say(module)}\n${say(source)}`));
    g.addEventListener("click", () => { if (!moved && homeOf[~box.key] > 0) { open.delete(homeOf[~box.key]); draw(); } });
  } else {
    const [name, , counts, times] = data.branches[box.key];
    const total = counts.reduce((a, b) => a + b, 0);
    g.append(el("rect", { width: WIDTH, height: HEIGHT, fill: "#8882", stroke: "currentColor" }));
    g.append(el("text", { x: 8, y: 16 }, "▸ " + cut(say(name), times > 1 ? 20 : 26) + (times > 1 ? ` × ${times}` : "")));
    g.append(el("text", { x: 8, y: 29, class: "small" }, times > 1 ? `${total / times} operations each` : `${total} operations`));
    let x = 0;
    counts.forEach((n, c) => {
      if (n) g.append(el("rect", { x, y: HEIGHT - 5, width: WIDTH * n / total, height: 4, fill: data.colours[c], stroke: "none" }));
      x += WIDTH * n / total;
    });
    g.append(el("title", {}, `${say(name)}\n` + counts.map((n, c) => n ? `${n} ${data.classes[c]}` : "").filter(Boolean).join(", ")));
    g.addEventListener("click", () => { if (!moved) { open.add(box.key); draw(); } });
  }
  g.setAttribute("tabindex", "0");
  g.setAttribute("role", "button");
  if (found(box)) g.classList.add("found");
  g.addEventListener("keydown", event => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    moved = false;
    const place = current.indexOf(box);
    g.dispatchEvent(new Event("click"));
    drawing.querySelectorAll("g.box")[Math.min(place, current.length - 1)]?.focus();
  });
  return g;
}

function draw(refit = false) {
  current = layout();
  drawing.replaceChildren();
  const edges = el("g");
  let lines = 0;
  for (const box of current) for (const next of box.into) { edges.append(el("path", { d: edge(box, next) })); lines++; }
  drawing.append(edges);
  for (const box of current) drawing.append(drawBox(box));
  document.getElementById("size").textContent = `${current.length} boxes, ${lines} edges`;
  if (current.length > MOST) { reset(); return; }
  if (refit) fit();
}

function reset() { // open from the top while the picture stays small
  open.clear();
  let shown = data.branches[0][1].length;
  open.add(0);
  for (const queue = [0]; queue.length;) {
    for (const m of data.branches[queue.shift()][1]) {
      if (m >= 0) continue;
      const more = data.branches[~m][1].length - 1;
      if (data.branches[~m][3] > 1) continue; // equal blocks stay folded
      if (shown + more > FIRST_LOOK) continue;
      open.add(~m);
      queue.push(~m);
      shown += more;
    }
  }
  draw(true);
}

function reveal(b) { // open a branch and all around it, and look there
  for (let p = b; p >= 0; p = parentOf[p]) open.add(p);
  draw();
  const inside = current.filter(box => { for (let p = box.key < 0 ? homeOf[~box.key] : box.key; p >= 0; p = parentOf[p]) if (p === b) return true; return false; });
  if (inside.length) { view.x = inside[0].x - view.w / 2; view.y = inside[0].y - 40; show(); }
  drawing.scrollIntoView({ block: "center" });
}

let dragging = null, moved = false;
drawing.addEventListener("pointerdown", event => { dragging = [event.clientX, event.clientY]; moved = false; });
window.addEventListener("pointerup", () => { dragging = null; });
drawing.addEventListener("pointermove", event => {
  if (!dragging) return;
  const scale = view.w / drawing.clientWidth, dx = event.clientX - dragging[0], dy = event.clientY - dragging[1];
  if (Math.abs(dx) + Math.abs(dy) > 3) moved = true;
  view.x -= dx * scale; view.y -= dy * scale;
  dragging = [event.clientX, event.clientY];
  show();
});
drawing.addEventListener("wheel", event => {
  event.preventDefault();
  const by = Math.exp(event.deltaY * 0.0015), r = drawing.getBoundingClientRect();
  const px = view.x + view.w * (event.clientX - r.left) / r.width, py = view.y + view.h * (event.clientY - r.top) / r.height;
  view = { x: px + (view.x - px) * by, y: py + (view.y - py) * by, w: view.w * by, h: view.h * by };
  show();
}, { passive: false });
// ---- search and keyboard
let sought = "", at = -1;
const hits = text => text.toLowerCase().includes(sought);
function found(box) {
  if (!sought) return false;
  return box.key < 0 ? hits(say(data.ops[~box.key][0]) + " " + say(data.ops[~box.key][3])) : inBranch(box.key);
}
function inBranch(b) { return hits(say(data.branches[b][0])) || data.branches[b][1].some(m => m < 0 ? inBranch(~m) : hits(say(data.ops[m][0]))); }

function seek() {
  const box = document.getElementById("search");
  if (sought !== box.value.trim().toLowerCase()) at = -1;
  sought = box.value.trim().toLowerCase();
  document.querySelectorAll("table.filter tr").forEach((row, i) => { row.hidden = Boolean(sought) && !row.querySelector("th") && !hits(row.textContent); });
  draw();
  const all = current.filter(found);
  document.getElementById("hits").textContent = sought ? `${all.length} boxes` : "";
  return all;
}

document.getElementById("search").addEventListener("input", seek);
document.getElementById("search").addEventListener("keydown", event => {
  if (event.key === "Escape") { event.target.value = ""; seek(); event.target.blur(); }
  if (event.key !== "Enter") return;
  const all = seek();
  if (!all.length) return;
  at = (at + (event.shiftKey ? all.length - 1 : 1)) % all.length;
  view.x = all[at].x - view.w / 2;
  view.y = all[at].y - view.h / 3;
  show();
});
window.addEventListener("keydown", event => {
  if (event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") { event.preventDefault(); document.getElementById("search").focus(); return; }
  if (!drawing.contains(document.activeElement)) return;
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  const zoom = { "+": 0.8, "=": 0.8, "-": 1.25 }[event.key];
  if (step) { view.x += step[0] * view.w / 8; view.y += step[1] * view.h / 8; show(); }
  else if (zoom) { view = { x: view.x + view.w * (1 - zoom) / 2, y: view.y + view.h * (1 - zoom) / 2, w: view.w * zoom, h: view.h * zoom }; show(); }
  else if (event.key === "0") fit();
  else return;
  event.preventDefault();
});
document.getElementById("fit").onclick = fit;
document.getElementById("reset").onclick = reset;
document.getElementById("constants").onchange = () => draw();
document.getElementById("tree").append(branchItem(0, true));
reset();
document.body.dataset.ready = String(current.length);
