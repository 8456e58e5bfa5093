// The same learner and the same files in Node: node node.mjs FOLDER
import { readFile } from "node:fs/promises";
import * as ort from "onnxruntime-web";
import { Learner } from "./learner.js";

const folder = process.argv[2];
const read = async (name) => (await readFile(`${folder}/${name}`)).buffer.slice(0);
const json = async (name) => JSON.parse(await readFile(`${folder}/${name}`, "utf8"));
const [train, test] = [await json("train.json"), await json("test.json")];
const [images, held] = [train.images, test.images].map((set) => set.map((image) => image.map((v) => v / 16)));

const learner = await Learner.load(ort, read);
for (let place = 0; learner.answers.length < 100; ) {
  const { answer } = await learner.guess(images[place]);
  const right = answer === train.labels[place];
  await learner.learn(images[place], answer, right);
  if (right) place += 1;
}
console.log(`${learner.answers.length} rewards, ${(100 * (await learner.accuracy(held, test.labels))).toFixed(1)} % of held-out digits`);
