// Make: images with their intermediate steps.

import { $, worker } from "./elements.js";
import { sampleInto } from "./forming.js";
import { request } from "./settings.js";

const panel = $("#make");

export const make = worker(panel, async (report, signal, made) => {
  const body = request();
  const { response, took } = await sampleInto(panel, "/v1/images/events", body, report, signal);
  made({ settings: response.settings, nfe: response.nfe, seconds: took, num: body.num });
});
