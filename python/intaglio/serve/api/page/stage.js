// Shows a run: one picture, or two with a divider between them, which are chosen if there are more.
import { isSmall, requested, scales, settings, subject } from "./drawings.js";

const byId = (id) => document.getElementById(id);

export class Stage {
  /** The run that is shown. */
  run = null;
  #sides = [byId("left_side"), byId("right_side")];
  #shown = [];

  constructor() {
    byId("divider").addEventListener("input", () => this.#split());
    for (const select of this.#sides) select.addEventListener("change", () => this.update(this.run));
    this.#split();
  }

  /** Shows `run` instead of the previous one. */
  show(run) {
    this.run = run;
    const { drawings, size } = run;
    const chosen = drawings.length > 2;
    byId("frame").style.aspectRatio = size.join(" / ");
    byId("stage").classList.toggle("pixelated", isSmall(size));
    byId("split").hidden = drawings.length < 2;
    byId("comparison").hidden = !chosen;
    if (chosen) this.#showDrawings(drawings);
    this.update(run);
  }

  /** Updates the stage if it shows `run`. */
  update(run) {
    if (run !== this.run) return;
    const { drawings } = run;
    const chosen = drawings.length > 2;
    const shown = chosen ? this.#sides.map((side) => drawings[side.selectedIndex]) : drawings;
    this.#shown = shown;
    const names = document.querySelectorAll("#split .name");
    ["left", "right"].forEach((side, i) => {
      showPicture(byId(side), shown[i]);
      names[i].textContent = shown[i]?.name ?? "";
    });
    if (shown.length > 1)
      byId("divider").ariaLabel = `Divider: ${shown[0].name} to the left, ${shown[1].name} to the right`;
    if (chosen) drawings.forEach((one, i) => showPicture(byId("drawings").children[i].firstChild, one));
    this.#showProgress(requested(run));
  }

  /** The URL of the finished picture that is shown, the right one of two. */
  get picture() {
    return this.#shown.at(-1)?.picture;
  }

  #showDrawings(drawings) {
    const chosen = this.#sides.map((side) => Math.max(side.selectedIndex, 0));
    if (chosen[0] === chosen[1]) [chosen[0], chosen[1]] = [0, drawings.length - 1];
    this.#sides.forEach((side, i) => {
      side.replaceChildren(...drawings.map(({ name }) => new Option(name)));
      side.selectedIndex = chosen[i];
    });
    byId("drawings").replaceChildren(
      ...drawings.map(({ name, request }) => {
        const item = document.createElement("li");
        const [title, scale] = [document.createElement("strong"), document.createElement("span")];
        [title.textContent, scale.textContent] = [name, scales(request)];
        item.append(new Image(), title, scale);
        return item;
      }),
    );
  }

  #showProgress(drawings) {
    const steps = drawings.reduce((sum, one) => sum + one.request.steps, 0);
    const done = drawings.reduce((sum, one) => sum + (one.step ?? 0), 0);
    byId("progress").value = done / steps;
    byId("step").textContent = progressText(drawings);
    // The drawings of a comparison have one prompt, and so the same notes.
    byId("notes").textContent = [...new Set(drawings.flatMap(({ notes }) => notes ?? []))].join("; ");
  }

  #split() {
    const { value } = byId("divider");
    byId("frame").style.setProperty("--split", `${value}%`);
    byId("divider").ariaValueText = `${value} %`;
  }
}

/** Returns the progress of the slowest drawing, since a comparison waits for it. */
function progressText(drawings) {
  const [behind] = drawings.filter((one) => !one.picture).sort((a, b) => (a.step ?? 0) - (b.step ?? 0));
  if (!behind) return settings(drawings.at(-1).request);
  if (behind.step) return `step ${behind.step}/${behind.steps}, σ ${behind.sigma.toFixed(3)}`;
  return behind.position ? `position ${behind.position} in the queue` : "";
}

function showPicture(image, drawing) {
  const source = drawing?.picture ?? drawing?.preview;
  image.hidden = !source;
  if (!source) return;
  if (image.src !== source) image.src = source;
  const { name, request } = drawing;
  image.alt = request ? `${name}: ${subject(request)}, ${settings(request)}` : name;
}
