// Marks a loop whose iteration i reads and writes element i of its arrays only. Such a loop gives
// the same result whether its arrays overlap or not, but the compiler vectorises it only with this
// pragma.
#pragma once

#if defined(__clang__)
#define INTAGLIO_ELEMENTWISE _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define INTAGLIO_ELEMENTWISE _Pragma("GCC ivdep")
#else
#define INTAGLIO_ELEMENTWISE
#endif
