// The box in which a prompt is written and pictures are attached: chosen, dropped or pasted.

import { consent } from "./api.js";
import { fromTemplate } from "./dom.js";

const SHOWABLE = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"];

/**
 * Fill `place` with a composer for `view` (pictures dropped anywhere on it are taken).
 * `onSend({ text, pictures })` gets data URLs; `onStop()` ends what it started.
 */
export function composer(place, view, { label, onSend, onStop }) {
  const form = fromTemplate("composer");
  const text = form.querySelector("textarea");
  const file = form.querySelector("input[type=file]");
  const refused = form.querySelector(".refused");
  const [send, stop] = [form.querySelector(".send"), form.querySelector(".stop")];
  let pictures = [];
  let busy = false;

  text.placeholder = label;
  text.setAttribute("aria-label", label);
  place.replaceChildren(form);

  function draw() {
    const strip = form.querySelector(".pictures");
    strip.replaceChildren(...pictures.map((picture, at) => thumbnail(picture, () => remove(at))));
    send.disabled = busy || (!text.value.trim() && pictures.length === 0);
  }

  function remove(at) {
    pictures = pictures.filter((_, other) => other !== at);
    draw();
    text.focus();
  }

  async function take(files) {
    const given = [...files];
    const wrong = given.filter((one) => !SHOWABLE.includes(one.type));
    refused.hidden = wrong.length === 0;
    refused.textContent = wrong.length
      ? `${wrong.map((one) => one.name).join(", ")}: not a PNG, JPEG, WebP, GIF or BMP picture. Save it as PNG or JPEG and try again.`
      : "";
    for (const one of given.filter((some) => SHOWABLE.includes(some.type))) {
      try {
        pictures.push({ name: one.name || "pasted picture", url: await dataUrl(one) });
      } catch {
        refused.hidden = false;
        refused.textContent = `${one.name}: cannot be read. Choose it again.`;
      }
    }
    draw();
  }

  function submit() {
    if (send.disabled) return;
    const written = { text: text.value.trim(), pictures };
    text.value = "";
    pictures = [];
    draw();
    onSend(written);
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  text.addEventListener("input", draw);
  text.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  });
  form.querySelector(".attach").addEventListener("click", () => file.click());
  file.addEventListener("change", async () => {
    await take(file.files);
    file.value = ""; // so that the same file can be chosen again
  });
  stop.addEventListener("click", () => onStop());
  text.addEventListener("paste", (event) => {
    if (!event.clipboardData.files.length) return;
    event.preventDefault();
    take(event.clipboardData.files);
  });
  const keep = form.querySelector(".consent input");
  keep.addEventListener("change", () => consent.set(keep.checked));
  text.addEventListener("focus", () => (keep.checked = consent.get())); // the other view has one too
  keep.checked = consent.get();
  acceptDrops(view, form, take);
  draw();

  return {
    focus: () => text.focus(),
    setBusy(value) {
      busy = value;
      send.hidden = value;
      stop.hidden = !value;
      draw();
    },
    /** Put back what was sent, for another try. */
    restore(written) {
      text.value = written.text;
      pictures = written.pictures;
      draw();
    },
  };
}

/** The message of a user, as the API takes it. */
export function userMessage({ text, pictures }) {
  if (!pictures.length) return { role: "user", content: text };
  const parts = pictures.map(({ url }) => ({ type: "image_url", image_url: { url } }));
  return { role: "user", content: text ? [...parts, { type: "text", text }] : parts };
}

/** The same message, to look at. */
export function questionBox({ text, pictures }) {
  const box = fromTemplate("question");
  box.querySelector(".text").textContent = text;
  box.querySelector(".text").hidden = !text;
  box.querySelector(".pictures").replaceChildren(...pictures.map((picture) => thumbnail(picture, null)));
  return box;
}

function thumbnail({ name, url }, onRemove) {
  const figure = fromTemplate("thumbnail");
  const image = figure.querySelector("img");
  image.src = url;
  image.alt = name;
  const button = figure.querySelector("button");
  button.setAttribute("aria-label", `Remove ${name}`);
  if (onRemove) button.addEventListener("click", onRemove);
  else button.remove();
  return figure;
}

function acceptDrops(view, form, take) {
  const holdsFiles = (event) => event.dataTransfer.types.includes("Files");
  view.addEventListener("dragover", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    form.classList.add("dropping");
  });
  view.addEventListener("dragleave", (event) => {
    if (!view.contains(event.relatedTarget)) form.classList.remove("dropping");
  });
  view.addEventListener("drop", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    form.classList.remove("dropping");
    take(event.dataTransfer.files);
  });
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
