// The settings: what this model can be sampled by, and what a request says of it.

import { $, options } from "./elements.js";
import * as interval from "./interval.js";

const form = $("#settings");
const fields = form.elements;
let known = null;

/** Offer what the model and its choices allow, and begin with what is usual. */
export function offer(model, choices) {
  known = { model, choices };
  const { card, usual, limits } = model;
  const classes = card.data.classes.map((name, label) => [String(label), name]);
  options(fields.class, [["", "all in turn"], ...classes], "");
  fields.class.disabled = !classes.length;
  options(fields.sampler, choices.samplers.map(({ name }) => [name, name]), usual.sampler);
  options(fields.spacing, choices.spacings.map((name) => [name, name]), usual.spacing);
  options(fields.noise, choices.noises.map((name) => [name, name]), usual.noise);
  fields.num.max = limits.images;
  fields.steps.max = Math.min(limits.steps, card.process.timesteps);
  fields.steps.value = Math.min(usual.steps, fields.steps.max);
  fields.eta.value = usual.eta;
  fields.guidance.value = usual.guidance;
  fields.guidance.disabled = !choices.guidance;
  fields.clip.checked = usual.clip;
  interval.set(usual.guidance_interval);
  agree();
}

/** Nothing is asked for that means nothing beside the rest. */
function agree() {
  const sampler = known.choices.samplers.find(({ name }) => name === fields.sampler.value);
  fields.eta.disabled = !sampler.stochastic;
  fields.noise.disabled = fields.eta.disabled || Number(fields.eta.value) === 0;
  $("#unsaid").textContent = unsaid();
  interval.cost(form.checkValidity() ? values() : null);
}

/** What the fields do not say: options that come with the usual sampler. */
function unsaid() {
  const { sampler, sampler_options: own } = known.model.usual;
  const options = Object.entries(fields.sampler.value === sampler ? own : {});
  return options.map(([key, value]) => `${key} is ${value}`).join(", ");
}

export const isDeterministic = () => fields.eta.disabled;
export const knownModel = () => known.model;
export const knownChoices = () => known.choices;

/** The request that the form means; an Error with a sentence where a field does not. */
export function request() {
  const wrong = [...fields].find((field) => field.willValidate && !field.checkValidity());
  if (wrong) {
    wrong.focus();
    throw new Error(`${wrong.labels[0].textContent.trim()}: ${wrong.validationMessage}`);
  }
  return values();
}

function values() {
  const asked = {
    num: Number(fields.num.value), seed: Number(fields.seed.value), steps: Number(fields.steps.value),
    sampler: fields.sampler.value, spacing: fields.spacing.value, clip: fields.clip.checked,
    eta: fields.eta.disabled ? 0 : Number(fields.eta.value), guidance: Number(fields.guidance.value),
  };
  if (asked.guidance > 0) asked.guidance_interval = interval.asked();
  if (!fields.noise.disabled) asked.noise = fields.noise.value;
  if (fields.class.value) asked.class = Number(fields.class.value);
  return asked;
}

export function onSubmit(begin) {
  form.noValidate = true; // what is wrong is said on the page, beside the images
  form.addEventListener("submit", (event) => { event.preventDefault(); begin(); });
  form.addEventListener("input", () => known && agree());
}
