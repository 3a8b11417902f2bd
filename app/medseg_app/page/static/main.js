// The page: which screen is open, which image is shown, what the keys do.

import * as api from "./api.js";
import { archivePart } from "./archive.js";
import { Bar } from "./bar.js";
import { checkScreen } from "./check.js";
import { chooseScreen } from "./choose.js";
import { correctScreen } from "./correct.js";
import { button, el, loadWords, say, t } from "./dom.js";
import { examplesScreen } from "./examples.js";
import { historyScreen } from "./history.js";
import { markScreen, marking } from "./mark.js";
import { openScreen } from "./open.js";
import { PictureMarks } from "./picturemarks.js";
import { PlainViewer } from "./plain.js";
import { reportScreen } from "./report.js";
import { reviewScreen } from "./review.js";
import { runScreen } from "./run.js";
import { Viewer, hasWebGL2 } from "./viewer.js";

const SCREENS = {
  open: openScreen, check: checkScreen, choose: chooseScreen, mark: markScreen, run: runScreen, review: reviewScreen,
  correct: correctScreen, report: reportScreen, examples: examplesScreen, history: historyScreen,
};
const ALWAYS = ["open", "examples", "history"]; // screens that need no image
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
const SENDING = ["review", "report"]; // screens from which a result can be sent
const KEPT = "medseg"; // session storage: numbers of jobs only

class App {
  screen = "open";
  upload = null; // number of the upload
  check = null; // of the job that looked at it
  run = null; // of the job that restored or segmented it
  wish = {};
  found = null; // what the look found
  result = null;
  refused = null;
  hidden = new Set();
  opacity = 0.5;
  shown = null; // number of the look whose image stands in the viewer
  marking = null; // what is being marked, for which model
  marks = null; // where marks are set and drawn, while that screen is open
  basket = []; // cases for a support set that is to be made
  step = () => null; // back (-1) or forth (1), on screens that can

  constructor(root) {
    this.root = root;
    this.content = root.querySelector("#ms-content");
    this.frame = root.querySelector("#ms-viewer");
    this.banner = root.querySelector("#ms-banner");
    this.dialog = root.querySelector("#ms-dialog");
  }

  async start() {
    this.me = await api.me();
    this.root.querySelector("#ms-logout").hidden = this.me.user === null;
    this.steps = Object.fromEntries(Object.keys(SCREENS).map((name) => [name, button(t(`page.${name}`), () => this.go(name), { "data-screen": name })]));
    this.root.querySelector("#ms-steps").append(...Object.values(this.steps).map((step) => el("li", {}, step)));
    this.root.querySelector("#ms-help").addEventListener("click", () => this.help());
    document.addEventListener("keydown", (event) => this.key(event));
    this.use(JSON.parse(sessionStorage.getItem(KEPT) ?? "{}"));
    await this.trying(() => this.go(this.check ? "check" : "open"), () => { this.use({ upload: null, check: null, run: null }); return this.go("open"); });
    this.root.dataset.ready = "yes";
  }

  /** Take up an upload, a look at it, a run of it. */
  use(change) {
    Object.assign(this, change);
    Object.assign(this, { refused: null, found: "check" in change ? null : this.found, result: null, hidden: new Set() });
    if ("check" in change) this.marking = null;
    const { upload, check, run, wish } = this;
    sessionStorage.setItem(KEPT, JSON.stringify({ upload, check, run, wish }));
  }

  async go(name) {
    if (this.screen === "correct" && name !== "correct") {
      this.viewer.endDrawing();
      this.shown = null;
    }
    this.marks?.end();
    Object.assign(this, { screen: name, marks: null, step: () => null });
    await this.#load();
    if (!this.#reachable(name)) return this.go("open");
    await this.#view();
    const parts = [...(await SCREENS[name](this)), SENDING.includes(name) && this.result ? await archivePart(this) : null];
    this.content.replaceChildren(...parts.flat().filter(Boolean));
    for (const [one, step] of Object.entries(this.steps)) {
      step.disabled = !this.#reachable(one);
      if (one === name) step.setAttribute("aria-current", "step");
      else step.removeAttribute("aria-current");
    }
    this.content.querySelector("h2")?.focus();
  }

  /** Do something that may fail, and say so. */
  async trying(work, otherwise = () => null) {
    try {
      await work();
    } catch (error) {
      await otherwise();
      say(t("page.failed", error.message));
      this.content.prepend(el("p", { class: "finding error", role: "alert" }, t("page.failed", error.message)));
    }
  }

  wait(text) {
    this.content.replaceChildren(el("p", { class: "stage-text" }, text), el("progress", { "aria-label": text }));
    say(text);
  }

  ask(heading, content, yes, no, then) {
    const answer = (go) => { this.dialog.close(); if (go) then(); };
    this.dialog.replaceChildren(el("h2", { id: "ms-dialog-title" }, heading), ...content,
      el("p", {}, button(no, () => answer(false)), " ", button(yes, () => answer(true), { class: "danger" })));
    this.dialog.showModal();
  }

  help() {
    const names = ["arrows", "page", "presets", "space", "views", "reset", "undo", "help"];
    this.dialog.replaceChildren(el("h2", { id: "ms-dialog-title" }, t("keys.title")), el("ul", {}, names.map((name) => el("li", {}, t(`keys.${name}`)))),
      button(t("keys.close"), () => this.dialog.close()));
    this.dialog.showModal();
  }

  key(event) {
    const ticked = ["checkbox", "radio"].includes(event.target.type);
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && !ticked;
    const pressing = (event.target.tagName === "BUTTON" || ticked) && event.key === " " || (event.target.type === "radio" && ARROWS[event.key]);
    if (typing || pressing || this.dialog.open || event.ctrlKey || event.altKey || event.metaKey) return;
    let done = true;
    if (event.key === "?") this.help();
    else if (event.key === " " && !this.frame.hidden) this.setOpacity(this.opacity ? 0 : 0.5);
    else if (["correct", "mark"].includes(this.screen) && (event.key === "z" || event.key === "y")) this.step(event.key === "z" ? -1 : 1);
    else if (this.marks instanceof PictureMarks && ARROWS[event.key]) this.marks.move(...ARROWS[event.key]);
    else done = !this.frame.hidden && this.bar ? this.bar.key(event) : false;
    if (done) event.preventDefault();
  }

  setOpacity(value) {
    this.opacity = value;
    this.viewer?.setOpacity(value);
    const slider = document.getElementById("ms-opacity");
    if (slider) slider.value = value;
  }

  /** Show or hide structures, in one drawing for all of them. */
  show(labels, visible) {
    for (const label of labels) {
      if (visible) this.hidden.delete(label);
      else this.hidden.add(label);
    }
    this.viewer.setHidden(this.hidden);
  }

  async showLabels() {
    await this.viewer.showLabels(api.fileAddress(this.run, "view/main.nii"), this.result.labels);
    if (this.hidden.size) this.viewer.setHidden(this.hidden);
  }

  compare() {
    return this.overlay(() => this.viewer.compare(api.fileAddress(this.run, "view/main.nii")));
  }

  async overlay(show) {
    this.viewer.hideOverlay();
    await show();
  }

  /** Begin to mark for a model; `request` of an earlier run brings its marks along. */
  mark(card, request, formats = request?.formats ?? []) {
    if (request || this.marking?.card.name !== card.name) this.marking = marking(card, request);
    this.marking.formats = formats;
    return this.go("mark");
  }

  beginMarking(hooks) {
    if (this.found.kind === "picture") this.marks = new PictureMarks(this.frame.querySelector("img"), hooks);
    else {
      this.bar.tool.value = "crosshair";
      this.viewer.setTool("crosshair");
      this.marks = this.viewer.marks(hooks);
    }
  }

  showPicture(name) {
    const address = name ? api.fileAddress(this.run, name) : api.fileAddress(this.check, "view.png");
    const marked = name === "restored.png";
    this.frame.replaceChildren(el("img", { src: address, alt: name || t("review.original"), class: "picture" }),
      ...(marked ? [el("p", { class: "mark" }, this.root.dataset.restoredMark)] : []));
  }

  #reachable(name) {
    if (ALWAYS.includes(name)) return true;
    if (name === "mark") return Boolean(this.marking && this.found);
    if (name === "check") return Boolean(this.found || this.refused);
    if (name === "correct") return Boolean(this.result?.labels.length && this.viewer?.beginDrawing);
    if (name === "choose") return Boolean(this.found?.models);
    return name === "run" ? Boolean(this.run) : Boolean(this.result);
  }

  /** What the server knows of the work that is open. */
  async #load() {
    if (this.check && !this.found && !this.refused) {
      const looked = await api.job(this.check);
      if (looked.state === "done") this.found = (await api.result(this.check)).manifest;
      else this.refused = looked.reason;
    }
    if (this.run && !this.result && (await api.job(this.run)).state === "done") this.result = await api.result(this.run);
    const untrained = this.result && this.result.manifest.model?.trained === false;
    this.banner.hidden = !untrained || ALWAYS.includes(this.screen);
    this.banner.textContent = untrained ? this.root.dataset.untrained : "";
  }

  /** The image, and over it what came of it, where the screen has room for them. */
  async #view() {
    const wanted = this.found?.facts && !this.refused && !ALWAYS.includes(this.screen);
    this.frame.hidden = !wanted;
    this.root.classList.toggle("with-viewer", Boolean(wanted));
    const over = this.screen === "mark" && !this.result?.labels.length ? null : this.result; // nothing lies over what is marked but labels
    const plain = this.screen === "mark" && this.found?.kind === "picture"; // a picture is marked without its overlay
    const key = `${this.check} ${over && !plain ? this.run : ""}`;
    if (!wanted || this.shown === key) return;
    this.shown = key;
    if (this.found.kind === "picture") {
      this.bar = null;
      this.viewer = null;
      this.showPicture(over && !plain ? ["overlay.png", "restored.png"].find((name) => over.files.includes(name)) : "");
      return;
    }
    await this.trying(() => this.#volume(over));
  }

  async #volume(over) {
    if (!this.viewer) {
      this.stage = el("div", { class: "stage-place" });
      this.viewer = hasWebGL2() ? new Viewer(this.stage, this.root.dataset.restoredMark) : new PlainViewer(this.stage, this.root.dataset.restoredMark);
    }
    if (!this.frame.contains(this.stage)) this.frame.replaceChildren(this.stage);
    await this.viewer.showImage(api.fileAddress(this.check, "view.nii"));
    this.bar = new Bar(this.viewer, this.found.facts.modality, this.frame);
    this.frame.replaceChildren(this.bar.element, this.stage);
    if (!over) return;
    if (over.labels.length) await this.showLabels();
    else await this.compare();
  }
}

/** Put our markup into the column that Gradio makes some time after this script has run. */
async function mounted() {
  const screens = await (await fetch("/medseg-screens")).text();
  const place = await appeared("#medseg-place");
  place.replaceChildren(document.createRange().createContextualFragment(screens));
  return document.getElementById("medseg-app");
}

function appeared(selector) {
  const found = () => document.querySelector(selector);
  if (found()) return Promise.resolve(found());
  return new Promise((resolve) => {
    new MutationObserver((_, watcher) => { if (found()) { watcher.disconnect(); resolve(found()); } })
      .observe(document, { childList: true, subtree: true });
  });
}

const [root] = await Promise.all([mounted(), loadWords()]);
window.medseg = new App(root); // for tests and for whoever looks at the page with the tools of the browser
await window.medseg.start();
