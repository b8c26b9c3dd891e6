// A run has one or several drawings of a request. The stage and the history show runs.

/** Returns a scale at the first step; [first, last] is a scale that changes over the steps. */
export const first = (scale) => [scale].flat()[0];
export const scaleText = (scale) => [scale].flat().join(" to ");

/** Returns what is drawn: the prompt or the class. */
export const subject = ({ prompt, class_label }) => prompt ?? `class ${class_label}`;

export const sizeOf = ({ size }) => size.split("x").map(Number);

/** Returns whether the picture is so small that it is enlarged without smoothing. */
export const isSmall = (request) => Math.max(...sizeOf(request)) <= 256;

/** Returns a run with one drawing of `request`. */
export function single(request) {
  return { request, drawings: [{ name: "Picture", request }] };
}

/** Returns a run with four drawings of one seed: without guidance, with CFG, with DG and with both.
 * Where `request` turns a guidance off, the drawings with it use the model's default. */
export function fourWays(request, defaults) {
  const cfg = first(request.cfg_scale) === 1 ? defaults.cfg_scale : request.cfg_scale;
  const dg = first(request.dg_scale) === 0 ? defaults.dg_scale : request.dg_scale;
  const ways = { Baseline: [1, 0], CFG: [cfg, 0], DG: [1, dg], "CFG+DG": [cfg, dg] };
  const { guidance, ...plain } = request; // a rule needs CFG
  const drawings = Object.entries(ways).map(([name, [cfg_scale, dg_scale]]) => ({
    name,
    request: { ...(cfg_scale === 1 ? plain : request), cfg_scale, dg_scale },
  }));
  return { request, drawings };
}

/** Returns text like "seed 1, 12 steps, CFG 2, DG 0". */
export const settings = (request) =>
  `seed ${request.seed}, ${request.steps} steps, ${scales(request)}`;

/** Returns text like "CFG 2, DG 0". */
export const scales = ({ cfg_scale, dg_scale }) => `CFG ${scaleText(cfg_scale)}, DG ${scaleText(dg_scale)}`;
