// The server's HTTP API. Addresses are relative to the page, so that a proxy may add a prefix.
import { readEvents } from "./events.js";

const KEY = "intaglio-api-key";

/** What the server refused or could not do: its own sentence, the field it names, its status. */
export class ApiError extends Error {
  constructor(message, { param = null, status = 0 } = {}) {
    super(message);
    Object.assign(this, { param, status });
  }
}

/** The API key in use; it lives as long as the tab. */
export const apiKey = {
  get: () => sessionStorage.getItem(KEY),
  set: (key) => sessionStorage.setItem(KEY, key),
};

/** Response of `path`. Throws an ApiError for every answer that is not a success. */
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

/** Loads the picture that the server calls `url`. Returns its address. */
async function load(url) {
  const image = new Image();
  // By its path: behind a proxy the server may know itself by another name.
  image.src = new URL(url, document.baseURI).pathname;
  await image.decode().catch(() => {
    throw new ApiError("The picture cannot be fetched from the server.");
  });
  return image.src;
}

/**
 * Draws `drawing.request` as a job; keeps `drawing` up to date and tells each `changed`.
 * An aborted `signal` cancels the job, and the promise rejects once the server has said so.
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
    // Nobody follows it any more. keepalive: the page may be closing.
    const cancelled = call(`v1/jobs/${job.id}`, { method: "DELETE", keepalive: true });
    if (signal.aborted) await cancelled;
    else cancelled.catch(() => {}); // what came first is told
    throw error;
  }
}

/** Follows a job to its end. Returns {images, notes}: the images' addresses, and what it says of them. */
async function watch(id, signal, tell) {
  for (;;) {
    const end = await follow(await call(`v1/jobs/${id}/events`, { signal }), signal, tell);
    if (end) return end;
    // The stream broke off before the job did.
    const job = await json(`v1/jobs/${id}`, { signal });
    if (job.status === "done") return job;
    if (job.error) throw new ApiError(job.error.message, job.error);
    await pause(1000);
  }
}

/** Tells what the events say; returns the data of "done", or nothing when the stream ends. */
async function follow(response, signal, tell) {
  try {
    for await (const { type, data } of readEvents(response)) {
      if (type === "queued") tell({ position: data.position });
      if (type === "step") tell({ step: data.step, steps: data.steps, sigma: data.sigma });
      if (type === "preview") tell({ preview: data.image });
      if (type === "done") return data;
      if (type === "error") throw new ApiError(data.message, data);
    }
  } catch (error) {
    // A TypeError is how fetch calls a lost connection.
    if (signal.aborted || !(error instanceof TypeError)) throw error;
  }
  return null;
}
