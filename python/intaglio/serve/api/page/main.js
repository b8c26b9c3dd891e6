// Connects the form, the stage and the history with the server.
import { ApiError, apiKey, draw, edit, getModels, getPicture } from "./api.js";
import { edited, fourWays, requested, single } from "./drawings.js";
import { Editor } from "./editor.js";
import { RequestForm } from "./form.js";
import { History } from "./history.js";
import { copies, curl, python } from "./snippets.js";
import { Stage } from "./stage.js";

const byId = (id) => document.getElementById(id);

const form = new RequestForm(byId("request"));
const stage = new Stage();
const history = new History((run) => {
  form.restore(run.request);
  stage.show(run);
});
const editor = new Editor();
let running = null;

async function loadModels() {
  try {
    const models = await getModels();
    if (!models.length) throw new ApiError("This server has no models.");
    form.setModels(models);
    showRequest();
  } catch (error) {
    report(error);
  }
}

async function start(run) {
  running?.abort();
  const mine = new AbortController();
  running = mine;
  enable();
  report(null);
  showStatus("Drawing…");
  const before = stage.run;
  stage.show(run);
  byId("frame").scrollIntoView({ block: "nearest" });
  let outcome = "Done.";
  try {
    const changed = () => stage.update(run);
    const drawings = requested(run);
    await Promise.all(drawings.map((one) => (one.files ? edit : draw)(one, mine.signal, changed)));
    history.add(run);
  } catch (error) {
    outcome = mine.signal.aborted ? "Cancelled." : "";
    mine.abort(); // cancels the other drawings of a comparison
    if (error instanceof ApiError) report(error);
    else if (error.name !== "AbortError") throw error;
  }
  if (running !== mine) return; // another run has begun
  running = null;
  enable();
  showStatus(outcome);
  const nothing = requested(run).every(({ picture, preview }) => !picture && !preview);
  if (nothing && before) stage.show(before);
}

function enable() {
  const cancel = byId("cancel");
  if (!running && document.activeElement === cancel) byId("generate").focus();
  cancel.disabled = !running;
}

function showStatus(text) {
  byId("status").textContent = text;
}

/** Shows an error, and asks for an API key if the server requires one. */
function report(error) {
  byId("error").textContent = error?.message ?? "";
  form.pointAt(error?.param);
  if (!error) return;
  if (error.status !== 401) return;
  byId("key").hidden = false;
  byId("key").elements.key.focus();
}

/** Shows what the form says, outside of it. */
function showRequest() {
  editor.use(form.details);
  showSnippets();
}

function showSnippets() {
  const request = form.read();
  byId("curl").textContent = curl(request);
  byId("python").textContent = python(request);
}

byId("request").addEventListener("input", showRequest);
byId("request").addEventListener("submit", (event) => {
  event.preventDefault();
  const request = form.read();
  if (event.submitter.id === "compare") start(fourWays(request, form.defaults));
  else if (event.submitter.id === "redraw") start(edited(form.readEdit(), editor.picture, editor.files()));
  else start(single(request));
});

/** Opens a picture, which `get` returns as a file, for an edit. */
async function open(get) {
  report(null);
  try {
    form.fit(await editor.open(await get()));
    showSnippets();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    report(error);
    byId("error").scrollIntoView({ block: "nearest" });
  }
}

byId("file").addEventListener("change", ({ target }) => {
  if (target.files.length) open(async () => target.files[0]);
});
byId("take").addEventListener("click", () =>
  open(() => {
    if (!stage.picture) throw new ApiError("No picture has been drawn yet: press Generate first.");
    byId("file").value = ""; // so that it does not name another picture
    return getPicture(stage.picture);
  }),
);
byId("cancel").addEventListener("click", () => running.abort());
byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  apiKey.set(byId("key").elements.key.value);
  byId("key").hidden = true;
  report(null);
  if (byId("fields").disabled) loadModels();
  else showSnippets();
});
addEventListener("pagehide", () => running?.abort());
copies(byId("copy_curl"), byId("curl"));
copies(byId("copy_python"), byId("python"));
loadModels();
