// The server's HTTP API. URLs are relative to the page, so that a proxy may add a prefix.
import { readEvents } from "./events.js";

const KEY = "intaglio-api-key";

/** An error that the server reported: its message, the field that it names, and the status. */
export class ApiError extends Error {
  constructor(message, { param = null, status = 0 } = {}) {
    super(message);
    Object.assign(this, { param, status });
  }
}

/** The API key, which is stored until the tab is closed. */
export const apiKey = {
  get: () => sessionStorage.getItem(KEY),
  set: (key) => sessionStorage.setItem(KEY, key),
};

/** Returns the response of `path`. Throws an ApiError for every answer that reports an error. */
async function call(path, { headers = {}, ...options } = {}) {
  const key = apiKey.get();
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { headers, ...options });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError("The server cannot be reached. Is it still running?");
  }
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  throw new ApiError(error?.message ?? `The server answered ${response.status}.`, {
    param: error?.param,
    status: response.status,
  });
}

const json = async (path, options) => (await call(path, options)).json();
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

export const getModels = async () => (await json("v1/models")).data;

export const getPicture = async (url) => (await call(url)).blob();

/** Loads the picture at the server's `url`, and returns the URL that the page uses. */
async function load(url) {
  const image = new Image();
  // Only the name, since a proxy may serve the page at an address that the server does not know.
  image.src = new URL(`v1/images/${url.split("/").pop()}`, document.baseURI).href;
  await image.decode().catch(() => {
    throw new ApiError("The picture cannot be fetched from the server.");
  });
  return image.src;
}

/**
 * Draws `drawing.request` as a job, updates `drawing`, and calls `changed` after each update.
 * An aborted `signal` cancels the job; the promise rejects when the server has confirmed it.
 */
export async function draw(drawing, signal, changed) {
  const job = await json("v1/jobs", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(drawing.request),
  });
  try {
    signal.throwIfAborted();
    const { images, notes } = await watch(job.id, signal, (news) => {
      Object.assign(drawing, news);
      changed();
    });
    Object.assign(drawing, { picture: await load(images[0]), notes });
    changed();
  } catch (error) {
    // Cancel the job, since the page no longer follows it. keepalive, as the page may be closing.
    const cancelled = call(`v1/jobs/${job.id}`, { method: "DELETE", keepalive: true });
    if (signal.aborted) await cancelled;
    else cancelled.catch(() => {}); // the first error is reported
    throw error;
  }
}

/** Draws an edit, whose `drawing` has files besides its request. An aborted `signal` ends the run. */
export async function edit(drawing, signal, changed) {
  const body = new FormData();
  for (const [name, value] of Object.entries({ ...drawing.request, response_format: "url" }))
    body.append(name, typeof value === "string" ? value : JSON.stringify(value));
  for (const [name, file] of Object.entries(await drawing.files)) body.append(name, file);
  const { data } = await json("v1/images/edits", { method: "POST", body, signal });
  Object.assign(drawing, { picture: await load(data[0].url), step: drawing.request.steps });
  changed();
}

/** Follows a job to its end, and returns its {images, notes}, of which images are URLs. */
async function watch(id, signal, update) {
  for (;;) {
    const end = await follow(await call(`v1/jobs/${id}/events`, { signal }), signal, update);
    if (end) return end;
    // The stream was interrupted before the job ended.
    const job = await json(`v1/jobs/${id}`, { signal });
    if (job.status === "done") return job;
    if (job.error) throw new ApiError(job.error.message, job.error);
    await pause(1000);
  }
}

/** Passes on the events, and returns the data of "done", or null if the stream ends before. */
async function follow(response, signal, update) {
  try {
    for await (const { type, data } of readEvents(response)) {
      if (type === "queued") update({ position: data.position });
      if (type === "step") update({ step: data.step, steps: data.steps, sigma: data.sigma });
      if (type === "preview") update({ preview: data.image });
      if (type === "done") return data;
      if (type === "error") throw new ApiError(data.message, data);
    }
  } catch (error) {
    // fetch throws a TypeError for a lost connection.
    if (signal.aborted || !(error instanceof TypeError)) throw error;
  }
  return null;
}
