// The bar above the viewer: view, window, tool; and the keys that do the same.

import { button, el, labelled, options, t } from "./dom.js";

const VIEWS = ["planes", "axial", "coronal", "sagittal", "render"];
const TOOLS = ["crosshair", "contrast", "distance", "angle", "pan"];
const CT = { soft: [-160, 240], lung: [-1350, 150], bone: [-450, 1050], brain: [0, 80], liver: [-45, 105] };

/** Window presets of a modality: Hounsfield units for CT, shares of the automatic window for the rest. */
export function presets(modality, auto) {
  if (modality === "CT") return { auto: null, ...CT };
  const [low, high] = auto;
  const width = high - low;
  return { auto: null, bright: [low, low + 0.6 * width], dark: [low, low + 1.6 * width] };
}

export class Bar {
  constructor(viewer, modality, frame) {
    this.viewer = viewer;
    this.windows = presets(modality, viewer.auto ?? [0, 1]);
    const named = (list) => list.map((name) => [name, t(`viewer.${name}`)]);
    this.view = options(named(VIEWS), viewer.view ?? "planes", (name) => viewer.setView(name));
    this.window = options(named(Object.keys(this.windows)), "auto", (name) => viewer.setWindow(this.windows[name]));
    this.tool = options(named(TOOLS), "crosshair", (name) => viewer.setTool(name));
    this.element = el("div", { class: "bar", role: "toolbar", "aria-label": t("viewer.view") },
      labelled(t("viewer.view"), this.view), labelled(t("viewer.window"), this.window), labelled(t("viewer.tool"), this.tool),
      button(t("viewer.reset"), () => this.reset()),
      button(t("viewer.full"), () => (document.fullscreenElement ? document.exitFullscreen() : frame.requestFullscreen?.())));
    viewer.setTool("crosshair");
  }

  reset() {
    this.window.value = "auto";
    this.viewer.reset();
  }

  /** What a key does here; true where it did something. */
  key(event) {
    const steps = { ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0], PageUp: [0, 0, 1], PageDown: [0, 0, -1] };
    const name = Object.keys(this.windows)[Number(event.key) - 1];
    if (steps[event.key]) this.viewer.move(...steps[event.key]);
    else if (name) this.#choose(this.window, name);
    else if (event.key === "v") this.#choose(this.view, VIEWS[(VIEWS.indexOf(this.view.value) + 1) % VIEWS.length]);
    else if (event.key === "r") this.reset();
    else return false;
    return true;
  }

  #choose(select, value) {
    select.value = value;
    select.dispatchEvent(new Event("change"));
  }
}
