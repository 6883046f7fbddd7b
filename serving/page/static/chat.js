// A conversation with one model.

import { chat } from "./api.js";
import { composer, questionBox, userMessage } from "./composer.js";
import { fromTemplate, problemBox } from "./dom.js";
import { enable } from "./feedback.js";

const NOTES = { length: "cut off at the token limit", stopped: "stopped", content_filter: "held back by the server" };

export function startChat(model) {
  const view = document.getElementById("chat");
  const log = document.getElementById("chat-log");
  const empty = document.getElementById("chat-empty");
  const fresh = document.getElementById("chat-new");
  let messages = []; // finished turns only: a failed one is not part of what the model is told
  let running = null;

  const box = composer(document.getElementById("chat-composer"), view, {
    label: "Ask something",
    onSend: send,
    onStop: () => running?.abort(),
  });

  function send(written) {
    empty.hidden = true;
    fresh.hidden = false;
    log.append(questionBox(written));
    ask(userMessage(written));
  }

  async function ask(question) {
    const place = fromTemplate("answer");
    const text = place.querySelector(".text");
    const asked = [...messages, question];
    const controller = new AbortController();
    running = controller;
    box.setBusy(true);
    log.append(place);
    follow(place, true);
    try {
      const answer = await chat(
        { model: model(), messages: asked },
        {
          signal: controller.signal,
          onText(whole) {
            place.querySelector(".waiting").hidden = true;
            text.textContent = whole;
            follow(place, false);
          },
        },
      );
      if (running !== controller) return; // a new chat began meanwhile
      finish(place, answer);
      if (answer.text) messages = [...asked, { role: "assistant", content: answer.text }];
    } catch (problem) {
      if (running !== controller) return;
      place.replaceWith(problemBox(problem, { label: "Try again", run: () => ask(question) }));
    }
    running = null;
    box.setBusy(false);
    box.focus();
  }

  function finish(place, answer) {
    const footer = place.querySelector("footer");
    const note = NOTES[answer.finish];
    const text = place.querySelector(".text");
    text.setAttribute("aria-busy", "false");
    place.querySelector(".waiting").hidden = true;
    if (!answer.text) {
      text.textContent = "No words came.";
      text.classList.add("note");
    }
    place.querySelector(".version").textContent = [answer.version, note].filter(Boolean).join(" · ");
    footer.hidden = false;
    // A stopped answer is not whole, so that the server has nothing a rating could be about.
    if (answer.finish === "stopped" || !answer.id) place.querySelector(".rating").remove();
    else enable(place, answer);
    follow(place, false);
  }

  /** Keep the newest words in sight, unless the reader has scrolled up. */
  function follow(place, always) {
    const below = document.documentElement.scrollHeight - window.innerHeight - window.scrollY;
    if (always || below < 160) place.scrollIntoView({ block: "end" });
  }

  fresh.addEventListener("click", () => {
    running?.abort();
    running = null;
    messages = [];
    log.replaceChildren();
    empty.hidden = false;
    fresh.hidden = true;
    box.setBusy(false);
    box.focus();
  });

  return { show: () => box.focus() };
}
