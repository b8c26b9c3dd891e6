// The form and the request that it stands for.
import { first, scaleText } from "./drawings.js";

export class RequestForm {
  #form;
  #fields;
  #models = [];

  constructor(form) {
    this.#form = form;
    this.#fields = form.elements;
    form.addEventListener("input", (event) => {
      if (event.target === this.#fields.model) this.#useModel();
      for (const field of this.#fields) field.removeAttribute("aria-invalid");
      this.#showScales();
    });
    form.querySelector("#dice").addEventListener("click", () => {
      this.#fields.seed.value = crypto.getRandomValues(new Uint32Array(1))[0];
      this.#fields.seed.dispatchEvent(new Event("input", { bubbles: true }));
    });
    this.#fields.prompt.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      form.requestSubmit(form.querySelector("#generate"));
    });
  }

  /** `models`: the data of GET /v1/models, at least one. Until then nothing can be entered. */
  setModels(models) {
    this.#models = models;
    this.#fields.model.replaceChildren(...models.map(({ id }) => new Option(id)));
    this.#useModel();
    this.#showScales();
    this.#fields.fields.disabled = false;
  }

  get #facts() {
    return this.#models.find(({ id }) => id === this.#fields.model.value).intaglio;
  }

  get #byClass() {
    return this.#facts.classes !== null;
  }

  /** What the chosen model draws with when it is not told otherwise. */
  get defaults() {
    return this.#facts.defaults;
  }

  /** The request as POST /v1/jobs takes it. */
  read() {
    const text = (name) => this.#fields[name].value;
    const number = (name) => Number(text(name));
    const request = { model: text("model") };
    if (this.#byClass) request.class_label = number("class_label");
    else request.prompt = text("prompt");
    if (!this.#byClass && text("negative_prompt")) request.negative_prompt = text("negative_prompt");
    request.size = `${text("width")}x${text("height")}`;
    request.steps = number("steps");
    request.seed = number("seed");
    for (const name of ["cfg", "dg"]) {
      request[`${name}_scale`] = this.#scale(`${name}_scale`);
      const window = [number(`${name}_from`), number(`${name}_to`)];
      if (String(window) !== String(this.defaults[`${name}_window`])) request[`${name}_window`] = window;
    }
    return request;
  }

  /** Sets the fields to what `read` gave. */
  restore({ model, ...request }) {
    this.#fields.model.value = model;
    this.#useModel();
    this.#fill({ negative_prompt: "", ...this.defaults, ...request });
    this.#fields.seed.dispatchEvent(new Event("input", { bubbles: true }));
  }

  /** Points at the field that the server's error names, if it is one of ours. */
  pointAt(param) {
    const name = { size: "width", cfg_window: "cfg_from", dg_window: "dg_from" }[param] ?? param;
    const field = name && this.#fields.namedItem(name);
    if (!field) return;
    field.closest("details")?.setAttribute("open", "");
    field.setAttribute("aria-invalid", "true");
    field.setAttribute("aria-errormessage", "error");
    field.focus();
  }

  #useModel() {
    const { size, sizes, classes, defaults } = this.#facts;
    for (const side of ["width", "height"]) {
      const field = this.#fields[side];
      field.disabled = !sizes;
      field.min = field.step = sizes?.multiple ?? 1;
      field.max = sizes?.largest[side] ?? size[side];
    }
    this.#fields.class_label.replaceChildren(...(classes ?? []).map((label) => new Option(label)));
    this.#fields.prompt.required = !this.#byClass;
    for (const label of this.#form.querySelectorAll(".text")) label.hidden = this.#byClass;
    this.#form.querySelector(".class").hidden = !this.#byClass;
    for (const name of ["cfg_scale", "dg_scale"]) {
      const slider = this.#fields[name];
      slider.max = Math.max(slider.max, first(defaults[name]));
    }
    this.#fill({ ...defaults, size: `${size.width}x${size.height}` });
  }

  /** Sets the fields that `values` has, which are those of a request. */
  #fill({ size, cfg_window, dg_window, ...values }) {
    [this.#fields.width.value, this.#fields.height.value] = size.split("x");
    [this.#fields.cfg_from.value, this.#fields.cfg_to.value] = cfg_window;
    [this.#fields.dg_from.value, this.#fields.dg_to.value] = dg_window;
    for (const [name, value] of Object.entries(values)) {
      const field = this.#fields.namedItem(name);
      if (field) field.value = first(value); // ma_keep has no field
    }
  }

  /** The slider's value; a default that changes over the steps stays whole until it is moved. */
  #scale(name) {
    const value = Number(this.#fields[name].value);
    return value === first(this.defaults[name]) ? this.defaults[name] : value;
  }

  #showScales() {
    for (const name of ["cfg_scale", "dg_scale"]) {
      const text = scaleText(this.#scale(name));
      this.#form.querySelector(`[data-of=${name}]`).textContent = text;
      this.#fields[name].ariaValueText = text;
    }
  }
}
