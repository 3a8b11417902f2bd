// Review: what came out, over the image and as a table; before and after for what was restored.

import * as api from "./api.js";
import { corrected } from "./correct.js";
import { button, el, labelled, say, t, title } from "./dom.js";

const { fileAddress } = api;

export async function reviewScreen(app) {
  const result = app.result;
  if (!result) return [title(t("review.title")), el("p", {}, t("review.none"))];
  const parts = [title(t("review.title")), warnings(result.manifest.warnings)];
  if (app.found.kind === "picture") return [...parts, ...pictures(app), sure(result), figures(result), ...onward(app, result)];
  if (result.labels.length) return [...parts, opacity(app), overlays(app, result), ...structures(app, result), ...onward(app, result)];
  return [...parts, ...comparison(app), figures(result)];
}

function warnings(list) {
  if (!list?.length) return null;
  return el("section", { class: "warnings" }, el("h3", {}, t("review.warnings")), el("ul", {}, list.map((text) => el("li", {}, text))));
}

function opacity(app) {
  const slider = el("input", { type: "range", min: 0, max: 1, step: 0.05, value: app.opacity, id: "ms-opacity",
    oninput: (event) => app.setOpacity(Number(event.target.value)) });
  return labelled(t("review.opacity"), slider);
}

/** Structures, or where the model is unsure of them, for models that tell. */
function overlays(app, result) {
  if (!result.views.includes("view/doubt.nii")) return null;
  const shown = (name, checked, show) => el("label", { class: "inline" }, el("input", { type: "radio", name: "over", value: name, checked,
    onchange: () => app.trying(() => app.overlay(show)) }), t(`review.${name}`));
  return el("fieldset", {}, el("legend", {}, t("review.overlay")), shown("structures", true, () => app.showLabels()),
    shown("doubt", false, () => app.viewer.showDoubt(fileAddress(app.run, "view/doubt.nii"))));
}

/** How sure the model is of a structure, in words and with the figure that says so. */
function sureness(told) {
  if (!told || told.score === null) return t("report.not_assessed");
  if (told.kind === "presence") return t("review.presence", told.score.toFixed(2));
  return t(told.sure ? "review.agree" : "review.unsure", told.score.toFixed(2));
}

function meaning(result) {
  const kind = result.confidence[0]?.kind;
  return kind ? el("p", { class: "small" }, t(`review.${kind}_meaning`)) : null;
}

/** The same for a picture, which has no table of structures. */
function sure(result) {
  if (!result.confidence.length) return null;
  const names = new Map(result.labels.map((label) => [label.id, label.name]));
  return el("div", {}, el("table", {}, el("caption", {}, t("review.confidence")), el("tbody", {}, result.confidence.map((one) =>
    el("tr", {}, el("th", { scope: "row" }, names.get(one.id) ?? String(one.id)), el("td", {}, sureness(one)))))), meaning(result));
}

/** What can be done with a label map beside taking it home. */
function onward(app, result) {
  if (!result.labels.length) return [];
  const keep = () => {
    if (!app.basket.some((one) => one.job === app.run)) app.basket.push({ job: app.run, model: result.manifest.model.name });
    return app.go("examples");
  };
  const again = () => app.trying(async () => {
    const { request } = await api.job(app.run);
    await app.mark(app.found.models.find((model) => model.name === request.model), request.prompts ? request : undefined);
  });
  const marked = result.manifest.model.task === "prompting" && app.found.models.some((model) => model.name === result.manifest.model.name);
  return [el("p", {}, marked ? button(t("review.mark_again"), again, { id: "ms-mark-again" }) : null, " ", button(t("review.example"), keep, { id: "ms-example" }))];
}

function structures(app, result) {
  const measured = new Map((result.statistics?.structures ?? []).map((one) => [one.id, one]));
  const told = new Map(result.confidence.map((one) => [one.id, one]));
  const rejected = new Set();
  const comment = el("input", { type: "text", maxlength: 500, id: "ms-comment" });
  const save = button(t("review.save"), () => app.trying(async () => {
    const names = result.labels.filter((label) => rejected.has(label.id)).map((label) => label.name);
    await corrected(app, () => api.review(app.run, [...rejected], comment.value.trim()));
    say(t("review.saved", names.join(", ")));
  }, () => app.go("review")), { disabled: true, id: "ms-reject-save" });
  const reject = (label, i) => {
    const press = button(t("review.reject"), () => {
      const out = !rejected.has(label.id);
      if (out) rejected.add(label.id);
      else rejected.delete(label.id);
      press.setAttribute("aria-pressed", out);
      press.closest("tr").classList.toggle("rejected", out);
      boxes[i].checked = !out;
      app.show([label.id], !out);
      save.disabled = !rejected.size || rejected.size === result.labels.length;
    }, { class: "quiet", "aria-pressed": "false", "aria-label": t("review.reject_one", label.name) });
    return press;
  };
  const boxes = result.labels.map((label) => el("input", { type: "checkbox", checked: !app.hidden.has(label.id),
    "aria-label": t("review.only", label.name), onchange: (event) => app.show([label.id], event.target.checked) }));
  const all = el("input", { type: "checkbox", checked: true, "aria-label": t("review.all"), onchange: () => {
    for (const box of boxes) box.checked = all.checked;
    app.show(result.labels.map((label) => label.id), all.checked);
  } });
  const head = el("tr", {}, el("th", { scope: "col" }, all, el("span", { class: "unseen" }, t("review.show"))),
    ...["structure", "value", "state", ...(told.size ? ["confidence"] : []), "judgement"].map((name) => el("th", { scope: "col" }, t(`review.${name}`))));
  const cells = (label, i) => [told.size ? el("td", {}, sureness(told.get(label.id))) : null, el("td", {}, reject(label, i))];
  return [
    el("table", { class: "structures" }, el("caption", {}, t("review.findings")), el("thead", {}, head),
      el("tbody", {}, result.labels.map((label, i) => row(label, measured.get(label.id), boxes[i], cells(label, i))))),
    meaning(result), labelled(t("review.comment"), comment), save,
  ];
}

function row(label, found, box, more) {
  const swatch = el("span", { class: "swatch", style: `background: rgb(${label.color.join(",")})`, "aria-hidden": "true" });
  const ml = found?.ml === null || found === undefined ? t("report.not_assessed") : found.ml.toFixed(2);
  return el("tr", {}, el("td", {}, box), el("th", { scope: "row" }, swatch, label.name), el("td", { class: "number" }, ml), el("td", {}, found?.status ?? ""), more);
}

function comparison(app) {
  const has = (name) => app.result.views.includes(`view/${name}.nii`);
  const split = el("input", { type: "range", min: 0, max: 1, step: 0.01, value: app.viewer.split, id: "ms-split",
    oninput: (event) => app.viewer.setSplit(Number(event.target.value)) });
  const over = (name, show) => el("label", { class: "inline" }, el("input", { type: "radio", name: "over", value: name, checked: name === "compare",
    onchange: () => { split.disabled = name !== "compare"; app.trying(() => show()); } }), t(`review.${name}`));
  const view = (name) => fileAddress(app.run, `view/${name}.nii`);
  return [
    el("fieldset", {}, el("legend", {}, t("review.image")),
      over("compare", () => app.compare()),
      has("residual") ? over("difference", () => app.overlay(() => app.viewer.showChange(view("residual")))) : null,
      has("regions") ? over("regions", () => app.overlay(() => app.viewer.showRegions(view("regions")))) : null),
    labelled(t("review.compare"), split), el("p", { class: "small" }, t("review.compare_hint")),
  ];
}

function pictures(app) {
  const names = ["overlay.png", "labels.png", "probability.png", "restored.png", "residual.png", "regions.png"].filter((name) => app.result.files.includes(name));
  const shown = (name) => el("label", { class: "inline" }, el("input", { type: "radio", name: "over", checked: name === names[0],
    onchange: () => app.showPicture(name) }), name ? t(`review.${name.replace(".png", "").replace("regions", "region_map")}`) : t("review.original"));
  return [el("fieldset", {}, el("legend", {}, t("review.image")), [...names, ""].map(shown))];
}

/** The figures of a result without structures, as a table of words and numbers. */
function figures(result) {
  const numbers = Object.entries(result.statistics ?? {}).filter(([, value]) => typeof value === "number");
  const measured = (result.statistics?.figures ?? []).map((one) => [`${one.label ?? ""} ${one.name}`, one.value, one.unit]);
  const named = (name) => t(`figures.${name}`).replace("figures.", "").replaceAll("_", " ");
  const rows = [...measured, ...numbers.map(([name, value]) => [named(name), value, ""])];
  return el("table", { class: "structures" }, el("caption", {}, t("review.findings")), el("tbody", {}, rows.map(([name, value, unit]) =>
    el("tr", {}, el("th", { scope: "row" }, name), el("td", { class: "number" }, Number(value?.toPrecision?.(4) ?? value)), el("td", {}, unit)))));
}
