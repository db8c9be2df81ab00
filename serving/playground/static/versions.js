// The registered versions of MLflow, if it is available.

import { request } from "./api.js";
import { $, options } from "./elements.js";

const select = $("#version");
const note = $("#versions-note");

export async function begin(changed) {
  let known;
  try {
    known = await request("/playground/versions");
  } catch (error) {
    note.textContent = error.message;
    return;
  }
  const versions = known.versions.map(({ version, champion }) => [String(version), `${known.name} version ${version}${champion ? ", champion" : ""}`]);
  options(select, [["", "as started"], ...versions], known.chosen === null ? "" : String(known.chosen));
  select.dataset.before = select.value;
  select.disabled = !versions.length;
  note.textContent = known.why ?? (versions.length ? "" : "no version is registered for this data");
  select.addEventListener("input", () => change(changed));
}

async function change(changed) {
  const before = select.dataset.before;
  note.textContent = "loading …";
  select.disabled = true;
  try {
    await request("/playground/version", { version: select.value ? Number(select.value) : null });
    select.dataset.before = select.value;
    note.textContent = "";
    await changed();
  } catch (error) {
    select.value = before;
    note.textContent = error.message;
  } finally {
    select.disabled = false;
  }
}
