// Marks on plain slices: each plane has a canvas of its own over it.

import { Pointer, cleared, cover, drawMark } from "./marks.js";

const WITHIN = 0.6; // voxels from the slice that is shown

export class PlainMarks {
  constructor(viewer, hooks) {
    Object.assign(this, { viewer, items: [] });
    this.layers = viewer.planes.map((plane) => {
      const canvas = cover();
      plane.canvas.after(canvas);
      const face = { find: (event, on) => this.#find(plane, event, on), draw: (draft) => this.draw(draft), edges: () => this.edges() };
      return { plane, canvas, pointer: new Pointer(plane.canvas.parentElement, face, hooks) };
    });
    this.draw();
  }

  end() {
    this.viewer.marked = null;
    for (const { canvas, pointer } of this.layers) {
      pointer.end();
      canvas.remove();
    }
  }

  show(items) {
    this.items = items;
    this.draw();
  }

  edges() {
    return { axes: this.viewer.world.axes };
  }

  crosshair() {
    const at = [];
    for (const { slider, through } of this.viewer.planes) at[through] = Number(slider.value);
    return this.#millimetres(at);
  }

  draw(draft = null) {
    const scale = window.devicePixelRatio;
    for (const { plane, canvas } of this.layers) {
      const context = cleared(canvas, scale);
      this.items.forEach((mark, i) => this.#drawOn(context, canvas, plane, mark, i + 1, scale));
      if (draft) this.#drawOn(context, canvas, plane, draft, null, scale);
    }
  }

  #drawOn(context, canvas, plane, mark, number, scale) {
    const places = (mark.kind === "box" ? [mark.first, mark.last] : [mark.at]).map((at) => this.viewer.world.indices(at));
    if (places.some((at) => Math.abs(at[plane.through] - Number(plane.slider.value)) > WITHIN)) return;
    const corners = places.map((at) => [
      (1 - (at[plane.across] + 0.5) / this.viewer.size[plane.across]) * canvas.width,
      (1 - (at[plane.down] + 0.5) / this.viewer.size[plane.down]) * canvas.height,
    ]);
    drawMark(context, mark, number, corners, scale);
  }

  /** Rows run downward and columns to the left of the patient, so that both are counted backward. */
  #find(plane, event, on) {
    if (on && on.plane !== plane.name) return null;
    const bounds = plane.canvas.getBoundingClientRect();
    const share = [(event.clientX - bounds.left) / bounds.width, (event.clientY - bounds.top) / bounds.height];
    if (share.some((v) => v < 0 || v >= 1)) return null;
    const at = [];
    at[plane.across] = (1 - share[0]) * this.viewer.size[plane.across] - 0.5;
    at[plane.down] = (1 - share[1]) * this.viewer.size[plane.down] - 0.5;
    at[plane.through] = Number(plane.slider.value);
    return { at: this.#millimetres(at), plane: plane.name };
  }

  #millimetres(at) {
    return this.viewer.world.millimetres(at).map((v) => Number(v.toFixed(3)));
  }
}
