// The runs since the page was opened.
import { isSmall, settings, subject } from "./drawings.js";

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
    const { request, drawings } = run;
    const button = document.createElement("button");
    button.type = "button";
    button.classList.toggle("pixelated", isSmall(request));
    const what = drawings.length > 1 ? `${drawings.length} ways, ` : "";
    button.title = `${subject(request)}, ${what}${settings(request)}`;
    button.ariaLabel = `Restore: ${button.title}`;
    button.addEventListener("click", () => this.#restore(run));
    for (const { picture } of drawings) {
      const image = new Image();
      [image.src, image.alt] = [picture, ""];
      button.append(image);
    }
    const item = document.createElement("li");
    item.append(button);
    return item;
  }
}
