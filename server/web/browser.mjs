// Gate 169: the page as its users find it: node browser.mjs URL-THAT-STREAMS URL-WITH-KEY. The key is `secret`. Each part prints its
// name when it is through; any difference ends the program.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(new URL("../../target/page/", import.meta.url));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const [, , url, locked] = process.argv;
/** What ends a hang, on a busy machine too. */
const LIMIT = 300_000;

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  // The pages are our own, and containers have no sandbox for them.
  args: ["--no-sandbox", "--disable-dev-shm-usage"],
});

/** Requests that left the server's address, and errors of scripts: there are none in all that is done here. */
const strange = [];

async function open(options = {}, of = url, prepare = async () => {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, reducedMotion: "reduce", ...options });
  context.setDefaultTimeout(LIMIT);
  const page = await context.newPage();
  page.on("pageerror", (e) => strange.push(`error: ${e.message}`));
  page.on("console", (m) => m.type() === "error" && !/status of (4|5)\d\d/.test(m.text()) && strange.push(`console: ${m.text()}`));
  page.on("request", (r) => {
    if (!r.url().startsWith(of) && !r.url().startsWith("data:")) strange.push(`request: ${r.url()}`);
  });
  await prepare(page);
  await page.goto(of);
  await page.getByRole("textbox", { name: "Message" }).waitFor();
  return page;
}

const field = (page) => page.getByRole("textbox", { name: "Message" });
const answers = (page) => page.locator(".answered");
const tab = (page, name) => page.locator("main header .tab", { hasText: name });
const idle = (page) => page.getByRole("button", { name: "Send", exact: true }).waitFor();

async function send(page, text) {
  await field(page).fill(text);
  await field(page).press("Enter");
}

async function say(page, text) {
  await send(page, text);
  await idle(page);
  return answers(page).last().locator(".markdown, .json").innerText();
}

async function until(what, of) {
  const start = Date.now();
  for (;;) {
    const value = await of();
    if (value) return value;
    assert(Date.now() - start < LIMIT, `${what} never came`);
    await new Promise((done) => setTimeout(done, 50));
  }
}

/** Settings for short answers that are the same every time. */
async function brief(page, tokens = 24) {
  await tab(page, "Settings").click();
  await page.getByLabel("Temperature").fill("0");
  await page.getByLabel("Longest answer").fill(String(tokens));
  await tab(page, "Live").click();
}

/** Answers as a stand-in gives them, for what the model would not say. */
function stub(page, pieces) {
  return page.route("**/v1/chat/completions", (route) => {
    const events = pieces.map((content) => ({ choices: [{ index: 0, delta: { content }, finish_reason: null }] }));
    events.push({ choices: [{ index: 0, delta: {}, finish_reason: "stop" }] });
    const body = events.map((e) => `data: ${JSON.stringify(e)}\n\n`).join("") + "data: [DONE]\n\n";
    return route.fulfill({ status: 200, contentType: "text/event-stream", body });
  });
}

const through = (part) => console.log(part);

// One page for what belongs together.
const page = await open();
await brief(page);
const bits = () => page.locator(".experts canvas").getAttribute("data-bits");
const picture = () => page.locator(".experts canvas").evaluate((canvas) => canvas.toDataURL());
await page.locator(".experts canvas").waitFor();
const before = await picture();
const said = await say(page, "What is the capital of France?");
assert(said.length > 10, said);
assert.match(await page.locator(".took").innerText(), /\d+ tokens · [\d.]+ tok\/s/);
assert.equal(await page.locator("main h1").innerText(), "What is the capital of France?");
through("send");

await until("another picture", async () => (await picture()) !== before);
const after = await bits();
const held = (text) => text.split(" ").slice(1).reduce((sum, pair) => sum + Number(pair.split(":")[1]), 0);
assert(held(after) > 100 && after.split(" ").length === 6, after);
for (const rate of ["Speed", "Precision", "Hits", "Read"]) {
  assert.match(await page.locator(`[data-rate=${rate}] dd`).innerText(), /\d/, rate);
}
assert(Number.parseFloat(await page.locator("[data-rate=Precision] dd").innerText()) > 2);
/** Colours of the picture: what is not held, gaps, and one for each number of bits. */
const colors = () =>
  page.locator(".experts canvas").evaluate((canvas) => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    const all = new Set();
    for (let i = 0; i < data.length; i += 4) all.add(`${data[i]},${data[i + 1]},${data[i + 2]},${data[i + 3]}`);
    return all.size;
  });
await until("a picture of several colours", async () => (await colors()) >= 4);
through("picture");

const plan = async () => (await (await fetch(`${url}/v1/plan`)).json()).memory;
const was = await plan();
await tab(page, "Settings").click();
await page.getByLabel("Longest answer").fill("200");
await tab(page, "Live").click();
await send(page, "Write a long story about a dog.");
await until("an answer", async () => (await answers(page).last().innerText()).length > 20);
const slider = page.getByRole("slider", { name: /Budget/ });
await slider.focus();
await slider.press("Home");
const less = await until("a smaller budget", async () => ((await plan()).budget < was.budget ? plan() : null));
assert(less.expert_bytes < was.expert_bytes / 4, JSON.stringify(less));
await page.getByText(/went back to the system/).waitFor();
assert.equal(await page.getByRole("button", { name: "Stop", exact: true }).count(), 1, "it still talks");
await until("fewer experts", async () => held(await bits()) < held(after) / 2);
await slider.press("End");
await until("a larger budget", async () => (await plan()).budget > was.budget);
through("memory");

await page.keyboard.press("Escape");
await idle(page);
assert.match(await answers(page).last().locator(".took").innerText(), /stopped/);
const load = async () => (await (await fetch(`${url}/v1/plan`)).json()).sessions.running;
await until("the end of the generation", async () => (await load()) === 0);
through("stop");

await tab(page, "Settings").click();
await page.getByLabel("Longest answer").fill("24");
await tab(page, "Live").click();
await page.locator(".asked").last().getByRole("button", { name: "Edit" }).click();
await page.getByRole("textbox", { name: "Edit the message" }).fill("Name a colour.");
await page.getByRole("button", { name: "Send again" }).click();
await idle(page);
assert.equal(await page.locator(".asked").count(), 2);
assert.equal(await page.locator(".asked .said").last().innerText(), "Name a colour.");
through("edit");

await answers(page).last().getByRole("button", { name: "Answer again" }).click();
await idle(page);
assert.equal(await page.locator(".versions > span").innerText(), "2 / 2");
await page.getByRole("button", { name: "Earlier answer" }).click();
assert.equal(await page.locator(".versions > span").innerText(), "1 / 2");
through("again");

await page.reload();
await page.getByText("Name a colour.").waitFor();
assert.equal(await answers(page).first().locator(".markdown").innerText(), said);
const line = page.locator(".line.here");
await line.getByRole("button", { name: /^Rename/ }).click();
await page.getByRole("textbox", { name: "Name of the conversation" }).fill("Capitals");
await page.keyboard.press("Enter");
await page.getByRole("button", { name: "New conversation" }).click();
assert.equal(await answers(page).count(), 0);
await page.getByRole("button", { name: "Capitals", exact: true }).click();
assert.equal(await answers(page).count(), 2);
await page.getByRole("button", { name: "Delete Capitals" }).click();
assert.equal(await page.locator(".line").count(), 0);
await page.getByRole("button", { name: "Undo" }).click();
await page.reload();
assert.equal(await page.locator(".line .title").innerText(), "Capitals");
through("reload");

await page.getByRole("button", { name: "New conversation" }).click();
await tab(page, "Settings").click();
await page.getByRole("radio", { name: "JSON Schema" }).check({ force: true });
const schema = { type: "object", properties: { city: { enum: ["Rome", "Oslo"] } }, required: ["city"], additionalProperties: false };
await page.getByLabel("Schema that answers obey").fill(JSON.stringify(schema));
const json = JSON.parse(await say(page, "Name a city."));
assert(["Rome", "Oslo"].includes(json.city), JSON.stringify(json));
through("schema");

await page.getByLabel("Schema that answers obey").fill('{"type": 3}');
await send(page, "Name a city.");
const failure = page.locator(".failure");
await failure.waitFor();
assert.match(await failure.innerText(), /type|schema/i);
await page.getByLabel("Schema that answers obey").fill("{");
await failure.getByRole("button", { name: "Try again" }).click();
await failure.getByText("no valid JSON").waitFor();
await page.getByRole("radio", { name: "Text", exact: true }).check({ force: true });
await page.getByLabel("Temperature").fill("hot");
await failure.getByRole("button", { name: "Try again" }).click();
await failure.getByText("temperature").waitFor();
await page.getByLabel("Temperature").fill("0");
await page.context().setOffline(true);
await failure.getByRole("button", { name: "Try again" }).click();
await failure.getByText("cannot be reached").waitFor();
await page.context().setOffline(false);
await failure.getByRole("button", { name: "Try again" }).click();
await idle(page);
assert.equal(await failure.count(), 0);
through("errors");

const guest = await open();
const hostile = [
  "<script>window.owned = 1</script>\n\n<img src=x onerror='window.owned = 2'>\n\n![a picture](https://evil.example/a.png)\n\n",
  "[a link](javascript:window.owned=3) [another](https://example.com/) <a href='javascript:window.owned=4'>x</a>\n\n",
  "<style>body { display: none }</style><iframe src='https://evil.example'></iframe><svg onload='window.owned=5'>\n\n",
  "```html\n<b onclick='window.owned=6'>code</b>\n```\n\n| a |\n|---|\n| <img src=https://evil.example/b.png> |\n",
];
await stub(guest, hostile);
await say(guest, "Be hostile.");
const answer = answers(guest).last();
assert.equal(await guest.evaluate(() => window.owned), undefined);
for (const tag of ["img", "script", "style", "iframe", "[onerror]", "[onclick]", "[style]", "[href^=javascript]"]) {
  assert.equal(await answer.locator(`.markdown ${tag}`).count(), 0, tag);
}
assert.match(await answer.innerText(), /<script>window\.owned = 1<\/script>/);
assert.equal(await answer.getByRole("link", { name: "another" }).getAttribute("rel"), "noopener noreferrer nofollow");
// And where the cleaning failed, the policy would hold.
const ran = await guest.evaluate(async () => {
  const blocked = new Promise((done) => document.addEventListener("securitypolicyviolation", (e) => done(e.violatedDirective)));
  const image = document.createElement("img");
  image.src = "https://evil.example/c.png";
  document.body.append(image);
  return blocked;
});
assert.match(ran, /img-src/);
strange.length = 0;
await guest.context().close();
through("hostile");

const long = await open();
await stub(long, Array.from({ length: 1000 }, (_, i) => (i % 50 === 49 ? `${"word ".repeat(200)}\n\n` : "word ".repeat(200))));
const start = Date.now();
await send(long, "Write a megabyte.");
await idle(long);
await until("the end of it", async () => (await answers(long).last().textContent()).length >= 990_000);
assert(Date.now() - start < 120_000);
await stub(long, ["> ".repeat(100_000), "nested"]);
await say(long, "Quote deeply.");
await long.reload();
await until("a megabyte kept", async () => (await answers(long).first().textContent()).length >= 990_000);
await long.context().close();
through("long");

const broken = await open({}, url, (p) =>
  p.addInitScript(() => {
    const no = () => {
      throw new DOMException("no", "SecurityError");
    };
    for (const name of ["localStorage", "sessionStorage", "indexedDB"]) Object.defineProperty(window, name, { get: no });
  }),
);
await brief(broken);
assert((await say(broken, "Say hello.")).length > 0);
await broken.getByText("This browser keeps nothing").waitFor();
await broken.context().close();
const damaged = await open();
await damaged.evaluate(async () => {
  localStorage.setItem("dollop.settings", "{");
  await new Promise((done) => {
    indexedDB.open("dollop", 1).onsuccess = (e) => {
      const store = e.target.result.transaction("chats", "readwrite").objectStore("chats");
      for (const bad of [{ id: "a" }, { id: "b", messages: [3, { role: "assistant", versions: [] }, { role: "user" }] }]) store.put(bad);
      store.transaction.oncomplete = done;
    };
  });
});
await damaged.reload();
await damaged.getByRole("button", { name: "Conversation", exact: true }).click();
assert.equal(await damaged.locator(".asked").count(), 1);
await damaged.context().close();
through("broken");

const guarded = await open({}, locked);
const asked = guarded.locator(".failure");
await asked.getByLabel("API key", { exact: true }).fill("wrong");
await asked.getByRole("button", { name: "Use" }).click();
await asked.getByLabel("API key", { exact: true }).fill("secret");
await asked.getByRole("button", { name: "Use" }).click();
await guarded.getByText("Nothing streams").waitFor();
assert.equal(await asked.count(), 0);
await brief(guarded);
assert((await say(guarded, "Say hello.")).length > 0);
assert.equal(await guarded.getByRole("slider").count(), 0);
await guarded.context().close();
through("key");

// By keys alone: a conversation, a line break, the focus where it is expected.
const keys = await open();
await brief(keys);
await field(keys).focus();
await keys.keyboard.type("one");
await keys.keyboard.press("Shift+Enter");
await keys.keyboard.type("two");
await keys.keyboard.press("Enter");
assert.equal(await keys.locator(".asked .said").innerText(), "one\ntwo");
// A screen reader hears the answer once, whole.
await keys.getByRole("status").filter({ hasText: "Answering." }).waitFor({ state: "attached" });
await idle(keys);
const heard = await keys.locator("p.unseen").innerText();
assert.match(heard, /^Answered\. ./);
assert.equal(await keys.getByRole("log").getAttribute("aria-live"), "off");
await keys.keyboard.press("ArrowUp");
const again = keys.getByRole("textbox", { name: "Edit the message" });
assert(await again.evaluate((e) => document.activeElement === e));
await keys.keyboard.press("Escape");
assert.equal(await again.count(), 0);
const order = [];
for (let i = 0; i < 60; i++) {
  await keys.keyboard.press("Tab");
  order.push(await keys.evaluate(() => document.activeElement.closest(".side, main, .panel")?.className ?? "none"));
}
const places = order.filter((place, i) => place !== order[i - 1] && place !== "none");
// `main` has no class.
assert.match(places.join(","), /side,,panel/, order.join());
through("keyboard");

for (const colorScheme of ["light", "dark"]) {
  for (const viewport of [{ width: 1280, height: 800 }, { width: 390, height: 844 }]) {
    const looked = await open({ colorScheme, viewport });
    await stub(looked, ["# Title\n\nText with `code`, a [link](https://example.com/).\n\n```js\nlet a = 1;\n```\n\n- a\n- b\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"]);
    await say(looked, "Show me all.");
    const dark = await looked.evaluate(() => getComputedStyle(document.body).backgroundColor);
    assert.equal(dark === "rgb(22, 20, 18)", colorScheme === "dark", dark);
    for (const name of ["Live", "Settings"]) {
      // Over a phone's conversation lies one panel at a time.
      const close = looked.getByRole("button", { name: "Close the panel" });
      if (viewport.width < 1100 && (await close.count())) await close.click();
      if ((await tab(looked, name).getAttribute("aria-pressed")) === "false") await tab(looked, name).click();
      await looked.locator(name === "Live" ? ".experts canvas" : "#schema, #system").first().waitFor();
      const result = await looked.evaluate(`${axe}; axe.run(document, { resultTypes: ["violations"] })`);
      const serious = result.violations.filter((v) => ["serious", "critical"].includes(v.impact));
      const shown = serious.map((v) => `${v.id}: ${v.nodes.map((n) => n.html).join(" ")}`);
      assert.deepEqual(shown, [], `${colorScheme} ${viewport.width} ${name}`);
      assert(result.passes.length > 10);
    }
    await looked.context().close();
  }
}
// The switch holds against the system's choice, and is kept.
const switched = await open({ colorScheme: "light" });
await switched.getByRole("radio", { name: "Dark" }).click();
await switched.reload();
assert.equal(await switched.evaluate(() => getComputedStyle(document.body).backgroundColor), "rgb(22, 20, 18)");
await switched.context().close();
through("axe");

const phone = await open({ viewport: { width: 390, height: 844 }, hasTouch: true, isMobile: true });
const fits = () => phone.evaluate(() => document.documentElement.scrollWidth <= 390);
assert(await fits());
await phone.getByRole("button", { name: "Conversations" }).tap();
await phone.locator(".side").getByRole("button", { name: "Close" }).tap();
await tab(phone, "Settings").tap();
await phone.getByLabel("Longest answer").fill("16");
assert(await fits());
await phone.getByRole("button", { name: "Close the panel" }).tap();
await field(phone).fill("Say hello.");
await phone.getByRole("button", { name: "Send", exact: true }).tap();
await idle(phone);
assert((await answers(phone).innerText()).length > 0 && (await fits()));
await phone.context().close();
through("phone");

assert.deepEqual(strange, []);
await browser.close();
