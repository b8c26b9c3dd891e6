// The runs since the page was opened.
import { isSmall, requested, settings, subject } from "./drawings.js";

export class History {
  #restore;

  /** `restore(run)` is called when the run's thumbnail is clicked. */
  constructor(restore) {
    this.#restore = restore;
  }

  /** Adds a finished run at the front. */
  add(run) {
    document.getElementById("history").prepend(this.#item(run));
    document.getElementById("past").hidden = false;
  }

  #item(run) {
    const { request, drawings, size } = run;
    const button = document.createElement("button");
    button.type = "button";
    button.classList.toggle("pixelated", isSmall(size));
    const ways = drawings.length > 2 ? `${drawings.length} ways, ` : "";
    const what = requested(run).length < drawings.length ? "edited, " : ways;
    button.title = `${subject(request)}, ${what}${settings(request)}`;
    button.ariaLabel = `Restore: ${button.title}`;
    button.addEventListener("click", () => this.#restore(run));
    for (const { picture } of requested(run)) {
      const image = new Image();
      [image.src, image.alt] = [picture, ""];
      button.append(image);
    }
    const item = document.createElement("li");
    item.append(button);
    return item;
  }
}
