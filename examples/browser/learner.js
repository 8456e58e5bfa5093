// A model that learns from right and wrong alone: a feedback-training step, run by onnxruntime-web. No autograd, no server.
//
// Works in a page and in Node; `ort` is the runtime, `read(name)` gives a file of the site's folder as an ArrayBuffer.

const REPLAYS = 5; // training steps after each answer
const BATCH = 32; // drawings in each, drawn from all that were answered
const RATE = 1e-3;
const UNDO = 50; // answers that can be taken back

export class Learner {
  static async load(ort, read) {
    const options = { executionProviders: ["wasm"] };
    const session = async (name) => ort.InferenceSession.create(new Uint8Array(await read(name)), options);
    const learner = new Learner();
    learner.ort = ort;
    learner.description = JSON.parse(new TextDecoder().decode(await read("step.json")));
    learner.step = await session("step.onnx");
    learner.forward = await session(learner.description.forward);
    learner.explainer = await session("explain.onnx");
    learner.start = readSafetensors(ort, await read(learner.description.values));
    learner.reset();
    return learner;
  }

  // Back to the weights the file begins with, and to no memory.
  reset(seed = 0) {
    const zeros = Object.entries(this.description.shapes).map(([name, shape]) => {
      const size = shape.reduce((a, b) => a * b, 1);
      return [name, new this.ort.Tensor("float32", new Float32Array(size), shape)];
    });
    this.values = new Map([...this.start, ...zeros]); // parameters, buffers and the optimizer's state, by name
    this.drawings = []; // { pixels, allowed }: allowed[k] is 1 while the answers leave class k open
    this.answers = []; // true for right
    this.before = []; // what `undo` goes back to
    this.random = generator(seed);
  }

  // Logits [n][10] of drawings [n][64], pixels from 0 to 1.
  async logits(drawings) {
    const feeds = this.feeds(this.forward.inputNames, { [this.description.inputs[0]]: this.batch(drawings) });
    const { output } = await this.forward.run(feeds);
    return rows(output);
  }

  // The class to answer: the likeliest one that has not been called wrong for this drawing.
  async guess(pixels, allowed = null) {
    const likely = softmax((await this.logits([pixels]))[0]);
    const open = allowed ?? this.open(pixels);
    const best = likely.map((p, k) => (open[k] ? p : -1));
    return { answer: best.indexOf(Math.max(...best)), likely };
  }

  // Relevance [64] of each pixel for the class that is likeliest.
  async relevance(pixels) {
    const name = this.description.inputs[0];
    const found = await this.explainer.run(this.feeds(this.explainer.inputNames, { [name]: this.batch([pixels]) }));
    return found[`relevance/${name}`].data;
  }

  // A person has said whether `answer` is right for a drawing; the model learns at once.
  async learn(pixels, answer, right) {
    this.before.push({ values: new Map(this.values), drawings: this.drawings.map(copy), answers: [...this.answers] });
    if (this.before.length > UNDO) this.before.shift();
    const drawing = this.find(pixels) ?? { pixels, allowed: new Array(10).fill(1) };
    if (!this.drawings.includes(drawing)) this.drawings.push(drawing);
    drawing.allowed = drawing.allowed.map((open, k) => (right ? Number(k === answer) : k === answer ? 0 : open));
    this.answers.push(right);
    for (let i = 0; i < REPLAYS; i++) {
      const chosen = [drawing];
      while (chosen.length < BATCH) chosen.push(this.drawings[Math.floor(this.random() * this.drawings.length)]);
      await this.train(chosen);
    }
  }

  // One step: reward for moving the probabilities to the classes that the answers leave open, per unit of each output.
  async train(chosen) {
    const logits = await this.logits(chosen.map((d) => d.pixels));
    const signal = logits.map((outputs, i) => {
      const p = softmax(outputs);
      const open = p.map((value, k) => value * chosen[i].allowed[k]);
      const sum = Math.max(open.reduce((a, b) => a + b, 0), 1e-9);
      return p.map((value, k) => (open[k] / sum - value) / chosen.length);
    });
    await this.apply(chosen.map((d) => d.pixels), signal);
  }

  // The exported step itself: drawings [n][64] and the signal of each output [n][10].
  async apply(drawings, signal) {
    const { inputs, target, parameters, buffers, state } = this.description;
    const given = {
      [inputs[0]]: this.batch(drawings),
      [target]: new this.ort.Tensor("float32", Float32Array.from(signal.flat()), [signal.length, signal[0].length]),
      lr: new this.ort.Tensor("float32", Float32Array.of(RATE), []),
    };
    const changing = [...parameters, ...buffers, ...state];
    const results = await this.step.run(this.feeds(this.step.inputNames, given), changing.map((name) => `new/${name}`));
    for (const name of changing) this.values.set(name, results[`new/${name}`]);
  }

  // Take the last answer back, with all that was learned from it.
  undo() {
    const last = this.before.pop();
    if (last) Object.assign(this, last);
    return Boolean(last);
  }

  // Which classes the answers leave open for a drawing.
  open(pixels) {
    return (this.find(pixels) ?? { allowed: new Array(10).fill(1) }).allowed;
  }

  find(pixels) {
    return this.drawings.find((d) => d.pixels.every((v, i) => v === pixels[i]));
  }

  // Share of right answers among drawings [n][64] with labels.
  async accuracy(drawings, labels) {
    const found = (await this.logits(drawings)).map((row) => row.indexOf(Math.max(...row)));
    return found.filter((k, i) => k === labels[i]).length / labels.length;
  }

  // The weights as a safetensors file, which PyTorch reads too.
  weights() {
    const { parameters, frozen, buffers } = this.description;
    return writeSafetensors([...parameters, ...frozen, ...buffers].map((name) => [name, this.values.get(name)]));
  }

  batch(drawings) {
    return new this.ort.Tensor("float32", Float32Array.from(drawings.flat()), [drawings.length, 1, 8, 8]);
  }

  feeds(names, given) {
    return Object.fromEntries(names.map((name) => [name, given[name] ?? this.values.get(name)]));
  }
}

const copy = (drawing) => ({ ...drawing });

function rows({ data, dims: [n, width] }) {
  return Array.from({ length: n }, (_, i) => Array.from(data.subarray(i * width, (i + 1) * width)));
}

function softmax(logits) {
  const largest = Math.max(...logits);
  const parts = logits.map((z) => Math.exp(z - largest));
  const sum = parts.reduce((a, b) => a + b, 0);
  return parts.map((part) => part / sum);
}

// Random numbers from 0 to 1 that a seed decides (a Weyl sequence, mixed).
function generator(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x9e3779b9) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 16), 0x21f0aaad);
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a2d97);
    return ((mixed ^ (mixed >>> 15)) >>> 0) / 2 ** 32;
  };
}

// Name to tensor. The format: eight bytes with the length of a JSON header, the header, the numbers.
export function readSafetensors(ort, buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const entries = Object.entries(header).filter(([name]) => name !== "__metadata__");
  return entries.map(([name, { dtype, shape, data_offsets: [from, to] }]) => {
    if (dtype !== "F32") throw new Error(`${name} is of type ${dtype}; this page reads float32`);
    const data = new Float32Array(buffer.slice(8 + length + from, 8 + length + to));
    return [name, new ort.Tensor("float32", data, shape)];
  });
}

function writeSafetensors(entries) {
  let at = 0;
  const header = {};
  for (const [name, { data, dims }] of entries) {
    header[name] = { dtype: "F32", shape: [...dims], data_offsets: [at, at + data.byteLength] };
    at += data.byteLength;
  }
  let text = JSON.stringify(header);
  text += " ".repeat((8 - (text.length % 8)) % 8);
  const start = new ArrayBuffer(8);
  new DataView(start).setBigUint64(0, BigInt(text.length), true);
  return [start, new TextEncoder().encode(text), ...entries.map(([, tensor]) => tensor.data)];
}
