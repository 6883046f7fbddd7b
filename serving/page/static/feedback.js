// What a person thinks of an answer, on its way to POST /v1/feedback.

import { consent, sendFeedback } from "./api.js";
import { fromTemplate } from "./dom.js";

/** Whether the same feedback may be taken later. */
export function passes(problem) {
  return [0, 401, 429].includes(problem.status) || problem.status >= 500;
}

/** What to say when feedback did not arrive. */
export function failure(problem) {
  if (problem.code === "feedback_off") {
    return "This server keeps no feedback. Its operator turns it on with feedback.folder and feedback.consent.";
  }
  if (problem.code === "answer_not_found" && !consent.get()) {
    return "Not kept: the server may not keep this answer. Tick \u201cMay be kept\u201d below a prompt before you send it.";
  }
  const where = problem.requestId ? ` (request id ${problem.requestId})` : "";
  return `Not kept. ${problem.title} ${problem.message}${where}`;
}

/** Let a person rate and correct a finished answer in its box. */
export function enable(box, answer) {
  const [up, down] = [box.querySelector(".up"), box.querySelector(".down")];
  const said = box.querySelector(".said");

  async function give(feedback, thanks) {
    said.textContent = "Sending…";
    try {
      await sendFeedback(feedback);
    } catch (problem) {
      said.textContent = failure(problem);
      return false;
    }
    said.textContent = thanks;
    return true;
  }

  async function rate(rating) {
    if (!(await give({ kind: "rating", id: answer.id, rating }, "Thanks, kept."))) return;
    up.setAttribute("aria-pressed", String(rating > 0));
    down.setAttribute("aria-pressed", String(rating < 0));
  }

  up.addEventListener("click", () => rate(1));
  down.addEventListener("click", () => rate(-1));
  box.querySelector(".fix").addEventListener("click", (event) => {
    if (box.querySelector(".correction")) return;
    box.append(correctionForm(answer, give, event.currentTarget));
    box.querySelector(".correction textarea").focus();
  });
}

function correctionForm(answer, give, opener) {
  const form = fromTemplate("correction");
  const text = form.querySelector("textarea");
  text.value = answer.text;

  function close() {
    form.remove();
    opener.focus();
  }

  form.querySelector(".cancel").addEventListener("click", close);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const correction = text.value.trim();
    if (await give({ kind: "correction", id: answer.id, correction }, "Correction kept, thanks.")) close();
  });
  return form;
}
