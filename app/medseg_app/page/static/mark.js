// Mark: points and boxes that say what to segment, as a list with undo and redo, then a run that follows them.

import * as api from "./api.js";
import { COLOURS, Steps } from "./marks.js";
import { button, el, labelled, options, say, t, title } from "./dom.js";

/** What is being marked for a model; marks that were given before go on. */
export function marking(card, request = {}) {
  const { prompts = [], names = {} } = request.prompts ?? {};
  return {
    card, steps: new Steps(prompts), names: { ...names }, label: 1, propagate: request.propagate ?? true, confirmed: request.confirmed ?? false,
    mode: card.accepts.includes("points") ? "include" : "box", corner: null,
  };
}

export async function markScreen(app) {
  const state = app.marking, list = el("div", {}), which = el("div", {});
  const points = state.card.accepts.includes("points");
  const modes = [...(points ? ["include", "exclude"] : []), "box", "look"];
  const run = button(t("mark.run", state.card.name), () => begin(app), { class: "main", id: "ms-mark-run" });
  const undo = button(t("correct.undo"), () => app.step(-1)), redo = button(t("correct.redo"), () => app.step(1));
  const refresh = () => {
    const { steps } = state;
    list.replaceChildren(table(state, (i) => change(steps.items.filter((_, at) => at !== i))));
    which.replaceChildren(structure(state, refresh));
    app.marks.show(steps.items);
    run.disabled = !steps.items.some((mark) => mark.kind === "box" || mark.inside);
    undo.disabled = !steps.canUndo;
    redo.disabled = !steps.canRedo;
  };
  const change = (items) => { state.steps.to(items); refresh(); };
  const add = (mark, plane) => {
    if (mark.kind === "box" && plane && plane !== app.found.facts.plane) return tell(app, t("mark.other_plane", t(`viewer.${app.found.facts.plane}`)));
    change([...state.steps.items, mark]);
    return tell(app, t("mark.added", state.steps.items.length));
  };
  app.beginMarking({ mode: () => state.mode, label: () => state.label, add });
  app.step = (direction) => { if (direction < 0 ? state.steps.undo() : state.steps.redo()) refresh(); };
  refresh();
  return [
    title(t("mark.title")), el("p", {}, t(points ? "mark.hint" : "mark.hint_boxes")),
    app.found.facts.plane ? el("p", { class: "small" }, t("mark.plane", t(`viewer.${app.found.facts.plane}`))) : null,
    state.card.trained ? null : el("p", { class: "banner" }, t("choose.untrained")),
    el("fieldset", {}, el("legend", {}, t("mark.click")), modes.map((mode) => el("label", { class: "inline" },
      el("input", { type: "radio", name: "mode", value: mode, checked: mode === state.mode, onchange: () => { state.mode = mode; } }), t(`mark.${mode}`)))),
    which, atCrosshair(state, app, points, add),
    el("p", { id: "ms-mark-told", class: "small" }),
    el("p", {}, undo, " ", redo), list,
    app.found.kind === "volume" ? el("label", { class: "inline" }, el("input", { type: "checkbox", checked: !state.propagate,
      onchange: (event) => { state.propagate = !event.target.checked; } }), t("mark.here_only")) : null,
    el("p", {}, run),
  ];
}

function tell(app, text) {
  app.content.querySelector("#ms-mark-told").textContent = text;
  say(text);
}

/** The same without a pointer: arrow keys and page keys move the crosshair. */
function atCrosshair(state, app, points, add) {
  const put = (inside) => button(t(inside ? "mark.point_here" : "mark.outside_here"), () => add({ kind: "point", at: app.marks.crosshair(), inside, label: state.label }));
  const corner = button(t("mark.corner_here"), () => {
    const at = app.marks.crosshair();
    if (!state.corner) {
      state.corner = at;
      return tell(app, t("mark.second_corner"));
    }
    const first = state.corner;
    state.corner = null;
    return add({ kind: "box", first, last: at, ...app.marks.edges(), label: state.label });
  });
  return el("p", { class: "row" }, points ? [put(true), " ", put(false), " "] : null, corner);
}

function structure(state, refresh) {
  const most = Math.max(1, state.label, ...state.steps.items.map((mark) => mark.label));
  const name = (label) => state.names[label] || t("mark.structure", label);
  const choose = options([...Array(most)].map((_, i) => [i + 1, name(i + 1)]), state.label, (label) => { state.label = Number(label); refresh(); }, { id: "ms-structure" });
  const named = el("input", { type: "text", maxlength: 64, value: state.names[state.label] ?? "", onchange: (event) => {
    state.names[state.label] = event.target.value.trim();
    refresh();
  } });
  return el("div", { class: "row" }, labelled(t("mark.which"), choose), labelled(t("mark.name"), named),
    button(t("mark.new"), () => { state.label = most + 1; refresh(); }));
}

function table(state, remove) {
  const { items } = state.steps;
  if (!items.length) return el("p", {}, t("mark.none"));
  const place = (at) => at.map((v) => Number(v.toFixed(1))).join(", ");
  const heads = ["number", "what", "which", "place"].map((name) => el("th", { scope: "col" }, t(`mark.${name}`)));
  const row = (mark, i) => el("tr", {},
    el("th", { scope: "row" }, el("span", { class: "swatch", style: `background: ${COLOURS[(mark.label - 1) % COLOURS.length]}`, "aria-hidden": "true" }), String(i + 1)),
    el("td", {}, t(mark.kind === "box" ? "mark.a_box" : mark.inside ? "mark.a_point" : "mark.an_outside")),
    el("td", {}, state.names[mark.label] || t("mark.structure", mark.label)),
    el("td", {}, mark.kind === "box" ? t("mark.from_to", place(mark.first), place(mark.last)) : place(mark.at)),
    el("td", {}, button(t("mark.remove"), () => remove(i), { class: "quiet", "aria-label": t("mark.remove_number", i + 1) })));
  return el("table", { class: "marked" }, el("caption", {}, t("mark.list")), el("thead", {}, el("tr", {}, heads, el("td", {}))), el("tbody", {}, items.map(row)));
}

function begin(app) {
  const { card, steps, names, propagate, confirmed, formats } = app.marking;
  const used = new Set(steps.items.map((mark) => String(mark.label)));
  const given = Object.fromEntries(Object.entries(names).filter(([label, name]) => name && used.has(label)));
  const prompts = { space: app.found.kind === "picture" ? "px" : "mm", names: given, prompts: steps.items };
  return app.trying(async () => {
    const job = await api.run({ ...app.wish, upload: app.upload, model: card.name, confirmed, propagate, prompts, formats });
    app.use({ run: job.id });
    await app.go("run");
  });
}
