// History: your own work, opened again or deleted with all that came of it.

import * as api from "./api.js";
import { button, el, t, title } from "./dom.js";

export async function historyScreen(app) {
  const uploads = await api.uploads();
  const jobs = await Promise.all(uploads.map((upload) => api.jobsOf(upload.id)));
  if (!uploads.length) return [title(t("history.title")), el("p", {}, t("history.empty"))];
  const columns = ["name", "brought", "results", "removed"].map((name) => el("th", { scope: "col" }, t(`history.${name}`)));
  return [title(t("history.title")), el("p", {}, t("history.hint")), el("table", { class: "history" },
    el("thead", {}, el("tr", {}, columns, el("td", {}))),
    el("tbody", {}, uploads.map((upload, i) => row(app, upload, jobs[i], uploads.length - i))))];
}

/** A file name may name the patient: it is shown only when it is asked for. */
function row(app, upload, jobs, number) {
  const name = el("span", {}, t("history.hidden", number));
  const show = button(t("history.show_name"), () => { name.textContent = upload.name; show.remove(); }, { class: "quiet" });
  const at = (seconds) => new Date(1000 * seconds).toLocaleString();
  const looked = jobs.find((job) => job.kind === "check" && job.state === "done");
  const runs = jobs.filter((job) => !["check", "support"].includes(job.kind));
  const examples = jobs.some((job) => job.kind === "support");
  const open = (run) => app.trying(async () => {
    app.use({ upload: upload.id, wish: looked.request, check: looked.id, run: run?.id ?? null });
    await app.go(!run ? "check" : run.ended === null ? "run" : "review");
  });
  const remove = () => app.ask(t("history.sure"), [], t("history.confirm"), t("history.keep"), () => app.trying(async () => {
    await api.removeUpload(upload.id);
    if (app.upload === upload.id) app.use({ upload: null, check: null, run: null });
    await app.go("history");
  }));
  return el("tr", {}, el("th", { scope: "row" }, name, " ", show), el("td", {}, at(upload.created)),
    el("td", {}, runs.map((job) => {
      const text = `${job.kind === "correct" ? t("history.corrected", job.request.model) : job.request.model}: ${job.state}`;
      return el("div", {}, looked && (job.state === "done" || job.ended === null) ? button(text, () => open(job), { class: "quiet" }) : text);
    })),
    el("td", {}, at(upload.removed_after)),
    el("td", {}, examples ? button(t("history.examples"), () => app.go("examples")) : looked ? button(t("history.open"), () => open(null)) : null, " ", button(t("history.delete"), remove)));
}
