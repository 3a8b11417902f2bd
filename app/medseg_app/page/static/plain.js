// The viewer where there is no WebGL 2: three planes on plain canvases with sliders, the same face as `Viewer`.

import { el, t } from "./dom.js";
import { readNifti, sampler, worlds } from "./nifti.js";
import { PlainMarks } from "./plainmarks.js";

const PLANES = [
  { name: "axial", across: 0, down: 1, through: 2, letters: ["R", "L", "A", "P"] },
  { name: "coronal", across: 0, down: 2, through: 1, letters: ["R", "L", "S", "I"] },
  { name: "sagittal", across: 1, down: 2, through: 0, letters: ["A", "P", "S", "I"] },
];

export class PlainViewer {
  constructor(place, restoredMark) {
    this.planes = PLANES.map((plane) => this.#plane(plane));
    this.mark = el("p", { class: "mark", hidden: true }, restoredMark);
    place.replaceChildren(this.mark, el("p", {}, t("viewer.no_webgl")), el("div", { class: "plain" }, this.planes.map((p) => p.figure)));
    this.opacity = 0.5;
    this.overlay = null;
    this.hidden = new Set();
    this.split = 0.5;
  }

  async showImage(address) {
    this.image = await readNifti(address);
    this.at = sampler(this.image);
    this.world = worlds(this.image);
    this.size = this.image.order.map((axis) => this.image.shape[axis]);
    this.step = this.image.order.map((axis) => this.image.spacing[axis]);
    this.range = this.autoRange();
    this.overlay = null;
    this.restored = null;
    this.mark.hidden = true;
    for (const plane of this.planes) {
      plane.slider.max = this.size[plane.through] - 1;
      plane.slider.value = Math.floor(this.size[plane.through] / 2);
    }
    this.draw();
  }

  async showLabels(address, labels) {
    this.overlay = sampler(await readNifti(address));
    this.colors = new Map(labels.map((label) => [label.id, label.color]));
    this.draw();
  }

  /** Warm where grey values rose, cold where they fell, nothing where they stayed. */
  async showChange(address) {
    const volume = await readNifti(address), change = sampler(volume);
    const top = volume.voxels.reduce((most, v) => Math.max(most, Math.abs(v)), 0) * volume.slope || 1;
    this.overlay = (...at) => (Math.abs(change(...at)) < top / 10 ? 0 : change(...at) > 0 ? 1 : 2);
    this.colors = new Map([[1, [255, 130, 60]], [2, [70, 140, 255]]]);
    this.draw();
  }

  async showRegions(address) {
    this.overlay = sampler(await readNifti(address));
    this.colors = { get: (id) => [id * 97, id * 57, id * 151].map((v) => v % 256) }; // neighbours differ, and no more
    this.draw();
  }

  async showDoubt(address) {
    const percent = sampler(await readNifti(address));
    this.overlay = (...at) => Math.min(1, percent(...at));
    this.colors = new Map([[1, [255, 200, 60]]]);
    this.draw();
  }
  marks(hooks) {
    this.marked = new PlainMarks(this, hooks);
    return this.marked;
  }
  /** The restored image to the right of the slider; the mark stays whatever is done. */
  async compare(address) {
    this.restored = sampler(await readNifti(address));
    this.mark.hidden = false;
    this.draw();
  }

  hideOverlay() { this.overlay = null; this.draw(); }
  setOpacity(value) { this.opacity = value; this.draw(); }
  setHidden(hidden) { this.hidden = hidden; this.draw(); }
  setWindow(range) { this.range = range ?? this.autoRange(); this.draw(); }
  setSplit(share) { this.split = share; this.draw(); }
  setView() {}
  setTool() {}
  reset() { this.setWindow(null); }
  move(right, up, through) {
    this.planes[0].slider.value = Number(this.planes[0].slider.value) + through;
    this.planes[2].slider.value = Number(this.planes[2].slider.value) + right;
    this.planes[1].slider.value = Number(this.planes[1].slider.value) + up;
    this.draw();
  }

  autoRange() {
    const step = Math.max(1, Math.floor(this.image.voxels.length / 20000));
    const some = Array.from({ length: Math.floor(this.image.voxels.length / step) }, (_, i) => this.image.voxels[i * step]);
    some.sort((a, b) => a - b);
    const scale = (value) => value * this.image.slope + this.image.shift;
    return [scale(some[Math.floor(some.length * 0.02)]), scale(some[Math.floor(some.length * 0.995)])];
  }

  draw() {
    if (!this.image) return;
    for (const plane of this.planes) this.#drawPlane(plane);
    this.marked?.draw();
  }

  #plane(plane) {
    const canvas = el("canvas", { role: "img", "aria-label": t("viewer.slice", t(`viewer.${plane.name}`)) });
    const slider = el("input", { type: "range", min: 0, "aria-label": t("viewer.slice", t(`viewer.${plane.name}`)), oninput: () => this.draw() });
    const [left, right, top, bottom] = plane.letters;
    const frame = el("div", { class: "frame" }, canvas, ...["left", "right", "top", "bottom"].map((side, i) =>
      el("span", { class: `letter ${side}` }, [left, right, top, bottom][i])));
    return { ...plane, canvas, slider, figure: el("figure", {}, frame, slider) };
  }

  /** Rows downward, columns to the right, the right of the patient at the left: both axes run backward. */
  #drawPlane({ canvas, slider, across, down, through }) {
    const width = this.size[across], height = this.size[down];
    canvas.width = width;
    canvas.height = height;
    canvas.style.aspectRatio = `${width * this.step[across]} / ${height * this.step[down]}`;
    const context = canvas.getContext("2d");
    const picture = context.createImageData(width, height);
    const [low, high] = this.range;
    const at = [0, 0, 0];
    at[through] = Number(slider.value);
    for (let y = 0, i = 0; y < height; y++) {
      at[down] = height - 1 - y;
      for (let x = 0; x < width; x++, i += 4) {
        at[across] = width - 1 - x;
        const shown = this.restored && x >= this.split * width ? this.restored : this.at;
        const grey = (255 * (shown(...at) - low)) / (high - low || 1);
        const id = this.overlay ? this.overlay(...at) : 0;
        const color = id && !this.hidden.has(id) ? this.colors.get(id) : null;
        for (let c = 0; c < 3; c++) {
          picture.data[i + c] = color ? grey * (1 - this.opacity) + color[c] * this.opacity : grey;
        }
        picture.data[i + 3] = 255;
      }
    }
    context.putImageData(picture, 0, 0);
  }
}
