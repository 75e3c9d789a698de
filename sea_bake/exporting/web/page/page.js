// What people see: the forms, the download, the two answers. The model runs in worker.js, so that the page never halts.

const at = (id) => document.getElementById(id);
const [load, ask, status, answerButton, stop, strength] = ["load", "ask", "status", "answer", "stop", "strength"].map(at);

const site = await (await fetch("site.json")).json();
const megabytes = (bytes) => `${(bytes / 1e6).toLocaleString("en", { maximumFractionDigits: bytes < 1e7 ? 1 : 0 })} MB`;
let worker;
let ready = false;

function say(text, isError = false) {
  status.textContent = text;
  status.classList.toggle("error", isError);
}

function fill(select, options) {
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  select.closest("label").hidden = options.length < 2;
}

function total(graph) {
  return Object.values(site.models).reduce((sum, model) => sum + model.bytes[graph], 0);
}

fill(at("graph"), site.graphs.map(({ name, label }) => [name, `${label}, ${megabytes(total(name))}`]));
const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
fill(at("device"), [["wasm", "the processor (WebAssembly)"], ...(adapter ? [["webgpu", "the GPU (WebGPU)"]] : [])]);
at("graph").addEventListener("change", label);
label();

function label() {
  load.querySelector("button").textContent = `Load the model (${megabytes(total(at("graph").value))})`;
}

load.addEventListener("submit", (event) => {
  event.preventDefault();
  const graph = at("graph").value;
  const arrived = new Map();
  load.querySelector("button").hidden = true;
  at("graph").disabled = at("device").disabled = true;
  at("download").hidden = false;
  say("Loading the runtime");
  worker = new Worker("worker.js", { type: "module" });
  worker.onerror = (problem) => failed(problem.message || "the model's worker could not be started");
  worker.onmessage = ({ data }) => {
    if (data.type === "progress") {
      arrived.set(data.file, data.loaded);
      const bytes = [...arrived.values()].reduce((a, b) => a + b, 0);
      at("progress").value = Math.min(1, bytes / total(graph));
      say(bytes < total(graph) ? `${megabytes(bytes)} of ${megabytes(total(graph))}` : "Starting the model");
    } else if (data.type === "ready") {
      at("download").hidden = true;
      ready = true;
      working(false);
      say(`Ready: ${data.graph}, on ${data.device}.`);
      at("prompt").focus();
    } else if (data.type === "text") {
      answer(data.side).textContent += data.text;
    } else if (data.type === "side") {
      const done = data.state === "done";
      answer(data.side).setAttribute("aria-busy", String(!done));
      if (done) speed(data.side).textContent = `${data.tokens} tokens, ${(data.tokens / data.seconds).toFixed(1)} per second`;
    } else if (data.type === "done") {
      working(false);
    } else if (data.type === "error") {
      failed(data.message);
    }
  };
  worker.postMessage({ type: "load", site, graph, device: at("device").value });
});

function failed(message) {
  say(`That did not work: ${message}`, true);
  at("download").hidden = true;
  for (const side of site.sides) answer(side).setAttribute("aria-busy", "false");
  working(false);
  if (!ready) {
    worker.terminate();
    load.querySelector("button").hidden = false;
    at("graph").disabled = at("device").disabled = false;
  }
}

const answer = (side) => at(`${side}-answer`);
const speed = (side) => at(`${side}-speed`);

function working(is) {
  answerButton.disabled = is || !ready;
  stop.disabled = !is;
}

ask.addEventListener("submit", (event) => {
  event.preventDefault();
  if (answerButton.disabled) return;
  for (const side of site.sides) {
    answer(side).textContent = "";
    speed(side).textContent = "";
  }
  working(true);
  worker.postMessage({
    type: "ask",
    prompt: at("prompt").value,
    strength: Number(strength.value),
    length: Number(at("length").value),
  });
});
stop.addEventListener("click", () => worker.postMessage({ type: "stop" }));
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    ask.requestSubmit();
  }
});
at("examples").addEventListener("click", ({ target }) => {
  if (target.matches("button")) at("prompt").value = target.textContent;
});
strength.closest("label").hidden = !site.strength;
strength.addEventListener("input", () => {
  at("strength-shown").value = strength.value;
});
document.documentElement.dataset.state = "open";
