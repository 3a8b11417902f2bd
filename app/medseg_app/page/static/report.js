// Report: everything to take home.

import { archiveAddress, fileAddress, reportAddress } from "./api.js";
import { el, t, title } from "./dom.js";

export async function reportScreen(app) {
  if (!app.result) return [title(t("report.title")), el("p", {}, t("report.none"))];
  const link = (href, text, attributes = {}) => el("a", { href, class: "button", ...attributes }, text);
  return [
    title(t("report.title")),
    el("p", {}, link(reportAddress(app.run), t("report.open"), { target: "_blank", rel: "noopener" })),
    el("p", {}, link(archiveAddress(app.run), t("report.archive"), { download: "" })),
    el("h3", {}, t("report.files")),
    el("ul", { class: "files" }, app.result.files.map((name) => el("li", {}, el("a", { href: fileAddress(app.run, name), download: name.split("/").pop() }, name)))),
  ];
}
