// Paints a mask with a mouse, a pen, a finger or the keyboard.
const ERASER_OF_A_PEN = 5;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Brush {
  /** Whether it erases. */
  erases = false;
  #canvas;
  #mask;
  #slider;
  #ring;
  #changed;
  #point = [0, 0];
  #painting = null; // the pointer or the key that paints

  /**
   * `slider` holds the diameter in pixels of `canvas`, which `mask` paints on. `ring` shows where the
   * brush is. `changed()` is called at the end of a stroke.
   */
  constructor(canvas, mask, slider, ring, changed) {
    [this.#canvas, this.#mask, this.#slider] = [canvas, mask, slider];
    [this.#ring, this.#changed] = [ring, changed];
    slider.addEventListener("input", () => this.#showRing());
    canvas.addEventListener("pointerdown", (event) => this.#press(event));
    canvas.addEventListener("pointermove", (event) => this.#drag(event));
    for (const end of ["pointerup", "pointercancel"])
      canvas.addEventListener(end, ({ pointerId }) => this.#end(pointerId));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("keyup", ({ key }) => this.#end(key));
    canvas.addEventListener("blur", () => this.lift());
  }

  /** Puts the brush into the middle of a new picture, with a size that suits it. */
  reset() {
    const { width, height } = this.#canvas;
    const side = Math.max(width, height);
    this.#slider.max = Math.ceil(side / 2);
    this.#resize(Math.ceil(side / 8));
    this.#move([width / 2, height / 2]);
  }

  /** Ends the stroke that is being painted, if any. */
  lift() {
    this.#end(this.#painting);
  }

  get #size() {
    return Number(this.#slider.value);
  }

  #resize(size) {
    this.#slider.value = size;
    this.#slider.dispatchEvent(new Event("input", { bubbles: true }));
  }

  #press(event) {
    const erases = event.button === ERASER_OF_A_PEN;
    if (this.#painting !== null || (event.button && !erases)) return;
    this.#canvas.setPointerCapture(event.pointerId);
    this.#move(this.#place(event));
    this.#begin(event.pointerId, erases);
  }

  #drag(event) {
    const paints = this.#painting === event.pointerId;
    if (this.#painting !== null && !paints) return; // another finger
    // Browsers report several positions at once, which all belong to a smooth line, but not to pages from
    // another machine over plain HTTP.
    const all = event.getCoalescedEvents?.() ?? [];
    for (const one of paints ? [...all, event] : []) this.#mask.extend(this.#place(one));
    this.#move(this.#place(event));
  }

  #key(event) {
    // Some keyboards have brackets only with AltGr.
    const shortcut = event.ctrlKey || event.metaKey || event.altKey;
    if (shortcut && !"[]".includes(event.key)) return;
    if (event.key in ARROWS) {
      const [x, y] = ARROWS[event.key];
      const step = Math.max(this.#size / 4, 1);
      const { width, height } = this.#canvas;
      const into = (value, end) => Math.min(Math.max(value, 0), end);
      this.#move([into(this.#point[0] + x * step, width), into(this.#point[1] + y * step, height)]);
      if (this.#painting === " ") this.#mask.extend(this.#point);
    } else if (event.key === " ") {
      if (this.#painting === null) this.#begin(" ", false);
    } else if (event.key === "[") {
      this.#resize(Math.min(this.#size - 1, Math.round(this.#size / 1.25)));
    } else if (event.key === "]") {
      this.#resize(Math.max(this.#size + 1, Math.round(this.#size * 1.25)));
    } else {
      return;
    }
    event.preventDefault(); // the page does not scroll
  }

  #begin(by, erases) {
    this.#painting = by;
    this.#mask.begin(this.#point, this.#size, erases || this.erases);
  }

  #end(by) {
    if (by === null || this.#painting !== by) return;
    this.#painting = null;
    this.#changed();
  }

  /** Returns the pixel of the picture under a pointer. */
  #place({ clientX, clientY }) {
    const { left, top, width, height } = this.#canvas.getBoundingClientRect();
    const { width: columns, height: rows } = this.#canvas;
    return [((clientX - left) / width) * columns, ((clientY - top) / height) * rows];
  }

  #move(point) {
    this.#point = point;
    this.#showRing();
  }

  #showRing() {
    const { width, height } = this.#canvas;
    const percent = (value, of) => `${(100 * value) / of}%`;
    const [left, top] = [percent(this.#point[0], width), percent(this.#point[1], height)];
    Object.assign(this.#ring.style, { left, top, width: percent(this.#size, width) });
  }
}
