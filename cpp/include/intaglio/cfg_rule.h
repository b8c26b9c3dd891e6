// How CFG combines its two predictions, and what is done to the result.
#pragma once

namespace intaglio {

// How D_c and D_0 make one prediction, before D_m's term is added. docs/guidance.md has the formula
// and the paper of each kind; core/rule_weights.h computes them.
struct CfgRule {
  enum class Kind { cfg, apg, cfg_zero, tcfg, mambo_g };
  Kind kind = Kind::cfg;
  // apg: the part of the difference along D_c that is kept, the largest norm of the difference (0
  // sets no limit), and what each difference keeps of the one before.
  double eta = 0.0;
  double norm_threshold = 15.0;
  double momentum = -0.5;
  int zero_steps = 1;  // cfg_zero: first steps in which the whole prediction is zero
  double alpha = 8.0;  // mambo_g
  // Every kind: how far the result's standard deviation goes to that of D_c, from 0 to 1.
  double rescale = 0.0;
  // Every kind: the largest norm of an image's result, after that, in norms of its D_c; 0 sets no
  // limit.
  double normalization = 0.0;

  // Whether it needs sums over each image.
  bool needs_sums() const { return kind != Kind::cfg || rescale > 0 || normalization > 0; }
  bool has_momentum() const { return kind == Kind::apg && momentum != 0; }
};

// What is done to D after all terms, with or without CFG.
struct Correction {
  double tag = 1.0;   // factor of the part of D across the latents
  double prev = 0.0;  // weight of D less the D of the evaluation before
  bool any() const { return tag != 1 || prev != 0; }
};

}  // namespace intaglio
