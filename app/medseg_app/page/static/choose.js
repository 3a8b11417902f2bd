// Choose: the models as cards, those that fit first; one that was not made for the image asks a second time.

import * as api from "./api.js";
import { button, duration, el, t, title } from "./dom.js";

const FORMATS = { segmentation: ["seg", "rtstruct", "sr", "sc"], restoration: ["dicom", "sc"], "super-resolution": [] };

export async function chooseScreen(app) {
  const times = new Map((await api.models()).map((model) => [model.name, model.seconds]));
  return [title(t("choose.title")), el("ul", { class: "cards" }, app.found.models.map((model) => card(app, model, times.get(model.name))))];
}

function card(app, model, seconds) {
  const formats = new Set();
  const usable = model.fits !== "no";
  const run = () => (model.fits === "outside" ? confirm(app, model, formats) : begin(app, model, formats, false));
  return el("li", { class: `card ${model.fits}`, "data-model": model.name },
    el("h3", {}, model.title),
    el("p", { class: "fit" }, [t(`choose.${model.fits}`), ...model.reasons].join(": ")),
    el("p", {}, model.summary),
    model.trained ? null : el("p", { class: "banner" }, t("choose.untrained")),
    el("p", { class: "small" }, [
      t("choose.for", model.modalities.join("/"), model.anatomy), t("choose.licence", model.licence),
      seconds ? t("choose.time", duration(seconds)) : t("choose.no_time"),
    ].join(". "), "."),
    usable && app.found.dicom ? dicom(model, formats) : null,
    usable ? button(t("choose.run", model.name), run, { class: "main" }) : null);
}

function dicom(model, formats) {
  const box = (name) => el("label", { class: "inline" },
    el("input", { type: "checkbox", onchange: (event) => (event.target.checked ? formats.add(name) : formats.delete(name)) }), name.toUpperCase());
  return el("p", {}, t("choose.dicom", ""), (FORMATS[model.task] ?? []).map(box));
}

function confirm(app, model, formats) {
  app.ask(t("choose.confirm_title", model.title), [
    el("ul", {}, model.reasons.map((reason) => el("li", {}, reason))), el("p", {}, t("choose.confirm")),
  ], t("choose.confirm_run"), t("choose.back"), () => begin(app, model, formats, true));
}

function begin(app, model, formats, confirmed) {
  return app.trying(async () => {
    const job = await api.run({ ...app.wish, upload: app.upload, model: model.name, confirmed, formats: [...formats] });
    app.use({ run: job.id });
    await app.go("run");
  }, () => app.go("choose"));
}
