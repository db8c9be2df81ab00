// Interpolation: a slider over frames that are sampled in advance.

import { requestEvents } from "./api.js";
import { $, source, worker } from "./elements.js";
import { base64, fit } from "./picture.js";
import { knownModel, request } from "./settings.js";

const UPDATES = 10; // intermediate images per frame
const panel = $("#between");
const form = $("form", panel);
const way = $(".way", panel);
const slider = $("input[type=range]", panel);
let frames = [];

const between = worker(panel, async (report, signal) => {
  const { num, ...settings } = request();
  const count = Number(form.elements.frames.value);
  const every = Math.max(1, Math.floor(settings.steps / UPDATES));
  const body = { ...settings, eta: 0, frames: count, every, ...(await ends()) };
  delete body.noise; // unused at η = 0
  frames = Array(count).fill("");
  slider.max = count - 1;
  slider.value = Math.floor((count - 1) / 2);
  report(body.images ? "encoding" : "");
  const began = performance.now();
  const step = ({ step, steps, indices, images }) => {
    indices.forEach((index, i) => { frames[index] = source(images[i]); });
    report(`step ${step} of ${steps}`);
    show();
  };
  const response = await requestEvents("/playground/between", body, step, signal);
  frames = response.images.map(source);
  show();
  report(`${count} images in ${((performance.now() - began) / 1000).toFixed(2)} s. Drag, or use the arrow keys.`);
});

async function ends() {
  const { kind, seed0, seed1, number0, number1, file0, file1 } = form.elements;
  if (kind.value === "seeds") return { seeds: [Number(seed0.value), Number(seed1.value)] };
  if (kind.value === "numbers") return { images: [Number(number0.value), Number(number1.value)] };
  const fitted = [file0, file1].map((field, i) => fit(field.files[0], `the ${["first", "second"][i]} file`, knownModel().card.network));
  return { images: (await Promise.all(fitted)).map(base64) };
}

function show() {
  const at = Number(slider.value), last = frames.length - 1;
  way.hidden = false;
  const [first, second] = panel.querySelectorAll(".end");
  for (const [image, frame] of [[first, 0], [$(".at", panel), at], [second, last]]) if (frames[frame]) image.src = frames[frame];
  const text = `${Math.round((100 * at) / last)} %`;
  $(".where", panel).textContent = text;
  $(".at", panel).alt = `The image ${text} of the way`;
  slider.setAttribute("aria-valuetext", text);
}

export function begin() {
  form.addEventListener("submit", (event) => { event.preventDefault(); between(); });
  slider.addEventListener("input", show);
  form.elements.kind.addEventListener("input", ({ target }) => {
    for (const fields of form.querySelectorAll("fieldset")) fields.hidden = fields.dataset.kind !== target.value;
    preview();
  });
  for (const field of numbers()) field.addEventListener("input", preview);
}

const numbers = () => [form.elements.number0, form.elements.number1];

/** Show the real images with the chosen numbers. */
function preview() {
  numbers().forEach((field, i) => {
    const image = form.querySelectorAll(".real")[i];
    image.hidden = form.elements.kind.value !== "numbers" || !field.value || !field.checkValidity();
    if (image.hidden) return;
    image.src = `/playground/images/${Number(field.value)}`;
    image.alt = `Real image ${field.value}`;
  });
}

/** Show the number of real images, and drop the frames of another model. */
export function offer({ store }) {
  frames = [];
  way.hidden = true;
  form.elements.frames.max = knownModel().limits.images;
  for (const field of numbers()) field.max = Math.max(0, store.images - 1);
  const none = form.elements.kind.querySelector("[value=numbers]");
  none.disabled = !store.images;
  $("#store-note").textContent = store.images ? `Numbers 0 to ${store.images - 1} of the data set's test images.` : store.why;
  none.title = store.why ?? "";
  preview();
}
