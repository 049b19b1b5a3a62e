// Makes the pictures of docs/server.md: node screenshots.mjs URL-THAT-STREAMS FOLDER. With what browser.sh fetches.
import { createRequire } from "node:module";

const require = createRequire(new URL("../../target/page/", import.meta.url));
const { chromium } = require("playwright-core");
const [, , url, folder] = process.argv;
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });

const tab = (page, name) => page.locator("main header .tab", { hasText: name });

async function open(colorScheme, width, height, name, settings) {
  const context = await browser.newContext({ colorScheme, viewport: { width, height } });
  context.setDefaultTimeout(300_000);
  const page = await context.newPage();
  await page.addInitScript((s) => localStorage.setItem("dollop.settings", s), JSON.stringify(settings));
  await page.goto(url);
  await page.getByRole("textbox", { name: "Message" }).waitFor();
  return { page, shoot: () => page.screenshot({ path: `${folder}/${name}.png` }) };
}

async function ask(page, text, whole) {
  await page.getByRole("textbox", { name: "Message" }).fill(text);
  await page.keyboard.press("Enter");
  if (whole) await page.getByRole("button", { name: "Send", exact: true }).waitFor();
}

const numbers = { temperature: "0", max_tokens: "120" };

const light = await open("light", 1280, 860, "page-light", { numbers });
await ask(light.page, "What is the capital of France?", true);
await ask(light.page, "Give me three tips for better sleep.", false);
// The budget goes down and up: its trace is in the rates.
const slider = light.page.getByRole("slider");
await light.page.waitForTimeout(4000);
await slider.fill("60");
await light.page.waitForTimeout(4000);
await slider.fill("150");
await light.page.waitForTimeout(4000);
await slider.fill("110");
await slider.blur();
await light.page.waitForTimeout(4500);
await light.shoot();

const dark = await open("dark", 1280, 860, "page-dark", {
  numbers: { temperature: "0", max_tokens: "80" },
  format: "schema",
  schema: JSON.stringify(
    { type: "object", properties: { city: { type: "string", maxLength: 20 }, country: { enum: ["France", "Italy"] }, rainy: { type: "boolean" } }, required: ["city", "country", "rainy"], additionalProperties: false },
    null,
    2,
  ),
});
await tab(dark.page, "Settings").click();
await ask(dark.page, "Tell me about the capital of Italy.", true);
await dark.page.waitForTimeout(500);
await dark.shoot();

const phone = await open("dark", 390, 844, "page-phone", { numbers });
await ask(phone.page, "What is photosynthesis?", false);
await tab(phone.page, "Live").click();
await phone.page.waitForTimeout(7000);
await phone.shoot();
await browser.close();
