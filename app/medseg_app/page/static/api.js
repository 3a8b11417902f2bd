// The REST interface of this server, and nothing else on any network.

const BASE = "/api/v1";

async function call(method, path, body, headers = {}) {
  const answer = await fetch(BASE + path, { method, body, headers });
  if (answer.status === 401) location.assign("/login");
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    throw new Error(told.error ?? `${answer.status}`);
  }
  return answer.status === 204 ? null : answer.json();
}

const send = (method, path, content) =>
  call(method, path, JSON.stringify(content), { "Content-Type": "application/json" });

export const fileAddress = (job, name) => `${BASE}/jobs/${job}/files/${name}`;
export const reportAddress = (job) => `${BASE}/jobs/${job}/report`;
export const archiveAddress = (job) => `${BASE}/jobs/${job}/archive`;

export const me = () => call("GET", "/me");
export const models = () => call("GET", "/models");
export const uploads = () => call("GET", "/uploads");
export const jobsOf = (upload) => call("GET", `/uploads/${upload}/jobs`);
export const removeUpload = (upload) => call("DELETE", `/uploads/${upload}`);
export const check = (upload, wish) => send("POST", `/uploads/${upload}/check`, wish);
export const run = (wish) => send("POST", "/jobs", wish);
export const job = (id) => call("GET", `/jobs/${id}`);
export const cancel = (id) => call("POST", `/jobs/${id}/cancel`);
export const result = (id) => call("GET", `/jobs/${id}/result`);
export const sendings = (id) => call("GET", `/jobs/${id}/sendings`);
export const sendQuestion = (id, destination) => call("GET", `/jobs/${id}/sendings/${destination}`);
export const sendTo = (id, destination) => send("POST", `/jobs/${id}/sendings`, { destination, confirmed: true });
export const review = (id, rejected, comment) => send("POST", `/jobs/${id}/review`, { rejected, comment });
export const search = (wish) => send("POST", "/archive-searches", wish);
export const retrieve = (wish) => send("POST", "/archive-retrievals", wish);
export const retrieval = (upload) => call("GET", `/archive-retrievals/${upload}`);
export const supportSets = () => call("GET", "/support-sets");
export const makeSupportSet = (wish) => send("POST", "/support-sets", wish);
export const removeSupportSet = (id) => call("DELETE", `/support-sets/${id}`);
export const correct = (id, bytes) =>
  call("POST", `/jobs/${id}/corrections`, bytes, { "Content-Type": "application/octet-stream" });

/** Send files as one upload; `progress(number, total, share)` hears of it. */
export async function upload(files, progress) {
  const name = (files[0].webkitRelativePath || files[0].name).split("/")[0];
  const made = await send("POST", "/uploads", { name: name.slice(0, 255) });
  try {
    for (const [i, file] of files.entries()) {
      await sendFile(made.id, file, (share) => progress(i + 1, files.length, share));
    }
  } catch (error) {
    await removeUpload(made.id).catch(() => null);
    throw error;
  }
  return made;
}

/** One file; fetch tells nothing of what it has sent, so the older way is taken. */
function sendFile(upload, file, progress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PUT", `${BASE}/uploads/${upload}/files`);
    request.setRequestHeader("X-File-Name", encodeURIComponent(file.name));
    request.upload.onprogress = (event) => progress(event.loaded / Math.max(1, event.total));
    request.onerror = () => reject(new Error("the connection broke"));
    request.onload = () => {
      if (request.status < 300) return resolve();
      let told = {};
      try { told = JSON.parse(request.responseText); } catch { /* no JSON, then the number has to do */ }
      return reject(new Error(told.error ?? `${request.status}`));
    };
    request.send(file);
  });
}

/** Ask for a job, or what `ask` asks for, again and again until it has ended; `tell` hears of every answer. */
export async function follow(id, tell, wanted = () => true, ask = job) {
  for (let pause = 50; wanted(); pause = Math.min(2 * pause, 400)) { // ms; a look ends soon, a long run need not be asked often
    const now = await ask(id);
    tell(now);
    if (now.ended !== null) return now;
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
  return null;
}
