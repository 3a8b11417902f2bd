// Marks that say what to segment: their list with undo and redo, the pointer that sets them, how they are drawn.

import { el } from "./dom.js";

const NEAR = 5; // px that a click may wander
export const COLOURS = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#4f9bd9", "#d55e00", "#cc79a7"];

/** A list whose every step can be taken back and made again. */
export class Steps {
  #past = [];
  #future = [];
  constructor(items = []) { this.items = items; }
  get canUndo() { return this.#past.length > 0; }
  get canRedo() { return this.#future.length > 0; }

  to(items) {
    this.#past.push(this.items);
    this.#future = [];
    this.items = items;
  }

  undo() { return this.#go(this.#past, this.#future); }
  redo() { return this.#go(this.#future, this.#past); }

  #go(from, other) {
    if (!from.length) return false;
    other.push(this.items);
    this.items = from.pop();
    return true;
  }
}

/** Turns clicks and drags on an element into marks; `face` knows places and draws. */
export class Pointer {
  #ended = new AbortController();
  #from = null;

  constructor(element, face, hooks) {
    Object.assign(this, { face, hooks });
    const listen = (name, work) => element.addEventListener(name, work, { capture: true, signal: this.#ended.signal });
    listen("pointerdown", (event) => this.#down(event));
    listen("pointermove", (event) => this.#move(event));
    listen("pointerup", (event) => this.#up(event));
    listen("contextmenu", (event) => { if (hooks.mode() !== "look") event.preventDefault(); });
    // What draws a box or takes something out is no crosshair that moves.
    for (const name of ["mousedown", "mousemove", "touchstart", "touchmove"]) {
      listen(name, (event) => { if (this.#ours(event)) event.stopPropagation(); });
    }
  }

  end() { this.#ended.abort(); }

  #ours(event) {
    const mode = this.hooks.mode();
    return mode === "box" ? Boolean(this.#from) || event.type !== "mousemove" : mode !== "look" && (event.button === 2 || event.buttons === 2);
  }

  #down(event) {
    if (this.hooks.mode() === "look" || event.button === 1) return;
    const place = this.face.find(event);
    this.#from = place && { place, x: event.clientX, y: event.clientY };
  }

  #move(event) {
    if (!this.#from || this.hooks.mode() !== "box") return;
    const to = this.face.find(event, this.#from.place);
    if (to) this.face.draw({ kind: "box", first: this.#from.place.at, last: to.at, label: this.hooks.label() });
  }

  #up(event) {
    const from = this.#from;
    this.#from = null;
    if (!from) return;
    const far = Math.hypot(event.clientX - from.x, event.clientY - from.y) > NEAR;
    const mode = this.hooks.mode(), label = this.hooks.label();
    if (mode === "box") {
      const to = this.face.find(event, from.place);
      if (to && far) this.hooks.add({ kind: "box", first: from.place.at, last: to.at, ...this.face.edges(), label }, from.place.plane);
      else this.face.draw();
    } else if (!far) {
      this.hooks.add({ kind: "point", at: from.place.at, inside: (mode === "include") === (event.button !== 2), label }, from.place.plane);
    }
  }
}

/** One mark; `corners` are places on the canvas in px: of a point one, of a box two. */
export function drawMark(context, mark, number, corners, scale) {
  const colour = COLOURS[(mark.label - 1) % COLOURS.length];
  const [[x, y], [right, bottom] = [x, y]] = corners;
  const stroke = (style, width) => Object.assign(context, { strokeStyle: style, lineWidth: width * scale });
  const path = new Path2D();
  const r = 7 * scale;
  if (mark.kind === "box") path.rect(Math.min(x, right), Math.min(y, bottom), Math.abs(right - x), Math.abs(bottom - y));
  else {
    path.arc(x, y, r, 0, 2 * Math.PI);
    path.moveTo(x - r / 2, y);
    path.lineTo(x + r / 2, y);
    if (mark.inside) { path.moveTo(x, y - r / 2); path.lineTo(x, y + r / 2); }
  }
  stroke("#000", 5);
  context.stroke(path);
  stroke(colour, 2.2);
  context.stroke(path);
  if (number === null) return;
  context.font = `600 ${13 * scale}px system-ui, sans-serif`;
  stroke("#000", 4);
  const at = [Math.max(x, right) + r, Math.min(y, bottom) - r / 2];
  context.strokeText(number, ...at);
  context.fillStyle = "#fff";
  context.fillText(number, ...at);
}

/** An empty canvas over an element, as large as it. */
export function cover() {
  return el("canvas", { class: "marks", "aria-hidden": "true" });
}

export function cleared(canvas, scale) {
  canvas.width = Math.round(canvas.clientWidth * scale);
  canvas.height = Math.round(canvas.clientHeight * scale);
  return canvas.getContext("2d");
}
