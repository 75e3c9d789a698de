// Generates with transformers.js under Node, offline, and prints one line of JSON.
//
// node generate.mjs '{"modules", "folder", "name", "prompts", "length", "least"}'

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const request = JSON.parse(process.argv[2]);
const found = createRequire(`${request.modules}/`).resolve("@huggingface/transformers");
const { AutoModelForCausalLM, AutoTokenizer, env } = await import(pathToFileURL(found.replace(/\.cjs$/, ".mjs")));
env.allowRemoteModels = false;
env.localModelPath = request.folder;
const tokenizer = await AutoTokenizer.from_pretrained(request.name);
const model = await AutoModelForCausalLM.from_pretrained(request.name, { dtype: "fp32" });
const options = { max_new_tokens: request.length, min_new_tokens: request.least ?? 0, do_sample: false };
const ids = [];
const texts = request.prompts.map((content) =>
  tokenizer.apply_chat_template([{ role: "user", content }], { add_generation_prompt: true, tokenize: false }),
);
for (const text of texts) {
  const inputs = tokenizer(text, { add_special_tokens: false });
  const out = (await model.generate({ ...inputs, ...options })).tolist()[0];
  ids.push(out.slice(inputs.input_ids.dims[1]).map(Number));
}
tokenizer.padding_side = "left";
const batch = tokenizer(texts, { add_special_tokens: false, padding: true });
const padded = (await model.generate({ ...batch, ...options })).tolist();
console.log(
  JSON.stringify({
    ids,
    padded: padded.map((row) => row.slice(batch.input_ids.dims[1]).map(Number)),
    versions: env.version,
  }),
);
