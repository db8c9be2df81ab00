// Images while they form: a list with intermediate steps, then links that save each as PNG.

import { requestEvents } from "./api.js";
import { $, element, seconds, source } from "./elements.js";
import { withSettings } from "./png.js";
import { knownModel } from "./settings.js";

const UPDATES = 40; // intermediate images per image

/** Sample the images of a request in the panel's list; return the response and the seconds. */
export async function sampleInto(panel, path, body, report, signal) {
  const progress = $("progress", panel);
  const cells = Array.from({ length: body.num }, (_, i) => element("li", {}, element("img", { alt: `Image ${i}, pending` })));
  $(".images", panel).replaceChildren(...cells);
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
  const response = await requestEvents(path, { ...body, every }, step, signal);
  const took = (performance.now() - began) / 1000;
  progress.value = 1;
  response.images.forEach((image, i) => cells[i].replaceChildren(finished(response, i, image)));
  report(`${body.num} in ${seconds(took)}, ${seconds(took / body.num)} an image. Click one to save it.`);
  return { response, took };
}

/** Return an image with its number and class, as a link that downloads it with its settings. */
function finished({ model, settings, labels, indices, edit }, i, image) {
  const index = indices[i];
  const metadata = { model, index, settings, edit };
  let text = String(index);
  if (labels) {
    metadata.class = knownModel().card.data.classes[labels[i]];
    text += ` · class ${metadata.class}`;
  }
  const { seed, steps, eta } = settings;
  const kind = edit ? `-${edit.method}` : "";
  return element("a", {
    href: URL.createObjectURL(withSettings(image, metadata)),
    download: `${knownModel().card.data.name}${kind}-seed${seed}-${index}-steps${steps}-eta${eta}.png`,
    title: "Save it as PNG with its settings",
  }, element("img", { src: source(image), alt: `Image ${index}` }), text);
}
