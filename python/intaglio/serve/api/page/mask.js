// The mask of an edit: a list of actions, painted on a canvas that has the picture's pixels. Opaque
// parts of the canvas are drawn anew.
const OPAQUE = 128; // alpha from which a pixel belongs to the mask; edges of strokes are smooth

export class Mask {
  #canvas;
  #context;
  #actions = [];
  #undone = [];

  constructor(canvas) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
  }

  /** Empties the mask for a picture of width x height pixels. */
  reset(width, height) {
    [this.#actions, this.#undone] = [[], []];
    Object.assign(this.#canvas, { width, height });
  }

  get canUndo() {
    return this.#actions.length > 0;
  }

  get canRedo() {
    return this.#undone.length > 0;
  }

  undo() {
    if (this.canUndo) this.#undone.push(this.#actions.pop());
    this.#repaint();
  }

  redo() {
    if (this.canRedo) this.#actions.push(this.#undone.pop());
    this.#repaint();
  }

  clear() {
    this.#add({ kind: "clear" });
  }

  invert() {
    this.#add({ kind: "invert" });
  }

  /** Begins a stroke of `size` pixels at a point [x, y]; `extend` adds further points to it. */
  begin(point, size, erases) {
    this.#add({ kind: "stroke", points: [point], size, erases });
  }

  extend(point) {
    const stroke = this.#actions.at(-1);
    stroke.points.push(point);
    this.#segment(stroke, stroke.points.length - 1);
  }

  /** Returns the share of the picture that is painted, from 0 to 1, to about a percent. */
  get share() {
    const { alpha } = this.#copy(64, 64);
    return alpha.reduce((sum, one) => sum + one, 0) / 255 / alpha.length;
  }

  /** Returns a PNG in OpenAI's form, transparent where the picture is drawn anew and opaque elsewhere, or
   * null if nothing is painted. */
  async png() {
    const { context, pixels, alpha } = this.#copy(this.#canvas.width, this.#canvas.height);
    if (!alpha.some((one) => one >= OPAQUE)) return null;
    alpha.forEach((one, i) => (pixels.data[4 * i + 3] = one >= OPAQUE ? 0 : 255));
    context.putImageData(pixels, 0, 0);
    return context.canvas.convertToBlob();
  }

  /** Returns a copy of the canvas in another size, with its pixels and their alpha. */
  #copy(width, height) {
    const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    context.imageSmoothingQuality = "high";
    context.drawImage(this.#canvas, 0, 0, width, height);
    const pixels = context.getImageData(0, 0, width, height);
    const alpha = new Uint8Array(width * height);
    for (let i = 0; i < alpha.length; i++) alpha[i] = pixels.data[4 * i + 3];
    return { context, pixels, alpha };
  }

  #add(action) {
    this.#actions.push(action);
    this.#undone = [];
    this.#apply(action);
  }

  #repaint() {
    this.#context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    for (const action of this.#actions) this.#apply(action);
  }

  #apply(action) {
    const { width, height } = this.#canvas;
    if (action.kind === "clear") this.#context.clearRect(0, 0, width, height);
    else if (action.kind === "invert") this.#fill("source-out", () => this.#context.fillRect(0, 0, width, height));
    else action.points.forEach((_, i) => this.#segment(action, i));
  }

  /** Paints the part of a stroke that ends at its point i; the first one is a dot. */
  #segment({ points, size, erases }, i) {
    this.#fill(erases ? "destination-out" : "source-over", () => {
      Object.assign(this.#context, { lineWidth: size, lineCap: "round" });
      this.#context.beginPath();
      if (i === 0) {
        this.#context.arc(...points[0], size / 2, 0, 2 * Math.PI);
        this.#context.fill(); // since lines without a length are not drawn
      } else {
        this.#context.moveTo(...points[i - 1]);
        this.#context.lineTo(...points[i]);
        this.#context.stroke();
      }
    });
  }

  #fill(operation, paint) {
    const color = getComputedStyle(this.#canvas).color;
    Object.assign(this.#context, { fillStyle: color, strokeStyle: color, globalCompositeOperation: operation });
    paint();
  }
}
