// NiiVue in our frame: the image, what lies over it, and a second view of the restored image under a slider.

/* global niivue */
import { el, t } from "./dom.js";
import { VolumeMarks } from "./volumemarks.js";

const VIEWS = { axial: 0, coronal: 1, sagittal: 2, planes: 3, render: 4 };
const TOOLS = { crosshair: "crosshair", contrast: "contrast", distance: "measurement", angle: "angle", pan: "pan" };
const STEPS = 12; // strokes that can be taken back; each keeps one byte per voxel
const OPTIONS = {
  isRadiologicalConvention: true,
  sagittalNoseLeft: true,
  backColor: [0, 0, 0, 1],
  crosshairColor: [1, 0.84, 0.37, 0.9],
  crosshairWidth: 1.2,
  crosshairWidthUnit: "mm",
  crosshairGap: 6,
  fontColor: [1, 1, 1, 1], // not that of the crosshair, under which an I would be lost
  fontMinPx: 18,
  fontSizeScaling: 0.6,
  rulerColor: [0, 0.6, 1, 1],
  rulerWidth: 3,
  measureLineColor: [0, 0.6, 1, 1],
  measureTextColor: [1, 1, 1, 1],
  measureTextJustify: "end", // beside the line that it belongs to, not on it
  dragAndDropEnabled: false,
  showLegend: false,
  isColorbar: false,
  isCornerOrientationText: false,
  multiplanarPadPixels: 16,
  multiplanarLayout: 2, // a square, with the rendering in its fourth quarter
  showAllOrientationMarkers: true,
  logLevel: "error",
  loadingText: "",
};

export function hasWebGL2() {
  const context = document.createElement("canvas").getContext("webgl2");
  context?.getExtension("WEBGL_lose_context")?.loseContext();
  return context !== null;
}

/** Whether a processor draws in the place of a graphics card; the rendering then waits until it is asked for. */
function isSlow(gl) {
  const told = gl.getExtension("WEBGL_debug_renderer_info");
  return /swiftshader|llvmpipe|software/i.test(told ? gl.getParameter(told.UNMASKED_RENDERER_WEBGL) : "");
}

export class Viewer {
  constructor(place, restoredMark) {
    this.first = layer("image");
    this.second = layer("restored");
    this.mark = el("p", { class: "mark", hidden: true }, restoredMark);
    this.stage = el("div", { class: "stage" }, this.first.frame, this.second.frame, this.mark);
    this.place = el("p", { class: "place" });
    place.replaceChildren(this.stage, this.place);
    this.split = 0.5;
    this.view = "planes";
  }

  async showImage(address) {
    await this.#attach(this.first);
    this.nv.onLocationChange = (told) => { this.place.textContent = where(told, this.nv.volumes); };
    this.#forgetMeasures();
    this.#comparing(false);
    await this.nv.loadVolumes([{ url: address, name: "view.nii" }]);
    this.auto = [this.nv.volumes[0].cal_min, this.nv.volumes[0].cal_max];
    this.setView(this.view);
  }

  async showLabels(address, labels) {
    await this.#over(address);
    const map = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
    for (const label of labels) {
      const [red, green, blue] = label.color;
      map.R.push(red); map.G.push(green); map.B.push(blue); map.A.push(255); map.I.push(label.id);
      map.labels.push(label.name);
    }
    this.map = map;
    this.nv.volumes[1].setColormapLabel(structuredClone(map));
    this.nv.setOpacity(1, 0.5);
    this.nv.updateGLVolume();
  }

  /** A signed difference: warm where grey values rose, cold where they fell, nothing where they stayed. */
  async showChange(address) {
    await this.#over(address, { colormap: "warm", colormapNegative: "winter" });
    const volume = this.nv.volumes[1];
    const top = Math.max(Math.abs(volume.robust_min ?? 0), Math.abs(volume.robust_max ?? 0)) || 1;
    Object.assign(volume, { cal_min: top / 10, cal_max: top, cal_minNeg: -top, cal_maxNeg: -top / 10 });
    this.nv.setOpacity(1, 0.8);
    this.nv.updateGLVolume();
  }

  async showRegions(address) {
    await this.#over(address, { colormap: "random" });
    this.nv.setOpacity(1, 0.45);
    this.nv.updateGLVolume();
  }

  /** Where runs without one of the examples differ: nothing where they agree, brighter the more they are divided. */
  async showDoubt(address) {
    await this.#over(address, { colormap: "hot" });
    Object.assign(this.nv.volumes[1], { cal_min: 1, cal_max: 100 });
    this.nv.setOpacity(1, 0.8);
    this.nv.updateGLVolume();
  }

  marks(hooks) {
    return new VolumeMarks(this.first.frame, this.nv, hooks);
  }

  /** The restored image in a second view on top, cut off at the slider; the mark stays whatever is done. */
  async compare(address) {
    this.#comparing(true);
    await this.#attach(this.second);
    this.#forgetMeasures();
    await this.second.nv.loadVolumes([{ url: address, name: "restored.nii" }]);
    this.second.nv.setSliceType(this.nv.opts.sliceType);
    this.nv.broadcastTo([this.second.nv], { "2d": true, "3d": true });
    this.second.nv.broadcastTo([this.nv], { "2d": true, "3d": true });
    this.setWindow(this.auto);
    this.setSplit(this.split);
  }

  hideOverlay() {
    while (this.nv.volumes.length > 1) this.nv.removeVolumeByIndex(1);
    this.nv.drawScene();
  }

  setOpacity(value) {
    if (this.nv.volumes[1]) this.nv.setOpacity(1, value);
  }

  setHidden(hidden) {
    const map = structuredClone(this.map);
    map.A = map.I.map((id) => (id === 0 || hidden.has(id) ? 0 : 255));
    this.nv.volumes[1].setColormapLabel(map);
    this.nv.updateGLVolume();
  }

  setWindow(range) {
    const [low, high] = range ?? this.auto;
    for (const { nv } of this.#layers()) {
      Object.assign(nv.volumes[0], { cal_min: low, cal_max: high });
      nv.updateGLVolume();
    }
  }

  setSplit(share) {
    this.split = share;
    this.second.frame.style.clipPath = `inset(0 0 0 ${100 * share}%)`;
  }

  setView(name) {
    this.view = name;
    for (const { nv } of this.#layers()) nv.setSliceType(VIEWS[name]);
  }

  setTool(name) {
    for (const { nv } of this.#layers()) {
      nv.opts.dragModePrimary = niivue.DRAG_MODE[TOOLS[name]] ?? 8;
      nv.setDragMode(niivue.DRAG_MODE[name === "crosshair" ? "contrast" : TOOLS[name]]); // drops half an angle
    }
  }

  /** Take the labels for a drawing that a pen changes; the overlay gives way to it. */
  async beginDrawing(address, changed) {
    this.hideOverlay();
    this.nv.drawLut = niivue.cmapper.makeDrawLut(this.map);
    await this.nv.loadDrawingFromUrl(address);
    this.nv.setDrawOpacity(0.5);
    this.nv.updateGLVolume(); // this is what takes the colours over
    this.history = [this.nv.drawBitmap.slice()];
    this.at = 0;
    this.locked = new Set(); // labels that no stroke changes
    this.nv.onDrawingChanged = (what) => { if (what === "draw") { this.#remember(); changed(); } };
  }

  setPen(label, size, fill) {
    this.nv.opts.penSize = size;
    this.nv.setPenValue(label, fill);
    this.nv.setDrawingEnabled(true);
  }

  /** One dab of the pen on the axial slice of the crosshair, for whoever paints without a pointer. */
  dab(label, size) {
    const { nv } = this;
    Object.assign(nv.opts, { penSize: size });
    nv.drawPenAxCorSag = VIEWS.axial;
    nv.drawPt(...nv.frac2vox(nv.scene.crosshairPos), label);
    nv.drawPenAxCorSag = -1;
    this.#remember();
    nv.refreshDrawing(true);
  }

  liftPen() {
    this.nv.setDrawingEnabled(false);
  }

  endDrawing() {
    this.liftPen();
    this.nv.closeDrawing();
    this.history = [];
  }

  /** Go back (-1) or forth (1) among the strokes. */
  step(direction) {
    const to = this.at + direction;
    if (!this.history?.[to]) return;
    this.at = to;
    this.nv.drawBitmap.set(this.history[to]);
    this.nv.refreshDrawing(true);
  }

  /** The drawing as the bytes of a NIfTI file on the grid of the image. */
  drawing() {
    return this.nv.saveImage({ filename: "", isSaveDrawing: true });
  }

  #remember() {
    const { drawBitmap: now } = this.nv, before = this.history[this.at];
    for (let i = 0; this.locked.size && i < now.length; i++) if (now[i] !== before[i] && this.locked.has(before[i])) now[i] = before[i];
    if (this.locked.size) this.nv.refreshDrawing(true);
    this.history = [...this.history.slice(0, this.at + 1), this.nv.drawBitmap.slice()].slice(-STEPS);
    this.at = this.history.length - 1;
  }

  move(right, up, through) {
    this.nv.moveCrosshairInVox(right, up, through);
  }

  reset() {
    for (const { nv } of this.#layers()) {
      nv.setPan2Dxyzmm([0, 0, 0, 1]);
      nv.scene.crosshairPos = [0.5, 0.5, 0.5];
      nv.setRenderAzimuthElevation(110, 10);
    }
    this.#forgetMeasures();
    this.setWindow(null);
  }

  get nv() {
    return this.first.nv;
  }

  #layers() {
    return [this.first, this.second].filter((one) => one.nv?.volumes.length && !one.frame.hidden);
  }

  #comparing(on) {
    this.second.frame.hidden = !on;
    this.mark.hidden = !on;
  }

  async #attach(one) {
    if (one.nv) return;
    one.nv = new niivue.Niivue(OPTIONS);
    await one.nv.attachToCanvas(one.canvas);
    one.nv.opts.multiplanarShowRender = isSlow(one.nv.gl) ? 0 : 1;
    one.nv.onMeasurementCompleted = ({ distance }) => { this.place.textContent = t("viewer.measured", distance.toFixed(1)); };
    one.nv.onAngleCompleted = ({ angle }) => { this.place.textContent = t("viewer.turned", angle.toFixed(1)); };
    const write = one.nv.drawTextBetween.bind(one.nv);
    one.nv.drawTextBetween = (line, text, ...look) => write(line, text.replace("°", " deg"), ...look); // its font has no such sign
  }

  /** What was measured belongs to the image that it was measured in. */
  #forgetMeasures() {
    this.place.textContent = "";
    for (const { nv } of [this.first, this.second]) nv?.clearAllMeasurements();
  }

  async #over(address, options = {}) {
    this.hideOverlay();
    this.second.frame.hidden = true; // it would cover what lies over the first
    await this.nv.addVolumeFromUrl({ url: address, name: "over.nii", ...options });
  }
}

/** The crosshair in words: millimetres towards the sides of the patient, then what lies there. */
function where({ mm, values }, volumes) {
  const sides = [["R", "L"], ["A", "P"], ["S", "I"]];
  const place = sides.map(([plus, minus], i) => `${t(`sides.${mm[i] < 0 ? minus : plus}`)} ${Math.abs(mm[i]).toFixed(1)}`);
  const found = values.map(({ value }, i) => volumes[i]?.colormapLabel?.labels?.[value] ?? Number(value.toPrecision(4)));
  return `${place.join(", ")} mm: ${found.filter((one) => one !== "").join(", ")}`;
}

function layer(name) {
  const canvas = el("canvas", { tabindex: "0", role: "img", "aria-label": t("viewer.label"), "data-layer": name });
  return { canvas, frame: el("div", { class: "layer" }, canvas), nv: null };
}
