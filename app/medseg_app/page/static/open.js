// Open: drop files, a folder or a zip, or search an archive; what comes is looked at.

import * as api from "./api.js";
import { button, el, say, t, title } from "./dom.js";
import { searchPart } from "./search.js";

export async function openScreen(app) {
  const files = input(app, {});
  const folder = input(app, { webkitdirectory: true });
  const drop = el("div", { class: "drop" },
    el("p", {}, t("open.drop")),
    button(t("open.files"), () => files.click(), { class: "main" }), files,
    button(t("open.folder"), () => folder.click()), folder);
  for (const name of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragover");
      if (name === "drop") dropped(event.dataTransfer).then((found) => bring(app, found));
    });
  }
  return [title(t("open.title")), drop, searchPart(app), el("p", {}, t("open.kinds")), el("p", {}, t("open.private", app.me.keep_hours))];
}

function input(app, attributes) {
  const label = t(attributes.webkitdirectory ? "open.folder" : "open.files");
  return el("input", {
    type: "file", multiple: true, class: "hidden", tabindex: "-1", "aria-label": label, ...attributes,
    onchange: (event) => bring(app, [...event.target.files]),
  });
}

/** Every file that was dropped, those in folders too. */
async function dropped(data) {
  const entries = [...data.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...data.files];
  return (await Promise.all(entries.map(inside))).flat();
}

async function inside(entry) {
  if (entry.isFile) return new Promise((resolve, reject) => entry.file((file) => resolve([file]), reject));
  const reader = entry.createReader(), found = [];
  for (;;) { // a folder tells a hundred entries at a time
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return (await Promise.all(found.map(inside))).flat();
    found.push(...some);
  }
}

async function bring(app, files) {
  const wanted = files.filter((file) => !file.name.startsWith("."));
  if (!wanted.length) return;
  await app.trying(async () => {
    const upload = await api.upload(wanted, (number, total, share) =>
      app.wait(t("open.sending", number, total, Math.round(100 * share))));
    await look(app, upload.id, {});
  }, () => app.go("open"));
}

/** Have an upload looked at, then show what was found. */
export async function look(app, upload, wish) {
  app.wait(t("open.checking"));
  const begun = await api.check(upload, wish);
  const ended = await api.follow(begun.id, (now) => {
    if (now.place) app.wait(t("open.waiting", now.place));
  });
  app.use({ upload, wish, check: begun.id, run: null });
  if (ended.state !== "done") {
    app.refused = ended.reason;
    say(ended.reason);
  }
  await app.go("check");
}
