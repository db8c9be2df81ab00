// The settings: a control for each sampling option, and the request with their values.

import { $, element, options } from "./elements.js";
import * as interval from "./interval.js";

const WIDE = 10; // characters of a choice that needs a wide control
const form = $("#settings");
const fields = form.elements;
let known = null;

/** Create the controls that fit the model, with its default values. */
export function offer(model, choices) {
  known = { model, choices };
  const { card, usual, limits } = model;
  const classes = card.data.classes.map((name, label) => [String(label), name]);
  options(fields.class, [["", "all in turn"], ...classes], "");
  fields.class.disabled = !classes.length;
  fields.num.max = limits.images;
  for (const old of form.querySelectorAll("[data-option]")) old.remove();
  for (const control of choices.controls) {
    if (control.kind === "interval") {
      interval.set(usual[control.name]);
      $(".interval", form).title = control.help;
    } else $(".interval", form).before(labelled(control, usual[control.name]));
  }
  for (const option of Object.keys(choices.entry_options)) offerOwn(option);
  fields.steps.max = Math.min(limits.steps, card.process.timesteps ?? limits.steps); // a continuous process has no T
  fields.steps.value = Math.min(usual.steps, fields.steps.max);
  describe(fields);
  agree();
}

function describe(controls) {
  for (const control of controls) control.setAttribute("aria-describedby", "lesson");
}

/** Create the controls of the options that the chosen sampler or spacing alone has, below it. */
function offerOwn(option) {
  $(`[data-own=${option}]`, form)?.remove();
  const controls = ownControls(option), values = usualOwn(option);
  if (!controls.length) return;
  const legend = element("legend", { textContent: `Options of ${fields[option].value}` });
  const group = element("fieldset", {}, legend, ...controls.map((control) => labelled(control, keyOf(control) in values ? values[keyOf(control)] : control.default)));
  group.dataset.own = option;
  $(`[data-option=${option}]`, form).after(group);
  describe(group.elements);
}

const ownControls = (option) => known.choices.entry_options[option][fields[option].value] ?? [];
const keyOf = ({ name }) => name.split(".")[1];

/** The model's usual options of the chosen entry, also those without a control. */
const usualOwn = (option) => {
  const { usual } = known.model;
  return fields[option].value === usual[option] ? usual[`${option}_options`] : {};
};

/** Show what the control does that has the focus or the pointer. */
function teach(event) {
  const control = event.target.closest("[title]");
  if (control) $("#lesson").textContent = control.title;
}

/** A number as the text of its control; null is empty. */
const plain = (value) => (Math.abs(value) >= 1e6 ? value.toExponential() : value ?? "");

/** A label with the control of an option in it. */
function labelled({ name, label, help, kind, choices, nullable, least, most }, value) {
  const made = element("label", { title: help });
  made.dataset.option = name;
  if (kind === "flag") {
    made.className = "tick";
    made.append(element("input", { name, type: "checkbox", checked: value }), ` ${label}`);
  } else if (kind === "choice") {
    const select = element("select", { name });
    const none = nullable ? [["", "–"]] : [];
    options(select, [...none, ...choices.map((choice) => [choice, choice])], value ?? "");
    if (choices.some((choice) => choice.length > WIDE)) made.className = "wide";
    made.append(`${label} `, select);
  } else {
    const step = kind === "integer" ? 1 : "any";
    made.append(`${label} `, element("input", { name, type: "number", min: least ?? "", max: most ?? "", step, value: plain(value), placeholder: nullable ? "–" : "", required: !nullable }));
  }
  return made;
}

/** The value of an option as its control has it; a control that is off has the default. */
function valueOf({ name, kind, nullable, default: fallback }) {
  if (kind === "interval") return interval.value();
  const field = fields[name];
  if (field.disabled) return fallback;
  if (kind === "flag") return field.checked;
  if (nullable && !field.value) return null;
  return kind === "choice" ? field.value : Number(field.value);
}

const controlOf = (name) => known.choices.controls.find((control) => control.name === name);

const isOff = ({ allowed, off }) =>
  !allowed || off.some(({ option, values }) => values.includes(valueOf(controlOf(option))));

/** Turn off the controls that have no effect next to the others. */
function agree() {
  for (const control of known.choices.controls) {
    if (control.kind !== "interval") fields[control.name].disabled = isOff(control);
  }
  const limit = known.choices.controls.find(({ kind }) => kind === "interval");
  interval.cost(form.checkValidity() ? values() : null, !limit || isOff(limit));
}

export const isDeterministic = () => fields.eta.disabled;
export const knownModel = () => known.model;
export const knownChoices = () => known.choices;

/** Return the request of the form; throw an Error if a field is invalid. */
export function request() {
  const wrong = [...fields].find((field) => field.willValidate && !field.checkValidity());
  if (wrong) {
    wrong.focus();
    throw new Error(`${wrong.labels[0].textContent.trim()}: ${wrong.validationMessage}`);
  }
  return values();
}

function values() {
  const body = { num: Number(fields.num.value), seed: Number(fields.seed.value) };
  for (const control of known.choices.controls) {
    if (!isOff(control)) body[control.name] = valueOf(control);
    else if (control.required) body[control.name] = control.default;
  }
  for (const option of Object.keys(known.choices.entry_options)) {
    if (fields[option].value === "learned") continue; // the server has the times of every number of steps
    const own = ownControls(option).map((control) => [keyOf(control), valueOf(control)]);
    body[`${option}_options`] = { ...usualOwn(option), ...Object.fromEntries(own) };
  }
  if (fields.class.value) body.class = Number(fields.class.value);
  return body;
}

export function onSubmit(begin) {
  form.noValidate = true; // errors are shown next to the images
  form.addEventListener("submit", (event) => { event.preventDefault(); begin(); });
  form.addEventListener("input", ({ target }) => {
    if (!known) return;
    if (target.name in known.choices.entry_options) offerOwn(target.name);
    agree();
  });
  for (const kind of ["focusin", "pointerover"]) form.addEventListener(kind, teach);
}
