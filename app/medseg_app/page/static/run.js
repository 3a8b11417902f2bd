// Run: the stage in words, the part it is at, how long it will take, and a way to stop it.

import * as api from "./api.js";
import { button, duration, el, say, t, title } from "./dom.js";

export async function runScreen(app) {
  if (!app.run) return [title(t("run.title")), el("p", {}, t("run.none"))];
  const text = el("p", { class: "stage-text" });
  const bar = el("progress", { max: 1, "aria-label": t("run.title") });
  const stop = button(t("run.cancel"), () => app.trying(async () => {
    stop.disabled = true;
    show(await api.cancel(app.run), text, bar);
  }, () => app.go("run")), { id: "ms-cancel" });
  watch(app, text, bar, stop);
  return [title(t("run.title")), text, bar, stop];
}

async function watch(app, text, bar, stop) {
  const id = app.run;
  let stage = "";
  const tell = (now) => {
    show(now, text, bar);
    if (now.stage !== stage) say(text.textContent); // a screen reader hears the stages, not every part
    stage = now.stage;
  };
  try {
    const ended = await api.follow(id, tell, () => app.run === id && app.screen === "run");
    if (!ended) return;
    stop.hidden = true;
    if (ended.state === "done") await app.go("review");
  } catch (error) {
    text.textContent = t("page.failed", error.message);
  }
}

function show(now, text, bar) {
  if (now.state === "running") {
    const parts = [t(`run.${now.stage || "starting"}`)];
    if (now.done && now.total > 1) parts.push(t("run.tile", now.done, now.total));
    if (now.seconds_left) parts.push(t("run.left", duration(now.seconds_left)));
    text.textContent = parts.join(", ");
  } else {
    text.textContent = t(`run.${now.state}`, now.state === "queued" ? now.place ?? 1 : now.reason);
  }
  if (now.state === "running" && now.total > 1) bar.value = now.done / now.total;
  else if (now.ended !== null) bar.value = now.state === "done" ? 1 : 0;
  else bar.removeAttribute("value");
}
