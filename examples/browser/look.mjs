// Look at a page in headless Chromium: node look.mjs FILE PICTURE
//
// Prints, as JSON, what went wrong in the page, which dialogs it opened, what it asked the network for, and its text.

import { pathToFileURL } from "node:url";
import chromium from "@sparticuz/chromium";
import puppeteer from "puppeteer-core";

const [, , file, picture] = process.argv;
const browser = await puppeteer.launch({
  args: [...chromium.args, "--no-sandbox"],
  executablePath: await chromium.executablePath(),
  headless: "shell",
});
const page = await browser.newPage();
await page.setViewport({ width: 1200, height: 900 });
const seen = { errors: [], dialogs: [], asked: [] };
page.on("pageerror", (error) => seen.errors.push(error.message));
page.on("console", (message) => message.type() === "error" && seen.errors.push(message.text()));
page.on("request", (request) => request.url().match(/^(file|data|blob):/) || seen.asked.push(request.url()));
page.on("dialog", async (dialog) => {
  seen.dialogs.push(dialog.message());
  await dialog.dismiss();
});
await page.goto(pathToFileURL(file).href, { waitUntil: "load" });
const closed = await page.$$eval("summary, button", (found) => found.slice(0, 30).map((each) => each.click()).length);
await new Promise((done) => setTimeout(done, 500));
const text = await page.evaluate(() => document.body.innerText);
await page.screenshot({ path: picture });
await browser.close();
console.log(JSON.stringify({ ...seen, closed, text }));
