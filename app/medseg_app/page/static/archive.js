// Sending to an archive: only where the operator named one, and never before somebody has seen patient and destination.

import * as api from "./api.js";
import { button, el, t } from "./dom.js";

const LOOK_EVERY = 500; // ms

/** What stands under a result; null where this server knows no archive. */
export async function archivePart(app) {
  const told = await api.sendings(app.run);
  const names = Object.keys(told.destinations);
  if (!names.length) return null;
  const list = el("ul", { "aria-live": "polite" });
  const choices = told.obstacle
    ? el("p", { class: "small" }, told.obstacle)
    : el("p", {}, names.map((name) => button(t("archive.send", name), () => app.trying(() => question(app, name, list)))));
  show(list, told.sendings);
  if (told.sendings.some((one) => one.state === "sending")) setTimeout(() => app.trying(() => follow(app, list)), LOOK_EVERY);
  return el("section", { class: "archive" }, el("h3", {}, t("archive.title")), choices, list);
}

async function question(app, name, list) {
  const asked = await api.sendQuestion(app.run, name);
  const objects = Object.entries(asked.objects).map(([kind, number]) => `${number} ${kind}`).join(", ");
  app.ask(t("archive.confirm_title", name), [
    el("p", {}, t("archive.patient", asked.patient)), el("p", {}, t("archive.objects", objects)),
    el("p", {}, t("archive.at", asked.at)), el("p", {}, t("archive.confirm")),
  ], t("archive.yes"), t("archive.no"), () => app.trying(async () => {
    await api.sendTo(app.run, name);
    await follow(app, list);
  }));
}

/** Tell how the sendings go until all have ended, or another screen is open. */
async function follow(app, list) {
  while (list.isConnected) {
    const { sendings } = await api.sendings(app.run);
    show(list, sendings);
    if (!sendings.some((one) => one.state === "sending")) return;
    await new Promise((resolve) => setTimeout(resolve, LOOK_EVERY));
  }
}

function show(list, sendings) {
  list.replaceChildren(...sendings.map((one) => el("li", { "data-state": one.state },
    [t(`archive.${one.state}`, one.stored, one.files, one.destination), ...one.reasons].join(" "))));
}
