// Review: what came out, over the image and as a table; before and after for what was restored.

import { fileAddress } from "./api.js";
import { el, labelled, t, title } from "./dom.js";

export async function reviewScreen(app) {
  const result = app.result;
  if (!result) return [title(t("review.title")), el("p", {}, t("review.none"))];
  const parts = [title(t("review.title")), warnings(result.manifest.warnings)];
  if (app.found.kind === "picture") return [...parts, ...pictures(app), figures(result)];
  if (result.labels.length) return [...parts, opacity(app), structures(app, result)];
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

function structures(app, result) {
  const measured = new Map((result.statistics?.structures ?? []).map((one) => [one.id, one]));
  const boxes = result.labels.map((label) => el("input", { type: "checkbox", checked: !app.hidden.has(label.id),
    "aria-label": t("review.only", label.name), onchange: (event) => app.show(label.id, event.target.checked) }));
  const all = el("input", { type: "checkbox", checked: true, "aria-label": t("review.all"), onchange: () =>
    boxes.forEach((box, i) => { box.checked = all.checked; app.show(result.labels[i].id, all.checked); }) });
  const head = el("tr", {}, el("th", { scope: "col" }, all, el("span", { class: "unseen" }, t("review.show"))),
    ...["structure", "value", "state"].map((name) => el("th", { scope: "col" }, t(`review.${name}`))));
  return el("table", { class: "structures" }, el("caption", {}, t("review.findings")), el("thead", {}, head),
    el("tbody", {}, result.labels.map((label, i) => row(label, measured.get(label.id), boxes[i]))));
}

function row(label, found, box) {
  const swatch = el("span", { class: "swatch", style: `background: rgb(${label.color.join(",")})`, "aria-hidden": "true" });
  const ml = found?.ml === null || found === undefined ? t("report.not_assessed") : found.ml.toFixed(2);
  return el("tr", {}, el("td", {}, box), el("th", { scope: "row" }, swatch, label.name), el("td", { class: "number" }, ml), el("td", {}, found?.status ?? ""));
}

function comparison(app) {
  const has = (name) => app.result.views.includes(`view/${name}.nii`);
  const split = el("input", { type: "range", min: 0, max: 1, step: 0.01, value: app.viewer.split, id: "ms-split",
    oninput: (event) => app.viewer.setSplit(Number(event.target.value)) });
  const over = (name, show) => el("label", { class: "inline" }, el("input", { type: "radio", name: "over", value: name, checked: name === "compare",
    onchange: () => app.trying(() => show()) }), t(`review.${name}`));
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
  const names = ["overlay.png", "labels.png", "restored.png", "residual.png", "regions.png"].filter((name) => app.result.files.includes(name));
  const shown = (name) => el("label", { class: "inline" }, el("input", { type: "radio", name: "over", checked: name === names[0],
    onchange: () => app.showPicture(name) }), name ? t(`review.${name.replace(".png", "").replace("regions", "region_map")}`) : t("review.original"));
  return [el("fieldset", {}, el("legend", {}, t("review.image")), [...names, ""].map(shown))];
}

/** The figures of a result without structures, as a table of words and numbers. */
function figures(result) {
  const numbers = Object.entries(result.statistics ?? {}).filter(([, value]) => typeof value === "number");
  const measured = (result.statistics?.figures ?? []).map((one) => [`${one.label ?? ""} ${one.name}`, one.value, one.unit]);
  const rows = [...measured, ...numbers.map(([name, value]) => [name.replaceAll("_", " "), value, ""])];
  return el("table", { class: "structures" }, el("caption", {}, t("review.findings")), el("tbody", {}, rows.map(([name, value, unit]) =>
    el("tr", {}, el("th", { scope: "row" }, name), el("td", { class: "number" }, Number(value?.toPrecision?.(4) ?? value)), el("td", {}, unit)))));
}
