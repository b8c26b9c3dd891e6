add_library(intaglio_warnings INTERFACE)
target_compile_options(intaglio_warnings INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Werror)
if(INTAGLIO_SANITIZE)
  # With sanitizers GCC 12 wrongly reports uninitialised members in the standard library's <regex>.
  target_compile_options(intaglio_warnings INTERFACE -Wno-error=maybe-uninitialized)
endif()
