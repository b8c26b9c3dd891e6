// The rules that combine D_c and D_0 with sums over an image, each written once: with numbers for
// the host, and with values of a graph for devices (backend/loop_graphs.cpp).
#pragma once

#include <algorithm>
#include <cmath>

#include "intaglio/cfg_rule.h"

namespace intaglio {

// Keeps 0 / 0 out.
inline constexpr double kTiny = 1e-30;

// What a rule needs of one step: CfgRule and lambda.
template <typename T>
struct RuleNumbers {
  T lambda, eta, norm_threshold, alpha;
};

// <p, p>, <p, q> and <q, q> of one image. For APG, which works on the clean data, p is what D_c
// means there, and q the difference with its momentum; else p = D_c and q = D_c - D_0.
template <typename T>
struct RuleSums {
  T pp, pq, qq;
};

// A rule's result is D_c + a p + b q, in the space of p.
template <typename T>
struct RuleWeights {
  T a, b;
};

// arXiv 2410.02416: the difference is shortened to the threshold, and only `eta` of its part along
// D_c is kept.
template <typename T>
RuleWeights<T> apg(const RuleNumbers<T>& n, const RuleSums<T>& s) {
  using std::min, std::sqrt;
  const T weight = n.lambda * min(1.0, n.norm_threshold / sqrt(s.qq + kTiny));
  return {(n.eta - 1.0) * weight * s.pq / (s.pp + kTiny), weight};
}

// arXiv 2503.18886: D_0 is scaled by <D_c, D_0> / |D_0|^2.
template <typename T>
RuleWeights<T> cfg_zero(const RuleNumbers<T>& n, const RuleSums<T>& s) {
  const T unconditional = s.pp - 2.0 * s.pq + s.qq + kTiny;  // |D_0|^2
  return {n.lambda * (s.qq - s.pq) / unconditional, n.lambda * (s.pp - s.pq) / unconditional};
}

// arXiv 2503.18137: D_0 is projected onto the first right singular vector of [D_c; D_0]. Its
// weights x and y for D_c and D_0 are an eigenvector of their 2x2 matrix of products.
template <typename T>
RuleWeights<T> tcfg(const RuleNumbers<T>& n, const RuleSums<T>& s) {
  using std::abs, std::sqrt;
  const T product = s.pp - s.pq, unconditional = s.pp - 2.0 * s.pq + s.qq;
  const T half = 0.5 * (s.pp - unconditional);
  const T root = sqrt(half * half + product * product);
  const T sign = product / (abs(product) + kTiny);
  const T x = root + half + abs(product), y = product + sign * (root - half);
  const T along = x * product + y * unconditional;
  const T k = along / (x * x * s.pp + 2.0 * x * y * product + y * y * unconditional + kTiny);
  return {n.lambda * (1.0 - k * (x + y)), n.lambda * k * y};
}

// arXiv 2508.03442: lambda falls with |D_c - D_0| / |D_0|.
template <typename T>
RuleWeights<T> mambo_g(const RuleNumbers<T>& n, const RuleSums<T>& s) {
  using std::exp, std::sqrt;
  const T ratio = sqrt(s.qq / (s.pp - 2.0 * s.pq + s.qq + kTiny));
  return {0.0 * s.pq, n.lambda * exp(-1.0 * n.alpha * ratio)};
}

template <typename T>
RuleWeights<T> rule_weights(CfgRule::Kind kind, const RuleNumbers<T>& n, const RuleSums<T>& s) {
  switch (kind) {
    case CfgRule::Kind::apg:
      return apg(n, s);
    case CfgRule::Kind::cfg_zero:
      return cfg_zero(n, s);
    case CfgRule::Kind::tcfg:
      return tcfg(n, s);
    case CfgRule::Kind::mambo_g:
      return mambo_g(n, s);
    case CfgRule::Kind::cfg:
      break;
  }
  return {0.0 * s.pq, n.lambda};
}

// arXiv 2305.08891, section 3.4: what the result is multiplied by, from the variances of D_c and of
// the result.
template <typename T>
T rescale_factor(const T& rescale, const T& conditional, const T& guided) {
  using std::sqrt;
  return rescale * sqrt(conditional / (guided + kTiny)) + (1.0 - rescale);
}

// cfg_normalization of diffusers' ZImagePipeline: what the result is multiplied by, from the sums
// of squares of D_c and of the result.
template <typename T>
T norm_factor(const T& limit, const T& conditional, const T& guided) {
  using std::min, std::sqrt;
  return min(1.0, limit * sqrt(conditional / (guided + kTiny)));
}

// arXiv 2510.04533, where the step is a multiple of D: the part of D across the latents x is
// multiplied by `tag`. Returns the weight of x beside tag * D.
template <typename T>
T tag_weight(const T& tag, const T& dx, const T& xx) {
  return (1.0 - tag) * dx / (xx + kTiny);
}

// The largest norm that APG leaves a difference, also where there is no limit.
inline double norm_limit(const CfgRule& rule) {
  return rule.norm_threshold > 0 ? rule.norm_threshold : 1e15;
}

}  // namespace intaglio
