// Make: images that form before one's eyes, to be saved with their settings.

import { askEvents } from "./ask.js";
import { $, element, seconds, source, worker } from "./elements.js";
import { described } from "./png.js";
import { knownModel, request } from "./settings.js";

const SHOWN = 40; // times that an image changes on its way
const panel = $("#make");
const list = $(".images", panel);
const progress = $("progress", panel);

export const make = worker(panel, async (say, signal, made) => {
  const asked = request();
  const cells = Array.from({ length: asked.num }, (_, i) => element("li", {}, element("img", { alt: `Image ${i}, not begun` })));
  list.replaceChildren(...cells);
  progress.value = 0;
  const began = performance.now();
  const step = ({ step, steps, indices, images }) => {
    progress.value = step / steps;
    say(`step ${step} of ${steps}`);
    indices.forEach((index, i) => {
      Object.assign($("img", cells[index]), { src: source(images[i]), alt: `Image ${index} after step ${step}` });
    });
  };
  const every = Math.max(1, Math.floor(asked.steps / SHOWN));
  const answer = await askEvents("/v1/images/events", { ...asked, every }, step, signal);
  const took = (performance.now() - began) / 1000;
  progress.value = 1;
  answer.images.forEach((image, i) => cells[i].replaceChildren(finished(answer, i, image)));
  say(`${asked.num} in ${seconds(took)}, ${seconds(took / asked.num)} an image. Choose one to save it.`);
  made({ settings: answer.settings, evaluations: answer.evaluations, seconds: took, num: asked.num });
});

/** An image that is a link to itself with its settings, and its number and class. */
function finished(answer, i, image) {
  const index = answer.indices[i];
  const said = { model: answer.model, index, settings: answer.settings };
  let text = String(index);
  if (answer.labels) {
    said.class = knownModel().card.data.classes[answer.labels[i]];
    text += ` · class ${said.class}`;
  }
  const { seed, steps, eta } = answer.settings;
  const link = element("a", {
    href: URL.createObjectURL(described(image, said)),
    download: `${knownModel().card.data.name}-seed${seed}-${index}-steps${steps}-eta${eta}.png`,
    title: "Save it as PNG with its settings",
  }, element("img", { src: source(image), alt: `Image ${index}` }), text);
  return link;
}
