// The API beside the page. Addresses are relative, so that the page also works behind a proxy's prefix.

const KEY = "plumbline.key";
const CONSENT = "plumbline.consent";

const TITLES = {
  0: "The server cannot be reached.",
  400: "The request was refused.",
  401: "An API key is needed.",
  403: "That is not allowed here.",
  404: "Not found.",
  413: "That is too large.",
  429: "Too many requests.",
  499: "The answer broke off.",
  503: "The server is busy.",
  504: "The answer took too long.",
};

/** What went wrong, in words for people. `status` 0: no connection; 499: the answer ended too early. */
export class ApiProblem extends Error {
  constructor(status, message, { code = "", requestId = "", title = "" } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.requestId = requestId;
    this.title = title || TITLES[status] || "The server failed.";
  }
}

export const apiKey = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** Whether the server may keep what is asked and answered. Nothing is kept without it being said. */
export const consent = {
  get: () => sessionStorage.getItem(CONSENT) === "yes",
  set: (given) => sessionStorage.setItem(CONSENT, given ? "yes" : "no"),
};

async function request(path, { body, signal } = {}) {
  const headers = {};
  if (apiKey.get()) headers.authorization = `Bearer ${apiKey.get()}`;
  if (consent.get()) headers["x-plumbline-consent"] = "yes";
  if (body !== undefined) headers["content-type"] = "application/json";
  const sent = {
    method: body === undefined ? "GET" : "POST",
    headers,
    body: body === undefined ? undefined : JSON.stringify(body),
    signal,
    credentials: "omit",
  };
  let response;
  try {
    response = await fetch(path, sent);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiProblem(0, "Check that it runs and that you are online, then try again.");
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

async function problemOf(response) {
  const requestId = response.headers.get("x-request-id") ?? "";
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // a proxy's error page, not ours
  }
  if (response.status === 401) return keyProblem(requestId);
  const wait = response.headers.get("retry-after");
  const message = typeof error.message === "string" ? sentence(error.message) : `It answered with ${response.status}.`;
  const later = wait ? ` Try again in ${wait} s.` : "";
  return new ApiProblem(response.status, message + later, { code: error.code ?? "", requestId });
}

function keyProblem(requestId) {
  if (!apiKey.get()) return new ApiProblem(401, "Ask the server's operator for one, then enter it.", { requestId });
  const title = "The API key is not known here.";
  return new ApiProblem(401, "Check it, or ask the server's operator for another.", { requestId, title });
}

/** Also of a message that begins with a field's name, which keeps its spelling. */
function sentence(text) {
  const begun = text.replace(/^[a-z]+ /, (word) => word[0].toUpperCase() + word.slice(1));
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}

async function json(path, options) {
  const response = await request(path, options);
  try {
    return await response.json();
  } catch {
    const requestId = response.headers.get("x-request-id") ?? "";
    throw new ApiProblem(500, "Its answer is not JSON. Is another program behind this address?", { requestId });
  }
}

/** Names of the models that one can talk to. */
export async function models() {
  return (await json("v1/models")).data.filter((model) => model.task === "generate").map((model) => model.id);
}

export const versions = () => json("v1/versions");
export const sendFeedback = (feedback) => json("v1/feedback", { body: feedback });

/**
 * Stream one chat. `onText` gets the whole text so far. Resolves to { id, version, text, finish }; after an
 * abort `finish` is "stopped" and the text is what had arrived. Throws ApiProblem.
 */
export async function chat(body, { signal, onText }) {
  const answer = { id: "", version: "", text: "", finish: "" };
  try {
    const response = await request("v1/chat/completions", { body: { ...body, stream: true }, signal });
    const requestId = response.headers.get("x-request-id") ?? "";
    answer.version = response.headers.get("x-plumbline-version") ?? "";
    for await (const event of events(response.body)) {
      if (event.error) {
        const { message = "", code = "" } = event.error;
        throw new ApiProblem(499, sentence(message), { code, requestId, title: "The answer is not whole." });
      }
      answer.id = event.id ?? answer.id;
      answer.version = event.system_fingerprint ?? answer.version;
      const [choice] = event.choices ?? [];
      answer.text += choice?.delta?.content ?? "";
      answer.finish = choice?.finish_reason ?? answer.finish;
      if (choice?.delta?.content) onText(answer.text);
    }
    if (!answer.finish) throw new ApiProblem(499, "The connection closed before its end. Ask again.", { requestId });
  } catch (error) {
    if (signal?.aborted) return { ...answer, finish: "stopped" };
    if (error instanceof ApiProblem) throw error;
    throw new ApiProblem(499, "The connection was lost. Ask again.");
  }
  return answer;
}

/** Objects of a stream of server-sent events (WHATWG HTML, section 9.2), up to [DONE]. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (held + value).split(/\r?\n/);
      held = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        yield JSON.parse(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
