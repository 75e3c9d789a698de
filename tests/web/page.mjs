// Opens a page of serve-web in headless Chromium, uses it like a reader, and prints what it saw as one line of JSON.
//
// node page.mjs '{"url", "chromium", "modules", "asks": [{"prompt", "strength", "length"}], "shot"}'

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
const page = await context.newPage();
const seen = { problems: [], requests: [], answers: [] };
page.on("console", (message) => message.type() === "error" && seen.problems.push(message.text()));
page.on("pageerror", (error) => seen.problems.push(String(error)));
context.on("request", (asked) => seen.requests.push(asked.url()));
try {
  await page.goto(request.url);
  await page.waitForSelector("html[data-state=open]");
  seen.title = await page.title();
  seen.labels = await page.evaluate(() =>
    [...document.querySelectorAll("input, select, textarea, progress, button")]
      .filter((field) => !(field.labels?.length || field.ariaLabel || field.textContent.trim()))
      .map((field) => field.id),
  );
  seen.slider = await page.isVisible("#strength");
  if (request.asks.length) {
    await page.focus("#load button");
    await page.keyboard.press("Enter"); // without a mouse
    await page.waitForFunction(
      () => document.querySelector("#status").matches(".error") || !document.querySelector("#answer").disabled,
      undefined,
      { timeout: 600_000 },
    );
    seen.status = await page.textContent("#status");
  }
  for (const { prompt, strength, length } of request.asks) {
    await page.fill("#prompt", prompt);
    if (seen.slider) await page.fill("#strength", String(strength));
    await page.selectOption("#length", String(length));
    await page.evaluate(() => {
      const steps = {};
      for (const answer of document.querySelectorAll(".answer")) {
        steps[answer.id] = 0;
        new MutationObserver(() => (steps[answer.id] += 1)).observe(answer, { childList: true, characterData: true, subtree: true });
      }
      globalThis.steps = steps;
    });
    await page.press("#prompt", "Enter"); // empties both answers and both speeds at once
    await page.waitForFunction(
      () =>
        document.querySelector("#status").matches(".error") ||
        (document.querySelector("#stop").disabled && [...document.querySelectorAll(".speed")].every((s) => s.textContent)),
      undefined,
      { timeout: 600_000 },
    );
    seen.answers.push({
      ...(await page.evaluate(() =>
        Object.fromEntries([...document.querySelectorAll(".answer")].map((a) => [a.id.split("-")[0], a.textContent])),
      )),
      steps: await page.evaluate(() => globalThis.steps),
      speed: await page.$$eval(".speed", (speeds) => speeds.map((s) => s.textContent)),
      status: await page.textContent("#status"),
    });
  }
  if (request.shot) await page.screenshot({ path: request.shot, fullPage: true });
} finally {
  await browser.close();
}
console.log(JSON.stringify(seen));
