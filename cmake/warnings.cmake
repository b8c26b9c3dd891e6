add_library(intaglio_warnings INTERFACE)
target_compile_options(intaglio_warnings INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wshadow;-Werror>
  # Not -Wpedantic: what nvcc makes of a file has line directives of its own.
  $<$<COMPILE_LANGUAGE:CUDA>:--Werror=all-warnings;-Xcompiler=-Wall,-Wextra,-Wshadow,-Werror>)
if(INTAGLIO_SANITIZE)
  # Instrumented, GCC 12 sees uninitialised members in the standard library's <regex>.
  target_compile_options(intaglio_warnings INTERFACE -Wno-error=maybe-uninitialized)
endif()
