// Make: images with their intermediate steps, saved as PNG with their settings.

import { requestEvents } from "./api.js";
import { $, element, seconds, source, worker } from "./elements.js";
import { withSettings } from "./png.js";
import { knownModel, request } from "./settings.js";

const UPDATES = 40; // intermediate images per image
const panel = $("#make");
const list = $(".images", panel);
const progress = $("progress", panel);

export const make = worker(panel, async (report, signal, made) => {
  const body = request();
  const cells = Array.from({ length: body.num }, (_, i) => element("li", {}, element("img", { alt: `Image ${i}, pending` })));
  list.replaceChildren(...cells);
  progress.value = 0;
  const began = performance.now();
  const step = ({ step, steps, indices, images }) => {
    progress.value = step / steps;
    report(`step ${step} of ${steps}`);
    indices.forEach((index, i) => {
      Object.assign($("img", cells[index]), { src: source(images[i]), alt: `Image ${index} after step ${step}` });
    });
  };
  const every = Math.max(1, Math.floor(body.steps / UPDATES));
  const response = await requestEvents("/v1/images/events", { ...body, every }, step, signal);
  const took = (performance.now() - began) / 1000;
  progress.value = 1;
  response.images.forEach((image, i) => cells[i].replaceChildren(finished(response, i, image)));
  report(`${body.num} in ${seconds(took)}, ${seconds(took / body.num)} an image. Click one to save it.`);
  made({ settings: response.settings, nfe: response.nfe, seconds: took, num: body.num });
});

/** Return an image with its number and class, as a link that downloads it with its settings. */
function finished(response, i, image) {
  const index = response.indices[i];
  const metadata = { model: response.model, index, settings: response.settings };
  let text = String(index);
  if (response.labels) {
    metadata.class = knownModel().card.data.classes[response.labels[i]];
    text += ` · class ${metadata.class}`;
  }
  const { seed, steps, eta } = response.settings;
  const link = element("a", {
    href: URL.createObjectURL(withSettings(image, metadata)),
    download: `${knownModel().card.data.name}-seed${seed}-${index}-steps${steps}-eta${eta}.png`,
    title: "Save it as PNG with its settings",
  }, element("img", { src: source(image), alt: `Image ${index}` }), text);
  return link;
}
