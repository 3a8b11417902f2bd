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
    app.result.files.includes("preview.png") ? el("img", { src: fileAddress(app.run, "preview.png"), alt: t("report.preview"), class: "sheet" }) : null,
    made(app.result.manifest),
    el("h3", {}, t("report.files")),
    el("ul", { class: "files" }, app.result.files.map((name) => el("li", {}, el("a", { href: fileAddress(app.run, name), download: name.split("/").pop() }, name)))),
  ];
}

/** Which model made it, when, with which software. */
function made({ model, created, versions }) {
  const rows = [
    ["model", `${model.name}, ${t("report.weights")} ${model.weights_sha256.slice(0, 12)}`], ["made", new Date(created).toLocaleString()],
    ["versions", Object.entries(versions).map((pair) => pair.join(" ")).join(", ")],
  ];
  return el("table", { class: "structures" }, el("caption", {}, t("report.origin")), el("tbody", {}, rows.map(([name, text]) =>
    el("tr", {}, el("th", { scope: "row" }, t(`report.${name}`)), el("td", {}, text)))));
}
