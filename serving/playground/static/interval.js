// The guidance interval: two noise levels on a logarithmic scale, and the NFE that results.

import { request as send } from "./api.js";
import { $ } from "./elements.js";

const MIN = 0.01, MAX = 100; // σ/α at the ends of the scale, where the interval is open
const INFINITE = 1e9; // the greatest noise level of a request
const DEBOUNCE = 150; // ms
const form = $("#settings");
const { low, high } = form.elements;
const note = $("#interval-note");
const END = Number(high.max);
let ends = null; // [low, high] of the request, null everywhere
let timer = null, running = null;

const level = (place) => Number((MIN * (MAX / MIN) ** (place / END)).toPrecision(2));
const place = (value) => Math.round((END * Math.log(value / MIN)) / Math.log(MAX / MIN));
const clamp = (value, min, max) => Math.min(Math.max(value, min), max);

/** Set the default; its ends stay exact until one is moved. */
export function set(interval) {
  ends = interval;
  low.value = interval && interval[0] > 0 ? clamp(place(interval[0]), 0, END - 1) : 0;
  high.value = interval ? clamp(place(interval[1]), Number(low.value) + 1, END) : END;
  show();
}

/** The interval of a request; null is everywhere, whatever the default. */
export const value = () => ends;

function moved(end) {
  if (end === low) low.value = clamp(Number(low.value), 0, Number(high.value) - 1);
  else high.value = clamp(Number(high.value), Number(low.value) + 1, END);
  const [from, to] = [Number(low.value), Number(high.value)];
  ends = from === 0 && to === END ? null : [from === 0 ? 0 : level(from), to === END ? INFINITE : level(to)];
  show();
}

function show() {
  const [from, to] = ends ?? [0, INFINITE];
  low.setAttribute("aria-valuetext", from === 0 ? "down to the image" : `above σ/α ${from}`);
  high.setAttribute("aria-valuetext", to === INFINITE ? "from pure noise" : `up to σ/α ${to}`);
  const track = low.parentElement.style;
  track.setProperty("--from", `${(100 * low.value) / END}%`);
  track.setProperty("--to", `${(100 * high.value) / END}%`);
  $("#interval-ends").textContent =
    ends === null ? "everywhere" : `${from} < σ/α${to === INFINITE ? "" : ` ≤ ${to}`}`;
}

/** Show the NFE of the request, null where its fields do not fit; `off` while guidance has no effect. */
export function cost(request, off) {
  clearTimeout(timer);
  running?.abort();
  low.disabled = high.disabled = off;
  if (low.disabled || !request) {
    note.textContent = "";
    return;
  }
  timer = setTimeout(async () => {
    running = new AbortController();
    try {
      const { nfe, everywhere, times, guided } = await send("/playground/guided", request, running.signal);
      const saved = nfe < everywhere ? ` instead of ${everywhere}` : "";
      note.textContent = `guided at ${guided} of ${times} times: NFE ${nfe} per image${saved}`;
    } catch (error) {
      if (error.name !== "AbortError") note.textContent = "";
    }
  }, DEBOUNCE);
}

for (const end of [low, high]) end.addEventListener("input", () => moved(end)); // before the form's listener
