// A run has one or several drawings of a request, and their size. The stage and the history show runs.

/** Returns a scale at the first step; [first, last] is a scale that changes over the steps, and a longer
 * list has one for each step. */
export const first = (scale) => [scale].flat()[0];
export const scaleText = (scale) => [scale].flat().join(scale.length > 2 ? ", " : " to ");
/** Returns whether CFG has a weight in any step. */
export const hasCfg = ({ cfg_scale }) => [cfg_scale].flat().some((scale) => scale !== 1);

const OF_CFG = /^guidance(?!_tag|_prev)/;
const OF_SKIPPED_BLOCKS = /^slg_/;

/** Returns the request without the fields whose names match. */
const without = (request, names) =>
  Object.fromEntries(Object.entries(request).filter(([name]) => !names.test(name)));

/** Returns the request without what does not go together with the rest of it: rules need CFG, and skipped
 * blocks take DG's place. */
export function consistent(request) {
  const possible = hasCfg(request) ? request : without(request, OF_CFG);
  if (!request.slg_layers && !request.slg_share) return without(possible, OF_SKIPPED_BLOCKS);
  return { ...without(possible, /^dg_window$/), dg_scale: 0 };
}

/** Returns what is drawn: the prompt or the class. */
export const subject = ({ prompt, class_label }) => prompt ?? `class ${class_label}`;

const sizeOf = ({ size }) => size.split("x").map(Number);

/** Returns whether a picture of the size is so small that it is enlarged without smoothing. */
export const isSmall = (size) => Math.max(...size) <= 256;

/** Returns a run with one drawing of `request`. */
export function single(request) {
  return { request, drawings: [{ name: "Picture", request }], size: sizeOf(request) };
}

/** Returns a run that draws `request` into a picture, with the picture as it was. `files` is a promise of the
 * image and, unless all of it is drawn anew, the mask. */
export function edited(request, { source, width, height }, files) {
  const drawings = [{ name: "Before", picture: source }, { name: "After", request, files }];
  // With padding a part is drawn in the request's size, and put back into the picture.
  const size = "mask_padding" in request ? [width, height] : sizeOf(request);
  return { request, drawings, size };
}

/** Returns the drawings of a run that the server draws. */
export const requested = ({ drawings }) => drawings.filter(({ request }) => request);

/** Returns a run with four drawings of one seed: without guidance, with CFG, with DG and with both.
 * Where `request` turns a guidance off, the drawings with it use the model's default. No drawing skips
 * blocks. */
export function fourWays(request, defaults) {
  const cfg = first(request.cfg_scale) === 1 ? defaults.cfg_scale : request.cfg_scale;
  const dg = first(request.dg_scale) === 0 ? defaults.dg_scale : request.dg_scale;
  const ways = { Baseline: [1, 0], CFG: [cfg, 0], DG: [1, dg], "CFG+DG": [cfg, dg] };
  const plain = without(request, OF_SKIPPED_BLOCKS);
  const drawings = Object.entries(ways).map(([name, [cfg_scale, dg_scale]]) => ({
    name,
    request: consistent({ ...plain, cfg_scale, dg_scale }),
  }));
  return { request, drawings, size: sizeOf(request) };
}

/** Returns text like "seed 1, 12 steps, CFG 2, DG 0". */
export const settings = (request) =>
  `seed ${request.seed}, ${request.steps} steps, ${scales(request)}`;

/** Returns text like "CFG 2, DG 0". */
export const scales = ({ cfg_scale, dg_scale }) => `CFG ${scaleText(cfg_scale)}, DG ${scaleText(dg_scale)}`;
