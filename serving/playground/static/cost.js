// Cost: distance against NFE for the cells of the sweep, with the last setting marked.

import { $, seconds } from "./elements.js";

const MAX_WIDTH = 720, MARGINS = 34; // of the page, on a phone
const HEIGHT = 380, LEFT = 58, RIGHT = 20, TOP = 26, BOTTOM = 44;
const panel = $("#cost");

function drawn(name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

const sorted = (_, value) => (value?.constructor === Object ? Object.fromEntries(Object.entries(value).sort()) : value);

/** Return the cell with these settings, up to the seed, and up to the noise at η = 0. */
function cellOf(points, { seed, ...settings }) {
  const known = ({ noise, ...values }) => JSON.stringify({ ...values, noise: values.eta ? noise : "" }, sorted);
  return points.find((point) => known(point.settings) === known(settings));
}

const number = (value) => Number(value.toPrecision(4)).toString();
const interval = ({ low, high }) => (low === null ? "" : ` (95 %: ${number(low)} to ${number(high)})`);

/** Show the sweep, and the setting of the last images if any. */
export function show(cost, made) {
  const finding = $(".finding", panel), legend = $(".legend", panel);
  if (!cost) {
    finding.textContent = "This model has no scores: `diffctl run` computes them, and a registered version has its own.";
    $(".chart", panel).replaceChildren();
    legend.textContent = "";
    return;
  }
  const here = made && { nfe: made.nfe, cell: cellOf(cost.points, made.settings) };
  finding.textContent = made ? found(cost, made, here) : "Make images: their setting and time are marked here.";
  $(".chart", panel).replaceChildren(chart(cost, here));
  legend.textContent = `${cost.metric} of ${cost.num_images} images a cell, lower is better. Filled: no other cell is both ` +
    "cheaper and better. The NFE axis is logarithmic.";
}

function found({ metric }, made, { nfe, cell }) {
  const took = `NFE ${nfe} per image, ${seconds(made.seconds / made.num)} an image here`;
  if (!cell) return `${took}. The sweep has no cell with these settings, so their quality is unknown.`;
  return `${took}: ${cell.cell} of the sweep, ${metric} ${number(cell.distance)}${interval(cell)}.`;
}

function chart({ metric, points }, here) {
  const width = Math.min(MAX_WIDTH, innerWidth - MARGINS); // text keeps its size
  const costs = [...points.map((point) => point.nfe), ...(here ? [here.nfe] : [])];
  const most = Math.max(...points.map((point) => point.high ?? point.distance)) * 1.05;
  const least = Math.min(0, ...points.map((point) => point.low ?? point.distance)); // of an unbiased distance
  const [low, high] = [Math.log(Math.min(...costs) / 1.25), Math.log(Math.max(...costs) * 1.25)];
  const x = (value) => LEFT + ((Math.log(value) - low) / (high - low)) * (width - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((value - least) / (most - least)) * (HEIGHT - TOP - BOTTOM);
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img" });
  svg.setAttribute("aria-label", `${metric} against NFE per image, a point per cell of the sweep`);
  axes(svg, width, x, y, [...new Set(points.map((point) => point.nfe))], most, metric);
  const front = points.filter((point) => point.on_front);
  svg.append(drawn("polyline", { class: "front", points: front.map((point) => `${x(point.nfe)},${y(point.distance)}`).join(" ") }));
  if (here) mark(svg, width, x(here.nfe));
  for (const point of points) svg.append(...dot(point, x(point.nfe), y, false));
  if (here?.cell) svg.append(...dot(here.cell, x(here.nfe), y, true)); // above the other points
  return svg;
}

function axes(svg, width, x, y, costs, most, metric) {
  const step = nice(most / 5);
  for (let value = 0; value <= most; value += step) {
    svg.append(drawn("line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }));
    svg.append(drawn("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, number(value)));
  }
  for (const cost of costs) svg.append(drawn("text", { x: x(cost), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, cost));
  svg.append(drawn("text", { x: width - RIGHT, y: HEIGHT - 8, "text-anchor": "end" }, "NFE per image"));
  svg.append(drawn("text", { x: 0, y: 12 }, metric));
}

function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= value);
}

function mark(svg, width, x) {
  const right = x > width - 140;
  svg.append(drawn("line", { class: "here", x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM }));
  svg.append(drawn("text", { class: "herelabel", x: x + (right ? -6 : 6), y: TOP + 8, "text-anchor": right ? "end" : "start" }, "last"));
}

function dot(point, x, y, chosen) {
  const made = [];
  if (point.low !== null) made.push(drawn("line", { class: "interval", x1: x, x2: x, y1: y(Math.max(0, point.low)), y2: y(point.high) }));
  const kind = `cell${point.on_front ? " on" : ""}${chosen ? " chosen" : ""}`;
  const circle = drawn("circle", { class: kind, cx: x, cy: y(point.distance), r: chosen ? 6 : 4 });
  circle.append(drawn("title", {}, `${point.cell}: ${number(point.distance)}${interval(point)}`));
  made.push(circle);
  return made;
}
