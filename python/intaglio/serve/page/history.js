// What was drawn since the page was opened. Pictures are kept in memory, so the list has an end.
import { settings, subject } from "./drawings.js";

const LENGTH = 24;

export class History {
  #list = document.getElementById("history");
  #runs = [];
  #restore;

  /** `restore(run)` is called for the run whose thumbnail is chosen. */
  constructor(restore) {
    this.#restore = restore;
  }

  /** Puts a finished run in front. */
  add(run) {
    this.#runs.unshift(run);
    this.#list.prepend(this.#item(run));
    document.getElementById("past").hidden = false;
    if (this.#runs.length <= LENGTH) return;
    this.#list.lastChild.remove();
    for (const { picture } of this.#runs.pop().drawings) URL.revokeObjectURL(picture);
  }

  #item(run) {
    const { request, drawings } = run;
    const button = document.createElement("button");
    button.type = "button";
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
