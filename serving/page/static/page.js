// The frame around the three views: which one is shown, which model is asked, and the API key.

import { ApiProblem, apiKey, models } from "./api.js";
import { startChat } from "./chat.js";
import { startCompare } from "./compare.js";
import { problemBox } from "./dom.js";
import { startHistory } from "./history.js";

const select = document.getElementById("model");
const notice = document.getElementById("notice");
const model = () => select.value;
const views = { chat: startChat(model), compare: startCompare(model), history: startHistory() };

function current() {
  const asked = location.hash.slice(1);
  return asked in views ? asked : "chat";
}

function show() {
  const name = current();
  for (const other of Object.keys(views)) document.getElementById(other).hidden = other !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${document.querySelector(`nav a[href="#${name}"]`).textContent} · plumbline`;
  if (model() || name === "history") views[name].show();
}

async function loadModels() {
  const before = select.value;
  select.disabled = true;
  select.replaceChildren(new Option("Loading…", ""));
  try {
    const names = await models();
    if (!names.length) {
      throw new ApiProblem(503, "Start one with plumbline serve RUN, then reload.", { title: "No model is served." });
    }
    notice.replaceChildren();
    select.replaceChildren(...names.map((name) => new Option(name, name)));
    if (names.includes(before)) select.value = before;
    select.disabled = false;
  } catch (problem) {
    select.replaceChildren(new Option("No model", ""));
    notice.replaceChildren(problemBox(problem, { label: "Try again", run: loadModels }));
  }
  show();
}

function keyDialog() {
  const [dialog, value] = [document.getElementById("key-dialog"), document.getElementById("key-value")];
  const close = (key) => {
    if (key !== null) {
      apiKey.set(key);
      loadModels();
    }
    value.value = "";
    dialog.close();
  };
  document.getElementById("key").addEventListener("click", () => {
    document.getElementById("key-forget").hidden = !apiKey.get();
    dialog.showModal();
  });
  document.getElementById("key-cancel").addEventListener("click", () => close(null));
  document.getElementById("key-forget").addEventListener("click", () => close(""));
  document.getElementById("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    close(value.value.trim() || null);
  });
}

// A picture dropped beside a view must not take the place of the page.
for (const type of ["dragover", "drop"]) {
  document.addEventListener(type, (event) => {
    if (event.dataTransfer.types.includes("Files")) event.preventDefault();
  });
}

keyDialog();
select.addEventListener("change", show);
window.addEventListener("hashchange", show);
loadModels();
