// For loops that read and write the same element only: any aliasing of whole spans is harmless, and
// the compiler has to be told before it vectorises.
#pragma once

#if defined(__clang__)
#define INTAGLIO_ELEMENTWISE _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define INTAGLIO_ELEMENTWISE _Pragma("GCC ivdep")
#else
#define INTAGLIO_ELEMENTWISE
#endif
