// The interval of noise levels in which guidance applies: two ends on a scale of logarithms, and what it saves.

import { ask } from "./ask.js";
import { $ } from "./elements.js";

const LEAST = 0.01, MOST = 100; // σ/α at the ends of the scale, which themselves mean "no end"
const BEYOND = 1e9; // the greatest noise level that a request may name
const PAUSE = 150; // ms without a change, after which the cost is asked for
const form = $("#settings");
const { low, high } = form.elements;
const said = $("#interval-said");
const END = Number(high.max);
let ends = null; // [low, high] as it is asked for, null everywhere
let waiting = null, asking = null;

const level = (place) => Number((LEAST * (MOST / LEAST) ** (place / END)).toPrecision(2));
const place = (value) => Math.round((END * Math.log(value / LEAST)) / Math.log(MOST / LEAST));
const within = (value, least, most) => Math.min(Math.max(value, least), most);

/** Begin with what is usual: its ends stay exact until one is moved. */
export function set(interval) {
  ends = interval;
  low.value = interval && interval[0] > 0 ? within(place(interval[0]), 0, END - 1) : 0;
  high.value = interval ? within(place(interval[1]), Number(low.value) + 1, END) : END;
  show();
}

/** What a request says of it: null is everywhere, whatever is usual. */
export const asked = () => ends;

function moved(end) {
  if (end === low) low.value = within(Number(low.value), 0, Number(high.value) - 1);
  else high.value = within(Number(high.value), Number(low.value) + 1, END);
  const [from, to] = [Number(low.value), Number(high.value)];
  ends = from === 0 && to === END ? null : [from === 0 ? 0 : level(from), to === END ? BEYOND : level(to)];
  show();
}

function show() {
  const [from, to] = ends ?? [0, BEYOND];
  low.setAttribute("aria-valuetext", from === 0 ? "down to the image" : `above σ/α ${from}`);
  high.setAttribute("aria-valuetext", to === BEYOND ? "from pure noise" : `up to σ/α ${to}`);
  const track = low.parentElement.style;
  track.setProperty("--from", `${(100 * low.value) / END}%`);
  track.setProperty("--to", `${(100 * high.value) / END}%`);
  $("#interval-ends").textContent =
    ends === null ? "everywhere" : `${from} < σ/α${to === BEYOND ? "" : ` ≤ ${to}`}`;
}

/** Show the NFE of the request, null where its fields do not fit; `off` while guidance has no effect. */
export function cost(request, off) {
  clearTimeout(waiting);
  asking?.abort();
  low.disabled = high.disabled = off;
  if (low.disabled || !request) {
    said.textContent = "";
    return;
  }
  waiting = setTimeout(async () => {
    asking = new AbortController();
    try {
      const { evaluations, everywhere, questions, guided } = await ask("/playground/guided", request, asking.signal);
      const saved = evaluations < everywhere ? ` instead of ${everywhere}` : "";
      said.textContent = `guided at ${guided} of ${questions} questions: ${evaluations} network evaluations an image${saved}`;
    } catch (error) {
      if (error.name !== "AbortError") said.textContent = "";
    }
  }, PAUSE);
}

for (const end of [low, high]) end.addEventListener("input", () => moved(end)); // before the form's own
