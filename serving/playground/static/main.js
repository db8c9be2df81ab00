// The page: loads the model's description and its options, and connects tabs, panels and versions.

import { expectModel, request } from "./api.js";
import * as interpolation from "./interpolation.js";
import * as compare from "./compare.js";
import * as edit from "./edit.js";
import { show } from "./cost.js";
import { $, options } from "./elements.js";
import { make } from "./make.js";
import { sizeOf } from "./picture.js";
import { knownChoices, offer, onSubmit } from "./settings.js";

const tabs = [...document.querySelectorAll("[role=tab]")];
const version = $("#version");
const note = $("#versions-note");

async function about() {
  const [{ models }, choices] = await Promise.all([request("/v1/models"), request("/playground/choices")]);
  const model = models[0];
  expectModel(model.model.sha256, aboutOther);
  offer(model, choices);
  interpolation.offer(choices);
  edit.offer(choices);
  show(choices.cost, null);
  $("#make .images").replaceChildren();
  $("#compare .cells").replaceChildren();
  const { card, model: name, usual } = model;
  const { width, height } = sizeOf(card.network);
  document.documentElement.style.setProperty("--aspect", `${width} / ${height}`);
  const number = name.version === null ? "" : ` version ${name.version}`;
  $("#about").textContent = `${name.name}${number}: ${card.data.name}, ${height} × ${width} × ${card.network.in_channels}, ` +
    `${card.data.classes.length || "no"} classes, trained for ${card.step.toLocaleString("en")} steps` +
    (usual.base ? `; enlarges the images of ${usual.base.file ?? usual.base.run_id ?? usual.base.champion}.` : ".");
}

async function aboutOther() {
  await about();
  await offerVersions();
  note.textContent = "another model serves now, with its own settings";
}

function choose(tab) {
  for (const one of tabs) {
    const chosen = one === tab;
    one.setAttribute("aria-selected", chosen);
    one.tabIndex = chosen ? 0 : -1;
    document.getElementById(one.getAttribute("aria-controls")).hidden = !chosen;
  }
  if (tab.id === "tab-edit") edit.open();
}

/** Choose tabs by mouse and keyboard: arrow keys, Home and End (WAI-ARIA's pattern). */
function connectTabs() {
  tabs.forEach((tab, at) => {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", (event) => {
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      const next = tabs[(to + tabs.length) % tabs.length];
      choose(next);
      next.focus();
    });
  });
}

/** Offer the registered versions of MLflow, if it is available. */
async function offerVersions() {
  let known;
  try {
    known = await request("/playground/versions");
  } catch (error) {
    note.textContent = error.message;
    return;
  }
  const versions = known.versions.map(({ version, champion }) => [String(version), `${known.name} version ${version}${champion ? ", champion" : ""}`]);
  options(version, [["", "as started"], ...versions], known.chosen === null ? "" : String(known.chosen));
  version.dataset.before = version.value;
  version.disabled = !versions.length;
  note.textContent = known.why ?? (versions.length ? "" : "no version is registered for this data");
}

async function changeVersion() {
  note.textContent = "loading …";
  version.disabled = true;
  try {
    await request("/playground/version", { version: version.value ? Number(version.value) : null });
    version.dataset.before = version.value;
    note.textContent = "";
    await about();
  } catch (error) {
    version.value = version.dataset.before;
    note.textContent = error.message;
  } finally {
    version.disabled = false;
  }
}

async function begin() {
  connectTabs();
  version.addEventListener("input", changeVersion);
  compare.begin();
  interpolation.begin();
  edit.begin();
  try {
    await about();
  } catch (error) {
    $("#about").textContent = error.message;
    return;
  }
  onSubmit(() => {
    choose($("#tab-make"));
    make((made) => show(knownChoices().cost, made));
  });
  await offerVersions();
}

begin();
