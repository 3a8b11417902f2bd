// Searching an archive: only where the operator allows it. Whom the images are of is told only when that is asked for.

import * as api from "./api.js";
import { button, el, labelled, options, t } from "./dom.js";
import { look } from "./open.js";

/** What stands under the place to drop files; null where no archive may be searched. */
export function searchPart(app) {
  const archives = app.me.searches;
  if (!archives.length) return null;
  const field = (type, most) => el("input", { type, maxlength: most, autocomplete: "off" });
  const patient = field("text", 64), accession = field("text", 16), date = field("date");
  const list = el("div", { "aria-live": "polite" });
  let archive = archives[0];
  const find = (shown) => app.trying(async () => {
    const wish = { archive, patient_id: patient.value, accession: accession.value, date: date.value || null, show_patient: shown };
    list.replaceChildren(el("p", {}, t("search.searching")));
    try {
      list.replaceChildren(...answer(app, archive, await api.search(wish), shown ? null : () => find(true)));
    } catch (error) {
      list.replaceChildren();
      throw error;
    }
  });
  const send = (event) => { event.preventDefault(); find(false); };
  return el("section", { class: "search" }, el("h3", {}, t("search.title")),
    el("form", { class: "row", onsubmit: send },
      archives.length > 1 ? labelled(t("search.archive"), options(archives.map((name) => [name, name]), archive, (name) => { archive = name; })) : null,
      labelled(t("search.patient_id"), patient), labelled(t("search.accession"), accession), labelled(t("search.date"), date),
      el("button", { type: "submit" }, t("search.find"))),
    list);
}

function answer(app, archive, { matches, more }, showPatients) {
  if (!matches.length) return [el("p", {}, t("search.none"))];
  const names = ["date", "modality", "description", "images", ...(showPatients ? [] : ["patient"])];
  const row = (one) => el("tr", {}, names.map((name) => el("td", {}, `${(name === "date" ? day(one.date) : one[name]) ?? ""}`)),
    el("td", {}, button(t("search.open"), () => bring(app, archive, one), { "aria-label": t("search.open_one", one.modality, one.description) })));
  return [
    el("table", {}, el("thead", {}, el("tr", {}, names.map((name) => el("th", { scope: "col" }, t(`search.${name}`))), el("td", {}))),
      el("tbody", {}, matches.map(row))),
    more ? el("p", {}, t("search.more")) : null,
    showPatients ? button(t("search.show_patients"), showPatients) : null,
  ].filter(Boolean);
}

const day = (text) => text.replace(/^(\d{4})(\d\d)(\d\d)$/, "$1-$2-$3");

async function bring(app, archive, { study, series }) {
  await app.trying(async () => {
    app.wait(t("search.fetching"));
    const begun = await api.retrieve({ archive, study, series });
    const ended = await api.follow(begun.upload, (now) => {
      if (now.total) app.wait(t("search.fetched", now.done, now.total));
    }, undefined, api.retrieval);
    if (ended.state !== "done") throw new Error(ended.reason);
    await look(app, begun.upload, {});
  }, () => app.go("open"));
}
