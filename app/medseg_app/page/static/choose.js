// Choose: the models as cards, those that fit first; one that was not made for the image asks a second time.

import * as api from "./api.js";
import { button, duration, el, labelled, options, t, title } from "./dom.js";

const OBJECTS = ["seg", "rtstruct", "sr", "sc"]; // of label maps
const FORMATS = { segmentation: OBJECTS, prompting: OBJECTS, "support-segmentation": OBJECTS, restoration: ["dicom", "sc"] };

export async function chooseScreen(app) {
  const [models, sets] = await Promise.all([api.models(), api.supportSets()]);
  const times = new Map(models.map((model) => [model.name, model.seconds]));
  const ready = sets.filter((set) => set.state === "done");
  return [title(t("choose.title")), el("ul", { class: "cards" }, app.found.models.map((model) => card(app, model, times.get(model.name), ready)))];
}

function card(app, model, seconds, sets) {
  const wish = { formats: new Set() };
  const usable = model.fits !== "no";
  const go = (confirmed) => (model.task === "prompting" ? app.trying(() => app.mark(model, confirmed ? { confirmed } : undefined, [...wish.formats])) : begin(app, model, wish, confirmed));
  const run = () => (model.fits === "outside" ? confirm(app, model, () => go(true)) : go(false));
  return el("li", { class: `card ${model.fits}`, "data-model": model.name },
    el("h3", {}, model.title),
    el("p", { class: "fit" }, [t(`choose.${model.fits}`), model.reasons.join("; ")].filter(Boolean).join(": ")),
    el("p", {}, model.summary),
    model.trained ? null : el("p", { class: "banner" }, t("choose.untrained")),
    el("p", { class: "small" }, [
      t("choose.for", model.modalities.join("/"), model.anatomy), t("choose.licence", model.licence),
      seconds ? t("choose.time", duration(seconds)) : t("choose.no_time"),
    ].join(". "), "."),
    usable && app.found.dicom && FORMATS[model.task] ? dicom(model, wish.formats) : null,
    usable ? start(app, model, wish, sets, run) : null);
}

/** What begins the work: at once, after marks were set, or with examples. */
function start(app, model, wish, sets, run) {
  if (model.task === "prompting") return button(t("choose.mark"), run, { class: "main" });
  const begins = button(t("choose.run", model.name), run, { class: "main" });
  if (model.task !== "support-segmentation") return begins;
  const make = button(t("choose.examples"), () => app.go("examples"));
  if (!sets.length) return el("p", {}, t("choose.no_examples"), " ", make);
  wish.support = sets[0].id;
  const choice = options(sets.map((set) => [set.id, `${set.name}: ${set.card.labels.map((label) => label.name).join(", ")}`]), wish.support, (id) => { wish.support = id; });
  return el("div", {}, labelled(t("choose.support"), choice), el("p", {}, begins, " ", make));
}

function dicom(model, formats) {
  const box = (name) => el("label", { class: "inline" },
    el("input", { type: "checkbox", onchange: (event) => (event.target.checked ? formats.add(name) : formats.delete(name)) }), name.toUpperCase());
  return el("p", {}, t("choose.dicom", ""), FORMATS[model.task].map(box));
}

function confirm(app, model, then) {
  app.ask(t("choose.confirm_title", model.title), [
    el("ul", {}, model.reasons.map((reason) => el("li", {}, reason))), el("p", {}, t("choose.confirm")),
  ], t("choose.confirm_run"), t("choose.back"), then);
}

function begin(app, model, { formats, support }, confirmed) {
  return app.trying(async () => {
    const job = await api.run({ ...app.wish, upload: app.upload, model: model.name, confirmed, formats: [...formats], support });
    app.use({ run: job.id });
    await app.go("run");
  }, () => app.go("choose"));
}
