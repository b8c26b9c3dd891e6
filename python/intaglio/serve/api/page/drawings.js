// A run is one or several drawings of one request, which is what the stage and the history show.

/** Scale at the first step; a scale is a number, or [first, last] where it changes over the steps. */
export const first = (scale) => [scale].flat()[0];
export const scaleText = (scale) => [scale].flat().join(" to ");

/** What is drawn: the prompt, or the class. */
export const subject = ({ prompt, class_label }) => prompt ?? `class ${class_label}`;

export const sizeOf = ({ size }) => size.split("x").map(Number);

/** Whether the picture is so small that its pixels are shown instead of being smoothed. */
export const isSmall = (request) => Math.max(...sizeOf(request)) <= 256;

/** One drawing of `request` as it is. */
export function single(request) {
  return { request, drawings: [{ name: "Picture", request }] };
}

/** The same seed with neither guidance, with each alone and with both. A guidance that `request`
 * leaves off comes with the model's default. */
export function fourWays(request, defaults) {
  const cfg = first(request.cfg_scale) === 1 ? defaults.cfg_scale : request.cfg_scale;
  const dg = first(request.dg_scale) === 0 ? defaults.dg_scale : request.dg_scale;
  const ways = { Baseline: [1, 0], CFG: [cfg, 0], DG: [1, dg], "CFG+DG": [cfg, dg] };
  const drawings = Object.entries(ways).map(([name, [cfg_scale, dg_scale]]) => ({
    name,
    request: { ...request, cfg_scale, dg_scale },
  }));
  return { request, drawings };
}

/** "seed 1, 12 steps, CFG 2, DG 0" */
export const settings = (request) =>
  `seed ${request.seed}, ${request.steps} steps, ${scales(request)}`;

/** "CFG 2, DG 0" */
export const scales = ({ cfg_scale, dg_scale }) => `CFG ${scaleText(cfg_scale)}, DG ${scaleText(dg_scale)}`;
