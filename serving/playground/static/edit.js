// Edit: fill a part of a picture that is drawn over, or sample all of it again.

import * as api from "./api.js";
import { $, options, worker } from "./elements.js";
import { sampleInto } from "./forming.js";
import * as mask from "./mask.js";
import { fit } from "./picture.js";
import { knownChoices, knownModel, request } from "./settings.js";

const panel = $("#edit");
const form = $("form", panel);
const fields = form.elements;
const OWN = ["sampler", "eta", "noise", "sampler_options"]; // of a method with its own step
let label = null; // the picture's class, if it is known
let isTaken = false; // whether the chosen picture is the one that is shown

const work = worker(panel, async (report, signal, task) => task(report, signal));

/** Load the chosen picture. */
async function take(report, signal) {
  isTaken = false;
  const found = await { number: realImage, sampled, file: () => ({ file: fields.file.files[0] }) }[fields.kind.value](report, signal);
  const picture = await fit(found.file, "a file", knownModel().card.network);
  signal.throwIfAborted();
  label = found.label ?? null;
  mask.set(picture);
  isTaken = true;
  $(".images", panel).replaceChildren();
  report("");
}

async function realImage(report, signal) {
  checked(fields.number);
  const response = await api.send(`/playground/images/${Number(fields.number.value)}`, undefined, signal);
  const known = response.headers.get("X-Label");
  return { file: await response.blob(), label: known === null ? null : Number(known) };
}

async function sampled(report, signal) {
  checked(fields.index);
  report("sampling the picture");
  const { num, ...settings } = request();
  const { images, labels } = await api.request("/v1/images", { ...settings, indices: [Number(fields.index.value)] }, signal);
  const file = new Blob([Uint8Array.from(atob(images[0]), (letter) => letter.charCodeAt(0))], { type: "image/png" });
  return { file, label: labels?.[0] };
}

function checked(field) {
  if (field.checkValidity()) return;
  field.focus();
  throw new Error(`${field.labels[0].textContent.trim()}: ${field.validationMessage}`);
}

async function edit(report, signal) {
  checked(fields.num);
  const body = { ...request(), num: Number(fields.num.value) };
  if (!isTaken) await take(report, signal);
  if (label !== null && body.class === undefined) body.class = label;
  body.image = mask.encodePicture();
  if (fills()) {
    if (!mask.count()) throw new Error("draw over the part of the picture that is to be filled");
    Object.assign(body, { mask: mask.encode(), method: fields.method.value });
    if (methodOf().own_step) for (const name of OWN) delete body[name];
  } else body.strength = Number(fields.strength.value);
  await sampleInto(panel, "/v1/edits/events", body, report, signal);
}

const fills = () => fields.way.value === "fill";
const methodOf = () => knownChoices().edit_methods.find(({ name }) => name === fields.method.value);

/** Show the fields of the chosen picture and of the chosen way. */
function agree() {
  for (const part of panel.querySelectorAll("[data-kind]")) part.hidden = part.dataset.kind !== fields.kind.value;
  for (const part of panel.querySelectorAll("[data-way]")) part.hidden = part.dataset.way !== fields.way.value;
  $("output", form).textContent = Number(fields.strength.value).toFixed(2);
  $("button.main", panel).textContent = fills() ? "Fill" : "Sample again";
  const { help, own_step } = methodOf();
  $("#method-note").textContent = own_step ? `${help} Its own step replaces sampler, η and noise of the settings.` : help;
  mask.enable(fills());
  describe();
}

/** Describe the mask and the class. */
function describe() {
  const isEmpty = !mask.has() || !mask.count();
  $("#mask-note").textContent = `${isEmpty ? 0 : (100 * mask.share()).toFixed(0)} % of the picture is drawn over.`;
  const { classes } = knownModel().card.data;
  const unknown = classes.length ? "The picture's class is not known: the settings may choose one." : "";
  $("#class-note").textContent = label === null ? unknown : `Class ${classes[label]}, the picture's own, unless the settings choose another.`;
  fields.undo.disabled = !mask.canUndo();
  fields.clear.disabled = isEmpty;
}

/** Load a picture when the tab is opened for the first time. */
export function open() {
  if (!mask.has() && fields.kind.value !== "file") work(take);
}

export function begin() {
  mask.begin(describe);
  form.noValidate = true; // errors are shown below
  form.addEventListener("submit", (event) => { event.preventDefault(); work(edit); });
  form.addEventListener("input", agree);
  fields.undo.addEventListener("click", mask.undo);
  fields.clear.addEventListener("click", mask.clear);
  fields.resample.addEventListener("click", () => work(take));
  for (const field of [fields.number, fields.index, fields.file]) field.addEventListener("change", () => work(take));
  fields.kind.addEventListener("change", () => { if (fields.kind.value !== "file") work(take); });
}

/** Offer the methods and the real images; drop the picture of another model. */
export function offer({ store, edit_methods: methods }) {
  mask.drop();
  isTaken = false;
  $(".images", panel).replaceChildren();
  options(fields.method, methods.map(({ name }) => [name, name]));
  fields.num.max = knownModel().limits.images;
  fields.number.max = Math.max(0, store.images - 1);
  const real = fields.kind.querySelector("[value=number]");
  real.disabled = !store.images;
  real.title = store.why ?? "";
  if (!store.images && fields.kind.value === "number") fields.kind.value = "sampled";
  agree();
  if (!panel.hidden) open();
}
