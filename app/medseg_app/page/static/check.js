// Check: what the image is and what is wrong with it, in words, with a sign and a colour.

import * as api from "./api.js";
import { button, el, labelled, t, title } from "./dom.js";
import { look } from "./open.js";

const SIGNS = { good: "✓", note: "i", warning: "!", error: "✕" };

export async function checkScreen(app) {
  if (app.refused) return refusedScreen(app);
  const found = app.found;
  if (found.kind === "series") return [title(t("check.several")), seriesList(app, found.series)];
  const findings = found.findings.map((one) => line(one.grade, one.text));
  return [
    title(t("check.title")),
    thumbnail(app, found.thumbnail, t("check.thumbnail")),
    el("ul", { class: "findings" }, facts(found).map((text) => line("good", text)),
      findings.length ? findings : line("good", t("check.fine"))),
    found.series.length > 1 ? el("details", {}, el("summary", {}, t("check.several")), seriesList(app, found.series)) : null,
    button(t("check.next"), () => app.go("choose"), { class: "main" }),
  ];
}

function refusedScreen(app) {
  const again = (wish) => app.trying(() => look(app, app.upload, { ...app.wish, ...wish }), () => app.go("open"));
  const parts = [title(t("check.title")), el("ul", { class: "findings" }, line("error", app.refused.replace("--correct-geometry", `“${t("check.straighten")}”`)))];
  if (/correct-geometry/.test(app.refused)) {
    parts.push(button(t("check.straighten"), () => again({ correct_geometry: true }), { class: "main" }));
  }
  if (/time.point/.test(app.refused)) {
    const number = el("input", { type: "number", min: 0, value: 0 });
    parts.push(labelled(t("check.time_point"), number), button(t("check.again"), () => again({ time_point: Number(number.value) }), { class: "main" }));
  }
  return parts;
}

function facts({ kind, facts: known }) {
  const joined = (list) => list.map((n) => Number(n.toFixed(2))).join(" × ");
  if (kind === "picture") return [known.format, t("check.pixels", joined(known.shape))].filter(Boolean);
  return [
    known.format,
    t("check.size", joined(known.shape), joined(known.spacing_mm), joined(known.covers_mm)),
    t("check.orientation", known.orientation, known.orientation.split("").map((letter) => t(`sides.${letter}`)).join(", ")),
    t("check.modality", known.modality),
  ];
}

function line(grade, text) {
  return el("li", { class: `finding ${grade}` },
    el("span", { class: "sign", "aria-hidden": "true" }, SIGNS[grade]), el("strong", {}, t(`check.${grade}`)), el("span", {}, text));
}

function seriesList(app, series) {
  return el("ul", { class: "cards" }, series.map((one) => {
    const times = (list) => (list ?? []).map((n) => Number(n.toFixed(2))).join(" × ");
    const size = one.spacing ? t("check.voxels", times(one.shape), times(one.spacing)) : times(one.shape);
    const text = t("check.series", one.number, one.modality, one.images, size);
    const choose = () => app.trying(() => look(app, app.upload, { ...app.wish, series: String(one.number) }), () => app.go("open"));
    const picture = thumbnail(app, one.thumbnail, t("check.series_thumbnail", one.number, one.modality));
    return el("li", { class: "row" }, picture,
      el("div", {}, button(text, choose), one.problems.map((problem) => el("p", { class: "finding warning" }, problem.text))));
  }));
}

/** A small picture that the look has made, where it could. */
function thumbnail(app, name, alt) {
  return name ? el("img", { src: api.fileAddress(app.check, name), alt, class: "thumbnail" }) : null;
}
