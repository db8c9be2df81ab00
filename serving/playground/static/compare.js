// Compare: the same images by other numbers of steps and other η, beside each other.

import { ask } from "./ask.js";
import { $, element, seconds, source, worker } from "./elements.js";
import { isDeterministic, request } from "./settings.js";

const AT_ONCE = 4; // requests: the engine joins them, and a browser opens six connections
const MOST = 60; // cells
const panel = $("#compare");
const table = $(".cells", panel);

function numbers(text, name, fits) {
  const parts = text.split(/[\s,;]+/).filter(Boolean);
  const values = [...new Set(parts.map(Number))];
  if (!values.length || !values.every(fits)) throw new Error(`${name}: give numbers with commas between them (got ${text})`);
  return values;
}

const compare = worker(panel, async (say, signal) => {
  const { elements } = $("form", panel);
  const num = Number(elements.num.value);
  const steps = numbers(elements.steps.value, "Steps", (value) => Number.isInteger(value) && value > 0);
  const etas = isDeterministic() ? [0] : numbers(elements.etas.value, "η", (value) => value >= 0);
  if (steps.length * etas.length > MOST) throw new Error(`${steps.length * etas.length} cells are too many at once: give ${MOST} at most`);
  const waiting = etas.flatMap((eta) => steps.map((step) => ({ asked: { ...request(), num, steps: step, eta }, cell: element("td") })));
  lay(steps, etas, waiting.map(({ cell }) => cell));
  const total = waiting.length;
  let done = 0;
  const work = async () => {
    for (let next = waiting.shift(); next; next = waiting.shift()) {
      await fill(next, signal);
      say(`${++done} of ${total} cells`);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
});

/** Make one cell's images; what is wrong with its settings stands in it. */
async function fill({ asked, cell }, signal) {
  const began = performance.now();
  try {
    const answer = await ask("/v1/images", asked, signal);
    const took = seconds((performance.now() - began) / 1000);
    const images = answer.images.map((image, i) => element("img", {
      src: source(image), alt: `Image ${answer.indices[i]} by ${asked.steps} steps at η = ${asked.eta}`,
    }));
    const row = element("div", { className: images.length === 1 ? "row one" : "row" }, ...images);
    cell.replaceChildren(row, element("small", { textContent: `${answer.evaluations} evaluations · ${took}` }));
  } catch (error) {
    if (error.name === "AbortError") throw error;
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
