// The form, which edits one request. Its fields are those options of a model that have a default.
import { consistent, first, scaleText } from "./drawings.js";

const EACH = "_each"; // ends the name of a field with a value for each step
const EDITING = ["strength", "mask_blur", "mask_padding"];

export class RequestForm {
  #form;
  #fields;
  #sliders;
  #models = [];
  #picture = null; // the size of the picture that is edited

  constructor(form) {
    this.#form = form;
    this.#fields = form.elements;
    this.#sliders = [...form.querySelectorAll("input[type=range]")];
    form.addEventListener("input", (event) => {
      if (event.target === this.#fields.model) this.#useModel();
      this.#unmark();
      this.#showScales();
      this.#showRule();
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

  /** Sets the models, which are the data of GET /v1/models, and enables the form. */
  setModels(models) {
    this.#models = models;
    this.#fields.model.replaceChildren(...models.map(({ id }) => new Option(id)));
    this.#useModel();
    this.#showScales();
    this.#showRule();
    this.#fields.fields.disabled = false;
  }

  /** What the server says of the chosen model. */
  get details() {
    return this.#models.find(({ id }) => id === this.#fields.model.value).intaglio;
  }

  get #byClass() {
    return this.details.classes !== null;
  }

  /** The chosen model's default of every option that has one. */
  get defaults() {
    return this.details.defaults;
  }

  /** Returns the request in the form that POST /v1/jobs takes. */
  read() {
    const text = (name) => this.#fields[name].value;
    const number = (name) => Number(text(name));
    const request = { model: text("model") };
    if (this.#byClass) request.class_label = number("class_label");
    else request.prompt = text("prompt");
    if (!this.#byClass && text("negative_prompt")) request.negative_prompt = text("negative_prompt");
    request.size = `${text("width")}x${text("height")}`;
    request.seed = number("seed");
    for (const [name, value] of Object.entries(this.defaults)) {
      if (this.#isWindow(name)) {
        const window = [number(`${name}_from`), number(`${name}_to`)];
        if (String(window) !== String(value)) request[name] = window;
      } else if (this.#fields.namedItem(name)) {
        request[name] = this.#value(name);
      }
    }
    return consistent({ ...request, ...this.#advanced() });
  }

  /** Returns the request in the form that POST /v1/images/edits takes, without its files. */
  readEdit() {
    const names = this.details.edits ? EDITING : [];
    const filled = names.filter((name) => this.#fields[name].value);
    const given = filled.map((name) => [name, Number(this.#fields[name].value)]);
    return { ...this.read(), ...Object.fromEntries(given) };
  }

  /** Sets the size to one that the model draws, near that of a picture, and never above the default area. */
  fit(picture) {
    this.#picture = picture;
    const { size, sizes } = this.details;
    if (!sizes) return;
    const area = (one) => one.width * one.height;
    const scale = Math.min(1, Math.sqrt(area(size) / area(picture)));
    for (const side of ["width", "height"]) {
      const whole = Math.max(1, Math.round((scale * picture[side]) / sizes.multiple)) * sizes.multiple;
      this.#fields[side].value = Math.min(whole, sizes.largest[side]);
    }
  }

  get #advancedFields() {
    return [...this.#form.querySelectorAll("#advanced [name]")];
  }

  /** Returns what is filled in of the advanced guidance. */
  #advanced() {
    const request = {};
    for (const { name, value, type, dataset, parentElement } of this.#advancedFields) {
      if (!value || this.#isEnd(name) || parentElement.closest("[hidden]")) continue;
      if ("list" in dataset) {
        request[name.replace(EACH, "")] = value.split(/[\s,]+/).filter(Boolean).map(Number);
      } else if (type === "number") {
        request[name] = Number(value);
      } else if (value !== "cfg") {
        request[name] = value;
      }
    }
    const window = ["from", "to"].map((end) => this.#fields[`slg_window_${end}`].value);
    if (window.some(Boolean)) request.slg_window = [Number(window[0] || 0), Number(window[1] || 1)];
    return request;
  }

  #isEnd(name) {
    return /_(from|to)$/.test(name);
  }

  /** Sets the fields to a request that `read` returned. */
  restore({ model, ...request }) {
    this.#fields.model.value = model;
    this.#useModel();
    for (const field of this.#advancedFields) field.value = "";
    for (const name of EDITING) this.#fields[name].value = "";
    this.#fill({ negative_prompt: "", guidance: "cfg", ...this.defaults, ...request });
    this.#fields.seed.dispatchEvent(new Event("input", { bubbles: true }));
  }

  #unmark() {
    for (const field of this.#fields) field.removeAttribute("aria-invalid");
  }

  /** Focuses the field that the server's error names, if the form has it, and marks it and no other. */
  pointAt(param) {
    this.#unmark();
    const names = [param, `${param}_from`, param === "size" ? "width" : ""];
    const field = names.map((name) => this.#fields.namedItem(name)).find((found) => found);
    if (!field) return;
    field.closest("details")?.setAttribute("open", "");
    field.setAttribute("aria-invalid", "true");
    field.setAttribute("aria-errormessage", "error");
    field.focus();
  }

  #useModel() {
    const { size, sizes, classes, defaults, edits, references } = this.details;
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
    for (const slider of this.#sliders) {
      slider.max = Math.max(slider.max, first(defaults[slider.name]));
    }
    const takesPictures = edits || references > 0;
    this.#fields.edit_fields.disabled = !takesPictures;
    this.#fields.edit_fields.closest("section").hidden = !takesPictures;
    this.#fill({ ...defaults, size: `${size.width}x${size.height}` });
    if (this.#picture) this.fit(this.#picture);
  }

  /** Sets the fields to the given fields of a request; those without a field in the form are skipped. */
  #fill({ size, ...values }) {
    [this.#fields.width.value, this.#fields.height.value] = size.split("x");
    for (const [name, value] of Object.entries(values)) {
      if (this.#isWindow(name)) {
        [this.#fields[`${name}_from`].value, this.#fields[`${name}_to`].value] = value;
      } else if (this.#fields.namedItem(name)) {
        const each = this.#fields.namedItem(name + EACH);
        const own = each && Array.isArray(value) && String(value) !== String(this.defaults[name]);
        if (own) each.value = value.join(", ");
        this.#fields[name].value = "list" in this.#fields[name].dataset ? value.join(", ") : first(value);
      }
    }
  }

  #isWindow(name) {
    return this.#fields.namedItem(`${name}_from`) !== null;
  }

  /** Returns the field's value. A default that changes over the steps is kept until the field changes. */
  #value(name) {
    const value = Number(this.#fields[name].value);
    return value === first(this.defaults[name]) ? this.defaults[name] : value;
  }

  /** Shows the parameters of the chosen rule. */
  #showRule() {
    for (const part of this.#form.querySelectorAll("[data-rule]"))
      part.hidden = part.dataset.rule !== this.#fields.guidance.value;
  }

  #showScales() {
    for (const slider of this.#sliders) {
      const text = scaleText(this.#value(slider.name));
      this.#form.querySelector(`[data-of=${slider.name}]`).textContent = text;
      slider.ariaValueText = text;
    }
  }
}
