// Everything that is asked lives in these variables and in the page: nothing is stored.
"use strict";

const at = (id) => document.getElementById(id);
let token = new URLSearchParams(location.hash.slice(1)).get("token") || "";
let picture = null; // {name, url: a data URL}
let previewUrl = "";
let drops = 0; // pictures dropped or cleared: a preview of an earlier one comes too late
let clears = 0; // likewise of answers

// Out of the address bar, and of the browser's history.
if (location.hash) history.replaceState(null, "", location.pathname);

async function call(path, options = {}) {
  const headers = { ...(options.headers || {}), authorization: `Bearer ${token}` };
  const response = await fetch(path, { ...options, headers, cache: "no-store" });
  if (response.ok) return response;
  if (response.status === 401) at("access").hidden = false;
  let said = `The server said ${response.status}.`;
  try { said = (await response.json()).error.message; } catch (error) { /* no JSON */ }
  throw new Error(said);
}

function problem(text) { at("problem").textContent = text; }

function make(tag, text, name) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

async function start() {
  try {
    const models = (await (await call("/v1/models")).json()).data;
    at("model").replaceChildren(...models.map((one) => {
      const option = make("option", one.id === "fedmslora/router" ? "the stage that the picture is like" : `stage ${one.id}`);
      option.value = one.id;
      return option;
    }));
    at("access").hidden = true;
    problem("");
    ready();
  } catch (error) { problem(error.message); }
}

function ready() {
  at("send").disabled = !picture || !at("model").value || !at("question").value.trim();
}

function isDicom(file, head) {
  return /\.dcm$/i.test(file.name) || file.type === "application/dicom"
    || String.fromCharCode(...head.slice(128, 132)) === "DICM";
}

function base64(bytes) {
  const parts = [];
  for (let start = 0; start < bytes.length; start += 32768) {
    parts.push(String.fromCharCode(...bytes.subarray(start, start + 32768)));
  }
  return btoa(parts.join(""));
}

async function take(file) {
  forgetPicture();
  problem("");
  ready();
  const drop = drops;
  try {
    const bytes = new Uint8Array(await file.arrayBuffer());
    const type = isDicom(file, bytes) ? "application/dicom" : "application/octet-stream";
    const shown = await call("/v1/preview", { method: "POST", body: bytes, headers: { "content-type": type } });
    const preview = await shown.blob();
    if (drop !== drops) return;
    previewUrl = URL.createObjectURL(preview);
    at("preview").src = previewUrl;
    at("preview").alt = "The picture as the model gets it";
    at("preview").hidden = false;
    at("hint").hidden = true;
    at("shown").textContent = `${file.name}, as the model gets it. Drop another one to change it.`;
    picture = { name: file.name, url: `data:${type};base64,${base64(bytes)}` };
  } catch (error) { if (drop === drops) problem(error.message); }
  ready();
}

function forgetPicture() {
  if (previewUrl) URL.revokeObjectURL(previewUrl);
  drops += 1;
  picture = null;
  previewUrl = "";
  at("preview").removeAttribute("src");
  at("preview").hidden = true;
  at("hint").hidden = false;
  at("shown").textContent = "";
}

function why(origin) {
  if (origin.chosen_by === "method") return `Class of stage ${origin.stage} (${origin.modality}).`;
  if (origin.chosen_by === "user") return `Stage ${origin.stage} (${origin.modality}), as you chose.`;
  const question = origin.question_known === null ? "" : " and the question";
  return `Stage ${origin.stage} (${origin.modality}): of all that the bank has learned, the picture${question} fits it`
    + ` best. Confidence ${percent(origin.confidence)}.`;
}

function entry(name, question, answer, origin) {
  const item = make("li");
  item.append(make("p", name, "small"), make("p", question, "question"), make("p", answer || "(nothing)", "answer"));
  if (origin.known === false) {
    item.append(make("p", `The picture is unlike all that the bank knows: ${origin.reason}. This answer is a guess.`, "unknown"));
  }
  if (origin.question_known === false) {
    item.append(make("p", `The question is unlike what this stage was taught: ${origin.question_reason}. This answer may mean nothing.`, "unknown"));
  }
  item.append(make("p", why(origin), "why small"));
  if (origin.stages.length > 1) {
    const bars = make("div", undefined, "bars small");
    for (const stage of origin.stages.slice(0, 5)) {
      const bar = make("meter");
      bar.value = stage.probability;
      bar.setAttribute("aria-label", `${stage.name}: ${percent(stage.probability)}`);
      bars.append(make("span", stage.name), bar, make("span", percent(stage.probability)));
    }
    item.append(bars);
  }
  return item;
}

async function ask(event) {
  event.preventDefault();
  const question = at("question").value.trim();
  if (!picture || !question) return;
  at("send").disabled = true;
  problem("");
  const { name, url } = picture, cleared = clears;
  const content = [{ type: "image_url", image_url: { url } }, { type: "text", text: question }];
  const body = JSON.stringify({ model: at("model").value, messages: [{ role: "user", content }] });
  try {
    const response = await call("/v1/chat/completions", { method: "POST", body, headers: { "content-type": "application/json" } });
    const found = await response.json();
    if (cleared !== clears) return;
    at("history").prepend(entry(name, question, found.choices[0].message.content, found.fedmslora));
    at("head").textContent = found.fedmslora.head;
    at("clear").hidden = false;
    if (at("question").value.trim() === question) at("question").value = "";
  } catch (error) { problem(error.message); }
  ready();
}

function clear() {
  clears += 1;
  forgetPicture();
  at("history").replaceChildren();
  at("clear").hidden = true;
  at("question").value = "";
  at("file").value = "";
  ready();
}

at("access").addEventListener("submit", (event) => {
  event.preventDefault();
  token = at("token").value.trim();
  at("token").value = "";
  start();
});
at("ask").addEventListener("submit", ask);
at("question").addEventListener("input", ready);
at("clear").addEventListener("click", clear);
at("file").addEventListener("change", () => { if (at("file").files[0]) take(at("file").files[0]); });
at("drop").addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") at("file").click(); });
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", name === "dragenter" || name === "dragover");
    if (name === "drop" && event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
}
// Not even the browser's cache of pages has it afterwards.
addEventListener("pagehide", clear);
start();
