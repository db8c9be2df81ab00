// Requests to the server: JSON, or server-sent events. Errors have one sentence.

const CHANGES_MODEL = "/playground/version";
let shown = null; // the model of the page

export class OtherModel extends Error {}

/** Expect the answers of a model; `reload` shows the one that serves, when another one answers. */
export function expectModel(sha256, reload) {
  shown = { sha256, reload, loading: null };
}

/** Throw OtherModel if another model than the `expected` one answers, after the page shows it. */
async function check(response, expected) {
  if (expected === null || response.headers.get("X-Model-SHA256") === expected.sha256) return;
  if (shown === expected) await (expected.loading ??= expected.reload().finally(() => { expected.loading = null; }));
  throw new OtherModel("another model serves now: its settings are loaded, so check them and try again");
}

export async function send(path, body, signal) {
  const expected = body === undefined || path === CHANGES_MODEL ? null : shown;
  const options = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(path, { ...options, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the server does not answer: is `diffctl playground` still running?");
  }
  await check(response, expected);
  if (!response.ok) throw new Error(await detail(response));
  return response;
}

async function detail(response) {
  try {
    return (await response.json()).detail;
  } catch {
    return `the server answered with ${response.status}`;
  }
}

export async function request(path, body, signal) {
  return (await send(path, body, signal)).json();
}

/** Calls `step` with the data of each step event; returns the data of `images`, throws that of `error`. */
export async function requestEvents(path, body, step, signal) {
  const response = await send(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the server stopped before the images were finished");
    const blocks = (buffer + value).split("\n\n");
    buffer = blocks.pop();
    for (const block of blocks) {
      const [name, data] = block.split("\n").map((line) => line.slice(line.indexOf(": ") + 2));
      const values = JSON.parse(data);
      if (name === "step") step(values);
      else if (name === "images") return values;
      else throw new Error(values.detail);
    }
  }
}
