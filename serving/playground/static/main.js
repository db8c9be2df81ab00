// The page: loads the model's description and its options, and connects the panels.

import { request } from "./api.js";
import * as interpolation from "./interpolation.js";
import * as compare from "./compare.js";
import { show } from "./cost.js";
import { $ } from "./elements.js";
import { make } from "./make.js";
import { choose, begin as tabs } from "./tabs.js";
import { knownChoices, offer, onSubmit } from "./settings.js";
import * as versions from "./versions.js";

async function about() {
  const [{ models }, choices] = await Promise.all([request("/v1/models"), request("/playground/choices")]);
  const model = models[0];
  offer(model, choices);
  interpolation.offer(choices);
  show(choices.cost, null);
  $("#make .images").replaceChildren();
  $("#compare .cells").replaceChildren();
  const { card, model: name } = model;
  const { image_size: size, in_channels: channels } = card.network;
  const version = name.version === null ? "" : ` version ${name.version}`;
  $("#about").textContent = `${name.name}${version}: ${card.data.name}, ${size} × ${size} × ${channels}, ` +
    `${card.data.classes.length || "no"} classes, trained for ${card.step.toLocaleString("en")} steps.`;
}

async function begin() {
  tabs();
  compare.begin();
  interpolation.begin();
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
  await versions.begin(about);
}

begin();
