// Opens a page of serve-web in headless Chromium, uses it like a reader, and prints what it saw as one line of JSON.
//
// node page.mjs '{"url", "chromium", "modules", "asks": [{"prompt", "strength", "length", "graph", "fresh"}], "link", "shot"}'
//
// An ask with a graph changes the precision first; one that is fresh begins a new conversation, and the one before it is
// copied. "link" is a fragment to open the page with.

import { createRequire } from "node:module";

const request = JSON.parse(process.argv[2]);
const { chromium } = createRequire(`${request.modules}/`)("playwright-core");
const browser = await chromium.launch({
  executablePath: request.chromium,
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", // nothing outside answers, whoever asks
  ],
});
const context = await browser.newContext({ viewport: { width: 1120, height: 860 }, colorScheme: request.scheme ?? "light" });
await context.grantPermissions(["clipboard-read", "clipboard-write"]);
const page = await context.newPage();
const seen = { problems: [], requests: [], answers: [] };
const own = (text) => text === "No available adapters."; // Chromium's, of any page that asks whether there is a GPU
page.on("console", (message) => {
  if (["error", "warning"].includes(message.type()) && !own(message.text())) seen.problems.push(message.text());
});
page.on("pageerror", (error) => seen.problems.push(String(error)));
context.on("request", (asked) => seen.requests.push(asked.url()));
try {
  await page.goto(request.url + (request.link ?? ""));
  await page.waitForSelector("html[data-state=open]");
  seen.title = await page.title();
  seen.labels = await page.evaluate(() =>
    [...document.querySelectorAll("input, select, textarea, progress, button")]
      .filter((field) => !(field.labels?.length || field.ariaLabel || field.textContent.trim()))
      .map((field) => field.id),
  );
  seen.slider = await page.isVisible("#strength");
  const load = async () => {
    await page.focus("#load button");
    await page.keyboard.press("Enter"); // without a mouse
    await page.waitForFunction(
      () => document.querySelector("#status").matches(".error") || !document.querySelector("#answer").disabled,
      undefined,
      { timeout: 600_000 },
    );
    seen.status = await page.textContent("#status");
  };
  const settings = () =>
    page.evaluate(() =>
      Object.fromEntries(["prompt", "strength", "length", "graph"].map((id) => [id, document.getElementById(id).value])),
    );
  const words = (...ids) =>
    page.evaluate((ids) => Object.fromEntries(ids.map((id) => [id, document.getElementById(id).textContent])), ids);
  seen.begins = { ...(await settings()), ...(await words("precision", "warning")) };
  if (request.asks.length) await load();
  const press = async (button) => {
    await page.click(`#${button}`);
    await page.waitForFunction((old) => document.querySelector("#notice").textContent !== old, seen.notice ?? "");
    seen.notice = await page.textContent("#notice");
    return page.evaluate(() => navigator.clipboard.readText());
  };
  for (const { prompt, strength, length, graph, fresh } of request.asks) {
    if (fresh) {
      seen.copies = [...(seen.copies ?? []), await press("copy")];
      await page.click("#new");
      seen.notice = await page.textContent("#notice");
    }
    if (graph) {
      await page.selectOption("#graph", graph);
      await load();
    }
    await page.fill("#prompt", " \n ");
    await page.press("#prompt", "Enter");
    const refusal = await page.textContent("#refusal");
    await page.fill("#prompt", prompt);
    if (seen.slider) await page.fill("#strength", String(strength));
    await page.selectOption("#length", String(length));
    await page.evaluate(() => {
      const [steps, waits] = [{}, {}];
      for (const answer of document.querySelectorAll("#sides .answer")) {
        steps[answer.id] = 0;
        waits[answer.id.split("-")[0]] = [];
        const look = () => answer.textContent || waits[answer.id.split("-")[0]].push(getComputedStyle(answer, "::before").content);
        new MutationObserver(look).observe(answer, { attributes: true });
        new MutationObserver(() => (steps[answer.id] += 1)).observe(answer, { childList: true, characterData: true, subtree: true });
      }
      Object.assign(globalThis, { steps, waits });
    });
    await page.press("#prompt", "Enter"); // empties both answers and both speeds at once
    await page.waitForFunction(
      () =>
        document.querySelector("#status").matches(".error") ||
        (document.querySelector("#stop").disabled && [...document.querySelectorAll("#sides .speed")].every((s) => s.textContent)),
      undefined,
      { timeout: 600_000 },
    );
    seen.answers.push({
      ...(await page.evaluate(() =>
        Object.fromEntries([...document.querySelectorAll("#sides .answer")].map((a) => [a.id.split("-")[0], a.textContent])),
      )),
      steps: await page.evaluate(() => globalThis.steps),
      waits: await page.evaluate(() => globalThis.waits),
      refused: [refusal, await page.textContent("#refusal")],
      ...(await words("precision", "warning")),
      earlier: await page.$$eval("#earlier article", (turns) => turns.map((turn) => [...turn.querySelectorAll("p")].map((p) => p.textContent))),
      asked: await page.textContent("#asked"),
      speed: await page.$$eval("#sides .speed", (speeds) => speeds.map((s) => s.textContent)),
      status: await page.textContent("#status"),
    });
  }
  for (const button of ["copy", "share"]) {
    if (await page.isDisabled(`#${button}`)) continue;
    seen[button] = await press(button);
  }
  if (request.again) {
    const count = seen.requests.length;
    await page.reload();
    await page.waitForSelector("html[data-state=open]");
    seen.again = await settings();
    await load();
    seen.fetched = seen.requests.splice(count).map((url) => url.slice(request.url.length));
  }
  if (request.shot) await page.screenshot({ path: request.shot, fullPage: true });
} finally {
  await browser.close();
}
console.log(JSON.stringify(seen));
