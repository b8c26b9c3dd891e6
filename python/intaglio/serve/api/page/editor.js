// The part of the page where a picture is opened and its mask is painted.
import { ApiError } from "./api.js";
import { Brush } from "./brush.js";
import { isSmall } from "./drawings.js";
import { Mask } from "./mask.js";

const byId = (id) => document.getElementById(id);

export class Editor {
  /** The picture: its data URL, and its size in pixels. */
  picture = null;
  #file;
  #edits = true; // whether the model draws pictures anew, or takes them as references only
  #refers = false; // whether it takes references
  #mask = new Mask(byId("mask"));
  #brush = new Brush(byId("mask"), this.#mask, byId("brush"), byId("ring"), () => this.#show());

  constructor() {
    for (const action of ["undo", "redo", "clear", "invert"])
      byId(action).addEventListener("click", () => this.#do(action));
    byId("erase").addEventListener("click", ({ target }) => {
      this.#brush.erases = !this.#brush.erases;
      target.ariaPressed = this.#brush.erases;
    });
    byId("mask").addEventListener("keydown", (event) => this.#key(event));
    byId("brush").addEventListener("input", ({ target }) => {
      byId("brush_size").textContent = target.ariaValueText = `${target.value} px`;
    });
    byId("easel").addEventListener("keydown", (event) => {
      // Enter in a field would press Generate, which is the form's first button.
      if (event.key !== "Enter" || event.target.type !== "number") return;
      event.preventDefault();
      event.target.form.requestSubmit(byId("redraw"));
    });
  }

  /** Shows what the model, of which the server gives these details, does with a picture. */
  use({ edits, references }) {
    const refers = references > 0;
    if (edits === this.#edits && refers === this.#refers) return; // since to look at the mask takes time
    [this.#edits, this.#refers] = [edits, refers];
    for (const tool of byId("easel").querySelectorAll("[data-edits]")) tool.hidden = !edits;
    this.#show();
  }

  /** Opens a file or blob, and returns the picture's {width, height}. Throws an ApiError. */
  async open(file) {
    const image = new Image();
    image.src = await dataUrl(file);
    await image.decode().catch(() => {
      throw new ApiError("The file cannot be read: choose a PNG, JPEG or WebP picture.", { param: "image" });
    });
    const [width, height] = [image.naturalWidth, image.naturalHeight];
    this.#file = file;
    this.picture = { source: image.src, width, height };
    byId("original").src = image.src;
    byId("easel").hidden = false;
    byId("sheet").classList.toggle("pixelated", isSmall([width, height]));
    this.#mask.reset(width, height);
    this.#brush.reset();
    this.#show();
    return { width, height };
  }

  /** Returns the files of an edit: the image and, if the model takes it and it is painted, the mask. */
  async files() {
    const mask = this.#edits && (await this.#mask.png());
    return mask ? { image: this.#file, mask } : { image: this.#file };
  }

  #key(event) {
    if (!(event.ctrlKey || event.metaKey) || event.altKey) return;
    const key = event.key.toLowerCase();
    if (key === "y" || (key === "z" && event.shiftKey)) this.#do("redo");
    else if (key === "z") this.#do("undo");
    else return;
    event.preventDefault();
  }

  #do(action) {
    this.#brush.lift();
    this.#mask[action]();
    this.#show();
  }

  #show() {
    const focused = document.activeElement;
    [byId("undo").disabled, byId("redo").disabled] = [!this.#mask.canUndo, !this.#mask.canRedo];
    if (focused.disabled) byId("mask").focus(); // a disabled button cannot keep the focus
    const { share } = this.#mask;
    byId("strength").placeholder = this.#refers && !share ? "none" : "0.6";
    byId("painted").textContent = this.#fate(share);
  }

  /** Says what becomes of the picture, of which a share is painted. */
  #fate(share) {
    if (!this.#edits) return "The picture is a reference for the prompt.";
    if (share) return `${Math.max(Math.round(100 * share), 1)} % is drawn anew.`;
    if (this.#refers) return "Without paint and strength, the picture is a reference for the prompt.";
    return "Without paint, all of it is drawn anew.";
  }
}

const dataUrl = (file) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(new ApiError("The file cannot be read.", { param: "image" })));
    reader.readAsDataURL(file);
  });
