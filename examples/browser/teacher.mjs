// A scripted teacher in headless Chromium: node teacher.mjs URL FOLDER [rewards]
//
// Draws a digit with the mouse, uses every button, then gives rewards for digits of train.json. Writes screenshots, the weights
// as downloaded, and found.json to FOLDER: held-out accuracy on the way, and what the first 20 steps were given and gave.

import { writeFileSync } from "node:fs";
import chromium from "@sparticuz/chromium";
import puppeteer from "puppeteer-core";

const [, , url, folder, rewards = "300"] = process.argv;
const STEPS = 20;

const browser = await puppeteer.launch({
  args: [...chromium.args, "--no-sandbox"],
  executablePath: await chromium.executablePath(),
  headless: "shell",
});
const page = await browser.newPage();
await page.setViewport({ width: 1000, height: 760 });
const errors = [];
page.on("pageerror", (error) => errors.push(error.message));
page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
await page.goto(url);
await page.waitForFunction("window.lfp !== undefined", { timeout: 120_000 });
const shot = (name) => page.screenshot({ path: `${folder}/${name}.png` });
const text = (id) => page.$eval(`#${id}`, (found) => found.textContent);
const settled = () => page.waitForFunction("!window.lfp.isBusy()", { timeout: 60_000 });

// By hand: a seven, called wrong once, then undone, then forgotten.
await shot("start");
const box = await (await page.$("#paper")).boundingBox();
const corners = [[0.25, 0.2], [0.75, 0.2], [0.45, 0.85]].map(([x, y]) => [box.x + x * box.width, box.y + y * box.height]);
await page.mouse.move(...corners[0]);
await page.mouse.down();
for (const corner of corners.slice(1)) await page.mouse.move(...corner, { steps: 12 });
await page.mouse.up();
await page.waitForFunction("!document.getElementById('right').disabled", { timeout: 60_000 });
await shot("drawn");
const first = await text("guess");
await page.click("#wrong");
await settled();
const second = await text("guess");
await page.click("#undo");
await settled();
const undone = await text("count");
await page.click("#reset");
await settled();

// By script: only right or wrong goes in.
const found = await page.evaluate(
  async (rewards, steps) => {
    const { learner, show, reply, held } = window.lfp;
    const { images, labels } = await (await fetch("train.json")).json();
    const apply = learner.apply.bind(learner);
    const first = [];
    let after = null;
    learner.apply = async (drawings, signal) => {
      if (first.length < steps) first.push({ drawings, signal });
      await apply(drawings, signal);
      if (first.length === steps && after === null) {
        after = {};
        for (const name of learner.description.parameters) after[name] = Array.from(learner.values.get(name).data);
      }
    };
    const accuracy = [await learner.accuracy(held.images, held.labels)];
    let place = 0;
    let answer = null;
    while (learner.answers.length < rewards) {
      const pixels = images[place].map((v) => v / 16);
      if (answer === null) answer = await show(pixels);
      const right = answer === labels[place];
      await reply(right);
      if (right) place += 1;
      answer = right ? null : window.lfp.answer();
      if (learner.answers.length % 50 === 0) accuracy.push(await learner.accuracy(held.images, held.labels));
    }
    await show(images[place].map((v) => v / 16));
    learner.apply = apply;
    const bytes = new Uint8Array(await new Blob(learner.weights()).arrayBuffer());
    const relevance = Array.from(await learner.relevance(images[0].map((v) => v / 16)));
    return { accuracy, right: learner.answers.filter(Boolean).length, first, after, relevance, weights: Array.from(bytes) };
  },
  Number(rewards),
  STEPS,
);
await shot("taught");
await browser.close();
writeFileSync(`${folder}/taught.safetensors`, Uint8Array.from(found.weights));
delete found.weights;
writeFileSync(`${folder}/found.json`, JSON.stringify({ ...found, guesses: [first, second], undone, errors }));
console.log(`held-out accuracy every 50 rewards: ${found.accuracy.map((a) => a.toFixed(3)).join(" ")}`);
if (errors.length) console.log(`errors in the page: ${errors.join("; ")}`);
