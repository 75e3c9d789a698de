// Where the model runs: transformers.js on onnxruntime-web. The libraries are fetched with their hashes, and run only
// if these hold: from this site, or from a CDN.

let site;
let library;
const models = {};
let stopping;

async function checked({ url, integrity }) {
  const response = await fetch(new URL(url, self.location), { integrity, credentials: "omit" }).catch(() => {
    throw new Error(`${url} cannot be reached, or has not the hash that this page expects`);
  });
  if (!response.ok) throw new Error(`${url} answers ${response.status}`);
  return response.arrayBuffer();
}

const script = (code) => URL.createObjectURL(new Blob([code], { type: "text/javascript" }));

async function load({ site: given, graph, device }) {
  site = given;
  const [transformers, factory, binary] = await Promise.all(
    ["transformers", "factory", "binary"].map((name) => checked(site.libraries[name])),
  );
  library = await import(script(transformers));
  const { AutoModelForCausalLM, AutoTokenizer, env } = library;
  Object.assign(env.backends.onnx.wasm, { wasmBinary: binary, wasmPaths: { mjs: script(factory) } });
  env.useWasmCache = false;
  // "Remote" is whatever has an address, this very site too; no other host is asked.
  Object.assign(env, { allowLocalModels: false, allowRemoteModels: true, remotePathTemplate: "{model}/" });
  const cache = await opened(site.cache).catch(() => null); // where a browser keeps nothing
  Object.assign(env, { useBrowserCache: false, useCustomCache: cache !== null, customCache: cache });
  for (const [side, { url }] of Object.entries(site.models)) {
    const [, folder, name] = new URL(url, self.location).href.match(/^(.*\/)([^/]+)\/?$/);
    env.remoteHost = folder;
    const options = {
      progress_callback: ({ status, file, loaded }) => {
        if (status === "progress") self.postMessage({ type: "progress", file: `${side}/${file}`, loaded });
      },
    };
    const tokenizer = await AutoTokenizer.from_pretrained(name, options);
    const format = site.graphs.find((g) => g.name === graph).dtype;
    const model = await AutoModelForCausalLM.from_pretrained(name, { ...options, dtype: format, device });
    models[side] = { tokenizer, model, forward: model.forward.bind(model) };
  }
  self.postMessage({ type: "ready", kept: cache !== null && !cache.failed });
}

// What an earlier visit downloaded. Another model, another cache: none is ever served in place of another, and those of
// earlier versions of this site go. Browsers refuse to keep hundreds of megabytes as one entry, so a file is kept in
// parts, and the entry that tells how many is written last.
const PART = 32 << 20;

async function opened([name, version]) {
  const old = (await caches.keys()).filter((key) => key.startsWith(`${name}-`) && key !== `${name}-${version}`);
  await Promise.all(old.map((key) => caches.delete(key)));
  const cache = await caches.open(`${name}-${version}`);
  const part = (url, i) => `${new URL(url, self.location).href}?part=${i}`;
  return {
    failed: false,
    async match(url) {
      const whole = await cache.match(url);
      if (!whole) return undefined;
      const { parts, bytes } = await whole.json();
      const pieces = await Promise.all(Array.from({ length: parts }, (_, i) => cache.match(part(url, i))));
      if (!pieces.every(Boolean)) return undefined;
      const body = new ReadableStream({
        async pull(controller) {
          const piece = pieces.shift();
          if (piece) controller.enqueue(new Uint8Array(await piece.arrayBuffer()));
          else controller.close();
        },
      });
      return new Response(body, { headers: { "content-length": String(bytes) } });
    },
    async put(url, response) {
      try {
        const file = await response.blob();
        const parts = Math.ceil(file.size / PART);
        for (let i = 0; i < parts; i++) {
          await cache.put(part(url, i), new Response(file.slice(i * PART, (i + 1) * PART)));
        }
        await cache.put(url, new Response(JSON.stringify({ parts, bytes: file.size })));
      } catch {
        this.failed = true; // too little room
        for (const key of await cache.keys()) if (key.url.startsWith(part(url, ""))) await cache.delete(key);
      }
    },
  };
}

// One task of the event loop later: messages, such as "stop", are read between two tokens.
const later = () => new Promise((resolve) => setTimeout(resolve));

// [prompt, answer] pairs, then the prompt: by the chat template, or as the plain format goes on. Blocks of reasoning
// are left out of what was said, as chat templates do.
function inputsOf(tokenizer, before, prompt) {
  const said = before.map(([asked, text]) => [asked, text.replace(/^[^]*<\/think>/, "").trim()]);
  if (!tokenizer.chat_template) {
    const plain = (asked) => site.plain.replace("{prompt}", () => asked);
    return tokenizer([...said.map(([asked, text]) => `${plain(asked)} ${text}`), plain(prompt)].join("\n\n"));
  }
  const pairs = said.map(([asked, text]) => [{ role: "user", content: asked }, { role: "assistant", content: text }]);
  const messages = [...pairs.flat(), { role: "user", content: prompt }];
  return tokenizer.apply_chat_template(messages, { add_generation_prompt: true, return_dict: true });
}

async function answer(side, { prompt, strength, length, before }) {
  const { tokenizer, model, forward } = models[site.strength ? "edited" : side];
  const { InterruptableStoppingCriteria, Tensor, TextStreamer } = library;
  const inputs = inputsOf(tokenizer, before[side], prompt);
  const [taken, limit] = [inputs.input_ids.dims.at(-1), model.config.max_position_embeddings ?? Number.POSITIVE_INFINITY];
  if (taken >= limit) throw new Error(`the conversation takes ${taken} tokens, and the model reads ${limit}: begin a new one`);
  const value = side === "base" ? 0 : strength;
  model.forward = async (given) => {
    await later();
    const strengths = site.strength ? { [site.strength]: new Tensor("float32", new Float32Array([value]), [1]) } : {};
    return forward({ ...given, ...strengths }); // generate itself passes no further inputs on
  };
  let tokens = 0;
  const streamer = new TextStreamer(tokenizer, {
    skip_prompt: true,
    skip_special_tokens: true,
    callback_function: (text) => self.postMessage({ type: "text", side, text }),
    token_callback_function: (ids) => (tokens += ids.length),
  });
  stopping = new InterruptableStoppingCriteria();
  self.postMessage({ type: "side", side, state: "busy" });
  const began = performance.now();
  const room = Math.min(length, limit - taken);
  await model.generate({ ...inputs, max_new_tokens: room, do_sample: false, streamer, stopping_criteria: stopping });
  self.postMessage({ type: "side", side, state: "done", tokens, seconds: (performance.now() - began) / 1000 });
  return stopping.interrupted;
}

self.onmessage = async ({ data }) => {
  try {
    if (data.type === "stop") {
      stopping?.interrupt();
    } else if (data.type === "load") {
      await load(data);
    } else {
      for (const side of site.sides) {
        if (await answer(side, data)) break;
      }
      self.postMessage({ type: "done" });
    }
  } catch (error) {
    self.postMessage({ type: "error", message: String(error?.message ?? error) });
  }
};
