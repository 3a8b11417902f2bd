// Examples: support sets of one's own, made of cases that were brought or corrected here.

import * as api from "./api.js";
import { button, el, labelled, say, t, title } from "./dom.js";

const FEWEST = 3;

export async function examplesScreen(app) {
  const sets = await api.supportSets();
  return [
    title(t("examples.title")), el("p", {}, t("examples.hint")),
    sets.length ? el("ul", { class: "cards" }, sets.map((one) => card(app, one))) : el("p", {}, t("examples.none")),
    ...form(app),
  ];
}

function card(app, set) {
  const remove = () => app.ask(t("examples.sure", set.name), [], t("history.confirm"), t("history.keep"), () => app.trying(async () => {
    await api.removeSupportSet(set.id);
    await app.go("examples");
  }));
  return el("li", { class: "card", "data-set": set.name }, el("h3", {}, set.name),
    set.card ? known(set) : el("p", { class: "finding error" }, t(`run.${set.state}`, set.reason)),
    el("p", { class: "small" }, t("examples.removed", new Date(1000 * set.removed_after).toLocaleString())),
    button(t("examples.remove", set.name), remove));
}

function known({ id, name, card: told }) {
  const what = [told.labels.map((label) => label.name).join(", "), t("examples.size", told.cases, told.slices), told.modality].filter(Boolean);
  return el("div", {}, el("p", {}, what.join("; ")), el("details", {}, el("summary", {}, t("examples.sheet")),
    el("img", { class: "sheet", loading: "lazy", src: api.fileAddress(id, "sheet.png"), alt: t("examples.sheet_of", name, told.cases) })));
}

function form(app) {
  const image = el("input", { type: "file" }), labels = el("input", { type: "file" });
  const name = el("input", { type: "text", maxlength: 64, pattern: "[A-Za-z0-9][A-Za-z0-9._\\-]*", id: "ms-set-name" });
  const names = el("input", { type: "text", placeholder: "17=hippocampus, 18=amygdala" });
  const modality = el("input", { type: "text", maxlength: 16, placeholder: "MR" });
  const make = button(t("examples.make"), () => app.trying(() => begin(app, { name: name.value.trim(), names: meanings(names.value), modality: modality.value.trim() || null }), () => app.go("examples")),
    { class: "main", id: "ms-set-make", disabled: app.basket.length < FEWEST });
  const add = button(t("examples.add"), () => {
    if (!image.files.length || !labels.files.length) return say(t("examples.both"));
    app.basket.push({ image: image.files[0], labels: labels.files[0] });
    return app.go("examples");
  });
  return [
    el("h3", {}, t("examples.new")), cases(app),
    el("fieldset", {}, el("legend", {}, t("examples.files")), labelled(t("examples.image"), image), labelled(t("examples.labels"), labels), add),
    labelled(t("examples.name"), name), labelled(t("examples.names"), names), labelled(t("examples.modality"), modality), make,
  ];
}

function cases(app) {
  if (!app.basket.length) return el("p", {}, t("examples.empty", FEWEST));
  const text = (one) => (one.job ? t("examples.result", one.model) : t("examples.pair"));
  const remove = (i) => { app.basket.splice(i, 1); return app.go("examples"); };
  return el("ol", { class: "basket" }, app.basket.map((one, i) => el("li", {}, t("examples.case", i + 1), ": ", text(one), " ",
    button(t("mark.remove"), () => remove(i), { class: "quiet", "aria-label": t("examples.remove_case", i + 1) }))));
}

/** "17=hippocampus, 18=amygdala" as a table; empty for all structures. */
function meanings(text) {
  const found = {};
  for (const entry of text.split(",").map((part) => part.trim()).filter(Boolean)) {
    const [, number, meaning] = entry.match(/^(\d+)\s*=\s*(.+)$/) ?? [];
    if (!number) throw new Error(t("examples.wrong_names", entry));
    found[number] = meaning;
  }
  return found;
}

async function begin(app, wish) {
  const given = [];
  for (const [i, one] of app.basket.entries()) {
    if (!one.job && !one.sent) {
      const send = (file) => api.upload([file], () => app.wait(t("open.sending", i + 1, app.basket.length, 0)));
      one.sent = { upload: (await send(one.image)).id, labels: (await send(one.labels)).id };
    }
    given.push(one.job ? { job: one.job } : one.sent);
  }
  app.wait(t("examples.making"));
  const job = await api.makeSupportSet({ ...wish, cases: given });
  const ended = await api.follow(job.id, () => null);
  if (ended.state !== "done") {
    await api.removeSupportSet(job.id);
    throw new Error(ended.reason);
  }
  const sent = app.basket.filter((one) => one.sent).flatMap((one) => [one.sent.upload, one.sent.labels]);
  await Promise.all(sent.map(api.removeUpload)); // the set holds what it needs of them
  app.basket = [];
  await app.go("examples");
  say(t("examples.made", wish.name));
}
