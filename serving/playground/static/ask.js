// What is asked of the server: JSON for JSON, or events as they come. What goes wrong is a sentence.

async function asked(path, body, signal) {
  const how = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  let answer;
  try {
    answer = await fetch(path, { ...how, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the server does not answer: is `diffctl playground` still running?");
  }
  if (!answer.ok) throw new Error(await sentence(answer));
  return answer;
}

async function sentence(answer) {
  try {
    return (await answer.json()).detail;
  } catch {
    return `the server answered with ${answer.status}`;
  }
}

export async function ask(path, body, signal) {
  return (await asked(path, body, signal)).json();
}

/** Calls `step` with the data of each step; returns that of `images`, and throws the sentence of `error`. */
export async function askEvents(path, body, step, signal) {
  const answer = await asked(path, body, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the server ended before the images were made");
    const blocks = (waiting + value).split("\n\n");
    waiting = blocks.pop();
    for (const block of blocks) {
      const [name, data] = block.split("\n").map((line) => line.slice(line.indexOf(": ") + 2));
      const values = JSON.parse(data);
      if (name === "step") step(values);
      else if (name === "images") return values;
      else throw new Error(values.detail);
    }
  }
}
