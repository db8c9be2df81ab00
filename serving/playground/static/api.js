// Requests to the server: JSON, or server-sent events. Errors have one sentence.

export async function send(path, body, signal) {
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
