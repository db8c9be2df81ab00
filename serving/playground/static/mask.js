// The mask: pixels of a picture that are drawn over by mouse, finger or keyboard.

import { $ } from "./elements.js";
import { base64, blank } from "./picture.js";

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const OPACITY = 0.8;
const stage = $("#edit .stage");
const canvas = $("canvas", stage);
const cursor = $(".cursor", stage);
const brush = $("#edit [name=brush]");
let picture = null, width = 0, height = 0, hidden = [], history = [];
let at = [0, 0], last = null, isOn = true, changed = () => {};

/** Show a picture, a canvas, without a mask. */
export function set(shown) {
  if (shown.width !== width || shown.height !== height) {
    [width, height] = [canvas.width, canvas.height] = [shown.width, shown.height];
    brush.max = Math.max(1, Math.min(width, height) >> 1);
    brush.value = Math.max(1, Math.round(Math.min(width, height) / 8));
    at = [width >> 1, height >> 1];
  }
  picture = shown;
  hidden = new Uint8Array(width * height);
  history = [];
  draw();
}

export function drop() {
  picture = null;
}

/** Show the mask and let it be drawn, or not. */
export function enable(on) {
  isOn = on;
  canvas.setAttribute("aria-disabled", !on);
  if (picture) draw();
}

export const has = () => picture !== null;
export const canUndo = () => history.length > 0;
export const count = () => hidden.reduce((sum, one) => sum + one, 0);
export const share = () => count() / hidden.length;
export const encodePicture = () => base64(picture);

/** Return the mask as PNG in base64: white is hidden. */
export function encode() {
  const mask = blank({ width, height });
  paint(mask.getContext("2d"), "black", () => true);
  paint(mask.getContext("2d"), "white", (i) => hidden[i]);
  return base64(mask);
}

export function undo() {
  if (history.length) hidden = history.pop();
  draw();
}

export function clear() {
  if (!count()) return;
  remember();
  hidden.fill(0);
  draw();
}

function remember() {
  history.push(hidden.slice());
}

function paint(context, colour, fits) {
  context.fillStyle = colour;
  for (let i = 0; i < hidden.length; i++) if (fits(i)) context.fillRect(i % width, Math.floor(i / width), 1, 1);
}

function draw() {
  const context = canvas.getContext("2d");
  context.globalAlpha = 1;
  context.drawImage(picture, 0, 0);
  context.globalAlpha = OPACITY;
  paint(context, getComputedStyle(canvas).getPropertyValue("--line1"), (i) => isOn && hidden[i]);
  place();
  changed();
}

/** Show the brush where it is. */
function place() {
  const across = Number(brush.value), [x, y] = at.map((value) => 100 * (value - across / 2));
  Object.assign(cursor.style, { left: `${x / width}%`, top: `${y / height}%`, width: `${(100 * across) / width}%` });
}

/** Hide the pixels under the brush at a point; a pixel is under it if its centre is, or the point is in it. */
function stamp([x, y]) {
  const radius = Number(brush.value) / 2;
  const [left, right] = [Math.max(0, Math.floor(x - radius)), Math.min(width - 1, Math.floor(x + radius))];
  const [top, bottom] = [Math.max(0, Math.floor(y - radius)), Math.min(height - 1, Math.floor(y + radius))];
  for (let row = top; row <= bottom; row++) {
    for (let column = left; column <= right; column++) {
      const isUnder = Math.hypot(column + 0.5 - x, row + 0.5 - y) <= radius;
      if (isUnder || (column === Math.floor(x) && row === Math.floor(y))) hidden[row * width + column] = 1;
    }
  }
}

/** Hide the pixels along a line from the last point. */
function stroke(to) {
  const from = last ?? to;
  const count = Math.max(1, Math.ceil(2 * Math.hypot(to[0] - from[0], to[1] - from[1])));
  for (let i = 0; i <= count; i++) stamp([0, 1].map((axis) => from[axis] + ((to[axis] - from[axis]) * i) / count));
  last = to;
}

function pointOf(event) {
  const box = canvas.getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
}

function onPointer(event) {
  if (!picture || !isOn) return;
  at = pointOf(event);
  if (event.type === "pointerdown") {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    remember();
    last = null;
  }
  if (event.buttons & 1) {
    stroke(at);
    draw();
  } else place();
}

function onKey(event) {
  if (!picture || !isOn) return;
  const move = MOVES[event.key];
  if (move) at = at.map((value, axis) => Math.min(Math.max(Math.floor(value) + 0.5 + move[axis], 0.5), [width, height][axis] - 0.5));
  else if (event.key === "z" && (event.ctrlKey || event.metaKey)) undo();
  else if (event.key === " ") {
    remember();
    stamp(at);
    draw();
  } else return;
  event.preventDefault();
  place();
}

/** Connect mouse, finger and keyboard; `onChange` is called after each change of the mask. */
export function begin(onChange) {
  changed = onChange;
  for (const kind of ["pointerdown", "pointermove"]) canvas.addEventListener(kind, onPointer);
  canvas.addEventListener("keydown", onKey);
  brush.addEventListener("input", place);
}
