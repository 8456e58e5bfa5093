// Ten training steps by feedback in Node: node step.mjs FOLDER, which holds step.onnx, step.safetensors and batch.json (x and target).
import { readFile, writeFile } from "node:fs/promises";
import * as ort from "onnxruntime-web";
import { readSafetensors } from "./learner.js";

const read = async (name) => new Uint8Array(await readFile(`${process.argv[2]}/${name}`));
const batch = JSON.parse(await readFile(`${process.argv[2]}/batch.json`, "utf8"));
const x = new ort.Tensor("float32", batch.x.flat(), [batch.x.length, batch.x[0].length]);
const target = new ort.Tensor("int64", batch.target.map(BigInt), [batch.target.length]);

// docs: begin
const step = await ort.InferenceSession.create(await read("step.onnx"));
const feeds = { x, target, lr: new ort.Tensor("float32", [0.01], []) };
for (const { name, shape } of step.inputMetadata) {  // the optimizer's state begins as zeros
  if (!(name in feeds)) feeds[name] = new ort.Tensor("float32", new Float32Array(shape.reduce((a, b) => a * b, 1)), shape);
}
Object.assign(feeds, Object.fromEntries(readSafetensors(ort, (await read("step.safetensors")).buffer)));
for (let i = 0; i < 10; i++) {
  const found = await step.run(feeds);
  for (const name of step.inputNames) feeds[name] = found[`new/${name}`] ?? feeds[name];
  console.log(found["metric/loss"].data[0].toFixed(6));
}
// docs: end

const trained = step.inputNames.filter((name) => step.outputNames.includes(`new/${name}`));
await writeFile(`${process.argv[2]}/trained.json`, JSON.stringify(Object.fromEntries(trained.map((name) => [name, [...feeds[name].data]]))));
