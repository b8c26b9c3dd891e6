option(INTAGLIO_BUILD_PYTHON "Build the Python modules" OFF)
option(INTAGLIO_BUILD_TESTS "Build the C++ tests" OFF)
option(INTAGLIO_SYSTEM_LIBRARIES "Use the libraries that are installed" ON)
option(INTAGLIO_SANITIZE "Build with the address and undefined-behaviour sanitizers" OFF)

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()

include(GNUInstallDirs)

if(MINGW)
  include(mingw)
endif()

find_program(CCACHE ccache)
if(CCACHE)
  # Paths below the source are read relative to it, so that other checkouts and the wheel's build share what is compiled.
  foreach(language C CXX)
    set(CMAKE_${language}_COMPILER_LAUNCHER
      ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${PROJECT_SOURCE_DIR} CCACHE_NOHASHDIR=1 ${CCACHE})
  endforeach()
endif()

if(INTAGLIO_SANITIZE)
  add_compile_options(-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
endif()
