add_library(intaglio_warnings INTERFACE)
target_compile_options(intaglio_warnings INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Werror)
