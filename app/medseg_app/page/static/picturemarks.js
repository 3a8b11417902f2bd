// Marks on a picture: pixels instead of millimetres, and a cross of our own for the keys.

import { Pointer, cleared, cover, drawMark } from "./marks.js";
import { el, t } from "./dom.js";

const STEP = 0.01; // of the longer side: how far an arrow key moves the cross

export class PictureMarks {
  constructor(picture, hooks) {
    Object.assign(this, { picture, items: [], canvas: cover() });
    this.frame = el("div", { class: "over-picture", tabindex: "0", role: "group", "aria-label": t("mark.picture") });
    picture.draggable = false; // or the browser would carry the picture away
    picture.replaceWith(this.frame);
    this.frame.append(picture, this.canvas);
    this.cross = [0.5, 0.5];
    this.pointer = new Pointer(this.frame, this, hooks);
    this.watcher = new ResizeObserver(() => this.draw());
    this.watcher.observe(this.frame);
    picture.addEventListener("load", () => this.draw(), { once: true });
  }

  end() {
    this.pointer.end();
    this.watcher.disconnect();
    this.frame.replaceWith(this.picture);
  }

  show(items) {
    this.items = items;
    this.draw();
  }

  find(event) {
    const bounds = this.picture.getBoundingClientRect();
    const share = [(event.clientX - bounds.left) / bounds.width, (event.clientY - bounds.top) / bounds.height];
    return share.every((v) => v >= 0 && v < 1) ? { at: this.#pixel(share), plane: null } : null;
  }

  crosshair() {
    return this.#pixel(this.cross);
  }

  edges() {
    return {};
  }

  move(right, up) {
    const longer = Math.max(this.picture.naturalWidth, this.picture.naturalHeight);
    const by = [(right * STEP * longer) / this.picture.naturalWidth, (-up * STEP * longer) / this.picture.naturalHeight];
    this.cross = this.cross.map((v, i) => Math.min(0.999, Math.max(0, v + by[i])));
    this.draw();
  }

  draw(draft = null) {
    const dpr = window.devicePixelRatio, context = cleared(this.canvas, dpr);
    const size = [this.picture.naturalWidth, this.picture.naturalHeight];
    if (!size[0]) return;
    const place = (at) => [0, 1].map((i) => ((at[i] + 0.5) / size[i]) * [this.canvas.width, this.canvas.height][i]);
    const [x, y] = place(this.crosshair());
    Object.assign(context, { strokeStyle: "#ffd75e", lineWidth: dpr });
    context.strokeRect(x, y - 9 * dpr, 0, 18 * dpr);
    context.strokeRect(x - 9 * dpr, y, 18 * dpr, 0);
    const corners = (mark) => (mark.kind === "box" ? [mark.first, mark.last] : [mark.at]).map(place);
    this.items.forEach((mark, i) => drawMark(context, mark, i + 1, corners(mark), dpr));
    if (draft) drawMark(context, draft, null, corners(draft), dpr);
  }

  #pixel([right, down]) {
    return [Math.floor(right * this.picture.naturalWidth), Math.floor(down * this.picture.naturalHeight), 0];
  }
}
