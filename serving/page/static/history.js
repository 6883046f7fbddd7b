// What is served now, and every decision that led there.

import { versions } from "./api.js";
import { element, fromTemplate, nothingBox, problemBox } from "./dom.js";
import { intervalChart, number } from "./intervals.js";

const ACTS = {
  registered: "Registered",
  promoted: "Promoted",
  refused: "Not promoted",
  rolled_back: "Rolled back to",
  canary: "Canary",
  canary_ended: "Canary ended",
};
const GOOD = ["promoted"];
const BAD = ["refused", "rolled_back"];

export function startHistory() {
  const body = document.getElementById("history-body");
  const again = document.getElementById("history-again");

  async function show() {
    if (!body.childElementCount) body.replaceChildren(element("p", "Loading…", "note"));
    again.disabled = true;
    try {
      const { routing, replicas, history } = await versions();
      body.replaceChildren(routes(routing), replicaTable(replicas), decisions(history));
    } catch (problem) {
      body.replaceChildren(problemBox(problem, { label: "Try again", run: show }));
    }
    again.disabled = false;
  }

  again.addEventListener("click", show);
  return { show };
}

function routes(routing) {
  const box = element("div", "", "routes");
  for (const { model, stable, canary, weight } of routing) {
    const card = fromTemplate("route");
    card.querySelector("h3").textContent = model;
    const share = canary ? weight : 0;
    const rows = [["Stable", stable, 1 - share]];
    if (canary) rows.push(["Canary", canary, share]);
    for (const [slot, version, part] of rows) {
      const named = element("dd");
      named.append(element("code", version));
      card.querySelector(".shares").append(element("dt", slot), named, element("dd", percent(part), "number"));
    }
    const [stablePart, canaryPart] = card.querySelectorAll(".split span");
    stablePart.style.flexGrow = 1 - share;
    canaryPart.style.flexGrow = share;
    canaryPart.hidden = !canary;
    box.append(card);
  }
  return box;
}

function percent(share) {
  return `${number(100 * share)}% of clients`;
}

function replicaTable(replicas) {
  if (!replicas.length) {
    return nothingBox("No replica has reported yet", "One that starts needs a minute or more. Press Refresh then.");
  }
  const box = fromTemplate("replicas");
  for (const { replica, slot, version, state, in_flight } of replicas) {
    const row = element("tr");
    const named = element("td");
    named.append(element("code", version ?? "none yet"));
    const stands = element("td", state, state === "quarantined" ? "bad" : "");
    row.append(element("td", replica), element("td", slot), named, stands, element("td", in_flight, "number"));
    box.querySelector("tbody").append(row);
  }
  return box;
}

function decisions(history) {
  const box = element("div");
  box.append(element("h2", "Decisions"));
  if (!history.length) {
    box.append(
      nothingBox(
        "Nothing was decided yet",
        "plumbline promote registers a checkpoint, compares it with the one that is served, and records here what it found.",
      ),
    );
    return box;
  }
  const list = element("ol", "", "decisions");
  list.append(...[...history].reverse().map(decision));
  box.append(list);
  return box;
}

function decision(act) {
  const box = fromTemplate("decision");
  const verdict = box.querySelector(".verdict");
  verdict.textContent = ACTS[act.act] ?? act.act;
  verdict.classList.toggle("good", GOOD.includes(act.act));
  verdict.classList.toggle("bad", BAD.includes(act.act));
  box.querySelector(".version").textContent = act.version;
  box.querySelector(".from").textContent = origin(act);
  box.querySelector(".facts").append(moment(act.at), act.by ? ` by ${act.by}` : "");
  box.querySelector(".reason").textContent = act.why ?? "";
  box.querySelector(".reason").hidden = !act.why;
  const checks = act.decision?.checks ?? [];
  box.querySelector(".checks").hidden = !checks.length;
  const level = act.decision?.level;
  if (level) box.querySelector("th.chart").textContent = `${number(100 * level)}% interval`;
  box.querySelector("tbody").append(...checks.map(checkRow));
  return box;
}

function origin({ act, previous, weight, entry }) {
  if (act === "registered") {
    const step = Number.isFinite(entry?.weight_version) ? `weights ${entry.weight_version}` : "";
    return [entry?.run && `run ${entry.run}`, entry?.recipe, step].filter(Boolean).join(", ");
  }
  if (act === "canary") return `answers ${percent(weight)}`;
  if (act === "refused" && previous) return `${previous} stays`;
  return previous ? `after ${previous}` : "";
}

function moment(at) {
  const date = new Date(at);
  if (Number.isNaN(date.getTime())) return element("span", at ?? "");
  const time = element("time", date.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" }));
  time.dateTime = at;
  return time;
}

function checkRow(check) {
  const row = element("tr");
  const chart = element("td", "", "chart");
  chart.append(intervalChart(check));
  const verdict = Number.isFinite(check.value) ? (check.holds ? "holds" : "fails") : "not measured";
  const condition = element("td", `${asked(check)} ${verdict}`, check.holds ? "good" : "bad");
  row.append(element("td", check.name), element("td", number(check.value), "number"), chart, condition);
  return row;
}

function asked({ at_least, at_most }) {
  const [least, most] = [Number.isFinite(at_least), Number.isFinite(at_most)];
  if (least && most) return `${number(at_least)} to ${number(at_most)}`;
  return least ? `≥ ${number(at_least)}` : most ? `≤ ${number(at_most)}` : "";
}
