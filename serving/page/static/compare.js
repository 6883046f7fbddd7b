// Two versions answer the same prompt; a person votes before knowing which is which.

import { ApiProblem, chat, sendFeedback, versions } from "./api.js";
import { composer, questionBox, userMessage } from "./composer.js";
import { element, fromTemplate, nothingBox, problemBox } from "./dom.js";
import { failure, passes } from "./feedback.js";

const SAID = {
  left: "You preferred the left answer.",
  right: "You preferred the right answer.",
  tie: "You found both equally good.",
  bad: "You found both bad.",
};

export function startCompare(model) {
  const view = document.getElementById("compare");
  const body = document.getElementById("compare-body");
  let shown = ""; // the model whose two versions can be compared now
  let running = null;

  async function show() {
    if (shown === model() && body.querySelector(".composer, .round")) return;
    stop();
    shown = model();
    body.replaceChildren(element("p", "Loading…", "note"));
    try {
      const pair = await twoVersions(shown);
      if (shown !== model()) return;
      body.replaceChildren();
      if (pair) write();
      else body.append(onlyOne());
    } catch (problem) {
      body.replaceChildren(problemBox(problem, { label: "Try again", run: show }));
    }
  }

  function onlyOne() {
    return nothingBox(
      "Only one version is served",
      "A comparison needs a canary beside the stable version. When the server's operator routes one, it can be compared here.",
      { label: "Look again", run: show },
    );
  }

  function stop() {
    running?.abort();
    running = null;
  }

  function write(written = null) {
    stop();
    const place = element("div");
    body.replaceChildren(place);
    const box = composer(place, view, {
      label: "Ask both versions",
      onSend: (sent) => begin(sent),
      onStop: stop,
    });
    if (written) box.restore(written);
    box.focus();
  }

  async function begin(written) {
    body.replaceChildren(questionBox(written));
    const controller = new AbortController();
    running = controller;
    try {
      const pair = await twoVersions(shown); // anew: one may have been promoted meanwhile
      if (!pair) {
        body.replaceChildren(onlyOne());
        return;
      }
      await round(inAnyOrder(pair), written, controller.signal);
    } catch (problem) {
      if (controller.signal.aborted) return;
      controller.abort(); // the other side
      body.append(problemBox(problem, { label: "Try again", run: () => write(written) }));
    }
  }

  async function round(pair, written, signal) {
    const box = fromTemplate("round");
    const sides = [...box.querySelectorAll(".side")];
    body.append(box);
    const asked = { model: shown, messages: [userMessage(written)] };
    const answers = await Promise.all(pair.map(({ version }, at) => ask(asked, version, sides[at], signal)));
    if (signal.aborted) return;
    voting(box, pair, answers);
  }

  function voting(box, pair, answers) {
    const fieldset = box.querySelector("fieldset");
    const outcome = box.querySelector(".outcome");
    const parts = new Map(); // vote -> what of it is still to be sent
    fieldset.disabled = false;
    fieldset.addEventListener("click", async (event) => {
      const vote = event.target.dataset?.vote;
      if (!vote) return;
      if (!parts.has(vote)) parts.set(vote, ballots(vote, answers));
      fieldset.disabled = true;
      outcome.textContent = "Sending your vote…";
      let kept = "Your vote is kept.";
      try {
        const left = parts.get(vote);
        while (left.length) {
          await sendFeedback(left[0]);
          left.shift();
        }
      } catch (problem) {
        kept = failure(problem);
        if (passes(problem)) {
          outcome.textContent = `${kept} Vote again.`;
          fieldset.disabled = false;
          return;
        }
      }
      outcome.textContent = `${SAID[vote]} ${kept}`;
      reveal(box, pair, vote);
    });
  }

  function reveal(box, pair, vote) {
    box.querySelector("fieldset").hidden = true;
    for (const [at, side] of [...box.querySelectorAll(".side")].entries()) {
      const named = side.querySelector(".revealed");
      named.replaceChildren(element("code", pair[at].version), ` ${pair[at].slot}`);
      named.hidden = false;
      side.classList.toggle("preferred", vote === ["left", "right"][at]);
    }
    const again = box.querySelector(".again");
    again.hidden = false;
    again.addEventListener("click", () => write());
    again.focus();
  }

  return { show };
}

/** Both versions behind a model, or null when it has only one. */
async function twoVersions(model) {
  const { routing } = await versions();
  const route = routing.find((one) => one.model === model);
  if (!route?.canary || route.canary === route.stable) return null;
  return [
    { slot: "stable", version: route.stable },
    { slot: "canary", version: route.canary },
  ];
}

function inAnyOrder(pair) {
  const [draw] = crypto.getRandomValues(new Uint8Array(1));
  return draw & 1 ? pair : [...pair].reverse();
}

async function ask(asked, version, side, signal) {
  const text = side.querySelector(".text");
  const onText = (whole) => (text.textContent = whole);
  const answer = await chat({ ...asked, plumbline: { version } }, { signal, onText });
  text.setAttribute("aria-busy", "false");
  if (!answer.text) text.textContent = "No words came.";
  if (!signal.aborted && answer.version !== version) {
    throw new ApiProblem(499, "A version changed on the way. Ask again.");
  }
  return answer;
}

/** A vote as the feedback API has it: a choice, or the same rating for both. */
function ballots(vote, [left, right]) {
  if (vote === "left") return [{ kind: "choice", chosen: left.id, rejected: right.id }];
  if (vote === "right") return [{ kind: "choice", chosen: right.id, rejected: left.id }];
  const rating = vote === "tie" ? 1 : -1;
  return [left, right].map(({ id }) => ({ kind: "rating", id, rating }));
}
