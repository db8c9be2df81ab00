// Compare: a table of the same images over steps and η.

import * as api from "./api.js";
import { $, element, seconds, source, worker } from "./elements.js";
import { isDeterministic, request } from "./settings.js";

const CONCURRENT = 4; // requests: the engine batches them, and a browser opens six connections
const MAX_CELLS = 60;
const panel = $("#compare");
const table = $(".cells", panel);

function numbers(text, name, fits) {
  const parts = text.split(/[\s,;]+/).filter(Boolean);
  const values = [...new Set(parts.map(Number))];
  if (!values.length || !values.every(fits)) throw new Error(`${name}: give numbers with commas between them (got ${text})`);
  return values;
}

const compare = worker(panel, async (report, signal) => {
  const { elements } = $("form", panel);
  const num = Number(elements.num.value);
  const steps = numbers(elements.steps.value, "Steps", (value) => Number.isInteger(value) && value > 0);
  const etas = isDeterministic() ? [0] : numbers(elements.etas.value, "η", (value) => value >= 0);
  if (steps.length * etas.length > MAX_CELLS) throw new Error(`${steps.length * etas.length} cells are too many at once: give ${MAX_CELLS} at most`);
  const waiting = etas.flatMap((eta) => steps.map((step) => ({ body: { ...request(), num, steps: step, eta }, cell: element("td") })));
  lay(steps, etas, waiting.map(({ cell }) => cell));
  const total = waiting.length;
  let done = 0;
  const work = async () => {
    for (let next = waiting.shift(); next; next = waiting.shift()) {
      await fill(next, signal);
      report(`${++done} of ${total} cells`);
    }
  };
  try {
    await Promise.all(Array.from({ length: CONCURRENT }, work));
  } finally {
    waiting.length = 0;
  }
});

/** Sample the images of one cell, or show the error in it. */
async function fill({ body, cell }, signal) {
  const began = performance.now();
  try {
    const response = await api.request("/v1/images", body, signal);
    const took = seconds((performance.now() - began) / 1000);
    const images = response.images.map((image, i) => element("img", {
      src: source(image), alt: `Image ${response.indices[i]} by ${body.steps} steps at η = ${body.eta}`,
    }));
    const row = element("div", { className: images.length === 1 ? "row one" : "row" }, ...images);
    cell.replaceChildren(row, element("small", { textContent: `NFE ${response.nfe} · ${took}` }));
  } catch (error) {
    if (error.name === "AbortError" || error instanceof api.OtherModel) throw error;
    cell.replaceChildren(element("small", { className: "cannot", textContent: error.message }));
  }
}

function lay(steps, etas, cells) {
  const head = element("tr", {}, element("th"), ...steps.map((step) => element("th", { scope: "col", textContent: `${step} steps` })));
  const rows = etas.map((eta, i) => element(
    "tr", {}, element("th", { scope: "row", textContent: `η = ${eta}` }), ...cells.slice(i * steps.length, (i + 1) * steps.length),
  ));
  table.replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
}

export function begin() {
  $("form", panel).addEventListener("submit", (event) => { event.preventDefault(); compare(); });
}
