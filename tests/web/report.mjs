// Opens a file in headless Chromium as a reader would, and prints what it saw as one line of JSON.
//
// node report.mjs '{"url", "chromium", "modules", "scheme", "width", "shot"}'

import { createRequire } from "node:module";

const request = JSON.parse(process.argv[2]);
const { chromium } = createRequire(`${request.modules}/`)("playwright-core");
const browser = await chromium.launch({
  executablePath: request.chromium,
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND", // nothing answers, whoever asks
  ],
});
const context = await browser.newContext({
  viewport: { width: request.width ?? 1120, height: 860 },
  colorScheme: request.scheme ?? "light",
});
const page = await context.newPage();
const seen = { problems: [], requests: [], blocked: [] };
page.on("console", (message) => ["error", "warning"].includes(message.type()) && seen.problems.push(message.text()));
page.on("pageerror", (error) => seen.problems.push(String(error)));
page.on("dialog", (dialog) => seen.problems.push(`dialog: ${dialog.message()}`) && dialog.dismiss());
context.on("request", (asked) => asked.url().startsWith("data:") || seen.requests.push(asked.url()));
context.on("requestfailed", (asked) => {
  if (asked.failure().errorText !== "csp") return; // held back by the page's own policy: it never left
  seen.requests.splice(seen.requests.indexOf(asked.url()), 1);
  seen.blocked.push(asked.url());
});
try {
  await page.goto(request.url);
  await page.waitForLoadState("networkidle");
  seen.title = await page.title();
  Object.assign(
    seen,
    await page.evaluate(() => ({
      images: [...document.images].map((i) => ({ alt: i.alt, complete: i.complete, width: i.naturalWidth })),
      anchors: [...document.querySelectorAll("nav a")].map((a) => document.querySelector(a.getAttribute("href")) !== null),
      headings: [...document.querySelectorAll("h2")].map((h) => h.textContent),
      tables: [...document.querySelectorAll("table")].map((t) =>
        [...t.rows].map((row) => [...row.cells].map((cell) => cell.textContent)),
      ),
      scrolls: document.documentElement.scrollWidth > document.documentElement.clientWidth,
      background: getComputedStyle(document.body).backgroundColor,
      text: document.body.textContent,
    })),
  );
  if (request.shot) await page.screenshot({ path: request.shot, fullPage: true });
} finally {
  await browser.close();
}
console.log(JSON.stringify(seen));
