// What people see: the forms, the download, the two answers. The model runs in worker.js, so that the page never halts.

const at = (id) => document.getElementById(id);
const [load, ask, status, answerButton, stop, strength] = ["load", "ask", "status", "answer", "stop", "strength"].map(at);
const [fresh, asked, earlier] = ["new", "asked", "earlier"].map(at);
const [graph, device, prompt, length] = ["graph", "device", "prompt", "length"].map(at);
const loadButton = load.querySelector("button");

const site = await (await fetch("site.json")).json();
const megabytes = (bytes) => `${(bytes / 1e6).toLocaleString("en", { maximumFractionDigits: bytes < 1e7 ? 1 : 0 })} MB`;
const graphs = Object.fromEntries(site.graphs.map((one) => [one.name, one]));
const conversation = []; // every prompt since it began, with its settings and its answers
const speeds = {}; // graph and device -> tokens per second of the last answer here
let worker;
let ready; // the graph and device that answer, as "fp32 wasm"; undefined while there are none

function say(text, isError = false) {
  status.textContent = text;
  status.classList.toggle("error", isError);
}

function fill(select, options) {
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  select.closest("label").hidden = options.length < 2;
}

function total(name) {
  return Object.values(site.models).reduce((sum, model) => sum + model.bytes[name], 0);
}

const chosen = () => `${graph.value} ${device.value}`;

fill(graph, site.graphs.map(({ name, label }) => [name, `${label}, ${megabytes(total(name))}`]));
const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
fill(device, [["wasm", "the processor (WebAssembly)"], ...(adapter ? [["webgpu", "the GPU (WebGPU)"]] : [])]);
graph.addEventListener("change", describe);
device.addEventListener("change", describe);

// The button, and what is known of the chosen precision.
function describe() {
  const { label, note, warning, slow } = graphs[graph.value];
  loadButton.textContent = `${ready ? `Change to ${label}` : "Load the model"} (${megabytes(total(graph.value))})`;
  loadButton.hidden = ready === chosen();
  const here = site.graphs.filter(({ name }) => speeds[`${name} ${device.value}`]);
  const measured = here.map(({ name, label: other }) => `${other} ${speeds[`${name} ${device.value}`].toFixed(1)}`);
  const speed = here.length > 1 ? `Measured here: ${measured.join(", ")} tokens per second.` : "";
  at("precision").textContent = [note, speed || (device.value === "wasm" ? slow : "")].filter(Boolean).join(" ");
  at("warning").textContent = warning;
}

load.addEventListener("submit", (event) => {
  event.preventDefault();
  worker?.terminate();
  const [name, arrived, loading] = [graph.value, new Map(), chosen()];
  ready = undefined;
  rest();
  loadButton.hidden = true;
  graph.disabled = device.disabled = true;
  at("download").hidden = false;
  at("progress").value = 0;
  say("Loading the runtime");
  const started = new Worker("worker.js", { type: "module" });
  worker = started;
  worker.onerror = (problem) => failed(problem.message || "the model's worker could not be started");
  worker.onmessage = ({ data }) => {
    if (started !== worker) return; // said before another took its place
    if (data.type === "progress") {
      arrived.set(data.file, data.loaded);
      const bytes = [...arrived.values()].reduce((a, b) => a + b, 0);
      at("progress").value = Math.min(1, bytes / total(name));
      say(bytes < total(name) ? `${megabytes(bytes)} of ${megabytes(total(name))}` : "Starting the model");
    } else if (data.type === "ready") {
      at("download").hidden = true;
      graph.disabled = device.disabled = false;
      ready = loading;
      describe();
      working(false);
      say(`Ready: ${graphs[name].label}, on ${device.value === "webgpu" ? "the GPU" : "the processor"}.${
        data.kept ? "" : " This browser keeps no copy of the model: another visit downloads it again."}`);
      prompt.focus();
    } else if (data.type === "text") {
      answer(data.side).textContent += data.text;
      conversation.at(-1).answers[data.side] += data.text;
    } else if (data.type === "side") {
      const done = data.state === "done";
      answer(data.side).setAttribute("aria-busy", String(!done));
      answer(data.side).dataset.empty = done ? "Nothing: the model ended at once" : "Reading the prompt";
      if (done) {
        speeds[loading] = data.tokens / data.seconds;
        speed(data.side).textContent = `${data.tokens} tokens, ${speeds[loading].toFixed(1)} per second`;
        describe();
      }
    } else if (data.type === "done") {
      rest();
    } else if (data.type === "error") {
      failed(data.message);
    }
  };
  worker.postMessage({ type: "load", site, graph: name, device: device.value });
});

function failed(message) {
  say(`That did not work: ${message}`, true);
  at("download").hidden = true;
  rest();
  if (!ready) {
    worker.terminate();
    graph.disabled = device.disabled = false;
    describe();
  }
}

const answer = (side) => at(`${side}-answer`);
const speed = (side) => at(`${side}-speed`);

function working(is) {
  answerButton.disabled = is || !ready;
  fresh.disabled = is || !conversation.length;
  stop.disabled = !is;
}

function rest() {
  for (const side of site.sides) {
    answer(side).setAttribute("aria-busy", "false");
    if (!speed(side).textContent) answer(side).dataset.empty = "No answer yet";
  }
  working(false);
}

// The turn that is shown, as it stays behind: without the names by which the next one is found.
function past() {
  const turn = document.createElement("article");
  turn.append(asked.cloneNode(true), at("sides").cloneNode(true));
  for (const part of turn.querySelectorAll("*")) {
    for (const name of ["id", "aria-live", "aria-busy", "aria-labelledby"]) part.removeAttribute(name);
  }
  return turn;
}

// What a side has said so far goes on with what it is asked; turns in which it was stopped before a word do not.
const before = (side) =>
  conversation.filter((turn) => turn.answers[side].trim()).map((turn) => [turn.prompt, turn.answers[side]]);

function empty(text) {
  for (const side of site.sides) {
    answer(side).textContent = speed(side).textContent = "";
    answer(side).dataset.empty = text;
  }
}

fresh.addEventListener("click", () => {
  conversation.length = 0;
  earlier.replaceChildren();
  asked.textContent = at("notice").textContent = "";
  at("copy").disabled = at("copied").hidden = true;
  empty("No answer yet");
  working(false);
  prompt.focus();
  prompt.select();
});

// An empty text takes a refusal back.
function refuse(text) {
  at("refusal").textContent = text;
  prompt.setAttribute("aria-invalid", String(Boolean(text)));
}

ask.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!prompt.value.trim()) {
    refuse("There is no prompt: write one first.");
    prompt.focus();
    return;
  }
  if (answerButton.disabled) return;
  if (conversation.length) earlier.prepend(past());
  empty("Waits for its turn");
  const turn = { prompt: prompt.value, strength: Number(strength.value), length: Number(length.value) };
  worker.postMessage({ type: "ask", ...turn, before: Object.fromEntries(site.sides.map((side) => [side, before(side)])) });
  const answers = Object.fromEntries(site.sides.map((side) => [side, ""]));
  conversation.push({ ...turn, precision: graphs[ready.split(" ")[0]].label, answers });
  asked.textContent = turn.prompt;
  asked.dataset.strength = site.strength ? `strength ${turn.strength}` : "";
  at("copy").disabled = false;
  working(true);
  prompt.select(); // the next one takes its place
});
stop.addEventListener("click", () => worker.postMessage({ type: "stop" }));
prompt.addEventListener("input", () => refuse(""));
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    ask.requestSubmit();
  }
});
at("examples").addEventListener("click", ({ target }) => {
  if (!target.matches("button")) return;
  prompt.value = target.textContent;
  refuse("");
});
strength.closest("label").hidden = !site.strength;
strength.addEventListener("input", () => {
  at("strength-shown").value = strength.value;
});

// To the clipboard; where a browser allows that to no page, into a box to copy from.
async function copy(text, said) {
  const box = at("copied");
  try {
    await navigator.clipboard.writeText(text);
    box.hidden = true;
    at("notice").textContent = said;
  } catch {
    box.hidden = false;
    box.value = text;
    box.select();
    at("notice").textContent = "This browser lets no page copy: take it from the box.";
  }
}

at("copy").addEventListener("click", () => {
  const name = { base: "Base", edited: "Edited" };
  const turns = conversation.map((turn) => {
    const given = [...(site.strength ? [`strength ${turn.strength}`] : []), turn.precision, `at most ${turn.length} tokens`];
    const answers = site.sides.map((side) => `${name[side]}:\n${turn.answers[side]}`);
    return [`Prompt (${given.join(", ")}):\n${turn.prompt}`, ...answers].join("\n\n");
  });
  copy([`${document.title}\n${site.base}`, ...turns].join("\n\n---\n\n"), "The conversation is copied.");
});

// Settings in a link: behind the "#", which no browser sends to any host.
at("share").addEventListener("click", () => {
  const shared = { prompt: prompt.value, length: length.value, graph: graph.value, device: device.value };
  if (site.strength) shared.strength = strength.value;
  history.replaceState(null, "", `#${new URLSearchParams(shared)}`);
  copy(location.href, "The link is copied: it holds the prompt and the settings.");
});

// Of a link, what this page has: nothing is loaded or answered by it.
function follow() {
  const shared = new URLSearchParams(location.hash.slice(1));
  for (const select of [graph, device, length]) {
    const value = shared.get(select.id);
    if (!select.disabled && [...select.options].some((option) => option.value === value)) select.value = value;
  }
  const value = Number(shared.get("strength") ?? Number.NaN);
  if (Number.isFinite(value)) at("strength-shown").value = strength.value = String(value); // the slider keeps its bounds
  if (shared.has("prompt")) prompt.value = shared.get("prompt");
  describe();
}
addEventListener("hashchange", follow);
follow();
document.documentElement.dataset.state = "open";
