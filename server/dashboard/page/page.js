"use strict";
// Everything is put on the page as text (textContent), whatever a site may call itself.

const EVERY_MS = 3000;
const DASH = "–";
const run = new URLSearchParams(location.search).get("run");

const element = (tag, text, kind) => {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  if (kind) made.className = kind;
  return made;
};
const place = (id) => document.getElementById(id);
const percent = (value) => (value === null || value === undefined ? DASH : (100 * value).toFixed(1));

const scoreOf = (stage) => {
  if (stage.metric in stage.scores) return `${stage.metric} ${percent(stage.scores[stage.metric])}`;
  return stage.phase === "done" && !Object.keys(stage.scores).length ? "not scored" : DASH;
};

const size = (bytes) => {
  for (const [unit, least] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (bytes >= least) return `${(bytes / least).toPrecision(3)} ${unit}`;
  }
  return `${bytes} bytes`;
};

const span = (seconds) => {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${(seconds / 3600).toFixed(1)} h`;
  return `${(seconds / 86400).toFixed(1)} days`;
};
const since = (time) => (time ? `${span(Math.max(0, (Date.now() - Date.parse(time)) / 1000))} ago` : "never");
const clock = (time) => (time ? time.replace("T", " ").replace(/(\.\d+)?(\+00:00|Z)$/, " UTC") : DASH);

// Rows of [text, class]; a string is a text alone, null a dash.
const table = (id, heads, rows, nothing) => {
  const made = place(id);
  made.replaceChildren();
  if (!rows.length) {
    made.append(element("caption", nothing, "muted"));
    return;
  }
  const head = element("tr");
  heads.forEach(([text, kind]) => head.append(element("th", text, kind)));
  made.append(element("thead"));
  made.tHead.append(head);
  const body = element("tbody");
  rows.forEach((cells) => {
    const row = element("tr");
    cells.forEach((cell, at) => {
      const [text, kind] = Array.isArray(cell) ? cell : [cell];
      row.append(element(at ? "td" : "th", text ?? DASH, kind));
    });
    body.append(row);
  });
  made.append(body);
};

const facts = (entries) => {
  place("facts").replaceChildren(...entries.map(([name, value, note]) => {
    const made = element("div");
    made.append(element("dt", name), element("dd", value), element("dd", note, "under"));
    return made;
  }));
};

const stateOf = (found) => {
  if (found.ended) return found.ended === "done" ? "done" : `failed: ${found.ended}`;
  return found.wanted ? "running" : "stopped";
};

const lastLoss = (progress, site) => {
  const own = progress.losses.filter((one) => site in one.losses);
  return own.length ? own[own.length - 1].losses[site].toFixed(3) : DASH;
};

const showRun = (found, sites) => {
  const progress = found.progress;
  const state = stateOf(found);
  place("state").textContent = `${found.name}: ${state}`;
  place("activity").textContent = found.at;
  const released = found.stages.filter((one) => one.phase === "done").length;
  const online = sites.filter((one) => one.online).length;
  const left = progress.seconds_left;
  facts([
    ["Stages released", `${released} of ${found.stages.length}`, ""],
    ["Time left", left === null || state !== "running" ? DASH : `about ${span(left)}`,
      left === null ? "known after the first round" : "by the usual time of a round; sites may be away"],
    ["Sites online", `${online} of ${sites.length}`, ""],
    ["Sent by sites", size(sites.reduce((sum, one) => sum + one.up, 0)), "adapters and numbers"],
    ["Received by sites", size(sites.reduce((sum, one) => sum + one.down, 0)), "adapters and orders"],
    ["Last event", since(progress.last), clock(progress.last)],
  ]);
  const bar = place("bar");
  bar.replaceChildren(...found.stages.map((one) => {
    const part = element("span");
    const done = element("i");
    done.style.setProperty("width", `${(100 * one.round) / one.rounds}%`);
    part.append(done);
    part.title = one.name;
    return part;
  }));
  bar.setAttribute("aria-label", `${released} of ${found.stages.length} stages released`);
  table("stages",
    [["stage"], ["modality"], ["sites"], ["state"], ["round", "number"], ["score", "number"], ["began"], ["released"]],
    found.stages.map((one, at) => [
      one.name, one.modality, one.sites.join(", "),
      [one.phase, one.phase === "done" ? "good" : one.phase === "active" ? "" : "muted"],
      [`${one.round}/${one.rounds}`, "number"],
      [scoreOf(one), "number"],
      clock(progress.stages[at].began), clock(progress.stages[at].released),
    ]), "no stage");
  showDue(found, progress.due);
  showMatrix(found, progress);
  table("left-out", [["site"], ["stage"], ["when"], ["why"]],
    [...progress.left_out.map((one) => [one.site, found.stages[one.stage]?.name, clock(one.time), one.text]),
      ...Object.entries(found.last_round).filter(([, one]) => one.outlier)
        .map(([site, one]) => [site, "last round", DASH, one.outlier])],
    "None so far.");
};

const showDue = (found, due) => {
  const waits = Object.entries(found.awaited).map(([site, what]) => `${site}: ${what}`).join("; ");
  if (!due || !waits) {
    place("due").textContent = "No site is asked at the moment.";
    return;
  }
  const what = due.work === "train" ? `updates of round ${due.round}` : "scores";
  const late = due.deadline ? (Date.parse(due.deadline) - Date.now()) / 1000 : null;
  const until = late === null ? ""
    : late > 0 ? ` The deadline is in ${span(late)} (${clock(due.deadline)}); then ${due.quorum} of ${due.of} are enough.`
      : ` The deadline was ${span(-late)} ago (${clock(due.deadline)}); ${due.quorum} of ${due.of} are enough.`;
  place("due").textContent =
    `${found.stages[due.stage].name}, ${what}: ${due.answered} of ${due.of} are there; waiting for ${waits}.${until}`;
};

const showMatrix = (found, progress) => {
  const rows = [["base model", progress.base, -1],
    ...progress.scores.map((row, at) => [`after ${found.stages[at].name}`, row, at])]
    .filter(([, row]) => row && row.some((value) => value !== null));
  table("matrix", [["", ""], ...found.stages.map((one) => [`${one.name} (${one.metric})`])],
    rows.map(([name, row, at]) => [name, ...row.map((value, task) =>
      [value === null ? "·" : percent(value), value !== null && task === at ? "own" : ""])]),
    "Nothing is scored yet.");
};

const showSites = (sites, found) => {
  table("sites",
    [["site"], ["modality"], ["there"], ["last heard"], ["doing"], ["last loss", "number"],
      ["sent", "number"], ["received", "number"], ["code"]],
    sites.map((one) => [
      one.name, (one.modalities ?? [one.modality]).join(", "),
      one.online === null ? ["not known", "muted"] : one.online ? ["yes", "good"] : ["no", "bad"],
      since(one.seen), one.doing || DASH,
      [found ? lastLoss(found.progress, one.name) : DASH, "number"],
      [size(one.up), "number"], [size(one.down), "number"],
      one.code === "other" ? ["another version", "bad"] : one.code === "same" ? "the coordinator's" : ["not said yet", "muted"],
    ]), "No site is enrolled yet: fedmslora coordinator enroll SITE.pub");
};

const show = (status) => {
  const days = status.certificate_days;
  const parts = [`fedmslora coordinator at ${status.address}`,
    status.superlink ? "running" : "its SuperLink does not answer",
    `certificate: ${days} ${days === 1 ? "day" : "days"} left${days < 30 ? ", renew it: fedmslora coordinator init --renew" : ""}`];
  place("where").textContent = parts.join(" · ");
  place("where").className = !status.superlink || days < 30 ? "bad" : "";
  if (status.run) {
    showRun(status.run, status.sites);
  } else {
    place("state").textContent = "No run yet";
    place("activity").textContent = "Start one with: fedmslora coordinator run PLAN";
    facts([]);
  }
  showSites(status.sites, status.run);
  const runs = place("runs");
  table("runs", [["run"], ["state"], ["stages released", "number"], ["last event"]],
    status.runs.map((one) => [one.name,
      [one.state === "requested" ? "running" : one.state, one.state === "failed" ? "bad" : ""],
      [`${one.released} of ${one.of}`, "number"], clock(one.last)]), "None yet.");
  runs.querySelectorAll("tbody th").forEach((cell, at) => {
    const link = element("a", status.runs[at].name);
    link.href = `?${new URLSearchParams({ run: status.runs[at].name })}`;
    cell.replaceChildren(link);
  });
  place("read").textContent = `Read ${clock(new Date().toISOString())}; every ${EVERY_MS / 1000} seconds again.`;
};

const refresh = async () => {
  try {
    const answer = await fetch(`status.json${run ? `?${new URLSearchParams({ run })}` : ""}`);
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.error);
    show(found);
  } catch (error) {
    place("read").textContent = `The status can't be read: ${error.message}`;
  }
  setTimeout(refresh, EVERY_MS);
};
refresh();
