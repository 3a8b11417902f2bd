// Correct: paint structures in or out; what comes of it is a label map of its own.

import * as api from "./api.js";
import { button, el, labelled, options, say, t, title } from "./dom.js";

export async function correctScreen(app) {
  const { viewer, result } = app;
  if (app.found.findings.some((one) => /shown with every/.test(one.text))) return [title(t("correct.title")), el("p", {}, t("correct.reduced"))];
  let painting = false;
  const size = el("input", { type: "number", min: 1, max: 30, value: 3, onchange: () => pen() });
  const fill = el("input", { type: "checkbox", onchange: () => pen() });
  const label = options([[0, t("correct.erase")], ...result.labels.map((one) => [one.id, one.name])], result.labels[0].id, () => pen(), { id: "ms-label" });
  const pen = () => painting && viewer.setPen(Number(label.value), Number(size.value), fill.checked);
  const paint = button(t("correct.paint"), () => {
    painting = !painting;
    paint.textContent = t(painting ? "correct.stop" : "correct.paint");
    paint.setAttribute("aria-pressed", painting);
    if (painting) pen();
    else viewer.liftPen();
  }, { class: "main", "aria-pressed": "false", id: "ms-paint" });
  const dab = button(t("correct.dab"), () => { viewer.dab(Number(label.value), Number(size.value)); say(t("correct.dabbed")); }, { id: "ms-dab" });
  const lock = (one) => el("label", { class: "inline" }, el("input", { type: "checkbox", value: one.id,
    onchange: (event) => (event.target.checked ? viewer.locked.add(one.id) : viewer.locked.delete(one.id)) }), one.name);
  const save = button(t("correct.save"), () => app.trying(() => keep(app), () => app.go("review")), { id: "ms-save" });
  app.step = (direction) => viewer.step(direction);
  await viewer.beginDrawing(api.fileAddress(app.run, "view/main.nii"), () => say(t("correct.paint")));
  return [
    title(t("correct.title")), el("p", {}, t("correct.hint")),
    labelled(t("correct.label"), label), labelled(t("correct.size"), size),
    el("label", { class: "inline" }, fill, t("correct.fill")),
    el("details", { id: "ms-locks" }, el("summary", {}, t("correct.lock")), result.labels.map(lock)),
    app.found.dicom ? el("p", { class: "small" }, t("correct.dicom")) : null,
    el("p", {}, paint, " ", button(t("correct.undo"), () => app.step(-1)), " ", button(t("correct.redo"), () => app.step(1)), " ", dab),
    save,
  ];
}

async function keep(app) {
  const bytes = await app.viewer.drawing();
  await corrected(app, () => api.correct(app.run, bytes));
  say(t("correct.saved", app.result.manifest.correction.changed_voxels));
}

/** Wait for a corrected label map and review it. */
export async function corrected(app, begin) {
  app.wait(t("run.correcting"));
  const job = await begin();
  const ended = await api.follow(job.id, () => null);
  if (ended.state !== "done") throw new Error(ended.reason);
  app.use({ run: job.id });
  await app.go("review");
}
