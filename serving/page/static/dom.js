// Elements come from the page's <template>s, words go in as text: what a model or a server says is never markup.

export function fromTemplate(id) {
  return document.getElementById(id).content.firstElementChild.cloneNode(true);
}

export function element(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

/** A message about an ApiProblem. `action` is { label, run } or null; the problem disappears when it runs. */
export function problemBox(problem, action = null) {
  const box = fromTemplate("problem");
  box.querySelector(".title").textContent = problem.title;
  box.querySelector(".message").textContent = problem.message;
  if (problem.requestId) {
    box.querySelector(".request").hidden = false;
    box.querySelector("code").textContent = problem.requestId;
  }
  if (problem.status === 401) action = { label: "Enter API key", run: openKeyDialog };
  if (action) {
    const button = box.querySelector("button");
    button.hidden = false;
    button.textContent = action.label;
    button.addEventListener("click", () => {
      if (problem.status !== 401) box.remove();
      action.run();
    });
  }
  return box;
}

export function nothingBox(lead, what, action = null) {
  const box = fromTemplate("nothing");
  box.querySelector(".lead").textContent = lead;
  box.querySelector(".what").textContent = what;
  if (action) {
    const button = box.querySelector("button");
    button.hidden = false;
    button.textContent = action.label;
    button.addEventListener("click", action.run);
  }
  return box;
}

function openKeyDialog() {
  document.getElementById("key").click();
}
